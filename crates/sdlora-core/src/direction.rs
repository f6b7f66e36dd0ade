//! A direction: the low-rank factors one task learns on one site.
//!
//! `D = A B / ‖A B‖_F` (paper, section 4), with burn's layout: `a: [d_input, rank]`,
//! `b: [rank, d_output]`, so that `x · a · b` is the update of `x · W`.
//! PyTorch's `lora_A` is `aᵀ`, its `lora_B` is `bᵀ`; the paper's letters A and B are `lora_B` and
//! `lora_A`.
//!
//! [`Direction`] is what the running task trains, [`PastDirections`] are the frozen ones of all
//! earlier tasks on the same site, their factors side by side.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::chunks::{ChunkLayout, Chunks};
use crate::error::CoreError;
use crate::gate::{Gate, GateForm};
use crate::site::Site;

/// What a direction is built of besides plain factors; nothing by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectionForm {
    /// A gate over the ranks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateForm>,
    /// Factors that are expanded from chunks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunks: Option<ChunkLayout>,
    /// Share of the inputs and outputs that a mask drops while the direction is trained (LoRA Dropout, Lin et al.
    /// 2024, arXiv 2404.09610), from 0 to below 1; elsewhere the direction counts `(1 − p)²`, the mean over masks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
}

impl DirectionForm {
    /// Checks that the settings make sense for a rank.
    ///
    /// # Errors
    ///
    /// [`CoreError::Setting`] for the first that does not.
    pub fn check(&self, rank: usize) -> Result<(), CoreError> {
        let refuse = |setting, found: String, expected| {
            Err(CoreError::Setting {
                setting,
                found,
                expected,
            })
        };
        if let Some(GateForm::Softmax { temperature }) = self.gate
            && !(temperature.is_finite() && temperature > 0.0)
        {
            let expected = "a finite number above 0";
            return refuse("gate.temperature", temperature.to_string(), expected);
        }
        if let Some(dropout) = self.dropout
            && !(0.0..1.0).contains(&dropout)
        {
            return refuse("dropout", dropout.to_string(), "a share from 0 to below 1");
        }
        let Some(layout) = self.chunks else {
            return Ok(());
        };
        let chunks = layout.n_input.min(layout.n_output);
        if chunks == 0 || layout.n_input.max(layout.n_output) > LARGEST_CHUNKING {
            let found = format!("{} and {}", layout.n_input, layout.n_output);
            return refuse("chunks", found, "from 1 to 4096 chunks of either factor");
        }
        if layout.unshared > rank {
            let expected = "at most the rank";
            return refuse("chunks.unshared", layout.unshared.to_string(), expected);
        }
        Ok(())
    }
}

/// Most chunks of a factor: each is an operation of its own.
const LARGEST_CHUNKING: usize = 4096;

/// The factors of the running task on one site; both are trained.
#[derive(Module, Debug)]
pub struct Direction {
    /// Down-projection `[d_input, rank]`; the chunk of it where there are [`chunks`](Self::chunks).
    pub a: Param<Tensor<2>>,
    /// Up-projection `[rank, d_output]`; the chunk of it where there are [`chunks`](Self::chunks).
    pub b: Param<Tensor<2>>,
    /// A factor for every rank.
    pub gate: Option<Gate>,
    /// How chunks become factors.
    pub chunks: Option<Chunks>,
    #[module(skip)]
    dropout: Option<f64>,
}

impl Direction {
    /// The start of a task: `a ~ U(±1/√d_input)` (Kaiming uniform with a = √5, as the published
    /// code draws it), `b = 0`, so the update is 0.
    pub fn init(
        d_input: usize,
        d_output: usize,
        rank: usize,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Self {
        let a = uniform(d_input * rank, d_input, rng);
        Self::from_factors(
            TensorData::new(a, [d_input, rank]),
            TensorData::zeros::<f32, _>([rank, d_output]),
            device,
        )
    }

    /// A direction with the given factors `a: [d_input, rank]` and `b: [rank, d_output]`.
    pub fn from_factors(a: TensorData, b: TensorData, device: &Device) -> Self {
        Self {
            a: Param::from_tensor(Tensor::from_data(a, device)),
            b: Param::from_tensor(Tensor::from_data(b, device)),
            gate: None,
            chunks: None,
            dropout: None,
        }
    }

    /// The start of a task with a direction of another form, on a site. Of a linear gate all values are 1, of one
    /// by softmax 0, so that it starts as the direction without.
    pub fn init_as(
        form: DirectionForm,
        site: &Site,
        rank: usize,
        rng: &mut impl Rng,
        device: &Device,
    ) -> Self {
        let mut draw = |n| uniform(n, site.d_input, rng);
        Self::built(form, site, rank, &mut draw, device)
    }

    /// A direction of zeros, to load a record into.
    pub(crate) fn zeros_as(form: DirectionForm, site: &Site, rank: usize, device: &Device) -> Self {
        Self::built(form, site, rank, &mut |n| vec![0.0; n], device)
    }

    fn built(
        form: DirectionForm,
        site: &Site,
        rank: usize,
        draw: &mut dyn FnMut(usize) -> Vec<f32>,
        device: &Device,
    ) -> Self {
        let sizes = [site.d_input, site.d_output];
        let layout = form.chunks;
        let chunked = layout.and_then(|layout| Chunks::init(sizes, rank, layout, draw, device));
        let mut direction = match chunked {
            None => Self::from_factors(
                TensorData::new(draw(site.d_input * rank), [site.d_input, rank]),
                TensorData::zeros::<f32, _>([rank, site.d_output]),
                device,
            ),
            Some((a, b, chunks)) => Self {
                chunks: Some(chunks),
                ..Self::from_factors(a, b, device)
            },
        };
        direction.gate = form.gate.map(|form| {
            let start = match form {
                GateForm::Linear => 1.0,
                GateForm::Softmax { .. } => 0.0,
            };
            Gate::new(vec![start; rank], form, device)
        });
        direction.dropout = form.dropout;
        direction
    }

    /// What it is built of.
    pub fn form(&self) -> DirectionForm {
        DirectionForm {
            gate: self.gate.as_ref().map(Gate::form),
            chunks: self.chunks.as_ref().map(Chunks::layout),
            dropout: self.dropout,
        }
    }

    /// Rank of the factors.
    pub fn rank(&self) -> usize {
        let [_, rank] = self.a.lazy_shape().dims();
        let chunks = self.chunks.as_ref();
        rank + chunks.map_or(0, |chunks| chunks.layout().unshared)
    }

    /// The factors `[d_input, rank]` and `[rank, d_output]` whose product is the direction: expanded, and the gate
    /// inside the first. Of a direction with dropout they are those without a mask.
    pub fn factors(&self) -> (Tensor<2>, Tensor<2>) {
        let (a, b) = (self.a.val(), self.b.val());
        let (a, b) = match &self.chunks {
            None => (a, b),
            Some(chunks) => chunks.expanded(a, b),
        };
        match &self.gate {
            None => (a, b),
            Some(gate) => (a * gate.factors(), b),
        }
    }

    /// [`factors`](Self::factors) under a mask that is drawn anew: rows of the first and columns of the second are
    /// dropped as whole ones, a rank never is. Without dropout nothing is drawn.
    pub fn masked_factors(&self, rng: &mut impl Rng) -> (Tensor<2>, Tensor<2>) {
        let (a, b) = self.factors();
        let Some(dropout) = self.dropout else {
            return (a, b);
        };
        let device = a.device();
        let ([d_input, _], [_, d_output]) = (a.dims(), b.dims());
        let mut mask = |n: usize| -> Vec<f32> {
            let kept = (0..n).map(|_| f32::from(u8::from(rng.random::<f64>() >= dropout)));
            kept.collect()
        };
        let rows = TensorData::new(mask(d_input), [d_input, 1]);
        let columns = TensorData::new(mask(d_output), [1, d_output]);
        (
            a * Tensor::from_data(rows, &device),
            b * Tensor::from_data(columns, &device),
        )
    }

    /// By how much the product of [`factors`](Self::factors) counts outside training: `(1 − p)²`, the mean of
    /// both masks, which are independent.
    pub fn mean_mask(&self) -> f64 {
        self.dropout.map_or(1.0, |p| (1.0 - p) * (1.0 - p))
    }

    /// `‖A B‖_F²` as a tensor `[1, 1]` that passes gradients to both factors.
    ///
    /// Uses `‖A B‖_F² = Σ (AᵀA) ⊙ (B Bᵀ)`, so no `[d_input, d_output]` matrix is formed.
    pub fn norm_squared(&self) -> Tensor<2> {
        let (a, b) = self.factors();
        let gram_a = a.clone().transpose().matmul(a);
        let gram_b = b.clone().matmul(b.transpose());
        (gram_a * gram_b).sum().reshape([1, 1])
    }

    /// Copies the direction to the host as plain factors: a gate is inside the first, the mean of masks in the second.
    pub fn to_host(&self) -> HostFactors {
        let (a, b) = self.factors();
        let mean = self.mean_mask() as f32;
        let mut factors = HostFactors::from_tensors(a, b);
        if mean != 1.0 {
            factors.b.iter_mut().for_each(|v| *v *= mean);
        }
        factors
    }
}

/// Numbers from U(±1/√fan_in).
pub(crate) fn uniform(n: usize, fan_in: usize, rng: &mut impl Rng) -> Vec<f32> {
    let bound = 1.0 / (fan_in as f32).sqrt();
    (0..n).map(|_| rng.random_range(-bound..bound)).collect()
}

/// The factors of one direction on the host, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct HostFactors {
    /// `[d_input, rank]`.
    pub a: Vec<f32>,
    /// `[rank, d_output]`.
    pub b: Vec<f32>,
    /// Rank of the factors.
    pub rank: usize,
}

impl HostFactors {
    fn from_tensors(a: Tensor<2>, b: Tensor<2>) -> Self {
        let [_, rank] = a.dims();
        Self {
            a: a.into_data().iter::<f32>().collect(),
            b: b.into_data().iter::<f32>().collect(),
            rank,
        }
    }

    /// `‖A‖_F · ‖B‖_F`, in double precision.
    pub fn factor_product_norm(&self) -> f64 {
        let norm = |values: &[f32]| {
            values
                .iter()
                .map(|&v| f64::from(v) * f64::from(v))
                .sum::<f64>()
                .sqrt()
        };
        norm(&self.a) * norm(&self.b)
    }

    /// `‖A B‖_F`, in double precision through the two `rank × rank` Gram matrices.
    pub fn frobenius_norm(&self) -> f64 {
        // Rounding can leave a tiny negative number where the product is 0.
        self.inner(self).max(0.0).sqrt()
    }

    /// `⟨A B, A' B'⟩_F = tr((AᵀA')(B' Bᵀ))` with the factors of `other`, which acts on the same site,
    /// in double precision; no `[d_input, d_output]` matrix is formed.
    ///
    /// # Panics
    ///
    /// If a rank is 0.
    pub fn inner(&self, other: &Self) -> f64 {
        let (n, m) = (self.rank, other.rank);
        let mut gram_a = vec![0.0f64; n * m];
        for (row, other) in self.a.chunks_exact(n).zip(other.a.chunks_exact(m)) {
            for i in 0..n {
                for j in 0..m {
                    gram_a[i * m + j] += f64::from(row[i]) * f64::from(other[j]);
                }
            }
        }
        let d_output = self.b.len() / n;
        let mut total = 0.0;
        for (i, row) in self.b.chunks_exact(d_output).enumerate() {
            for (j, other) in other.b.chunks_exact(d_output).enumerate() {
                let gram_b: f64 = row
                    .iter()
                    .zip(other)
                    .map(|(&x, &y)| f64::from(x) * f64::from(y))
                    .sum();
                total += gram_a[i * m + j] * gram_b;
            }
        }
        total
    }
}

/// A finished direction on one site, on the host: all that a file needs to have it back to the last bit.
#[derive(Debug, Clone, PartialEq)]
pub struct FinishedDirection {
    /// The factors as they were trained.
    pub factors: HostFactors,
    /// What the product is multiplied by, `1 / norm`; 0 where the norm was 0.
    pub inverse_norm: f32,
    /// What is added to the shared magnitude on this site alone.
    pub offset: f32,
}

/// The frozen directions of all finished tasks on one site, `n_tasks ≥ 1` of them.
///
/// The factors lie side by side, so all of them cost two products: `Σ_k α_k D_k` is
/// `(a · diag(α · spread)) · b`.
#[derive(Module, Debug)]
pub struct PastDirections {
    /// Down-projections `[d_input, Σ rank]`, as they were trained.
    pub a: Param<Tensor<2>>,
    /// Up-projections `[Σ rank, d_output]`, as they were trained.
    pub b: Param<Tensor<2>>,
    /// `[n_tasks, Σ rank]`: row k holds `1 / norm_k` at the columns of direction k, 0 elsewhere.
    pub spread: Param<Tensor<2>>,
    /// `[1, n_tasks]`: what is added to the shared magnitudes on this site alone, not trained; 0
    /// until a direction is absorbed ([`Adapter::absorb_current`](crate::Adapter::absorb_current)).
    pub offsets: Param<Tensor<2>>,
    #[module(skip)]
    ranks: Vec<usize>,
}

impl PastDirections {
    /// Puts directions side by side, each with the norm that divides it; all frozen.
    ///
    /// A direction whose norm is 0 was never trained: its product is 0 and stays 0 instead of
    /// becoming 0/0 as in the published code.
    ///
    /// # Panics
    ///
    /// If the lists are empty or of different length.
    pub fn from_host(factors: &[HostFactors], norms: &[f64], device: &Device) -> Self {
        assert!(
            !factors.is_empty() && factors.len() == norms.len(),
            "{} directions with {} norms",
            factors.len(),
            norms.len()
        );
        let inverse = |&norm: &f64| if norm > 0.0 { (1.0 / norm) as f32 } else { 0.0 };
        let directions = factors.iter().zip(norms.iter().map(inverse));
        let directions: Vec<_> = directions
            .map(|(factors, inverse_norm)| FinishedDirection {
                factors: factors.clone(),
                inverse_norm,
                offset: 0.0,
            })
            .collect();
        Self::from_finished(&directions, device)
    }

    /// Puts finished directions side by side, as [`finished`](Self::finished) took them apart.
    ///
    /// # Panics
    ///
    /// If the list is empty.
    pub fn from_finished(directions: &[FinishedDirection], device: &Device) -> Self {
        assert!(!directions.is_empty(), "at least one direction");
        let factors: Vec<&HostFactors> = directions.iter().map(|d| &d.factors).collect();
        let ranks: Vec<usize> = factors.iter().map(|f| f.rank).collect();
        let total: usize = ranks.iter().sum();
        let d_input = factors[0].a.len() / factors[0].rank;
        let d_output = factors[0].b.len() / factors[0].rank;

        let mut a = vec![0.0f32; d_input * total];
        let mut b = Vec::with_capacity(total * d_output);
        let mut spread = vec![0.0f32; ranks.len() * total];
        let mut first = 0;
        for (k, direction) in directions.iter().enumerate() {
            let f = &direction.factors;
            for (to, from) in a.chunks_exact_mut(total).zip(f.a.chunks_exact(f.rank)) {
                to[first..first + f.rank].copy_from_slice(from);
            }
            b.extend_from_slice(&f.b);
            let own = k * total + first..k * total + first + f.rank;
            spread[own].fill(direction.inverse_norm);
            first += f.rank;
        }
        let frozen = |values, shape| {
            Param::from_tensor(Tensor::<2>::from_data(
                TensorData::new(values, shape),
                device,
            ))
            .set_require_grad(false)
        };
        Self {
            a: frozen(a, [d_input, total]),
            b: frozen(b, [total, d_output]),
            spread: frozen(spread, [ranks.len(), total]),
            offsets: frozen(
                directions.iter().map(|d| d.offset).collect(),
                [1, ranks.len()],
            ),
            ranks,
        }
    }

    /// Takes the directions apart, in task order.
    pub fn finished(&self) -> Vec<FinishedDirection> {
        let scales = self.inverse_norms().into_iter().zip(self.offsets_host());
        let parts = self.to_host().into_iter().zip(scales);
        let whole = parts.map(|(factors, (inverse_norm, offset))| FinishedDirection {
            factors,
            inverse_norm: inverse_norm as f32,
            offset: offset as f32,
        });
        whole.collect()
    }

    /// These directions with the given offsets in front; later directions have none.
    pub(crate) fn with_offsets(mut self, offsets: &[f64], device: &Device) -> Self {
        let mut values: Vec<f32> = offsets.iter().map(|&v| v as f32).collect();
        values.resize(self.ranks.len(), 0.0);
        let data = TensorData::new(values, [1, self.ranks.len()]);
        self.offsets = Param::from_tensor(Tensor::from_data(data, device)).set_require_grad(false);
        self
    }

    /// The offset of each direction, in task order.
    pub fn offsets_host(&self) -> Vec<f64> {
        let values = self.offsets.val().into_data();
        values.iter::<f32>().map(f64::from).collect()
    }

    /// Rank of each direction, in task order.
    pub fn ranks(&self) -> &[usize] {
        &self.ranks
    }

    /// Copies every direction to the host, in task order.
    pub fn to_host(&self) -> Vec<HostFactors> {
        let total: usize = self.ranks.iter().sum();
        let a: Vec<f32> = self.a.val().into_data().iter::<f32>().collect();
        let b: Vec<f32> = self.b.val().into_data().iter::<f32>().collect();
        let d_output = b.len() / total;
        let mut first = 0;
        let mut out = Vec::with_capacity(self.ranks.len());
        for &rank in &self.ranks {
            out.push(HostFactors {
                a: a.chunks_exact(total)
                    .flat_map(|row| row[first..first + rank].iter().copied())
                    .collect(),
                b: b[first * d_output..(first + rank) * d_output].to_vec(),
                rank,
            });
            first += rank;
        }
        out
    }

    /// The factor `1 / norm_k` of each direction, in task order; 0 where the norm was 0.
    pub fn inverse_norms(&self) -> Vec<f64> {
        let total: usize = self.ranks.iter().sum();
        let spread: Vec<f32> = self.spread.val().into_data().iter::<f32>().collect();
        let mut first = 0;
        let mut out = Vec::with_capacity(self.ranks.len());
        for (k, &rank) in self.ranks.iter().enumerate() {
            out.push(f64::from(spread[k * total + first]));
            first += rank;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_testkit::test_device;

    fn factors() -> HostFactors {
        HostFactors {
            a: vec![1.0, 2.0, 0.0, 1.0, -1.0, 0.5],
            b: vec![2.0, 0.0, 1.0, -1.0],
            rank: 2,
        }
    }

    #[test]
    fn norms_agree_with_the_product_formed_by_hand() {
        // A B = [[1,2],[0,1],[-1,.5]] · [[2,0],[1,-1]] = [[4,-2],[1,-1],[-1.5,-.5]]
        let expected = (16.0 + 4.0 + 1.0 + 1.0 + 2.25 + 0.25f64).sqrt();
        assert!((factors().frobenius_norm() - expected).abs() < 1e-12);
        let product = (1.0 + 4.0 + 0.0 + 1.0 + 1.0 + 0.25f64).sqrt() * 6.0f64.sqrt();
        assert!((factors().factor_product_norm() - product).abs() < 1e-12);

        let device = test_device();
        let direction = Direction::from_factors(
            TensorData::new(factors().a, [3, 2]),
            TensorData::new(factors().b, [2, 2]),
            &device,
        );
        let squared: f32 = direction.norm_squared().into_scalar();
        assert!((f64::from(squared) - expected * expected).abs() < 1e-5);
    }

    #[test]
    fn inner_products_agree_with_the_products_formed_by_hand() {
        let other = HostFactors {
            a: vec![1.0, 0.0, 2.0],
            b: vec![3.0, -1.0],
            rank: 1,
        };
        // ⟨[[4,-2],[1,-1],[-1.5,-.5]], [[3,-1],[0,0],[6,-2]]⟩ = 12 + 2 - 9 + 1
        assert!((factors().inner(&other) - 6.0).abs() < 1e-12);
        assert!((other.inner(&factors()) - 6.0).abs() < 1e-12);
    }

    #[test]
    fn past_directions_come_back_as_they_went_in() {
        let other = HostFactors {
            a: vec![3.0, 4.0, 5.0],
            b: vec![6.0, 7.0],
            rank: 1,
        };
        let past =
            PastDirections::from_host(&[factors(), other.clone()], &[2.0, 0.0], &test_device());
        assert_eq!(past.ranks(), [2, 1]);
        assert_eq!(past.to_host(), vec![factors(), other]);
        assert_eq!(past.inverse_norms(), vec![0.5, 0.0]);
    }
}
