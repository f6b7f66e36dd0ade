//! The linear map on `flex` against its generic form in `f64`.

use burn::tensor::Tensor;
use sdlora_kernels::{generic, linear};

mod common;
use common::{assert_near, assert_same_on_threads, bits, plain, precise, random, tracking};

const TOLERANCE: f64 = 2e-6;

/// Batch, tokens, input width, output width.
const SIZES: [[usize; 4]; 7] = [
    [1, 1, 1, 1],
    [2, 3, 5, 7],
    [1, 1, 33, 9],
    [3, 5, 16, 1],
    [4, 17, 128, 384],
    [2, 65, 192, 50],
    [1, 197, 24, 768],
];

#[test]
fn values_and_gradients_agree() {
    for (seed, [batch, n_tokens, d_input, d_output]) in SIZES.into_iter().enumerate() {
        for with_bias in [false, true] {
            let seed = seed as u64;
            let x = random([batch, n_tokens, d_input], seed, &tracking());
            let weight = random([d_input, d_output], 100 + seed, &tracking());
            let bias = random([d_output], 200 + seed, &tracking());
            let factor = random([batch, n_tokens, d_output], 300 + seed, &tracking());
            let exact_x = precise(&x).require_grad();
            let exact_weight = precise(&weight).require_grad();
            let exact_bias = precise(&bias).require_grad();
            let x = x.require_grad();
            let weight = weight.require_grad();
            let bias = bias.require_grad();
            let what = format!("{batch} x {n_tokens}, {d_input} to {d_output}, bias {with_bias}");

            let y = linear(x.clone(), weight.clone(), with_bias.then(|| bias.clone()));
            let expected = generic::linear(
                exact_x.clone(),
                exact_weight.clone(),
                with_bias.then(|| exact_bias.clone()),
            );
            assert_near(y.clone(), expected.clone(), TOLERANCE, &what);

            let grads = (y * factor.clone()).sum().backward();
            let expected = (expected * precise(&factor)).sum().backward();
            assert_near(
                x.grad(&grads).unwrap(),
                exact_x.grad(&expected).unwrap(),
                TOLERANCE,
                &format!("gradient of x, {what}"),
            );
            assert_near(
                weight.grad(&grads).unwrap(),
                exact_weight.grad(&expected).unwrap(),
                TOLERANCE,
                &format!("gradient of the weight, {what}"),
            );
            assert_eq!(bias.grad(&grads).is_some(), with_bias);
            if with_bias {
                assert_near(
                    bias.grad(&grads).unwrap(),
                    exact_bias.grad(&expected).unwrap(),
                    TOLERANCE,
                    &format!("gradient of the bias, {what}"),
                );
            }
        }
    }
}

#[test]
fn only_tracked_operands_get_a_gradient() {
    let operands = || {
        (
            random([2, 3, 5], 1, &tracking()),
            random([5, 4], 2, &tracking()),
            random([4], 3, &tracking()),
        )
    };
    for tracked in 1..8 {
        let (mut x, mut weight, mut bias) = operands();
        if tracked & 1 != 0 {
            x = x.require_grad();
        }
        if tracked & 2 != 0 {
            weight = weight.require_grad();
        }
        if tracked & 4 != 0 {
            bias = bias.require_grad();
        }
        let y = linear(x.clone(), weight.clone(), Some(bias.clone()));
        let grads = y.powi_scalar(2).sum().backward();
        assert_eq!(x.grad(&grads).is_some(), tracked & 1 != 0, "x of {tracked}");
        assert_eq!(
            weight.grad(&grads).is_some(),
            tracked & 2 != 0,
            "weight of {tracked}"
        );
        assert_eq!(
            bias.grad(&grads).is_some(),
            tracked & 4 != 0,
            "bias of {tracked}"
        );
    }
}

#[test]
fn takes_views() {
    let x = random([4, 9, 35], 2, &plain());
    let weight = random([50, 60], 3, &plain());
    let bias = random([60], 4, &plain()).slice([7..20]);
    let weights: [Tensor<2>; 4] = [
        weight.clone().slice([5..40, 10..23]),
        weight.clone().swap_dims(0, 1).slice([5..40, 10..23]),
        weight.clone().slice([0..35, 0..13]).flip([0, 1]),
        random([1, 13], 5, &plain()).expand([35, 13]),
    ];
    for weight in weights {
        let inputs: [Tensor<3>; 3] = [
            x.clone(),
            x.clone().slice([1..3]),
            random([4, 35, 9], 6, &plain()).swap_dims(1, 2),
        ];
        for x in inputs {
            let expected = generic::linear(precise(&x), precise(&weight), Some(precise(&bias)));
            let y = linear(x, weight.clone(), Some(bias.clone()));
            assert_near(y, expected, TOLERANCE, "views");
        }
    }
}

#[test]
fn empty_axes_are_no_trouble() {
    let x = Tensor::<3>::zeros([2, 0, 5], &plain());
    let weight = random([5, 4], 1, &plain());
    let bias = random([4], 2, &plain());
    assert_eq!(linear(x, weight, Some(bias.clone())).dims(), [2, 0, 4]);

    let x = Tensor::<3>::zeros([1, 2, 0], &plain());
    let weight = Tensor::<2>::zeros([0, 4], &plain());
    let y = linear(x, weight, Some(bias.clone()));
    let expected = [bits(bias.clone()), bits(bias)].concat();
    assert_eq!(bits(y), expected);
}

#[test]
#[should_panic(expected = "weight expects 6 input features, x has 5")]
fn widths_that_do_not_fit_are_refused() {
    let x = random([2, 3, 5], 1, &plain());
    let _ = linear(x, random([6, 4], 1, &plain()), None);
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let run = || {
        let x = random([6, 65, 192], 5, &tracking()).require_grad();
        let weight = random([192, 300], 6, &tracking()).require_grad();
        let bias = random([300], 7, &tracking()).require_grad();
        let y = linear(x.clone(), weight.clone(), Some(bias.clone()));
        let grads = y.clone().powi_scalar(2).sum().backward();
        [
            bits(y),
            bits(x.grad(&grads).unwrap()),
            bits(weight.grad(&grads).unwrap()),
            bits(bias.grad(&grads).unwrap()),
        ]
    };
    assert_same_on_threads(run);
}
