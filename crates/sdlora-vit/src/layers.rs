//! The two layers every part of a ViT is made of: a linear map and a layer norm.

use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, RngExt};
use sdlora_core::{ColumnUpdate, UpdateForm, adapted_linear, effective_weight};

/// `x W + b` with `weight: [d_input, d_output]`, the transpose of PyTorch's.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[d_input, d_output]`.
    pub weight: Param<Tensor<2>>,
    /// `[d_output]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl Linear {
    /// Weights from U(±√(6 / (d_input + d_output))) (Glorot, as in the original ViT), bias 0.
    ///
    /// Deviates: timm draws with a standard deviation of 0.02 at every width. At small widths the
    /// patches then drown in the positions and training starts late.
    pub fn init(d_input: usize, d_output: usize, rng: &mut impl Rng, device: &Device) -> Self {
        let mut layer = Self::blank(d_input, d_output, true, device);
        layer.draw(rng, device);
        layer
    }

    /// Room for the weights, which take memory only once they are read or set.
    pub(crate) fn blank(d_input: usize, d_output: usize, bias: bool, device: &Device) -> Self {
        Self {
            weight: blank([d_input, d_output], device),
            bias: bias.then(|| blank([d_output], device)),
        }
    }

    /// Replaces the weight by a drawn one, as [`Linear::init`].
    pub(crate) fn draw(&mut self, rng: &mut impl Rng, device: &Device) {
        let [d_input, d_output] = self.weight.lazy_shape().dims();
        let bound = (6.0 / (d_input + d_output) as f32).sqrt();
        let values: Vec<f32> = (0..d_input * d_output)
            .map(|_| rng.random_range(-bound..bound))
            .collect();
        let data = TensorData::new(values, [d_input, d_output]);
        self.weight = Param::from_tensor(Tensor::from_data(data, device));
    }

    /// Maps `x: [batch, n_tokens, d_input]` with the updates of an adapter added to the weight.
    pub fn forward(&self, x: Tensor<3>, updates: &[ColumnUpdate<'_>]) -> Tensor<3> {
        adapted_linear(
            x,
            self.weight.val(),
            self.bias.as_ref().map(Param::val),
            updates,
            UpdateForm::Auto,
        )
    }

    /// The layer with the updates inside its weight.
    pub fn merged(mut self, updates: &[ColumnUpdate<'_>]) -> Self {
        self.weight = self.weight.map(|weight| effective_weight(weight, updates));
        self
    }
}

/// Normalises the last axis to mean 0 and variance 1, then scales and shifts it.
#[derive(Module, Debug)]
pub struct LayerNorm {
    /// Scale `[d_model]`.
    pub weight: Param<Tensor<1>>,
    /// Shift `[d_model]`.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    eps: f64,
}

impl LayerNorm {
    /// Scale 1, shift 0.
    pub fn init(d_model: usize, eps: f64, device: &Device) -> Self {
        Self {
            weight: Param::from_tensor(Tensor::ones([d_model], device)),
            bias: Param::from_tensor(Tensor::zeros([d_model], device)),
            eps,
        }
    }

    /// Normalises `x: [batch, n_tokens, d_model]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        sdlora_kernels::layer_norm(x, self.weight.val(), self.bias.val(), self.eps)
    }
}

/// A parameter of zeros that takes memory only once it is read.
pub(crate) fn blank<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    Param::uninitialized(
        ParamId::new(),
        move |device, is_require_grad| {
            Tensor::zeros(shape, device).set_require_grad(is_require_grad)
        },
        device.clone(),
        true,
        shape.into(),
    )
}

/// Standard deviation of a freshly drawn class token (timm `vision_transformer.py`, `init_weights`).
const INIT_STD: f32 = 0.02;

/// A parameter drawn from a normal distribution cut at two standard deviations.
pub(crate) fn truncated_normal<const D: usize>(
    shape: [usize; D],
    rng: &mut impl Rng,
    device: &Device,
) -> Param<Tensor<D>> {
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            loop {
                // Box-Muller; values beyond two standard deviations are drawn again.
                let radius = (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
                let angle = std::f32::consts::TAU * rng.random::<f32>();
                let value = radius * angle.cos();
                if value.abs() <= 2.0 {
                    break INIT_STD * value;
                }
            }
        })
        .collect();
    Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), device))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use sdlora_testkit::test_device;

    #[test]
    fn fresh_weights_are_cut_at_two_standard_deviations() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let drawn = truncated_normal([64, 64], &mut rng, &test_device());
        let values: Vec<f32> = drawn.val().into_data().iter().collect();
        assert!(values.iter().all(|v| v.abs() <= 2.0 * INIT_STD));
        let mean_square = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        // The variance of a normal cut at two deviations is 0.774 of the uncut one.
        let ratio = mean_square / (INIT_STD * INIT_STD);
        assert!((ratio - 0.774).abs() < 0.04, "{ratio}");
    }
}
