//! The vector code of layer norm, forward and backward.

use pulp::{Simd, WithSimd};

use crate::flex::simd::{Sum, Terms, Vector, sums};

/// Mean and inverse standard deviation of one row.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Moments {
    mean: f32,
    inv_std: f32,
}

/// Normalises each row in place and notes its moments.
pub(super) struct Normalise<'a> {
    pub(super) x: &'a mut [f32],
    pub(super) gamma: &'a [f32],
    pub(super) beta: &'a [f32],
    pub(super) eps: f32,
    pub(super) moments: &'a mut [Moments],
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
pub(super) struct InputGradient<'a> {
    pub(super) grad: &'a mut [f32],
    pub(super) x: &'a [f32],
    pub(super) gamma: &'a [f32],
    pub(super) moments: &'a [Moments],
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
pub(super) struct ParameterGradients<'a> {
    pub(super) grad: &'a [f32],
    pub(super) x: &'a [f32],
    pub(super) moments: &'a [Moments],
    pub(super) gamma: &'a mut [f32],
    pub(super) beta: &'a mut [f32],
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
    use crate::flex::simd::vectorize;

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
