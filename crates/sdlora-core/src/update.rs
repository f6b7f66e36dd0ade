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

impl UpdateForm {
    /// `Dense` or `Factored` for `n_rows` input rows (batch × tokens).
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
            .map(|term| {
                // `a` carries a magnitude, so it is trained in every pair.
                let n_trained = 1 + usize::from(term.b.is_require_grad());
                n_trained * (term.rank() + THIN_COLUMNS)
            })
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
    fn a_named_form_is_kept() {
        let update = update(8, 3);
        for form in [UpdateForm::Dense, UpdateForm::Factored] {
            assert_eq!(form.resolve(9999, 8, &update), form);
        }
    }
}
