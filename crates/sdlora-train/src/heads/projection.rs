//! Random features: `max(0, P x)` with a Gaussian matrix `P` that is drawn once and never trained
//! (McDonnell et al. 2023, NeurIPS, "RanPAC", section 4.1).
//!
//! They hold products of features, so that a linear classifier of them draws curved borders.

use std::sync::Arc;

use super::normal::standard_normal;
use crate::draws::{Draw, generator};
use crate::export::HostTensor;
use crate::linalg::{View, add_product};

/// `P: [n, d_model]`, the same for a seed whatever the order of tasks; entries of variance
/// `1 / d_model`, so that random features are as large as features.
pub(super) fn draw(n: usize, d_model: usize, seed: u64) -> Arc<HostTensor> {
    let mut rng = generator(seed, Draw::Projection, 0);
    let deviation = 1.0 / (d_model.max(1) as f64).sqrt();
    let drawn = standard_normal(&mut rng, n * d_model);
    Arc::new(HostTensor {
        shape: vec![n, d_model],
        values: drawn.into_iter().map(|x| (x * deviation) as f32).collect(),
    })
}

/// Random features `[m, n]` of `rows: [m, d_model]`.
pub(super) fn random_features(projection: &HostTensor, rows: &[f32]) -> Vec<f32> {
    let &[n, d] = projection.shape.as_slice() else {
        return Vec::new();
    };
    let rows = View::rows(rows, d);
    let mut out = vec![0.0f32; rows.n_rows() * n];
    let columns = View::rows(&projection.values, d).transposed();
    add_product(&mut out, n, 1.0, rows, columns);
    out.iter_mut().for_each(|x| *x = x.max(0.0));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_features_by_hand() {
        let projection = HostTensor {
            shape: vec![3, 2],
            values: vec![1.0, 0.0, 0.0, -1.0, 1.0, 1.0],
        };
        let found = random_features(&projection, &[2.0, 3.0, -1.0, -4.0]);
        assert_eq!(found, [2.0, 0.0, 5.0, 0.0, 4.0, 0.0]);
    }

    #[test]
    fn a_projection_follows_from_its_seed_and_keeps_the_size_of_features() {
        let (n, d) = (400, 50);
        let projection = draw(n, d, 3);
        assert_eq!(projection, draw(n, d, 3));
        assert_ne!(projection, draw(n, d, 4));
        // Half of the squared products of unit variance, and features of ones.
        let found = random_features(&projection, &vec![1.0; d]);
        let mean: f32 = found.iter().map(|x| x * x).sum::<f32>() / n as f32;
        assert!((mean - 0.5).abs() < 0.1, "{mean}");
    }
}
