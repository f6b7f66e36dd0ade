//! Attention on `flex` against its generic form in `f64`.

use burn::tensor::Tensor;
use sdlora_kernels::{generic, qkv_attention};

mod common;
use common::{assert_near, assert_same_on_threads, bits, plain, precise, random, tracking, values};

const TOLERANCE: f64 = 2e-6;

/// Batch, tokens, heads, head width: one token, odd widths, the shapes of real models.
const SIZES: [[usize; 4]; 9] = [
    [1, 1, 1, 1],
    [2, 1, 3, 5],
    [1, 2, 1, 16],
    [2, 7, 3, 5],
    [3, 17, 4, 32],
    [1, 18, 2, 20],
    [2, 65, 3, 64],
    [1, 197, 2, 64],
    [5, 4, 1, 70],
];

#[test]
fn values_and_gradients_agree() {
    for (seed, [batch, n_tokens, n_heads, d_head]) in SIZES.into_iter().enumerate() {
        let d_model = n_heads * d_head;
        let qkv = random([batch, n_tokens, 3 * d_model], seed as u64, &tracking());
        let weight = random([batch, n_tokens, d_model], 100 + seed as u64, &tracking());
        let exact = precise(&qkv).require_grad();
        let qkv = qkv.require_grad();
        let what = format!("{n_tokens} tokens, {n_heads} heads of {d_head}");

        let y = qkv_attention(qkv.clone(), n_heads);
        let expected = generic::qkv_attention(exact.clone(), n_heads);
        assert_near(y.clone(), expected.clone(), TOLERANCE, &what);

        let grads = (y * weight.clone()).sum().backward();
        let expected_grads = (expected * precise(&weight)).sum().backward();
        assert_near(
            qkv.grad(&grads).unwrap(),
            exact.grad(&expected_grads).unwrap(),
            TOLERANCE,
            &format!("gradient, {what}"),
        );
    }
}

#[test]
fn runs_without_autodiff() {
    let qkv = random([2, 9, 3 * 24], 1, &plain());
    let expected = generic::qkv_attention(precise(&qkv), 3);
    assert_near(qkv_attention(qkv, 3), expected, TOLERANCE, "plain");
}

#[test]
fn takes_views() {
    let wide = random([4, 9, 40], 2, &plain());
    let views: [Tensor<3>; 3] = [
        wide.clone().slice([1..3, 0..9, 0..36]),
        wide.clone().slice([0..4, 2..9, 4..40]),
        random([4, 36, 9], 3, &plain()).swap_dims(1, 2),
    ];
    for view in views {
        let expected = generic::qkv_attention(precise(&view), 2);
        assert_near(qkv_attention(view, 2), expected, TOLERANCE, "view");
    }
}

#[test]
fn gradients_come_through_a_view() {
    let wide = random([4, 9, 40], 2, &tracking());
    let exact = precise(&wide).require_grad();
    let wide = wide.require_grad();
    let view = |x: Tensor<3>| x.slice([0..4, 2..9, 4..40]);

    let grads = qkv_attention(view(wide.clone()), 2)
        .powi_scalar(2)
        .sum()
        .backward();
    let expected = generic::qkv_attention(view(exact.clone()), 2)
        .powi_scalar(2)
        .sum()
        .backward();
    assert_near(
        wide.grad(&grads).unwrap(),
        exact.grad(&expected).unwrap(),
        TOLERANCE,
        "gradient of the viewed tensor",
    );
}

#[test]
fn large_scores_neither_overflow_nor_lose_the_winner() {
    // Scores of several thousand: without the maximum taken off, exp is infinite.
    let qkv = random([1, 5, 3 * 16], 4, &plain()).mul_scalar(60.0);
    let expected = generic::qkv_attention(precise(&qkv), 1);
    let y = qkv_attention(qkv, 1);
    assert!(values(y.clone()).iter().all(|x| x.is_finite()));
    assert_near(y, expected, 1e-4, "large scores");
}

#[test]
fn a_nan_stays_visible() {
    let qkv = random([1, 5, 3 * 16], 4, &plain());
    let qkv = qkv.slice_assign(
        [0..1, 2..3, 0..1],
        Tensor::full([1, 1, 1], f32::NAN, &plain()),
    );
    let y = values(qkv_attention(qkv, 1));
    assert!(
        y[2 * 16..3 * 16].iter().all(|x| x.is_nan()),
        "the row of that query"
    );
    assert!(y[..2 * 16].iter().all(|x| x.is_finite()), "another row");
}

#[test]
fn no_tokens_give_no_output() {
    let qkv = Tensor::<3>::zeros([2, 0, 24], &plain());
    assert_eq!(qkv_attention(qkv, 2).dims(), [2, 0, 8]);
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let run = || {
        let qkv = random([6, 65, 3 * 96], 5, &tracking()).require_grad();
        let y = qkv_attention(qkv.clone(), 3);
        let grads = y.clone().powi_scalar(2).sum().backward();
        (bits(y), bits(qkv.grad(&grads).unwrap()))
    };
    assert_same_on_threads(run);
}
