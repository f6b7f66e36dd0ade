//! E2-LoRA: a LoRA per task in output directions that no other task uses, ordered by energy, so that the last ones
//! can be given to later tasks (Li et al. 2026, "Energy-Structured Low-Rank Adaptation for Continual Learning",
//! arXiv 2605.27482).
//!
//! `W = W0 + Σ_k A_k B_k`. What a task changes at the output of a site is `ΔY = X A B`, and it lies in few
//! directions. After the task the factors are turned onto them: `B ← V B`, `A ← A Vᵀ` with the eigenvectors V of
//! `Aᵀ C A`, where `C = mean x xᵀ` over the inputs of the task; the product stays, and of all updates of a rank the
//! first ranks come nearest to it. All tasks share a pool of output directions. When task t starts, every old task
//! keeps the fewest ranks that hold a share of its energy, the share as large as leaves the t-th part of the pool; the
//! released rows become `B_t`, which is frozen, and `A_t` starts at 0. So the rows of all `B_k` are orthonormal, and
//! what a site keeps does not grow with the tasks.
//!
//! Beside cross-entropy the logits of old classes stay what they were before the task, by a divergence at a
//! temperature. The head is aligned on class Gaussians; `gaussian` with the published recipe is the head where none is
//! named.
//!
//! Differs from the released code:
//! - It adapts the fused qkv projection, whose pool is three times as wide, and fc1; here query, key and value have a
//!   pool each, because methods see the inputs of the attention alone.
//! - Energies are measured on all training images of the task and around 0, there on one batch and around the mean.
//! - Its optimiser, as we read it, also moves the weights of the backbone and the factors of old tasks, at a twentieth
//!   of the rate. The paper freezes both, and so does this.
//! - It shrinks the means of older classes by up to a tenth when it aligns.

use burn::module::{Module, Param};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;
use sdlora_core::{Direction, FinishedDirection, HostFactors, PastDirections, Update, Updates};
use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};

use super::input_subspaces::covariances;
use super::lora::plain_lora;
use super::{
    AdapterSpec, LossBatch, Method, MethodEntry, TaskContext, TaskImages, check_counts,
    check_number, check_projections, parse,
};
use crate::eigen::Eigen;
use crate::error::TrainError;
use crate::heads::{ColumnStart, HeadConfig};
use crate::model::Model;
use crate::state::{MethodState, Role};

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "e2lora",
    summary: "a LoRA per task in output directions of its own, the weak ones given on (pool, energy, distill)",
    build: |options| {
        let method: E2Lora = parse("e2lora", options)?;
        method.check()?;
        Ok(Box::new(method))
    },
    second_pass: None,
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct E2Lora {
    /// Output directions of a site that all tasks share; its whole width where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pool: Option<usize>,
    /// Adapted projections of every block: those that see the normed tokens.
    #[serde(default = "query_key_and_value")]
    projections: Vec<Projection>,
    /// Share of the energy of an old task from which its ranks are counted, above 0 and below 1.
    #[serde(default = "published_energy")]
    energy: f64,
    /// Weight of the divergence of old logits; 0 leaves it out.
    #[serde(default = "quarter")]
    distill: f64,
    /// Temperature of both sides of the divergence.
    #[serde(default = "two")]
    temperature: f64,
}

const ADAPTED: [Projection; 3] = [Projection::Query, Projection::Key, Projection::Value];

fn query_key_and_value() -> Vec<Projection> {
    ADAPTED.to_vec()
}

fn published_energy() -> f64 {
    0.99999
}

fn quarter() -> f64 {
    0.25
}

fn two() -> f64 {
    2.0
}

/// What the share of the energy falls by until a new task has room.
const STEP: f64 = 1e-5;

/// What the method keeps besides directions.
#[derive(Module, Debug)]
struct Kept {
    /// For every site the energies `[n_tasks, pool]` of every task at its end, largest first.
    energies: Vec<Param<Tensor<2>>>,
    /// While a task trains, the columns `[d_model, n_old]` of old classes; empty between tasks.
    columns: Vec<Param<Tensor<2>>>,
    /// Their biases `[1, n_old]`.
    biases: Vec<Param<Tensor<2>>>,
}

impl Kept {
    fn into_state(self) -> MethodState {
        MethodState::of(&self, |name| match name.starts_with("energies") {
            true => Role::Shared,
            false => Role::Parameter,
        })
    }
}

impl E2Lora {
    fn check(&self) -> Result<(), TrainError> {
        check_counts(&[("pool", self.pool.unwrap_or(1))])?;
        check_projections(&self.projections, &ADAPTED)?;
        if !(self.energy > 0.0 && self.energy < 1.0) {
            let expected = "a share above 0 and below 1";
            return Err(TrainError::setting("method.energy", self.energy, expected));
        }
        check_number("method.distill", self.distill, true)?;
        check_number("method.temperature", self.temperature, false)
    }

    fn pool(&self, model: &Model) -> usize {
        self.pool.unwrap_or(model.backbone.config().d_model)
    }

    /// The model whose old tasks have given away ranks, and a new direction on every site that has them.
    fn shared_out(&self, mut model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        let (pool, device) = (self.pool(&model), &task.device);
        let energies = energies(&model, pool)?;
        model.adapter = model.adapter.finish_task(device);
        let mut begun = Vec::with_capacity(energies.len());
        for (bank, energies) in model.adapter.sites.iter_mut().zip(&energies) {
            let old = bank
                .past
                .as_ref()
                .map_or(Vec::new(), PastDirections::finished);
            let ranks: Vec<usize> = old.iter().map(|old| old.factors.rank).collect();
            let limit = old.len() * pool / (old.len() + 1);
            let kept = kept_ranks(energies, &ranks, self.energy, limit);
            let (old, released): (Vec<_>, Vec<_>) = old
                .into_iter()
                .zip(&kept)
                .map(|(direction, &n)| cut(direction, n))
                .unzip();
            let site = bank.site().clone();
            let rows = released.concat();
            let rank = rows.len() / site.d_output;
            let mut direction = Direction::from_factors(
                TensorData::zeros::<f32, _>([site.d_input, rank]),
                TensorData::new(rows, [rank, site.d_output]),
                device,
            );
            direction.b = direction.b.set_require_grad(false);
            begun.push(direction);
            bank.past = Some(PastDirections::from_finished(&old, device));
        }
        model.adapter = model
            .adapter
            .begin_task_with(begun, device)?
            .with_past_magnitudes_trainable(false);
        let trained = model.head.trained.as_ref();
        let columns = trained.map(|trained| frozen(trained.weight.val()));
        let biases = trained.and_then(|trained| {
            let bias = trained.bias.as_ref()?.val();
            let n = bias.dims()[0];
            Some(frozen(bias.reshape([1, n])))
        });
        let kept = Kept {
            energies: energies
                .iter()
                .map(|rows| matrix(rows, pool, device))
                .collect(),
            columns: columns.into_iter().collect(),
            biases: biases.into_iter().collect(),
        };
        model.state = kept.into_state();
        Ok(model)
    }
}

/// The energies of the tasks that are over, by site and task.
fn energies(model: &Model, pool: usize) -> Result<Vec<Vec<Vec<f64>>>, TrainError> {
    let of_site = |i: usize| {
        let found = model.state.get(&format!("energies.{i}")).map(Param::val);
        let found = found.filter(|found| found.dims()[1] == pool);
        let found = found.ok_or_else(|| {
            let expected = "the energies of earlier tasks: it is the state of another method";
            TrainError::setting("state", format!("no `energies.{i}`"), expected)
        })?;
        let values: Vec<f64> = found.into_data().iter::<f32>().map(f64::from).collect();
        Ok(values.chunks_exact(pool).map(<[f64]>::to_vec).collect())
    };
    (0..model.adapter.sites.len()).map(of_site).collect()
}

/// Ranks that every old task keeps, of those it has: the fewest that hold a share of its energy, at least 1. The
/// share is the largest with which they are at most `limit` together.
fn kept_ranks(energies: &[Vec<f64>], ranks: &[usize], share: f64, limit: usize) -> Vec<usize> {
    let cumulative: Vec<Vec<f64>> = energies
        .iter()
        .map(|row| {
            let sums = row.iter().scan(0.0, |sum, v| {
                *sum += v;
                Some(*sum)
            });
            sums.collect()
        })
        .collect();
    let at = |n_steps: usize| -> Vec<usize> {
        let share = share - n_steps as f64 * STEP;
        let of_task = |(sums, &rank): (&Vec<f64>, &usize)| {
            let total = sums.last().copied().unwrap_or(0.0);
            let n = match total > 0.0 {
                true => sums.partition_point(|&sum| sum <= share * total) + 1,
                false => 1,
            };
            n.clamp(1, rank.max(1))
        };
        cumulative.iter().zip(ranks).map(of_task).collect()
    };
    let fits = |n_steps: usize| at(n_steps).iter().sum::<usize>() <= limit;
    if fits(0) {
        return at(0);
    }
    let (mut wrong, mut right) = (0, (share / STEP).ceil() as usize + 1);
    while right - wrong > 1 {
        let middle = (wrong + right) / 2;
        match fits(middle) {
            true => right = middle,
            false => wrong = middle,
        }
    }
    at(right)
}

/// A direction with its first `n` ranks, and the rows of B that it gives away.
fn cut(mut direction: FinishedDirection, n: usize) -> (FinishedDirection, Vec<f32>) {
    let HostFactors { a, b, rank } = &direction.factors;
    let n = n.min(*rank);
    let d_output = b.len() / rank;
    let released = b[n * d_output..].to_vec();
    let rows = a.chunks_exact(*rank);
    direction.factors = HostFactors {
        a: rows.flat_map(|row| row[..n].iter().copied()).collect(),
        b: b[..n * d_output].to_vec(),
        rank: n,
    };
    (direction, released)
}

/// Factors with the same product whose rows of B are orthonormal and ordered by the energy `mean (x a_i)²` that
/// they carry for inputs of the given `mean x xᵀ`, and these energies.
fn turned(
    factors: &HostFactors,
    covariance: &[f64],
) -> Result<(HostFactors, Vec<f64>), TrainError> {
    let r = factors.rank;
    let (n, m) = (factors.a.len() / r, factors.b.len() / r);
    let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|&v| f64::from(v)).collect() };
    let (a, b) = (wide(&factors.a), wide(&factors.b));
    let basis = orthonormal_rows(&b, m);
    // B = L Q, so A B = (A L) Q.
    let lower = product(&b, &transposed(&basis, m), m, r);
    let a = product(&a, &lower, r, r);
    let of_inputs = product(&transposed(&a, r), covariance, n, n);
    let eigen = Eigen::of(product(&of_inputs, &a, n, r), r)?;
    let turn = transposed(&eigen.vectors, r);
    let narrow = |values: Vec<f64>| values.into_iter().map(|v| v as f32).collect();
    let turned = HostFactors {
        a: narrow(product(&a, &turn, r, r)),
        b: narrow(product(&eigen.vectors, &basis, r, m)),
        rank: r,
    };
    let energies = eigen.values.into_iter().map(|v| v.max(0.0)).collect();
    Ok((turned, energies))
}

/// As many orthonormal rows as there are rows of length `m`, by Gram and Schmidt, twice; a row that the ones before
/// it span gives way to the unit vector that they span least.
fn orthonormal_rows(rows: &[f64], m: usize) -> Vec<f64> {
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let mut out: Vec<f64> = Vec::with_capacity(rows.len());
    for row in rows.chunks_exact(m) {
        let left = |row: &[f64], out: &[f64]| {
            let mut row = row.to_vec();
            for _ in 0..2 {
                for other in out.chunks_exact(m) {
                    let along = dot(&row, other);
                    row.iter_mut().zip(other).for_each(|(x, y)| *x -= along * y);
                }
            }
            row
        };
        let mut rest = left(row, &out);
        if dot(&rest, &rest) <= 1e-18 * dot(row, row) {
            let covered = |k: &usize| out.chunks_exact(m).map(|o| o[*k] * o[*k]).sum::<f64>();
            let free = (0..m).min_by(|i, j| covered(i).total_cmp(&covered(j)));
            let mut unit = vec![0.0; m];
            if let Some(free) = free {
                unit[free] = 1.0;
            }
            rest = left(&unit, &out);
        }
        let length = dot(&rest, &rest).sqrt().max(f64::MIN_POSITIVE);
        out.extend(rest.iter().map(|v| v / length));
    }
    out
}

/// `a b` of row-major matrices, where a row of `a` has `k` numbers and one of `b` has `m`.
fn product(a: &[f64], b: &[f64], k: usize, m: usize) -> Vec<f64> {
    let mut out = vec![0.0; a.len() / k * m];
    for (row, out) in a.chunks_exact(k).zip(out.chunks_exact_mut(m)) {
        for (&x, b) in row.iter().zip(b.chunks_exact(m)) {
            out.iter_mut().zip(b).for_each(|(out, y)| *out += x * y);
        }
    }
    out
}

/// Rows of `width` numbers as columns.
fn transposed(rows: &[f64], width: usize) -> Vec<f64> {
    (0..width)
        .flat_map(|j| rows.iter().skip(j).step_by(width).copied())
        .collect()
}

fn frozen(values: Tensor<2>) -> Param<Tensor<2>> {
    Param::from_tensor(values.detach()).set_require_grad(false)
}

/// Rows of at most `width` numbers as a matrix, the rest 0.
fn matrix(rows: &[Vec<f64>], width: usize, device: &Device) -> Param<Tensor<2>> {
    let mut values = vec![0.0f32; rows.len() * width];
    for (to, from) in values.chunks_exact_mut(width).zip(rows) {
        to.iter_mut().zip(from).for_each(|(to, &v)| *to = v as f32);
    }
    frozen(Tensor::from_data(
        TensorData::new(values, [rows.len(), width]),
        device,
    ))
}

/// The updates without those of the running task.
fn updates_before(model: &Model) -> Updates {
    let all = model.adapter.updates();
    let mut before = Updates::default();
    for bank in &model.adapter.sites {
        let Some(update) = all.get(&bank.site().name) else {
            continue;
        };
        let n = update.terms().len() - usize::from(bank.current.is_some());
        let terms = update.terms()[..n].to_vec();
        if let Some(update) = Update::of(terms, update.merged().cloned()) {
            before.insert(bank.site(), update);
        }
    }
    before
}

impl Method for E2Lora {
    fn check_stream(&self, model: &Model, n_tasks: usize) -> Result<(), TrainError> {
        let pool = self.pool(model);
        if n_tasks > pool {
            let expected =
                format!("at least the number of tasks, {n_tasks}: every task keeps a direction");
            return Err(TrainError::setting("method.pool", pool, expected));
        }
        Ok(())
    }

    fn before_task(&self, mut model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        if task.task_idx > 0 {
            model = self.shared_out(model, task)?;
        } else {
            let pool = self.pool(&model);
            model = task.begin_direction(model, pool)?;
        }
        model.adapter = model.adapter.with_current_magnitude_trainable(false);
        Ok(task.grow_head(model))
    }

    fn batch_penalty(&self, model: &Model, batch: &LossBatch<'_>) -> Option<Tensor<1>> {
        if self.distill == 0.0 {
            return None;
        }
        let columns = model.state.get("columns.0")?.val();
        let biases = model.state.get("biases.0").map(Param::val);
        let images = batch.images.clone()?;
        let log_shares = |features: Tensor<2>| {
            let logits = features.matmul(columns.clone());
            let logits = match &biases {
                None => logits,
                Some(biases) => logits + biases.clone(),
            };
            log_softmax(logits.div_scalar(self.temperature), 1)
        };
        let before = model.backbone.forward(images, &updates_before(model));
        let (teacher, student) = (
            log_shares(before.detach()),
            log_shares(batch.features.clone()),
        );
        let n_images = batch.labels.len().max(1) as f64;
        let weight = self.distill * self.temperature * self.temperature / n_images;
        let divergence = teacher.clone().exp() * (teacher - student);
        Some(divergence.sum().mul_scalar(weight))
    }

    fn review(
        &self,
        mut model: Model,
        task: &TaskContext,
        images: &dyn TaskImages,
    ) -> Result<Model, TrainError> {
        let pool = self.pool(&model);
        let covariances = covariances(&model.merged_backbone(), images)?;
        let mut known = match task.task_idx {
            0 => vec![Vec::new(); model.adapter.sites.len()],
            _ => energies(&model, pool)?,
        };
        let banks = model.adapter.sites.iter();
        let currents: Vec<Option<(HostFactors, usize)>> = banks
            .map(|bank| Some((bank.current.as_ref()?.to_host(), bank.site().group)))
            .collect();
        let turned = currents
            .par_iter()
            .map(|current| {
                let (factors, block) = current.as_ref()?;
                Some(turned(factors, &covariances[*block]))
            })
            .map(Option::transpose)
            .collect::<Result<Vec<_>, _>>()?;
        let sites = model.adapter.sites.iter_mut().zip(&mut known);
        for ((bank, known), turned) in sites.zip(turned) {
            let Some((factors, energies)) = turned else {
                continue;
            };
            let (d_input, d_output) = (bank.site().d_input, bank.site().d_output);
            let HostFactors { a, b, rank } = factors;
            bank.current = Some(Direction::from_factors(
                TensorData::new(a, [d_input, rank]),
                TensorData::new(b, [rank, d_output]),
                &task.device,
            ));
            known.push(energies);
        }
        let kept = Kept {
            energies: known
                .iter()
                .map(|rows| matrix(rows, pool, &task.device))
                .collect(),
            columns: Vec::new(),
            biases: Vec::new(),
        };
        model.state = kept.into_state();
        Ok(model)
    }

    /// With the recipe of the published configurations: `ca_epochs`, logits without a norm, columns that stay aligned.
    fn default_head(&self) -> HeadConfig {
        HeadConfig::named("gaussian")
            .with("logit_norm", "none")
            .with("n_epochs", 3)
            .with("weight_decay", 5e-4)
            .with("next_task", "aligned")
    }

    fn adapter(&self) -> Option<AdapterSpec> {
        Some(plain_lora(&self.projections, self.pool.unwrap_or(1)))
    }

    fn column_start(&self) -> ColumnStart {
        ColumnStart::Normal
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_testkit::toy::SplitMix64;

    fn wide(values: &[f32]) -> Vec<f64> {
        values.iter().map(|&v| f64::from(v)).collect()
    }

    fn far(a: &[f64], b: &[f64]) -> f64 {
        assert_eq!(a.len(), b.len());
        let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
        differences.fold(0.0, f64::max)
    }

    #[test]
    fn ranks_are_kept_by_energy_and_the_share_falls_until_a_new_task_has_room() {
        let energies = [vec![90.0, 9.0, 0.9, 0.1], vec![50.0, 30.0, 15.0, 5.0]];
        // 90 of 100 is not more than 90 %, so the next one is kept, too.
        assert_eq!(kept_ranks(&energies, &[4, 4], 0.9, 8), [2, 3]);
        assert_eq!(
            kept_ranks(&energies, &[4, 2], 0.9, 8),
            [2, 2],
            "what it has"
        );
        // One fewer each way that the share allows: below 90 % the first, below 80 % the second.
        assert_eq!(kept_ranks(&energies, &[4, 4], 0.9, 4), [1, 3]);
        assert_eq!(kept_ranks(&energies, &[4, 4], 0.9, 3), [1, 2]);
        assert_eq!(kept_ranks(&energies, &[4, 4], 0.9, 2), [1, 1]);
        // A task that has changed nothing.
        assert_eq!(kept_ranks(&[vec![0.0; 3]], &[3], 0.9, 1), [1]);
    }

    #[test]
    fn turned_factors_have_the_same_product_and_lose_the_energies_of_the_ranks_that_are_cut() {
        let (n, r, m, n_rows) = (5, 3, 4, 40);
        let mut noise = SplitMix64::new(3);
        let factors = HostFactors {
            a: noise.fill(n * r, 1.0),
            b: noise.fill(r * m, 1.0),
            rank: r,
        };
        let x = wide(&noise.fill(n_rows * n, 1.0));
        let mut covariance = product(&transposed(&x, n), &x, n_rows, n);
        covariance.iter_mut().for_each(|v| *v /= n_rows as f64);
        let (turned, energies) = turned(&factors, &covariance).unwrap();
        let update = |f: &HostFactors| product(&wide(&f.a), &wide(&f.b), f.rank, m);
        assert!(far(&update(&turned), &update(&factors)) < 1e-5);
        let b = wide(&turned.b);
        let gram = product(&b, &transposed(&b, m), m, r);
        let unit: Vec<f64> = (0..r * r)
            .map(|i| f64::from(u8::from(i % (r + 1) == 0)))
            .collect();
        assert!(far(&gram, &unit) < 1e-6);
        assert!(energies.windows(2).all(|pair| pair[0] > pair[1]));
        for kept in 1..r {
            let direction = FinishedDirection {
                factors: turned.clone(),
                inverse_norm: 1.0,
                offset: 0.0,
            };
            let (short, released) = cut(direction, kept);
            assert_eq!(released.len(), (r - kept) * m);
            let (whole, short) = (update(&factors), update(&short.factors));
            let lost: Vec<f64> = whole.iter().zip(&short).map(|(a, b)| a - b).collect();
            let lost = product(&x, &lost, n, m);
            let lost = lost.iter().map(|v| v * v).sum::<f64>() / n_rows as f64;
            let expected: f64 = energies[kept..].iter().sum();
            assert!((lost / expected - 1.0).abs() < 1e-4, "{lost} {expected}");
        }
    }

    #[test]
    fn rows_that_are_not_independent_are_completed() {
        let rows = [1.0, 1.0, 0.0, 2.0, 2.0, 0.0, 0.0, 0.0, 0.0];
        let found = orthonormal_rows(&rows, 3);
        let gram = product(&found, &transposed(&found, 3), 3, 3);
        let unit = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
        assert!(far(&gram, &unit) < 1e-12, "{found:?}");
    }
}
