//! Quadratic discriminant analysis in low rank: a Gaussian for every class, in closed form.
//!
//! `x | c ~ N(μ_c, Σ_c)` with `Σ_c = S + V_cᵀ V_c`: a covariance `S` that all classes share and `rank` directions
//! `V_c: [rank, d_model]` in which a class spreads more than that. The largest
//! `−(x − μ_c)ᵀ Σ_c⁻¹ (x − μ_c) / 2 − ln det Σ_c / 2` predicts. `rank = 0` is linear discriminant analysis.
//!
//! `S` is pooled within classes over all images seen and shrunk towards a multiple of the unit matrix, by the share
//! that OAS gives for so many images (Chen et al. 2010, "Shrinkage Algorithms for MMSE Covariance Estimation",
//! equation 23) or by `shrinkage`. `V_c` comes from the images of the class in the space where `S` is the unit matrix:
//! where its covariance has an eigenvalue `λ > 1` along `q`, one direction of `V_c` has the square length
//! `α (λ − 1)` along `q`, for the `rank` largest. `α = n / (n + prior)` with `n` one less than its images is the
//! weight of a sample covariance beside an inverse Wishart prior of mean `S` that counts as `prior` images
//! (Friedman 1989, "Regularized Discriminant Analysis", shrinks alike). So a class of one image has the covariance `S`,
//! and where every class has one image, the nearest mean predicts.
//!
//! No covariance of a class is ever formed or inverted. With `A = S⁻¹` and
//! `B_c = R⁻¹ V_c A`, `R Rᵀ = I + V_c A V_cᵀ` (Woodbury), a logit is
//! `(A μ_c)ᵀ x − μ_cᵀ A μ_c / 2 + ‖B_c (x − μ_c)‖² / 2 − ln det R`; what all classes share is left out.
//!
//! Kept of a class: mean, `V_c` and a count, `(rank + 1) d_model + 1` numbers; and once `S`, the half of a matrix. On
//! features that stay, means and `S` are those of all images, whatever the order of tasks; `V_c` is what it was when
//! the class was new. With `drift = "linear"` all of it moves by one linear map, exactly; see `drift/linear.rs`. With
//! `drift = "compensated"` means move.

use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::drift::{self, Drift, LinearMap};
use super::gaussian::moments::ClassMoments;
use super::{Classifier, Head, HeadEntry, HeadState, HeadTask};
use crate::eigen::Eigen;
use crate::error::TrainError;
use crate::features::FeatureTable;
use crate::linalg::{Cholesky, Symmetric, View, add_product, packed_len};
use crate::options::parse;

pub(super) const ENTRY: HeadEntry = HeadEntry {
    name: "qda",
    summary: "quadratic discriminant analysis: a shared covariance and a few directions per class (options: \
              rank, shrinkage, prior, drift)",
    build: |options| {
        let head: Qda = parse("head (qda)", options)?;
        if head.rank > MAX_RANK {
            let expected = format!("0 to {MAX_RANK} directions of a class");
            return Err(TrainError::setting("head.rank", head.rank, expected));
        }
        match (head.shrinkage, head.prior) {
            (Some(share), _) if !(0.0..=1.0).contains(&share) => Err(TrainError::setting(
                "head.shrinkage",
                share,
                "0 to 1, or leave it out to have it follow from the images",
            )),
            (_, Some(prior)) if !(prior.is_finite() && prior > 0.0) => Err(TrainError::setting(
                "head.prior",
                prior,
                "a finite number of images above 0, or leave it out for the width of the features",
            )),
            _ => Ok(Arc::new(head)),
        }
    },
};

/// More than any backbone has features.
pub(super) const MAX_RANK: usize = 1024;
/// Least share of the unit matrix where the images choose: a feature that never varies leaves no solution.
const LEAST_SHRINKAGE: f64 = 1e-6;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Qda {
    /// Directions that a class has of its own.
    #[serde(default = "default_rank")]
    rank: usize,
    /// Share of the unit matrix in the shared covariance; from the images where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shrinkage: Option<f64>,
    /// Images that the shared covariance counts as beside those of a class; the width of the features where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prior: Option<f64>,
    /// What becomes of old statistics when the features change.
    #[serde(default)]
    drift: Drift,
}

fn default_rank() -> usize {
    RANK
}

/// Directions of a class where no number is given.
pub(super) const RANK: usize = 4;

/// Class means `[n_classes, d_model]`.
const MEANS: &str = "means";
/// Images of every class `[n_classes, 1]`.
const COUNTS: &str = "counts";
/// Own directions of classes `[n_classes, rank, d_model]`; absent where the rank is 0.
const DIRECTIONS: &str = "directions";
/// The lower triangle of the covariance within classes `[d_model (d_model + 1) / 2]`.
const COVARIANCE: &str = "covariance";
/// Degrees of freedom `[1]` that it comes from.
const DEGREES: &str = "degrees";

impl Head for Qda {
    fn drift(&self) -> Drift {
        self.drift
    }

    fn is_fitted(&self) -> bool {
        true
    }

    fn fit(&self, mut state: HeadState, task: &HeadTask<'_>) -> Result<HeadState, TrainError> {
        let (table, d) = (task.table, task.table.d_model);
        let mut kept = Kept::of(&state, d, self.rank);
        if let Some(before) = drift::take_before(&mut state) {
            match self.drift {
                Drift::Ignored => {}
                Drift::Compensated => drift::compensate(&mut kept.means, &before, table),
                Drift::Linear => {
                    if let Some(map) = LinearMap::fit(&before, &table.features, d, &table.labels) {
                        kept.follow(&map);
                    }
                }
            }
        }
        let n_before = kept.counts.len();
        let moments = kept.add(table);
        let shared = self.factor(&kept).ok_or_else(|| match self.shrinkage {
            Some(share) if kept.covariance.mean_diagonal().is_finite() => TrainError::setting(
                "head.shrinkage",
                share,
                "a larger share: the covariance of these images has no inverse",
            ),
            _ => TrainError::Numbers {
                what: "the covariance within classes",
                problem: "values that are no numbers",
            },
        })?;
        let new: Vec<usize> = (n_before..kept.counts.len()).collect();
        let own = new.par_iter().map(|&class| {
            let prior = self.prior.unwrap_or(d as f64);
            excess(moments.deviations(class), d, &shared, self.rank, prior)
        });
        for own in own.collect::<Result<Vec<_>, _>>()? {
            kept.directions.extend(own);
        }
        kept.keep(&mut state);
        Ok(state)
    }

    fn classifier(&self, state: &HeadState) -> Option<Classifier> {
        let means = state.per_class.get(MEANS)?;
        let &[_, d] = means.shape.as_slice() else {
            return None;
        };
        let kept = Kept::of(state, d, self.rank);
        Some(kept.classifier(&self.factor(&kept)?))
    }
}

impl Qda {
    /// The factor of the shared covariance, shrunk; `None` where it has none.
    fn factor(&self, kept: &Kept) -> Option<Cholesky> {
        if kept.covariance.mean_diagonal() == 0.0 {
            // No class has two images: any multiple of the unit matrix predicts alike.
            let mut shared = kept.covariance.clone();
            shared.add_diagonal(kept.scale());
            return shared.cholesky(0.0);
        }
        shrunk(&kept.covariance, kept.d, kept.degrees, self.shrinkage)
    }
}

/// The factor of a covariance `[d, d]` of so many degrees of freedom that is shrunk towards a multiple of the unit
/// matrix, by the share of [`oas`] where none is given; `None` where it has none.
pub(super) fn shrunk(
    covariance: &Symmetric,
    d: usize,
    degrees: f64,
    share: Option<f64>,
) -> Option<Cholesky> {
    let mut shared = covariance.clone();
    let share = share.unwrap_or_else(|| oas(&shared, d, degrees).max(LEAST_SHRINKAGE));
    let ridge = share * shared.mean_diagonal();
    shared.scale(1.0 - share);
    shared.cholesky(ridge)
}

/// The share of the unit matrix by which a covariance `[d, d]` of so many degrees of freedom is nearest to that of
/// Gaussian data (Chen et al. 2010, equation 23).
fn oas(covariance: &Symmetric, d: usize, degrees: f64) -> f64 {
    let d = d as f64;
    let trace_squared = (covariance.mean_diagonal() * d).powi(2);
    let squares = covariance.squares();
    let above = (1.0 - 2.0 / d) * squares + trace_squared;
    let below = (degrees + 1.0 - 2.0 / d) * (squares - trace_squared / d);
    match below > 0.0 {
        true => (above / below).clamp(0.0, 1.0),
        false => 1.0,
    }
}

/// The directions `[rank, d]` in which a class, of which `deviations: [n, d]` are the distances to its mean, spreads
/// more than the covariance of which `shared` is the factor.
///
/// # Errors
///
/// [`TrainError::Numbers`] for deviations that are no numbers.
pub(super) fn excess(
    deviations: &[f64],
    d: usize,
    shared: &Cholesky,
    rank: usize,
    prior: f64,
) -> Result<Vec<f32>, TrainError> {
    let mut directions = vec![0.0f32; rank * d];
    let n = deviations.len() / d.max(1);
    if rank == 0 || n < 2 {
        return Ok(directions);
    }
    let degrees = (n - 1) as f64;
    let weight = degrees / (degrees + prior);
    let rows = as_many_as_features(deviations, d);
    let m = rows.len() / d;
    // E A Eᵀ has the eigenvalues of the covariance where S is the unit matrix; q is L⁻¹ Eᵀ u / √(n λ), and with
    // the length √(α (λ − 1)) and back by L it is Eᵀ u √(α (λ − 1) / (n λ)).
    let mut solved = rows.clone();
    shared.solve(&mut solved);
    let mut inner = vec![0.0; m * m];
    let transposed = View::rows(&rows, d).transposed();
    add_product(
        &mut inner,
        m,
        1.0 / degrees,
        View::rows(&solved, d),
        transposed,
    );
    let eigen = Eigen::of(inner, m)?;
    let pairs = eigen.values.iter().zip(eigen.vectors.chunks_exact(m));
    let pairs = pairs.take_while(|&(&value, _)| value > 1.0);
    for (direction, (&value, vector)) in directions.chunks_exact_mut(d).zip(pairs) {
        let length = (weight * (value - 1.0) / (degrees * value)).sqrt();
        let mut sum = vec![0.0; d];
        for (row, u) in rows.chunks_exact(d).zip(vector) {
            sum.iter_mut().zip(row).for_each(|(s, x)| *s += u * x);
        }
        for (to, s) in direction.iter_mut().zip(sum) {
            *to = (length * s) as f32;
        }
    }
    Ok(directions)
}

/// Rows with the same Gram matrix, no more than `d`: those given, or the transposed factor of that matrix.
fn as_many_as_features(rows: &[f64], d: usize) -> Vec<f64> {
    if rows.len() <= d * d {
        return rows.to_vec();
    }
    let mut gram = Symmetric::zeros(d);
    gram.add_gram(rows);
    let ridge = f64::EPSILON * 4.0 * d as f64 * gram.mean_diagonal();
    let Some(factor) = gram.cholesky(ridge) else {
        return rows.to_vec();
    };
    let mut columns = vec![0.0; d * d];
    let places = (0..d).flat_map(|i| (0..=i).map(move |j| j * d + i));
    for (at, value) in places.zip(factor.lower()) {
        columns[at] = value;
    }
    columns
}

/// What is kept of all classes, on the host.
struct Kept {
    d: usize,
    rank: usize,
    /// `[n_classes, d]`.
    means: Vec<f32>,
    counts: Vec<f64>,
    /// `[n_classes, rank, d]`.
    directions: Vec<f32>,
    covariance: Symmetric,
    degrees: f64,
}

impl Kept {
    fn of(state: &HeadState, d: usize, rank: usize) -> Self {
        let shared = |name: &str| state.shared.get(name).map_or(&[][..], |a| &a.values);
        let means = state.rows(MEANS);
        let n = means.len() / d.max(1);
        let mut counts: Vec<f64> = state.rows(COUNTS).into_iter().map(f64::from).collect();
        counts.resize(n, 1.0);
        let mut directions = state.rows(DIRECTIONS);
        directions.resize(n * rank * d, 0.0);
        Self {
            d,
            rank,
            means,
            counts,
            directions,
            covariance: Symmetric::unpacked(shared(COVARIANCE), d),
            degrees: shared(DEGREES).first().copied().map_or(0.0, f64::from),
        }
    }

    fn keep(&self, state: &mut HeadState) {
        let (n, d) = (self.counts.len(), self.d);
        state.set_rows(MEANS, vec![n, d], self.means.clone());
        let counts = self.counts.iter().map(|&count| count as f32).collect();
        state.set_rows(COUNTS, vec![n, 1], counts);
        if self.rank > 0 {
            state.set_rows(DIRECTIONS, vec![n, self.rank, d], self.directions.clone());
        }
        state.set_shared(COVARIANCE, vec![packed_len(d)], self.covariance.packed());
        state.set_shared(DEGREES, vec![1], vec![self.degrees as f32]);
    }

    /// Moves everything by a map of features.
    fn follow(&mut self, map: &LinearMap) {
        map.apply_near(&mut self.means);
        map.apply_near(&mut self.directions);
        self.covariance = map.congruent(&self.covariance);
    }

    /// Adds images, of new classes and of known ones; gives their moments by label. New classes have no own
    /// directions yet.
    fn add(&mut self, table: &FeatureTable) -> ClassMoments {
        let d = self.d;
        let moments = ClassMoments::of(&table.features, d, &table.labels, 0);
        let n_classes = self.counts.len().max(moments.n_classes());
        self.means.resize(n_classes * d, 0.0);
        self.counts.resize(n_classes, 0.0);
        let (mut rows, mut total) = (Vec::new(), self.degrees);
        for class in 0..moments.n_classes() {
            let deviations = moments.deviations(class);
            let n_new = (deviations.len() / d.max(1)) as f64;
            if n_new == 0.0 {
                continue;
            }
            rows.extend_from_slice(deviations);
            let n_old = self.counts[class];
            let n = n_old + n_new;
            let own = &mut self.means[class * d..(class + 1) * d];
            let new = &moments.means[class * d..(class + 1) * d];
            // Two means of one class are apart too: what lies between them is spread within the class.
            let between = (n_old * n_new / n).sqrt();
            for (own, &new) in own.iter_mut().zip(new) {
                let apart = f64::from(new) - f64::from(*own);
                if n_old > 0.0 {
                    rows.push(between * apart);
                }
                *own = (f64::from(*own) + apart * n_new / n) as f32;
            }
            total += if n_old > 0.0 { n_new } else { n_new - 1.0 };
            self.counts[class] = n;
        }
        self.covariance.scale(self.degrees);
        self.covariance.add_gram(&rows);
        self.covariance.scale(1.0 / total.max(1.0));
        self.degrees = total;
        moments
    }

    /// Mean square of the numbers of the means; 1 where they are all 0.
    fn scale(&self) -> f64 {
        let squares: f64 = self.means.iter().map(|&m| f64::from(m).powi(2)).sum();
        let mean = squares / self.means.len().max(1) as f64;
        if mean > 0.0 { mean } else { 1.0 }
    }

    /// What predicts, by the factor of the shared covariance.
    fn classifier(&self, shared: &Cholesky) -> Classifier {
        let (d, n, rank) = (self.d, self.counts.len(), self.rank);
        let mut common = vec![0.0f64; d];
        for mean in self.means.chunks_exact(d.max(1)) {
            for (sum, &m) in common.iter_mut().zip(mean) {
                *sum += f64::from(m) / n as f64;
            }
        }
        let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|&v| f64::from(v)).collect() };
        // About the common mean, so that no logit is the difference of two large numbers.
        let mut centred = wide(&self.means);
        for mean in centred.chunks_exact_mut(d.max(1)) {
            mean.iter_mut().zip(&common).for_each(|(m, c)| *m -= c);
        }
        let mut rows = centred.clone();
        shared.solve(&mut rows);
        let pairs = rows
            .chunks_exact(d.max(1))
            .zip(centred.chunks_exact(d.max(1)));
        let mut bias: Vec<f64> = pairs
            .map(|(row, mean)| -0.5 * dot(row, mean) - dot(row, &common))
            .collect();
        let near = |values: &[f64]| -> Vec<f32> { values.iter().map(|&v| v as f32).collect() };
        if self.directions.iter().all(|&v| v == 0.0) {
            return Classifier::linear(near(&rows), d, Some(near(&bias)));
        }
        let directions = wide(&self.directions);
        let mut solved = directions.clone();
        shared.solve(&mut solved);
        let means = wide(&self.means);
        let (mut factors, mut offsets) = (solved, Vec::with_capacity(n * rank));
        let of_classes = factors
            .chunks_exact_mut(rank * d)
            .zip(directions.chunks_exact(rank * d));
        for (class, (own, directions)) in of_classes.enumerate() {
            let root = root_of_unit_plus(directions, own, rank, d);
            forward(&root, own, rank, d);
            let mean = &means[class * d..(class + 1) * d];
            offsets.extend(own.chunks_exact(d).map(|row| dot(row, mean)));
            bias[class] -= (0..rank).map(|i| root[i * rank + i].ln()).sum::<f64>();
        }
        Classifier::linear(near(&rows), d, Some(near(&bias)))
            .with_squares(near(&factors), near(&offsets))
    }
}

/// The lower factor `[rank, rank]` of `I + left · rightᵀ`, which is positive definite; both `[rank, d]`.
fn root_of_unit_plus(left: &[f64], right: &[f64], rank: usize, d: usize) -> Vec<f64> {
    let mut root = vec![0.0; rank * rank];
    for i in 0..rank {
        for j in 0..=i {
            let inner = dot(&left[i * d..(i + 1) * d], &right[j * d..(j + 1) * d]);
            let (row_i, row_j) = (&root[i * rank..i * rank + j], &root[j * rank..j * rank + j]);
            let rest = inner - dot(row_i, row_j);
            root[i * rank + j] = match i == j {
                // At least 1, as all that is added to the unit matrix is a covariance.
                true => (1.0 + rest.max(0.0)).sqrt(),
                false => rest / root[j * rank + j],
            };
        }
    }
    root
}

/// `root⁻¹ · rows` in place, of a lower `root: [rank, rank]` and `rows: [rank, d]`.
fn forward(root: &[f64], rows: &mut [f64], rank: usize, d: usize) {
    for i in 0..rank {
        let (done, rest) = rows.split_at_mut(i * d);
        let row = &mut rest[..d];
        for (k, done) in done.chunks_exact(d).enumerate() {
            let factor = root[i * rank + k];
            row.iter_mut().zip(done).for_each(|(x, y)| *x -= factor * y);
        }
        let pivot = root[i * rank + i];
        row.iter_mut().for_each(|x| *x /= pivot);
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_testkit::test_device;
    use sdlora_testkit::toy::SplitMix64;

    const D: usize = 6;

    fn head(options: &str) -> Arc<dyn Head> {
        (ENTRY.build)(&options.parse().unwrap()).unwrap()
    }

    /// `n` noisy features of each of the labels, around the axis of the label.
    fn table(labels: std::ops::Range<usize>, n: usize, seed: u64) -> FeatureTable {
        let mut noise = SplitMix64::new(seed);
        let mut table = FeatureTable {
            d_model: D,
            ..FeatureTable::default()
        };
        for label in labels {
            for _ in 0..n {
                let mut row = noise.fill(D, 0.4);
                row[label] += 1.0;
                row[(label + 1) % D] += 2.0 * row[D - 1];
                table.features.extend(row);
                table.labels.push(label);
            }
        }
        table
    }

    fn fit(head: &dyn Head, state: HeadState, table: &FeatureTable, first: usize) -> HeadState {
        let device = test_device();
        head.fit(state, &task(table, first, &device)).unwrap()
    }

    fn task<'a>(
        table: &'a FeatureTable,
        first_label: usize,
        device: &'a burn::tensor::Device,
    ) -> HeadTask<'a> {
        HeadTask {
            table,
            first_label,
            task_idx: first_label,
            seed: 1,
            device,
        }
    }

    fn close(a: &[f32], b: &[f32], tolerance: f32) {
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() < tolerance, "{a} and {b}");
        }
    }

    #[test]
    fn means_and_the_shared_covariance_are_those_of_all_images_in_any_order() {
        let head = head("rank = 0");
        let (a, b, again) = (table(0..2, 9, 1), table(2..4, 7, 2), table(1..2, 5, 3));
        let joined = |tables: &[&FeatureTable]| {
            let mut all = FeatureTable {
                d_model: D,
                ..FeatureTable::default()
            };
            for table in tables {
                all.features.extend(&table.features);
                all.labels.extend(&table.labels);
            }
            all
        };
        let whole = fit(
            head.as_ref(),
            HeadState::default(),
            &joined(&[&a, &b, &again]),
            0,
        );
        let mut parts = fit(head.as_ref(), HeadState::default(), &a, 0);
        parts = fit(head.as_ref(), parts, &b, 2);
        parts = fit(head.as_ref(), parts, &again, 4);
        close(&parts.rows(MEANS), &whole.rows(MEANS), 1e-5);
        assert_eq!(parts.rows(COUNTS), [9.0, 14.0, 7.0, 7.0]);
        assert_eq!(parts.shared[DEGREES].values, [33.0]);
        close(
            &parts.shared[COVARIANCE].values,
            &whole.shared[COVARIANCE].values,
            1e-5,
        );
        assert!(!parts.per_class.contains_key(DIRECTIONS));
        assert_eq!(parts.floats_stored().per_class, D + 1);
    }

    #[test]
    fn one_image_a_class_predicts_the_nearest_mean() {
        let head = head("");
        let state = fit(head.as_ref(), HeadState::default(), &table(0..5, 1, 1), 0);
        let classifier = head.classifier(&state).unwrap();
        let test = table(0..5, 20, 2);
        let means = state.rows(MEANS);
        let nearest = |row: &[f32]| {
            let far =
                |mean: &[f32]| -> f32 { row.iter().zip(mean).map(|(a, b)| (a - b).powi(2)).sum() };
            let all = means.chunks_exact(D).map(far).enumerate();
            all.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0
        };
        let expected: Vec<usize> = (0..test.len()).map(|i| nearest(test.row(i))).collect();
        assert_eq!(classifier.predict(&test), expected);
        // A class of one image beside others of many has the shared covariance: no direction of its own.
        let state = fit(head.as_ref(), HeadState::default(), &table(0..3, 12, 1), 0);
        let state = fit(head.as_ref(), state, &table(3..4, 1, 4), 3);
        let directions = state.rows(DIRECTIONS);
        let (old, new) = directions.split_at(3 * 4 * D);
        assert!(new.iter().all(|&v| v == 0.0) && old.iter().any(|&v| v != 0.0));
    }

    #[test]
    fn classes_of_one_mean_are_told_apart_by_their_own_directions() {
        let classes = |seed: u64| {
            let mut noise = SplitMix64::new(seed);
            let mut table = FeatureTable {
                d_model: D,
                ..FeatureTable::default()
            };
            for i in 0..400 {
                let mut row = noise.fill(D, 0.3);
                row[i % 2] *= 10.0;
                table.features.extend(row);
                table.labels.push(i % 2);
            }
            table
        };
        let accuracy = |options: &str| {
            let head = head(options);
            let state = fit(head.as_ref(), HeadState::default(), &classes(1), 0);
            let test = classes(2);
            let classifier = head.classifier(&state).unwrap();
            crate::accuracy(&classifier.predict(&test), &test.labels)
        };
        let (without, with) = (accuracy("rank = 0"), accuracy("rank = 1"));
        assert!(without < 0.6 && with > 0.8, "{without}, {with}");
    }

    #[test]
    fn everything_moves_with_features_that_move_by_a_linear_map() {
        let matrix = SplitMix64::new(8).fill(D * D, 0.5);
        let moves = |table: &FeatureTable| {
            let mut moved = table.clone();
            for (to, row) in moved
                .features
                .chunks_exact_mut(D)
                .zip(table.features.chunks_exact(D))
            {
                for (to, m) in to.iter_mut().zip(matrix.chunks_exact(D)) {
                    *to += m.iter().zip(row).map(|(m, x)| m * x).sum::<f32>();
                }
            }
            moved
        };
        let (old, new) = (table(0..2, 20, 1), table(2..5, 20, 2));
        let device = test_device();
        let fitted = |drift: &str, first: &FeatureTable, second: &FeatureTable| {
            // The share of the unit matrix is none of what moves.
            let head = head(&format!("rank = 2\nshrinkage = 0.0\ndrift = \"{drift}\""));
            let mut state = fit(head.as_ref(), HeadState::default(), first, 0);
            if head.wants_features_before() {
                state = head.before_task(state, &task(&new, 2, &device)).unwrap();
            }
            let state = fit(head.as_ref(), state, second, 2);
            let classifier = head.classifier(&state).unwrap();
            (classifier.predict(&moves(&table(0..5, 40, 7))), state)
        };
        let (labels, expected) = fitted("none", &moves(&old), &moves(&new));
        let (found, state) = fitted("linear", &old, &moves(&new));
        for name in [MEANS, COUNTS] {
            close(&state.rows(name), &expected.rows(name), 1e-4);
        }
        close(
            &state.shared[COVARIANCE].values,
            &expected.shared[COVARIANCE].values,
            1e-4,
        );
        // A direction may point either way.
        for (a, b) in state
            .rows(DIRECTIONS)
            .chunks_exact(D)
            .zip(expected.rows(DIRECTIONS).chunks_exact(D))
        {
            let sign = if a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>() < 0.0 {
                -1.0
            } else {
                1.0
            };
            let a: Vec<f32> = a.iter().map(|v| sign * v).collect();
            close(&a, b, 1e-3);
        }
        assert_eq!(found, labels);
        let (still, state) = fitted("none", &old, &moves(&new));
        let means = state.rows(MEANS);
        let apart = means
            .iter()
            .zip(expected.rows(MEANS))
            .map(|(a, b)| (a - b).abs());
        assert!(apart.fold(0.0, f32::max) > 0.1);
        assert_ne!(still, labels);
    }

    #[test]
    fn more_images_than_features_have_the_directions_of_all_of_them() {
        let rows: Vec<f64> = SplitMix64::new(3)
            .fill(50 * D, 1.0)
            .into_iter()
            .map(f64::from)
            .collect();
        let fewer = as_many_as_features(&rows, D);
        assert_eq!(fewer.len(), D * D);
        let gram = |rows: &[f64]| {
            let mut gram = Symmetric::zeros(D);
            gram.add_gram(rows);
            gram.packed()
        };
        close(&gram(&fewer), &gram(&rows), 1e-5);
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        for (options, expected) in [
            ("rank = 1025", "head.rank"),
            ("rank = -1", "rank"),
            ("shrinkage = 1.5", "head.shrinkage"),
            ("shrinkage = nan", "head.shrinkage"),
            ("prior = 0.0", "head.prior"),
            ("prior = inf", "head.prior"),
        ] {
            let error = (ENTRY.build)(&options.parse().unwrap()).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
        // Three images in six dimensions, and nothing of the unit matrix.
        let device = test_device();
        let few = table(0..1, 3, 1);
        let error = head("shrinkage = 0.0").fit(HeadState::default(), &task(&few, 0, &device));
        assert!(error.unwrap_err().to_string().contains("larger share"));
        let mut broken = few.clone();
        broken.features[3] = f32::NAN;
        let error = head("").fit(HeadState::default(), &task(&broken, 0, &device));
        assert!(error.unwrap_err().to_string().contains("no numbers"));
    }
}
