//! Multi-head self-attention with one packed projection for query, key and value.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use rand::Rng;
use sdlora_core::{ColumnUpdate, Update, Updates, cast};

use crate::config::VitConfig;
use crate::layers::Linear;
use crate::projection::Projection;
use crate::prompting::Prefix;

/// `softmax(q kᵀ / √d_head) v`, concatenated over the heads and projected.
#[derive(Module, Debug)]
pub struct Attention {
    /// `[d_model, 3 · d_model]`: columns of query, key and value, each with its heads in order.
    pub qkv: Linear,
    /// `[d_model, d_model]`.
    pub proj: Linear,
    #[module(skip)]
    n_heads: usize,
}

impl Attention {
    /// Freshly drawn weights.
    pub fn init(config: &VitConfig, rng: &mut impl Rng, device: &Device) -> Self {
        let mut layer = Self::blank(config, device);
        layer.draw(rng, device);
        layer
    }

    pub(crate) fn blank(config: &VitConfig, device: &Device) -> Self {
        let d_model = config.d_model;
        Self {
            qkv: Linear::blank(d_model, 3 * d_model, config.qkv_bias, device),
            proj: Linear::blank(d_model, d_model, true, device),
            n_heads: config.n_heads,
        }
    }

    pub(crate) fn draw(&mut self, rng: &mut impl Rng, device: &Device) {
        self.qkv.draw(rng, device);
        self.proj.draw(rng, device);
    }

    /// The packed projection of `x: [batch, n_tokens, d_model]`, `[batch, n_tokens, 3 · d_model]`.
    pub fn project(&self, x: Tensor<3>, block_idx: usize, updates: &Updates) -> Tensor<3> {
        self.qkv.forward(x, &self.qkv_updates(block_idx, updates))
    }

    /// Attends over `x: [batch, n_tokens, d_model]`; the result has the same shape.
    pub fn forward(&self, x: Tensor<3>, block_idx: usize, updates: &Updates) -> Tensor<3> {
        self.forward_prefixed(x, block_idx, updates, None)
    }

    /// As [`Attention::forward`], with keys and values in front of those of `x`.
    pub fn forward_prefixed(
        &self,
        x: Tensor<3>,
        block_idx: usize,
        updates: &Updates,
        prefix: Option<&Prefix>,
    ) -> Tensor<3> {
        let [batch, n_tokens, _] = x.dims();
        let qkv = self.project(x, block_idx, updates);
        let attended = match prefix {
            None => sdlora_kernels::qkv_attention(qkv, self.n_heads),
            // As rows of the packed projection, so that the same kernel serves.
            Some(prefix) => {
                let front = cast(prefix.packed(batch), qkv.dtype());
                let packed = Tensor::cat(vec![front, qkv], 1);
                sdlora_kernels::qkv_attention(packed, self.n_heads).narrow(
                    1,
                    prefix.len(),
                    n_tokens,
                )
            }
        };
        self.proj.forward(
            attended,
            &whole(updates.get(&Projection::Output.site(block_idx))),
        )
    }

    /// The layer with the updates inside its weights.
    pub fn merged(mut self, block_idx: usize, updates: &Updates) -> Self {
        let columns = self.qkv_updates(block_idx, updates);
        self.qkv = self.qkv.merged(&columns);
        self.proj = self
            .proj
            .merged(&whole(updates.get(&Projection::Output.site(block_idx))));
        self
    }

    fn qkv_updates<'a>(&self, block_idx: usize, updates: &'a Updates) -> Vec<ColumnUpdate<'a>> {
        let [d_model, _] = self.qkv.weight.lazy_shape().dims();
        [Projection::Query, Projection::Key, Projection::Value]
            .into_iter()
            .enumerate()
            .filter_map(|(part, projection)| {
                updates
                    .get(&projection.site(block_idx))
                    .map(|update| ColumnUpdate {
                        first_column: part * d_model,
                        update,
                    })
            })
            .collect()
    }
}

/// An update that covers all columns of its weight.
pub(crate) fn whole(update: Option<&Update>) -> Vec<ColumnUpdate<'_>> {
    update
        .map(|update| ColumnUpdate {
            first_column: 0,
            update,
        })
        .into_iter()
        .collect()
}
