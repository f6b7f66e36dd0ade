//! Standard normal numbers from a generator, the same on every machine and backend.

use rand::{Rng, RngExt};
use rand_distr::StandardNormal;

/// `n` independent numbers of mean 0 and variance 1, in pairs by the transform of Box and Muller
/// (1958).
pub(super) fn standard_normal(rng: &mut impl Rng, n: usize) -> Vec<f64> {
    let mut out = Vec::with_capacity(n + 1);
    while out.len() < n {
        // From (0, 1], so that the logarithm is finite.
        let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
        let (sine, cosine) = (std::f64::consts::TAU * rng.random::<f64>()).sin_cos();
        out.extend([radius * cosine, radius * sine]);
    }
    out.truncate(n);
    out
}

/// Fills a slice with independent numbers of mean 0 and variance 1 by the ziggurat method, which needs no
/// logarithm for most of them. [`standard_normal`] stays for what is drawn once: its draws are part of runs.
pub(super) fn fill_normal(rng: &mut impl Rng, out: &mut [f32]) {
    out.iter_mut().for_each(|x| *x = rng.sample(StandardNormal));
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn moments_are_those_of_the_normal_distribution() {
        let n = 40_001;
        let drawn = standard_normal(&mut ChaCha8Rng::seed_from_u64(1), n);
        assert_eq!(drawn.len(), n);
        let mut filled = vec![0.0f32; n];
        fill_normal(&mut ChaCha8Rng::seed_from_u64(1), &mut filled);
        let filled: Vec<f64> = filled.into_iter().map(f64::from).collect();
        for drawn in [drawn, filled] {
            are_normal(&drawn);
        }
    }

    fn are_normal(drawn: &[f64]) {
        let n = drawn.len();
        let moment = |power: i32| drawn.iter().map(|x| x.powi(power)).sum::<f64>() / n as f64;
        // Of standard error 0.005, 0.007, 0.02 and 0.05.
        for (power, expected, tolerance) in [
            (1, 0.0, 0.02),
            (2, 1.0, 0.03),
            (3, 0.0, 0.08),
            (4, 3.0, 0.2),
        ] {
            let found = moment(power);
            assert!((found - expected).abs() < tolerance, "{power}: {found}");
        }
        let pairs = drawn.chunks_exact(2).map(|pair| pair[0] * pair[1]);
        assert!((pairs.sum::<f64>() / (n / 2) as f64).abs() < 0.03);
    }
}
