//! Fused operations against their generic form on `flex`.
//!
//! `cargo bench -p sdlora-kernels` measures forward alone and forward with backward under autodiff.
//! Compare within one run: the two forms of an operation run one after another on the same data.
#![allow(clippy::type_complexity, clippy::redundant_closure)]

use std::hint::black_box;

use burn::tensor::{Device, Distribution, Tensor};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use sdlora_kernels as fused;
use sdlora_kernels::generic;

// The allocator of the command line: glibc's gives every large tensor back to the system, and the
// page faults hide the operations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Batch, tokens, width, heads, width of the MLP: the models of the tests and the examples.
const SHAPES: [[usize; 5]; 3] = [
    [64, 17, 128, 4, 512],
    [32, 65, 192, 3, 768],
    [8, 197, 768, 12, 3072],
];

type Unary = Box<dyn Fn(Tensor<3>) -> Tensor<3>>;

fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Default, device)
}

/// Times each form without autodiff, and with it together with the backward pass.
///
/// `none` does nothing in place of the operation: take its time off the others, it is that of the
/// product which stands for the layer before and of the loss.
fn compare(
    c: &mut Criterion,
    name: &str,
    shape: [usize; 3],
    forms: [(&str, &dyn Fn(&Device) -> Unary); 2],
) {
    let mut group = c.benchmark_group(name);
    group.sample_size(20);
    let label = format!("{shape:?}");
    let none = ("none", &(|_: &Device| -> Unary { Box::new(|x| x) }) as _);
    for (mode, device) in [
        ("infer", Device::flex()),
        ("train", Device::flex().autodiff()),
    ] {
        let x = random(shape, &device);
        for (form, build) in [none, forms[0], forms[1]] {
            let forward = build(&device);
            let weight: Tensor<3> = random(forward(x.clone()).dims(), &device);
            group.bench_function(BenchmarkId::new(format!("{mode}/{form}"), &label), |b| {
                b.iter(|| {
                    if mode == "infer" {
                        black_box(forward(x.clone() * 1.0));
                    } else {
                        let y = forward(x.clone().require_grad() * 1.0);
                        black_box((y * weight.clone()).sum().backward());
                    }
                });
            });
        }
    }
    group.finish();
}

fn gelu(c: &mut Criterion) {
    for [batch, n_tokens, _, _, d_mlp] in SHAPES {
        compare(
            c,
            "gelu",
            [batch, n_tokens, d_mlp],
            [
                ("generic", &|_| Box::new(|x| generic::gelu(x))),
                ("fused", &|_| Box::new(|x| fused::gelu(x))),
            ],
        );
    }
}

fn layer_norm(c: &mut Criterion) {
    for [batch, n_tokens, d_model, ..] in SHAPES {
        let parameters =
            move |device: &Device| (random([d_model], device), random([d_model], device));
        compare(
            c,
            "layer_norm",
            [batch, n_tokens, d_model],
            [
                ("generic", &move |device| {
                    let (gamma, beta) = parameters(device);
                    Box::new(move |x| generic::layer_norm(x, gamma.clone(), beta.clone(), 1e-6))
                }),
                ("fused", &move |device| {
                    let (gamma, beta) = parameters(device);
                    Box::new(move |x| fused::layer_norm(x, gamma.clone(), beta.clone(), 1e-6))
                }),
            ],
        );
    }
}

fn qkv_attention(c: &mut Criterion) {
    for [batch, n_tokens, d_model, n_heads, _] in SHAPES {
        compare(
            c,
            "qkv_attention",
            [batch, n_tokens, 3 * d_model],
            [
                ("generic", &move |_| {
                    Box::new(move |x| generic::qkv_attention(x, n_heads))
                }),
                ("fused", &move |_| {
                    Box::new(move |x| fused::qkv_attention(x, n_heads))
                }),
            ],
        );
    }
}

fn linear(c: &mut Criterion) {
    for [batch, n_tokens, d_model, _, d_mlp] in SHAPES {
        for (d_input, d_output) in [(d_model, 3 * d_model), (d_model, d_mlp), (d_mlp, d_model)] {
            let parameters = move |device: &Device| {
                (
                    random([d_input, d_output], device),
                    random([d_output], device),
                )
            };
            compare(
                c,
                &format!("linear_to_{d_output}"),
                [batch, n_tokens, d_input],
                [
                    ("generic", &move |device| {
                        let (weight, bias) = parameters(device);
                        Box::new(move |x| generic::linear(x, weight.clone(), Some(bias.clone())))
                    }),
                    ("fused", &move |device| {
                        let (weight, bias) = parameters(device);
                        Box::new(move |x| fused::linear(x, weight.clone(), Some(bias.clone())))
                    }),
                ],
            );
        }
    }
}

criterion_group!(benches, gelu, layer_norm, qkv_attention, linear);
criterion_main!(benches);
