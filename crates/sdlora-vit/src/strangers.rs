//! Files that are not a ViT of this crate, told by the names and shapes of their tensors: what each is, and what would
//! work instead.

use std::collections::BTreeSet;

use sdlora_weights::{Dtype, TensorInfo};

/// Names of which one is in the file, and what the file is, as the end of "it is ...".
///
/// The first that fits is taken, so the narrower ones stand first.
const SIGNS: &[(&[&str], &str)] = &[
    (
        &[".base_layer."],
        "a model with an adapter of peft that is not merged: load it with peft, then \
         `model.merge_and_unload().save_pretrained(FOLDER)`",
    ),
    (
        &[".lora_A.", ".lora_B.", ".lora_embedding_A"],
        "an adapter of peft without its base: load it on its base with peft, then \
         `model.merge_and_unload().save_pretrained(FOLDER)`",
    ),
    (
        &[".task0.lora_A"],
        "the adapter of a run of sdlora: give the run's `model/vit.safetensors`, or its backbone and this adapter",
    ),
    (
        &["patch_generator."],
        "RADIO, which has a patch projection of its own and no final norm: use another model, as DINOv2",
    ),
    (
        &["embeddings.patch_embeddings.weight"],
        "DINOv3 of transformers, which has rotary positions that this version does not have: use DINOv2",
    ),
    (
        &["vision_model.head.probe", "head.probe"],
        "SigLIP of transformers, which this version does not read: use timm's version of the same model, as \
         `hf:timm/vit_base_patch16_siglip_224.webli`, with average pooling",
    ),
    (
        &[
            "embeddings.class_embedding",
            "embeddings.patch_embedding.weight",
        ],
        "CLIP or SigLIP of transformers, which this version does not read: use timm's version of the same model, as \
         `hf:timm/vit_base_patch16_clip_224.openai`",
    ),
    (
        &["visual.conv1.weight", "visual.class_embedding"],
        "CLIP of OpenAI or OpenCLIP, which this version does not read: use timm's version of the same model, as \
         `hf:timm/vit_base_patch16_clip_224.openai`",
    ),
    (
        &["visual.trunk.patch_embed.proj.weight"],
        "a CLIP or SigLIP of OpenCLIP: use timm's version of the same model, as \
         `hf:timm/vit_base_patch16_siglip_224.webli`, with average pooling",
    ),
    (
        &[
            ".attn.q_bias",
            ".attn.inner_attn_ln.weight",
            ".attn.q_proj.weight",
            ".mlp.fc1_g.weight",
            ".attn.rope.freqs_cos",
        ],
        "EVA, EVA-02 or BEiT, whose attention or MLP this version does not have: use a plain ViT, as DINOv2 or AugReg",
    ),
    (
        &["encoder.layers.encoder_layer_0.ln_1.weight"],
        "a ViT of torchvision, which this version does not read: use timm's version of the same size",
    ),
    (
        &[
            ".relative_position_bias_table",
            "layers.0.blocks.0.norm1.weight",
        ],
        "Swin or BEiT, whose attention this version does not have: use a plain ViT, as DINOv2 or AugReg",
    ),
    (
        &[
            "layer1.0.conv1.weight",
            "stages.0.blocks.0.conv_dw.weight",
            "features.0.weight",
        ],
        "a convolutional network: use a ViT",
    ),
];

/// Endings of the tensors that quantisation leaves beside its weights.
const QUANTISED: [&str; 9] = [
    ".weight_scale",
    ".weight_scale_inv",
    ".input_scale",
    ".SCB",
    ".absmax",
    ".quant_map",
    ".qweight",
    ".qzeros",
    ".zero_point",
];

/// What to do with quantised weights.
const DEQUANTISE: &str = "take the model in 16 or 32 bits, or dequantise it and save it again";

/// What the file is and what would work, as a whole sentence; `None` when nothing tells.
pub(crate) fn stranger(tensors: &[TensorInfo], unbuilt: &BTreeSet<String>) -> Option<String> {
    let find = |signs: &[&str]| {
        tensors.iter().map(|t| t.name.as_str()).find(|name| {
            signs.iter().any(|sign| {
                name.contains(sign) || sign.strip_prefix('.').is_some_and(|s| name.starts_with(s))
            })
        })
    };
    if let Some((name, what)) = SIGNS
        .iter()
        .find_map(|(signs, what)| Some((find(signs)?, *what)))
    {
        return Some(format!("it is {what} (it holds `{name}`)"));
    }
    if let Some(t) = tensors
        .iter()
        .find(|t| QUANTISED.iter().any(|end| t.name.ends_with(end)))
    {
        return Some(format!(
            "its weights are quantised (it holds `{}`): {DEQUANTISE}",
            t.name
        ));
    }
    if unbuilt.iter().any(|class| class.contains("qtensor")) {
        return Some(format!(
            "its weights are quantised tensors of PyTorch: {DEQUANTISE}"
        ));
    }
    is_head(tensors).then(|| {
        "it is the head of a run of sdlora: give the run's `model/vit.safetensors`".to_owned()
    })
}

/// Whether these are the tensors of `model/head.safetensors`.
fn is_head(tensors: &[TensorInfo]) -> bool {
    let names: BTreeSet<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    names.contains("weight")
        && names
            .iter()
            .all(|name| ["weight", "bias", "projection", "factors", "offsets"].contains(name))
}

/// What makes a block of that timm name another function than ours, by the shapes of its tensors: `shape` gives those.
pub(crate) fn unlike_block(shape: impl Fn(&str) -> Option<Vec<usize>>) -> Option<String> {
    let (fc1, fc2) = (
        shape("blocks.0.mlp.fc1.weight"),
        shape("blocks.0.mlp.fc2.weight"),
    );
    if let (Some([d_hidden, _]), Some([_, d_gated])) = (fc1.as_deref(), fc2.as_deref())
        && d_gated.checked_mul(2) == Some(*d_hidden)
    {
        return Some(format!(
            "its MLP is a SwiGLU, {d_hidden} wide in and {d_gated} out, which this version does not have: use a size \
             with a GELU MLP, as small, base or large"
        ));
    }
    if shape("blocks.0.norm1.weight").is_some() && shape("blocks.0.norm1.bias").is_none() {
        return Some(
            "its norms have no bias, as RMSNorm, which this version does not have: use a model with layer norms"
                .into(),
        );
    }
    if shape("norm.weight").is_none() && shape("fc_norm.weight").is_none() {
        return Some(
            "it has no final norm, as RADIO and PE-Spatial, and this version needs one: use another model, or fetch \
             the file again if it should have one"
                .into(),
        );
    }
    if shape("pos_embed").is_none() {
        return Some(
            "it has no `pos_embed`: its positions are computed, as the rotary ones of DINOv3 and newer models, which \
             this version does not have; use a model with learned positions, as DINOv2"
                .into(),
        );
    }
    None
}

/// The first tensor of the model whose numbers are no weights as they are. `is_used` tells by position.
pub(crate) fn unlike_float(
    tensors: &[TensorInfo],
    is_used: impl Fn(usize) -> bool,
) -> Option<String> {
    let (_, tensor) = tensors
        .iter()
        .enumerate()
        .find(|(idx, t)| matches!(t.dtype, Dtype::Other(_)) && is_used(*idx))?;
    Some(format!(
        "`{}` holds {}, {}",
        tensor.name,
        tensor.dtype,
        tensor.dtype.why_not_read()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(names: &[&str]) -> Option<String> {
        let tensors: Vec<_> = names
            .iter()
            .map(|name| TensorInfo {
                name: (*name).into(),
                dtype: Dtype::F32,
                shape: vec![2],
            })
            .collect();
        stranger(&tensors, &BTreeSet::new())
    }

    #[test]
    fn files_of_other_programs_are_named_with_what_would_work() {
        // Names that transformers 5.23, timm 1.0.31, peft 0.21 and OpenCLIP write.
        for (name, expected) in [
            (
                "base_model.model.vit.layers.0.attention.q_proj.base_layer.weight",
                "merge_and_unload",
            ),
            (
                "base_model.model.vit.layers.0.attention.q_proj.lora_A.weight",
                "without its base",
            ),
            ("blocks.0.query.task0.lora_A", "model/vit.safetensors"),
            ("radio_model.model.patch_generator.embedder.weight", "RADIO"),
            ("embeddings.patch_embeddings.weight", "DINOv3"),
            ("vision_model.head.probe", "SigLIP of transformers"),
            (
                "vision_model.embeddings.class_embedding",
                "CLIP or SigLIP of transformers",
            ),
            (
                "embeddings.patch_embedding.weight",
                "CLIP or SigLIP of transformers",
            ),
            ("visual.conv1.weight", "OpenCLIP"),
            ("blocks.0.attn.q_bias", "EVA-02"),
            ("blocks.0.mlp.fc1_g.weight", "EVA-02"),
            ("encoder.layers.encoder_layer_0.ln_1.weight", "torchvision"),
            ("blocks.0.attn.qkv.weight_scale", "quantised"),
            ("layer1.0.conv1.weight", "convolutional"),
        ] {
            let message = said(&["a", name]).unwrap_or_default();
            assert!(
                message.contains(expected) && message.contains(name),
                "{name}: {message}"
            );
        }
        assert!(said(&["weight", "bias"]).unwrap().contains("head of a run"));
        assert_eq!(
            said(&["patch_embed.proj.weight", "blocks.0.attn.qkv.weight"]),
            None
        );
    }

    #[test]
    fn blocks_are_told_by_their_shapes() {
        let shapes = |list: &'static [(&str, &[usize])]| {
            move |name: &str| {
                list.iter()
                    .find(|(n, _)| *n == name)
                    .map(|(_, s)| s.to_vec())
            }
        };
        const PLAIN: &[(&str, &[usize])] = &[
            ("blocks.0.mlp.fc1.weight", &[32, 8]),
            ("blocks.0.mlp.fc2.weight", &[8, 32]),
            ("blocks.0.norm1.weight", &[8]),
            ("blocks.0.norm1.bias", &[8]),
            ("norm.weight", &[8]),
            ("pos_embed", &[1, 5, 8]),
        ];
        assert_eq!(unlike_block(shapes(PLAIN)), None);
        let gated = |name: &str| match name {
            "blocks.0.mlp.fc2.weight" => Some(vec![8, 16]),
            _ => shapes(PLAIN)(name),
        };
        assert!(unlike_block(gated).unwrap().contains("SwiGLU"));
        for (absent, expected) in [
            ("blocks.0.norm1.bias", "RMSNorm"),
            ("norm.weight", "no final norm"),
            ("pos_embed", "rotary"),
        ] {
            let without = |name: &str| (name != absent).then(|| shapes(PLAIN)(name)).flatten();
            assert!(
                unlike_block(without).unwrap().contains(expected),
                "{absent}"
            );
        }
    }
}
