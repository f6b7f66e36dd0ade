//! Factors that are expanded from smaller ones: PRoLoRA (Wang et al. 2024, ACL, arXiv 2402.16902).
//!
//! Of the ranks, `rank − unshared` are shared: their factors are stored as one chunk and repeated along the
//! outer dimension, each repetition rotated along the ranks, so that no two blocks of the product are equal.
//!
//! ```text
//! a = [ roll(a0, 0) ; roll(a0, s) ; … ; roll(a0, (m − 1) s) ]      s = max(⌊(rank − unshared) / m⌋, 1)
//! ```
//!
//! cut to `d_input` rows, and `b` alike along its columns.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

/// How many chunks a factor has, and how many ranks are not shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkLayout {
    /// Chunks of the down-projection along the input, at least 1.
    pub n_input: usize,
    /// Chunks of the up-projection along the output, at least 1.
    pub n_output: usize,
    /// Ranks with factors of their own, at most the rank.
    pub unshared: usize,
}

impl ChunkLayout {
    /// Trained numbers of a direction on a site: `(rank − u)(⌈d_input/m⌉ + ⌈d_output/n⌉) + u (d_input + d_output)`.
    pub fn n_numbers(&self, d_input: usize, d_output: usize, rank: usize) -> usize {
        let shared = rank.saturating_sub(self.unshared);
        let (m, n) = (self.n_input.max(1), self.n_output.max(1));
        shared * (d_input.div_ceil(m) + d_output.div_ceil(n)) + self.unshared * (d_input + d_output)
    }
}

/// What a direction with chunks has besides its `a` and `b`, which then are the chunks themselves:
/// `a0: [⌈d_input / m⌉, rank − unshared]` and `b0: [rank − unshared, ⌈d_output / n⌉]`.
#[derive(Module, Debug)]
pub struct Chunks {
    /// Down-projection of the ranks that are not shared `[d_input, unshared]`.
    pub unshared_a: Option<Param<Tensor<2>>>,
    /// Up-projection of the ranks that are not shared `[unshared, d_output]`.
    pub unshared_b: Option<Param<Tensor<2>>>,
    #[module(skip)]
    layout: ChunkLayout,
    #[module(skip)]
    d_input: usize,
    #[module(skip)]
    d_output: usize,
}

impl Chunks {
    /// The start of a task: `a0 ~ U(±1/√d_input)`, with the fan-in of the whole factor and not of a chunk
    /// ("rectified" in the paper), and `b0 = 0`; the first two are the `a` and `b` of the direction. `None` where
    /// no rank is shared. `draw` gives as many numbers from U(±1/√d_input) as it is told.
    pub(crate) fn init(
        sizes: [usize; 2],
        rank: usize,
        layout: ChunkLayout,
        draw: &mut dyn FnMut(usize) -> Vec<f32>,
        device: &Device,
    ) -> Option<(TensorData, TensorData, Self)> {
        let [d_input, d_output] = sizes;
        let shared = rank.checked_sub(layout.unshared).filter(|&n| n > 0)?;
        let n_rows = d_input.div_ceil(layout.n_input.max(1));
        let n_columns = d_output.div_ceil(layout.n_output.max(1));
        let a = draw(n_rows * shared);
        let own = draw(d_input * layout.unshared);
        let param = |values: Vec<f32>, shape| {
            let is_any = !values.is_empty();
            is_any.then(|| {
                Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), device))
            })
        };
        let chunks = Self {
            unshared_a: param(own, [d_input, layout.unshared]),
            unshared_b: param(
                vec![0.0; layout.unshared * d_output],
                [layout.unshared, d_output],
            ),
            layout,
            d_input,
            d_output,
        };
        Some((
            TensorData::new(a, [n_rows, shared]),
            TensorData::zeros::<f32, _>([shared, n_columns]),
            chunks,
        ))
    }

    /// The layout.
    pub fn layout(&self) -> ChunkLayout {
        self.layout
    }

    /// The factors `[d_input, rank]` and `[rank, d_output]` of chunks `a0` and `b0`; the gradient of a chunk is
    /// the sum over its places, each rotated back.
    pub(crate) fn expanded(&self, a: Tensor<2>, b: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        let [_, rank] = a.dims();
        let stride = |n: usize| (rank / n.max(1)).max(1);
        let (m, n) = (self.layout.n_input, self.layout.n_output);
        let rows = (0..m).map(|j| rolled(a.clone(), 1, j * stride(m)));
        let columns = (0..n).map(|j| rolled(b.clone(), 0, j * stride(n)));
        let a = joined(rows.collect(), 0, self.d_input);
        let b = joined(columns.collect(), 1, self.d_output);
        match (&self.unshared_a, &self.unshared_b) {
            (Some(own_a), Some(own_b)) => (
                Tensor::cat(vec![a, own_a.val()], 1),
                Tensor::cat(vec![b, own_b.val()], 0),
            ),
            _ => (a, b),
        }
    }
}

/// Chunks behind each other along a dimension, cut to a length.
fn joined(mut chunks: Vec<Tensor<2>>, dim: usize, length: usize) -> Tensor<2> {
    let all = match chunks.len() {
        1 => chunks.remove(0),
        _ => Tensor::cat(chunks, dim),
    };
    match all.dims()[dim] == length {
        true => all,
        false => all.narrow(dim, 0, length),
    }
}

/// `x` rotated along a dimension: entry `k` comes to `k + shift`, the last ones to the front.
fn rolled(x: Tensor<2>, dim: usize, shift: usize) -> Tensor<2> {
    let length = x.dims()[dim];
    match shift % length.max(1) {
        0 => x,
        shift => {
            let back = x.clone().narrow(dim, length - shift, shift);
            Tensor::cat(vec![back, x.narrow(dim, 0, length - shift)], dim)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::direction::uniform;
    use rand::{RngExt, SeedableRng};
    use sdlora_testkit::{test_device, test_device_autodiff};

    fn host(x: Tensor<2>) -> Vec<f32> {
        x.into_data().iter::<f32>().collect()
    }

    /// Factors of chunks with a drawn up-projection.
    fn drawn(sizes: [usize; 2], rank: usize, layout: ChunkLayout) -> (Tensor<2>, Tensor<2>) {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        let device = test_device();
        let (a, b, chunks) = Chunks::init(
            sizes,
            rank,
            layout,
            &mut |n| uniform(n, sizes[0], &mut rng),
            &device,
        )
        .unwrap();
        let b: Vec<f32> = b
            .iter::<f32>()
            .map(|_| rng.random_range(-1.0..1.0))
            .collect();
        let b = TensorData::new(
            b,
            [rank - layout.unshared, sizes[1].div_ceil(layout.n_output)],
        );
        chunks.expanded(Tensor::from_data(a, &device), Tensor::from_data(b, &device))
    }

    #[test]
    fn chunks_are_rotated_along_the_ranks_and_cut_to_the_width() {
        let device = test_device();
        let layout = ChunkLayout {
            n_input: 2,
            n_output: 1,
            unshared: 0,
        };
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let (_, b, chunks) =
            Chunks::init([3, 2], 2, layout, &mut |n| uniform(n, 3, &mut rng), &device).unwrap();
        let a0 = Tensor::from_data([[1.0f32, 2.0], [3.0, 4.0]], &device);
        let (a, _) = chunks.expanded(a0, Tensor::from_data(b, &device));
        // The third row is the first again, its ranks rotated by one; the fourth is cut off.
        assert_eq!(host(a), [1.0, 2.0, 3.0, 4.0, 2.0, 1.0]);
    }

    /// Rank of a matrix by elimination.
    fn rank_of(mut m: Vec<f64>, n: usize) -> usize {
        let mut rank = 0;
        for column in 0..n {
            let pivot = (rank..n).max_by(|&i, &j| {
                let at = |i: usize| m[i * n + column].abs();
                at(i).total_cmp(&at(j))
            });
            let Some(pivot) = pivot.filter(|&i| m[i * n + column].abs() > 1e-4) else {
                continue;
            };
            for k in 0..n {
                m.swap(rank * n + k, pivot * n + k);
            }
            for i in rank + 1..n {
                let f = m[i * n + column] / m[rank * n + column];
                for k in 0..n {
                    m[i * n + k] -= f * m[rank * n + k];
                }
            }
            rank += 1;
        }
        rank
    }

    #[test]
    fn the_product_has_full_rank_and_its_blocks_are_circulant() {
        let (d, rank, m) = (16, 8, 4);
        let layout = ChunkLayout {
            n_input: m,
            n_output: m,
            unshared: 0,
        };
        let (a, b) = drawn([d, d], rank, layout);
        let product = host(a.matmul(b));
        assert_eq!(
            rank_of(product.iter().map(|&v| f64::from(v)).collect(), d),
            rank
        );
        let size = d / m;
        let block = |i: usize, j: usize| -> Vec<f32> {
            (0..size)
                .flat_map(|r| (0..size).map(move |c| (r, c)))
                .map(|(r, c)| product[(i * size + r) * d + j * size + c])
                .collect()
        };
        let near = |x: &[f32], y: &[f32]| x.iter().zip(y).all(|(x, y)| (x - y).abs() < 1e-5);
        assert!(near(&block(0, 0), &block(1, 1)) && near(&block(0, 1), &block(1, 2)));
        // Without rotation these would be equal.
        assert!(!near(&block(0, 0), &block(0, 1)));
    }

    #[test]
    fn counts_are_those_of_the_formula() {
        let count = |m, unshared| {
            let layout = ChunkLayout {
                n_input: m,
                n_output: m,
                unshared,
            };
            layout.n_numbers(768, 768, 8)
        };
        assert_eq!(count(1, 0), 12_288);
        assert_eq!(count(2, 1), 6_912);
        assert_eq!(count(4, 0), 3_072);
    }

    #[test]
    fn the_gradient_of_a_chunk_is_the_sum_over_its_places() {
        let device = test_device_autodiff();
        let layout = ChunkLayout {
            n_input: 3,
            n_output: 1,
            unshared: 0,
        };
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        let (a0, b0, chunks) =
            Chunks::init([7, 2], 3, layout, &mut |n| uniform(n, 7, &mut rng), &device).unwrap();
        let a0 = Tensor::<2>::from_data(a0, &device).require_grad();
        let weights: Vec<f32> = (0..21).map(|i| i as f32).collect();
        let w = Tensor::<2>::from_data(TensorData::new(weights.clone(), [7, 3]), &device);
        let (a, _) = chunks.expanded(a0.clone(), Tensor::from_data(b0, &device));
        let grads = (a * w).sum().backward();
        let grad = a0.grad(&grads).unwrap();
        let grad: Vec<f32> = grad.into_data().iter::<f32>().collect();
        for row in 0..3 {
            for rank in 0..3 {
                // Chunk j has the row at 3 j + row, and the rank at rank + j.
                let places = (0..3).filter(|j| 3 * j + row < 7);
                let sum: f32 = places
                    .map(|j| weights[(3 * j + row) * 3 + (rank + j) % 3])
                    .sum();
                assert_eq!(grad[row * 3 + rank], sum);
            }
        }
    }
}
