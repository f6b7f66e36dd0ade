//! The shape of a Vision Transformer.

use sdlora_core::Site;
use serde::{Deserialize, Serialize};

use crate::activation::Activation;
use crate::error::VitError;
use crate::projection::Projection;

/// Metadata key under which a file keeps the [`VitConfig`] of its model.
pub const CONFIG_KEY: &str = "sdlora.vit";

/// Which tokens become the feature after the final norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// The class token (timm `global_pool = "token"`).
    ClassToken,
    /// The mean of the patch tokens (timm `global_pool = "avg"`).
    Average,
}

impl Pooling {
    /// Both with the name that configurations and the command line give them.
    pub const ALL: [(&'static str, Self); 2] = [
        ("class-token", Self::ClassToken),
        ("average", Self::Average),
    ];
}

/// Which tokens have a position of their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PosEmbed {
    /// Class token, registers and patches: added after they are joined.
    #[default]
    All,
    /// The patches alone (timm `no_embed_class`): added before class token and registers join.
    Patches,
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
    /// Whether the patch projection has a bias (CLIP's, in front of `pre_norm`, has none).
    #[serde(default = "default_true", skip_serializing_if = "is_true")]
    pub patch_bias: bool,
    /// Whether query, key and value have a bias.
    #[serde(default = "default_true", skip_serializing_if = "is_true")]
    pub qkv_bias: bool,
    /// Whether attention and MLP outputs are scaled per feature before they are added (LayerScale,
    /// Touvron et al. 2021, section 3; DINOv2, DeiT III).
    #[serde(default, skip_serializing_if = "is_false")]
    pub layer_scale: bool,
    /// Number of learned tokens between class token and patches (Darcet et al. 2024).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub n_registers: usize,
    /// Which tokens have a position of their own.
    #[serde(default, skip_serializing_if = "is_default_pos_embed")]
    pub pos_embed: PosEmbed,
    /// Whether a layer norm precedes the first block (CLIP).
    #[serde(default, skip_serializing_if = "is_false")]
    pub pre_norm: bool,
    /// Whether the final norm acts on the pooled feature and not on the tokens (timm `fc_norm`).
    #[serde(default, skip_serializing_if = "is_false")]
    pub fc_norm: bool,
    /// What stands between the two linear maps of an MLP.
    #[serde(default, skip_serializing_if = "is_default_activation")]
    pub activation: Activation,
}

// What every ViT of earlier versions had is left out of a file, so that those versions read it.
fn is_true(value: &bool) -> bool {
    *value
}

fn is_false(value: &bool) -> bool {
    !*value
}

fn is_zero(value: &usize) -> bool {
    *value == 0
}

fn is_default_pos_embed(value: &PosEmbed) -> bool {
    *value == PosEmbed::default()
}

fn is_default_activation(value: &Activation) -> bool {
    *value == Activation::default()
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

/// Most patches along one side: 2,048 pixels in patches of 8. More would be a mistake, and attention
/// over them asks for terabytes.
const MAX_GRID: usize = 256;

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
            patch_bias: true,
            qkv_bias: true,
            layer_scale: false,
            n_registers: 0,
            pos_embed: PosEmbed::default(),
            pre_norm: false,
            fc_norm: false,
            activation: Activation::default(),
        }
    }

    /// Number of patches along one side.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Number of tokens in front of the patches: class token and registers.
    pub fn n_prefix_tokens(&self) -> usize {
        usize::from(self.class_token) + self.n_registers
    }

    /// Number of tokens, class token and registers included.
    pub fn n_tokens(&self) -> usize {
        self.grid() * self.grid() + self.n_prefix_tokens()
    }

    /// Number of tokens with a position of their own.
    pub fn n_positions(&self) -> usize {
        match self.pos_embed {
            PosEmbed::All => self.n_tokens(),
            PosEmbed::Patches => self.grid() * self.grid(),
        }
    }

    /// Number of parameters.
    pub fn n_parameters(&self) -> usize {
        let (d, h) = (self.d_model, self.d_mlp);
        let bias = |has: bool, width: usize| if has { width } else { 0 };
        let patch = self.n_channels * self.patch_size * self.patch_size * d;
        let qkv = 3 * d * d + bias(self.qkv_bias, 3 * d);
        let mlp = 2 * d * h + h + d;
        let block = 4 * d + qkv + d * d + d + mlp + bias(self.layer_scale, 2 * d);
        patch
            + bias(self.patch_bias, d)
            + (self.n_prefix_tokens() + self.n_positions()) * d
            + bias(self.pre_norm, 2 * d)
            + self.depth * block
            + 2 * d
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
                    name: projection.site(block_idx).into(),
                    group: block_idx,
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
        if self.grid() > MAX_GRID {
            return refuse(
                "image_size",
                self.image_size,
                format!("at most {MAX_GRID} patches of {} pixels", self.patch_size),
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
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return Err(VitError::NormEps {
                found: self.norm_eps,
            });
        }
        if self.n_registers > 1 << 10 {
            return refuse(
                "n_registers",
                self.n_registers,
                "a number from 0 to 1024".into(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_shape_is_written_as_earlier_versions_wrote_it() {
        let config = VitConfig::standard(32, 8, 48, 3, 3);
        let text = serde_json::to_string(&config).unwrap();
        assert!(text.ends_with(r#""norm_eps":1e-6}"#), "{text}");
        assert_eq!(serde_json::from_str::<VitConfig>(&text).unwrap(), config);
    }

    #[test]
    fn base_has_the_published_number_of_parameters() {
        // timm's `vit_base_patch16_224` with `num_classes = 0`.
        let config = VitConfig::preset("vit_base_patch16_224").unwrap();
        assert_eq!(config.n_parameters(), 85_798_656);
        // Oquab et al.: ViT-S/14 distilled, 21M + 4 registers.
        let config = VitConfig::preset("vit_small_patch14_reg4_dinov2").unwrap();
        assert_eq!(config.n_tokens(), 37 * 37 + 5);
        assert_eq!(config.n_positions(), 37 * 37);
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
        for eps in [0.0, -1e-6, 1.0, f64::NAN] {
            config.norm_eps = eps;
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains("norm_eps"), "{error}");
        }
        config.norm_eps = 1e-6;
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
