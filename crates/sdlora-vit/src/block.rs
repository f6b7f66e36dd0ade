//! A pre-norm transformer block: `x + attn(norm1(x))`, then `x + mlp(norm2(x))`,
//! what is added scaled per feature where the model has LayerScale.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use rand::Rng;
use sdlora_core::{Updates, cast};

use crate::activation::Activation;
use crate::attention::{Attention, whole};
use crate::config::VitConfig;
use crate::layers::{LayerNorm, Linear};
use crate::projection::Projection;
use crate::prompting::Prefix;

/// Two linear maps with a GELU between them: the exact one, unless the shape says otherwise.
#[derive(Module, Debug)]
pub struct Mlp {
    /// `[d_model, d_mlp]`.
    pub fc1: Linear,
    /// `[d_mlp, d_model]`.
    pub fc2: Linear,
    #[module(skip)]
    activation: Activation,
}

impl Mlp {
    /// Freshly drawn weights.
    pub fn init(config: &VitConfig, rng: &mut impl Rng, device: &Device) -> Self {
        let mut layer = Self::blank(config, device);
        layer.draw(rng, device);
        layer
    }

    pub(crate) fn blank(config: &VitConfig, device: &Device) -> Self {
        Self {
            fc1: Linear::blank(config.d_model, config.d_mlp, true, device),
            fc2: Linear::blank(config.d_mlp, config.d_model, true, device),
            activation: config.activation,
        }
    }

    pub(crate) fn draw(&mut self, rng: &mut impl Rng, device: &Device) {
        self.fc1.draw(rng, device);
        self.fc2.draw(rng, device);
    }

    /// Maps `x: [batch, n_tokens, d_model]` to the same shape.
    pub fn forward(&self, x: Tensor<3>, block_idx: usize, updates: &Updates) -> Tensor<3> {
        let fc1 = whole(updates.get(&Projection::Fc1.site(block_idx)));
        let fc2 = whole(updates.get(&Projection::Fc2.site(block_idx)));
        let hidden = self.activation.of(self.fc1.forward(x, &fc1));
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
    /// `[d_model]`, multiplies what the attention adds (LayerScale).
    pub scale1: Option<Param<Tensor<1>>>,
    /// `[d_model]`, multiplies what the MLP adds (LayerScale).
    pub scale2: Option<Param<Tensor<1>>>,
}

impl Block {
    /// Freshly drawn weights; LayerScale starts at 1.
    pub fn init(config: &VitConfig, rng: &mut impl Rng, device: &Device) -> Self {
        let mut block = Self::blank(config, device);
        block.draw(rng, device);
        block
    }

    pub(crate) fn blank(config: &VitConfig, device: &Device) -> Self {
        let d_model = config.d_model;
        let scale = || {
            config
                .layer_scale
                .then(|| Param::from_tensor(Tensor::ones([d_model], device)))
        };
        Self {
            norm1: LayerNorm::init(d_model, config.norm_eps, device),
            attn: Attention::blank(config, device),
            norm2: LayerNorm::init(d_model, config.norm_eps, device),
            mlp: Mlp::blank(config, device),
            scale1: scale(),
            scale2: scale(),
        }
    }

    pub(crate) fn draw(&mut self, rng: &mut impl Rng, device: &Device) {
        self.attn.draw(rng, device);
        self.mlp.draw(rng, device);
    }

    /// Maps `x: [batch, n_tokens, d_model]` to the same shape.
    pub fn forward(&self, x: Tensor<3>, block_idx: usize, updates: &Updates) -> Tensor<3> {
        self.forward_prefixed(x, block_idx, updates, None)
    }

    /// As [`Block::forward`], with keys and values in front of those its attention has.
    pub fn forward_prefixed(
        &self,
        x: Tensor<3>,
        block_idx: usize,
        updates: &Updates,
        prefix: Option<&Prefix>,
    ) -> Tensor<3> {
        let normed = self.norm1.forward(x.clone());
        let attended = self
            .attn
            .forward_prefixed(normed, block_idx, updates, prefix);
        let x = x + scaled(attended, self.scale1.as_ref());
        let mixed = self
            .mlp
            .forward(self.norm2.forward(x.clone()), block_idx, updates);
        x + scaled(mixed, self.scale2.as_ref())
    }

    /// The block with the updates inside its weights.
    pub fn merged(mut self, block_idx: usize, updates: &Updates) -> Self {
        self.attn = self.attn.merged(block_idx, updates);
        let fc1 = whole(updates.get(&Projection::Fc1.site(block_idx)));
        let fc2 = whole(updates.get(&Projection::Fc2.site(block_idx)));
        self.mlp.fc1 = self.mlp.fc1.merged(&fc1);
        self.mlp.fc2 = self.mlp.fc2.merged(&fc2);
        self
    }
}

fn scaled(x: Tensor<3>, scale: Option<&Param<Tensor<1>>>) -> Tensor<3> {
    match scale {
        Some(scale) => {
            let scale = cast(scale.val(), x.dtype());
            x * scale.unsqueeze()
        }
        None => x,
    }
}
