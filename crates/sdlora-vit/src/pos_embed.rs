//! Positions learned on one grid of patches, brought to another.

use serde::{Deserialize, Serialize};

/// How positions are brought to another grid; both are cubic and leave corners unaligned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PositionResize {
    /// The kernel widens where the grid shrinks: timm's `resample_abs_pos_embed`, and
    /// `Dinov2WithRegisters` of transformers.
    #[default]
    Antialiased,
    /// Four neighbours whatever the factor: `ViTModel` and `Dinov2Model` of transformers.
    Bicubic,
}

impl PositionResize {
    /// Both with the name that configurations and the command line give them.
    pub const ALL: [(&'static str, Self); 2] = [
        ("antialiased", Self::Antialiased),
        ("bicubic", Self::Bicubic),
    ];

    /// Kernel parameter of the cubic that PyTorch uses.
    fn a(self) -> f64 {
        match self {
            Self::Antialiased => -0.5,
            Self::Bicubic => -0.75,
        }
    }
}

/// Brings `values: [n_prefix + from², d_model]`, row-major, to `[n_prefix + to², d_model]`: the
/// first `n_prefix` rows are kept, the rest is a picture of `from` by `from` that is resized.
pub(crate) fn resample(
    values: &[f32],
    n_prefix: usize,
    from: usize,
    to: usize,
    d_model: usize,
    how: PositionResize,
) -> Vec<f32> {
    let (prefix, picture) = values.split_at(n_prefix * d_model);
    let weights = match how {
        PositionResize::Antialiased => cubic_weights(from, to),
        PositionResize::Bicubic => four_weights(from, to),
    };
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
                .map(|j| {
                    cubic(
                        (j as f64 - center + 0.5) / stretch,
                        PositionResize::Antialiased.a(),
                    )
                })
                .collect();
            let sum: f64 = weights.iter().sum();
            (start, weights.iter().map(|w| (w / sum) as f32).collect())
        })
        .collect()
}

/// The same with four neighbours, of which those beyond the edge are the one on it.
fn four_weights(from: usize, to: usize) -> Vec<(usize, Vec<f32>)> {
    let scale = from as f64 / to as f64;
    (0..to)
        .map(|i| {
            let center = scale * (i as f64 + 0.5) - 0.5;
            let left = center.floor() as isize;
            let inside = |j: isize| j.clamp(0, from as isize - 1) as usize;
            let (start, end) = (inside(left - 1), inside(left + 2));
            let mut weights = vec![0.0f32; end - start + 1];
            for j in left - 1..=left + 2 {
                let weight = cubic(j as f64 - center, PositionResize::Bicubic.a());
                weights[inside(j) - start] += weight as f32;
            }
            (start, weights)
        })
        .collect()
}

/// Keys' cubic convolution kernel.
fn cubic(x: f64, a: f64) -> f64 {
    let x = x.abs();
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
            for (_, how) in PositionResize::ALL {
                let out = resample(&values, 2, from, to, 3, how);
                assert_eq!(out.len(), (2 + to * to) * 3);
                assert!(out[..6].iter().all(|&v| v == 9.0));
                assert!(out[6..].iter().all(|&v| (v - 0.5).abs() < 1e-6));
            }
        }
    }

    #[test]
    fn the_same_grid_gives_the_same_values() {
        let values: Vec<f32> = (0..16).map(|v| v as f32).collect();
        for (_, how) in PositionResize::ALL {
            let out = resample(&values, 0, 4, 4, 1, how);
            assert!(out.iter().zip(&values).all(|(a, b)| (a - b).abs() < 1e-5));
        }
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

    #[test]
    fn four_neighbours_are_those_of_pytorch() {
        // torch.nn.functional.interpolate(x, size=n, mode="bicubic", align_corners=False) of the
        // squares of 0 to 4, as a picture that is constant along the other axis.
        let row = [0.0f32, 1.0, 4.0, 9.0, 16.0];
        let three = [0.148_149_04f32, 4.0, 14.074_075];
        let eight = [
            -0.092_834_47,
            0.187_561_04,
            1.176_513_7,
            2.619_384_8,
            5.441_650_4,
            8.471_436,
            13.395_081,
            16.649_841,
        ];
        for (to, expected) in [(3, three.as_slice()), (8, eight.as_slice())] {
            let picture: Vec<f32> = row.iter().flat_map(|&v| [v; 5]).collect();
            let out = resample(&picture, 0, 5, to, 1, PositionResize::Bicubic);
            for (found, expected) in out.iter().step_by(to).zip(expected) {
                assert!((found - expected).abs() < 1e-5, "{out:?}");
            }
        }
    }
}
