//! The names that published ViTs give their tensors, one file per scheme.
//!
//! Every scheme is translated to timm's names, those of [`slots`](crate::slots). A tensor inside a
//! block or an embedding that has no place in the model is *foreign*: leaving it out would give a
//! model that runs and computes something else, so such a file is refused. What comes after the
//! feature (classifiers, decoders, poolers) is unused and reported.

mod hugging_face;
mod original;
mod place;
mod timm;

pub(crate) use place::Place;
pub use place::Scheme;
pub(crate) use timm::ATTENTION_POOLING;

use std::collections::{BTreeMap, BTreeSet};

/// Where the values of one parameter are: indices into the list of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Whole(usize),
    Parts([Option<usize>; 3]),
}

/// The tensors of a file, each with its place.
#[derive(Debug)]
pub(crate) struct Names {
    pub scheme: Scheme,
    /// What precedes the names of the backbone, such as `teacher.backbone.`.
    pub prefix: String,
    /// Whether registers have no position and the class token has one, as in DINOv2; timm, which
    /// names them otherwise, has added that position to the class token.
    pub bare_registers: bool,
    /// By position in the file's list.
    pub places: Vec<Place>,
    /// By timm name.
    pub sources: BTreeMap<String, Source>,
}

/// The tensor every ViT has once, as timm and the releases and as Hugging Face name it.
const ANCHORS: [&str; 2] = [
    "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.weight",
];

impl Names {
    /// Finds the backbone among the tensors, strips what wraps it and gives each tensor its place;
    /// `None` when no tensor is a patch projection.
    pub fn find(names: &[&str]) -> Option<Self> {
        let bare: Vec<String> = names.iter().map(|name| without_wrappers(name)).collect();
        // Where two names become one, the file holds a part twice, and the names stay as they are.
        let is_clear = bare.iter().collect::<BTreeSet<_>>().len() == bare.len();
        let bare: Vec<&str> = bare.iter().map(String::as_str).collect();
        let names = if is_clear { &bare } else { names };
        let (prefix, anchor) = names
            .iter()
            .flat_map(|name| ANCHORS.map(|anchor| (name.strip_suffix(anchor), anchor)))
            .filter_map(|(prefix, anchor)| Some((prefix?, anchor)))
            .filter(|(prefix, _)| prefix.is_empty() || prefix.ends_with('.'))
            .min_by_key(|(prefix, _)| {
                // Self-distillation keeps two networks; the published one is the teacher, the
                // average over time. The same holds for an averaged copy beside a trained one.
                let average = prefix.contains("teacher") || prefix.contains("ema");
                (!average, prefix.len())
            })?;
        let inner: Vec<Option<&str>> = names.iter().map(|n| n.strip_prefix(prefix)).collect();
        let scheme = if anchor == ANCHORS[1] {
            hugging_face::scheme(inner.iter().flatten())
        } else if original::is(prefix, names, inner.iter().flatten()) {
            Scheme::Original
        } else {
            Scheme::Timm
        };
        let places: Vec<Place> = inner
            .iter()
            .map(|name| match (name, scheme) {
                (None, _) => Place::Unused("outside the backbone"),
                (Some(name), Scheme::Timm) => timm::place(name),
                (Some(name), Scheme::Original) => original::place(name),
                (Some(name), _) => hugging_face::place(name),
            })
            .collect();
        let mut sources = BTreeMap::new();
        for (idx, place) in places.iter().enumerate() {
            match place {
                Place::Whole(name) => {
                    sources.insert(name.clone(), Source::Whole(idx));
                }
                Place::Part(name, part) => {
                    let source = sources
                        .entry(name.clone())
                        .or_insert(Source::Parts([None; 3]));
                    if let Source::Parts(parts) = source {
                        parts[*part] = Some(idx);
                    }
                }
                Place::Unused(_) | Place::Foreign(_) => {}
            }
        }
        let bare_registers = inner
            .iter()
            .flatten()
            .any(|name| matches!(*name, "register_tokens" | "embeddings.register_tokens"));
        Some(Self {
            scheme,
            bare_registers,
            prefix: prefix.into(),
            places,
            sources,
        })
    }
}

/// What PyTorch puts into the names of modules that it compiles, shards or computes again.
const WRAPPERS: [&str; 3] = [
    "_orig_mod.",
    "_fsdp_wrapped_module.",
    "_checkpoint_wrapped_module.",
];

fn without_wrappers(name: &str) -> String {
    WRAPPERS
        .iter()
        .fold(name.to_owned(), |name, wrapper| name.replace(wrapper, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(names: &[&str], name: &str) -> (Scheme, Place) {
        let found = Names::find(names).unwrap();
        let idx = names.iter().position(|n| *n == name).unwrap();
        (found.scheme, found.places[idx].clone())
    }

    #[test]
    fn the_teacher_is_chosen_and_the_student_left() {
        let names = [
            "student.module.backbone.patch_embed.proj.weight",
            "teacher.module.backbone.patch_embed.proj.weight",
            "teacher.module.backbone.blocks.1.2.attn.qkv.weight",
            "teacher.module.head.mlp.0.weight",
        ];
        let found = Names::find(&names).unwrap();
        assert_eq!(found.prefix, "teacher.module.backbone.");
        assert_eq!(found.scheme, Scheme::Original);
        assert!(matches!(found.places[0], Place::Unused(_)));
        // Blocks in chunks keep their number in the whole.
        assert_eq!(
            found.places[2],
            Place::Whole("blocks.2.attn.qkv.weight".into())
        );
        assert!(matches!(found.places[3], Place::Unused(_)));
    }

    #[test]
    fn the_decoder_of_mae_is_left() {
        let names = [
            "model.patch_embed.proj.weight",
            "model.blocks.0.norm1.bias",
            "model.decoder_embed.weight",
            "model.decoder_blocks.0.attn.qkv.weight",
        ];
        let found = Names::find(&names).unwrap();
        assert_eq!(
            (found.scheme, found.prefix.as_str()),
            (Scheme::Original, "model.")
        );
        assert_eq!(found.places[1], Place::Whole("blocks.0.norm1.bias".into()));
        for place in &found.places[2..] {
            assert_eq!(*place, Place::Unused("decoder of the pre-training"));
        }
    }

    #[test]
    fn query_key_and_value_become_one() {
        for (style, q, k, v) in [
            (
                "vit.encoder.layer.0.attention.attention.",
                "query",
                "key",
                "value",
            ),
            ("vit.layers.0.attention.", "q_proj", "k_proj", "v_proj"),
        ] {
            let mut names = vec!["vit.embeddings.patch_embeddings.projection.weight".to_string()];
            // In an order of their own, as files have them.
            names.extend([k, q, v].map(|part| format!("{style}{part}.bias")));
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let found = Names::find(&names).unwrap();
            assert_eq!(found.scheme, Scheme::HuggingFaceVit);
            assert_eq!(
                found.sources["blocks.0.attn.qkv.bias"],
                Source::Parts([Some(2), Some(1), Some(3)])
            );
        }
    }

    #[test]
    fn what_changes_the_function_is_foreign_and_what_follows_it_unused() {
        let timm = |name| place(&["patch_embed.proj.weight", name], name);
        for name in [
            "blocks.0.mlp.w12.weight",
            "blocks.0.attn.q_norm.weight",
            "blocks.0.attn.q_bias",
            "blocks.0.something.new",
            "dist_token",
            "patch_embed.norm.weight",
        ] {
            assert!(matches!(timm(name).1, Place::Foreign(_)), "{name}");
        }
        for name in ["head.weight", "decoder_blocks.0.norm1.weight", "mask_token"] {
            assert!(matches!(timm(name).1, Place::Unused(_)), "{name}");
        }
        let hf = |name| {
            place(
                &["embeddings.patch_embeddings.projection.weight", name],
                name,
            )
        };
        for name in [
            "encoder.layer.0.mlp.weights_in.weight",
            "embeddings.distillation_token",
            "embeddings.detection_tokens",
        ] {
            assert!(matches!(hf(name).1, Place::Foreign(_)), "{name}");
        }
        assert!(matches!(
            hf("pooler.dense.weight").1,
            Place::Unused("pooler")
        ));
        assert_eq!(
            hf("encoder.layer.4.layer_scale1.lambda1"),
            (
                Scheme::HuggingFaceDinov2,
                Place::Whole("blocks.4.ls1.gamma".into())
            )
        );
    }

    #[test]
    fn wrappers_of_pytorch_are_taken_out_of_names() {
        let names = [
            "_orig_mod.module.patch_embed.proj.weight",
            "_orig_mod.module.blocks.0._checkpoint_wrapped_module.attn.qkv.weight",
            "_orig_mod.module._fsdp_wrapped_module.norm.weight",
        ];
        let found = Names::find(&names).unwrap();
        assert_eq!(found.prefix, "module.");
        assert_eq!(
            found.places[1],
            Place::Whole("blocks.0.attn.qkv.weight".into())
        );
        assert_eq!(found.places[2], Place::Whole("norm.weight".into()));
        // The wrapped and the bare part are not taken for one.
        let twice = [
            "patch_embed.proj.weight",
            "norm.weight",
            "_orig_mod.norm.weight",
        ];
        let found = Names::find(&twice).unwrap();
        assert!(matches!(found.places[2], Place::Unused(_)));
    }

    #[test]
    fn a_file_without_a_patch_projection_is_no_vit() {
        assert!(Names::find(&["conv1.weight", "my_patch_embed.proj.weight"]).is_none());
    }
}
