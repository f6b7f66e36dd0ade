//! Chains of LoRA: a low-rank update is trained for some steps, merged into the weight, and drawn again.
//!
//! `W ← W + A B`, so after k rounds the update has rank k · r at most. Nothing is kept per task: all rounds lie in
//! one accumulated matrix per site.
//!
//! - `raclora`, RAC-LoRA (Malinovsky et al. 2024, "Randomized Asymmetric Chain of LoRA", arXiv 2410.08305): in every
//!   round one factor, drawn at random, is frozen as drawn and the other starts at 0. `frozen = "none"` is COLA
//!   (Xia et al. 2024), `frozen = "a"` without new draws (`every = 0`) is asymmetric LoRA.
//! - `xgblora`, XGBLoRA (Zhang et al. 2024, "Less is More: Extremely Gradient Boosted Rank-1 Adaptation", arXiv
//!   2410.19694, no published code): boosters of rank 1 on randomly drawn blocks, both factors trained.
//!
//! Differs from RAC-LoRA's theory, as its code does: its step is a projected gradient step of the weight, and what
//! runs is the optimiser of the run on one factor. The two agree for one plain gradient step on an orthonormal
//! sketch, see the tests.
//! Neither protects old tasks: a chain is sequential fine-tuning with a small number of trained parameters.

use burn::module::Param;
use burn::tensor::{Device, TensorData};
use rand::RngExt;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use sdlora_core::{Direction, Site};
use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};

use super::lora::plain_lora;
use super::{
    AdapterSpec, Method, MethodEntry, StepContext, TaskContext, check_counts, check_number,
    check_projections, parse, query_and_value,
};
use crate::draws::{Draw, generator};
use crate::error::TrainError;
use crate::model::Model;

/// The methods of this file.
pub(super) const RACLORA: MethodEntry = MethodEntry {
    name: "raclora",
    summary: "a chain of LoRAs with one factor frozen, merged and drawn again (every, frozen, sketch)",
    build: |options| {
        let chain: RacLora = parse("raclora", options)?;
        built("raclora", chain.into())
    },
    second_pass: None,
};
pub(super) const XGBLORA: MethodEntry = MethodEntry {
    name: "xgblora",
    summary: "a chain of rank-1 boosters on randomly drawn blocks (every, blocks, rate)",
    build: |options| {
        let chain: XgbLora = parse("xgblora", options)?;
        built("xgblora", chain.into())
    },
    second_pass: None,
};

/// Which factor of a round is frozen as it was drawn; the other starts at 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Frozen {
    /// One or the other, drawn for every round.
    Random,
    /// The down-projection.
    A,
    /// The up-projection.
    B,
    /// Neither: A is drawn and B starts at 0, as in LoRA.
    None,
}

/// How a frozen factor is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Sketch {
    /// U(±1/√d) with the width d of the site, as LoRA draws its A.
    Uniform,
    /// Orthonormal columns (of A) or rows (of B), as the theory wants it.
    Orthonormal,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RacLora {
    /// Rank of every round.
    #[serde(default = "super::default_rank")]
    rank: usize,
    /// Adapted projections of every block.
    #[serde(default = "query_and_value")]
    projections: Vec<Projection>,
    /// Steps of a round; 0 makes one round of all tasks.
    #[serde(default = "twenty_five")]
    every: usize,
    /// Which factor is frozen.
    #[serde(default = "random")]
    frozen: Frozen,
    /// How it is drawn.
    #[serde(default = "uniform")]
    sketch: Sketch,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct XgbLora {
    /// Rank of a booster.
    #[serde(default = "one")]
    rank: usize,
    /// Adapted projections of a drawn block.
    #[serde(default = "query_and_value")]
    projections: Vec<Projection>,
    /// κ: steps of a booster; 0 makes one round of all tasks.
    #[serde(default = "ten")]
    every: usize,
    /// Share of the blocks that get a booster in a round, above 0 and at most 1.
    #[serde(default = "half")]
    blocks: f64,
    /// α: what a booster counts when it is merged.
    #[serde(default = "whole")]
    rate: f64,
}

fn random() -> Frozen {
    Frozen::Random
}

fn uniform() -> Sketch {
    Sketch::Uniform
}

fn one() -> usize {
    1
}

fn ten() -> usize {
    10
}

fn twenty_five() -> usize {
    25
}

fn half() -> f64 {
    0.5
}

fn whole() -> f64 {
    1.0
}

#[derive(Debug)]
struct Chain {
    adapter: AdapterSpec,
    rank: usize,
    every: usize,
    frozen: Frozen,
    sketch: Sketch,
    blocks: f64,
    rate: f64,
}

impl From<RacLora> for Chain {
    fn from(options: RacLora) -> Self {
        Self {
            adapter: plain_lora(&options.projections, options.rank),
            rank: options.rank,
            every: options.every,
            frozen: options.frozen,
            sketch: options.sketch,
            blocks: 1.0,
            rate: 1.0,
        }
    }
}

impl From<XgbLora> for Chain {
    fn from(options: XgbLora) -> Self {
        Self {
            adapter: plain_lora(&options.projections, options.rank),
            rank: options.rank,
            every: options.every,
            frozen: Frozen::None,
            sketch: Sketch::Uniform,
            blocks: options.blocks,
            rate: options.rate,
        }
    }
}

fn built(name: &str, chain: Chain) -> Result<Box<dyn Method>, TrainError> {
    check_counts(&[("rank", chain.rank)])?;
    check_projections(&chain.adapter.projections, &Projection::ALL)?;
    check_number("method.rate", chain.rate, false)?;
    if !(chain.blocks > 0.0 && chain.blocks <= 1.0) {
        let expected = "a share of the blocks above 0 and at most 1";
        return Err(TrainError::setting("method.blocks", chain.blocks, expected));
    }
    if chain.every == 0 && chain.frozen == Frozen::Random {
        return Err(TrainError::setting(
            "method.frozen",
            "random",
            format!("`a`, `b` or `none`: with `every = 0`, {name} draws one round only"),
        ));
    }
    Ok(Box::new(chain))
}

impl Chain {
    /// A new round on some blocks, instead of the one that was merged.
    fn drawn(&self, mut model: Model, rng: &mut ChaCha8Rng, device: &Device) -> Model {
        let depth = model.backbone.config().depth;
        let n_blocks = ((self.blocks * depth as f64).ceil() as usize).clamp(1, depth.max(1));
        let mut is_drawn = vec![self.blocks == 1.0; depth];
        if self.blocks < 1.0 {
            for block in sample(rng, depth, n_blocks) {
                is_drawn[block] = true;
            }
        }
        let frozen = match self.frozen {
            Frozen::Random => match rng.random::<bool>() {
                true => Frozen::A,
                false => Frozen::B,
            },
            named => named,
        };
        for bank in &mut model.adapter.sites {
            bank.current = is_drawn[bank.site().group]
                .then(|| round(bank.site(), self.rank, frozen, self.sketch, rng, device));
        }
        model
    }

    /// The model with the running round inside its accumulated update.
    fn merged(&self, mut model: Model) -> Model {
        if self.rate != 1.0 {
            for current in model
                .adapter
                .sites
                .iter_mut()
                .filter_map(|bank| bank.current.as_mut())
            {
                let b = current.b.val().mul_scalar(self.rate);
                current.b = Param::from_tensor(b.detach());
            }
        }
        model.adapter = model.adapter.merge_current();
        model
    }
}

/// The start of a round on a site.
fn round(
    site: &Site,
    rank: usize,
    frozen: Frozen,
    sketch: Sketch,
    rng: &mut ChaCha8Rng,
    device: &Device,
) -> Direction {
    let (d_input, d_output) = (site.d_input, site.d_output);
    // [width, rank], of which a row of B is a column.
    let mut draw = |width: usize| -> Vec<f32> {
        match sketch {
            Sketch::Uniform => {
                let bound = 1.0 / (width as f32).sqrt();
                let numbers = (0..width * rank).map(|_| rng.random_range(-bound..bound));
                numbers.collect()
            }
            Sketch::Orthonormal => orthonormal(width, rank, rng),
        }
    };
    let (mut a, mut b) = (vec![0.0; d_input * rank], vec![0.0; rank * d_output]);
    match frozen {
        Frozen::B => {
            for (j, row) in draw(d_output).chunks_exact(rank).enumerate() {
                for (k, value) in row.iter().enumerate() {
                    b[k * d_output + j] = *value;
                }
            }
        }
        _ => a = draw(d_input),
    }
    let mut direction = Direction::from_factors(
        TensorData::new(a, [d_input, rank]),
        TensorData::new(b, [rank, d_output]),
        device,
    );
    match frozen {
        Frozen::A => direction.a = direction.a.set_require_grad(false),
        Frozen::B => direction.b = direction.b.set_require_grad(false),
        _ => {}
    }
    direction
}

/// `rank` orthonormal columns of length `width`, row-major `[width, rank]`: normal numbers by Gram and Schmidt, twice.
fn orthonormal(width: usize, rank: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let mut columns: Vec<Vec<f64>> = Vec::with_capacity(rank);
    for _ in 0..rank {
        let mut column: Vec<f64> = (0..width).map(|_| StandardNormal.sample(rng)).collect();
        for _ in 0..2 {
            for earlier in &columns {
                let inner: f64 = column.iter().zip(earlier).map(|(x, y)| x * y).sum();
                column
                    .iter_mut()
                    .zip(earlier)
                    .for_each(|(x, y)| *x -= inner * y);
            }
            let length = column.iter().map(|x| x * x).sum::<f64>().sqrt();
            column.iter_mut().for_each(|x| *x /= length);
        }
        columns.push(column);
    }
    (0..width)
        .flat_map(|i| columns.iter().map(move |column| column[i] as f32))
        .collect()
}

impl Method for Chain {
    fn before_task(&self, mut model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        // Between tasks everything is merged, and all rounds share one magnitude of 1.
        if task.task_idx == 0 || self.every > 0 {
            let mut rng = generator(task.seed, Draw::Chain, task.task_idx);
            if task.task_idx == 0 {
                model = task.begin_direction(model, self.rank)?;
                model.adapter = model.adapter.with_current_magnitude_trainable(false);
            }
            // The first round of a plain chain is the one that LoRA would begin with.
            let is_plain = self.frozen == Frozen::None && self.blocks == 1.0;
            if task.task_idx > 0 || !is_plain {
                model = self.drawn(model, &mut rng, &task.device);
            }
        }
        Ok(task.grow_head(model))
    }

    fn after_step(&self, mut model: Model, step: &StepContext) -> Result<Model, TrainError> {
        let n_done = step.step + 1;
        if self.every > 0 && n_done.is_multiple_of(self.every) && n_done < step.n_steps {
            // Far more words than a round can draw lie between two rounds.
            let mut rng = generator(step.seed, Draw::Chain, step.task_idx);
            rng.set_word_pos((n_done as u128) << 40);
            model = self.drawn(self.merged(model), &mut rng, &step.device);
        }
        Ok(model)
    }

    fn after_task(&self, model: Model, _task: &TaskContext) -> Result<Model, TrainError> {
        Ok(match self.every {
            0 => model,
            _ => self.merged(model),
        })
    }

    fn adapter(&self) -> Option<AdapterSpec> {
        Some(self.adapter.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tensor;
    use rand::SeedableRng;
    use sdlora_core::Adapter;
    use sdlora_testkit::test_device_autodiff;

    /// `f(W) = ½ Σ_ij M_ij (W − W*)²_ij` on 3 × 3 with M = 1 but for one entry of 10, so that a step of 1/10 is the
    /// largest safe one.
    struct Problem {
        m: Tensor<2>,
        target: Tensor<2>,
    }

    impl Problem {
        fn new(device: &Device) -> Self {
            let m = [[10.0f32, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]];
            let target = [[0.3f32, -0.8, 1.1], [0.9, 0.4, -0.6], [-1.2, 0.7, 0.2]];
            Self {
                m: Tensor::from_data(m, device),
                target: Tensor::from_data(target, device),
            }
        }

        fn value(&self, w: Tensor<2>) -> Tensor<1> {
            let error = w - self.target.clone();
            (self.m.clone() * error.square()).sum().mul_scalar(0.5)
        }

        fn gradient(&self, w: Tensor<2>) -> Vec<f64> {
            let gradient = self.m.clone() * (w - self.target.clone());
            gradient.into_data().iter::<f64>().collect()
        }
    }

    const STEP: f64 = 0.1;

    fn weight(adapter: &Adapter) -> Tensor<2> {
        adapter.updates().get("w").unwrap().dense()
    }

    fn zero(device: &Device, rank: usize) -> Adapter {
        let site = Site {
            name: "w".into(),
            group: 0,
            d_input: 3,
            d_output: 3,
        };
        let settings = plain_lora(&[Projection::Query], rank).settings;
        let adapter = Adapter::new(settings, &[site]).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        adapter.begin_task(rank, &mut rng, device).unwrap()
    }

    /// Rounds of one gradient step each; the value before every round and after the last.
    fn rounds(rank: usize, n: usize, redraw: bool, rng: &mut ChaCha8Rng) -> Vec<f64> {
        let device = test_device_autodiff();
        let problem = Problem::new(&device);
        let mut adapter = zero(&device, rank);
        let site = adapter.sites[0].site().clone();
        let mut values = Vec::new();
        let mut fixed = Some(round(
            &site,
            rank,
            Frozen::B,
            Sketch::Orthonormal,
            rng,
            &device,
        ));
        for _ in 0..n {
            let frozen = if rng.random::<bool>() {
                Frozen::A
            } else {
                Frozen::B
            };
            let direction = match redraw {
                true => round(&site, rank, frozen, Sketch::Orthonormal, rng, &device),
                // One sketch for all: what the earlier steps learned stays in the factor.
                false => fixed.take().unwrap(),
            };
            adapter.sites[0].current = Some(direction);
            let loss = problem.value(weight(&adapter));
            values.push(f64::from(loss.clone().into_scalar::<f32>()));
            let gradients = loss.backward();
            let current = adapter.sites[0].current.as_mut().unwrap();
            for factor in [&mut current.a, &mut current.b] {
                if let Some(gradient) = factor.val().grad(&gradients) {
                    let gradient = Tensor::from_inner(gradient).mul_scalar(STEP);
                    let id = factor.clone();
                    *factor = id.map(|values| (values - gradient).detach().require_grad());
                }
            }
            match redraw {
                true => adapter = adapter.merge_current(),
                false => fixed = adapter.sites[0].current.clone(),
            }
        }
        let last = problem.value(weight(&adapter));
        values.push(f64::from(last.into_scalar::<f32>()));
        values
    }

    #[test]
    fn one_plain_step_on_an_orthonormal_sketch_is_the_projected_step_of_the_theory() {
        let device = test_device_autodiff();
        let problem = Problem::new(&device);
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let mut adapter = zero(&device, 1);
        let site = adapter.sites[0].site().clone();
        for frozen in [Frozen::A, Frozen::B] {
            let direction = round(&site, 1, frozen, Sketch::Orthonormal, &mut rng, &device);
            let sketch: Vec<f64> = match frozen {
                Frozen::A => direction.a.val().into_data().iter::<f64>().collect(),
                _ => direction.b.val().into_data().iter::<f64>().collect(),
            };
            adapter.sites[0].current = Some(direction);
            let before: Vec<f64> = weight(&adapter).into_data().iter::<f64>().collect();
            let gradient = problem.gradient(weight(&adapter));
            let grads = problem.value(weight(&adapter)).backward();
            let current = adapter.sites[0].current.as_mut().unwrap();
            let free = match frozen {
                Frozen::A => &mut current.b,
                _ => &mut current.a,
            };
            let step = Tensor::from_inner(free.val().grad(&grads).unwrap()).mul_scalar(STEP);
            *free = free.clone().map(|v| (v - step).detach().require_grad());
            adapter = adapter.merge_current();
            let after: Vec<f64> = weight(&adapter).into_data().iter::<f64>().collect();
            for i in 0..3 {
                for j in 0..3 {
                    // H ∇f with H = s sᵀ from the left, or ∇f H from the right.
                    let projected: f64 = (0..3)
                        .map(|k| match frozen {
                            Frozen::A => sketch[i] * sketch[k] * gradient[k * 3 + j],
                            _ => gradient[i * 3 + k] * sketch[k] * sketch[j],
                        })
                        .sum();
                    let change = after[i * 3 + j] - before[i * 3 + j];
                    assert!((change + STEP * projected).abs() < 1e-6, "{frozen:?}");
                }
            }
        }
    }

    #[test]
    fn a_chain_of_rank_1_finds_the_full_solution_and_one_fixed_sketch_does_not() {
        let mut rng = ChaCha8Rng::seed_from_u64(9);
        let values = rounds(1, 600, true, &mut rng);
        assert!(
            values
                .windows(2)
                .all(|pair| pair[1] <= pair[0] * (1.0 + 1e-5) + 1e-12)
        );
        assert!(values[600] < 1e-8, "{}", values[600]);
        let stuck = rounds(1, 600, false, &mut rng);
        assert!(stuck[600] > 0.1, "{}", stuck[600]);
        // A sketch of full rank is gradient descent itself.
        let (full, one) = (rounds(3, 40, true, &mut rng), rounds(1, 40, true, &mut rng));
        assert!(full[40] < one[40]);
        let expected: f64 = {
            let m = [10.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0f64];
            let target = [0.3, -0.8, 1.1, 0.9, 0.4, -0.6, -1.2, 0.7, 0.2f64];
            let terms = m.iter().zip(target).map(|(m, t)| {
                let error = t * (1.0 - STEP * m).powi(40);
                0.5 * m * error * error
            });
            terms.sum()
        };
        assert!(
            (full[40] - expected).abs() < 1e-4 * expected,
            "{} {expected}",
            full[40]
        );
    }

    #[test]
    fn orthonormal_sketches_are() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let sketch = orthonormal(7, 3, &mut rng);
        for i in 0..3 {
            for j in 0..3 {
                let inner: f32 = (0..7).map(|k| sketch[k * 3 + i] * sketch[k * 3 + j]).sum();
                let expected = f32::from(u8::from(i == j));
                assert!((inner - expected).abs() < 1e-6);
            }
        }
    }
}
