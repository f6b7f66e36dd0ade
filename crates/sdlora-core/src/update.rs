//! The update of one site, and the choice of the form in which it is computed.
//!
//! An update is a sum of factor pairs whose scales are already inside. It has a dense form, the
//! matrix `Σ a_i b_i` that is added to the frozen weight, and a factored form, two thin products
//! per pair in activation space. Both give the same numbers; [`UpdateForm::resolve`] is the one
//! place that chooses.

use burn::tensor::{Int, Tensor};

/// How an update is computed.
///
/// Where the kernels are fused the forward pass is the dense one in any case, a single product,
/// and the form says how the gradients of the factors are computed; elsewhere it says both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UpdateForm {
    /// The cheaper one for the shapes at hand.
    #[default]
    Auto,
    /// `x (W0 + Σ a b)`, gradients through the weight's: hardly any cost per rank, hence constant
    /// in the number of tasks.
    Dense,
    /// `x W0 + Σ (x a) b`, gradients through the rows: the cheaper one while the ranks are small.
    Factored,
}

/// What a thin product costs beyond its multiplications, as columns more.
///
/// Measured: a product with 10, 20, 50 and 100 columns runs at 0.55, 0.6, 0.8 and 0.9 of the rate of
/// a square one (`gemm` 0.19 with AVX-512; 2080 rows of 192 and 1576 of 768).
const THIN_COLUMNS: usize = 8;

/// Multiplications that a device with kernels of its own does while it moves one number of 4 bytes.
///
/// From data sheets, not measured here: 28 for an H200 (67 TFLOP/s in `f32`, 4.8 TB/s), 40 for an H100 (3.35 TB/s).
const PER_NUMBER: usize = 32;
/// Numbers that it could move while one kernel is launched: 3.5 µs at 4.8 TB/s, an assumption.
const PER_LAUNCH: usize = 1 << 22;

/// What a form does in a training step, forward and backward, for one update.
///
/// Only tensors with a row for every token are counted as moved, and of a packed projection the update's share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Work {
    /// Multiplications.
    products: usize,
    /// Numbers read or written.
    moved: usize,
    /// Kernels.
    launches: usize,
}

impl Work {
    /// Dense: the pairs are multiplied and joined at the size of the weight; the backward pass reads `x` and `dy` once
    /// for the gradient of the whole weight.
    fn dense(n_rows: usize, [d_input, share]: [usize; 2], update: &Update) -> Self {
        let n_terms = update.terms.len();
        let weight = d_input * update.d_output();
        let small: usize = update
            .terms
            .iter()
            .map(|term| (2 + n_trained(term)) * term.rank() * weight)
            .sum();
        Self {
            products: n_rows * d_input * share + small,
            moved: n_rows * (d_input + share),
            // Forward: a product a pair, their sum, joined with zeros (2) and added. Backward: the gradient of the
            // weight, the update's columns of it, and one product a factor.
            launches: 2 * n_terms - 1
                + 2
                + 1
                + 2
                + update.terms.iter().map(n_trained).sum::<usize>(),
        }
    }

    /// Factored: every pair reads `x` and writes a block of columns; the blocks are joined and added once.
    fn factored(n_rows: usize, [d_input, share]: [usize; 2], update: &Update) -> Self {
        let d_output = update.d_output();
        let n_terms = update.terms.len();
        let mut work = Self {
            products: 0,
            // The sum of the pairs' blocks; the block, what it is joined to, and the addition to `y`; the update's
            // columns of `dy`.
            moved: n_rows * (3 * d_output * (n_terms - 1) + d_output + 4 * share + 2 * d_output),
            launches: n_terms - 1 + 2 + 1 + 1,
        };
        for term in &update.terms {
            let rank = term.rank();
            let is_b_trained = n_trained(term) - 1;
            // Forward `x a` and `(x a) b`; backward `dy bᵀ`, `xᵀ (dy bᵀ)`, `(dy bᵀ) aᵀ`, and `(x a)ᵀ dy`.
            work.products += n_rows * rank * (3 * d_input + (2 + is_b_trained) * d_output);
            work.moved += n_rows * (2 * rank + d_input + d_output);
            // The last of these is added to the gradient of `x`, which reads two and writes one.
            work.moved += n_rows * (3 * rank + 5 * d_input + d_output);
            work.moved += is_b_trained * n_rows * (rank + d_output);
            work.launches += 2 + 4 + is_b_trained;
        }
        work
    }

    fn cost(self) -> usize {
        self.products + PER_NUMBER * (self.moved + PER_LAUNCH * self.launches)
    }
}

/// Factors of a pair that are trained: `a` carries a magnitude, so it always is.
fn n_trained(term: &ScaledFactors) -> usize {
    1 + usize::from(term.b.is_require_grad())
}

impl UpdateForm {
    /// `Dense` or `Factored` where nothing is fused and every step of the formula is a kernel: by multiplications,
    /// numbers moved and launches. `share` is the width of the weight that counts for this update, the packed width by
    /// the number of updates. Without autodiff there is no gradient that the dense form would have to pay for.
    pub(crate) fn resolve_unfused(
        self,
        n_rows: usize,
        sizes: [usize; 2],
        update: &Update,
        is_autodiff: bool,
    ) -> Self {
        if self != Self::Auto {
            return self;
        }
        let is_factored = is_autodiff
            && !update.terms.is_empty()
            && Work::factored(n_rows, sizes, update).cost()
                < Work::dense(n_rows, sizes, update).cost();
        match is_factored {
            true => Self::Factored,
            false => Self::Dense,
        }
    }

    /// `Dense` or `Factored` for `n_rows` input rows (batch × tokens) where the operations are fused, as on `flex`.
    ///
    /// Counts the multiplications of the backward pass. Dense pays a weight gradient over all rows,
    /// once for all pairs, and one thin product with it for each trained factor; factored pays two
    /// thin products over all rows for each.
    pub fn resolve(self, n_rows: usize, d_input: usize, update: &Update) -> Self {
        if self != Self::Auto {
            return self;
        }
        let d_output = update.d_output();
        // What is merged gets no gradient, so it costs neither form more than the other.
        let columns: usize = update
            .terms
            .iter()
            .map(|term| n_trained(term) * (term.rank() + THIN_COLUMNS))
            .sum();
        let dense = n_rows * d_input * d_output + columns * d_input * d_output;
        let factored = columns * n_rows * (d_input + d_output);
        if factored < dense {
            Self::Factored
        } else {
            Self::Dense
        }
    }
}

/// One pair of factors with its scale inside `a`.
#[derive(Debug, Clone)]
pub struct ScaledFactors {
    /// `[d_input, rank]`, columns scaled by magnitude and norm.
    pub a: Tensor<2>,
    /// `[rank, d_output]`.
    pub b: Tensor<2>,
}

impl ScaledFactors {
    /// Number of columns of `a`.
    pub fn rank(&self) -> usize {
        let [_, rank] = self.a.dims();
        rank
    }
}

/// A pair of factors that counts differently for every image of a batch: `x_i a diag(gate_i) b` for image i.
///
/// It has no weight of its own, so it is always computed in the factored form, and nothing merges it.
#[derive(Debug, Clone)]
pub struct GatedFactors {
    /// The pair.
    pub factors: ScaledFactors,
    /// What the columns of `a` count for every image, `[batch, rank]`; a batch of 1 serves every image.
    pub gate: Tensor<2>,
}

/// The rows of a batch, images times tokens, whose gradient goes through an update; the others add the same numbers and
/// pass none.
///
/// With rows that are drawn with probability p and a scale of 1/p the gradients are unbiased, as long as every site
/// draws for itself. Of the rows that are left out nothing is kept for the backward pass.
#[derive(Debug, Clone)]
pub struct KeptRows {
    /// The rows `[n_kept]`, at least one.
    pub rows: Tensor<1, Int>,
    /// What their gradient is multiplied by, `[n_kept, 1]`.
    pub scale: Tensor<2>,
}

/// The update of one site: `ΔW = M + Σ a_i b_i` with at least one pair, or an accumulated update M; besides, pairs that
/// count differently for every image.
#[derive(Debug, Clone)]
pub struct Update {
    terms: Vec<ScaledFactors>,
    /// `[d_input, d_output]`, frozen.
    merged: Option<Tensor<2>>,
    by_image: Vec<GatedFactors>,
    kept_rows: Option<KeptRows>,
}

impl Update {
    /// An update of these pairs.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn new(terms: Vec<ScaledFactors>) -> Self {
        Self::of(terms, None).expect("an update has at least one pair of factors")
    }

    /// An update of these pairs and of an accumulated one `[d_input, d_output]` that gets no gradient; `None`
    /// where there is neither.
    pub fn of(terms: Vec<ScaledFactors>, merged: Option<Tensor<2>>) -> Option<Self> {
        let is_empty = terms.is_empty() && merged.is_none();
        (!is_empty).then_some(Self {
            terms,
            merged,
            by_image: Vec::new(),
            kept_rows: None,
        })
    }

    /// An update of a pair that counts differently for every image, and of nothing else.
    pub fn of_images(gated: GatedFactors) -> Self {
        Self {
            terms: Vec::new(),
            merged: None,
            by_image: vec![gated],
            kept_rows: None,
        }
    }

    /// This update with another pair that counts differently for every image.
    #[must_use]
    pub fn with_gated(mut self, gated: GatedFactors) -> Self {
        self.by_image.push(gated);
        self
    }

    /// This update with a gradient through these rows of the batch only.
    #[must_use]
    pub fn with_kept_rows(mut self, kept_rows: KeptRows) -> Self {
        self.kept_rows = Some(kept_rows);
        self
    }

    /// The rows whose gradient goes through the pairs; all where it is `None`.
    pub fn kept_rows(&self) -> Option<&KeptRows> {
        self.kept_rows.as_ref()
    }

    /// The pairs that count differently for every image.
    pub fn by_image(&self) -> &[GatedFactors] {
        &self.by_image
    }

    /// The pairs.
    pub fn terms(&self) -> &[ScaledFactors] {
        &self.terms
    }

    /// The accumulated update `[d_input, d_output]` of directions that were merged.
    pub fn merged(&self) -> Option<&Tensor<2>> {
        self.merged.as_ref()
    }

    /// Sum of the ranks.
    pub fn rank(&self) -> usize {
        self.terms.iter().map(ScaledFactors::rank).sum()
    }

    /// Output width.
    pub fn d_output(&self) -> usize {
        let gated = self.by_image.first().map(|gated| &gated.factors);
        match (self.terms.first().or(gated), &self.merged) {
            (Some(term), _) => term.b.dims()[1],
            (None, Some(merged)) => merged.dims()[1],
            (None, None) => 0,
        }
    }

    /// The dense form `[d_input, d_output]` of what counts the same for every image; zeros where that is nothing.
    pub fn dense(&self) -> Tensor<2> {
        let dense = self
            .terms
            .iter()
            .map(|t| t.a.clone().matmul(t.b.clone()))
            .chain(self.merged.clone())
            .reduce(|sum, term| sum + term);
        dense.unwrap_or_else(|| {
            let factors = &self.by_image[0].factors;
            let ([d_input, _], [_, d_output]) = (factors.a.dims(), factors.b.dims());
            Tensor::zeros([d_input, d_output], &factors.a.device())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_testkit::test_device_autodiff;

    /// A past pair of the given rank, frozen, and one of rank 10 in training.
    fn update(d: usize, n_past: usize) -> Update {
        let device = test_device_autodiff();
        let pair = |rank, trained| ScaledFactors {
            a: Tensor::ones([d, rank], &device),
            b: Tensor::ones([rank, d], &device).set_require_grad(trained),
        };
        let mut terms = vec![pair(10, true)];
        if n_past > 0 {
            terms.insert(0, pair(10 * n_past, false));
        }
        Update::new(terms)
    }

    #[test]
    fn small_ranks_go_through_the_rows_and_large_ones_through_the_weight() {
        let form = |rows, d, n_past| UpdateForm::Auto.resolve(rows, d, &update(d, n_past));
        // ViT-B/16 at batch 8.
        assert_eq!(form(1576, 768, 0), UpdateForm::Factored);
        assert_eq!(form(1576, 768, 20), UpdateForm::Factored);
        assert_eq!(form(1576, 768, 100), UpdateForm::Dense);
        // A small model at batch 32 of 65 tokens.
        assert_eq!(form(2080, 192, 0), UpdateForm::Factored);
        assert_eq!(form(2080, 192, 10), UpdateForm::Dense);
        // One image: a gradient of the whole weight never pays.
        assert_eq!(form(197, 768, 10), UpdateForm::Factored);
    }

    #[test]
    fn where_every_step_is_a_kernel_the_bytes_and_launches_of_both_forms_decide() {
        // ViT-B/16 at batch 128: half of the packed width counts for each of query and value.
        let (n, sizes) = (128 * 197, [768, 1152]);
        let first = Work::factored(n, sizes, &update(768, 0));
        assert_eq!((first.moved, first.launches), (n * 13_884, 11));
        let first = Work::dense(n, sizes, &update(768, 0));
        assert_eq!((first.moved, first.launches), (n * 1_920, 8));
        let form = |n, sizes: [usize; 2], n_past| {
            UpdateForm::Auto.resolve_unfused(n, sizes, &update(sizes[0], n_past), true)
        };
        for n_past in [0, 3] {
            assert_eq!(form(n, sizes, n_past), UpdateForm::Factored, "{n_past}");
        }
        for n_past in [5, 20, 34] {
            assert_eq!(form(n, sizes, n_past), UpdateForm::Dense, "{n_past}");
            let fused = UpdateForm::Auto.resolve(n, 768, &update(768, n_past));
            assert_eq!(fused, UpdateForm::Factored, "{n_past}");
        }
        // A small model is bound by its launches.
        assert_eq!(form(2080, [192, 288], 0), UpdateForm::Dense);
        // Nothing is trained: one product.
        let plain = UpdateForm::Auto.resolve_unfused(n, sizes, &update(768, 0), false);
        assert_eq!(plain, UpdateForm::Dense);
    }

    #[test]
    fn a_named_form_is_kept() {
        let update = update(8, 3);
        for form in [UpdateForm::Dense, UpdateForm::Factored] {
            assert_eq!(form.resolve(9999, 8, &update), form);
            assert_eq!(form.resolve_unfused(9999, [8, 8], &update, true), form);
        }
    }
}
