//! Vectors of `f32` whose width the processor decides when the program runs.
//!
//! A kernel is written once against [`Vector`] and compiled for every instruction set `pulp`
//! knows; [`vectorize`] picks one of them.
//! What a kernel calls must be `#[inline(always)]` and no closure: compiled by itself it would lack
//! the instruction set and turn every vector operation into a call (twenty times slower).
//! Sums run in an order that depends on the width of the processor's vectors, but never
//! on the number of threads.

use std::ops::{Add, Div, Mul, Sub};

use pulp::{Simd, WithSimd};

/// Runs `kernel` with the widest instruction set of this processor, plain scalar code at the least.
pub(super) fn vectorize<K: WithSimd>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        // `pulp::Arch` looks for AVX2 only under a crate feature that `gemm` leaves off; turning
        // it on here would turn it on in every crate of the build.
        if let Some(simd) = pulp::x86::V4::try_new() {
            return Simd::vectorize(simd, kernel);
        }
        if let Some(simd) = pulp::x86::V3::try_new() {
            return Simd::vectorize(simd, kernel);
        }
        Simd::vectorize(pulp::Scalar, kernel)
    }
    #[cfg(not(target_arch = "x86_64"))]
    pulp::Arch::new().dispatch(kernel)
}

/// One register of `f32` lanes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vector<S: Simd> {
    simd: S,
    lanes: S::f32s,
}

impl<S: Simd> Vector<S> {
    /// Number of lanes.
    pub(super) const LANES: usize = S::F32_LANES;

    #[inline(always)]
    pub(super) fn new(simd: S, lanes: S::f32s) -> Self {
        Self { simd, lanes }
    }

    #[inline(always)]
    pub(super) fn splat(simd: S, value: f32) -> Self {
        Self::new(simd, simd.splat_f32s(value))
    }

    /// The first values of `slice`; lanes beyond its end are 0.
    #[inline(always)]
    pub(super) fn partial(simd: S, slice: &[f32]) -> Self {
        Self::new(simd, simd.partial_load_f32s(slice))
    }

    /// The first `n` lanes; 0 in the others.
    #[inline(always)]
    pub(super) fn first(self, n: usize) -> Self {
        // The widest vector of any instruction set has 16 lanes.
        let mut lanes = [0.0; 16];
        let lanes = &mut lanes[..n];
        self.simd.partial_store_f32s(lanes, self.lanes);
        Self::partial(self.simd, lanes)
    }

    #[inline(always)]
    pub(super) fn lanes(self) -> S::f32s {
        self.lanes
    }

    /// `self * factor + term`, in one rounding where the processor has it.
    #[inline(always)]
    pub(super) fn mul_add(self, factor: Self, term: Self) -> Self {
        let simd = self.simd;
        Self::new(
            simd,
            simd.mul_add_e_f32s(self.lanes, factor.lanes, term.lanes),
        )
    }

    #[inline(always)]
    pub(super) fn abs(self) -> Self {
        Self::new(self.simd, self.simd.abs_f32s(self.lanes))
    }

    #[inline(always)]
    pub(super) fn max(self, other: Self) -> Self {
        Self::new(self.simd, self.simd.max_f32s(self.lanes, other.lanes))
    }

    #[inline(always)]
    pub(super) fn min(self, other: Self) -> Self {
        Self::new(self.simd, self.simd.min_f32s(self.lanes, other.lanes))
    }

    /// `then` in the lanes where `self < bound`, `otherwise` elsewhere and where `self` is NaN.
    #[inline(always)]
    pub(super) fn select_below(self, bound: f32, then: Self, otherwise: Self) -> Self {
        let simd = self.simd;
        let mask = simd.less_than_f32s(self.lanes, simd.splat_f32s(bound));
        Self::new(simd, simd.select_f32s(mask, then.lanes, otherwise.lanes))
    }

    #[inline(always)]
    pub(super) fn sum(self) -> f32 {
        self.simd.reduce_sum_f32s(self.lanes)
    }

    /// The largest lane.
    #[inline(always)]
    pub(super) fn largest(self) -> f32 {
        self.simd.reduce_max_f32s(self.lanes)
    }

    /// `coefficients[0] + coefficients[1] x + coefficients[2] x² + ..` by Horner's rule.
    #[inline(always)]
    pub(super) fn polynomial<const N: usize>(self, coefficients: [f32; N]) -> Self {
        let mut value = Self::splat(self.simd, coefficients[N - 1]);
        for &coefficient in coefficients[..N - 1].iter().rev() {
            value = value.mul_add(self, Self::splat(self.simd, coefficient));
        }
        value
    }

    /// `exp(self)` for arguments up to 88; 0 below −87.3, where `f32` has no normal number.
    #[inline(always)]
    pub(super) fn exp(self) -> Self {
        self.exp_sum(Self::splat(self.simd, 0.0))
    }

    /// `exp(self + low)`, `low` a rounding remainder of `self`.
    ///
    /// With `n = round(x / ln 2)` the result is `2ⁿ exp(x − n ln 2)`; the remainder lies within
    /// half of `ln 2`, where the polynomial is exact to 2e-8 relative.
    #[inline(always)]
    pub(super) fn exp_sum(self, low: Self) -> Self {
        // Adding 1.5 · 2²³ leaves the rounded integer in the low bits of the sum.
        const ROUND: f32 = 12_582_912.0;
        // The high part of ln 2 has nine bits, so its product with n is exact.
        const LN_2_HIGH: f32 = 0.693_359_4;
        const LN_2_LOW: f32 = -2.121_944_4e-4;
        const COEFFICIENTS: [f32; 7] = [
            1.0,
            1.0,
            0.5,
            0.166_664_15,
            0.041_666_35,
            0.008_375_126,
            0.001_394_110_8,
        ];
        const SMALLEST: f32 = -87.3;
        const MANTISSA_BITS: u32 = 23;

        let simd = self.simd;
        let shifted = self.mul_add(
            Self::splat(simd, std::f32::consts::LOG2_E),
            Self::splat(simd, ROUND),
        );
        let n = shifted - Self::splat(simd, ROUND);
        let remainder = n.mul_add(Self::splat(simd, -LN_2_HIGH), self);
        let remainder = n.mul_add(Self::splat(simd, -LN_2_LOW), remainder) + low;
        let mantissa = remainder.polynomial(COEFFICIENTS);

        let exponent = simd.wrapping_dyn_shl_u32s(
            simd.transmute_u32s_f32s(shifted.lanes),
            simd.splat_u32s(MANTISSA_BITS),
        );
        let bits = simd.add_u32s(exponent, simd.transmute_u32s_f32s(mantissa.lanes));
        let value = Self::new(simd, simd.transmute_f32s_u32s(bits));
        self.select_below(SMALLEST, Self::splat(simd, 0.0), value)
    }
}

/// Quantities to be summed over rows: what they are at one place of the rows.
pub(super) trait Terms<S: Simd, const ROWS: usize, const SUMS: usize> {
    /// The terms at the places where `rows` has these values. Inline it always.
    fn at(&self, rows: [Vector<S>; ROWS]) -> [Vector<S>; SUMS];
}

/// The row itself.
pub(super) struct Sum;

impl<S: Simd> Terms<S, 1, 1> for Sum {
    #[inline(always)]
    fn at(&self, row: [Vector<S>; 1]) -> [Vector<S>; 1] {
        row
    }
}

/// The product of two rows.
pub(super) struct Dot;

impl<S: Simd> Terms<S, 2, 1> for Dot {
    #[inline(always)]
    fn at(&self, [a, b]: [Vector<S>; 2]) -> [Vector<S>; 1] {
        [a * b]
    }
}

/// Sums of several quantities at once over `rows` of equal length.
///
/// Four partial sums keep the adders busy; their order depends on the length alone.
#[inline(always)]
pub(super) fn sums<S: Simd, const ROWS: usize, const SUMS: usize>(
    simd: S,
    rows: [&[f32]; ROWS],
    terms: impl Terms<S, ROWS, SUMS>,
) -> [f32; SUMS] {
    const PARTIAL: usize = 4;

    let mut partial = [[Vector::splat(simd, 0.0); SUMS]; PARTIAL];
    let n_vectors = rows[0].len() / Vector::<S>::LANES;
    let mut idx = 0;
    while idx + PARTIAL <= n_vectors {
        for (offset, partial) in partial.iter_mut().enumerate() {
            add(partial, terms.at(vectors_at(simd, rows, idx + offset)));
        }
        idx += PARTIAL;
    }
    while idx < n_vectors {
        add(&mut partial[0], terms.at(vectors_at(simd, rows, idx)));
        idx += 1;
    }
    let n_rest = rows[0].len() % Vector::<S>::LANES;
    if n_rest > 0 {
        let mut last = [Vector::splat(simd, 0.0); ROWS];
        for (last, row) in last.iter_mut().zip(&rows) {
            *last = Vector::partial(simd, S::as_simd_f32s(row).1);
        }
        let mut last = terms.at(last);
        for term in &mut last {
            *term = term.first(n_rest);
        }
        add(&mut partial[0], last);
    }
    let mut total = [0.0; SUMS];
    for (idx, total) in total.iter_mut().enumerate() {
        let [first, second, third, fourth] = &partial;
        *total = ((first[idx] + second[idx]) + (third[idx] + fourth[idx])).sum();
    }
    total
}

#[inline(always)]
fn add<S: Simd, const N: usize>(sums: &mut [Vector<S>; N], terms: [Vector<S>; N]) {
    for (sum, term) in sums.iter_mut().zip(terms) {
        *sum = *sum + term;
    }
}

/// The vectors of all rows at one place.
#[inline(always)]
fn vectors_at<S: Simd, const ROWS: usize>(
    simd: S,
    rows: [&[f32]; ROWS],
    idx: usize,
) -> [Vector<S>; ROWS] {
    let mut vectors = [Vector::splat(simd, 0.0); ROWS];
    for (vector, row) in vectors.iter_mut().zip(rows) {
        *vector = Vector::new(simd, S::as_simd_f32s(row).0[idx]);
    }
    vectors
}

macro_rules! operator {
    ($trait:ident, $method:ident, $instruction:ident) => {
        impl<S: Simd> $trait for Vector<S> {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                Self::new(self.simd, self.simd.$instruction(self.lanes, other.lanes))
            }
        }
    };
}

operator!(Add, add, add_f32s);
operator!(Sub, sub, sub_f32s);
operator!(Mul, mul, mul_f32s);
operator!(Div, div, div_f32s);

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp<'a>(&'a mut [f32]);

    impl WithSimd for Exp<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            for value in self.0 {
                let x = Vector::partial(simd, std::slice::from_ref(value));
                simd.partial_store_f32s(std::slice::from_mut(value), x.exp().lanes());
            }
        }
    }

    fn arguments() -> Vec<f32> {
        (-8700..=8800).map(|x| x as f32 / 100.0).collect()
    }

    fn check_exp(run: impl Fn(&mut [f32])) {
        let x = arguments();
        let mut y = x.clone();
        run(&mut y);
        for (&x, &y) in x.iter().zip(&y) {
            let expected = f64::from(x).exp();
            let error = (f64::from(y) - expected).abs() / expected;
            assert!(error < 1.5e-7, "exp({x}) = {y}, off by {error:e} relative");
        }
    }

    #[test]
    fn exp_is_exact_to_one_and_a_half_units_at_every_width() {
        check_exp(|y| vectorize(Exp(y)));
        check_exp(|y| Simd::vectorize(pulp::Scalar, Exp(y)));
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V3::try_new() {
            check_exp(|y| Simd::vectorize(simd, Exp(y)));
        }
    }

    #[test]
    fn exp_of_the_special_values() {
        let mut y = [f32::NEG_INFINITY, -1000.0, f32::NAN, 0.0];
        vectorize(Exp(&mut y));
        assert_eq!(y[..2], [0.0, 0.0]);
        assert!(y[2].is_nan());
        assert_eq!(y[3], 1.0);
    }
}
