//! A gate over the ranks of a direction: `A · diag(g) · B`.
//!
//! A linear gate is SoRA's (Ding et al. 2023, arXiv 2311.11696), which is driven to exact zeros; one by softmax
//! is BeamLoRA's (arXiv 2502.13604), whose entries always sum to the rank.

use burn::module::{Module, Param};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

/// How the values of a gate become factors of the ranks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "form")]
pub enum GateForm {
    /// `g` itself.
    Linear,
    /// `rank · softmax(g / temperature)`: 1 everywhere where all values are equal.
    Softmax {
        /// Greater than 0; the smaller, the harder the ranks compete.
        temperature: f64,
    },
}

/// One value per rank of a direction.
#[derive(Module, Debug)]
pub struct Gate {
    /// `[1, rank]`.
    pub values: Param<Tensor<2>>,
    #[module(skip)]
    form: GateForm,
}

impl Gate {
    /// A gate with these values, one per rank; trained.
    pub fn new(values: Vec<f32>, form: GateForm, device: &Device) -> Self {
        let data = TensorData::new(values.clone(), [1, values.len()]);
        Self {
            values: Param::from_tensor(Tensor::from_data(data, device)),
            form,
        }
    }

    /// How values become factors.
    pub fn form(&self) -> GateForm {
        self.form
    }

    /// The factors of the ranks `[1, rank]`, with the gradient to the values.
    pub fn factors(&self) -> Tensor<2> {
        let values = self.values.val();
        match self.form {
            GateForm::Linear => values,
            GateForm::Softmax { temperature } => {
                let [_, rank] = values.dims();
                softmax(values.div_scalar(temperature), 1).mul_scalar(rank as f64)
            }
        }
    }

    /// The factors of the ranks, on the host.
    pub fn factors_host(&self) -> Vec<f32> {
        self.factors().into_data().iter::<f32>().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_testkit::test_device;

    #[test]
    fn a_softmax_gate_sums_to_the_rank_and_starts_as_no_gate() {
        let device = test_device();
        let form = GateForm::Softmax { temperature: 0.05 };
        let equal = Gate::new(vec![0.3; 4], form, &device).factors_host();
        assert!(equal.iter().all(|g| (g - 1.0).abs() < 1e-6), "{equal:?}");
        let gate = Gate::new(vec![0.0, 0.05, 0.1, -0.05], form, &device);
        let factors = gate.factors_host();
        // 4 e^k / Σ e^k with k = 0, 1, 2, -1.
        let e = std::f32::consts::E;
        let sum = 1.0 + e + e * e + 1.0 / e;
        for (found, expected) in factors.iter().zip([1.0, e, e * e, 1.0 / e]) {
            assert!((found - 4.0 * expected / sum).abs() < 1e-5, "{factors:?}");
        }
    }

    #[test]
    fn a_linear_gate_is_its_values() {
        let gate = Gate::new(vec![2.0, 0.0, -1.0], GateForm::Linear, &test_device());
        assert_eq!(gate.factors_host(), [2.0, 0.0, -1.0]);
    }
}
