//! Exponentials of many numbers at once on the host, the same on every machine.

/// Replaces numbers by `exp(x − largest)`; gives the largest and the sum of the exponentials.
pub(super) fn exponentials(values: &mut [f32]) -> (f32, f32) {
    let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    values.iter_mut().for_each(|v| *v = exp(*v - largest));
    (largest, values.iter().sum())
}

/// `exp(x)` of `x` up to 0 with a relative error of some `1e-7 · (2 + |x|)`, in operations that a compiler
/// puts side by side; 0 below −87, and NaN stays.
///
/// `2^t = 2^n · 2^f` with `n` the nearest integer: added to 1.5 · 2²³, the last bits of a float are `n`.
fn exp(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    let t = x.max(-87.0) * std::f32::consts::LOG2_E;
    let shifted = t + SHIFT;
    let f = t - (shifted - SHIFT);
    // Taylor's series of 2^f, |f| ≤ 1/2: the first term left out is below 2e-8.
    let mut power = 1.525_273_4e-5;
    for coefficient in [
        1.540_353_1e-4,
        1.333_355_8e-3,
        9.618_129e-3,
        5.550_411e-2,
        0.240_226_5,
        std::f32::consts::LN_2,
        1.0,
    ] {
        power = power * f + coefficient;
    }
    let value = f32::from_bits(power.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x < -87.0 {
        0.0
    } else if x.is_nan() {
        x
    } else {
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_those_of_the_standard_library() {
        for i in 0..=87_000 {
            let x = -(i as f32) / 1000.0;
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) / expected - 1.0).abs();
            assert!(error < 1e-7 * f64::from(2.0 - x), "{x}: {error}");
        }
        assert_eq!(
            (exp(0.0), exp(-88.0), exp(f32::NEG_INFINITY)),
            (1.0, 0.0, 0.0)
        );
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn the_largest_is_taken_off_first() {
        let mut values = [1000.0, 999.0, -1000.0];
        let (largest, sum) = exponentials(&mut values);
        assert_eq!(largest, 1000.0);
        let expected = 1.0 + (-1.0f32).exp();
        assert!((sum - expected).abs() < 1e-6, "{sum}");
        assert_eq!(values[2], 0.0);
    }
}
