//! GELU with its slope.
//!
//! With `Q(a) = Φ(−a)` for `a = |x|`, `Φ(x)` is `Q(a)` on the left and `1 − Q(a)` on the right, so
//! the left tail keeps its relative accuracy.
//! `Q(a) = exp(−a² / 2) · h(a) / (a + 4)`, where `h` is smooth and is fitted by a polynomial in
//! `(a − 4) / (a + 4)`; the exponential also gives the slope `Φ(x) + x exp(−x² / 2) / √(2π)`.

use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind, unary},
};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::buffer;
use super::simd::{Vector, vectorize};

/// Elements of one task: its input and output fit the first-level cache.
const CHUNK: usize = 4096;

/// `h` of the module page as a polynomial, fitted at Chebyshev nodes for `a` from 0 to 14;
/// 3e-8 relative with the coefficients in `f32`.
const TAIL: [f32; 10] = [
    0.755_285_14,
    -0.607_896_6,
    0.387_136_7,
    -0.186_522_68,
    0.060_406_69,
    -0.007_529_251,
    -0.003_526_183_8,
    0.001_572_317_9,
    0.000_201_261_73,
    -0.000_120_184_4,
];
const TAIL_CENTRE: f32 = 4.0;
/// Beyond this the exponential is 0; keeps `a²` finite.
const TAIL_END: f32 = 20.0;
/// `1 / √(2π)`.
const INV_SQRT_TAU: f32 = 0.398_942_3;

/// GELU of every element, in place where `x` is not shared.
pub(super) fn forward(x: FlexTensor) -> FlexTensor {
    buffer::map(x, CHUNK, buffer::no_items(), |x, ()| vectorize(Values(x)))
}

/// GELU of every element and its slope there, which is all the backward pass needs.
fn forward_with_slope(x: FlexTensor) -> (FlexTensor, FlexTensor) {
    let shape = x.layout().shape().clone();
    // The slope takes the place of `x`, which the layer before rarely keeps.
    let mut slope = buffer::owned(x, CHUNK);
    let slopes = slope.storage_mut::<f32>();
    let out = buffer::build(
        slopes.len(),
        CHUNK,
        slopes.par_chunks_mut(CHUNK),
        |out, x| vectorize(ValuesAndSlopes { x, out }),
    );
    (buffer::tensor(out, shape), slope)
}

/// [`forward`] with its backward.
pub(super) fn autodiff<C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<Flex, C>>,
) -> FloatTensor<Autodiff<Flex, C>> {
    let (x, node) = x.into_parts();
    match Gelu.prepare::<C>([node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let (out, slope) = forward_with_slope(x);
            prep.finish(slope, out)
        }
        OpsKind::UnTracked(prep) => prep.finish(forward(x)),
    }
}

#[derive(Debug)]
struct Gelu;

impl Backward<Flex, 1> for Gelu {
    type State = FlexTensor;

    fn backward(self, ops: Ops<FlexTensor, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let slope = buffer::contiguous(ops.state);
        unary::<Flex, _>(ops.parents, ops.node, grads, |grad| {
            let slopes = buffer::values(&slope).par_chunks(CHUNK);
            buffer::map(grad, CHUNK, slopes, |grad, slope| {
                vectorize(Product(grad, slope))
            })
        });
    }
}

/// `Φ(x)` and `exp(−x² / 2)`.
#[inline(always)]
fn normal<S: Simd>(simd: S, x: Vector<S>) -> (Vector<S>, Vector<S>) {
    let one = Vector::splat(simd, 1.0);
    let minus_half = Vector::splat(simd, -0.5);
    let centre = Vector::splat(simd, TAIL_CENTRE);
    // The order of the operands keeps NaN on x86.
    let a = Vector::splat(simd, TAIL_END).min(x.abs());
    let square = a * a;
    // What the product lost in rounding; without it the exponent is off by up to 1e-6.
    let low = a.mul_add(a, Vector::splat(simd, 0.0) - square);
    let exp = (square * minus_half).exp_sum(low * minus_half);

    let inverse = one / (a + centre);
    let tail = ((a - centre) * inverse).polynomial(TAIL) * inverse * exp;
    (x.select_below(0.0, tail, one - tail), exp)
}

#[inline(always)]
fn value<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let x = Vector::new(simd, x);
    let (cdf, _) = normal(simd, x);
    (x * cdf).lanes()
}

#[inline(always)]
fn value_and_slope<S: Simd>(simd: S, x: S::f32s) -> (S::f32s, S::f32s) {
    let x = Vector::new(simd, x);
    let (cdf, exp) = normal(simd, x);
    let slope = (x * exp).mul_add(Vector::splat(simd, INV_SQRT_TAU), cdf);
    ((x * cdf).lanes(), slope.lanes())
}

/// Overwrites each `x` with its GELU.
struct Values<'a>(&'a mut [f32]);

impl WithSimd for Values<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (vectors, rest) = S::as_mut_simd_f32s(self.0);
        for x in vectors {
            *x = value(simd, *x);
        }
        let y = value(simd, simd.partial_load_f32s(rest));
        simd.partial_store_f32s(rest, y);
    }
}

/// Writes the GELU of each `x` to `out` and overwrites it with its slope.
struct ValuesAndSlopes<'a> {
    x: &'a mut [f32],
    out: &'a mut [f32],
}

impl WithSimd for ValuesAndSlopes<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (x, x_rest) = S::as_mut_simd_f32s(self.x);
        let (out, out_rest) = S::as_mut_simd_f32s(self.out);
        for (x, out) in x.iter_mut().zip(out) {
            (*out, *x) = value_and_slope(simd, *x);
        }
        let (value, slope) = value_and_slope(simd, simd.partial_load_f32s(x_rest));
        simd.partial_store_f32s(out_rest, value);
        simd.partial_store_f32s(x_rest, slope);
    }
}

/// Multiplies the first slice by the second.
struct Product<'a>(&'a mut [f32], &'a [f32]);

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (x, x_rest) = S::as_mut_simd_f32s(self.0);
        let (factor, factor_rest) = S::as_simd_f32s(self.1);
        for (x, &factor) in x.iter_mut().zip(factor) {
            *x = simd.mul_f32s(*x, factor);
        }
        for (x, &factor) in x_rest.iter_mut().zip(factor_rest) {
            *x *= factor;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `x`, GELU and its slope in 40 digits (mpmath), rounded to `f64`.
    const TABLE: &[(f32, f64, f64)] = &[
        (-1e+01, -7.619853024160526e-23, -7.618400096464814e-22),
        (-9.3, -6.530712762130527e-20, -6.072025784687377e-19),
        (-8.0, -4.976768459417427e-15, -3.979607261086796e-14),
        (-7.1, -4.428872565637675e-12, -3.142239649967847e-11),
        (-6.0, -5.9195258702261885e-09, -3.5468709453902015e-08),
        (-5.5, -1.0444259356238245e-07, -5.733472398739924e-07),
        (-5.0, -1.4332578593959695e-06, -7.146946001792295e-06),
        (-4.2, -5.605219053981525e-05, -0.00023421531139429077),
        (-4.0, -0.0001266849673324797, -0.0005036496612264215),
        (-3.7, -0.000398858944062758, -0.0014638870307782713),
        (-3.0, -0.0040496940948902835, -0.011945647204183927),
        (-2.5, -0.015524163314440337, -0.03761108590814521),
        (-2.0, -0.04550026389635842, -0.0852318010781969),
        (-1.6, -0.08767886379451569, -0.12267404230661791),
        (-1.2, -0.13808359864158407, -0.11795360094347368),
        (-1.0, -0.15865525393145705, -0.0833154705876863),
        (-0.9, -0.16565411413331815, -0.055416592012799235),
        (-0.75, -0.16997051428265114, 0.0007742782607648957),
        (-0.6, -0.16455187242193167, 0.07431834298569645),
        (-0.5, -0.15426876936299344, 0.13250487534383715),
        (-0.3, -0.11462657653421583, 0.2676722244890808),
        (-0.1, -0.04601721689885652, 0.4204769067981741),
        (-0.01, -0.004960106326878326, 0.49202142052583087),
        (-0.0001, -4.999600931429796e-05, 0.4999202115462013),
        (1e-06, 5.000003976798997e-07, 0.5000007978845588),
        (0.001, 0.0005003989660005342, 0.5007978843327389),
        (0.05, 0.025996940694146414, 0.5398610021360962),
        (0.1, 0.0539827845912596, 0.5795230932018259),
        (0.25, 0.14967658142073093, 0.695373354883636),
        (0.4, 0.26216870142877213, 0.8027298017705659),
        (0.5, 0.34573123063700656, 0.8674951246561629),
        (0.7, 0.5306254318017016, 0.9766140955129008),
        (0.8, 0.6305156932914124, 1.019897848322403),
        (1.0, 0.8413447460685429, 1.0833154705876864),
        (1.3, 1.174159316347859, 1.1259786825433764),
        (1.5, 1.399789198096713, 1.1274691922299795),
        (2.0, 1.9544997361036416, 1.085231801078197),
        (2.4, 2.380326013492324, 1.045549328752762),
        (3.0, 2.99595030590511, 1.011945647204184),
        (3.5, 3.4991857982233756, 1.0028217603536247),
        (4.0, 3.9998733150326675, 1.0005036496612265),
        (4.5, 4.4999847104709385, 1.0000685291618563),
        (5.0, 4.999998566742141, 1.000007146946002),
        (6.0, 5.999999994080474, 1.0000000354687095),
        (7.5, 7.499999999999761, 1.000000000001794),
        (8.0, 7.999999999999995, 1.0000000000000397),
        (1e+01, 10.0, 1.0),
    ];

    fn check(tolerance: f64, run: impl Fn(&mut [f32], &mut [f32])) {
        let mut x: Vec<f32> = TABLE.iter().map(|row| row.0).collect();
        let mut y = vec![0.0; x.len()];
        run(&mut x, &mut y);
        for (&(x, value, slope), (&y, &dy)) in TABLE.iter().zip(y.iter().zip(&x)) {
            let error = (f64::from(y) - value).abs() / value.abs().max(1e-30);
            assert!(
                error < tolerance,
                "gelu({x}) = {y}, off by {error:e} relative to {value}"
            );
            // The slope crosses zero near -0.75, so its error counts against 1.
            let error = (f64::from(dy) - slope).abs();
            assert!(
                error < 3e-7,
                "gelu'({x}) = {dy}, off by {error:e} from {slope}"
            );
        }
    }

    #[test]
    fn values_and_slopes_agree_with_the_table_at_every_width() {
        check(4e-7, |x, out| vectorize(ValuesAndSlopes { x, out }));
        // Without a fused multiply-add the square of x loses its low part.
        check(3e-6, |x, out| {
            Simd::vectorize(pulp::Scalar, ValuesAndSlopes { x, out })
        });
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V3::try_new() {
            check(4e-7, |x, out| {
                Simd::vectorize(simd, ValuesAndSlopes { x, out })
            });
        }
    }

    #[test]
    fn far_tails_are_exact_and_nan_stays() {
        let mut x = [-1e30, -50.0, 50.0, 1e30, f32::INFINITY, f32::NAN, 0.0];
        vectorize(Values(&mut x));
        assert_eq!(x[..5], [0.0, 0.0, 50.0, 1e30, f32::INFINITY]);
        assert!(x[5].is_nan());
        assert_eq!(x[6], 0.0);
    }
}
