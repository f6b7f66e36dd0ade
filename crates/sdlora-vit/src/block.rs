//! A pre-norm transformer block: `x + attn(norm1(x))`, then `x + mlp(norm2(x))`.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use rand::Rng;
use sdlora_core::{Projection, Updates};

use crate::attention::{Attention, whole};
use crate::config::VitConfig;
use crate::layers::{LayerNorm, Linear};

/// Two linear maps with an exact (erf) GELU between them.
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[d_model, d_mlp]`.
    pub fc1: Linear,
    /// `[d_mlp, d_model]`.
    pub fc2: Linear,
}

impl Mlp {
    /// Freshly drawn weights.
    pub fn init(config: &VitConfig, rng: &mut impl Rng, device: &Device) -> Self {
        Self {
            fc1: Linear::init(config.d_model, config.d_mlp, rng, device),
            fc2: Linear::init(config.d_mlp, config.d_model, rng, device),
        }
    }

    /// Maps `x: [batch, n_tokens, d_model]` to the same shape.
    pub fn forward(&self, x: Tensor<3>, block_idx: usize, updates: &Updates) -> Tensor<3> {
        let fc1 = whole(updates.get(block_idx, Projection::Fc1));
        let fc2 = whole(updates.get(block_idx, Projection::Fc2));
        let hidden = sdlora_kernels::gelu(self.fc1.forward(x, &fc1));
        self.fc2.forward(hidden, &fc2)
    }
}

/// One block.
#[derive(Module, Debug)]
pub struct Block {
    /// Before the attention.
    pub norm1: LayerNorm,
    /// Mixes tokens.
    pub attn: Attention,
    /// Before the MLP.
    pub norm2: LayerNorm,
    /// Mixes features.
    pub mlp: Mlp,
}

impl Block {
    /// Freshly drawn weights.
    pub fn init(config: &VitConfig, rng: &mut impl Rng, device: &Device) -> Self {
        Self {
            norm1: LayerNorm::init(config.d_model, config.norm_eps, device),
            attn: Attention::init(config, rng, device),
            norm2: LayerNorm::init(config.d_model, config.norm_eps, device),
            mlp: Mlp::init(config, rng, device),
        }
    }

    /// Maps `x: [batch, n_tokens, d_model]` to the same shape.
    pub fn forward(&self, x: Tensor<3>, block_idx: usize, updates: &Updates) -> Tensor<3> {
        let attended = self
            .attn
            .forward(self.norm1.forward(x.clone()), block_idx, updates);
        let x = x + attended;
        let mixed = self
            .mlp
            .forward(self.norm2.forward(x.clone()), block_idx, updates);
        x + mixed
    }

    /// The block with the updates inside its weights.
    pub fn merged(mut self, block_idx: usize, updates: &Updates) -> Self {
        self.attn = self.attn.merged(block_idx, updates);
        let fc1 = whole(updates.get(block_idx, Projection::Fc1));
        let fc2 = whole(updates.get(block_idx, Projection::Fc2));
        self.mlp.fc1 = self.mlp.fc1.merged(&fc1);
        self.mlp.fc2 = self.mlp.fc2.merged(&fc2);
        self
    }
}
