//! Layer norm over the last axis.
//!
//! `x̂ = (x − μ) r` with `r = 1 / √(σ² + ε)`, `y = x̂ γ + β`.
//! The backward pass needs `x`, `μ` and `r`; with `g = dy γ` it is
//! `dx = r (g − mean(g) − x̂ mean(g x̂))`, `dγ = Σ dy x̂` and `dβ = Σ dy` over the rows.

use std::sync::Arc;

use burn::backend::autodiff::{
    NodeId,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex};
use burn::tensor::Shape;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::buffer;
use super::simd::{Sum, Terms, Vector, sums, vectorize};

/// Elements of one task: a few rows of a wide model, many of a narrow one.
const CHUNK: usize = 4096;
/// Rows summed by one task for the gradients of `γ` and `β`; fixes the order of the sum.
const SUM_ROWS: usize = 64;

/// Mean and inverse standard deviation of one row.
#[derive(Clone, Copy, Debug, Default)]
struct Moments {
    mean: f32,
    inv_std: f32,
}

/// Layer norm of every row, in place where `x` is not shared.
pub(super) fn forward(x: FlexTensor, gamma: FlexTensor, beta: FlexTensor, eps: f64) -> FlexTensor {
    normalise(x, gamma, beta, eps).0
}

fn normalise(
    x: FlexTensor,
    gamma: FlexTensor,
    beta: FlexTensor,
    eps: f64,
) -> (FlexTensor, Vec<Moments>) {
    let width = width_of(&x);
    let (gamma, beta) = (buffer::contiguous(gamma), buffer::contiguous(beta));
    let (gamma, beta) = (buffer::values(&gamma), buffer::values(&beta));
    let mut moments = vec![Moments::default(); x.layout().num_elements() / width];
    let rows = rows_of(width);
    let out = buffer::map(
        x,
        rows * width,
        moments.par_chunks_mut(rows),
        |x, moments| {
            vectorize(Normalise {
                x,
                gamma,
                beta,
                eps: eps as f32,
                moments,
            });
        },
    );
    (out, moments)
}

/// [`forward`] with its backward.
pub(super) fn autodiff<C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<Flex, C>>,
    gamma: FloatTensor<Autodiff<Flex, C>>,
    beta: FloatTensor<Autodiff<Flex, C>>,
    eps: f64,
) -> FloatTensor<Autodiff<Flex, C>> {
    let nodes = [x.node(), gamma.node(), beta.node()];
    match LayerNorm.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prep) => {
            let x_id = prep.checkpoint(&x);
            let gamma = gamma.into_primitive();
            let (out, moments) = normalise(
                x.into_primitive(),
                gamma.clone(),
                beta.into_primitive(),
                eps,
            );
            let state = State {
                x: x_id,
                gamma,
                moments: moments.into(),
            };
            prep.finish(state, out)
        }
        OpsKind::UnTracked(prep) => prep.finish(forward(
            x.into_primitive(),
            gamma.into_primitive(),
            beta.into_primitive(),
            eps,
        )),
    }
}

#[derive(Debug)]
struct LayerNorm;

#[derive(Clone, Debug)]
struct State {
    x: NodeId,
    gamma: FlexTensor,
    moments: Arc<[Moments]>,
}

impl Backward<Flex, 3> for LayerNorm {
    type State = State;

    fn backward(self, ops: Ops<State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let [node_x, node_gamma, node_beta] = ops.parents;
        let State { x, gamma, moments } = ops.state;
        let grad = buffer::contiguous(grads.consume::<Flex>(&ops.node));
        let x = buffer::contiguous(checkpointer.retrieve_node_output::<FlexTensor>(x));

        if node_gamma.is_some() || node_beta.is_some() {
            let (d_gamma, d_beta) = parameter_gradients(&grad, &x, &moments);
            if let Some(node) = node_gamma {
                grads.register::<Flex>(node.id, d_gamma);
            }
            if let Some(node) = node_beta {
                grads.register::<Flex>(node.id, d_beta);
            }
        }
        if let Some(node) = node_x {
            grads.register::<Flex>(node.id, input_gradient(grad, &x, gamma, &moments));
        }
    }
}

/// The gradient of `x`, in place of `grad` where that is not shared.
fn input_gradient(
    grad: FlexTensor,
    x: &FlexTensor,
    gamma: FlexTensor,
    moments: &[Moments],
) -> FlexTensor {
    let width = width_of(x);
    let gamma = buffer::contiguous(gamma);
    let gamma = buffer::values(&gamma);
    let rows = rows_of(width);
    let inputs = buffer::values(x)
        .par_chunks(rows * width)
        .zip(moments.par_chunks(rows));
    buffer::map(grad, rows * width, inputs, |grad, (x, moments)| {
        vectorize(InputGradient {
            grad,
            x,
            gamma,
            moments,
        });
    })
}

/// The gradients of `γ` and `β`.
fn parameter_gradients(
    grad: &FlexTensor,
    x: &FlexTensor,
    moments: &[Moments],
) -> (FlexTensor, FlexTensor) {
    let width = width_of(x);
    let n_parts = moments.len().div_ceil(SUM_ROWS);
    let inputs = buffer::values(grad)
        .par_chunks(SUM_ROWS * width)
        .zip(buffer::values(x).par_chunks(SUM_ROWS * width))
        .zip(moments.par_chunks(SUM_ROWS));
    let parts = buffer::build(
        n_parts * 2 * width,
        2 * width,
        inputs,
        |sums, ((grad, x), moments)| {
            let (gamma, beta) = sums.split_at_mut(width);
            vectorize(ParameterGradients {
                grad,
                x,
                moments,
                gamma,
                beta,
            });
        },
    );
    let mut total = vec![0.0; 2 * width];
    for part in parts.chunks_exact(2 * width) {
        for (total, part) in total.iter_mut().zip(part) {
            *total += part;
        }
    }
    let beta = total.split_off(width);
    let shape = Shape::new([width]);
    (
        buffer::tensor(total, shape.clone()),
        buffer::tensor(beta, shape),
    )
}

/// Length of the last axis; 1 for an axis of length 0, whose tensor has no rows.
fn width_of(x: &FlexTensor) -> usize {
    x.layout().shape().last().copied().unwrap_or(1).max(1)
}

/// Rows of one task.
fn rows_of(width: usize) -> usize {
    (CHUNK / width).max(1)
}

/// Normalises each row in place and notes its moments.
struct Normalise<'a> {
    x: &'a mut [f32],
    gamma: &'a [f32],
    beta: &'a [f32],
    eps: f32,
    moments: &'a mut [Moments],
}

impl WithSimd for Normalise<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.gamma.len();
        let (gamma, gamma_rest) = S::as_simd_f32s(self.gamma);
        let (beta, beta_rest) = S::as_simd_f32s(self.beta);
        let rows = self.x.chunks_exact_mut(width).zip(self.moments);
        for (row, moments) in rows {
            let [sum] = sums(simd, [&*row], Sum);
            let mean = sum / width as f32;
            // Two passes over a cached row: the mean of squares minus the square of the mean loses
            // digits where the mean is large.
            let centre = Vector::splat(simd, mean);
            let [squares] = sums(simd, [&*row], Squares { centre });
            let inv_std = 1.0 / (squares / width as f32 + self.eps).sqrt();
            *moments = Moments { mean, inv_std };

            let scale = Vector::splat(simd, inv_std);
            let (row, row_rest) = S::as_mut_simd_f32s(row);
            for ((x, &gamma), &beta) in row.iter_mut().zip(gamma).zip(beta) {
                let normal = (Vector::new(simd, *x) - centre) * scale;
                *x = normal
                    .mul_add(Vector::new(simd, gamma), Vector::new(simd, beta))
                    .lanes();
            }
            for ((x, gamma), beta) in row_rest.iter_mut().zip(gamma_rest).zip(beta_rest) {
                *x = (*x - mean) * inv_std * gamma + beta;
            }
        }
    }
}

/// The squared distance from the mean.
struct Squares<S: Simd> {
    centre: Vector<S>,
}

impl<S: Simd> Terms<S, 1, 1> for Squares<S> {
    #[inline(always)]
    fn at(&self, [x]: [Vector<S>; 1]) -> [Vector<S>; 1] {
        let difference = x - self.centre;
        [difference * difference]
    }
}

/// `g` and `g x̂` from the rows of `dy`, `x` and `γ`.
struct Means<S: Simd> {
    centre: Vector<S>,
    scale: Vector<S>,
}

impl<S: Simd> Terms<S, 3, 2> for Means<S> {
    #[inline(always)]
    fn at(&self, [grad, x, gamma]: [Vector<S>; 3]) -> [Vector<S>; 2] {
        let grad = grad * gamma;
        [grad, grad * ((x - self.centre) * self.scale)]
    }
}

/// Turns each row of the output's gradient into the input's.
struct InputGradient<'a> {
    grad: &'a mut [f32],
    x: &'a [f32],
    gamma: &'a [f32],
    moments: &'a [Moments],
}

impl WithSimd for InputGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.gamma.len();
        let (gamma, gamma_rest) = S::as_simd_f32s(self.gamma);
        let rows = self
            .grad
            .chunks_exact_mut(width)
            .zip(self.x.chunks_exact(width));
        for ((grad, x), moments) in rows.zip(self.moments) {
            let centre = Vector::splat(simd, moments.mean);
            let scale = Vector::splat(simd, moments.inv_std);
            let means = sums(simd, [&*grad, x, self.gamma], Means { centre, scale });
            let [mean, slope] = [means[0] / width as f32, means[1] / width as f32];

            let (means, slopes) = (Vector::splat(simd, mean), Vector::splat(simd, slope));
            let (grad, grad_rest) = S::as_mut_simd_f32s(grad);
            let (x, x_rest) = S::as_simd_f32s(x);
            for ((grad, &x), &gamma) in grad.iter_mut().zip(x).zip(gamma) {
                let normal = (Vector::new(simd, x) - centre) * scale;
                let inner = Vector::new(simd, *grad) * Vector::new(simd, gamma) - means;
                *grad = ((inner - normal * slopes) * scale).lanes();
            }
            for ((grad, x), gamma) in grad_rest.iter_mut().zip(x_rest).zip(gamma_rest) {
                let normal = (x - moments.mean) * moments.inv_std;
                *grad = (*grad * gamma - mean - normal * slope) * moments.inv_std;
            }
        }
    }
}

/// Adds the rows of `dy x̂` to `gamma` and those of `dy` to `beta`.
struct ParameterGradients<'a> {
    grad: &'a [f32],
    x: &'a [f32],
    moments: &'a [Moments],
    gamma: &'a mut [f32],
    beta: &'a mut [f32],
}

impl WithSimd for ParameterGradients<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.gamma.len();
        let (gamma, gamma_rest) = S::as_mut_simd_f32s(self.gamma);
        let (beta, beta_rest) = S::as_mut_simd_f32s(self.beta);
        let rows = self
            .grad
            .chunks_exact(width)
            .zip(self.x.chunks_exact(width));
        for ((grad, x), moments) in rows.zip(self.moments) {
            let centre = Vector::splat(simd, moments.mean);
            let scale = Vector::splat(simd, moments.inv_std);
            let (grad, grad_rest) = S::as_simd_f32s(grad);
            let (x, x_rest) = S::as_simd_f32s(x);
            let sums = gamma.iter_mut().zip(beta.iter_mut());
            for ((gamma, beta), (&grad, &x)) in sums.zip(grad.iter().zip(x)) {
                let grad = Vector::new(simd, grad);
                let normal = (Vector::new(simd, x) - centre) * scale;
                *gamma = grad.mul_add(normal, Vector::new(simd, *gamma)).lanes();
                *beta = (grad + Vector::new(simd, *beta)).lanes();
            }
            let sums = gamma_rest.iter_mut().zip(beta_rest.iter_mut());
            for ((gamma, beta), (grad, x)) in sums.zip(grad_rest.iter().zip(x_rest)) {
                *gamma += grad * (x - moments.mean) * moments.inv_std;
                *beta += grad;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 21;

    /// `y`, `dx`, `dγ` and `dβ` of two rows, computed by `run` at some width of vectors.
    fn all(
        run: &dyn Fn(Normalise),
        back: &dyn Fn(InputGradient),
        sum: &dyn Fn(ParameterGradients),
    ) -> Vec<f32> {
        let wave = |len: usize, step: f32| -> Vec<f32> {
            (0..len)
                .map(|idx| (idx as f32 * step).sin() + 0.3)
                .collect()
        };
        let (x, mut grad) = (wave(2 * WIDTH, 0.7), wave(2 * WIDTH, 1.3));
        let (gamma, beta) = (wave(WIDTH, 0.4), wave(WIDTH, 0.9));
        let mut moments = [Moments::default(); 2];
        let mut y = x.clone();
        run(Normalise {
            x: &mut y,
            gamma: &gamma,
            beta: &beta,
            eps: 1e-6,
            moments: &mut moments,
        });
        let (mut d_gamma, mut d_beta) = (vec![0.0; WIDTH], vec![0.0; WIDTH]);
        sum(ParameterGradients {
            grad: &grad,
            x: &x,
            moments: &moments,
            gamma: &mut d_gamma,
            beta: &mut d_beta,
        });
        back(InputGradient {
            grad: &mut grad,
            x: &x,
            gamma: &gamma,
            moments: &moments,
        });
        [y, grad, d_gamma, d_beta].concat()
    }

    fn assert_same(widest: &[f32], other: &[f32]) {
        for (a, b) in widest.iter().zip(other) {
            assert!((a - b).abs() < 5e-6, "{a} and {b}");
        }
    }

    #[test]
    fn every_width_of_vectors_gives_the_same_numbers() {
        let widest = all(
            &|kernel| vectorize(kernel),
            &|kernel| vectorize(kernel),
            &|kernel| vectorize(kernel),
        );
        let scalar = all(
            &|kernel| Simd::vectorize(pulp::Scalar, kernel),
            &|kernel| Simd::vectorize(pulp::Scalar, kernel),
            &|kernel| Simd::vectorize(pulp::Scalar, kernel),
        );
        assert_same(&widest, &scalar);
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V3::try_new() {
            let narrow = all(
                &|kernel| Simd::vectorize(simd, kernel),
                &|kernel| Simd::vectorize(simd, kernel),
                &|kernel| Simd::vectorize(simd, kernel),
            );
            assert_same(&widest, &narrow);
        }
    }
}
