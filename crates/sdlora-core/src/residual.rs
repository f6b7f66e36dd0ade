//! What is new in a direction: its part outside the span of the earlier ones (paper, section 3).
//!
//! `e_t = min_c ‖D_t − Σ_{k<t} c_k D_k‖_F / ‖D_t‖_F`, from 0 (nothing new) to 1 (orthogonal). With the
//! Gram matrix `G_ij = ⟨D_i, D_j⟩_F` and its factorisation `G = L diag(p) Lᵀ` the square of the
//! residual is the pivot `p_t`, so all residuals of a site come from one factorisation of a
//! `n_tasks × n_tasks` matrix, whose entries come from `rank × rank` products.

use crate::adapter::{Adapter, SiteDirections};
use crate::direction::{Direction, HostFactors};

/// The residual of each direction on the span of those before it, in order; 1 for the first, 0 for
/// one that is 0. All act on the same site.
pub fn span_residuals(directions: &[HostFactors]) -> Vec<f64> {
    let n = directions.len();
    let mut gram = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            gram[i * n + j] = directions[i].inner(&directions[j]);
        }
    }
    residuals_of_gram(gram, n)
}

/// The same from the lower triangle of a Gram matrix `[n, n]`.
fn residuals_of_gram(mut gram: Vec<f64>, n: usize) -> Vec<f64> {
    // Rows of unit length: directions of very different size keep their digits.
    let lengths: Vec<f64> = (0..n).map(|i| gram[i * n + i].max(0.0).sqrt()).collect();
    for i in 0..n {
        for j in 0..=i {
            let scale = lengths[i] * lengths[j];
            gram[i * n + j] = match scale > 0.0 {
                true if i == j => 1.0,
                true => gram[i * n + j] / scale,
                false => 0.0,
            };
        }
    }
    let mut pivots = vec![0.0f64; n];
    for j in 0..n {
        // Row j of L times the pivots, column by column; what is left of the diagonal is the pivot.
        let mut pivot = gram[j * n + j];
        for k in 0..j {
            let mut left = gram[j * n + k];
            for i in 0..k {
                left -= gram[j * n + i] * gram[k * n + i] * pivots[i];
            }
            let entry = if pivots[k] > SPANNED {
                left / pivots[k]
            } else {
                0.0
            };
            gram[j * n + k] = entry;
            pivot -= entry * entry * pivots[k];
        }
        pivots[j] = pivot.max(0.0);
    }
    pivots.into_iter().map(f64::sqrt).collect()
}

/// Squares of residuals below this are rounding: the direction lies in the span.
const SPANNED: f64 = 1e-12;

impl Adapter {
    /// [`span_residuals`] of every site in the order of the sites, the running direction last;
    /// empty without directions.
    pub fn span_residuals(&self) -> Vec<Vec<f64>> {
        self.sites
            .iter()
            .map(|site| {
                let past = site.past.as_ref().map_or(Vec::new(), |past| past.to_host());
                let current = site.current.as_ref().map(Direction::to_host);
                let all: Vec<HostFactors> = past.into_iter().chain(current).collect();
                span_residuals(&all)
            })
            .collect()
    }

    /// The residual of the running direction on the earlier ones, mean over the sites; `None` when
    /// there is no running direction or no earlier one.
    pub fn current_residual(&self) -> Option<f64> {
        let has_both = |site: &SiteDirections| site.past.is_some() && site.current.is_some();
        if self.sites.is_empty() || !self.sites.iter().all(has_both) {
            return None;
        }
        let residuals = self.span_residuals();
        let last = residuals.iter().filter_map(|site| site.last());
        Some(last.sum::<f64>() / residuals.len() as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The 2 x 2 matrix of rank 1 `[x, y]ᵀ [z, w]`.
    fn outer(a: [f32; 2], b: [f32; 2]) -> HostFactors {
        HostFactors {
            a: a.to_vec(),
            b: b.to_vec(),
            rank: 1,
        }
    }

    #[test]
    fn residuals_by_hand() {
        let e11 = outer([1.0, 0.0], [1.0, 0.0]);
        let e12 = outer([1.0, 0.0], [0.0, 3.0]);
        // Between the first two, at 45 degrees to both: nothing of it is new.
        let both = outer([2.0, 0.0], [1.0, 1.0]);
        // [1, 1]ᵀ [1, 0]: half of its square lies along e11.
        let half = outer([1.0, 1.0], [1.0, 0.0]);
        let found = span_residuals(&[e11.clone(), e12, both, half]);
        let expected = [1.0, 1.0, 0.0, 0.5f64.sqrt()];
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-7, "{found} {expected}");
        }
        // The first again at another length, and a direction that was never trained.
        let zero = outer([1.0, 2.0], [0.0, 0.0]);
        assert_eq!(
            span_residuals(&[e11, zero.clone(), outer([1e4, 0.0], [1e4, 0.0])]),
            [1.0, 0.0, 0.0]
        );
        assert_eq!(span_residuals(&[zero]), [0.0]);
        assert!(span_residuals(&[]).is_empty());
    }

    #[test]
    fn the_size_of_a_direction_does_not_count() {
        let x = [
            outer([1.0, 2.0], [0.5, 1.0]),
            outer([0.3, 1.0], [1.0, -1.0]),
        ];
        let y = [
            outer([1e-3, 2e-3], [0.5, 1.0]),
            outer([300.0, 1000.0], [1.0, -1.0]),
        ];
        let (x, y) = (span_residuals(&x)[1], span_residuals(&y)[1]);
        assert!(x > 0.1 && x < 1.0 && (x - y).abs() < 1e-6, "{x} {y}");
    }
}
