//! Bytes that the generic linear map with updates makes.
//!
//! The counters are those of the whole program, so this test is alone in it.

use burn::tensor::Tensor;
use sdlora_kernels::{GradientPath, LowRank, generic};
use sdlora_testkit::allocator::{Counting, large_blocks};

mod common;
use common::{precise, random, tracking};

#[global_allocator]
static ALLOCATOR: Counting = Counting::new();

const SHAPE: [usize; 3] = [8, 16, 64];
const RANK: usize = 2;
/// Bytes of a matrix of packed `q|k|v`, in `f64`.
const PACKED: usize = SHAPE[0] * SHAPE[1] * 3 * SHAPE[2] * 8;

/// Bytes of the large blocks of a forward pass with updates of these columns.
fn n_bytes(first_columns: &[usize]) -> usize {
    let device = tracking().inner();
    let [_, _, d] = SHAPE;
    // `f64` takes the generic form on every backend.
    let x: Tensor<3> = precise(&random(SHAPE, 1, &device));
    let weight: Tensor<2> = precise(&random([d, 3 * d], 2, &device));
    let updates: Vec<LowRank> = first_columns
        .iter()
        .map(|&first_column| LowRank {
            first_column,
            pairs: vec![(
                precise(&random([d, RANK], 3, &device)),
                precise(&random([RANK, d], 4, &device)),
            )],
            path: GradientPath::Rows,
        })
        .collect();
    let run = || {
        let before = large_blocks().1;
        let y = generic::low_rank_linear(x.clone(), weight.clone(), None, &updates);
        y.into_data();
        large_blocks().1 - before
    };
    // What the first pass makes once (thread pool, buffers of the products) does not count.
    (0..5).map(|_| run()).min().expect("there are passes")
}

#[test]
fn a_second_update_makes_no_second_packed_matrix() {
    let d = SHAPE[2];
    let (one, two) = (n_bytes(&[0]), n_bytes(&[0, 2 * d]));
    // Its product is a third of one, and the zeros beside it become fewer by as much; the rest is its thin product
    // and what the product of matrices packs.
    let more = two - one.min(two);
    assert!(
        more < PACKED,
        "one update makes {one} bytes, two make {two}; a packed matrix has {PACKED}"
    );
}
