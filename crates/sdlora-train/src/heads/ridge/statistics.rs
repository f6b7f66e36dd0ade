//! The sums that a ridge regression comes from, of fitted and of held-out images, and its solution.

use crate::error::TrainError;
use crate::export::HostTensor;
use crate::features::FeatureTable;
use crate::heads::HeadState;
use crate::heads::drift::LinearMap;
use crate::heads::projection::random_features;
use crate::linalg::{Symmetric, packed_len};

/// Images whose random features are in memory at a time.
const BLOCK: usize = 512;

/// Lower triangles `[2, d (d + 1) / 2]` of the Gram matrices of fitted and held-out images.
const GRAM: &str = "gram";
/// Class sums `[n_classes, 2, d]` of the same.
const SUMS: &str = "sums";
/// Images seen of every class `[n_classes, 1]`; absent in files of earlier versions.
const COUNTS: &str = "counts";

/// Candidates for λ, relative to the mean of the diagonal of the Gram matrix.
const LAMBDAS: [f64; 8] = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0];
/// The λ where no image is held out, because every class has one: few images want a large one. On 100
/// characters of Omniglot with one image each, features of the shipped backbone, 1e-6 has 39 %, 0.01 has
/// 61 %, 1 has 76 % and 10 has 78 %; with two images 1 has the least held-out error.
const LAMBDA_UNKNOWN: f64 = 1.0;
/// Errors this near to each other, relative to the largest, are equal.
const TIE: f64 = 1e-9;

/// Of so many images of a class one is held out to choose λ, the first time the second.
const HOLD_OUT_EVERY: usize = 5;

/// Whether an image is held out, the `n`-th of its class over all tasks, from 1.
fn is_held_out(n: usize) -> bool {
    n % HOLD_OUT_EVERY == 2
}

/// `G` and `C` on the host, in double precision: of fitted images at 0, of held-out ones at 1.
pub(super) struct Statistics {
    gram: [Symmetric; 2],
    sums: [Vec<f64>; 2],
    counts: Vec<usize>,
    d: usize,
}

impl Statistics {
    fn new(d: usize, n_classes: usize) -> Self {
        Self {
            gram: [Symmetric::zeros(d), Symmetric::zeros(d)],
            sums: [vec![0.0; n_classes * d], vec![0.0; n_classes * d]],
            counts: vec![0; n_classes],
            d,
        }
    }

    /// Those kept, with room for the labels of `table`, which may be new or known.
    pub(super) fn of(state: &HeadState, d: usize, table: &FeatureTable) -> Self {
        let n_table = table.labels.iter().max().map_or(0, |&label| label + 1);
        let sums = state.wide_rows(SUMS);
        let n_before = sums.len() / (2 * d).max(1);
        let mut statistics = Self::new(d, n_table.max(n_before));
        for (label, halves) in sums.chunks_exact((2 * d).max(1)).enumerate() {
            for (to, from) in statistics.sums.iter_mut().zip(halves.chunks_exact(d)) {
                to[label * d..(label + 1) * d].copy_from_slice(from);
            }
        }
        for (count, kept) in statistics.counts.iter_mut().zip(state.rows(COUNTS)) {
            *count = kept as usize;
        }
        let lower: Vec<f64> = state.wide_shared(GRAM).collect();
        let halves = lower.chunks_exact(packed_len(d).max(1));
        for (to, from) in statistics.gram.iter_mut().zip(halves) {
            *to = Symmetric::of_lower(d, |at| from[at]);
        }
        statistics
    }

    /// Into the state, to go on with in the next task.
    pub(super) fn keep(&self, state: &mut HeadState) {
        let (d, n) = (self.d, self.counts.len());
        let [fitted, held_out] = &self.sums;
        let sums = fitted
            .chunks_exact(d.max(1))
            .zip(held_out.chunks_exact(d.max(1)));
        let sums: Vec<f64> = sums.flat_map(|(a, b)| [a, b]).flatten().copied().collect();
        state.set_wide_rows(SUMS, vec![n, 2, d], &sums);
        let counts = self.counts.iter().map(|&count| count as f32).collect();
        state.set_rows(COUNTS, vec![n, 1], counts);
        let gram = self.gram.iter().flat_map(Symmetric::lower);
        state.set_wide_shared(GRAM, vec![2, packed_len(d)], gram);
    }

    /// Moves all sums as if every image had moved by a map.
    pub(super) fn follow(&mut self, map: &LinearMap) {
        for gram in &mut self.gram {
            *gram = map.congruent(gram);
        }
        for sums in &mut self.sums {
            map.apply(sums);
        }
    }

    pub(super) fn add(&mut self, table: &FeatureTable, projection: Option<&HostTensor>) {
        let d = self.d;
        let blocks = table.features.chunks(BLOCK * table.d_model.max(1));
        for (block, labels) in blocks.zip(table.labels.chunks(BLOCK)) {
            let features = match projection {
                Some(projection) => &random_features(projection, block)[..],
                None => block,
            };
            let mut halves = [Vec::new(), Vec::new()];
            for (row, &label) in features.chunks_exact(d.max(1)).zip(labels) {
                self.counts[label] += 1;
                let half = usize::from(is_held_out(self.counts[label]));
                let sum = &mut self.sums[half][label * d..(label + 1) * d];
                for (sum, &x) in sum.iter_mut().zip(row) {
                    *sum += f64::from(x);
                }
                halves[half].extend(row.iter().map(|&x| f64::from(x)));
            }
            for (gram, rows) in self.gram.iter_mut().zip(&halves) {
                gram.add_gram(rows);
            }
        }
    }

    /// `W` `[n_classes, d]` on all images, with the λ that [`lambda`](Self::lambda) finds, or the next
    /// larger one that has a solution.
    ///
    /// # Errors
    ///
    /// [`TrainError::Numbers`] when none has.
    pub(super) fn solve(&self) -> Result<Vec<f64>, TrainError> {
        let best = self.lambda();
        let [fitted, held_out] = &self.gram;
        let mut gram = fitted.clone();
        gram.add(1.0, held_out);
        let [fitted, held_out] = &self.sums;
        let sums: Vec<f64> = fitted.iter().zip(held_out).map(|(a, b)| a + b).collect();
        let from_best = LAMBDAS.into_iter().filter(|&lambda| lambda >= best);
        let mut solutions = from_best.filter_map(|lambda| ridge(&gram, &sums, lambda));
        let weight = solutions.next();
        weight
            .filter(|weight| weight.iter().all(|w| w.is_finite()))
            .ok_or(TrainError::Numbers {
                what: "the ridge regression",
                problem: "no solution, because all features are 0 or some are no numbers",
            })
    }

    /// The λ of least error on the held-out images of all tasks, fitted without them; of equal errors the
    /// largest λ, as more data would tell apart what these do not. Where no image is held out, 1.
    fn lambda(&self) -> f64 {
        if self.gram[1].mean_diagonal() <= 0.0 {
            return LAMBDA_UNKNOWN;
        }
        let errors: Vec<(f64, f64)> = LAMBDAS
            .into_iter()
            .filter_map(|lambda| {
                let weight = ridge(&self.gram[0], &self.sums[0], lambda)?;
                Some((lambda, self.held_out_error(&weight)))
            })
            .filter(|(_, error)| error.is_finite())
            .collect();
        let least = errors.iter().fold(f64::INFINITY, |a, &(_, b)| a.min(b));
        let scale = errors.iter().fold(0.0f64, |a, &(_, b)| a.max(b.abs()));
        let ties = errors.iter().rev();
        let mut ties = ties.filter(|&&(_, error)| error <= least + TIE * scale);
        ties.next().map_or(LAMBDA_UNKNOWN, |&(lambda, _)| lambda)
    }

    /// Squared error on the held-out images, up to a constant.
    fn held_out_error(&self, weight: &[f64]) -> f64 {
        let products = weight.iter().zip(&self.sums[1]).map(|(w, c)| w * c);
        self.gram[1].quadratic(weight) - 2.0 * products.sum::<f64>()
    }
}

/// Rows `(G + λ·mean(diag G)·I)⁻¹ c` for every row `c` of `sums`, by a Cholesky factorisation; `None`
/// when the matrix is not positive definite to working precision.
fn ridge(gram: &Symmetric, sums: &[f64], lambda: f64) -> Option<Vec<f64>> {
    let factor = gram.clone().cholesky(lambda * gram.mean_diagonal())?;
    let mut out = sums.to_vec();
    factor.solve(&mut out);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_testkit::toy::SplitMix64;

    /// The matrix with these rows of its lower triangle.
    fn matrix(lower: &[f32], n: usize) -> Symmetric {
        Symmetric::unpacked(lower, n)
    }

    /// `n` images of every label: an axis of its own, a direction of length `common` that all share, and
    /// noise along all axes.
    fn table(d: usize, labels: &[usize], n: usize, common: f32, noise: f32) -> FeatureTable {
        let mut draw = SplitMix64::new(7);
        let mut table = FeatureTable {
            d_model: d,
            ..FeatureTable::default()
        };
        for &label in labels {
            for _ in 0..n {
                let mut row = draw.fill(d, noise);
                row[label] += 1.0;
                row[d - 1] += common;
                table.features.extend(row);
                table.labels.push(label);
            }
        }
        table
    }

    fn statistics(table: &FeatureTable) -> Statistics {
        let mut statistics = Statistics::of(&HeadState::default(), table.d_model, table);
        statistics.add(table, None);
        statistics
    }

    /// Squared errors of every λ on the images that are held out, from the images themselves.
    fn errors(table: &FeatureTable) -> Vec<f64> {
        let d = table.d_model;
        let n_classes = table.labels.iter().max().unwrap() + 1;
        let mut seen = vec![0; n_classes];
        let (mut fitted, mut held_out) = (FeatureTable::default(), Vec::new());
        fitted.d_model = d;
        for (i, &label) in table.labels.iter().enumerate() {
            seen[label] += 1;
            if seen[label] % 5 == 2 {
                held_out.push((table.row(i), label));
            } else {
                fitted.features.extend(table.row(i));
                fitted.labels.push(label);
            }
        }
        let mut gram = Symmetric::zeros(d);
        let wide: Vec<f64> = fitted.features.iter().map(|&x| f64::from(x)).collect();
        gram.add_gram(&wide);
        let mut sums = vec![0.0; n_classes * d];
        for (i, &label) in fitted.labels.iter().enumerate() {
            let sum = &mut sums[label * d..(label + 1) * d];
            sum.iter_mut()
                .zip(fitted.row(i))
                .for_each(|(s, &x)| *s += f64::from(x));
        }
        let error = |lambda: f64| -> f64 {
            let weight = ridge(&gram, &sums, lambda).unwrap();
            let of_image = |(row, label): &(&[f32], usize)| -> f64 {
                let logits = weight.chunks_exact(d).enumerate();
                logits
                    .map(|(class, w)| {
                        let logit: f64 = w.iter().zip(*row).map(|(w, &x)| w * f64::from(x)).sum();
                        (logit - f64::from(u8::from(class == *label))).powi(2)
                    })
                    .sum()
            };
            held_out.iter().map(of_image).sum()
        };
        LAMBDAS.into_iter().map(error).collect()
    }

    #[test]
    fn two_classes_on_a_line_by_hand() {
        // x = 1, 3 of class 0: G = 10, c = 4; λ·G = 1 gives W = 4 / (10 + 1).
        let w = ridge(&matrix(&[10.0], 1), &[4.0], 0.1).unwrap();
        assert!((w[0] - 4.0 / 11.0).abs() < 1e-12);
        // [[2, 1], [1, 2]] + I has the inverse [[3, -1], [-1, 3]] / 8.
        let w = ridge(&matrix(&[2.0, 1.0, 2.0], 2), &[8.0, 0.0], 0.5).unwrap();
        assert!(
            (w[0] - 3.0).abs() < 1e-12 && (w[1] + 1.0).abs() < 1e-12,
            "{w:?}"
        );
        assert!(ridge(&matrix(&[0.0], 1), &[0.0], 0.1).is_none());
    }

    #[test]
    fn lambda_has_the_least_error_on_held_out_images_of_full_and_of_low_rank() {
        // Width, classes, images of a class, noise: the first has more images than features, the others
        // fewer, down to two of a class.
        for (d, n_classes, n, noise) in [
            (5, 4, 10, 0.3),
            (60, 6, 4, 0.5),
            (60, 10, 3, 0.8),
            (60, 20, 2, 0.5),
            (60, 6, 6, 0.2),
        ] {
            let table = table(d, &Vec::from_iter(0..n_classes), n, 0.5, noise);
            let statistics = statistics(&table);
            let expected = errors(&table);
            let least = expected.iter().copied().fold(f64::INFINITY, f64::min);
            let best = expected.iter().position(|&error| error == least).unwrap();
            let what = format!("{n} of {n_classes} classes, width {d}: {expected:?}");
            assert_eq!(statistics.lambda(), LAMBDAS[best], "{what}");
            let weight = statistics.solve().unwrap();
            let mut gram = statistics.gram[0].clone();
            gram.add(1.0, &statistics.gram[1]);
            let [a, b] = &statistics.sums;
            let sums: Vec<f64> = a.iter().zip(b).map(|(a, b)| a + b).collect();
            assert_eq!(
                weight,
                ridge(&gram, &sums, LAMBDAS[best]).unwrap(),
                "{what}"
            );
        }
    }

    #[test]
    fn every_class_with_two_images_or_more_has_one_held_out_and_a_fifth_of_many() {
        for (n, expected) in [(1, 0), (2, 1), (4, 1), (6, 1), (7, 2), (10, 2), (20, 4)] {
            let held_out = (1..=n).filter(|&n| is_held_out(n)).count();
            assert_eq!(held_out, expected, "{n}");
        }
        // Also where they come one by one in several tasks.
        let mut state = HeadState::default();
        for _ in 0..3 {
            let table = table(4, &[0, 1], 1, 0.0, 0.1);
            let mut statistics = Statistics::of(&state, 4, &table);
            statistics.add(&table, None);
            statistics.keep(&mut state);
        }
        assert_eq!(state.rows(COUNTS), [3.0, 3.0]);
        let statistics = Statistics::of(&state, 4, &FeatureTable::default());
        let [fitted, held_out] = &statistics.gram;
        let share = held_out.mean_diagonal() / fitted.mean_diagonal();
        assert!((share - 0.5).abs() < 1e-6, "{share}");
    }

    #[test]
    fn one_image_a_class_gives_a_large_lambda_and_equal_errors_the_largest() {
        let one = statistics(&table(30, &Vec::from_iter(0..10), 1, 0.0, 0.1));
        assert_eq!(one.lambda(), LAMBDA_UNKNOWN);
        assert!(one.solve().is_ok());
        // Held-out images at a right angle to all others: every W gives them 0.
        let mut apart = Statistics::new(4, 2);
        let row = |at: usize, label: usize| {
            let mut features = vec![0.0; 4];
            features[at] = 1.0;
            FeatureTable {
                features,
                d_model: 4,
                labels: vec![label],
                ..FeatureTable::default()
            }
        };
        for (at, label) in [(0, 0), (2, 0), (1, 1), (3, 1)] {
            apart.add(&row(at, label), None);
        }
        assert!(apart.gram[1].mean_diagonal() > 0.0);
        assert_eq!(apart.lambda(), 10.0);
    }

    #[test]
    fn the_next_task_loses_no_lambda_to_what_is_kept() {
        // All features share a direction a thousand times as strong as what tells classes apart, and there
        // are fewer images than features: the least eigenvalues of the Gram matrix are 0, and the
        // smallest λ is below the rounding of 32 bits.
        let labels = Vec::from_iter(0..6);
        let whole = table(40, &labels, 4, 1000.0, 0.01);
        let at_once = statistics(&whole);
        let mut state = HeadState::default();
        at_once.keep(&mut state);
        let state = HeadState::from_file(&state.to_file()).unwrap();
        let kept = Statistics::of(&state, 40, &FeatureTable::default());
        for lambda in LAMBDAS {
            let solved = |s: &Statistics| ridge(&s.gram[0], &s.sums[0], lambda).unwrap();
            let (a, b) = (solved(&at_once), solved(&kept));
            let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
            let error = norm(&mut a.iter().zip(&b).map(|(a, b)| a - b));
            let error = error / norm(&mut a.iter().copied());
            assert!(error < 1e-5, "λ = {lambda}: {error}");
        }
        assert_eq!(kept.lambda(), at_once.lambda());
    }

    #[test]
    fn what_has_no_solution_is_an_error() {
        for value in [0.0, f32::NAN] {
            let table = FeatureTable {
                features: vec![value; 10],
                d_model: 5,
                labels: vec![0, 1],
                ..FeatureTable::default()
            };
            let error = statistics(&table).solve().unwrap_err();
            assert!(error.to_string().contains("ridge"), "{error}");
        }
    }
}
