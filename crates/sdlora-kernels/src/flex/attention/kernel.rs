//! The vector code of one head, forward and backward.

use std::cell::RefCell;

use pulp::{Simd, WithSimd};

use super::columns::{Head, Sizes, TRANSPOSED};
use crate::flex::product::{Left, Matrix, Right, Sink, product, write};
use crate::flex::simd::{Dot, Sum, Vector, sums};

/// Rows of scores in flight; they fit the first-level cache for up to 200 tokens.
const BLOCK: usize = 16;

/// What turns the scores of one row into probabilities: `exp((score − max) s) · inv_sum`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Softmax {
    max: f32,
    inv_sum: f32,
}

thread_local! {
    /// Working memory of one task; kept, because fresh pages cost more than the work in them.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The working memory of this thread, given back when dropped.
struct Scratch(Vec<f32>);

impl Scratch {
    fn take() -> Self {
        Self(SCRATCH.take())
    }

    /// Slices of the given lengths, contents arbitrary.
    fn cut<const N: usize>(&mut self, lengths: [usize; N]) -> [&mut [f32]; N] {
        let total: usize = lengths.iter().sum();
        if self.0.len() < total {
            self.0.resize(total, 0.0);
        }
        let mut rest = self.0.as_mut_slice();
        lengths.map(|len| {
            let (slice, others) = std::mem::take(&mut rest).split_at_mut(len);
            rest = others;
            slice
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        SCRATCH.set(std::mem::take(&mut self.0));
    }
}

/// Writes a product into the columns of one head.
struct Rows<'a, 'b>(&'a mut [&'b mut [f32]]);

impl<S: Simd> Sink<S> for Rows<'_, '_> {
    #[inline(always)]
    fn take(&mut self, simd: S, row: usize, column: usize, vectors: &[Vector<S>]) {
        write(simd, vectors, &mut self.0[row][column..]);
    }
}

/// Writes `exp(S) v` into the columns of one head, divided by the sums of the rows of `exp(S)`.
struct Weighted<'a, 'b> {
    rows: &'a mut [&'b mut [f32]],
    softmax: &'a [Softmax],
}

impl<S: Simd> Sink<S> for Weighted<'_, '_> {
    #[inline(always)]
    fn take(&mut self, simd: S, row: usize, column: usize, vectors: &[Vector<S>]) {
        let inv_sum = Vector::splat(simd, self.softmax[row].inv_sum);
        let mut rest = &mut self.rows[row][column..];
        for &vector in vectors {
            write(simd, &[vector * inv_sum], rest);
            let n = rest.len().min(Vector::<S>::LANES);
            rest = &mut rest[n..];
        }
    }
}

/// Scores `q kᵀ` of `n_rows` rows, the columns past the last token −∞.
#[inline(always)]
fn scores<S: Simd>(
    simd: S,
    n_rows: usize,
    sizes: &Sizes,
    queries: Left<'_>,
    keys: Right<'_>,
    scores: &mut [f32],
) {
    let stride = keys.stride;
    let sink = Matrix {
        values: scores,
        stride,
    };
    product(simd, n_rows, sizes.d_head, queries, keys, sink);
    for row in scores.chunks_exact_mut(stride).take(n_rows) {
        row[sizes.n_tokens..].fill(f32::NEG_INFINITY);
    }
}

/// The largest score of a row, a whole number of vectors.
#[inline(always)]
fn largest<S: Simd>(simd: S, row: &[f32]) -> f32 {
    let mut max = Vector::splat(simd, f32::NEG_INFINITY);
    for &scores in S::as_simd_f32s(row).0 {
        max = Vector::new(simd, scores).max(max);
    }
    max.largest()
}

/// Overwrites a row of scores, a whole number of vectors, by `exp((score − max) s)`.
#[inline(always)]
fn exponentials<S: Simd>(simd: S, row: &mut [f32], max: f32, scale: f32) {
    let (max, scale) = (Vector::splat(simd, max), Vector::splat(simd, scale));
    for score in S::as_mut_simd_f32s(row).0 {
        *score = ((Vector::new(simd, *score) - max) * scale).exp().lanes();
    }
}

/// Attention of one head of one image.
pub(super) struct Forward<'a> {
    pub(super) sizes: Sizes,
    /// Packed rows of one image.
    pub(super) qkv: &'a [f32],
    pub(super) head: usize,
    pub(super) out: Head<'a>,
    pub(super) softmax: &'a mut [Softmax],
}

impl WithSimd for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            sizes,
            qkv,
            head,
            mut out,
            softmax,
        } = self;
        let Sizes {
            n_tokens, d_head, ..
        } = sizes;
        let n_padded = n_tokens.next_multiple_of(Vector::<S>::LANES.max(TRANSPOSED));
        let d_padded = d_head.next_multiple_of(Vector::<S>::LANES);

        let mut scratch = Scratch::take();
        let [keys, values, block] =
            scratch.cut([d_head * n_padded, n_tokens * d_padded, BLOCK * n_padded]);
        sizes.packed(1, head).pack_transposed(qkv, n_padded, keys);
        sizes.packed(2, head).pack(qkv, d_padded, values);
        let keys = Right::new(keys, n_padded);
        let values = Right::new(values, d_padded);

        let blocks = out.chunks_mut(BLOCK).zip(softmax.chunks_mut(BLOCK));
        for (idx, (out, softmax)) in blocks.enumerate() {
            let queries = sizes.packed(0, head).left(qkv, idx * BLOCK);
            scores(simd, out.len(), &sizes, queries, keys, block);
            for (row, softmax) in block.chunks_exact_mut(n_padded).zip(softmax.iter_mut()) {
                let max = largest(simd, row);
                exponentials(simd, row, max, sizes.scale());
                let [sum] = sums(simd, [&*row], Sum);
                *softmax = Softmax {
                    max,
                    inv_sum: 1.0 / sum,
                };
            }
            let n_rows = out.len();
            let sink = Weighted { rows: out, softmax };
            product(
                simd,
                n_rows,
                n_tokens,
                Left::rows(block, n_padded),
                values,
                sink,
            );
        }
    }
}

/// The gradients of `q`, `k` and `v` of one head of one image.
pub(super) struct Gradient<'a> {
    pub(super) sizes: Sizes,
    /// Packed rows of one image.
    pub(super) qkv: &'a [f32],
    /// Rows of the output's gradient of that image.
    pub(super) grad: &'a [f32],
    pub(super) head: usize,
    pub(super) softmax: &'a [Softmax],
    pub(super) d_q: Head<'a>,
    pub(super) d_k: Head<'a>,
    pub(super) d_v: Head<'a>,
}

impl WithSimd for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self {
            sizes, qkv, grad, ..
        } = self;
        let Sizes {
            n_tokens, d_head, ..
        } = sizes;
        let n_padded = n_tokens.next_multiple_of(Vector::<S>::LANES.max(TRANSPOSED));
        let d_padded = d_head.next_multiple_of(Vector::<S>::LANES);
        let queries = sizes.packed(0, self.head);
        let keys = sizes.packed(1, self.head);
        let values = sizes.packed(2, self.head);
        let outputs = sizes.joined(self.head);

        let mut scratch = Scratch::take();
        let (transposed, packed) = (d_head * n_padded, n_tokens * d_padded);
        let square = n_tokens * n_padded;
        let [keys_t, values_t, packed, probabilities, d_scores] =
            scratch.cut([transposed, transposed, packed, square, square]);
        keys.pack_transposed(qkv, n_padded, keys_t);
        values.pack_transposed(qkv, n_padded, values_t);
        let keys_t = Right::new(keys_t, n_padded);
        let values_t = Right::new(values_t, n_padded);

        let blocks = probabilities
            .chunks_mut(BLOCK * n_padded)
            .zip(d_scores.chunks_mut(BLOCK * n_padded))
            .zip(self.softmax.chunks(BLOCK))
            .enumerate();
        for (idx, ((probabilities, d_scores), softmax)) in blocks {
            let (first, n_rows) = (idx * BLOCK, softmax.len());
            let left = queries.left(qkv, first);
            scores(simd, n_rows, &sizes, left, keys_t, probabilities);
            let sink = Matrix {
                values: d_scores,
                stride: n_padded,
            };
            product(
                simd,
                n_rows,
                d_head,
                outputs.left(grad, first),
                values_t,
                sink,
            );
            let rows = probabilities
                .chunks_exact_mut(n_padded)
                .zip(d_scores.chunks_exact_mut(n_padded));
            for ((probabilities, d_scores), softmax) in rows.zip(softmax) {
                exponentials(simd, probabilities, softmax.max, sizes.scale());
                score_gradients(
                    simd,
                    probabilities,
                    d_scores,
                    softmax.inv_sum,
                    sizes.scale(),
                );
            }
        }

        let (probabilities, d_scores) = (&*probabilities, &*d_scores);
        let products = [
            (keys, qkv, Left::rows(d_scores, n_padded), self.d_q),
            (queries, qkv, Left::columns(d_scores, n_padded), self.d_k),
            (
                outputs,
                grad,
                Left::columns(probabilities, n_padded),
                self.d_v,
            ),
        ];
        for (columns, rows, left, mut out) in products {
            columns.pack(rows, d_padded, packed);
            let right = Right::new(packed, d_padded);
            product(simd, n_tokens, n_tokens, left, right, Rows(&mut out));
        }
    }
}

/// Turns one row of exponentials into probabilities and of `dP` into `dS`.
#[inline(always)]
fn score_gradients<S: Simd>(
    simd: S,
    probabilities: &mut [f32],
    d_scores: &mut [f32],
    inv_sum: f32,
    scale: f32,
) {
    let inv_sum = Vector::splat(simd, inv_sum);
    let scale = Vector::splat(simd, scale);
    for p in S::as_mut_simd_f32s(probabilities).0 {
        *p = (Vector::new(simd, *p) * inv_sum).lanes();
    }
    let [mean] = sums(simd, [&*probabilities, &*d_scores], Dot);
    let mean = Vector::splat(simd, mean);
    let row = S::as_simd_f32s(probabilities)
        .0
        .iter()
        .zip(S::as_mut_simd_f32s(d_scores).0);
    for (&p, d) in row {
        let p = Vector::new(simd, p);
        *d = (p * (Vector::new(simd, *d) - mean) * scale).lanes();
    }
}

#[cfg(test)]
mod tests {
    use super::super::columns::heads;
    use super::*;
    use crate::flex::simd::vectorize;

    const SIZES: Sizes = Sizes {
        batch: 1,
        n_tokens: 9,
        d_model: 2 * 20,
        d_head: 20,
    };

    /// The second head's output and gradients, computed by `run` and `back` at some width.
    fn all(run: &dyn Fn(Forward), back: &dyn Fn(Gradient)) -> Vec<f32> {
        let Sizes {
            n_tokens, d_model, ..
        } = SIZES;
        let wave = |len: usize, step: f32| -> Vec<f32> {
            (0..len).map(|idx| (idx as f32 * step).sin()).collect()
        };
        let qkv = wave(n_tokens * 3 * d_model, 0.7);
        let grad = wave(n_tokens * d_model, 1.3);
        let mut softmax = vec![Softmax::default(); n_tokens];
        let mut out = vec![0.0; n_tokens * d_model];
        run(Forward {
            sizes: SIZES,
            qkv: &qkv,
            head: 1,
            out: heads(&mut out, d_model, SIZES.d_head).remove(1),
            softmax: &mut softmax,
        });
        let mut d_qkv = vec![0.0; qkv.len()];
        let mut parts = heads(&mut d_qkv, 3 * d_model, SIZES.d_head);
        let (d_v, d_k, d_q) = (parts.remove(5), parts.remove(3), parts.remove(1));
        back(Gradient {
            sizes: SIZES,
            qkv: &qkv,
            grad: &grad,
            head: 1,
            softmax: &softmax,
            d_q,
            d_k,
            d_v,
        });
        [out, d_qkv].concat()
    }

    fn assert_same(widest: &[f32], other: &[f32]) {
        for (a, b) in widest.iter().zip(other) {
            assert!((a - b).abs() < 5e-6, "{a} and {b}");
        }
    }

    #[test]
    fn every_width_of_vectors_gives_the_same_numbers() {
        let widest = all(&|kernel| vectorize(kernel), &|kernel| vectorize(kernel));
        assert!(
            widest.iter().any(|x| x.abs() > 0.1),
            "the comparison needs values"
        );
        let scalar = all(&|kernel| Simd::vectorize(pulp::Scalar, kernel), &|kernel| {
            Simd::vectorize(pulp::Scalar, kernel)
        });
        assert_same(&widest, &scalar);
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V3::try_new() {
            let narrow = all(&|kernel| Simd::vectorize(simd, kernel), &|kernel| {
                Simd::vectorize(simd, kernel)
            });
            assert_same(&widest, &narrow);
        }
    }
}
