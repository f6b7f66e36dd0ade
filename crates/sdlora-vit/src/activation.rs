//! What stands between the two linear maps of an MLP.

use burn::tensor::activation::sigmoid;
use burn::tensor::{DType, Tensor};
use sdlora_core::cast;
use serde::{Deserialize, Serialize};

/// The function between the two linear maps of an MLP; no tensor of a file tells which.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// `x Φ(x)` with the exact normal distribution, as nearly every ViT has it.
    #[default]
    Gelu,
    /// The GELU by the hyperbolic tangent (`gelu_tanh` of timm, `gelu_pytorch_tanh` of transformers): large and
    /// later SigLIP.
    GeluTanh,
    /// `x σ(1.702 x)` (`quick_gelu` of both): CLIP as OpenAI trained it.
    QuickGelu,
}

impl Activation {
    /// Every function with the name that configurations and the command line give it.
    pub const ALL: [(&'static str, Self); 3] = [
        ("gelu", Self::Gelu),
        ("gelu-tanh", Self::GeluTanh),
        ("quick-gelu", Self::QuickGelu),
    ];

    /// Its name, as in [`Activation::ALL`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu-tanh",
            Self::QuickGelu => "quick-gelu",
        }
    }

    /// timm's name of it, for `act_layer`.
    pub fn timm(self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_tanh",
            Self::QuickGelu => "quick_gelu",
        }
    }

    /// transformers' name of it, for `hidden_act`.
    pub fn hugging_face(self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::GeluTanh => "gelu_pytorch_tanh",
            Self::QuickGelu => "quick_gelu",
        }
    }

    /// The function that `config.json` of timm or transformers calls so.
    pub(crate) fn of_config(name: &str) -> Option<Self> {
        Some(match name {
            "gelu" | "gelu_python" => Self::Gelu,
            "gelu_tanh" | "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Self::GeluTanh,
            "quick_gelu" | "quickgelu" => Self::QuickGelu,
            _ => return None,
        })
    }

    /// The function of every number of `x`.
    pub(crate) fn of<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Gelu => sdlora_kernels::gelu(x),
            Self::GeluTanh => in_f32(x, |x| {
                let scale = (2.0 / std::f64::consts::PI).sqrt();
                let inner =
                    (x.clone() + x.clone().powi_scalar(3).mul_scalar(0.044_715)).mul_scalar(scale);
                x.mul_scalar(0.5) * inner.tanh().add_scalar(1.0)
            }),
            Self::QuickGelu => in_f32(x, |x| x.clone() * sigmoid(x.mul_scalar(1.702))),
        }
    }
}

/// Computes in `f32`: a cube leaves the range of half precision at 40.
fn in_f32<const D: usize>(x: Tensor<D>, f: impl Fn(Tensor<D>) -> Tensor<D>) -> Tensor<D> {
    let dtype = x.dtype();
    cast(f(cast(x, DType::F32)), dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_testkit::{Tolerance, assert_close, test_device};

    #[test]
    fn the_three_functions_give_the_values_of_pytorch() {
        // torch.nn.functional.gelu(x), gelu(x, approximate="tanh"), x * sigmoid(1.702 * x), in f64.
        let x = [-3.0f32, -1.0, -0.25, 0.0, 0.5, 2.0];
        for (activation, expected) in [
            (
                Activation::Gelu,
                [
                    -0.004_049_694_1,
                    -0.158_655_253_9,
                    -0.100_323_418_4,
                    0.0,
                    0.345_731_230_6,
                    1.954_499_736_1,
                ],
            ),
            (
                Activation::GeluTanh,
                [
                    -0.003_637_392_1,
                    -0.158_808_009_4,
                    -0.100_324_649_3,
                    0.0,
                    0.345_714_009_8,
                    1.954_597_694_1,
                ],
            ),
            (
                Activation::QuickGelu,
                [
                    -0.018_071_309_7,
                    -0.154_204_234_1,
                    -0.098_800_350_1,
                    0.0,
                    0.350_388_436_6,
                    1.935_658_623_1,
                ],
            ),
        ] {
            let found = activation.of(Tensor::<1>::from_floats(x, &test_device()));
            let expected: Vec<f32> = expected.iter().map(|&v: &f64| v as f32).collect();
            assert_close(
                found,
                expected.as_slice(),
                Tolerance::Abs(1e-6),
                activation.name(),
            );
        }
    }

    #[test]
    fn names_are_those_of_the_plan() {
        for (name, activation) in Activation::ALL {
            assert_eq!(activation.name(), name);
            let written = serde_json::to_value(activation).unwrap();
            assert_eq!(written, name);
            assert_eq!(Activation::of_config(activation.timm()), Some(activation));
            assert_eq!(
                Activation::of_config(activation.hugging_face()),
                Some(activation)
            );
        }
        assert_eq!(Activation::of_config("relu"), None);
    }
}
