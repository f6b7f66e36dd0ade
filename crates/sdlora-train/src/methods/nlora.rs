//! N-LoRA: a LoRA per task whose update is pushed to be sparse, so that two tasks seldom change the same entry
//! of a weight (Yang et al., "Is Parameter Collision Hindering Continual Learning in LLMs?", COLING 2025).
//!
//! Loss of task t: `L + λ Σ_sites mean_ij |A_t B_t|_ij`, the mean over all entries of `A_t B_t: [d_input, d_output]`,
//! or of the product of ranks `B_t A_t: [rank, rank]` that the released code sums up in its place.
//!
//! Deviates: the paper and its code weigh a sum. A mean has the same weight on weights of any size.
//! Earlier LoRAs are not merged: what they change can be compared afterwards (`sdlora analyse`, `collisions`).

use burn::tensor::Tensor;
use sdlora_core::Direction;
use sdlora_vit::{Projection, VitConfig};
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
    name: "nlora",
    summary: "a LoRA per task with a sparse update, so that tasks change different entries (penalty, lambda)",
    build: |options| {
        let method: NLora = parse("nlora", options)?;
        check_counts(&[("rank", method.rank)])?;
        check_projections(&method.projections, &Projection::ALL)?;
        check_number("method.lambda", method.lambda, true)?;
        Ok(Box::new(method))
    },
    second_pass: None,
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NLora {
    /// Rank of every LoRA.
    #[serde(default = "default_rank")]
    rank: usize,
    /// Adapted projections of every block.
    #[serde(default = "query_and_value")]
    projections: Vec<Projection>,
    /// Of which product the entries are kept small.
    #[serde(default)]
    penalty: Penalty,
    /// Weight of the mean absolute entry on a site; 0 is a LoRA per task.
    #[serde(default = "default_lambda")]
    lambda: f64,
}

/// The released scripts for T5 have 0.4, in most of them, for a sum over 8 · 8 entries of a site.
fn default_lambda() -> f64 {
    0.4 * 64.0
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Penalty {
    /// The update, as in the paper's equation.
    #[default]
    Update,
    /// The product of the factors in the other order, as in the released code. It forms no matrix of the size
    /// of a weight, and it does not make the update sparse.
    RankProduct,
}

impl Penalty {
    /// Mean absolute entry `[1]` of the product of `a: [d_input, rank]` and `b: [rank, d_output]`.
    fn of(self, direction: &Direction) -> Tensor<1> {
        let (a, b) = (direction.a.val(), direction.b.val());
        let product = match self {
            Self::Update => a.matmul(b),
            Self::RankProduct => b.matmul(a),
        };
        product.abs().mean()
    }
}

impl Method for NLora {
    fn before_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        new_slot(model, task, self.rank)
    }

    fn adapter(&self) -> Option<AdapterSpec> {
        Some(plain_lora(&self.projections, self.rank))
    }

    fn check_shape(&self, vit: &VitConfig) -> Result<(), TrainError> {
        let sites = vit.sites(&self.projections);
        let uneven = sites.iter().find(|site| site.d_input != site.d_output);
        match uneven {
            Some(site) if self.penalty == Penalty::RankProduct => Err(TrainError::setting(
                "method.penalty",
                "rank-product",
                format!(
                    "`update`, or projections with as many outputs as inputs: {site} has {} and {}",
                    site.d_output, site.d_input
                ),
            )),
            _ => Ok(()),
        }
    }

    fn penalty(&self, model: &Model) -> Option<Tensor<1>> {
        if self.lambda == 0.0 {
            return None;
        }
        let sites = model.adapter.sites.iter();
        let means = sites.filter_map(|site| Some(self.penalty.of(site.current.as_ref()?)));
        let sum = means.reduce(|sum, mean| sum + mean)?;
        Some(sum.mul_scalar(self.lambda))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::{collision_rate, sparsity};
    use crate::optimizer::OptimizerConfig;
    use burn::tensor::TensorData;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use sdlora_core::HostFactors;
    use sdlora_testkit::{test_device, test_device_autodiff};

    #[test]
    fn the_two_penalties_by_hand() {
        let direction = Direction::from_factors(
            TensorData::from([[1.0f32], [-2.0]]),
            TensorData::from([[3.0f32, 0.5]]),
            &test_device(),
        );
        // A B = [[3, 0.5], [-6, -1]], B A = [[3 - 1]].
        for (penalty, mean) in [(Penalty::Update, 10.5 / 4.0), (Penalty::RankProduct, 2.0)] {
            let found: f32 = penalty.of(&direction).into_scalar();
            assert!((found - mean).abs() < 1e-6, "{penalty:?}: {found}");
        }
    }

    #[test]
    fn settings_out_of_range_are_refused_with_their_range() {
        for (options, expected) in [
            ("lambda = -1.0", "method.lambda"),
            ("lambda = nan", "at least 0"),
            ("penalty = \"l2\"", "rank-product"),
            ("threshold = 1.0", "`threshold`"),
        ] {
            let error = (ENTRY.build)(&options.parse().unwrap()).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
        let build = |options: &str| (ENTRY.build)(&options.parse().unwrap()).unwrap();
        let vit = VitConfig::standard(16, 8, 16, 1, 2);
        let uneven = "projections = [\"fc1\"]";
        build(uneven).check_shape(&vit).unwrap();
        let released = format!("{uneven}\npenalty = \"rank-product\"");
        let error = build(&released).check_shape(&vit).unwrap_err().to_string();
        assert!(error.contains("blocks.0.fc1 has 64 and 16"), "{error}");
    }

    const WIDTH: usize = 32;
    const N_ROWS: usize = 64;

    /// A matrix `[WIDTH, WIDTH]` of rank 4 of which most entries are 0.
    fn sparse_target(rng: &mut ChaCha8Rng) -> Vec<f32> {
        let mut target = vec![0.0; WIDTH * WIDTH];
        for _ in 0..4 {
            let mut three = || [(); 3].map(|()| (rng.random_range(0..WIDTH), draw(rng)));
            let (rows, columns) = (three(), three());
            for (i, x) in rows {
                columns
                    .iter()
                    .for_each(|(j, y)| target[i * WIDTH + j] += x * y);
            }
        }
        target
    }

    /// About a standard normal number.
    fn draw(rng: &mut ChaCha8Rng) -> f32 {
        let sum: f32 = (0..12).map(|_| rng.random::<f32>()).sum();
        sum - 6.0
    }

    /// The update that is learned of noisy products with a sparse matrix, and its relative distance to it.
    fn learned(lambda_of_sum: f64, seed: u64) -> (Vec<f32>, f64) {
        let (device, mut rng) = (test_device_autodiff(), ChaCha8Rng::seed_from_u64(seed));
        let target = sparse_target(&mut rng);
        let matrix = |values: Vec<f32>| {
            let shape = [values.len() / WIDTH, WIDTH];
            Tensor::<2>::from_data(TensorData::new(values, shape), &device)
        };
        let draws = |rng: &mut ChaCha8Rng, scale: f32| -> Vec<f32> {
            (0..N_ROWS * WIDTH).map(|_| scale * draw(rng)).collect()
        };
        let x = matrix(draws(&mut rng, 1.0));
        let noise = matrix(draws(&mut rng, 0.5));
        let y = x.clone().matmul(matrix(target.clone())) + noise;
        let mut direction = Direction::init(WIDTH, WIDTH, 4, &mut rng, &device);
        let config: OptimizerConfig = toml::from_str(
            "rule = \"adam\"\nlr = 0.02\nschedule = { shape = \"cosine\", eta_min = 0.0 }",
        )
        .unwrap();
        let mut optimizer = config.init();
        let n_steps = 200;
        for step in 0..n_steps {
            let update = direction.a.val().matmul(direction.b.val());
            let error = (x.clone().matmul(update) - y.clone()).square().sum();
            let weight = lambda_of_sum * (WIDTH * WIDTH) as f64;
            let loss = error.mul_scalar(0.5 / N_ROWS as f64)
                + Penalty::Update.of(&direction).mul_scalar(weight);
            let lr = config.lr_at(step, n_steps, 0);
            direction = config.step(&mut optimizer, direction, &loss, lr);
        }
        let update: Vec<f32> = direction
            .a
            .val()
            .matmul(direction.b.val())
            .into_data()
            .iter()
            .collect();
        let norm = |values: &[f32]| values.iter().map(|v| v * v).sum::<f32>().sqrt();
        let rest: Vec<f32> = update.iter().zip(&target).map(|(a, b)| a - b).collect();
        let error = f64::from(norm(&rest) / norm(&target));
        (update, error)
    }

    #[test]
    fn updates_of_two_tasks_collide_less_the_larger_lambda_is_and_fit_better_at_first() {
        let threshold = 1e-3;
        let rows = [0.0, 0.02, 0.05, 0.1].map(|lambda| {
            let (first, error_1) = learned(lambda, 1);
            let (second, error_2) = learned(lambda, 2);
            let share = 0.5 * (sparsity(&first, threshold) + sparsity(&second, threshold));
            let rate = collision_rate(&first, &second, threshold);
            (share, rate, 0.5 * (error_1 + error_2))
        });
        // A port to NumPy has 0.09, 0.48, 0.83, 0.96 and 0.83, 0.25, 0.02, 0.00 with its own draws.
        for (row, (least, most)) in
            rows.iter()
                .zip([(0.0, 1.0), (0.3, 0.4), (0.65, 0.1), (0.85, 0.02)])
        {
            assert!(row.0 >= least && row.1 <= most, "{rows:?}");
        }
        assert!(rows[0].0 < 0.2 && rows[0].1 > 0.65, "without it: {rows:?}");
        for pair in rows.windows(2) {
            assert!(pair[1].0 > pair[0].0 && pair[1].1 < pair[0].1, "{rows:?}");
        }
        assert!(rows[1].2 < rows[0].2 && rows[2].2 < rows[0].2, "{rows:?}");
    }

    #[test]
    fn updates_without_a_collision_have_no_inner_product_and_may_still_share_inputs() {
        // Both read input 0 and write to outputs of their own: disjoint entries, ΔW₁ᵀ ΔW₂ is not 0.
        let outer = |b: [f32; 2]| HostFactors {
            a: vec![1.0, 0.0],
            b: b.to_vec(),
            rank: 1,
        };
        let (first, second) = (outer([1.0, 0.0]), outer([0.0, 1.0]));
        let rate = collision_rate(&[1.0, 0.0, 0.0, 0.0], &[0.0, 1.0, 0.0, 0.0], 1e-6);
        assert_eq!((rate, first.inner(&second)), (0.0, 0.0));
        let of_inputs: f32 = first.a.iter().zip(&second.a).map(|(x, y)| x * y).sum();
        assert_eq!(of_inputs, 1.0);
    }
}
