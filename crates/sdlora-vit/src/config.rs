//! The shape of a Vision Transformer, and the presets people know by name.

use sdlora_core::{Projection, Site};
use serde::{Deserialize, Serialize};

use crate::error::VitError;

/// Which tokens become the feature after the final norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// The class token (timm `global_pool = "token"`).
    ClassToken,
    /// The mean of the patch tokens (timm `global_pool = "avg"`, `fc_norm = False`).
    Average,
}

/// The shape of a pre-norm ViT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VitConfig {
    /// Side of the square input image, in pixels; a multiple of `patch_size`.
    pub image_size: usize,
    /// Side of a square patch, in pixels.
    pub patch_size: usize,
    /// Colour channels of the input.
    #[serde(default = "default_n_channels")]
    pub n_channels: usize,
    /// Width of the tokens.
    pub d_model: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Attention heads per block; divides `d_model`.
    pub n_heads: usize,
    /// Hidden width of the MLP.
    pub d_mlp: usize,
    /// Whether a learned class token precedes the patch tokens.
    #[serde(default = "default_true")]
    pub class_token: bool,
    /// Which tokens become the feature.
    #[serde(default = "default_pooling")]
    pub pooling: Pooling,
    /// Added to the variance inside every layer norm.
    #[serde(default = "default_norm_eps")]
    pub norm_eps: f64,
}

fn default_n_channels() -> usize {
    3
}

fn default_true() -> bool {
    true
}

fn default_pooling() -> Pooling {
    Pooling::ClassToken
}

fn default_norm_eps() -> f64 {
    1e-6
}

/// A named shape.
#[derive(Debug, Clone, Copy)]
pub struct BackbonePreset {
    /// timm's name without its tag.
    pub name: &'static str,
    /// Builds the shape.
    pub config: fn() -> VitConfig,
}

macro_rules! presets {
    ($($name:ident: $d_model:literal, $depth:literal, $n_heads:literal, $patch:literal;)*) => {
        /// The shapes that can be asked for by name, at 224 pixels.
        pub const BACKBONES: &[BackbonePreset] = &[$(BackbonePreset {
            name: stringify!($name),
            config: || VitConfig::standard(224, $patch, $d_model, $depth, $n_heads),
        }),*];
    };
}

presets! {
    vit_tiny_patch16_224: 192, 12, 3, 16;
    vit_small_patch16_224: 384, 12, 6, 16;
    vit_base_patch16_224: 768, 12, 12, 16;
    vit_large_patch16_224: 1024, 24, 16, 16;
    vit_tiny_patch14_224: 192, 12, 3, 14;
    vit_small_patch14_224: 384, 12, 6, 14;
    vit_base_patch14_224: 768, 12, 12, 14;
    vit_large_patch14_224: 1024, 24, 16, 14;
}

impl VitConfig {
    /// The usual ViT: RGB, class token, MLP four times as wide as the tokens, eps 1e-6.
    pub fn standard(
        image_size: usize,
        patch_size: usize,
        d_model: usize,
        depth: usize,
        n_heads: usize,
    ) -> Self {
        Self {
            image_size,
            patch_size,
            n_channels: default_n_channels(),
            d_model,
            depth,
            n_heads,
            d_mlp: 4 * d_model,
            class_token: true,
            pooling: default_pooling(),
            norm_eps: default_norm_eps(),
        }
    }

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

    /// Number of patches along one side.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Number of tokens, the class token included.
    pub fn n_tokens(&self) -> usize {
        self.grid() * self.grid() + usize::from(self.class_token)
    }

    /// The sites of the given projections, block by block, where an adapter can act.
    pub fn sites(&self, projections: &[Projection]) -> Vec<Site> {
        let mut sites = Vec::with_capacity(self.depth * projections.len());
        for block_idx in 0..self.depth {
            for &projection in projections {
                let (d_input, d_output) = match projection {
                    Projection::Fc1 => (self.d_model, self.d_mlp),
                    Projection::Fc2 => (self.d_mlp, self.d_model),
                    _ => (self.d_model, self.d_model),
                };
                sites.push(Site {
                    block_idx,
                    projection,
                    d_input,
                    d_output,
                });
            }
        }
        sites
    }

    /// Checks that the numbers describe a model.
    ///
    /// # Errors
    ///
    /// [`VitError::Shape`] naming the first number that does not fit.
    pub fn check(&self) -> Result<(), VitError> {
        let refuse = |field, found: usize, expected: String| {
            Err(VitError::Shape {
                field,
                found,
                expected,
            })
        };
        for (field, value) in [
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
            ("n_channels", self.n_channels),
            ("d_model", self.d_model),
            ("depth", self.depth),
            ("n_heads", self.n_heads),
            ("d_mlp", self.d_mlp),
        ] {
            // An upper bound keeps an absurd file from asking for terabytes.
            if value == 0 || value > 1 << 16 {
                return refuse(field, value, "a number from 1 to 65536".into());
            }
        }
        if !self.image_size.is_multiple_of(self.patch_size) {
            return refuse(
                "image_size",
                self.image_size,
                format!("a multiple of the patch size {}", self.patch_size),
            );
        }
        if !self.d_model.is_multiple_of(self.n_heads) {
            return refuse(
                "n_heads",
                self.n_heads,
                format!("a divisor of the width {}", self.d_model),
            );
        }
        if self.pooling == Pooling::ClassToken && !self.class_token {
            return refuse(
                "class_token",
                0,
                "true, because the pooling is `class-token`".into(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_a_model() {
        for preset in BACKBONES {
            (preset.config)().check().unwrap();
        }
    }

    #[test]
    fn base_has_197_tokens_and_24_query_and_value_sites() {
        let config = VitConfig::preset("vit_base_patch16_224").unwrap();
        assert_eq!(config.n_tokens(), 197);
        let sites = config.sites(&[Projection::Query, Projection::Value]);
        assert_eq!(sites.len(), 24);
        // 2 factors of 768 x 10 on 24 sites: 368,640 parameters per task (METHOD, section 6).
        let parameters: usize = sites.iter().map(|s| 10 * (s.d_input + s.d_output)).sum();
        assert_eq!(parameters, 368_640);
    }

    #[test]
    fn numbers_that_do_not_fit_are_refused_by_name() {
        let mut config = VitConfig::standard(30, 8, 48, 3, 3);
        assert!(
            config
                .check()
                .unwrap_err()
                .to_string()
                .contains("image_size")
        );
        config.image_size = 32;
        config.n_heads = 5;
        assert!(config.check().unwrap_err().to_string().contains("n_heads"));
        config.n_heads = 3;
        config.class_token = false;
        assert!(
            config
                .check()
                .unwrap_err()
                .to_string()
                .contains("class_token")
        );
        assert!(
            VitConfig::preset("vit_huge")
                .unwrap_err()
                .to_string()
                .contains("vit_base_patch16_224")
        );
    }
}
