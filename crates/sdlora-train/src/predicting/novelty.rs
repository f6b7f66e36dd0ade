//! Whether a feature belongs to any class: its distance from the nearest class mean, in units of the spread within
//! classes (Lee et al. 2018, "A simple unified framework for detecting out-of-distribution samples", section 2.1).
//!
//! `distance(x) = min_c √((x − μ_c)ᵀ P (x − μ_c))`, where `P` is the inverse of the covariance within classes, one for
//! all of them. Means and covariance are gathered in the task of a class from its training images, as a head gathers
//! its own; later tasks move the features and not the means.
//!
//! Deviates: few images leave the covariance singular, so it is drawn towards a multiple of the identity: the share of
//! the latter is `d / (d + n)`, where `n` are the degrees of freedom.

use std::path::Path;

use crate::error::TrainError;
use crate::export::TensorFile;
use crate::features::FeatureTable;
use crate::heads::HeadState;
use crate::linalg::{Symmetric, View, add_product, packed_len};

/// Class means `[n_classes, d_model]` among the arrays of a head, which checkpoints keep.
const MEANS: &str = "novelty_means";
/// The lower triangle `[d_model (d_model + 1) / 2]` of the covariance within classes.
const COVARIANCE: &str = "novelty_covariance";
/// The degrees of freedom `[1]` it comes from.
const DEGREES: &str = "novelty_degrees";

/// Adds the new classes of a task, the first of which has the label `first_label`, to the statistics that go with a
/// head. A class that comes again keeps the mean of its first task.
pub(crate) fn gather(state: &mut HeadState, table: &FeatureTable, first_label: usize) {
    let d = table.d_model;
    let end = table
        .labels
        .iter()
        .map(|label| label + 1)
        .max()
        .unwrap_or(0);
    let n_new = end.saturating_sub(first_label);
    let mut sums = vec![0.0f64; n_new * d];
    let mut counts = vec![0usize; n_new];
    for (i, label) in table.labels.iter().enumerate() {
        let Some(class) = label.checked_sub(first_label) else {
            continue;
        };
        counts[class] += 1;
        for (sum, &x) in sums[class * d..(class + 1) * d]
            .iter_mut()
            .zip(table.row(i))
        {
            *sum += f64::from(x);
        }
    }
    for (mean, &count) in sums.chunks_exact_mut(d.max(1)).zip(&counts) {
        mean.iter_mut().for_each(|sum| *sum /= count.max(1) as f64);
    }
    let mut deviations = Vec::with_capacity(table.features.len());
    for (i, label) in table.labels.iter().enumerate() {
        if let Some(class) = label.checked_sub(first_label) {
            let mean = &sums[class * d..(class + 1) * d];
            deviations.extend(
                table
                    .row(i)
                    .iter()
                    .zip(mean)
                    .map(|(&x, m)| f64::from(x) - m),
            );
        }
    }
    let before = |name: &str| {
        state
            .shared
            .get(name)
            .map_or(&[][..], |array| &array.values)
    };
    let degrees = before(DEGREES).first().copied().map_or(0.0, f64::from);
    let own: usize = counts.iter().map(|count| count.saturating_sub(1)).sum();
    let total = degrees + own as f64;
    let mut scatter = Symmetric::zeros(d);
    scatter.add(degrees, &Symmetric::unpacked(before(COVARIANCE), d));
    scatter.add_gram(&deviations);
    let mut covariance = Symmetric::zeros(d);
    covariance.add(1.0 / total.max(1.0), &scatter);
    let mut means = state.rows(MEANS);
    means.truncate(first_label * d);
    means.extend(sums.iter().map(|&m| m as f32));
    state.set_rows(MEANS, vec![means.len() / d.max(1), d], means);
    state.set_shared(COVARIANCE, vec![packed_len(d)], covariance.packed());
    state.set_shared(DEGREES, vec![1], vec![total as f32]);
}

/// Whether statistics were gathered before: then those of every later class are, too.
pub(crate) fn gathers(state: &HeadState) -> bool {
    state.per_class.contains_key(MEANS)
}

/// Distances of features from the classes of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Novelty {
    d_model: usize,
    /// What is taken off features and means, so that differences keep their digits `[d_model]`.
    centre: Vec<f64>,
    /// `P` `[d_model, d_model]`.
    precision: Vec<f64>,
    /// `P (μ_c − centre)` `[n_classes, d_model]`.
    columns: Vec<f64>,
    /// `(μ_c − centre)ᵀ P (μ_c − centre)` `[n_classes]`.
    squares: Vec<f64>,
}

impl Novelty {
    /// From what [`gather`] left; `None` where it gathered nothing.
    ///
    /// # Errors
    ///
    /// [`TrainError::Numbers`] when the covariance has no inverse, because it holds no numbers.
    pub(crate) fn of(state: &HeadState) -> Result<Option<(Self, TensorFile)>, TrainError> {
        let (Some(means), Some(covariance)) =
            (state.per_class.get(MEANS), state.shared.get(COVARIANCE))
        else {
            return Ok(None);
        };
        let &[n_classes, d] = means.shape.as_slice() else {
            return Ok(None);
        };
        let degrees = state.shared.get(DEGREES);
        let degrees = degrees.and_then(|a| a.values.first()).copied();
        let degrees = degrees.map_or(0.0, f64::from);
        let precision = precision(&covariance.values, d, degrees)?;
        let mut file = TensorFile::default();
        file.insert("means", vec![n_classes, d], means.values.clone());
        let values = precision.iter().map(|&v| v as f32).collect();
        file.insert("precision", vec![d, d], values);
        // From the file's numbers, so that a model that is read back gives the same distances.
        let novelty = Self::from_file(&file, Path::new(""), d)?;
        Ok(Some((novelty, file)))
    }

    /// From features of all classes at once; `None` of an empty table.
    ///
    /// # Errors
    ///
    /// [`TrainError::Numbers`] for features that are no numbers.
    pub fn of_features(table: &FeatureTable) -> Result<Option<Self>, TrainError> {
        if table.is_empty() {
            return Ok(None);
        }
        let mut state = HeadState::default();
        gather(&mut state, table, 0);
        Ok(Self::of(&state)?.map(|(novelty, _)| novelty))
    }

    /// Reads the tensors `means` `[n_classes, d_model]` and `precision` `[d_model, d_model]`.
    ///
    /// # Errors
    ///
    /// [`TrainError::Export`] when they are missing or of another shape.
    pub(crate) fn from_file(
        file: &TensorFile,
        path: &Path,
        d_model: usize,
    ) -> Result<Self, TrainError> {
        let ([n_classes, d], means) = file.get::<2>(path, "means")?;
        let (shape, precision) = file.get::<2>(path, "precision")?;
        if d != d_model || shape != [d, d] || n_classes == 0 {
            return Err(TrainError::export(
                path,
                format!(
                    "means of {n_classes} x {d} and a precision of {} x {} do not fit features of width {d_model}; \
                     use the file of the same run",
                    shape[0], shape[1]
                ),
            ));
        }
        let mut centre = vec![0.0; d];
        for mean in means.chunks_exact(d) {
            for (sum, &x) in centre.iter_mut().zip(mean) {
                *sum += f64::from(x) / n_classes as f64;
            }
        }
        let precision: Vec<f64> = precision.iter().map(|&v| f64::from(v)).collect();
        let rows = centred(means, &centre);
        let columns = product(&rows, &precision, d);
        let squares = dots(&rows, &columns, d);
        Ok(Self {
            d_model: d,
            centre,
            precision,
            columns,
            squares,
        })
    }

    /// Distance of every row of a table from the nearest class mean, at least 0.
    pub fn distances(&self, table: &FeatureTable) -> Vec<f64> {
        let d = self.d_model;
        let n_classes = self.squares.len();
        let rows = centred(&table.features, &self.centre);
        let own = dots(&rows, &product(&rows, &self.precision, d), d);
        let mut mixed = vec![0.0; own.len() * n_classes];
        let columns = View::rows(&self.columns, d).transposed();
        add_product(&mut mixed, n_classes, 1.0, View::rows(&rows, d), columns);
        let mixed = mixed.chunks_exact(n_classes).zip(own);
        mixed
            .map(|(mixed, own)| {
                let squares = mixed
                    .iter()
                    .zip(&self.squares)
                    .map(|(m, s)| own - 2.0 * m + s);
                squares.fold(f64::INFINITY, f64::min).max(0.0).sqrt()
            })
            .collect()
    }
}

/// The inverse of a covariance of that many degrees of freedom, drawn towards a multiple of the identity.
fn precision(lower: &[f32], d: usize, degrees: f64) -> Result<Vec<f64>, TrainError> {
    let covariance = Symmetric::unpacked(lower, d);
    let mean = covariance.mean_diagonal();
    // Where all images of every class are one, distances are plain ones.
    let mean = if mean == 0.0 { 1.0 } else { mean };
    let share = d as f64 / (d as f64 + degrees);
    let mut drawn = Symmetric::zeros(d);
    drawn.add(1.0 - share, &covariance);
    let factor = drawn.cholesky(share * mean).ok_or(TrainError::Numbers {
        what: "the covariance within classes",
        problem: "values that are no numbers",
    })?;
    let mut inverse = vec![0.0; d * d];
    inverse.iter_mut().step_by(d + 1).for_each(|v| *v = 1.0);
    factor.solve(&mut inverse);
    Ok(inverse)
}

fn centred(rows: &[f32], centre: &[f64]) -> Vec<f64> {
    let d = centre.len().max(1);
    let rows = rows.chunks_exact(d);
    rows.flat_map(|row| row.iter().zip(centre).map(|(&x, c)| f64::from(x) - c))
        .collect()
}

/// `rows: [n, d]` times a symmetric `[d, d]`.
fn product(rows: &[f64], matrix: &[f64], d: usize) -> Vec<f64> {
    let mut out = vec![0.0; rows.len()];
    add_product(&mut out, d, 1.0, View::rows(rows, d), View::rows(matrix, d));
    out
}

/// Scalar products of the rows of two `[n, d]`.
fn dots(a: &[f64], b: &[f64], d: usize) -> Vec<f64> {
    let pairs = a.chunks_exact(d.max(1)).zip(b.chunks_exact(d.max(1)));
    pairs
        .map(|(a, b)| a.iter().zip(b).map(|(a, b)| a * b).sum())
        .collect()
}

/// The smallest of `values` that at least a share of those to come are expected not to exceed: the
/// `⌈(n + 1) · share⌉`-th in ascending order, the largest where there are too few. Infinity without values.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = ((values.len() + 1) as f64 * share).ceil() as usize;
    let idx = rank.clamp(1, values.len().max(1)) - 1;
    sorted.get(idx).copied().unwrap_or(f64::INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[[f32; 2]], labels: &[usize]) -> FeatureTable {
        FeatureTable {
            features: rows.concat(),
            d_model: 2,
            labels: labels.to_vec(),
            ..FeatureTable::default()
        }
    }

    /// Two tasks of one class: deviations (±3, 0) about (0, 0), and (0, ±1) about (10, 0).
    fn gathered() -> HeadState {
        let mut state = HeadState::default();
        gather(&mut state, &table(&[[3.0, 0.0], [-3.0, 0.0]], &[0, 0]), 0);
        gather(&mut state, &table(&[[10.0, 1.0], [10.0, -1.0]], &[1, 1]), 1);
        state
    }

    #[test]
    fn means_and_covariance_by_hand_over_two_tasks() {
        let state = gathered();
        assert_eq!(state.rows(MEANS), [0.0, 0.0, 10.0, 0.0]);
        // Sums of squares 18 and 2 over two degrees of freedom.
        assert_eq!(state.shared[COVARIANCE].values, [9.0, 0.0, 1.0]);
        assert_eq!(state.shared[DEGREES].values, [2.0]);
        // A class that comes again adds nothing.
        let mut again = state.clone();
        gather(&mut again, &table(&[[50.0, 0.0], [60.0, 0.0]], &[0, 0]), 2);
        assert_eq!(again.rows(MEANS), state.rows(MEANS));
        assert_eq!(again.shared[COVARIANCE], state.shared[COVARIANCE]);
    }

    #[test]
    fn distances_by_hand_and_after_a_file() {
        let (novelty, file) = Novelty::of(&gathered()).unwrap().unwrap();
        // Half of the covariance and half of 5 on the diagonal: variances 7 and 3.
        let found = novelty.distances(&table(
            &[[0.0, 0.0], [7.0f32.sqrt(), 0.0], [10.0, 6.0], [3.0, 0.0]],
            &[0; 4],
        ));
        let expected = [0.0, 1.0, 12.0f64.sqrt(), (9.0f64 / 7.0).sqrt()];
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
        let path = Path::new("novelty.safetensors");
        let again = Novelty::from_file(&file, path, 2).unwrap();
        assert_eq!(again, novelty);
        let error = Novelty::from_file(&file, path, 3).unwrap_err().to_string();
        assert!(
            error.contains("2 x 2") && error.contains("width 3"),
            "{error}"
        );
    }

    #[test]
    fn one_image_a_class_gives_plain_distances_and_no_numbers_an_error() {
        let mut state = HeadState::default();
        gather(&mut state, &table(&[[0.0, 0.0], [8.0, 0.0]], &[0, 1]), 0);
        let (novelty, _) = Novelty::of(&state).unwrap().unwrap();
        let found = novelty.distances(&table(&[[3.0, 4.0]], &[0]));
        assert!((found[0] - 5.0).abs() < 1e-9, "{found:?}");
        assert!(Novelty::of(&HeadState::default()).unwrap().is_none());
        let mut state = HeadState::default();
        gather(
            &mut state,
            &table(&[[f32::NAN, 0.0], [1.0, 0.0]], &[0, 0]),
            0,
        );
        assert!(Novelty::of(&state).is_err());
    }

    #[test]
    fn a_quantile_holds_for_the_next_value() {
        let values: Vec<f64> = (1..=19).map(f64::from).collect();
        // Of 20 values in any order, the last is above the 19th in one case of twenty.
        assert_eq!(quantile(&values, 0.95), 19.0);
        assert_eq!(quantile(&values, 0.5), 10.0);
        assert_eq!(quantile(&[4.0, 2.0], 0.95), 4.0);
        assert_eq!(quantile(&[], 0.95), f64::INFINITY);
    }
}
