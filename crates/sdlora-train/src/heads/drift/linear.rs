//! The linear map `M` that features moved by during a task, and what it makes of statistics of old classes:
//! `M μ`, `M Σ Mᵀ`, and of a Gram matrix and class sums `M G Mᵀ` and `M c`.
//!
//! `M = I + ΔM`, and `ΔM` is a ridge regression from the features `X` before the task to the moves
//! `D = after − X` of the same images: `ΔM = Dᵀ X (Xᵀ X + λ I)⁻¹ = Dᵀ (X Xᵀ + λ I)⁻¹ X`. So what no image of
//! the task tells about stays where it was, and fewer images than features are no problem: the map then
//! has the rank of the images, and a matrix of any width is moved at the cost of that rank.
//!
//! λ is chosen for the use that is made of the map, which is classes that are not in the task: the one whose map,
//! fitted without a class, predicts the moves of that class best, summed over the classes of the task. This
//! needs no second fit: with `R = (X Xᵀ + λ I)⁻¹` and `A = R D` the error on the rows `B` that were left out
//! is `R_BB⁻¹ A_B` (Allen 1974, PRESS, for blocks). Where no map predicts better than none, there is none, and of
//! equal errors the largest λ is taken. A task of one class leaves out its images one by one.

use crate::linalg::{Symmetric, View, add_product};

/// Candidates for λ, relative to the mean squared length of the features before the task; from the largest.
const STRENGTHS: [f64; 11] = [
    1e2, 1e1, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8,
];
/// A smaller λ has to lower the error by this share.
const TIE: f64 = 1e-9;

/// `M = I + leftᵀ · right`.
#[derive(Debug, Clone)]
pub(in crate::heads) struct LinearMap {
    d: usize,
    /// `[rank, d]`.
    left: Vec<f64>,
    /// `[rank, d]`.
    right: Vec<f64>,
}

/// The images of a task: features, moves, and which are left out together.
struct Images<'a> {
    d: usize,
    n: usize,
    /// Features before the task `[n, d]`.
    x: Vec<f64>,
    /// `[n, d]`.
    moves: Vec<f64>,
    /// Rows of every class.
    groups: &'a [Vec<usize>],
}

impl LinearMap {
    /// The map from `before` to `after`, both `[n, d]` of the same images with these labels; `None` where it is
    /// the identity, because nothing moved or because no move is predicted by the others.
    pub(in crate::heads) fn fit(
        before: &[f32],
        after: &[f32],
        d: usize,
        labels: &[usize],
    ) -> Option<Self> {
        let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|&v| f64::from(v)).collect() };
        let x = wide(before);
        let mut moves = wide(after);
        moves.iter_mut().zip(&x).for_each(|(a, b)| *a -= b);
        let squares = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>();
        let (size, moved) = (squares(&x), squares(&moves));
        let n = labels.len();
        let is_usual = size.is_finite() && moved.is_finite() && size > 0.0;
        if n < 2 || moved == 0.0 || !is_usual || x.len() != n * d || moves.len() != n * d {
            return None;
        }
        let images = Images {
            d,
            n,
            x,
            moves,
            groups: &groups(labels),
        };
        let mut least = moved;
        let mut best = None;
        for strength in STRENGTHS {
            let fitted = match n <= d {
                true => images.by_images(strength * size / n as f64),
                false => images.by_features(strength * size / n as f64),
            };
            let Some((error, right)) = fitted else {
                continue;
            };
            if error < least * (1.0 - TIE) {
                (least, best) = (error, Some(right));
            }
        }
        let right = best?;
        if n <= d {
            let left = images.moves;
            return Some(Self { d, left, right });
        }
        // As a whole matrix it has the smaller rank.
        let mut delta = vec![0.0; d * d];
        let moves = View::rows(&images.moves, d).transposed();
        add_product(&mut delta, d, 1.0, moves, View::rows(&right, d));
        Some(Self {
            d,
            left: unit_rows(d),
            right: delta,
        })
    }

    /// Moves `rows: [m, d]`: every row `x` becomes `M x`.
    pub(in crate::heads) fn apply(&self, rows: &mut [f64]) {
        let (d, rank) = (self.d, self.left.len() / self.d.max(1));
        let mut along = vec![0.0; rows.len() / d.max(1) * rank];
        let right = View::rows(&self.right, d).transposed();
        add_product(&mut along, rank, 1.0, View::rows(&*rows, d), right);
        add_product(
            rows,
            d,
            1.0,
            View::rows(&along, rank),
            View::rows(&self.left, d),
        );
    }

    /// [`apply`](Self::apply) of numbers of 32 bits, computed in 64.
    pub(in crate::heads) fn apply_near(&self, rows: &mut [f32]) {
        let mut wide: Vec<f64> = rows.iter().map(|&v| f64::from(v)).collect();
        self.apply(&mut wide);
        rows.iter_mut().zip(wide).for_each(|(to, v)| *to = v as f32);
    }

    /// `M A Mᵀ`: with `T = right · A` and `U = T + T rightᵀ left / 2` it is `A + leftᵀ U + Uᵀ left`.
    pub(in crate::heads) fn congruent(&self, matrix: &Symmetric) -> Symmetric {
        let (d, rank) = (self.d, self.left.len() / self.d.max(1));
        let mut sum = matrix.times(&self.right);
        let mut inner = vec![0.0; rank * rank];
        let right = View::rows(&self.right, d).transposed();
        add_product(&mut inner, rank, 1.0, View::rows(&sum, d), right);
        add_product(
            &mut sum,
            d,
            0.5,
            View::rows(&inner, rank),
            View::rows(&self.left, d),
        );
        let mut moved = matrix.clone();
        moved.add_cross(&self.left, &sum);
        moved
    }

    /// `M` as rows `[d, d]`.
    pub(in crate::heads) fn rows(&self) -> Vec<f64> {
        let mut rows = unit_rows(self.d);
        let left = View::rows(&self.left, self.d).transposed();
        add_product(
            &mut rows,
            self.d,
            1.0,
            left,
            View::rows(&self.right, self.d),
        );
        rows
    }
}

impl Images<'_> {
    /// The error on what is left out, and `R X`, by a matrix of the size of the images.
    fn by_images(&self, lambda: f64) -> Option<(f64, Vec<f64>)> {
        let (n, d) = (self.n, self.d);
        let columns: Vec<f64> = (0..d)
            .flat_map(|j| (0..n).map(move |i| self.x[i * d + j]))
            .collect();
        let mut kernel = Symmetric::zeros(n);
        kernel.add_gram(&columns);
        let factor = kernel.cholesky(lambda)?;
        let mut inverse = unit_rows(n);
        factor.solve(&mut inverse);
        let product = |values: &[f64]| {
            let mut out = vec![0.0; n * d];
            add_product(
                &mut out,
                d,
                1.0,
                View::rows(&inverse, n),
                View::rows(values, d),
            );
            out
        };
        let along = product(&self.moves);
        let mut error = 0.0;
        for group in self.groups {
            let block = |at: (usize, usize)| inverse[group[at.0] * n + group[at.1]];
            error += squares_of_solved(group, block, &along, d)?;
        }
        error.is_finite().then(|| (error, product(&self.x)))
    }

    /// The same, by a matrix of the size of the features.
    fn by_features(&self, lambda: f64) -> Option<(f64, Vec<f64>)> {
        let (d, x) = (self.d, &self.x);
        let mut gram = Symmetric::zeros(d);
        gram.add_gram(x);
        let factor = gram.cholesky(lambda)?;
        let mut solved = x.clone();
        factor.solve(&mut solved);
        // What is left of the moves: D − X ΔMᵀ, with ΔMᵀ = (XᵀX + λI)⁻¹ XᵀD.
        let mut cross = vec![0.0; d * d];
        let (features, moves) = (View::rows(x, d), View::rows(&self.moves, d));
        add_product(&mut cross, d, 1.0, features.transposed(), moves);
        let mut rest = self.moves.clone();
        let rows = View::rows(&solved, d);
        add_product(&mut rest, d, -1.0, rows, View::rows(&cross, d));
        let row = |values: &[f64], i: usize| values[i * d..(i + 1) * d].to_vec();
        let mut error = 0.0;
        for group in self.groups {
            // I − H of the rows of the group.
            let own = |values: &[f64]| -> Vec<f64> {
                group.iter().flat_map(|&i| row(values, i)).collect()
            };
            let (left, right) = (own(&solved), own(x));
            let m = group.len();
            let mut block = unit_rows(m);
            let right = View::rows(&right, d).transposed();
            add_product(&mut block, m, -1.0, View::rows(&left, d), right);
            error += squares_of_solved(group, |(i, j)| block[i * m + j], &rest, d)?;
        }
        error.is_finite().then_some((error, solved))
    }
}

/// Sum of the squares of `block⁻¹ · rows`, of the rows `[n, d]` of a group.
fn squares_of_solved(
    group: &[usize],
    block: impl Fn((usize, usize)) -> f64,
    rows: &[f64],
    d: usize,
) -> Option<f64> {
    let m = group.len();
    let places: Vec<(usize, usize)> = (0..m).flat_map(|i| (0..=i).map(move |j| (i, j))).collect();
    let factor = Symmetric::of_lower(m, |at| block(places[at])).cholesky(0.0)?;
    let mut columns: Vec<f64> = (0..d)
        .flat_map(|j| group.iter().map(move |&i| rows[i * d + j]))
        .collect();
    factor.solve(&mut columns);
    Some(columns.iter().map(|v| v * v).sum())
}

/// The rows of every class; every row by itself where there is one class.
fn groups(labels: &[usize]) -> Vec<Vec<usize>> {
    let mut by_label = std::collections::BTreeMap::<usize, Vec<usize>>::new();
    for (i, &label) in labels.iter().enumerate() {
        by_label.entry(label).or_default().push(i);
    }
    match by_label.len() {
        0 | 1 => (0..labels.len()).map(|i| vec![i]).collect(),
        _ => by_label.into_values().collect(),
    }
}

/// The rows of the unit matrix.
fn unit_rows(n: usize) -> Vec<f64> {
    let mut rows = vec![0.0; n * n];
    rows.iter_mut().step_by(n + 1).for_each(|v| *v = 1.0);
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_testkit::toy::SplitMix64;

    /// A matrix near the unit matrix, as rows `[d, d]`.
    fn turn(d: usize, seed: u64) -> Vec<f64> {
        let noise = SplitMix64::new(seed).fill(d * d, 0.3);
        let mut rows = unit_rows(d);
        rows.iter_mut()
            .zip(noise)
            .for_each(|(v, n)| *v += f64::from(n));
        rows
    }

    fn times(matrix: &[f64], row: &[f32], d: usize) -> Vec<f64> {
        let dot = |m: &[f64]| m.iter().zip(row).map(|(m, &x)| m * f64::from(x)).sum();
        matrix.chunks_exact(d).map(dot).collect()
    }

    fn moved(matrix: &[f64], rows: &[f32], d: usize) -> Vec<f32> {
        let rows = rows.chunks_exact(d).flat_map(|row| times(matrix, row, d));
        rows.map(|v| v as f32).collect()
    }

    fn labels(n: usize, n_classes: usize) -> Vec<usize> {
        (0..n).map(|i| 7 + i % n_classes).collect()
    }

    #[test]
    fn an_exact_map_of_enough_images_is_found_and_moves_all_statistics() {
        for (d, n, n_classes) in [(6, 200, 5), (6, 200, 1), (40, 90, 3)] {
            let matrix = turn(d, 1);
            let before = SplitMix64::new(2).fill(n * d, 1.0);
            let after = moved(&matrix, &before, d);
            let map = LinearMap::fit(&before, &after, d, &labels(n, n_classes)).unwrap();
            let rows = SplitMix64::new(3).fill(4 * d, 1.0);
            let expected: Vec<f64> = rows
                .chunks_exact(d)
                .flat_map(|row| times(&matrix, row, d))
                .collect();
            let mut found: Vec<f64> = rows.iter().map(|&v| f64::from(v)).collect();
            map.apply(&mut found);
            let mut near = rows.clone();
            map.apply_near(&mut near);
            for ((found, near), expected) in found.iter().zip(&near).zip(&expected) {
                let apart = (found - expected).abs();
                assert!(apart < 1e-5, "{d}, {n}: {found}, {expected}");
                assert!((f64::from(*near) - found).abs() < 1e-6);
            }
            // M A Mᵀ of A = Σ x xᵀ is Σ (M x)(M x)ᵀ.
            let mut matrix = Symmetric::zeros(d);
            let wide: Vec<f64> = rows.iter().map(|&v| f64::from(v)).collect();
            matrix.add_gram(&wide);
            let mut moved = Symmetric::zeros(d);
            moved.add_gram(&found);
            for (a, b) in map.congruent(&matrix).lower().zip(moved.lower()) {
                assert!((a - b).abs() < 1e-9 * moved.mean_diagonal(), "{a}, {b}");
            }
            let by_rows: Vec<f64> = rows
                .chunks_exact(d)
                .flat_map(|row| times(&map.rows(), row, d))
                .collect();
            for (a, b) in by_rows.iter().zip(&found) {
                assert!((a - b).abs() < 1e-9, "{a}, {b}");
            }
        }
    }

    #[test]
    fn both_forms_have_the_error_of_maps_fitted_without_the_class() {
        let (d, n, lambda) = (5, 24, 3.0);
        let x: Vec<f64> = SplitMix64::new(1)
            .fill(n * d, 1.0)
            .into_iter()
            .map(f64::from)
            .collect();
        let moves: Vec<f64> = SplitMix64::new(2)
            .fill(n * d, 1.0)
            .into_iter()
            .map(f64::from)
            .collect();
        let all = labels(n, 3);
        let groups = groups(&all);
        let of = |rows: &[usize]| Images {
            d,
            n: rows.len(),
            x: rows
                .iter()
                .flat_map(|&i| x[i * d..(i + 1) * d].to_vec())
                .collect(),
            moves: rows
                .iter()
                .flat_map(|&i| moves[i * d..(i + 1) * d].to_vec())
                .collect(),
            groups: &[],
        };
        let mut expected = 0.0;
        for group in &groups {
            let others: Vec<usize> = (0..n).filter(|i| !group.contains(i)).collect();
            let (_, right) = of(&others).by_features(lambda).unwrap();
            let map = LinearMap {
                d,
                left: of(&others).moves,
                right,
            };
            let mut predicted = of(group).x;
            map.apply(&mut predicted);
            let own = of(group);
            for ((p, x), m) in predicted.iter().zip(&own.x).zip(&own.moves) {
                expected += (p - x - m).powi(2);
            }
        }
        let whole = Images {
            groups: &groups,
            ..of(&Vec::from_iter(0..n))
        };
        let (a, right_a) = whole.by_images(lambda).unwrap();
        let (b, right_b) = whole.by_features(lambda).unwrap();
        assert!((a - expected).abs() < 1e-9 * expected, "{a}, {expected}");
        assert!((b - expected).abs() < 1e-9 * expected, "{b}, {expected}");
        assert!(
            right_a
                .iter()
                .zip(&right_b)
                .all(|(a, b)| (a - b).abs() < 1e-12)
        );
    }

    #[test]
    fn few_images_move_what_they_tell_about_and_nothing_else() {
        // Eight images in the first four of 60 directions; those double.
        let (d, n) = (60, 8);
        let mut noise = SplitMix64::new(4);
        let before: Vec<f32> = (0..n)
            .flat_map(|_| {
                let mut row = noise.fill(4, 1.0);
                row.resize(d, 0.0);
                row
            })
            .collect();
        let after: Vec<f32> = before.iter().map(|v| 2.0 * v).collect();
        let map = LinearMap::fit(&before, &after, d, &labels(n, 2)).unwrap();
        let mut rows = vec![1.0; d];
        map.apply(&mut rows);
        assert!(rows[..4].iter().all(|v| (v - 2.0).abs() < 1e-4), "{rows:?}");
        assert!(
            rows[4..].iter().all(|v| (v - 1.0).abs() < 1e-12),
            "{rows:?}"
        );
    }

    #[test]
    fn moves_that_tell_nothing_of_other_classes_give_no_map() {
        let (d, n) = (20, 30);
        let before = SplitMix64::new(5).fill(n * d, 1.0);
        assert!(LinearMap::fit(&before, &before, d, &labels(n, 3)).is_none());
        // Every image moves its own way, far.
        let away = SplitMix64::new(6).fill(n * d, 50.0);
        let after: Vec<f32> = before.iter().zip(&away).map(|(a, b)| a + b).collect();
        if let Some(map) = LinearMap::fit(&before, &after, d, &labels(n, 3)) {
            let mut rows: Vec<f64> = before.iter().map(|&v| f64::from(v)).collect();
            map.apply(&mut rows);
            let moved: f64 = rows
                .iter()
                .zip(&before)
                .map(|(a, &b)| (a - f64::from(b)).powi(2))
                .sum();
            let far: f64 = away.iter().map(|&v| f64::from(v).powi(2)).sum();
            assert!(moved < 0.1 * far, "{moved} of {far}");
        }
        for (before, after, labels) in [
            (vec![1.0, 2.0], vec![3.0, 4.0], vec![0]),
            (vec![0.0; 4], vec![1.0; 4], vec![0, 1]),
            (vec![1.0; 4], vec![f32::NAN; 4], vec![0, 1]),
            (vec![1.0; 4], vec![f32::INFINITY; 4], vec![0, 1]),
        ] {
            assert!(
                LinearMap::fit(&before, &after, 2, &labels).is_none(),
                "{after:?}"
            );
        }
    }
}
