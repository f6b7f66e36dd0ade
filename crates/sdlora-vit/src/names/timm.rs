//! timm's names: those of this crate, with the older name of LayerScale.

use super::place::{Place, block};

const BLOCK_PARTS: [&str; 6] = [
    "norm1.",
    "norm2.",
    "attn.qkv.",
    "attn.proj.",
    "mlp.fc1.",
    "mlp.fc2.",
];

/// The place of a tensor.
pub(super) fn place(name: &str) -> Place {
    if let Some((idx, part)) = block(name, "blocks.") {
        return match part {
            "gamma_1" => Place::Whole(format!("blocks.{idx}.ls1.gamma")),
            "gamma_2" => Place::Whole(format!("blocks.{idx}.ls2.gamma")),
            "ls1.gamma" | "ls2.gamma" => Place::Whole(name.into()),
            _ if is_weight_or_bias(part, &BLOCK_PARTS) => Place::Whole(name.into()),
            _ => Place::Foreign(foreign(part)),
        };
    }
    if is_weight_or_bias(
        name,
        &["patch_embed.proj.", "norm.", "norm_pre.", "fc_norm."],
    ) || matches!(name, "cls_token" | "pos_embed" | "reg_token")
    {
        return Place::Whole(name.into());
    }
    let starts = |stems: &[&str]| stems.iter().any(|stem| name.starts_with(stem));
    if name == "dist_token" {
        Place::Foreign("the distillation token of DeiT; use the model without distillation")
    } else if starts(&["patch_embed.", "rope"]) {
        Place::Foreign("an embedding this version does not have")
    } else if starts(&["blocks."]) {
        Place::Foreign("a part of a block this version does not have")
    } else if name == "mask_token" {
        Place::Unused("mask token of the pre-training")
    } else if starts(&["decoder", "mask_"]) {
        Place::Unused("decoder of the pre-training")
    } else if starts(&["head", "fc.", "pre_logits", "classifier"]) {
        Place::Unused("classifier")
    } else if starts(&["attn_pool"]) {
        Place::Unused(ATTENTION_POOLING)
    } else {
        Place::Unused("no part of the backbone")
    }
}

/// What the tensors of timm's `global_pool = "map"` are called in a report.
pub(crate) const ATTENTION_POOLING: &str = "attention pooling";

fn is_weight_or_bias(name: &str, stems: &[&str]) -> bool {
    stems
        .iter()
        .any(|stem| matches!(name.strip_prefix(stem), Some("weight" | "bias")))
}

/// What the part of a block is that no ViT here has.
pub(super) fn foreign(part: &str) -> &'static str {
    let has = |words: &[&str]| words.iter().any(|word| part.contains(word));
    if has(&[
        "mlp.w1",
        "mlp.w2",
        "mlp.w3",
        "fc1_g",
        "fc1_x",
        "weights_in",
        "weights_out",
    ]) {
        "a SwiGLU MLP, which this version does not have; use a size with a GELU MLP"
    } else if has(&["q_norm", "k_norm"]) {
        "norms of query and key, which this version does not have"
    } else if has(&["q_bias", "v_bias", "relative_position"]) {
        "BEiT's attention, which this version does not have"
    } else {
        "a part of a block this version does not have"
    }
}
