//! The linear map with low-rank updates on `flex` against its generic form in `f64`.

use burn::tensor::Tensor;
use sdlora_kernels::{GradientPath, LowRank, generic, linear, low_rank_linear};

mod common;
use common::{assert_near, bits, precise, random, tracking};

const TOLERANCE: f64 = 3e-6;
const PATHS: [GradientPath; 2] = [GradientPath::Weight, GradientPath::Rows];

/// First column and ranks of the updates of a weight `[24, 36]`, every update 12 columns wide.
const UPDATES: [&[(usize, &[usize])]; 4] = [
    &[(0, &[3])],
    &[(0, &[20, 2]), (24, &[5])],
    &[(12, &[1, 2, 3])],
    &[(0, &[4]), (12, &[7, 1]), (24, &[2, 2])],
];

struct Leaves {
    x: Tensor<3>,
    weight: Tensor<2>,
    bias: Tensor<1>,
    updates: Vec<LowRank>,
}

/// Leaves; the second factor of every first pair is frozen, as that of past directions.
fn leaves(shape: &[(usize, &[usize])], path: GradientPath, train_weight: bool) -> Leaves {
    let device = tracking();
    let mut seed = 0;
    let mut next = || {
        seed += 1;
        seed
    };
    let updates = shape
        .iter()
        .map(|&(first_column, ranks)| LowRank {
            first_column,
            pairs: ranks
                .iter()
                .enumerate()
                .map(|(idx, &rank)| {
                    let a = random([24, rank], next(), &device).require_grad();
                    let b = random([rank, 12], next(), &device);
                    (a, b.set_require_grad(idx > 0 || ranks.len() == 1))
                })
                .collect(),
            path,
        })
        .collect();
    Leaves {
        x: random([3, 5, 24], next(), &device).require_grad(),
        weight: random([24, 36], next(), &device).set_require_grad(train_weight),
        bias: random([36], next(), &device).require_grad(),
        updates,
    }
}

/// The same leaves in `f64`.
fn exact(leaves: &Leaves) -> Leaves {
    fn leaf<const D: usize>(x: &Tensor<D>) -> Tensor<D> {
        precise(x).detach().set_require_grad(x.is_require_grad())
    }
    Leaves {
        x: leaf(&leaves.x),
        weight: leaf(&leaves.weight),
        bias: leaf(&leaves.bias),
        updates: leaves
            .updates
            .iter()
            .map(|update| LowRank {
                pairs: update
                    .pairs
                    .iter()
                    .map(|(a, b)| (leaf(a), leaf(b)))
                    .collect(),
                ..update.clone()
            })
            .collect(),
    }
}

#[test]
fn values_and_gradients_agree_on_both_paths() {
    for shape in UPDATES {
        for path in PATHS {
            for train_weight in [false, true] {
                let ours = leaves(shape, path, train_weight);
                let reference = exact(&ours);
                let what = format!("{shape:?}, {path:?}, weight trained: {train_weight}");
                let y = low_rank_linear(
                    ours.x.clone(),
                    ours.weight.clone(),
                    Some(ours.bias.clone()),
                    &ours.updates,
                );
                let expected = generic::low_rank_linear(
                    reference.x.clone(),
                    reference.weight.clone(),
                    Some(reference.bias.clone()),
                    &reference.updates,
                );
                assert_near(y.clone(), expected.clone(), TOLERANCE, &what);

                let factor = random([3, 5, 36], 99, &tracking());
                let grads = (y * factor.clone()).sum().backward();
                let exact_grads = (expected * precise(&factor)).sum().backward();
                let mut pairs = vec![
                    (
                        ours.x.grad(&grads).map(|g| g.reshape([-1])),
                        reference.x.grad(&exact_grads).map(|g| g.reshape([-1])),
                    ),
                    (ours.bias.grad(&grads), reference.bias.grad(&exact_grads)),
                    (
                        ours.weight.grad(&grads).map(|g| g.reshape([-1])),
                        reference.weight.grad(&exact_grads).map(|g| g.reshape([-1])),
                    ),
                ];
                for (update, exact) in ours.updates.iter().zip(&reference.updates) {
                    for ((a, b), (exact_a, exact_b)) in update.pairs.iter().zip(&exact.pairs) {
                        for (leaf, exact) in [(a, exact_a), (b, exact_b)] {
                            pairs.push((
                                leaf.grad(&grads).map(|g| g.reshape([-1])),
                                exact.grad(&exact_grads).map(|g| g.reshape([-1])),
                            ));
                        }
                    }
                }
                for (idx, (grad, expected)) in pairs.into_iter().enumerate() {
                    assert_eq!(grad.is_some(), expected.is_some(), "gradient {idx}, {what}");
                    if let (Some(grad), Some(expected)) = (grad, expected) {
                        let grad: Tensor<1> = grad;
                        assert_near(
                            grad,
                            expected,
                            TOLERANCE,
                            &format!("gradient {idx}, {what}"),
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn without_bias_and_without_autodiff_the_values_are_the_same() {
    let tracked = leaves(UPDATES[1], GradientPath::Rows, false);
    let with = |bias| {
        low_rank_linear(
            tracked.x.clone(),
            tracked.weight.clone(),
            bias,
            &tracked.updates,
        )
    };
    let bias = tracked.bias.clone();
    let y = with(Some(bias.clone()));
    assert_near(
        with(None) + bias.clone().reshape([1, 1, 36]),
        precise(&y),
        TOLERANCE,
        "bias added by hand",
    );

    let updates: Vec<LowRank> = tracked
        .updates
        .iter()
        .map(|update| LowRank {
            pairs: update
                .pairs
                .iter()
                .map(|(a, b)| (a.clone().inner(), b.clone().inner()))
                .collect(),
            ..update.clone()
        })
        .collect();
    let plain = low_rank_linear(
        tracked.x.clone().inner(),
        tracked.weight.clone().inner(),
        Some(bias.inner()),
        &updates,
    );
    assert_eq!(bits(plain), bits(y));
}

#[test]
fn the_weight_given_stays_as_it_is() {
    let ours = leaves(UPDATES[0], GradientPath::Weight, false);
    let before = bits(ours.weight.clone());
    low_rank_linear(ours.x.clone(), ours.weight.clone(), None, &ours.updates);
    assert_eq!(bits(ours.weight.clone()), before);
    let y = low_rank_linear(ours.x.clone(), ours.weight.clone(), None, &[]);
    assert_eq!(bits(y), bits(linear(ours.x, ours.weight, None)));
}

#[test]
#[should_panic(expected = "do not fit a weight [24, 36]")]
fn an_update_past_the_last_column_panics_with_the_numbers() {
    let mut ours = leaves(UPDATES[0], GradientPath::Weight, false);
    ours.updates[0].first_column = 25;
    low_rank_linear(ours.x, ours.weight, None, &ours.updates);
}
