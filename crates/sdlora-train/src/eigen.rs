//! Eigenvalues and eigenvectors of a symmetric matrix, on the host in double precision.
//!
//! Householder reflections bring the matrix to tridiagonal form, then QL steps with implicit shifts
//! bring that to diagonal form (Golub and Van Loan, "Matrix Computations", sections 8.3.1 and
//! 8.3.3). About `9 n³` operations; the result depends on the matrix alone, not on the backend.

use crate::error::TrainError;

/// `matrix = Σ_i value_i · vector_i vector_iᵀ`.
#[derive(Debug, Clone)]
pub(crate) struct Eigen {
    /// Largest first.
    pub(crate) values: Vec<f64>,
    /// `[n, n]`, row-major: row `i` is the unit eigenvector of value `i`.
    pub(crate) vectors: Vec<f64>,
}

/// QL steps per eigenvalue before a matrix counts as damaged; two are usual.
const MAX_STEPS: usize = 60;

impl Eigen {
    /// Of a symmetric `matrix: [n, n]`, row-major; only its lower triangle is read.
    ///
    /// # Errors
    ///
    /// [`TrainError::Numbers`] when an entry is no number, or too large to square.
    pub(crate) fn of(mut matrix: Vec<f64>, n: usize) -> Result<Self, TrainError> {
        let (mut diagonal, mut beside) = tridiagonal(&mut matrix, n);
        if diagonal.iter().chain(&beside).any(|v| !v.is_finite()) {
            return Err(TrainError::Numbers {
                what: "a covariance of features",
                problem: "an entry that is not finite",
            });
        }
        if !diagonalise(&mut diagonal, &mut beside, &mut matrix, n) {
            return Err(TrainError::Numbers {
                what: "a covariance of features",
                problem: "eigenvalues that do not converge",
            });
        }
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&i, &j| diagonal[j].total_cmp(&diagonal[i]));
        Ok(Self {
            values: order.iter().map(|&i| diagonal[i]).collect(),
            vectors: order
                .iter()
                .flat_map(|&i| matrix[i * n..(i + 1) * n].iter().copied())
                .collect(),
        })
    }

    /// Eigenvector `i`.
    #[cfg(test)]
    fn vector(&self, i: usize) -> &[f64] {
        let n = self.values.len();
        &self.vectors[i * n..(i + 1) * n]
    }
}

/// `A = Qᵀ T Q` with a tridiagonal `T`: its diagonal, and what stands beside it at `[1..n]` (0 at
/// `[0]`). `a` becomes `Q`, one basis vector per row.
fn tridiagonal(a: &mut [f64], n: usize) -> (Vec<f64>, Vec<f64>) {
    let mut beside = vec![0.0; n];
    // Of every reflection `I − factor · v vᵀ` the vector, and the factor.
    let mut reflections: Vec<(Vec<f64>, f64)> = Vec::with_capacity(n);
    // From the last row up: row `i` loses all left of column `i − 1`.
    for i in (1..n).rev() {
        let mut v = a[i * n..i * n + i].to_vec();
        let scale = v.iter().fold(0.0f64, |max, x| max.max(x.abs()));
        if i == 1 || v[..i - 1].iter().all(|&x| x == 0.0) {
            beside[i] = v[i - 1];
            reflections.push((v, 0.0));
            continue;
        }
        v.iter_mut().for_each(|x| *x /= scale);
        let norm = dot(&v, &v).sqrt().copysign(v[i - 1]);
        beside[i] = -norm * scale;
        v[i - 1] += norm;
        let factor = 2.0 / dot(&v, &v);
        // A ← H A H on the leading i × i block, by one symmetric update of rank 2.
        let mut p = vec![0.0; i];
        for r in 0..i {
            let row = &a[r * n..r * n + r + 1];
            p[r] += dot(row, &v[..=r]);
            for (p, x) in p[..r].iter_mut().zip(row) {
                *p += x * v[r];
            }
        }
        p.iter_mut().for_each(|x| *x *= factor);
        let half = factor * dot(&p, &v) / 2.0;
        p.iter_mut().zip(&v).for_each(|(p, v)| *p -= half * v);
        for r in 0..i {
            let row = &mut a[r * n..r * n + r + 1];
            for ((x, &v_c), &p_c) in row.iter_mut().zip(&v).zip(&p) {
                *x -= v[r] * p_c + p[r] * v_c;
            }
        }
        reflections.push((v, factor));
    }
    let diagonal: Vec<f64> = (0..n).map(|i| a[i * n + i]).collect();
    // Q = H_{n-1} … H_1, from the small end up, so that every reflection meets a small block only.
    a.fill(0.0);
    (0..n).for_each(|i| a[i * n + i] = 1.0);
    for (v, factor) in reflections.iter().rev() {
        if *factor == 0.0 {
            continue;
        }
        // Q ← Q H: the columns of the leading block change, row by row.
        for r in 0..v.len() {
            let row = &mut a[r * n..r * n + v.len()];
            let along = factor * dot(row, v);
            row.iter_mut().zip(v).for_each(|(x, v)| *x -= along * v);
        }
    }
    (diagonal, beside)
}

/// Makes `T` diagonal; the rows of `q` turn with it and end as eigenvectors. `false` when it does
/// not converge.
fn diagonalise(d: &mut [f64], e: &mut [f64], q: &mut [f64], n: usize) -> bool {
    if n == 0 {
        return true;
    }
    // Beside[i] couples i and i + 1 from here on.
    e.rotate_left(1);
    e[n - 1] = 0.0;
    for first in 0..n {
        let mut steps = 0;
        loop {
            // The block that still hangs together ends at `last`.
            let is_split = |i: usize, d: &[f64], e: &[f64]| {
                e[i].abs() <= f64::EPSILON * (d[i].abs() + d[i + 1].abs())
            };
            let last = (first..n - 1).find(|&i| is_split(i, d, e)).unwrap_or(n - 1);
            if last == first {
                break;
            }
            steps += 1;
            if steps > MAX_STEPS {
                return false;
            }
            // Wilkinson's shift: the eigenvalue of the leading 2 × 2 block nearer to d[first].
            let half = (d[first + 1] - d[first]) / (2.0 * e[first]);
            let root = half.hypot(1.0).copysign(half);
            let mut g = d[last] - d[first] + e[first] / (half + root);
            let (mut sine, mut cosine, mut carried) = (1.0, 1.0, 0.0);
            let mut is_broken = false;
            for i in (first..last).rev() {
                let f = sine * e[i];
                let b = cosine * e[i];
                let length = f.hypot(g);
                e[i + 1] = length;
                if length == 0.0 {
                    // The block falls apart here; go on with what is left of it.
                    d[i + 1] -= carried;
                    e[last] = 0.0;
                    is_broken = true;
                    break;
                }
                sine = f / length;
                cosine = g / length;
                g = d[i + 1] - carried;
                let r = (d[i] - g) * sine + 2.0 * cosine * b;
                carried = sine * r;
                d[i + 1] = g + carried;
                g = cosine * r - b;
                let (upper, lower) = q[i * n..(i + 2) * n].split_at_mut(n);
                for (x, y) in upper.iter_mut().zip(lower) {
                    let old = *y;
                    *y = sine * *x + cosine * old;
                    *x = cosine * *x - sine * old;
                }
            }
            if !is_broken {
                d[first] -= carried;
                e[first] = g;
                e[last] = 0.0;
            }
        }
    }
    true
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_by_two_and_three_by_three_by_hand() {
        let eigen = Eigen::of(vec![2.0, 1.0, 1.0, 2.0], 2).unwrap();
        assert!((eigen.values[0] - 3.0).abs() < 1e-14 && (eigen.values[1] - 1.0).abs() < 1e-14);
        let half = 0.5f64.sqrt();
        assert!((eigen.vector(0)[0] * eigen.vector(0)[1] - half * half).abs() < 1e-14);
        // [[2,-1,0],[-1,2,-1],[0,-1,2]] has the eigenvalues 2 and 2 ± √2.
        let matrix = vec![2.0, -1.0, 0.0, -1.0, 2.0, -1.0, 0.0, -1.0, 2.0];
        let eigen = Eigen::of(matrix, 3).unwrap();
        for (found, expected) in
            eigen
                .values
                .iter()
                .zip([2.0 + 2f64.sqrt(), 2.0, 2.0 - 2f64.sqrt()])
        {
            assert!((found - expected).abs() < 1e-14, "{:?}", eigen.values);
        }
    }

    #[test]
    fn matrices_that_are_diagonal_zero_empty_or_no_numbers() {
        let eigen = Eigen::of(vec![1.0, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0, -2.0], 3).unwrap();
        assert_eq!(eigen.values, [5.0, 1.0, -2.0]);
        assert_eq!(eigen.vector(0), [0.0, 1.0, 0.0]);
        assert_eq!(Eigen::of(vec![0.0; 16], 4).unwrap().values, [0.0; 4]);
        assert!(Eigen::of(Vec::new(), 0).unwrap().values.is_empty());
        let error = Eigen::of(vec![1.0, 0.0, f64::NAN, 1.0], 2).unwrap_err();
        assert!(error.to_string().contains("not finite"), "{error}");
    }

    proptest! {
        /// Rank from 0 to full, so that eigenvalues repeat too.
        #[test]
        fn the_matrix_comes_back_and_the_vectors_are_orthonormal(
            n in 1usize..24, rank in 0usize..24, seed in any::<u64>()
        ) {
            let x: Vec<f64> = sdlora_testkit::toy::SplitMix64::new(seed)
                .fill(n * rank, 1.0).into_iter().map(f64::from).collect();
            let mut matrix = vec![0.0; n * n];
            for column in x.chunks_exact(n) {
                for i in 0..n {
                    for j in 0..n {
                        matrix[i * n + j] += column[i] * column[j];
                    }
                }
            }
            let eigen = Eigen::of(matrix.clone(), n).unwrap();
            let size = matrix.iter().fold(1.0f64, |max, v| max.max(v.abs()));
            prop_assert!(eigen.values.windows(2).all(|w| w[0] >= w[1]));
            for i in 0..n {
                for j in 0..n {
                    let back: f64 = (0..n)
                        .map(|k| eigen.values[k] * eigen.vector(k)[i] * eigen.vector(k)[j])
                        .sum();
                    prop_assert!((back - matrix[i * n + j]).abs() < 1e-12 * size * n as f64);
                    let inner = dot(eigen.vector(i), eigen.vector(j));
                    prop_assert!((inner - f64::from(u8::from(i == j))).abs() < 1e-12 * n as f64);
                }
            }
        }
    }
}
