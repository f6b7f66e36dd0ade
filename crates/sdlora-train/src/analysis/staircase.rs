//! Theorem 1 of the paper on a synthetic problem: gradient descent on a low-rank factorisation finds
//! the singular values of its target one after another, the largest first.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::TrainError;
use crate::linalg::{View, add_product};

/// The problem `min ½‖A B − M‖_F²` with `A: [d, rank]`, `B: [rank, d]`.
#[derive(Debug, Clone, PartialEq)]
pub struct StaircaseConfig {
    /// Side of the square target, at least the number of singular values.
    pub d: usize,
    /// Singular values of the target, descending and greater than 0; their number is its rank and
    /// that of the factors.
    pub singular_values: Vec<f64>,
    /// Size of the entries of both factors at the start; small makes the steps sharp.
    pub start: f64,
    /// Learning rate; stable below about `1 / (2 · largest singular value)`.
    pub lr: f64,
    /// Steps of gradient descent.
    pub n_steps: usize,
    /// Steps between two records.
    pub record_every: usize,
    /// Seed of target and start.
    pub seed: u64,
}

impl Default for StaircaseConfig {
    /// A target of 16 x 16 with four singular values.
    fn default() -> Self {
        Self {
            d: 16,
            singular_values: vec![8.0, 4.0, 2.0, 1.0],
            start: 1e-3,
            lr: 0.01,
            n_steps: 2000,
            record_every: 5,
            seed: 0,
        }
    }
}

/// What gradient descent did.
#[derive(Debug, Clone, PartialEq)]
pub struct Staircase {
    /// The steps that were recorded, from 0.
    pub steps: Vec<usize>,
    /// Singular values of `A B` at each of them, descending.
    pub values: Vec<Vec<f64>>,
    /// First recorded step at which each value is at least half of the target's; `None` if never.
    pub half_steps: Vec<Option<usize>>,
}

impl Staircase {
    /// Whether every value was reached, each strictly later than the one before.
    pub fn is_in_order(&self) -> bool {
        self.half_steps.iter().all(Option::is_some)
            && self.half_steps.windows(2).all(|pair| pair[0] < pair[1])
    }
}

/// Solves the problem by gradient descent, in double precision.
///
/// # Errors
///
/// [`TrainError::Setting`] for values that pose no such problem.
pub fn staircase(config: &StaircaseConfig) -> Result<Staircase, TrainError> {
    let (d, rank) = (config.d, config.singular_values.len());
    let is_descending = config.singular_values.windows(2).all(|p| p[0] >= p[1]);
    let last = config.singular_values.last().copied().unwrap_or(0.0);
    if rank == 0 || rank > d || !is_descending || last <= 0.0 || config.record_every == 0 {
        return Err(TrainError::setting(
            "staircase",
            format!("{config:?}"),
            "1 to d descending positive singular values, recorded every 1 or more steps",
        ));
    }
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let (u, v) = (
        orthonormal(d, rank, &mut rng),
        orthonormal(d, rank, &mut rng),
    );
    let mut target = vec![0.0; d * d];
    for (k, &value) in config.singular_values.iter().enumerate() {
        for i in 0..d {
            for j in 0..d {
                target[i * d + j] += value * u[k][i] * v[k][j];
            }
        }
    }
    let mut draw = |n: usize| -> Vec<f64> {
        (0..n)
            .map(|_| rng.random_range(-config.start..config.start))
            .collect()
    };
    let (mut a, mut b) = (draw(d * rank), draw(rank * d));
    let mut found = Staircase {
        steps: Vec::new(),
        values: Vec::new(),
        half_steps: vec![None; rank],
    };
    for step in 0..=config.n_steps {
        if step % config.record_every == 0 {
            let values = singular_values(&a, &b, d, rank);
            for ((half, &value), &goal) in found
                .half_steps
                .iter_mut()
                .zip(&values)
                .zip(&config.singular_values)
            {
                if half.is_none() && value >= 0.5 * goal {
                    *half = Some(step);
                }
            }
            found.steps.push(step);
            found.values.push(values);
        }
        // ∂/∂A = E Bᵀ and ∂/∂B = Aᵀ E with E = A B − M.
        let mut error: Vec<f64> = target.iter().map(|m| -m).collect();
        add_product(&mut error, d, 1.0, View::rows(&a, rank), View::rows(&b, d));
        let error = View::rows(&error, d);
        let mut next_b = b.clone();
        let a_transposed = View::rows(&a, rank).transposed();
        add_product(&mut next_b, d, -config.lr, a_transposed, error);
        let b_transposed = View::rows(&b, d).transposed();
        add_product(&mut a, rank, -config.lr, error, b_transposed);
        b = next_b;
    }
    Ok(found)
}

/// Orthonormal vectors of length `d`, by Gram-Schmidt applied twice.
fn orthonormal(d: usize, n: usize, rng: &mut impl Rng) -> Vec<Vec<f64>> {
    let mut basis: Vec<Vec<f64>> = Vec::with_capacity(n);
    while basis.len() < n {
        let mut x: Vec<f64> = (0..d).map(|_| rng.random_range(-1.0..1.0)).collect();
        for _ in 0..2 {
            for e in &basis {
                let inner: f64 = x.iter().zip(e).map(|(x, e)| x * e).sum();
                x.iter_mut().zip(e).for_each(|(x, e)| *x -= inner * e);
            }
        }
        let length = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        // A draw inside the span of the others is drawn again.
        if length > 1e-6 {
            basis.push(x.into_iter().map(|x| x / length).collect());
        }
    }
    basis
}

/// The `rank` largest singular values of `A B`, descending, by one-sided Jacobi rotations on its
/// columns: exact to rounding also for the small ones.
fn singular_values(a: &[f64], b: &[f64], d: usize, rank: usize) -> Vec<f64> {
    let mut product = vec![0.0; d * d];
    let (a, b) = (View::rows(a, rank), View::rows(b, d));
    add_product(&mut product, d, 1.0, b.transposed(), a.transposed());
    let mut columns: Vec<Vec<f64>> = product.chunks_exact(d).map(<[f64]>::to_vec).collect();
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    // Six sweeps bring 16 columns to rounding; more are only a bound.
    for _ in 0..30 {
        let mut is_orthogonal = true;
        for i in 0..d {
            for j in i + 1..d {
                let (x, y) = (dot(&columns[i], &columns[i]), dot(&columns[j], &columns[j]));
                let cross = dot(&columns[i], &columns[j]);
                if cross.abs() <= 1e-14 * (x * y).sqrt() || cross == 0.0 {
                    continue;
                }
                is_orthogonal = false;
                let tau = (y - x) / (2.0 * cross);
                let t = tau.signum() / (tau.abs() + tau.hypot(1.0));
                let (cos, sin) = (1.0 / t.hypot(1.0), t / t.hypot(1.0));
                let (left, right) = columns.split_at_mut(j);
                for (p, q) in left[i].iter_mut().zip(&mut right[0]) {
                    (*p, *q) = (cos * *p - sin * *q, sin * *p + cos * *q);
                }
            }
        }
        if is_orthogonal {
            break;
        }
    }
    let mut values: Vec<f64> = columns.iter().map(|c| dot(c, c).sqrt()).collect();
    values.sort_by(|x, y| y.total_cmp(x));
    values.truncate(rank);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn singular_values_by_hand() {
        // [[3, 0], [4, 5]] has the singular values √45 and √5.
        let found = singular_values(&[3.0, 0.0, 4.0, 5.0], &[1.0, 0.0, 0.0, 1.0], 2, 2);
        assert!((found[0] - 45f64.sqrt()).abs() < 1e-12, "{found:?}");
        assert!((found[1] - 5f64.sqrt()).abs() < 1e-12, "{found:?}");
    }

    #[test]
    fn values_appear_in_order_and_reach_the_target() {
        let config = StaircaseConfig::default();
        let found = staircase(&config).unwrap();
        assert!(found.is_in_order(), "{:?}", found.half_steps);
        let last = found.values.last().unwrap();
        for (value, goal) in last.iter().zip(&config.singular_values) {
            assert!((value - goal).abs() < 1e-3, "{last:?}");
        }
        assert!(found.values[0][0] < 1e-3, "it starts near 0");
    }

    #[test]
    fn a_large_start_makes_no_staircase() {
        let config = StaircaseConfig {
            start: 2.0,
            singular_values: vec![2.0, 1.9, 1.8, 1.7],
            ..StaircaseConfig::default()
        };
        assert!(!staircase(&config).unwrap().is_in_order());
    }

    #[test]
    fn values_that_pose_no_problem_are_refused() {
        for singular_values in [vec![], vec![1.0, 2.0], vec![1.0, 0.0], vec![1.0; 17]] {
            let config = StaircaseConfig {
                singular_values,
                ..StaircaseConfig::default()
            };
            assert!(staircase(&config).is_err());
        }
    }
}
