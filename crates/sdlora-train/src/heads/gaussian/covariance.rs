//! Covariances of classes, and the factors that samples are drawn with.

use super::moments::ClassMoments;
use crate::error::TrainError;
use crate::heads::drift::LinearMap;
use crate::linalg::{Symmetric, packed_len};

/// Added to the diagonal of a covariance, relative to its mean: few images leave it singular. (The
/// published code adds 1e-4 to features whose variance is about 1.)
const RIDGE: f64 = 1e-4;

/// The lower triangle of the factor to sample with, row by row; zeros where all images are one.
///
/// # Errors
///
/// [`TrainError::Numbers`] for a covariance that has none.
pub(in crate::heads) fn factor(covariance: Symmetric, d: usize) -> Result<Vec<f32>, TrainError> {
    let mean = covariance.mean_diagonal();
    if mean == 0.0 {
        return Ok(vec![0.0; packed_len(d)]);
    }
    match covariance.cholesky(RIDGE * mean) {
        Some(factor) => Ok(factor.lower().map(|v| v as f32).collect()),
        None => Err(TrainError::Numbers {
            what: "the covariance of a class",
            problem: "values that are no numbers, or no positive variance",
        }),
    }
}

/// The factors of covariances that are given as lower triangles, one after another.
///
/// # Errors
///
/// Those of [`factor`].
pub(super) fn factors(lower: &[f32], d: usize) -> Result<Vec<f32>, TrainError> {
    let lower = lower.chunks_exact(packed_len(d).max(1));
    let factors = lower.map(|lower| factor(Symmetric::unpacked(lower, d), d));
    Ok(factors.collect::<Result<Vec<_>, _>>()?.concat())
}

/// The factors of covariances that a map moved, of factors that are given one after another.
///
/// # Errors
///
/// Those of [`factor`].
pub(super) fn moved_factors(
    lower: &[f32],
    d: usize,
    map: &LinearMap,
) -> Result<Vec<f32>, TrainError> {
    let mut moved = Vec::with_capacity(lower.len());
    for lower in lower.chunks_exact(packed_len(d).max(1)) {
        // Σ = Σ_j l_j l_jᵀ over the columns of the factor, so M Σ Mᵀ is that of their moves.
        let mut columns = vec![0.0; d * d];
        let places = (0..d).flat_map(|i| (0..=i).map(move |j| j * d + i));
        for (at, &value) in places.zip(lower) {
            columns[at] = f64::from(value);
        }
        map.apply(&mut columns);
        let mut covariance = Symmetric::zeros(d);
        covariance.add_gram(&columns);
        // It has the ridge of its class already; a map that loses a direction needs another.
        match covariance.clone().cholesky(0.0) {
            Some(factor) => moved.extend(factor.lower().map(|v| v as f32)),
            None => moved.extend(factor(covariance, d)?),
        }
    }
    Ok(moved)
}

/// Variances `[n, d]` of covariances that are diagonal before a map moves them: `Σ_j M_ij² v_j`.
pub(super) fn moved_variances(variances: &mut [f32], d: usize, map: &LinearMap) {
    let squares: Vec<f64> = map.rows().iter().map(|v| v * v).collect();
    for own in variances.chunks_exact_mut(d.max(1)) {
        let moved: Vec<f32> = squares
            .chunks_exact(d)
            .map(|row| {
                let products = row.iter().zip(&*own).map(|(m, &v)| m * f64::from(v));
                products.sum::<f64>() as f32
            })
            .collect();
        own.copy_from_slice(&moved);
    }
}

/// The covariance within classes that comes from `degrees` degrees of freedom, as a lower triangle, with the spread of
/// new classes; and the degrees of both.
pub(super) fn pooled(before: &[f32], degrees: f64, new: &ClassMoments) -> (Vec<f32>, f64) {
    let d = new.d_model;
    let mut sum = Symmetric::zeros(d);
    sum.add(degrees, &Symmetric::unpacked(before, d));
    let mut total = degrees;
    for class in 0..new.n_classes() {
        let own = new.degrees(class);
        sum.add(own, &new.covariance(class));
        total += own;
    }
    let mut mean = Symmetric::zeros(d);
    mean.add(1.0 / total.max(1.0), &sum);
    (mean.packed(), total)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{D, fit, head, table};
    use super::super::{COVARIANCE, FACTORS, FIRST_LABELS, MEANS, VARIANCES, WEIGHT};
    use super::*;
    use crate::features::FeatureTable;
    use crate::heads::HeadState;

    fn moments_of(table: &FeatureTable) -> ClassMoments {
        ClassMoments::of(&table.features, table.d_model, &table.labels, 0)
    }

    fn factor_of(lower: &[f32]) -> Vec<f32> {
        factor(Symmetric::unpacked(lower, 2), 2).unwrap()
    }

    #[test]
    fn a_class_of_one_image_is_sampled_as_that_image_and_no_number_is_an_error() {
        assert_eq!(factor_of(&[0.0; 3]), [0.0; 3]);
        // One direction of spread in two: singular, and still sampled.
        assert!(factor_of(&[1.0, 1.0, 1.0])[0] > 0.9);
        let error = factor(Symmetric::unpacked(&[1.0, f32::NAN, 1.0], 2), 2).unwrap_err();
        assert!(error.to_string().contains("covariance"), "{error}");
    }

    #[test]
    fn covariances_of_an_earlier_version_become_factors() {
        let head = head("");
        let kept = fit(head.as_ref(), HeadState::default(), &table(0..2, 1, 0.0), 0);
        let mut earlier = kept.clone();
        earlier.per_class.remove(FACTORS);
        let new = moments_of(&table(0..2, 1, 0.0));
        let lower: Vec<f32> = (0..2).flat_map(|c| new.covariance(c).packed()).collect();
        earlier.set_rows(COVARIANCE, vec![2, packed_len(D)], lower);
        let next = table(2..4, 2, 0.0);
        let (now, earlier) = (
            fit(head.as_ref(), kept, &next, 2),
            fit(head.as_ref(), earlier, &next, 2),
        );
        assert!(!earlier.per_class.contains_key(COVARIANCE));
        let (a, b) = (now.rows(FACTORS), earlier.rows(FACTORS));
        assert_eq!(a.len(), 4 * packed_len(D));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5));
        let (a, b) = (now.rows(WEIGHT), earlier.rows(WEIGHT));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-2));
    }

    #[test]
    fn means_and_spreads_by_hand() {
        let tables = [
            // Class 0: mean (1, 2), variances 2 and 8, covariance 4. Class 1: one image.
            ([[0.0, 0.0], [2.0, 4.0], [7.0, 7.0]], [0, 0, 1]),
            // Class 2: mean (0, 0), variances 2 and 2, covariance -2. Class 3: one image.
            ([[1.0, -1.0], [-1.0, 1.0], [5.0, 5.0f32]], [2, 2, 3]),
        ];
        for (covariance, per_class, shared) in [
            (
                "full",
                vec![2.0, 4.0, 8.0, 0.0, 0.0, 0.0, 2.0, -2.0, 2.0, 0.0, 0.0, 0.0],
                vec![],
            ),
            (
                "diagonal",
                vec![2.0, 8.0, 0.0, 0.0, 2.0, 2.0, 0.0, 0.0],
                vec![],
            ),
            ("shared", vec![], vec![2.0, 1.0, 5.0]),
        ] {
            let head = head(&format!("covariance = \"{covariance}\"\nn_epochs = 0"));
            let mut state = HeadState::default();
            for (rows, labels) in &tables {
                let table = FeatureTable {
                    features: rows.concat(),
                    d_model: 2,
                    labels: labels.to_vec(),
                    ..FeatureTable::default()
                };
                state = fit(head.as_ref(), state, &table, labels[0]);
            }
            let means = [1.0, 2.0, 7.0, 7.0, 0.0, 0.0, 5.0, 5.0];
            assert_eq!(state.rows(MEANS), means);
            assert_eq!(state.rows(FIRST_LABELS), [0.0, 0.0, 2.0, 2.0]);
            // A factor times its transpose is the covariance with a ten-thousandth of its mean variance on
            // the diagonal.
            let covariances = state.rows(FACTORS);
            let covariances = covariances.chunks_exact(3).flat_map(|factor| {
                let [a, b, c] = [factor[0], factor[1], factor[2]];
                [a * a, a * b, b * b + c * c]
            });
            let found = covariances.chain(state.rows(VARIANCES));
            let pairs: Vec<_> = found.zip(&per_class).collect();
            assert_eq!(pairs.len(), per_class.len(), "{covariance}");
            assert!(
                pairs.iter().all(|(a, b)| (a - *b).abs() < 1e-3),
                "{covariance}: {pairs:?}"
            );
            let found = state.shared.get(COVARIANCE);
            assert_eq!(found.map_or(vec![], |a| a.values.clone()), shared);
        }
    }
}
