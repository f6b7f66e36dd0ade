//! Large matrix products by the `gemm` crate, the one `flex` itself uses.
//!
//! Against the product of `flex` the result is not zeroed before it is written, and it may begin
//! with a row that is added to every row, so a bias costs no pass of its own.

use std::ops::Range;

use burn::backend::flex::FlexTensor;
use gemm::Parallelism;
use rayon::prelude::*;

use super::buffer;

/// Elements of one task that fills the result with the bias.
const CHUNK: usize = 1 << 14;

/// A matrix in the storage of a tensor, in whatever direction.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    values: &'a [f32],
    /// Position of the first element.
    start: usize,
    n_rows: usize,
    n_columns: usize,
    row_stride: isize,
    column_stride: isize,
}

impl<'a> Matrix<'a> {
    /// All axes of `x` but the last as rows; `x` is contiguous.
    pub(super) fn rows_of(x: &'a FlexTensor) -> Self {
        let shape = x.layout().shape();
        let (n_columns, leading) = shape
            .split_last()
            .map_or((1, &[][..]), |(last, rest)| (*last, rest));
        Self {
            values: buffer::values(x),
            start: 0,
            n_rows: leading.iter().product(),
            n_columns,
            row_stride: n_columns as isize,
            column_stride: 1,
        }
    }

    /// A tensor of rank two, possibly a view.
    pub(super) fn of(x: &'a FlexTensor) -> Self {
        let layout = x.layout();
        let (shape, strides) = (layout.shape(), layout.strides());
        Self {
            values: x.storage::<f32>(),
            start: layout.start_offset(),
            n_rows: shape[0],
            n_columns: shape[1],
            row_stride: strides[0],
            column_stride: strides[1],
        }
    }

    pub(super) fn transposed(self) -> Self {
        Self {
            n_rows: self.n_columns,
            n_columns: self.n_rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// A block of the columns.
    pub(super) fn columns(self, columns: Range<usize>) -> Self {
        assert!(
            columns.start <= columns.end && columns.end <= self.n_columns,
            "columns {columns:?} of {}",
            self.n_columns
        );
        Self {
            start: self
                .start
                .wrapping_add_signed(columns.start as isize * self.column_stride),
            n_columns: columns.len(),
            ..self
        }
    }

    pub(super) fn n_rows(&self) -> usize {
        self.n_rows
    }

    pub(super) fn n_columns(&self) -> usize {
        self.n_columns
    }

    /// A pointer to the first element, after checking that every element lies in the storage.
    fn checked_pointer(&self) -> *const f32 {
        if self.n_rows > 0 && self.n_columns > 0 {
            let start = self.start as isize;
            let rows = (self.n_rows as isize - 1) * self.row_stride;
            let columns = (self.n_columns as isize - 1) * self.column_stride;
            let lowest = start + rows.min(0) + columns.min(0);
            let highest = start + rows.max(0) + columns.max(0);
            assert!(
                lowest >= 0 && (highest as usize) < self.values.len(),
                "matrix reaches from {lowest} to {highest} in a storage of {}",
                self.values.len()
            );
        }
        self.values.as_ptr().wrapping_add(self.start)
    }
}

/// `left · right`, plus `bias` in every row.
///
/// # Panics
///
/// If the inner sizes differ or `bias` is not one row long.
pub(super) fn multiply(left: Matrix<'_>, right: Matrix<'_>, bias: Option<&[f32]>) -> Vec<f32> {
    let (m, k, n) = (left.n_rows, left.n_columns, right.n_columns);
    assert_eq!(k, right.n_rows, "inner sizes of a matrix product");
    if k == 0 && bias.is_none() {
        return vec![0.0; m * n];
    }
    let mut out = match bias {
        None => Vec::with_capacity(m * n),
        Some(bias) => {
            assert_eq!(bias.len(), n, "width of a bias");
            let rows = (CHUNK / n.max(1)).max(1);
            buffer::build(m * n, rows * n, buffer::no_items(), |out, ()| {
                for row in out.chunks_exact_mut(n) {
                    row.copy_from_slice(bias);
                }
            })
        }
    };
    if k > 0 {
        let (left_start, right_start) = (left.checked_pointer(), right.checked_pointer());
        // SAFETY: both operands lie within their storages, checked in the line above; the result
        // has room for m rows of n elements and is read only where the bias has filled it; it is
        // a new allocation, so nothing else points into it.
        unsafe {
            gemm::gemm(
                m,
                n,
                k,
                out.as_mut_ptr(),
                1,
                n as isize,
                bias.is_some(),
                left_start,
                left.column_stride,
                left.row_stride,
                right_start,
                right.column_stride,
                right.row_stride,
                1.0,
                1.0,
                false,
                false,
                false,
                Parallelism::Rayon(0),
            );
        }
    }
    // SAFETY: the capacity is at least m · n, and either the bias or the product wrote each element.
    unsafe { out.set_len(m * n) };
    out
}

/// Adds `left · right` to the given columns of `out`, a contiguous matrix that nothing else holds
/// ([`buffer::owned`]).
///
/// # Panics
///
/// If the sizes do not fit.
pub(super) fn add_product(
    left: Matrix<'_>,
    right: Matrix<'_>,
    out: &mut FlexTensor,
    columns: Range<usize>,
) {
    let (m, k, n) = (left.n_rows, left.n_columns, right.n_columns);
    let shape = out.layout().shape();
    let (n_rows, width) = (shape[0], shape[1]);
    assert!(
        k == right.n_rows && m == n_rows && n == columns.len() && columns.end <= width,
        "sizes of a matrix product: {m} x {k} times {} x {n} onto columns {columns:?} of \
         {n_rows} x {width}",
        right.n_rows
    );
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    let (left_start, right_start) = (left.checked_pointer(), right.checked_pointer());
    let values = out.storage_mut::<f32>();
    assert_eq!(values.len(), m * width, "storage of an owned matrix");
    // SAFETY: both operands lie within their storages, checked above; the result has m rows of
    // `width` elements, the columns end within a row, and it is borrowed exclusively.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            values.as_mut_ptr().add(columns.start),
            1,
            width as isize,
            true,
            left_start,
            left.column_stride,
            left.row_stride,
            right_start,
            right.column_stride,
            right.row_stride,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::Rayon(0),
        );
    }
}

/// Sums over the rows of a contiguous tensor.
pub(super) fn column_sums(x: &FlexTensor) -> Vec<f32> {
    /// Rows of one partial sum; fixes the order of the sum.
    const ROWS: usize = 64;

    let n = Matrix::rows_of(x).n_columns;
    let parts: Vec<Vec<f32>> = buffer::values(x)
        .par_chunks((ROWS * n).max(1))
        .map(|rows| add_rows(rows, n))
        .collect();
    add_rows(&parts.concat(), n)
}

fn add_rows(rows: &[f32], n: usize) -> Vec<f32> {
    let mut sum = vec![0.0; n];
    for row in rows.chunks_exact(n.max(1)) {
        for (sum, value) in sum.iter_mut().zip(row) {
            *sum += value;
        }
    }
    sum
}
