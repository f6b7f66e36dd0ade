//! Where the values of one head lie in packed and in joined rows.

use burn::backend::flex::FlexTensor;

use crate::flex::product::Left;

/// Rows transposed together.
pub(super) const TRANSPOSED: usize = 8;
/// Products of one task at the least, about 50 microseconds of work.
const TASK_PRODUCTS: usize = 1 << 20;

/// The columns of one head in every token's row.
pub(super) type Head<'a> = Vec<&'a mut [f32]>;

/// Cuts the rows of one image, each `width` long, into the columns of its heads.
pub(super) fn heads(rows: &mut [f32], width: usize, d_head: usize) -> Vec<Head<'_>> {
    let n_tokens = rows.len() / width;
    let mut heads: Vec<_> = (0..width / d_head)
        .map(|_| Vec::with_capacity(n_tokens))
        .collect();
    for row in rows.chunks_exact_mut(width) {
        for (head, columns) in heads.iter_mut().zip(row.chunks_exact_mut(d_head)) {
            head.push(columns);
        }
    }
    heads
}

/// Sizes of one call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) n_tokens: usize,
    pub(super) d_model: usize,
    pub(super) d_head: usize,
}

impl Sizes {
    pub(super) fn new(qkv: &FlexTensor, n_heads: usize) -> Self {
        let shape = qkv.layout().shape();
        let d_model = shape[2] / 3;
        Self {
            batch: shape[0],
            n_tokens: shape[1],
            d_model,
            d_head: d_model / n_heads,
        }
    }

    pub(super) fn scale(&self) -> f32 {
        1.0 / (self.d_head as f32).sqrt()
    }

    pub(super) fn heads_per_task(&self) -> usize {
        TASK_PRODUCTS / (self.n_tokens * self.n_tokens * self.d_head).max(1) + 1
    }

    /// One head's columns within a packed row: part 0 is q, 1 is k, 2 is v.
    pub(super) fn packed(&self, part: usize, head: usize) -> Columns {
        Columns {
            row: 3 * self.d_model,
            start: part * self.d_model + head * self.d_head,
            width: self.d_head,
        }
    }

    /// One head's columns within a row of the output.
    pub(super) fn joined(&self, head: usize) -> Columns {
        Columns {
            row: self.d_model,
            start: head * self.d_head,
            width: self.d_head,
        }
    }
}

/// A range of columns in rows of `row` values.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    row: usize,
    start: usize,
    width: usize,
}

impl Columns {
    pub(super) fn of(self, rows: &[f32]) -> impl Iterator<Item = &[f32]> {
        let Self { row, start, width } = self;
        rows.chunks_exact(row)
            .map(move |row| &row[start..start + width])
    }

    /// The columns as left operand, beginning with row `first`.
    pub(super) fn left<'a>(&self, rows: &'a [f32], first: usize) -> Left<'a> {
        Left {
            values: &rows[first * self.row + self.start..],
            row: self.row,
            column: 1,
        }
    }

    /// Copies the columns to rows of `stride` values, the rest of each row 0.
    pub(super) fn pack(&self, rows: &[f32], stride: usize, to: &mut [f32]) {
        for (to, from) in to.chunks_exact_mut(stride).zip(self.of(rows)) {
            to[..self.width].copy_from_slice(from);
            to[self.width..].fill(0.0);
        }
    }

    /// Copies the columns transposed to rows of `stride` values, the rest of each row 0.
    ///
    /// Eight rows advance together: writing one row at a time would touch a new cache line with
    /// every value.
    pub(super) fn pack_transposed(&self, rows: &[f32], stride: usize, to: &mut [f32]) {
        let mut from = self.of(rows);
        for first in (0..stride).step_by(TRANSPOSED) {
            let block: [&[f32]; TRANSPOSED] = std::array::from_fn(|_| from.next().unwrap_or(&[]));
            let rows = to
                .chunks_exact_mut(stride)
                .map(|row| &mut row[first..][..TRANSPOSED]);
            if block[TRANSPOSED - 1].is_empty() {
                // Past the last row.
                for (column, to) in rows.enumerate() {
                    for (to, from) in to.iter_mut().zip(&block) {
                        *to = from.get(column).copied().unwrap_or(0.0);
                    }
                }
            } else {
                let block = block.map(|row| &row[..self.width]);
                for (column, to) in rows.take(self.width).enumerate() {
                    for (to, from) in to.iter_mut().zip(&block) {
                        *to = from[column];
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transposition_of_any_size_is_padded_with_zeros() {
        for (n_rows, width) in [(1, 1), (8, 3), (9, 20), (31, 5)] {
            let columns = Columns {
                row: width + 3,
                start: 2,
                width,
            };
            let rows: Vec<f32> = (0..n_rows * (width + 3)).map(|x| x as f32).collect();
            let stride = 32;
            let mut to = vec![f32::NAN; width * stride];
            columns.pack_transposed(&rows, stride, &mut to);
            for (idx, &value) in to.iter().enumerate() {
                let (column, row) = (idx / stride, idx % stride);
                let expected = if row < n_rows {
                    rows[row * (width + 3) + 2 + column]
                } else {
                    0.0
                };
                assert_eq!(value, expected, "{n_rows} rows of {width}: row {row}");
            }
        }
    }
}
