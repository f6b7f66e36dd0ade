//! Positions learned on one grid of patches, brought to another.

/// Kernel parameter of the cubic that PyTorch uses when it removes aliasing.
const CUBIC_A: f64 = -0.5;

/// Brings `values: [n_prefix + from², d_model]`, row-major, to `[n_prefix + to², d_model]`: the
/// first `n_prefix` rows are kept, the rest is a picture of `from` by `from` that is resized by an
/// anti-aliased cubic without aligned corners, as timm's `resample_abs_pos_embed` does.
pub(crate) fn resample(
    values: &[f32],
    n_prefix: usize,
    from: usize,
    to: usize,
    d_model: usize,
) -> Vec<f32> {
    let (prefix, picture) = values.split_at(n_prefix * d_model);
    let weights = cubic_weights(from, to);
    // Rows: [from, from · d] to [to, from · d]; then the same along the columns of each row.
    let tall = along_first(picture, &weights, from * d_model);
    let mut out = prefix.to_vec();
    for row in tall.chunks_exact(from * d_model) {
        out.extend(along_first(row, &weights, d_model));
    }
    out
}

/// `out[i] = Σ_j w[i][j] · values[j]` for rows of `width` values.
fn along_first(values: &[f32], weights: &[(usize, Vec<f32>)], width: usize) -> Vec<f32> {
    let mut out = vec![0.0; weights.len() * width];
    for ((start, row_weights), out) in weights.iter().zip(out.chunks_exact_mut(width)) {
        for (j, &weight) in row_weights.iter().enumerate() {
            let row = &values[(start + j) * width..][..width];
            for (sum, &value) in out.iter_mut().zip(row) {
                *sum += weight * value;
            }
        }
    }
    out
}

/// For each of `to` positions the first of `from` it draws on, and the weights from there on.
fn cubic_weights(from: usize, to: usize) -> Vec<(usize, Vec<f32>)> {
    let scale = from as f64 / to as f64;
    // A smaller picture widens the kernel, which removes what it cannot show.
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    (0..to)
        .map(|i| {
            let center = scale * (i as f64 + 0.5);
            let start = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            let weights: Vec<f64> = (start..end)
                .map(|j| cubic((j as f64 - center + 0.5) / stretch))
                .collect();
            let sum: f64 = weights.iter().sum();
            (start, weights.iter().map(|w| (w / sum) as f32).collect())
        })
        .collect()
}

/// Keys' cubic convolution kernel.
fn cubic(x: f64) -> f64 {
    let (x, a) = (x.abs(), CUBIC_A);
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_stays_constant_and_the_prefix_is_kept() {
        for (from, to) in [(4, 7), (7, 4), (3, 3)] {
            let mut values = vec![9.0; 2 * 3];
            values.extend(vec![0.5; from * from * 3]);
            let out = resample(&values, 2, from, to, 3);
            assert_eq!(out.len(), (2 + to * to) * 3);
            assert!(out[..6].iter().all(|&v| v == 9.0));
            assert!(out[6..].iter().all(|&v| (v - 0.5).abs() < 1e-6));
        }
    }

    #[test]
    fn the_same_grid_gives_the_same_values() {
        let values: Vec<f32> = (0..16).map(|v| v as f32).collect();
        let out = resample(&values, 0, 4, 4, 1);
        assert!(out.iter().zip(&values).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn doubling_weighs_four_neighbours() {
        // Position 2 of 8 lies at 0.75 of the step from source 0 to source 1: by Keys' formula
        // with a = -1/2 at the distances 0.75, 0.25 and 1.25; a fourth would be beyond the edge.
        let (start, weights) = cubic_weights(4, 8).swap_remove(2);
        assert_eq!(start, 0);
        let expected = [0.226_562_5f32, 0.867_187_5, -0.070_312_5];
        let sum: f32 = expected.iter().sum();
        for (w, e) in weights.iter().zip(expected) {
            assert!((w - e / sum).abs() < 1e-6, "{weights:?}");
        }
    }
}
