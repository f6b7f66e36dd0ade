//! The generic forms against numbers a reader can check, and their gradients through burn's
//! autodiff.

use burn::tensor::{Device, Tensor, TensorData, Tolerance};
use sdlora_kernels::{GradientPath, LowRank, generic};

#[test]
fn one_token_attention_returns_its_value() {
    let device = Device::flex();
    let qkv = Tensor::<3>::from_data([[[1.0, -2.0, 0.5, 3.0, 7.0, -4.0]]], &device);

    let out = generic::qkv_attention(qkv, 1);

    out.into_data().assert_approx_eq::<f32>(
        &TensorData::from([[[7.0, -4.0]]]),
        Tolerance::absolute(1e-6),
    );
}

#[test]
fn packed_axis_is_q_k_v_with_heads_contiguous() {
    // Two tokens, two heads of width 1. Head 0 has equal scores, so it averages its values;
    // head 1 has q·k = 0 or 100 and so picks one value.
    let device = Device::flex();
    let qkv = Tensor::<3>::from_data(
        [[
            [0.0, 10.0, 0.0, 10.0, 1.0, 5.0],
            [0.0, 10.0, 0.0, 0.0, 3.0, 6.0],
        ]],
        &device,
    );

    let out = generic::qkv_attention(qkv, 2);

    out.into_data().assert_approx_eq::<f32>(
        &TensorData::from([[[2.0, 5.0], [2.0, 5.0]]]),
        Tolerance::absolute(1e-5),
    );
}

#[test]
fn attention_gradient_of_the_value_is_the_transposed_probability() {
    let device = Device::flex().autodiff();
    let qkv = Tensor::<3>::from_data([[[0.0, 0.0, 1.0], [0.0, 0.0, 3.0]]], &device).require_grad();

    let grads = generic::qkv_attention(qkv.clone(), 1).sum().backward();

    let grad = qkv.grad(&grads).expect("qkv is tracked");
    // Both tokens look half at each value; scores are flat, so q and k get the value's spread.
    grad.into_data().assert_approx_eq::<f32>(
        &TensorData::from([[[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]]),
        Tolerance::absolute(1e-6),
    );
}

#[test]
fn layer_norm_of_a_symmetric_row() {
    let device = Device::flex();
    let x = Tensor::<2>::from_data([[1.0, 3.0]], &device);
    let gamma = Tensor::<1>::from_data([2.0, 2.0], &device);
    let beta = Tensor::<1>::from_data([0.5, 0.5], &device);

    let out = generic::layer_norm(x, gamma, beta, 0.0);

    out.into_data()
        .assert_approx_eq::<f32>(&TensorData::from([[-1.5, 2.5]]), Tolerance::absolute(1e-6));
}

#[test]
#[should_panic(expected = "packed width 10 is not 3 x 2 heads")]
fn a_packed_width_that_does_not_split_is_refused() {
    let qkv = Tensor::<3>::zeros([1, 2, 10], &Device::flex());
    let _ = sdlora_kernels::qkv_attention(qkv, 2);
}

#[test]
fn updates_add_up_where_they_overlap_and_come_in_any_order() {
    let device = Device::flex();
    let tensor = |values: &[f32], shape| {
        Tensor::<2>::from_data(TensorData::new(values.to_vec(), shape), &device)
    };
    // The rows of x are the unit vectors, so that the result is the weight.
    let x = tensor(&[1.0, 0.0, 0.0, 1.0], [2, 2]).unsqueeze::<3>();
    for path in [GradientPath::Weight, GradientPath::Rows] {
        let update = |first_column, a: [f32; 2], b: &[f32]| LowRank {
            first_column,
            pairs: vec![(tensor(&a, [2, 1]), tensor(b, [1, b.len()]))],
            path,
        };
        let updates = [
            update(1, [1.0, 2.0], &[3.0, 4.0]),
            update(2, [1.0, 0.0], &[5.0, 6.0]),
            update(0, [0.0, 1.0], &[7.0]),
        ];
        let weight = Tensor::ones([2, 4], &device);
        let y = generic::low_rank_linear(x.clone(), weight, None, &updates);
        let expected = [1.0, 4.0, 10.0, 7.0, 8.0, 7.0, 9.0, 1.0];
        let y: Vec<f32> = y.into_data().iter().collect();
        assert_eq!(y, expected, "{path:?}");
    }
}
