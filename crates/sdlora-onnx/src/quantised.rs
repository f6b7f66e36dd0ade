//! Matrices in 8 bits: whole numbers and one scale for every column.

/// A matrix `[n_rows, n_columns]` in 8 bits, `value = scale[column] · number`, symmetric about 0.
///
/// The largest number of a column is 127, so -128 is never used and a sign changes nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantised {
    /// Row-major.
    pub numbers: Vec<i8>,
    /// One for every column, above 0; 1 for a column of zeros.
    pub scales: Vec<f32>,
}

/// Largest number of a column.
const LARGEST: f32 = 127.0;

impl Quantised {
    /// The nearest matrix in 8 bits: no value is off by more than half the scale of its column.
    ///
    /// # Panics
    ///
    /// If the values are no whole number of rows.
    pub fn of(values: &[f32], n_columns: usize) -> Self {
        assert!(
            n_columns > 0 && values.len().is_multiple_of(n_columns),
            "{} values in rows of {n_columns}",
            values.len()
        );
        let mut scales = vec![0.0f32; n_columns];
        for row in values.chunks_exact(n_columns) {
            for (scale, value) in scales.iter_mut().zip(row) {
                *scale = scale.max(value.abs());
            }
        }
        for scale in &mut scales {
            *scale /= LARGEST;
            // Runtimes divide by scales, and a number below the smallest normal one has lost its digits.
            if *scale < f32::MIN_POSITIVE {
                *scale = 1.0;
            }
        }
        let number = |value: f32, scale: f32| {
            (value / scale).round_ties_even().clamp(-LARGEST, LARGEST) as i8
        };
        let rows = values.chunks_exact(n_columns);
        let numbers = rows.flat_map(|row| row.iter().zip(&scales).map(|(&v, &s)| number(v, s)));
        Self {
            numbers: numbers.collect(),
            scales,
        }
    }

    /// The values that a runtime computes with.
    pub fn values(&self) -> Vec<f32> {
        let rows = self.numbers.chunks_exact(self.scales.len().max(1));
        rows.flat_map(|row| row.iter().zip(&self.scales).map(|(&n, s)| f32::from(n) * s))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_has_its_own_scale_by_hand() {
        let matrix = Quantised::of(&[127.0, 0.5, 0.0, -64.4, -1.0, 0.0], 3);
        assert_eq!(matrix.numbers, [127, 64, 0, -64, -127, 0]);
        assert_eq!(matrix.scales, [1.0, 1.0 / 127.0, 1.0]);
        let values = matrix.values();
        assert_eq!(
            [values[0], values[3], values[4], values[5]],
            [127.0, -64.0, -1.0, 0.0]
        );
    }

    #[test]
    fn no_value_is_off_by_more_than_half_a_step() {
        let values: Vec<f32> = (0..600)
            .map(|i| (i as f32 * 0.37).sin() * (i % 7) as f32)
            .collect();
        let matrix = Quantised::of(&values, 6);
        for (i, (found, value)) in matrix.values().iter().zip(&values).enumerate() {
            let step = matrix.scales[i % 6];
            assert!(
                (found - value).abs() <= step * 0.5001,
                "{value}: {found}, step {step}"
            );
        }
    }
}
