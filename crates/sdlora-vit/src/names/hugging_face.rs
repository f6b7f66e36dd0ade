//! Hugging Face names: `ViTModel` and `Dinov2Model`, as files have them and as version 5 of
//! transformers has them in memory. Query, key and value are three tensors.

use super::place::{Place, Scheme, block};
use super::timm;

/// Which of the two models the tensors are from.
pub(super) fn scheme<'a>(mut names: impl Iterator<Item = &'a &'a str>) -> Scheme {
    let dinov2 = names.any(|name| {
        matches!(*name, "embeddings.register_tokens")
            || (name.contains(".layer_scale1.") || name.contains(".norm1."))
    });
    if dinov2 {
        Scheme::HuggingFaceDinov2
    } else {
        Scheme::HuggingFaceVit
    }
}

/// The part of a block as timm names it, with the third it fills of a packed one.
const BLOCK_PARTS: [(&str, &str, Option<usize>); 18] = [
    ("attention.attention.query", "attn.qkv", Some(0)),
    ("attention.attention.key", "attn.qkv", Some(1)),
    ("attention.attention.value", "attn.qkv", Some(2)),
    ("attention.q_proj", "attn.qkv", Some(0)),
    ("attention.k_proj", "attn.qkv", Some(1)),
    ("attention.v_proj", "attn.qkv", Some(2)),
    ("attention.output.dense", "attn.proj", None),
    ("attention.o_proj", "attn.proj", None),
    ("layernorm_before", "norm1", None),
    ("layernorm_after", "norm2", None),
    ("norm1", "norm1", None),
    ("norm2", "norm2", None),
    ("intermediate.dense", "mlp.fc1", None),
    ("output.dense", "mlp.fc2", None),
    ("mlp.fc1", "mlp.fc1", None),
    ("mlp.fc2", "mlp.fc2", None),
    ("layer_scale1", "ls1", None),
    ("layer_scale2", "ls2", None),
];

/// The place of a tensor.
pub(super) fn place(name: &str) -> Place {
    let in_block = ["encoder.layer.", "encoder.layers.", "layers.", "layer."]
        .iter()
        .find_map(|stem| block(name, stem));
    if let Some((idx, part)) = in_block {
        return in_block_place(idx, part).unwrap_or(Place::Foreign(timm::foreign(part)));
    }
    let whole = |name: &str| Place::Whole(name.into());
    match name {
        "embeddings.cls_token" => whole("cls_token"),
        "embeddings.register_tokens" => whole("reg_token"),
        "embeddings.position_embeddings" => whole("pos_embed"),
        "embeddings.patch_embeddings.projection.weight" => whole("patch_embed.proj.weight"),
        "embeddings.patch_embeddings.projection.bias" => whole("patch_embed.proj.bias"),
        "layernorm.weight" => whole("norm.weight"),
        "layernorm.bias" => whole("norm.bias"),
        "embeddings.mask_token" => Place::Unused("mask token of the pre-training"),
        "embeddings.distillation_token" => {
            Place::Foreign("the distillation token of DeiT; use the model without distillation")
        }
        _ if name.starts_with("embeddings.") || name.starts_with("encoder.") => {
            Place::Foreign("a part this version does not have")
        }
        _ if name.starts_with("pooler.") => Place::Unused("pooler"),
        _ if name.starts_with("classifier.") => Place::Unused("classifier"),
        _ => Place::Unused("no part of the backbone"),
    }
}

fn in_block_place(idx: usize, part: &str) -> Option<Place> {
    let (stem, last) = part.rsplit_once('.')?;
    let (_, ours, third) = BLOCK_PARTS.iter().find(|(theirs, ..)| *theirs == stem)?;
    let last = match (last, *ours) {
        ("lambda1", "ls1" | "ls2") => "gamma",
        ("weight" | "bias", _) => last,
        _ => return None,
    };
    let name = format!("blocks.{idx}.{ours}.{last}");
    Some(match third {
        Some(third) => Place::Part(name, *third),
        None => Place::Whole(name),
    })
}
