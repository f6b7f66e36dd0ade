//! The fixed directions of CLoRA: drawn, taken from the weights, or what old tasks used.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, RngExt};
use rand_distr::StandardNormal;
use rayon::prelude::*;
use sdlora_core::Site;
use sdlora_vit::{Projection, Vit};

use super::settings::{CLora, Source};
use crate::draws::{Draw, generator};
use crate::eigen::Eigen;
use crate::error::TrainError;
use crate::linalg::{View, add_product};
use crate::methods::TaskContext;
use crate::methods::input_subspaces::{Keeps, basis_of};
use crate::model::Model;
use crate::state::{MethodState, Role};

/// Orthonormal directions, one per row, that span a subspace or what is left of the whole beside it.
#[derive(Debug, Clone)]
pub(super) struct Basis {
    /// `[n, width]`.
    rows: Tensor<2>,
    keeps: Keeps,
}

impl Basis {
    #[cfg(test)]
    pub(super) fn used(rows: Tensor<2>) -> Self {
        let keeps = Keeps::Used;
        Self { rows, keeps }
    }

    #[cfg(test)]
    pub(super) fn free(rows: Tensor<2>) -> Self {
        let keeps = Keeps::Free;
        Self { rows, keeps }
    }

    /// `‖Pᵀ x‖_F²` `[1]` of `x: [width, rank]`, where P spans the subspace.
    pub(super) fn energy(&self, x: Tensor<2>) -> Tensor<1> {
        let along = self.along(&x).map(|along| along.square().sum());
        match (self.keeps, along) {
            (Keeps::Used, Some(along)) => along,
            (Keeps::Used, None) => Tensor::zeros([1], &x.device()),
            (Keeps::Free, None) => x.square().sum(),
            (Keeps::Free, Some(along)) => x.square().sum() - along,
        }
    }

    /// `(Pᵀ x)ᵀ (Pᵀ x)` `[rank, rank]` of `x: [width, rank]`.
    pub(super) fn gram(&self, x: Tensor<2>) -> Tensor<2> {
        let square = |x: Tensor<2>| x.clone().transpose().matmul(x);
        let [_, rank] = x.dims();
        match (self.keeps, self.along(&x).map(square)) {
            (Keeps::Used, Some(along)) => along,
            (Keeps::Used, None) => Tensor::zeros([rank, rank], &x.device()),
            (Keeps::Free, None) => square(x),
            (Keeps::Free, Some(along)) => square(x) - along,
        }
    }

    /// `[n, rank]`; `None` of a basis without a direction.
    fn along(&self, x: &Tensor<2>) -> Option<Tensor<2>> {
        let [n, _] = self.rows.dims();
        (n > 0).then(|| self.rows.clone().matmul(x.clone()))
    }
}

/// P and Q of every site, frozen.
#[derive(Module, Debug)]
pub(super) struct Drawn {
    /// `[k, d_input]`: the columns of P as rows.
    inputs: Vec<Param<Tensor<2>>>,
    /// `[k, d_output]`.
    outputs: Vec<Param<Tensor<2>>>,
}

impl Drawn {
    /// The same in every task.
    ///
    /// # Errors
    ///
    /// [`TrainError::Numbers`] for weights that are no numbers.
    pub(super) fn of(
        method: &CLora,
        model: &Model,
        task: &TaskContext,
    ) -> Result<Self, TrainError> {
        let mut rng = generator(task.seed, Draw::Bases, 0);
        let sites: Vec<&Site> = model.adapter.sites.iter().map(|bank| bank.site()).collect();
        let n_columns = |site: &Site| method.n_columns(site.d_input.min(site.d_output));
        let pairs: Vec<[Vec<f64>; 2]> = match method.bases {
            Source::Random | Source::OldFeatures => sites
                .iter()
                .map(|site| {
                    let k = n_columns(site);
                    [site.d_input, site.d_output].map(|width| orthonormal(&mut rng, k, width))
                })
                .collect(),
            Source::Minor | Source::Major => {
                let weights: Vec<Vec<f64>> = sites
                    .iter()
                    .map(|site| weight_of(&model.backbone, site))
                    .collect();
                let is_major = method.bases == Source::Major;
                sites
                    .par_iter()
                    .zip(&weights)
                    .map(|(site, weight)| {
                        singular(weight, site.d_output, n_columns(site), is_major)
                    })
                    .collect::<Result<_, _>>()?
            }
        };
        let frozen = |rows: &[f64], width: usize, device: &Device| {
            let values: Vec<f32> = rows.iter().map(|&v| v as f32).collect();
            let data = TensorData::new(values, [rows.len() / width, width]);
            Param::from_tensor(Tensor::from_data(data, device)).set_require_grad(false)
        };
        let params = |side: usize| {
            let all = sites.iter().zip(&pairs);
            all.map(|(site, pair)| {
                let width = [site.d_input, site.d_output][side];
                frozen(&pair[side], width, &task.device)
            })
            .collect()
        };
        Ok(Self {
            inputs: params(0),
            outputs: params(1),
        })
    }

    pub(super) fn into_state(self) -> MethodState {
        MethodState::of(&self, |_| Role::Shared)
    }
}

/// P and, where it has one, Q of a site in a state; `None` where nothing is kept yet. `block_idx` is the block that
/// the site is in.
pub(super) fn of_site(
    state: &MethodState,
    site_idx: usize,
    block_idx: usize,
) -> Option<(Basis, Option<Basis>)> {
    let drawn = |side: &str| {
        let rows = state.get(&format!("{side}.{site_idx}"))?.val();
        let keeps = Keeps::Used;
        Some(Basis { rows, keeps })
    };
    let of_old = || {
        let (keeps, rows) = basis_of(state, block_idx)?;
        Some(Basis { rows, keeps })
    };
    match drawn("inputs") {
        Some(inputs) => Some((inputs, drawn("outputs"))),
        None => Some((of_old()?, None)),
    }
}

/// `n` orthonormal rows of length `width`, drawn uniformly, by Gram and Schmidt.
pub(super) fn orthonormal(rng: &mut impl Rng, n: usize, width: usize) -> Vec<f64> {
    let mut rows: Vec<f64> = Vec::with_capacity(n * width);
    while rows.len() < n * width {
        let mut row: Vec<f64> = (0..width).map(|_| rng.sample(StandardNormal)).collect();
        // Twice is enough for rounding.
        for _ in 0..2 {
            for earlier in rows.chunks_exact(width) {
                let along = dot(&row, earlier);
                row.iter_mut()
                    .zip(earlier)
                    .for_each(|(x, e)| *x -= along * e);
            }
        }
        let length = dot(&row, &row).sqrt();
        rows.extend(row.iter().map(|x| x / length));
    }
    rows
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// The weight of a site, `[d_input, d_output]`, row-major.
fn weight_of(vit: &Vit, site: &Site) -> Vec<f64> {
    let Some((block_idx, projection)) = Projection::of_site(&site.name) else {
        return Vec::new();
    };
    let block = &vit.blocks[block_idx];
    let third = |k: usize| {
        let qkv = block.attn.qkv.weight.val();
        let [d_input, width] = qkv.dims();
        let d = width / 3;
        qkv.slice([0..d_input, k * d..(k + 1) * d])
    };
    let weight: Tensor<2> = match projection {
        Projection::Query => third(0),
        Projection::Key => third(1),
        Projection::Value => third(2),
        Projection::Output => block.attn.proj.weight.val(),
        Projection::Fc1 => block.mlp.fc1.weight.val(),
        Projection::Fc2 => block.mlp.fc2.weight.val(),
    };
    weight.into_data().iter::<f32>().map(f64::from).collect()
}

/// Singular vectors of `weight: [d_input, d_output]` on both sides, `n` rows each, to the largest or the smallest
/// singular values.
fn singular(
    weight: &[f64],
    d_output: usize,
    n: usize,
    is_major: bool,
) -> Result<[Vec<f64>; 2], TrainError> {
    let weight = View::rows(weight, d_output);
    let of_side = |view: View<'_, f64>| -> Result<Vec<f64>, TrainError> {
        let width = view.n_rows();
        let mut gram = vec![0.0; width * width];
        add_product(&mut gram, width, 1.0, view, view.transposed());
        let vectors = Eigen::of(gram, width)?.vectors;
        // Largest first.
        let first = if is_major { 0 } else { width - n };
        Ok(vectors[first * width..(first + n) * width].to_vec())
    };
    Ok([of_side(weight)?, of_side(weight.transposed())?])
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    /// Largest entry of `X Xᵀ − I` of rows.
    fn far_from_orthonormal(rows: &[f64], width: usize) -> f64 {
        let rows: Vec<&[f64]> = rows.chunks_exact(width).collect();
        let entry = |i: usize, j: usize| dot(rows[i], rows[j]) - f64::from(u8::from(i == j));
        let all = (0..rows.len()).flat_map(|i| (0..rows.len()).map(move |j| (i, j)));
        all.map(|(i, j)| entry(i, j).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn drawn_rows_are_orthonormal_up_to_a_whole_basis_and_differ_with_the_seed() {
        let draw = |seed: u64, n: usize| orthonormal(&mut ChaCha8Rng::seed_from_u64(seed), n, 20);
        for n in [1, 7, 20] {
            let rows = draw(1, n);
            assert_eq!(rows.len(), n * 20);
            assert!(far_from_orthonormal(&rows, 20) < 1e-12);
        }
        assert_eq!(draw(1, 7), draw(1, 7));
        assert_ne!(draw(1, 7), draw(2, 7));
    }

    #[test]
    fn singular_vectors_of_both_sides_by_hand() {
        // Input 1 to output 2 by 3, input 0 to output 0 by 1, nothing else: [[1, 0, 0], [0, 0, 3]].
        let weight = [1.0, 0.0, 0.0, 0.0, 0.0, 3.0];
        let [inputs, outputs] = singular(&weight, 3, 1, true).unwrap();
        let near = |found: &[f64], expected: &[f64]| {
            let pairs = found.iter().zip(expected);
            let far = pairs.map(|(a, b)| (a.abs() - b).abs()).fold(0.0, f64::max);
            assert!(found.len() == expected.len() && far < 1e-12, "{found:?}");
        };
        near(&inputs, &[0.0, 1.0]);
        near(&outputs, &[0.0, 0.0, 1.0]);
        let [inputs, outputs] = singular(&weight, 3, 1, false).unwrap();
        near(&inputs, &[1.0, 0.0]);
        near(&outputs, &[0.0, 1.0, 0.0]);
    }
}
