//! GELU and layer norm on `flex` against their generic form in `f64`: values, gradients, views; and
//! what all operations share: threads and checkpointing.

use burn::tensor::{Device, Tensor};
use sdlora_kernels::{gelu, generic, layer_norm, linear, qkv_attention};

mod common;
use common::{assert_near, assert_same_on_threads, bits, plain, precise, random, tracking, values};

/// Rounding of `f32` in the operation and in its inputs.
const TOLERANCE: f64 = 2e-6;
const EPS: f64 = 1e-6;

/// Odd lengths, one token, a batch of one, several tasks of the kernel.
const SHAPES: [[usize; 3]; 6] = [
    [1, 1, 1],
    [1, 1, 16],
    [2, 3, 7],
    [1, 5, 33],
    [3, 17, 128],
    [2, 65, 192],
];

#[test]
fn gelu_values_and_gradients_agree() {
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        let x = random(shape, seed as u64, &tracking())
            .mul_scalar(3.0)
            .detach();
        let weight = random(shape, 100 + seed as u64, &tracking());
        let exact = precise(&x).require_grad();
        let x = x.require_grad();

        let y = gelu(x.clone());
        let expected = generic::gelu(exact.clone());
        assert_near(y.clone(), expected.clone(), TOLERANCE, "gelu");

        let grads = (y * weight.clone()).sum().backward();
        let expected_grads = (expected * precise(&weight)).sum().backward();
        assert_near(
            x.grad(&grads).unwrap(),
            exact.grad(&expected_grads).unwrap(),
            TOLERANCE,
            "gradient of gelu",
        );
    }
}

#[test]
fn gelu_leaves_a_shared_input_alone() {
    let x = random([2, 65, 192], 1, &plain());
    let before = bits(x.clone());
    let y = gelu(x.clone());
    assert_eq!(bits(x.clone()), before);
    assert_near(y, generic::gelu(precise(&x)), TOLERANCE, "gelu");
}

#[test]
fn gelu_of_views() {
    let x = random([4, 9, 35], 2, &plain());
    let views: [Tensor<3>; 4] = [
        x.clone().swap_dims(1, 2),
        x.clone().slice([1..3]),
        x.clone().slice([0..4, 2..7, 3..20]),
        x.clone().flip([2]),
    ];
    for view in views {
        let expected = generic::gelu(precise(&view));
        assert_near(gelu(view), expected, TOLERANCE, "gelu of a view");
    }
}

#[test]
fn layer_norm_values_and_gradients_agree() {
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        let seed = seed as u64;
        let width = [shape[2]];
        // A mean far from zero shows a variance computed by subtraction.
        let x = random(shape, seed, &tracking()).add_scalar(30.0).detach();
        let gamma = random(width, 200 + seed, &tracking());
        let beta = random(width, 300 + seed, &tracking());
        let weight = random(shape, 100 + seed, &tracking());
        let exact = (&x, &gamma, &beta);
        let exact = (
            precise(exact.0).require_grad(),
            precise(exact.1).require_grad(),
            precise(exact.2).require_grad(),
        );
        let (x, gamma, beta) = (x.require_grad(), gamma.require_grad(), beta.require_grad());
        // One value a row has variance 0, so eps decides; keep it where f32 can follow.
        let eps = if shape[2] == 1 { 1.0 } else { EPS };

        let y = layer_norm(x.clone(), gamma.clone(), beta.clone(), eps);
        let expected = generic::layer_norm(exact.0.clone(), exact.1.clone(), exact.2.clone(), eps);
        // The inputs near 30 have a rounding of 2e-6 against the deviation of about 1.
        assert_near(y.clone(), expected.clone(), 2.0 * TOLERANCE, "layer norm");

        let grads = (y * weight.clone()).sum().backward();
        let expected_grads = (expected * precise(&weight)).sum().backward();
        for (actual, expected, what) in [
            (gamma.grad(&grads), exact.1.grad(&expected_grads), "gamma"),
            (beta.grad(&grads), exact.2.grad(&expected_grads), "beta"),
        ] {
            assert_near(actual.unwrap(), expected.unwrap(), 2.0 * TOLERANCE, what);
        }
        assert_near(
            x.grad(&grads).unwrap(),
            exact.0.grad(&expected_grads).unwrap(),
            2.0 * TOLERANCE,
            "gradient of layer norm",
        );
    }
}

#[test]
fn layer_norm_of_views() {
    let x = random([4, 9, 35], 4, &plain());
    let views: [Tensor<3>; 3] = [
        x.clone().swap_dims(1, 2),
        x.clone().slice([1..3]),
        x.clone().slice([0..4, 2..7, 3..20]),
    ];
    for view in views {
        let width = view.dims()[2];
        // Parameters cut from a wider tensor, as a slice of a checkpoint would be.
        let gamma = random([40], 5, &plain()).slice([2..2 + width]);
        let beta = random([40], 6, &plain()).slice([3..3 + width]);
        let expected = generic::layer_norm(precise(&view), precise(&gamma), precise(&beta), EPS);
        let y = layer_norm(view, gamma, beta, EPS);
        assert_near(y, expected, TOLERANCE, "layer norm of a view");
    }
}

#[test]
fn a_view_that_owns_a_larger_storage_is_not_overwritten_in_place() {
    // The sliced tensor is dropped, so the view alone holds all of its storage.
    let view = || random([4, 9, 35], 4, &plain()).slice([1..3]);
    let (gamma, beta) = (random([35], 5, &plain()), random([35], 6, &plain()));
    let exact = precise(&view());

    let y = layer_norm(view(), gamma.clone(), beta.clone(), EPS);
    let expected = generic::layer_norm(exact.clone(), precise(&gamma), precise(&beta), EPS);
    assert_near(y, expected, TOLERANCE, "layer norm");
    assert_near(gelu(view()), generic::gelu(exact), TOLERANCE, "gelu");
}

#[test]
fn untracked_parameters_get_no_gradient() {
    let x = random([2, 5, 8], 1, &tracking()).require_grad();
    let gamma = random([8], 2, &tracking());
    let beta = random([8], 3, &tracking()).require_grad();

    let y = layer_norm(x.clone(), gamma.clone(), beta.clone(), EPS);
    let grads = y.sum().backward();

    assert!(gamma.grad(&grads).is_none());
    // The sum of a gradient of ones over ten rows.
    assert_eq!(values(beta.grad(&grads).unwrap()), [10.0; 8]);
    assert!(x.grad(&grads).is_some());
}

#[test]
fn untracked_inputs_run_without_a_graph() {
    let x = random([2, 5, 8], 1, &tracking());
    let gamma = random([8], 2, &tracking());
    let beta = random([8], 3, &tracking());
    let y = gelu(layer_norm(x.clone(), gamma.clone(), beta.clone(), EPS));
    let expected = generic::layer_norm(precise(&x), precise(&gamma), precise(&beta), EPS);
    assert_near(y, generic::gelu(expected), TOLERANCE, "untracked");
}

#[test]
fn residual_use_of_the_input_adds_both_gradients() {
    let x = random([2, 5, 8], 1, &tracking());
    let exact = precise(&x).require_grad();
    let x = x.require_grad();
    let gamma = random([8], 2, &tracking());
    let beta = random([8], 3, &tracking());

    let y = x.clone() + gelu(layer_norm(x.clone(), gamma.clone(), beta.clone(), EPS));
    let normed = generic::layer_norm(exact.clone(), precise(&gamma), precise(&beta), EPS);
    let expected = exact.clone() + generic::gelu(normed);

    let grads = y.powi_scalar(2).sum().backward();
    let expected_grads = expected.powi_scalar(2).sum().backward();
    assert_near(
        x.grad(&grads).unwrap(),
        exact.grad(&expected_grads).unwrap(),
        TOLERANCE,
        "gradient through a residual",
    );
}

#[test]
fn an_empty_tensor_stays_empty() {
    let x = Tensor::<3>::zeros([0, 5, 8], &plain());
    let gamma = random([8], 2, &plain());
    let y = gelu(layer_norm(x, gamma.clone(), gamma, EPS));
    assert_eq!(y.dims(), [0, 5, 8]);
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let run = || {
        let x = random([5, 65, 193], 1, &tracking()).require_grad();
        let gamma = random([193], 2, &tracking()).require_grad();
        let beta = random([193], 3, &tracking()).require_grad();
        let y = gelu(layer_norm(x.clone(), gamma.clone(), beta.clone(), EPS));
        let grads = y.clone().powi_scalar(2).sum().backward();
        [
            bits(y),
            bits(x.grad(&grads).unwrap()),
            bits(gamma.grad(&grads).unwrap()),
            bits(beta.grad(&grads).unwrap()),
        ]
    };
    assert_same_on_threads(run);
}

/// One pre-norm block from the operations of this crate.
fn block(x: Tensor<3>, parameters: &[Tensor<2>; 2], row: &Tensor<1>) -> Tensor<3> {
    let [qkv, projection] = parameters.clone();
    let normed = layer_norm(x.clone(), row.clone(), row.clone(), EPS);
    let attended = qkv_attention(linear(normed, qkv, None), 2);
    x + gelu(linear(attended, projection, Some(row.clone())))
}

#[test]
fn gradient_checkpointing_changes_no_gradient() {
    let run = |device: Device| {
        let x = random([2, 5, 8], 1, &device).require_grad();
        let row = random([8], 2, &device).require_grad();
        let parameters = [random([8, 24], 3, &device), random([8, 8], 4, &device)];
        let [qkv, projection] = parameters.map(|parameter| parameter.require_grad());
        let parameters = [qkv, projection];
        let y = block(x.clone(), &parameters, &row);
        // Twice, so that the inputs of the second block are intermediate results.
        let y = block(y * 0.5, &parameters, &row);
        let grads = y.powi_scalar(2).sum().backward();
        let [qkv, projection] = parameters;
        [
            bits(x.grad(&grads).unwrap()),
            bits(row.grad(&grads).unwrap()),
            bits(qkv.grad(&grads).unwrap()),
            bits(projection.grad(&grads).unwrap()),
        ]
    };
    let kept = run(tracking());
    let recomputed = run(tracking().gradient_checkpointing());
    assert!(kept == recomputed);
}
