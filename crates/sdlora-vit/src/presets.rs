//! The shapes people know by name.

use crate::config::{Pooling, PosEmbed, VitConfig};
use crate::error::VitError;

/// A named shape.
#[derive(Debug, Clone, Copy)]
pub struct BackbonePreset {
    /// timm's name without its tag.
    pub name: &'static str,
    /// Builds the shape.
    pub config: fn() -> VitConfig,
}

macro_rules! presets {
    ($($name:ident: $side:literal, $patch:literal, $size:ident $(, $change:ident)*;)*) => {
        /// The shapes that can be asked for by name.
        pub const BACKBONES: &[BackbonePreset] = &[$(BackbonePreset {
            name: stringify!($name),
            config: || {
                #[allow(unused_mut)]
                let mut config = $size($side, $patch);
                $($change(&mut config);)*
                config
            },
        }),*];
    };
}

presets! {
    vit_tiny_patch16_224: 224, 16, tiny;
    vit_small_patch16_224: 224, 16, small;
    vit_base_patch16_224: 224, 16, base;
    vit_large_patch16_224: 224, 16, large;
    vit_tiny_patch14_224: 224, 14, tiny;
    vit_small_patch14_224: 224, 14, small;
    vit_base_patch14_224: 224, 14, base;
    vit_large_patch14_224: 224, 14, large;
    vit_tiny_patch8_224: 224, 8, tiny;
    vit_small_patch8_224: 224, 8, small;
    vit_base_patch8_224: 224, 8, base;
    vit_large_patch8_224: 224, 8, large;
    vit_tiny_patch32_224: 224, 32, tiny;
    vit_small_patch32_224: 224, 32, small;
    vit_base_patch32_224: 224, 32, base;
    vit_large_patch32_224: 224, 32, large;
    vit_tiny_patch16_384: 384, 16, tiny;
    vit_small_patch16_384: 384, 16, small;
    vit_base_patch16_384: 384, 16, base;
    vit_large_patch16_384: 384, 16, large;
    vit_small_patch32_384: 384, 32, small;
    vit_base_patch32_384: 384, 32, base;
    vit_large_patch32_384: 384, 32, large;
    deit_tiny_patch16_224: 224, 16, tiny;
    deit_small_patch16_224: 224, 16, small;
    deit_base_patch16_224: 224, 16, base;
    deit_base_patch16_384: 384, 16, base;
    deit3_small_patch16_224: 224, 16, small, layer_scale, patch_positions;
    deit3_base_patch16_224: 224, 16, base, layer_scale, patch_positions;
    deit3_large_patch16_224: 224, 16, large, layer_scale, patch_positions;
    vit_small_patch14_dinov2: 518, 14, small, layer_scale;
    vit_base_patch14_dinov2: 518, 14, base, layer_scale;
    vit_large_patch14_dinov2: 518, 14, large, layer_scale;
    vit_small_patch14_reg4_dinov2: 518, 14, small, layer_scale, registers, patch_positions;
    vit_base_patch14_reg4_dinov2: 518, 14, base, layer_scale, registers, patch_positions;
    vit_large_patch14_reg4_dinov2: 518, 14, large, layer_scale, registers, patch_positions;
    vit_base_patch32_clip_224: 224, 32, base, clip;
    vit_base_patch16_clip_224: 224, 16, base, clip;
    vit_large_patch14_clip_224: 224, 14, large, clip;
    test_vit: 160, 16, test, three_times;
    test_vit2: 160, 16, test2, three_times, layer_scale;
}

fn tiny(side: usize, patch: usize) -> VitConfig {
    VitConfig::standard(side, patch, 192, 12, 3)
}

fn small(side: usize, patch: usize) -> VitConfig {
    VitConfig::standard(side, patch, 384, 12, 6)
}

fn base(side: usize, patch: usize) -> VitConfig {
    VitConfig::standard(side, patch, 768, 12, 12)
}

fn large(side: usize, patch: usize) -> VitConfig {
    VitConfig::standard(side, patch, 1024, 24, 16)
}

fn test(side: usize, patch: usize) -> VitConfig {
    VitConfig::standard(side, patch, 64, 6, 2)
}

fn test2(side: usize, patch: usize) -> VitConfig {
    let mut config = VitConfig::standard(side, patch, 64, 8, 2);
    config.class_token = false;
    config.n_registers = 1;
    config.pooling = Pooling::Average;
    config.fc_norm = true;
    config
}

fn three_times(config: &mut VitConfig) {
    config.d_mlp = 3 * config.d_model;
}

fn layer_scale(config: &mut VitConfig) {
    config.layer_scale = true;
}

fn patch_positions(config: &mut VitConfig) {
    config.pos_embed = PosEmbed::Patches;
}

fn registers(config: &mut VitConfig) {
    config.n_registers = 4;
}

fn clip(config: &mut VitConfig) {
    config.pre_norm = true;
    config.patch_bias = false;
    config.norm_eps = 1e-5;
}

/// Heads of the sizes that papers and releases name by a word: word, width, heads.
const SIZES: &[(&[&str], usize, usize)] = &[
    (&["tiny", "vitt"], 192, 3),
    (&["small", "vits"], 384, 6),
    (&["medium"], 512, 8),
    (&["betwixt"], 640, 10),
    (&["base", "vitb"], 768, 12),
    (&["so150m2"], 832, 13),
    (&["plus", "so150m"], 896, 14),
    (&["large", "vitl", "intern300m"], 1024, 16),
    (&["huge", "vith"], 1280, 16),
    (&["giant", "vitg"], 1408, 16),
    (&["gigantic", "bigg"], 1664, 16),
    (&["so400m"], 1152, 16),
    (&["giantopt"], 1536, 16),
    (&["wee", "xsmall"], 256, 4),
    (&["little"], 320, 5),
    (&["test_vit"], 64, 2),
    (&["test_vit3", "test_vit4"], 96, 3),
];

/// Heads per block of the published model of that name and width: `None` when the name has no
/// size that goes with the width. The width alone would be a guess, for a wrong number of heads
/// loads without complaint.
pub(crate) fn heads_by_name(name: &str, d_model: usize) -> Option<usize> {
    let name = name.to_ascii_lowercase();
    if name.contains("vit_base_patch16_gap") {
        // timm gives this one heads of 48 features.
        return (d_model == 768).then_some(16);
    }
    SIZES
        .iter()
        .find(|(words, width, _)| *width == d_model && words.iter().any(|word| name.contains(word)))
        .map(|(_, _, n_heads)| *n_heads)
}

impl VitConfig {
    /// The shape of that name in [`BACKBONES`].
    ///
    /// # Errors
    ///
    /// [`VitError::UnknownPreset`] that lists the names.
    pub fn preset(name: &str) -> Result<Self, VitError> {
        BACKBONES
            .iter()
            .find(|preset| preset.name == name)
            .map(|preset| (preset.config)())
            .ok_or_else(|| VitError::UnknownPreset {
                name: name.into(),
                known: BACKBONES
                    .iter()
                    .map(|p| p.name)
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_a_model_whose_heads_its_name_tells() {
        for preset in BACKBONES {
            let config = (preset.config)();
            config.check().unwrap();
            let heads = heads_by_name(preset.name, config.d_model);
            assert_eq!(heads, Some(config.n_heads), "{}", preset.name);
        }
    }

    #[test]
    fn file_names_of_the_releases_tell_the_heads() {
        for (name, d_model, heads) in [
            ("dinov2_vits14_reg4_pretrain", 384, Some(6)),
            ("dino_deitsmall16_pretrain", 384, Some(6)),
            ("mae_pretrain_vit_large", 1024, Some(16)),
            ("vit_base_patch16_gap_224", 768, Some(16)),
            // A width over 64 is no rule: timm 1.0.31 and the papers have 16 heads.
            ("vit_huge_patch14_224", 1280, Some(16)),
            ("vit_giant_patch14_clip_224", 1408, Some(16)),
            ("vit_gigantic_patch14_clip_224", 1664, Some(16)),
            ("vit_so400m_patch14_siglip_gap_224", 1152, Some(16)),
            ("vit_giantopt_patch16_siglip_256", 1536, Some(16)),
            ("vit_giant_patch14_dinov2", 1536, None),
            // A name and a width that contradict each other tell nothing.
            ("vit_base_patch16_224", 384, None),
            ("model", 768, None),
        ] {
            assert_eq!(heads_by_name(name, d_model), heads, "{name}");
        }
    }
}
