//! The update of one site, and the choice of the form in which it is computed.
//!
//! An update is a sum of factor pairs whose scales are already inside. It has a dense form, the
//! matrix `Σ a_i b_i` that is added to the frozen weight, and a factored form, two thin products
//! per pair in activation space. Both give the same numbers; [`UpdateForm::resolve`] is the one
//! place that chooses.

use burn::tensor::Tensor;

/// How an update is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UpdateForm {
    /// The cheaper one for the shapes at hand.
    #[default]
    Auto,
    /// `x (W0 + Σ a b)`: the cost per step does not depend on the number of rows, so it is
    /// constant in the number of tasks for all practical ranks.
    Dense,
    /// `x W0 + Σ (x a) b`.
    Factored,
}

/// Time of a thin product per multiplication, relative to a square one.
///
/// Thin products of rank 10 to 20 reached a third to a fifth of the rate of square ones (burn-flex
/// 0.22.1, AVX-512, two threads).
const THIN_PENALTY: usize = 4;

impl UpdateForm {
    /// `Dense` or `Factored` for `n_rows` input rows (batch × tokens).
    ///
    /// Counts the multiplications of forward and backward. Dense pays once per step for forming
    /// the update and for the two products of its backward, and a weight gradient over all rows;
    /// factored pays three thin products over all rows.
    pub fn resolve(self, n_rows: usize, d_input: usize, d_output: usize, rank: usize) -> Self {
        match self {
            Self::Auto => {
                let dense = n_rows * d_input * d_output + 3 * rank * d_input * d_output;
                let factored = 3 * n_rows * rank * (d_input + d_output) * THIN_PENALTY;
                if factored < dense {
                    Self::Factored
                } else {
                    Self::Dense
                }
            }
            form => form,
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

/// The update of one site: `ΔW = Σ a_i b_i`, at least one pair.
#[derive(Debug, Clone)]
pub struct Update {
    terms: Vec<ScaledFactors>,
}

impl Update {
    /// An update of these pairs.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn new(terms: Vec<ScaledFactors>) -> Self {
        assert!(
            !terms.is_empty(),
            "an update has at least one pair of factors"
        );
        Self { terms }
    }

    /// The pairs.
    pub fn terms(&self) -> &[ScaledFactors] {
        &self.terms
    }

    /// Sum of the ranks.
    pub fn rank(&self) -> usize {
        self.terms.iter().map(|t| t.a.dims()[1]).sum()
    }

    /// Output width.
    pub fn d_output(&self) -> usize {
        self.terms[0].b.dims()[1]
    }

    /// The dense form `[d_input, d_output]`.
    pub fn dense(&self) -> Tensor<2> {
        self.terms
            .iter()
            .map(|t| t.a.clone().matmul(t.b.clone()))
            .reduce(|sum, term| sum + term)
            .expect("an update has at least one pair of factors")
    }

    /// The factored form applied to rows `x: [n_rows, d_input]`, giving `[n_rows, d_output]`.
    pub fn apply(&self, x: Tensor<2>) -> Tensor<2> {
        self.terms
            .iter()
            .map(|t| x.clone().matmul(t.a.clone()).matmul(t.b.clone()))
            .reduce(|sum, term| sum + term)
            .expect("an update has at least one pair of factors")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_or_a_thin_update_are_factored_many_tasks_are_dense() {
        let form = |rows, d, rank| UpdateForm::Auto.resolve(rows, d, d, rank);
        // ViT-B/16 at batch 8: one task is cheaper in activation space, twenty are not.
        assert_eq!(form(1576, 768, 10), UpdateForm::Factored);
        assert_eq!(form(1576, 768, 200), UpdateForm::Dense);
        // A small model is dense from the first task.
        assert_eq!(form(2080, 192, 10), UpdateForm::Dense);
    }

    #[test]
    fn a_named_form_is_kept() {
        assert_eq!(UpdateForm::Dense.resolve(1, 768, 768, 1), UpdateForm::Dense);
        assert_eq!(
            UpdateForm::Factored.resolve(9999, 8, 8, 8),
            UpdateForm::Factored
        );
    }
}
