//! What the name of an architecture of timm (1.0.31) tells and its tensors do not.
//!
//! A file often keeps that name when it leaves its `config.json` behind, so the rules hold for both. Every name that
//! they must tell apart was compared with the models that timm builds; the test below keeps the cases.

use crate::activation::Activation;
use crate::config::{PosEmbed, VitConfig};

/// A name in small letters with all separators alike, ready to be searched.
fn plain(name: &str) -> String {
    let separated = name.chars().map(|c| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '_'
        }
    });
    format!("_{}_", separated.collect::<String>())
}

/// Words, all of which a name has, and what they mean.
type Rules<T> = &'static [(&'static [&'static str], T)];

/// The first rule whose words are all in the name.
fn found<T: Copy>(rules: Rules<T>, name: &str) -> Option<T> {
    let name = plain(name);
    rules
        .iter()
        .find(|(words, _)| words.iter().all(|word| name.contains(word)))
        .map(|(_, meaning)| *meaning)
}

/// Architectures whose tensors are those of a plain ViT and whose function is not, with what they have instead.
const UNLIKE_PLAIN: Rules<&str> = &[
    (&["vit", "_rope"], "rotary positions"),
    (&["vit_pe_"], "rotary positions"),
    (&["dinov3"], "rotary positions"),
    (&["vit", "_rpn_"], "its norms behind attention and MLP"),
    (
        &["test_vit3_"],
        "a pooling that includes class token and registers",
    ),
];

/// What the architecture of that name has that no ViT of this crate has.
pub(crate) fn unlike_plain(name: &str) -> Option<&'static str> {
    found(UNLIKE_PLAIN, name)
}

/// Architectures with another function in their MLP than the exact GELU.
const ACTIVATIONS: Rules<Activation> = &[
    (&["quickgelu"], Activation::QuickGelu),
    (&["patch32_siglip"], Activation::GeluTanh),
    (&["giantopt_patch16_siglip"], Activation::GeluTanh),
    (&["so400m_patch16_siglip"], Activation::GeluTanh),
    (&["large_patch16_siglip", "_512_"], Activation::GeluTanh),
];

/// Families of which every member is either in [`ACTIVATIONS`] or has the exact GELU.
const FAMILIES: Rules<Activation> = &[
    (&["vit", "patch"], Activation::Gelu),
    (&["deit"], Activation::Gelu),
    (&["dino"], Activation::Gelu),
    (&["flexivit"], Activation::Gelu),
    (&["test_vit"], Activation::Gelu),
];

/// The function in the MLP of the architecture of that name, where the name tells.
pub(crate) fn activation(name: &str) -> Option<Activation> {
    found(ACTIVATIONS, name).or_else(|| found(FAMILIES, name))
}

/// Architectures with a class token and without registers whose patches alone have positions.
const PATCH_POSITIONS: Rules<()> = &[(&["deit3"], ()), (&["flexivit"], ())];

/// The tokens with a position of their own in the architecture of that name, where the name tells.
pub(crate) fn pos_embed(name: &str) -> Option<PosEmbed> {
    if found(PATCH_POSITIONS, name).is_some() {
        return Some(PosEmbed::Patches);
    }
    preset(name).map(|config| config.pos_embed)
}

/// The shape of the architecture of that name, which may be followed by a tag: `vit_base_patch16_224.augreg_in1k`.
pub(crate) fn preset(name: &str) -> Option<VitConfig> {
    let stem = name.split('.').next().unwrap_or(name);
    VitConfig::preset(&stem.to_ascii_lowercase()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_those_that_timm_builds() {
        use Activation::*;
        for (name, expected) in [
            ("vit_base_patch16_224.augreg2_in21k_ft_in1k", Gelu),
            ("vit_large_patch14_clip_224.openai", Gelu),
            ("vit_base_patch32_clip_quickgelu_224", QuickGelu),
            ("vit-huge-patch14-clip-quickgelu-378.dfn5b", QuickGelu),
            ("vit_base_patch16_siglip_512", Gelu),
            ("vit_base_patch16_siglip_gap_512.webli", Gelu),
            ("vit_large_patch16_siglip_384", Gelu),
            ("vit_large_patch16_siglip_gap_512", GeluTanh),
            ("vit_base_patch32_siglip_gap_256", GeluTanh),
            ("vit_so400m_patch14_siglip_gap_896", Gelu),
            ("vit_so400m_patch16_siglip_gap_384", GeluTanh),
            ("vit_so400m_patch14_reg1_tipsv2", Gelu),
            ("vit_giantopt_patch16_siglip_gap_384", GeluTanh),
            ("ViT_B_vit_base_patch32_clip_QuickGELU_224.pth", QuickGelu),
        ] {
            assert_eq!(activation(name), Some(expected), "{name}");
        }
        assert_eq!(activation("model.safetensors"), None);
    }

    #[test]
    fn parts_without_tensors_are_told_by_their_names() {
        for name in [
            "vit_base_patch16_rpn_224.safetensors",
            "vit_base_patch16_rpn_224-sw-3b07e89d.pth",
            "vit_small_patch16_rope_ape_224.naver_in1k",
            "vit_pe_core_tiny_patch16_384",
            "vit_small_patch16_dinov3",
            "test_vit3.r160_in1k",
        ] {
            assert!(unlike_plain(name).is_some(), "{name}");
        }
        for name in [
            "vit_base_patch16_224",
            "europe_corpnet",
            "vit_small_r26_s32_224",
        ] {
            assert_eq!(unlike_plain(name), None, "{name}");
        }
    }

    #[test]
    fn positions_of_the_class_token_are_told_by_name() {
        for (name, expected) in [
            ("deit3_medium_patch16_224", Some(PosEmbed::Patches)),
            ("flexivit_base.1200ep_in1k", Some(PosEmbed::Patches)),
            ("vit_base_patch16_224.augreg_in1k", Some(PosEmbed::All)),
            ("vit_small_patch14_reg4_dinov2", Some(PosEmbed::Patches)),
            ("model", None),
        ] {
            assert_eq!(pos_embed(name), expected, "{name}");
        }
    }
}
