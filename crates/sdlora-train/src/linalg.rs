//! Products, symmetric matrices and Cholesky factors on the host, in double precision where it counts.
//!
//! A symmetric matrix lies in block columns, each from its diagonal block down: half the memory of a
//! square one, and every block is one call of the `gemm` crate, which uses all threads. The result
//! depends on the numbers alone, not on the backend or the number of threads.

use gemm::Parallelism;

/// Columns of a block.
const WIDTH: usize = 128;

/// `f32` or `f64`.
pub(crate) trait Number: Copy + 'static {
    /// 1.
    const ONE: Self;
}

impl Number for f32 {
    const ONE: Self = 1.0;
}

impl Number for f64 {
    const ONE: Self = 1.0;
}

/// A matrix inside a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a, T> {
    values: &'a [T],
    n_rows: usize,
    n_columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T> View<'a, T> {
    /// Rows of `n_columns` values, each `stride` after the one before.
    ///
    /// # Panics
    ///
    /// When `values` ends before the last row does.
    pub(crate) fn new(values: &'a [T], n_rows: usize, n_columns: usize, stride: usize) -> Self {
        let end = if n_rows * n_columns == 0 {
            0
        } else {
            (n_rows - 1) * stride + n_columns
        };
        assert!(end <= values.len(), "{end} values, {} there", values.len());
        Self {
            values,
            n_rows,
            n_columns,
            row_stride: stride,
            column_stride: 1,
        }
    }

    /// All of `values` as rows of `n_columns`.
    pub(crate) fn rows(values: &'a [T], n_columns: usize) -> Self {
        Self::new(
            values,
            values.len() / n_columns.max(1),
            n_columns,
            n_columns,
        )
    }

    /// Number of rows.
    pub(crate) fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Number of columns.
    pub(crate) fn n_columns(&self) -> usize {
        self.n_columns
    }

    /// Rows for columns.
    pub(crate) fn transposed(self) -> Self {
        Self {
            n_rows: self.n_columns,
            n_columns: self.n_rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// `target += factor · left · right`, the rows of `target` `stride` apart.
///
/// # Panics
///
/// When the shapes do not fit each other.
pub(crate) fn add_product<T: Number>(
    target: &mut [T],
    stride: usize,
    factor: T,
    left: View<'_, T>,
    right: View<'_, T>,
) {
    let (m, n, k) = (left.n_rows, right.n_columns, left.n_columns);
    assert_eq!(k, right.n_rows, "inner lengths");
    // Checks the length; rows of a target must not overlap.
    View::new(&*target, m, n, stride);
    assert!(m < 2 || stride >= n, "{stride} apart, {n} long");
    if m * n * k == 0 {
        return;
    }
    // SAFETY: every element that the shapes and strides reach lies inside its slice, which
    // `View::new` has checked and `transposed` keeps; `target` is borrowed alone, so it overlaps
    // neither factor; strides fit in isize because the slices do.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            target.as_mut_ptr(),
            1,
            stride as isize,
            true,
            left.values.as_ptr(),
            left.column_stride as isize,
            left.row_stride as isize,
            right.values.as_ptr(),
            right.column_stride as isize,
            right.row_stride as isize,
            T::ONE,
            factor,
            false,
            false,
            false,
            Parallelism::Rayon(0),
        );
    }
}

/// Columns `first .. first + width` of a matrix, from row `first` down.
#[derive(Debug, Clone)]
struct Panel {
    first: usize,
    width: usize,
    /// `[n - first, width]`.
    values: Vec<f64>,
}

impl Panel {
    /// The block on the diagonal `[width, width]`, and all below it.
    fn split(&self) -> (View<'_, f64>, View<'_, f64>) {
        let (diagonal, below) = self.values.split_at(self.width * self.width);
        (
            View::rows(diagonal, self.width),
            View::rows(below, self.width),
        )
    }
}

/// A symmetric matrix `[n, n]`.
#[derive(Debug, Clone)]
pub(crate) struct Symmetric {
    n: usize,
    panels: Vec<Panel>,
}

impl Symmetric {
    /// Zeros.
    pub(crate) fn zeros(n: usize) -> Self {
        let panel = |first: usize| {
            let width = WIDTH.min(n - first);
            let values = vec![0.0; (n - first) * width];
            Panel {
                first,
                width,
                values,
            }
        };
        let panels = (0..n).step_by(WIDTH).map(panel).collect();
        Self { n, panels }
    }

    /// From the rows of its lower triangle, one after the other: [`packed`](Self::packed) undone.
    /// Values that are missing are 0.
    pub(crate) fn unpacked(lower: &[f32], n: usize) -> Self {
        Self::of_lower(n, |at| lower.get(at).map_or(0.0, |&v| f64::from(v)))
    }

    /// From the numbers of its lower triangle, row by row, by their place.
    pub(crate) fn of_lower(n: usize, lower: impl Fn(usize) -> f64) -> Self {
        let mut matrix = Self::zeros(n);
        for panel in &mut matrix.panels {
            let (first, width) = (panel.first, panel.width);
            for i in first..n {
                for j in first..(first + width).min(i + 1) {
                    let value = lower(i * (i + 1) / 2 + j);
                    panel.values[(i - first) * width + j - first] = value;
                    if i < first + width {
                        panel.values[(j - first) * width + i - first] = value;
                    }
                }
            }
        }
        matrix
    }

    /// The rows of the lower triangle one after the other, `n (n + 1) / 2` numbers.
    pub(crate) fn packed(&self) -> Vec<f32> {
        self.lower().map(|v| v as f32).collect()
    }

    /// The numbers of [`packed`](Self::packed) in double precision.
    pub(crate) fn lower(&self) -> impl Iterator<Item = f64> + '_ {
        (0..self.n).flat_map(move |i| {
            self.panels
                .iter()
                .take(i / WIDTH + 1)
                .flat_map(move |panel| {
                    let (first, width) = (panel.first, panel.width);
                    let row = &panel.values[(i - first) * width..];
                    row[..width.min(i + 1 - first)].iter().copied()
                })
        })
    }

    /// Adds `Σ x xᵀ` over `rows: [m, n]`.
    pub(crate) fn add_gram(&mut self, rows: &[f64]) {
        let n = self.n;
        let m = rows.len() / n.max(1);
        for panel in &mut self.panels {
            let from = panel.first.min(rows.len());
            let below = View::new(&rows[from..], m, n - panel.first, n);
            let block = View::new(&rows[from..], m, panel.width, n);
            add_product(
                &mut panel.values,
                panel.width,
                1.0,
                below.transposed(),
                block,
            );
        }
    }

    /// Adds `factor` times another matrix of this size.
    pub(crate) fn add(&mut self, factor: f64, other: &Self) {
        for (to, from) in self.panels.iter_mut().zip(&other.panels) {
            for (to, from) in to.values.iter_mut().zip(&from.values) {
                *to += factor * from;
            }
        }
    }

    /// Mean of the diagonal; 0 of an empty matrix.
    pub(crate) fn mean_diagonal(&self) -> f64 {
        let of_panel = |p: &Panel| -> f64 { (0..p.width).map(|i| p.values[i * p.width + i]).sum() };
        self.panels.iter().map(of_panel).sum::<f64>() / self.n.max(1) as f64
    }

    /// `Σ w G wᵀ` over `rows: [m, n]`.
    pub(crate) fn quadratic(&self, rows: &[f64]) -> f64 {
        let n = self.n;
        let m = rows.len() / n.max(1);
        let mut total = 0.0;
        for panel in &self.panels {
            let (first, width) = (panel.first, panel.width);
            let after = (first + width).min(rows.len());
            let block = View::new(&rows[first.min(rows.len())..], m, width, n);
            let rest = View::new(&rows[after..], m, n - first - width, n);
            let (diagonal, below) = panel.split();
            let mut products = vec![0.0; m * width];
            add_product(&mut products, width, 1.0, block, diagonal);
            // What lies below stands for what lies right of the diagonal too.
            add_product(&mut products, width, 2.0, rest, below);
            for (products, row) in products.chunks_exact(width).zip(rows.chunks_exact(n)) {
                let block = &row[first..first + width];
                total += products.iter().zip(block).map(|(a, b)| a * b).sum::<f64>();
            }
        }
        total
    }

    /// `rows · G` `[m, n]` of `rows: [m, n]`.
    pub(crate) fn times(&self, rows: &[f64]) -> Vec<f64> {
        let n = self.n;
        let m = rows.len() / n.max(1);
        let mut out = vec![0.0; m * n];
        if m == 0 {
            return out;
        }
        for panel in &self.panels {
            let (first, width) = (panel.first, panel.width);
            let from = View::new(&rows[first..], m, n - first, n);
            let values = View::rows(&panel.values, width);
            add_product(&mut out[first..], n, 1.0, from, values);
            let after = first + width;
            if after < n {
                // What lies below stands for what lies right of the diagonal too.
                let (_, below) = panel.split();
                let block = View::new(&rows[first..], m, width, n);
                add_product(&mut out[after..], n, 1.0, block, below.transposed());
            }
        }
        out
    }

    /// Adds `leftᵀ · right + rightᵀ · left` of two `[m, n]`.
    pub(crate) fn add_cross(&mut self, left: &[f64], right: &[f64]) {
        let n = self.n;
        let m = left.len() / n.max(1);
        for panel in &mut self.panels {
            let (first, width) = (panel.first, panel.width);
            for (a, b) in [(left, right), (right, left)] {
                let from = first.min(a.len());
                let below = View::new(&a[from..], m, n - first, n).transposed();
                let block = View::new(&b[from..], m, width, n);
                add_product(&mut panel.values, width, 1.0, below, block);
            }
        }
    }

    /// Adds a number to the diagonal.
    pub(crate) fn add_diagonal(&mut self, value: f64) {
        for panel in &mut self.panels {
            for i in 0..panel.width {
                panel.values[i * panel.width + i] += value;
            }
        }
    }

    /// Sum of the squares of all entries.
    pub(crate) fn squares(&self) -> f64 {
        let of_panel = |panel: &Panel| -> f64 {
            let (diagonal, below) = panel.values.split_at(panel.width * panel.width);
            let squares = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>();
            squares(diagonal) + 2.0 * squares(below)
        };
        self.panels.iter().map(of_panel).sum()
    }

    /// Every entry by a number.
    pub(crate) fn scale(&mut self, factor: f64) {
        for panel in &mut self.panels {
            panel.values.iter_mut().for_each(|v| *v *= factor);
        }
    }

    /// The factor `L` of `G + ridge · I = L Lᵀ`; `None` when that is not positive definite to
    /// working precision.
    pub(crate) fn cholesky(mut self, ridge: f64) -> Option<Cholesky> {
        let floor = f64::EPSILON * (self.mean_diagonal() + ridge);
        let mut inverses = Vec::with_capacity(self.panels.len());
        for at in 0..self.panels.len() {
            let (done, rest) = self.panels.split_at_mut(at);
            let panel = &mut rest[0];
            let (first, width) = (panel.first, panel.width);
            for i in 0..width {
                panel.values[i * width + i] += ridge;
            }
            for earlier in done.iter() {
                let from = (first - earlier.first) * earlier.width;
                let rows = &earlier.values[from..];
                let block = &rows[..width * earlier.width];
                let block = View::rows(block, earlier.width).transposed();
                let rows = View::rows(rows, earlier.width);
                add_product(&mut panel.values, width, -1.0, rows, block);
            }
            let (diagonal, below) = panel.values.split_at_mut(width * width);
            factorise(diagonal, width, floor)?;
            let inverse = inverted(diagonal, width);
            let mut solved = vec![0.0; below.len()];
            let factor = View::rows(&inverse, width).transposed();
            add_product(&mut solved, width, 1.0, View::rows(below, width), factor);
            below.copy_from_slice(&solved);
            inverses.push(inverse);
        }
        Some(Cholesky {
            lower: self,
            inverses,
        })
    }
}

/// Numbers of the lower triangle of `[n, n]`.
pub(crate) fn packed_len(n: usize) -> usize {
    n * (n + 1) / 2
}

/// `L` of `A = L Lᵀ`.
#[derive(Debug)]
pub(crate) struct Cholesky {
    /// `L` in the place of the lower triangle.
    lower: Symmetric,
    /// Inverse of the diagonal block of every panel.
    inverses: Vec<Vec<f64>>,
}

impl Cholesky {
    /// `rows · A⁻¹` in place, of `rows: [m, n]`.
    pub(crate) fn solve(&self, rows: &mut [f64]) {
        let n = self.lower.n;
        let m = rows.len() / n.max(1);
        if m == 0 {
            return;
        }
        let panels = || self.lower.panels.iter().zip(&self.inverses);
        // y Lᵀ = x, from the left.
        for (panel, inverse) in panels() {
            let (first, width) = (panel.first, panel.width);
            let inverse = View::rows(inverse, width).transposed();
            let block = times(rows, n, first, width, inverse);
            let (_, below) = panel.split();
            let block_view = View::rows(&block, width);
            if first + width < n {
                let rest = &mut rows[first + width..];
                add_product(rest, n, -1.0, block_view, below.transposed());
            }
            put(rows, n, first, width, &block);
        }
        // z L = y, from the right.
        for (panel, inverse) in panels().rev() {
            let (first, width) = (panel.first, panel.width);
            let (_, below) = panel.split();
            if first + width < n {
                let rest = View::new(&rows[first + width..], m, n - first - width, n);
                let mut products = vec![0.0; m * width];
                add_product(&mut products, width, 1.0, rest, below);
                for (row, products) in rows.chunks_exact_mut(n).zip(products.chunks_exact(width)) {
                    let block = &mut row[first..first + width];
                    block.iter_mut().zip(products).for_each(|(x, p)| *x -= p);
                }
            }
            let block = times(rows, n, first, width, View::rows(inverse, width));
            put(rows, n, first, width, &block);
        }
    }

    /// The numbers of `L`, row by row, up to the diagonal: `n (n + 1) / 2` of them.
    pub(crate) fn lower(&self) -> impl Iterator<Item = f64> + '_ {
        self.lower.lower()
    }
}

/// Columns `first .. first + width` of `rows: [m, n]` times `right: [width, width]`.
fn times(rows: &[f64], n: usize, first: usize, width: usize, right: View<'_, f64>) -> Vec<f64> {
    let m = rows.len() / n;
    let block = View::new(&rows[first..], m, width, n);
    let mut out = vec![0.0; m * width];
    add_product(&mut out, width, 1.0, block, right);
    out
}

/// Replaces columns `first .. first + width` of `rows: [m, n]`.
fn put(rows: &mut [f64], n: usize, first: usize, width: usize, block: &[f64]) {
    for (row, block) in rows.chunks_exact_mut(n).zip(block.chunks_exact(width)) {
        row[first..first + width].copy_from_slice(block);
    }
}

/// Replaces the lower triangle of `a: [n, n]` by its factor, and what lies above it by zeros; `None`
/// at a pivot that is no number or not above `floor`.
fn factorise(a: &mut [f64], n: usize, floor: f64) -> Option<()> {
    for i in 0..n {
        for j in 0..=i {
            let (row_i, row_j) = (&a[i * n..i * n + j], &a[j * n..j * n + j]);
            let inner: f64 = row_i.iter().zip(row_j).map(|(x, y)| x * y).sum();
            let rest = a[i * n + j] - inner;
            a[i * n + j] = if i == j {
                if rest.is_nan() || rest <= floor {
                    return None;
                }
                rest.sqrt()
            } else {
                rest / a[j * n + j]
            };
        }
        a[i * n + i + 1..(i + 1) * n].fill(0.0);
    }
    Some(())
}

/// Inverse of a lower triangle `[n, n]`.
fn inverted(lower: &[f64], n: usize) -> Vec<f64> {
    let mut inverse = vec![0.0; n * n];
    for i in 0..n {
        let (done, row) = inverse.split_at_mut(i * n);
        for (k, done) in done.chunks_exact(n).enumerate() {
            let factor = lower[i * n + k];
            for (x, y) in row[..=k].iter_mut().zip(done) {
                *x -= factor * y;
            }
        }
        let pivot = lower[i * n + i];
        row[..i].iter_mut().for_each(|x| *x /= pivot);
        row[i] = 1.0 / pivot;
    }
    inverse
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_testkit::toy::SplitMix64;

    fn draw(seed: u64, n: usize) -> Vec<f64> {
        let values = SplitMix64::new(seed).fill(n, 1.0);
        values.into_iter().map(f64::from).collect()
    }

    /// Sum of `x xᵀ` over rows, entry by entry.
    fn gram(rows: &[f64], n: usize) -> Vec<f64> {
        let entry = |i: usize, j: usize| rows.chunks_exact(n).map(|x| x[i] * x[j]).sum();
        (0..n * n).map(|at| entry(at / n, at % n)).collect()
    }

    /// The rows of the unit matrix.
    fn unit_rows(n: usize) -> Vec<f64> {
        (0..n * n)
            .map(|at| f64::from(u8::from(at / n == at % n)))
            .collect()
    }

    fn close(found: f64, expected: f64) {
        let error = (found - expected).abs() / expected.abs().max(1.0);
        assert!(error < 1e-10, "{found} for {expected}");
    }

    #[test]
    fn products_of_parts_by_hand() {
        // Columns 1 and 2 of [[1, 2, 3], [4, 5, 6]], and their transpose.
        let values = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        let part = View::new(&values[1..], 2, 2, 3);
        let mut target = [100.0f32; 6];
        add_product(&mut target, 3, 2.0, part, part.transposed());
        assert_eq!(target, [126.0, 156.0, 100.0, 156.0, 222.0, 100.0]);
    }

    #[test]
    #[should_panic(expected = "values")]
    fn a_view_past_its_slice_is_refused() {
        View::new(&[0.0f32; 5], 2, 3, 3);
    }

    #[test]
    fn sizes_around_a_block_give_back_the_matrix_and_its_inverse() {
        for n in [1, 2, WIDTH - 1, WIDTH, WIDTH + 1, 2 * WIDTH + 44] {
            let rows = draw(n as u64, (n + 3) * n);
            let expected = gram(&rows, n);
            let mut matrix = Symmetric::zeros(n);
            matrix.add_gram(&rows[..2 * n]);
            matrix.add_gram(&rows[2 * n..]);
            let mean = (0..n).map(|i| expected[i * n + i]).sum::<f64>() / n as f64;
            close(matrix.mean_diagonal(), mean);

            let some = draw(9, 3 * n);
            let times = |ridge: f64, x: &[f64]| -> Vec<f64> {
                let mut out = Vec::new();
                for x in x.chunks_exact(n) {
                    for (row, own) in expected.chunks_exact(n).zip(x) {
                        out.push(ridge * own + x.iter().zip(row).map(|(x, g)| x * g).sum::<f64>());
                    }
                }
                out
            };
            let products = times(0.0, &some);
            let quadratic = products.iter().zip(&some).map(|(a, b)| a * b);
            close(matrix.quadratic(&some), quadratic.sum());
            for (found, expected) in matrix.times(&some).iter().zip(&products) {
                close(*found, *expected);
            }
            close(matrix.squares(), expected.iter().map(|v| v * v).sum());
            // Σ a bᵀ + b aᵀ is the Gram matrix of a + b less those of a and of b.
            let (a, b) = (draw(5, 2 * n), draw(6, 2 * n));
            let sum: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
            let mut cross = Symmetric::zeros(n);
            cross.add_cross(&a, &b);
            cross.add_diagonal(2.0);
            cross.scale(0.5);
            let grams = [gram(&sum, n), gram(&a, n), gram(&b, n)];
            let square = cross.times(&unit_rows(n));
            for (at, found) in square.iter().enumerate() {
                let diagonal = f64::from(u8::from(at / n == at % n));
                let expected = grams[0][at] - grams[1][at] - grams[2][at];
                close(*found, 0.5 * expected + diagonal);
            }

            let factor = matrix.clone().cholesky(0.7).unwrap();
            let mut solved = times(0.7, &some);
            factor.solve(&mut solved);
            for (a, b) in solved.iter().zip(&some) {
                close(*a, *b);
            }
            // L Lᵀ is the matrix: columns of L have its entries as products.
            let mut columns = vec![0.0; n * n];
            let places = (0..n).flat_map(|i| (0..=i).map(move |j| j * n + i));
            places
                .zip(factor.lower())
                .for_each(|(at, v)| columns[at] = v);
            let back = gram(&columns, n);
            for (at, (a, b)) in back.iter().zip(&expected).enumerate() {
                close(*a, b + 0.7 * f64::from(u8::from(at / n == at % n)));
            }
        }
    }

    #[test]
    fn the_packed_triangle_is_half_and_comes_back() {
        let n = WIDTH + 5;
        let mut matrix = Symmetric::zeros(n);
        matrix.add_gram(&draw(3, 4 * n));
        let packed = matrix.packed();
        assert_eq!(packed.len(), packed_len(n));
        let back = Symmetric::unpacked(&packed, n);
        assert_eq!(back.packed(), packed);
        let some = draw(4, 2 * n);
        let (a, b) = (matrix.quadratic(&some), back.quadratic(&some));
        assert!((a - b).abs() < 1e-5 * a, "{a} and {b}");
        assert_eq!(Symmetric::unpacked(&[], 2).packed(), [0.0; 3]);
    }

    #[test]
    fn a_matrix_that_is_not_positive_definite_has_no_factor() {
        let mut matrix = Symmetric::zeros(WIDTH + 9);
        matrix.add_gram(&draw(1, 3 * (WIDTH + 9)));
        assert!(matrix.clone().cholesky(0.0).is_none());
        assert!(matrix.clone().cholesky(1e-3).is_some());
        matrix.panels[1].values[0] = f64::NAN;
        assert!(matrix.cholesky(1.0).is_none());
        assert!(Symmetric::zeros(0).cholesky(0.0).is_some());
    }
}
