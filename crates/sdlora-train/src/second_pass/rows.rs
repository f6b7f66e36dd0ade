//! Rows of vectors: drawn, kept as parameters, compared by angle.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, RngExt};

/// Keeps the length of a zero vector away from 0.
pub(crate) const NORM_EPS: f64 = 1e-12;

/// A trained parameter of values from U(-spread, spread).
pub(crate) fn drawn<const D: usize>(
    shape: [usize; D],
    spread: f32,
    rng: &mut impl Rng,
    device: &Device,
) -> Param<Tensor<D>> {
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| spread * rng.random_range(-1.0f32..1.0))
        .collect();
    trained(values, shape, device)
}

/// A trained parameter of these values.
pub(crate) fn trained<const D: usize>(
    values: Vec<f32>,
    shape: [usize; D],
    device: &Device,
) -> Param<Tensor<D>> {
    Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), device))
}

/// The rows of both, one after another, frozen.
pub(crate) fn frozen<const D: usize>(
    past: Option<Param<Tensor<D>>>,
    current: Param<Tensor<D>>,
) -> Param<Tensor<D>> {
    let rows = past.into_iter().chain([current]).map(|rows| rows.val());
    let all = Tensor::cat(rows.collect(), 0).detach();
    // A detached parameter is still one that is trained.
    Param::from_tensor(all).set_require_grad(false)
}

/// The rows of both, one after another, as the graph has them.
pub(crate) fn all<const D: usize>(
    past: Option<&Param<Tensor<D>>>,
    current: &Param<Tensor<D>>,
) -> Tensor<D> {
    match past {
        Some(past) => Tensor::cat(vec![past.val(), current.val()], 0),
        None => current.val(),
    }
}

/// Rows of length 1.
pub(crate) fn unit(rows: Tensor<2>) -> Tensor<2> {
    let squares = rows.clone().square().sum_dim(1);
    rows / squares.add_scalar(NORM_EPS).sqrt()
}

/// Cosines `[n, m]` of every row of `a: [n, d]` with every row of `b: [m, d]`.
pub(crate) fn cosine(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    unit(a).matmul(unit(b).transpose())
}

/// `n` rows of length 1 that are orthogonal to each other and to the rows of `past`, row-major, as
/// long as the width leaves room; drawn ones of length 1 from then on.
pub(crate) fn orthonormal(past: &[f32], n: usize, d: usize, rng: &mut impl Rng) -> Vec<f32> {
    let mut basis: Vec<Vec<f64>> = Vec::new();
    for row in past.chunks_exact(d.max(1)) {
        let row = row.iter().map(|&v| f64::from(v)).collect();
        // Trained rows are no longer orthogonal to each other; what they span is.
        basis.extend(residual(row, &basis));
    }
    let mut out = Vec::with_capacity(n * d);
    for _ in 0..n {
        let draw: Vec<f64> = (0..d).map(|_| rng.random_range(-1.0..1.0)).collect();
        let row = match residual(draw.clone(), &basis) {
            Some(row) => {
                basis.push(row.clone());
                row
            }
            None => residual(draw, &[]).unwrap_or_else(|| vec![0.0; d]),
        };
        out.extend(row.into_iter().map(|v| v as f32));
    }
    out
}

/// The share of the length of a row, below which nothing but rounding is left of it.
const NOTHING_LEFT: f64 = 1e-6;

/// What an orthonormal basis leaves of a row, with length 1; `None` if it leaves nothing.
fn residual(mut row: Vec<f64>, basis: &[Vec<f64>]) -> Option<Vec<f64>> {
    let norm = |row: &[f64]| row.iter().map(|v| v * v).sum::<f64>().sqrt();
    let before = norm(&row);
    // Twice is enough for orthogonality to rounding (Giraud et al. 2005).
    for _ in 0..2 {
        for other in basis {
            let dot: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
            for (value, other) in row.iter_mut().zip(other) {
                *value -= dot * other;
            }
        }
    }
    let after = norm(&row);
    if after <= NOTHING_LEFT * before || after == 0.0 {
        return None;
    }
    for value in &mut row {
        *value /= after;
    }
    Some(row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum()
    }

    #[test]
    fn new_rows_are_orthogonal_to_all_rows_while_there_is_room() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let past = [1.0f32, 2.0, 0.0, 0.0, 0.5, 0.0, 0.0, 3.0];
        let new = orthonormal(&past, 3, 4, &mut rng);
        let rows: Vec<&[f32]> = past.chunks(4).chain(new.chunks(4)).collect();
        for (i, row) in rows.iter().enumerate().skip(2) {
            assert!((dot(row, row) - 1.0).abs() < 1e-6, "length of row {i}");
        }
        for (i, row) in rows.iter().enumerate().take(4).skip(2) {
            for other in &rows[..i] {
                assert!(dot(row, other).abs() < 1e-6, "row {i} with an earlier one");
            }
        }
        // The third new row is the fifth of four dimensions.
        let overlap: f64 = rows[..4].iter().map(|row| dot(rows[4], row).abs()).sum();
        assert!(overlap > 0.1, "{overlap}");
    }
}
