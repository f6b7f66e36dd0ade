//! O-LoRA: a LoRA per task whose down-projection is pushed to be orthogonal to the earlier ones.
//!
//! Loss of task t: `L + λ Σ_{k<t} Σ_sites Σ_ij |A_kᵀ A_t|_ij`, with `A: [d_input, rank]`, as the released
//! code has it, whose λ is the published one; or with the squares of these products (Wang et al. 2023,
//! "Orthogonal Subspace Learning for Language Model Continual Learning", equations 5 and 6).

use burn::tensor::Tensor;
use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};

use super::lora::plain_lora;
use super::lora_per_task::new_slot;
use super::{
    AdapterSpec, Method, MethodEntry, TaskContext, check_counts, check_number, check_projections,
    default_rank, parse, query_and_value,
};
use crate::error::TrainError;
use crate::model::Model;

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "olora",
    summary: "a LoRA per task with an orthogonality penalty between their row spaces",
    build: |options| {
        let method: OLora = parse("olora", options)?;
        check_counts(&[("rank", method.rank)])?;
        check_projections(&method.projections, &Projection::ALL)?;
        check_number("method.lambda", method.lambda(), true)?;
        Ok(Box::new(method))
    },
    second_pass: None,
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OLora {
    /// Rank of every LoRA.
    #[serde(default = "default_rank")]
    rank: usize,
    /// Adapted projections of every block.
    #[serde(default = "query_and_value")]
    projections: Vec<Projection>,
    /// What is summed over the products of down-projections.
    #[serde(default)]
    penalty: Penalty,
    /// Weight of the penalty; 0 is a LoRA per task. Left out, it is that of the penalty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lambda: Option<f64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Penalty {
    /// Their absolute values, as in the released code. Its gradient does not fall with the overlap: the
    /// learning rate says how near to orthogonal a step can come.
    #[default]
    Absolute,
    /// Their squares, as in the paper's equation.
    Squared,
}

impl Penalty {
    /// Of `Absolute` the weight in most of the released scripts. Nobody has published one for the
    /// squares; the same number is a weaker penalty there once products are below 1.
    fn default_lambda(self) -> f64 {
        match self {
            Self::Absolute | Self::Squared => 0.5,
        }
    }

    /// `[1]` of products of any shape.
    fn of(self, products: Tensor<2>) -> Tensor<1> {
        match self {
            Self::Absolute => products.abs().sum(),
            Self::Squared => products.square().sum(),
        }
    }
}

impl OLora {
    fn lambda(&self) -> f64 {
        let of_penalty = || self.penalty.default_lambda();
        self.lambda.unwrap_or_else(of_penalty)
    }
}

impl Method for OLora {
    fn before_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        new_slot(model, task, self.rank)
    }

    fn adapter(&self) -> Option<AdapterSpec> {
        Some(plain_lora(&self.projections, self.rank))
    }

    fn penalty(&self, model: &Model) -> Option<Tensor<1>> {
        let overlaps = model.adapter.sites.iter().filter_map(|site| {
            let (past, current) = (site.past.as_ref()?, site.current.as_ref()?);
            let product = past.a.val().transpose().matmul(current.a.val());
            Some(self.penalty.of(product))
        });
        let sum = overlaps.reduce(|sum, overlap| sum + overlap)?;
        Some(sum.mul_scalar(self.lambda()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_testkit::test_device;

    #[test]
    fn the_released_penalty_is_of_absolute_values_and_that_of_the_paper_of_squares() {
        let device = test_device();
        let products = Tensor::<2>::from_data([[0.5f32, -2.0], [0.0, 1.0]], &device);
        for (options, sum, lambda) in [
            ("", 3.5f32, 0.5),
            ("penalty = \"absolute\"\nlambda = 5.0", 3.5, 5.0),
            ("penalty = \"squared\"", 5.25, 0.5),
            ("penalty = \"squared\"\nlambda = 0.0", 5.25, 0.0),
        ] {
            let method: OLora = parse("olora", &options.parse().unwrap()).unwrap();
            let found: f32 = method.penalty.of(products.clone()).into_scalar();
            assert!((found - sum).abs() < 1e-6, "{options}: {found}");
            assert_eq!(method.lambda(), lambda, "{options}");
        }
        for (options, expected) in [
            ("lambda = -1.0", "method.lambda"),
            ("lambda = nan", "method.lambda"),
            ("penalty = \"cubed\"", "absolute"),
        ] {
            let error = (ENTRY.build)(&options.parse().unwrap()).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
