//! Comparison of float values within a tolerance.

use burn::tensor::{Int, Tensor};

/// Largest allowed difference between an actual and an expected value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Tolerance {
    /// The same limit for every value.
    Abs(f64),
    /// The limit is this fraction of the largest absolute expected value of the whole tensor; where all expected
    /// values are 0 the actual ones must be exactly 0.
    RelMax(f64),
}

impl Tolerance {
    fn limit(self, expected: &[f64]) -> f64 {
        match self {
            Self::Abs(limit) => limit,
            Self::RelMax(fraction) => {
                fraction
                    * expected
                        .iter()
                        .fold(0.0, |max: f64, value| max.max(value.abs()))
            }
        }
    }
}

/// Host values in row-major order, with their shape where it is known.
///
/// Implemented for tensors (float and int), slices and vectors of floats, and `(values, shape)` as
/// [`Golden::f32`](crate::Golden::f32) returns it.
pub trait Values {
    /// The values, widened to float64, and the shape.
    fn values(self) -> (Vec<f64>, Option<Vec<usize>>);
}

impl<const D: usize> Values for Tensor<D> {
    fn values(self) -> (Vec<f64>, Option<Vec<usize>>) {
        let shape = self.dims().to_vec();
        let values = self
            .try_into_vec_as::<f64>()
            .unwrap_or_else(|err| panic!("cannot read the tensor: {err}"));
        (values, Some(shape))
    }
}

impl<const D: usize> Values for &Tensor<D> {
    fn values(self) -> (Vec<f64>, Option<Vec<usize>>) {
        self.clone().values()
    }
}

impl<const D: usize> Values for Tensor<D, Int> {
    fn values(self) -> (Vec<f64>, Option<Vec<usize>>) {
        let shape = self.dims().to_vec();
        let values = self
            .try_into_vec_as::<f64>()
            .unwrap_or_else(|err| panic!("cannot read the tensor: {err}"));
        (values, Some(shape))
    }
}

macro_rules! values_of_host_floats {
    ($($float:ty),*) => {$(
        impl Values for &[$float] {
            fn values(self) -> (Vec<f64>, Option<Vec<usize>>) {
                (self.iter().map(|&value| f64::from(value)).collect(), None)
            }
        }
        impl<const N: usize> Values for [$float; N] {
            fn values(self) -> (Vec<f64>, Option<Vec<usize>>) {
                self.as_slice().values()
            }
        }
        impl<const N: usize> Values for &[$float; N] {
            fn values(self) -> (Vec<f64>, Option<Vec<usize>>) {
                self.as_slice().values()
            }
        }
        impl Values for &Vec<$float> {
            fn values(self) -> (Vec<f64>, Option<Vec<usize>>) {
                self.as_slice().values()
            }
        }
        impl Values for Vec<$float> {
            fn values(self) -> (Vec<f64>, Option<Vec<usize>>) {
                self.as_slice().values()
            }
        }
        impl Values for (Vec<$float>, Vec<usize>) {
            fn values(self) -> (Vec<f64>, Option<Vec<usize>>) {
                (self.0.as_slice().values().0, Some(self.1))
            }
        }
        impl Values for &(Vec<$float>, Vec<usize>) {
            fn values(self) -> (Vec<f64>, Option<Vec<usize>>) {
                (self.0.as_slice().values().0, Some(self.1.clone()))
            }
        }
    )*};
}
values_of_host_floats!(f32, f64);

/// Asserts that `actual` and `expected` have the same number of values, the same shape where both know theirs, and
/// differ nowhere by more than the tolerance.
///
/// NaN differs from everything but NaN, an infinity from everything but itself.
///
/// # Panics
///
/// If they differ: the message has `what`, the largest error, its index and both values there.
#[track_caller]
pub fn assert_close(actual: impl Values, expected: impl Values, tolerance: Tolerance, what: &str) {
    let (actual, actual_shape) = actual.values();
    let (expected, expected_shape) = expected.values();
    if let (Some(found), Some(wanted)) = (&actual_shape, &expected_shape) {
        assert!(
            found == wanted,
            "{what}: shape is {found:?}, expected {wanted:?}"
        );
    }
    assert!(
        actual.len() == expected.len(),
        "{what}: {} values, expected {}",
        actual.len(),
        expected.len()
    );
    let limit = tolerance.limit(&expected);
    let errors = actual
        .iter()
        .zip(&expected)
        .map(|(&a, &e)| difference(a, e));
    let Some((at, largest)) = errors
        .enumerate()
        .max_by(|(_, left), (_, right)| left.total_cmp(right))
    else {
        return;
    };
    // A limit of NaN (an expected NaN or a broken tolerance) admits only equality.
    let close = largest <= limit || largest == 0.0;
    assert!(
        close,
        "{what}: largest error {largest:.3e} at {} exceeds {limit:.3e} ({tolerance:?}): actual {}, expected {}; \
         {} of {} values are outside",
        index_of(at, expected_shape.or(actual_shape).as_deref()),
        actual[at],
        expected[at],
        actual
            .iter()
            .zip(&expected)
            .filter(|&(&a, &e)| difference(a, e) > limit)
            .count(),
        actual.len(),
    );
}

/// Absolute difference; infinite where exactly one side is NaN, 0 where both are the same infinity or both NaN.
fn difference(actual: f64, expected: f64) -> f64 {
    if actual == expected || (actual.is_nan() && expected.is_nan()) {
        return 0.0;
    }
    let difference = (actual - expected).abs();
    if difference.is_nan() {
        f64::INFINITY
    } else {
        difference
    }
}

fn index_of(flat: usize, shape: Option<&[usize]>) -> String {
    let Some(shape) = shape else {
        return format!("[{flat}]");
    };
    let mut rest = flat;
    let mut index = vec![0; shape.len()];
    for (slot, &size) in index.iter_mut().zip(shape).rev() {
        *slot = rest % size;
        rest /= size;
    }
    format!("{index:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_device;

    #[test]
    fn equal_and_close_values_pass() {
        let tensor = Tensor::<2>::from_floats([[1.0, 2.0], [3.0, 4.0]], &test_device());
        assert_close(
            &tensor,
            (vec![1.0f32, 2.0, 3.0, 4.0], vec![2, 2]),
            Tolerance::Abs(0.0),
            "same",
        );
        assert_close(
            tensor,
            [1.1f32, 2.0, 3.0, 4.0],
            Tolerance::Abs(0.1001),
            "near",
        );
        assert_close(
            [0.96f32, -4.0],
            [1.0f32, -4.0],
            Tolerance::RelMax(0.0101),
            "relative to 4",
        );
        assert_close(
            [f64::NAN, f64::INFINITY],
            [f64::NAN, f64::INFINITY],
            Tolerance::Abs(0.0),
            "odd",
        );
        assert_close(
            Vec::<f32>::new(),
            Vec::<f32>::new(),
            Tolerance::Abs(0.0),
            "empty",
        );
    }

    #[test]
    #[should_panic(
        expected = "weight: largest error 5.000e-1 at [1, 0] exceeds 1.000e-1 (Abs(0.1)): actual 3, expected 3.5; 2 of 4"
    )]
    fn the_message_has_place_and_values() {
        let tensor = Tensor::<2>::from_floats([[1.0, 2.0], [3.0, 4.0]], &test_device());
        assert_close(
            tensor,
            [1.0f32, 2.0, 3.5, 4.2],
            Tolerance::Abs(0.1),
            "weight",
        );
    }

    #[test]
    #[should_panic(expected = "shape is [1, 2], expected [2, 1]")]
    fn shapes_are_compared_where_known() {
        let tensor = Tensor::<2>::from_floats([[1.0, 2.0]], &test_device());
        assert_close(
            tensor,
            (vec![1.0f32, 2.0], vec![2, 1]),
            Tolerance::Abs(1.0),
            "row",
        );
    }

    #[test]
    #[should_panic(expected = "1 values, expected 2")]
    fn lengths_are_compared() {
        assert_close([1.0f32], [1.0f32, 2.0], Tolerance::Abs(9.0), "short");
    }

    #[test]
    #[should_panic(expected = "at [1] exceeds")]
    fn nan_is_never_close_to_a_number() {
        assert_close(
            [1.0f32, f32::NAN],
            [1.0f32, 2.0],
            Tolerance::Abs(9.0),
            "nan",
        );
    }

    #[test]
    #[should_panic(expected = "exceeds 0.000e0")]
    fn relative_to_zeros_means_exactly_zero() {
        assert_close(
            [1e-30f32],
            [0.0f32],
            Tolerance::RelMax(0.5),
            "gradient at the start",
        );
    }

    #[test]
    #[should_panic(expected = "exceeds 1.010e-2")]
    fn a_relative_tolerance_scales_with_the_largest_value() {
        assert_close(
            [0.98f32, -1.0],
            [1.0f32, -1.01],
            Tolerance::RelMax(0.01),
            "scaled",
        );
    }
}
