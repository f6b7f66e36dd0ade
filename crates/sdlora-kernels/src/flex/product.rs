//! Products of the small matrices of one attention head.
//!
//! A general matrix product packs both operands and pays for it only when they are large.
//! Here the right operand comes with rows padded to whole vectors, the left one is read in place
//! in either direction, and a tile of the result stays in registers.

use pulp::Simd;

use super::simd::Vector;

/// The left operand: `values[i * row + k * column]` at row `i` and inner index `k`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a> {
    pub(super) values: &'a [f32],
    pub(super) row: usize,
    pub(super) column: usize,
}

impl<'a> Left<'a> {
    /// A matrix with rows of `stride` values.
    pub(super) fn rows(values: &'a [f32], stride: usize) -> Self {
        Self {
            values,
            row: stride,
            column: 1,
        }
    }

    /// The transpose of a matrix with rows of `stride` values.
    pub(super) fn columns(values: &'a [f32], stride: usize) -> Self {
        Self {
            values,
            row: 1,
            column: stride,
        }
    }
}

/// The right operand: one row of `stride` values, a whole number of vectors, per inner index.
#[derive(Clone, Copy)]
pub(super) struct Right<'a> {
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
}

impl<'a> Right<'a> {
    pub(super) fn new(values: &'a [f32], stride: usize) -> Self {
        Self { values, stride }
    }
}

/// Takes a product piece by piece as it leaves the registers.
pub(super) trait Sink<S: Simd> {
    /// Takes `vectors` of one row, beginning with `column`; the last lanes may lie beyond the end
    /// of the row. Inline it always.
    fn take(&mut self, simd: S, row: usize, column: usize, vectors: &[Vector<S>]);
}

/// A result with rows of `stride` values.
pub(super) struct Matrix<'a> {
    pub(super) values: &'a mut [f32],
    pub(super) stride: usize,
}

impl<S: Simd> Sink<S> for Matrix<'_> {
    #[inline(always)]
    fn take(&mut self, simd: S, row: usize, column: usize, vectors: &[Vector<S>]) {
        let row = &mut self.values[row * self.stride..][column..self.stride];
        write(simd, vectors, row);
    }
}

/// `left · right` over `n_rows` rows of `left` and `n_inner` inner indices.
///
/// Panels of columns pass one after another over all rows, so a panel of `right` stays in the
/// first-level cache.
#[inline(always)]
pub(super) fn product<S: Simd>(
    simd: S,
    n_rows: usize,
    n_inner: usize,
    left: Left<'_>,
    right: Right<'_>,
    mut sink: impl Sink<S>,
) {
    let lanes = Vector::<S>::LANES;
    let mut column = 0;
    while column + 2 * lanes <= right.stride {
        panel::<S, 2>(simd, column, n_rows, n_inner, left, right, &mut sink);
        column += 2 * lanes;
    }
    if column < right.stride {
        panel::<S, 1>(simd, column, n_rows, n_inner, left, right, &mut sink);
    }
}

/// `VECTORS` vectors of every row, by tiles as high as the registers allow.
///
/// A ViT has `4 k + 1` tokens, so few rows are left over.
#[inline(always)]
fn panel<S: Simd, const VECTORS: usize>(
    simd: S,
    column: usize,
    n_rows: usize,
    n_inner: usize,
    left: Left<'_>,
    right: Right<'_>,
    sink: &mut impl Sink<S>,
) {
    // Eight rows of two vectors need 16 registers for the sums alone.
    let high = S::REGISTER_COUNT >= 32;
    let mut row = 0;
    while high && row + 8 <= n_rows {
        tile::<S, 8, VECTORS>(simd, row, column, n_inner, left, right, sink);
        row += 8;
    }
    while row + 4 <= n_rows {
        tile::<S, 4, VECTORS>(simd, row, column, n_inner, left, right, sink);
        row += 4;
    }
    while row < n_rows {
        tile::<S, 1, VECTORS>(simd, row, column, n_inner, left, right, sink);
        row += 1;
    }
}

#[inline(always)]
fn tile<S: Simd, const N: usize, const VECTORS: usize>(
    simd: S,
    row: usize,
    column: usize,
    n_inner: usize,
    left: Left<'_>,
    right: Right<'_>,
    sink: &mut impl Sink<S>,
) {
    let mut sums = [[Vector::splat(simd, 0.0); VECTORS]; N];
    if n_inner > 0 {
        let last = n_inner - 1;
        let left_end = (row + N - 1) * left.row + last * left.column + 1;
        let right_end = last * right.stride + column + VECTORS * Vector::<S>::LANES;
        assert!(left_end <= left.values.len() && right_end <= right.values.len());
    }
    let left_start = row * left.row;
    for inner in 0..n_inner {
        let mut vectors = [Vector::splat(simd, 0.0); VECTORS];
        for (idx, vector) in vectors.iter_mut().enumerate() {
            let start = inner * right.stride + column + idx * Vector::<S>::LANES;
            // SAFETY: `start` plus one vector is at most `right_end`, which is within the values.
            // A check in this loop keeps the sums from staying in registers.
            let lanes = unsafe {
                right
                    .values
                    .as_ptr()
                    .add(start)
                    .cast::<S::f32s>()
                    .read_unaligned()
            };
            *vector = Vector::new(simd, lanes);
        }
        for (offset, sums) in sums.iter_mut().enumerate() {
            let idx = left_start + offset * left.row + inner * left.column;
            // SAFETY: `idx` is below `left_end`, which is within the values.
            let factor = Vector::splat(simd, unsafe { *left.values.get_unchecked(idx) });
            for (sum, &vector) in sums.iter_mut().zip(&vectors) {
                *sum = factor.mul_add(vector, *sum);
            }
        }
    }
    for (offset, sums) in sums.iter().enumerate() {
        sink.take(simd, row + offset, column, sums);
    }
}

/// Writes `vectors` to the start of `to`, dropping the lanes beyond its end.
#[inline(always)]
pub(super) fn write<S: Simd>(simd: S, vectors: &[Vector<S>], to: &mut [f32]) {
    let (whole, rest) = S::as_mut_simd_f32s(to);
    let n_whole = whole.len().min(vectors.len());
    for (to, vector) in whole.iter_mut().zip(vectors) {
        *to = vector.lanes();
    }
    if let Some(vector) = vectors.get(n_whole) {
        simd.partial_store_f32s(rest, vector.lanes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flex::simd::vectorize;
    use pulp::WithSimd;

    /// `left [n_rows, n_inner] · right [n_inner, n_columns]`, the left operand as it is or stored
    /// transposed.
    struct Product<'a> {
        left: Left<'a>,
        right: &'a [f32],
        n_columns: usize,
        n_inner: usize,
        out: &'a mut [f32],
    }

    impl WithSimd for Product<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let n = self.n_columns;
            let stride = n.next_multiple_of(Vector::<S>::LANES);
            let mut right = vec![0.0; self.n_inner * stride];
            for (to, from) in right.chunks_exact_mut(stride).zip(self.right.chunks(n)) {
                to[..n].copy_from_slice(from);
            }
            let right = Right {
                values: &right,
                stride,
            };
            let n_rows = self.out.len() / n;
            let out = Matrix {
                values: self.out,
                stride: n,
            };
            product(simd, n_rows, self.n_inner, self.left, right, out);
        }
    }

    #[test]
    fn small_integers_multiply_exactly_in_every_shape() {
        for (n_rows, n_inner, n_columns) in [
            (1, 1, 1),
            (4, 3, 16),
            (5, 7, 33),
            (9, 2, 64),
            (17, 32, 17),
            (6, 0, 5),
            (2, 5, 130),
        ] {
            let left: Vec<f32> = (0..n_rows * n_inner)
                .map(|x| (x % 7) as f32 - 3.0)
                .collect();
            let right: Vec<f32> = (0..n_inner * n_columns)
                .map(|x| (x % 5) as f32 - 2.0)
                .collect();
            let transposed: Vec<f32> = (0..n_inner * n_rows)
                .map(|x| left[x % n_rows * n_inner + x / n_rows])
                .collect();
            let mut expected = vec![0.0; n_rows * n_columns];
            for (idx, sum) in expected.iter_mut().enumerate() {
                let (row, column) = (idx / n_columns, idx % n_columns);
                for k in 0..n_inner {
                    *sum += left[row * n_inner + k] * right[k * n_columns + column];
                }
            }
            for (values, row, column) in [(&left, n_inner, 1), (&transposed, 1, n_rows)] {
                let left = Left {
                    values,
                    row,
                    column,
                };
                let check = |width: &str, run: &dyn Fn(Product)| {
                    let mut out = vec![f32::NAN; expected.len()];
                    run(Product {
                        left,
                        right: &right,
                        n_columns,
                        n_inner,
                        out: &mut out,
                    });
                    assert_eq!(out, expected, "{n_rows} x {n_inner} x {n_columns}, {width}");
                };
                check("widest", &|kernel| vectorize(kernel));
                check("scalar", &|kernel| Simd::vectorize(pulp::Scalar, kernel));
                #[cfg(target_arch = "x86_64")]
                if let Some(simd) = pulp::x86::V3::try_new() {
                    check("256 bits", &|kernel| Simd::vectorize(simd, kernel));
                }
            }
        }
    }
}
