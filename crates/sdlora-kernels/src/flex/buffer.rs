//! Filling the storage of `flex` tensors from several threads.
//!
//! Work is cut into chunks of a length the caller fixes, never by the number of threads, so a
//! result has the same bits on any machine of the same vector width.

use std::mem::MaybeUninit;

use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, DType, Shape};
use rayon::prelude::*;

/// Elements below which a second thread costs more than it brings: about ten microseconds of the
/// cheapest kernel here.
const PARALLEL_ELEMENTS: usize = 1 << 14;

/// The tensor with its values in row-major order; a copy only where a view is not.
pub(super) fn contiguous(x: FlexTensor) -> FlexTensor {
    if x.is_contiguous() {
        x
    } else {
        x.to_contiguous()
    }
}

/// The values of a contiguous tensor.
pub(super) fn values(x: &FlexTensor) -> &[f32] {
    debug_assert!(x.is_contiguous(), "values of a strided view");
    let layout = x.layout();
    &x.storage::<f32>()[layout.start_offset()..][..layout.num_elements()]
}

/// A tensor of `shape` that owns `values`.
pub(super) fn tensor(values: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::new(
        Bytes::from_elems(values),
        Layout::contiguous(shape),
        DType::F32,
    )
}

/// Items for a kernel that needs none beside its chunk.
pub(super) fn no_items() -> impl IndexedParallelIterator<Item = ()> {
    rayon::iter::repeat_n((), usize::MAX)
}

/// The tensor contiguous, whole and not shared, so that its storage can be overwritten.
pub(super) fn owned(x: FlexTensor, chunk_len: usize) -> FlexTensor {
    map(x, chunk_len, no_items(), |_, ()| {})
}

/// Gives `x` to `kernel` chunk by chunk, to be overwritten in place, and returns it.
///
/// The storage is reused where nothing else holds it, otherwise copied chunk by chunk just before
/// the kernel sees it. `with` yields one item for each chunk.
pub(super) fn map<I: Send>(
    x: FlexTensor,
    chunk_len: usize,
    with: impl IndexedParallelIterator<Item = I>,
    kernel: impl Fn(&mut [f32], I) + Send + Sync,
) -> FlexTensor {
    let mut x = contiguous(x);
    let n = x.layout().num_elements();
    let chunk_len = chunk_len.max(1);
    let whole = x.layout().start_offset() == 0 && x.storage::<f32>().len() == n;
    if whole && let Some(values) = x.try_storage_mut::<f32>() {
        let chunks = values.par_chunks_mut(chunk_len).zip(with);
        run(n, chunks, |(chunk, item)| kernel(chunk, item));
        return x;
    }
    let copy = collect(n, chunk_len, Some(values(&x)), with, kernel);
    tensor(copy, x.layout().shape().clone())
}

/// A vector of `n` values which `kernel` fills chunk by chunk; the chunks arrive as zeros.
pub(super) fn build<I: Send>(
    n: usize,
    chunk_len: usize,
    with: impl IndexedParallelIterator<Item = I>,
    kernel: impl Fn(&mut [f32], I) + Send + Sync,
) -> Vec<f32> {
    // Zeroing inside the task costs a pass over cached memory; zeroing the whole vector would be
    // a pass over main memory on one thread.
    collect(n, chunk_len.max(1), None, with, kernel)
}

/// A vector of `n` values which `kernel` changes chunk by chunk; the chunks arrive as those of
/// `source`, or as zeros. A kernel never sees memory without a value.
fn collect<I: Send>(
    n: usize,
    chunk_len: usize,
    source: Option<&[f32]>,
    with: impl IndexedParallelIterator<Item = I>,
    kernel: impl Fn(&mut [f32], I) + Send + Sync,
) -> Vec<f32> {
    let mut values = Vec::with_capacity(n);
    let n_chunks = n.div_ceil(chunk_len);
    assert!(
        with.len() >= n_chunks,
        "a kernel got items for {} of {n_chunks} chunks",
        with.len()
    );
    let spare = &mut values.spare_capacity_mut()[..n];
    let chunks = spare.par_chunks_mut(chunk_len).enumerate().zip(with);
    run(n, chunks, |((idx, chunk), item)| {
        let start = idx * chunk_len;
        let source = source.map(|source| &source[start..start + chunk.len()]);
        kernel(written(chunk, source), item);
    });
    // SAFETY: the capacity is at least n; the chunks cover the first n elements, none is skipped
    // because there is an item for each (asserted above), and `written` gave each a value.
    unsafe { values.set_len(n) };
    values
}

/// The chunk with the values of `source`, which is as long, or with zeros.
fn written<'a>(chunk: &'a mut [MaybeUninit<f32>], source: Option<&[f32]>) -> &'a mut [f32] {
    match source {
        Some(source) => chunk.write_copy_of_slice(source),
        None => {
            chunk.fill(MaybeUninit::new(0.0));
            // SAFETY: every element was written in the line above.
            unsafe { chunk.assume_init_mut() }
        }
    }
}

/// Runs `task` on every item, on this thread alone if the `n` elements are few.
fn run<I: Send>(
    n: usize,
    items: impl IndexedParallelIterator<Item = I>,
    task: impl Fn(I) + Send + Sync,
) {
    if n < PARALLEL_ELEMENTS {
        // One task of maximal length: rayon does not split it.
        items.with_min_len(usize::MAX).for_each(task);
    } else {
        items.for_each(task);
    }
}
