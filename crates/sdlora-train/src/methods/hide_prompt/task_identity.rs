//! Which task an image seems to be of: task-identity inference of HiDe-Prompt (Wang et al. 2023).
//!
//! Gaussians of the queries of every class about one covariance pooled within classes; the task is
//! that of the likeliest class. The paper trains a linear classifier on samples of these Gaussians;
//! with one covariance the best one is known in closed form, which is what is kept.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};

use crate::features::FeatureTable;
use crate::linalg::{Symmetric, packed_len};
use crate::second_pass::rows::trained;
use crate::state::room;

/// Added to the diagonal of the covariance, relative to its mean: a first task of few images leaves
/// most directions unmeasured.
const RIDGE: f64 = 0.1;

/// What tells tasks apart, of every class reviewed; nothing here is trained.
#[derive(Module, Debug)]
pub struct TaskIdentity {
    /// Means of the queries, `[n_classes, d_model]`.
    pub means: Param<Tensor<2>>,
    /// Squares of the queries about the means of their classes, summed over all images: the rows of
    /// the lower triangle, `[1, d_model (d_model + 1) / 2]`.
    pub scatter: Param<Tensor<2>>,
    /// Log-likelihood of a class up to what all share: weights and, in the last column, the bias,
    /// `[n_classes, d_model + 1]`.
    pub read_out: Param<Tensor<2>>,
    /// Means of the features with the prefix of the task, `[n_classes, d_model]`.
    pub prompted_means: Param<Tensor<2>>,
}

/// The images of a task without and with its prefix.
#[derive(Debug, Default)]
pub struct Review {
    /// Queries.
    pub plain: FeatureTable,
    /// Features with the prefix of the task; the same images in the same order.
    pub prompted: FeatureTable,
}

impl TaskIdentity {
    pub(super) fn room(n_classes: usize, d_model: usize, device: &Device) -> Self {
        let rows = |width: usize| room([n_classes, width], device);
        Self {
            means: rows(d_model),
            scatter: room([1, packed_len(d_model)], device),
            read_out: rows(d_model + 1),
            prompted_means: rows(d_model),
        }
    }

    /// `old` with the classes of a review, which take the place of those of the same label:
    /// `n_classes` in all, from `n_images` with those of the review.
    pub(super) fn reviewed(
        old: Option<Self>,
        review: &Review,
        n_classes: usize,
        n_images: usize,
        device: &Device,
    ) -> Self {
        let (plain, d) = (&review.plain, review.plain.d_model);
        let host = |rows: &Param<Tensor<2>>| rows.val().into_data().iter::<f32>().collect();
        let known = |part: fn(&Self) -> &Param<Tensor<2>>| -> Vec<f32> {
            old.as_ref().map_or_else(Vec::new, |old| host(part(old)))
        };
        let (mut means, mut prompted) = (known(|i| &i.means), known(|i| &i.prompted_means));
        for (means, table) in [(&mut means, plain), (&mut prompted, &review.prompted)] {
            means.resize(n_classes * d, 0.0);
            for (label, mean) in class_means(table) {
                means[label * d..(label + 1) * d].copy_from_slice(&mean);
            }
        }
        let mut scatter = Symmetric::unpacked(&known(|i| &i.scatter), d);
        let rows = plain.labels.iter().enumerate().flat_map(|(i, &label)| {
            let mean = &means[label * d..(label + 1) * d];
            let row = plain.row(i).iter().zip(mean);
            row.map(|(v, m)| f64::from(*v) - f64::from(*m))
        });
        scatter.add_gram(&rows.collect::<Vec<f64>>());
        let packed = scatter.packed();
        let read_out = read_out(&means, scatter, n_images, d);
        let kept = |values: Vec<f32>, shape: [usize; 2]| {
            trained(values, shape, device).set_require_grad(false)
        };
        Self {
            means: kept(means, [n_classes, d]),
            scatter: kept(packed, [1, packed_len(d)]),
            read_out: kept(read_out, [n_classes, d + 1]),
            prompted_means: kept(prompted, [n_classes, d]),
        }
    }

    /// The likeliest class of each row of `query: [batch, d_model]`.
    pub(super) fn class_of(&self, query: Tensor<2>) -> Tensor<1, Int> {
        let [batch, d] = query.dims();
        let read_out = self.read_out.val();
        let weight = read_out.clone().narrow(1, 0, d).transpose();
        let bias = read_out.narrow(1, d, 1).transpose();
        (query.matmul(weight) + bias).argmax(1).reshape([batch])
    }
}

/// Labels in a table with the means of their rows.
fn class_means(table: &FeatureTable) -> impl Iterator<Item = (usize, Vec<f32>)> {
    let mut sums = std::collections::BTreeMap::new();
    for (i, &label) in table.labels.iter().enumerate() {
        let (sum, n) = sums
            .entry(label)
            .or_insert_with(|| (vec![0.0f64; table.d_model], 0usize));
        *n += 1;
        for (sum, &v) in sum.iter_mut().zip(table.row(i)) {
            *sum += f64::from(v);
        }
    }
    sums.into_iter().map(|(label, (sum, n))| {
        let mean = sum.iter().map(|v| (v / n as f64) as f32);
        (label, mean.collect())
    })
}

/// Of classes with these means `[n_classes, d]` about the covariance `scatter / n_images`: `Σ⁻¹ μ`,
/// and behind it `-μᵀ Σ⁻¹ μ / 2`. Where all images lie on their means, `Σ` is the identity.
pub(super) fn read_out(means: &[f32], scatter: Symmetric, n_images: usize, d: usize) -> Vec<f32> {
    let mut weights: Vec<f64> = means.iter().map(|&m| f64::from(m)).collect();
    let ridge = RIDGE * scatter.mean_diagonal();
    let factor = (ridge > 0.0).then(|| scatter.cholesky(ridge)).flatten();
    if let Some(factor) = factor {
        factor.solve(&mut weights);
        weights.iter_mut().for_each(|w| *w *= n_images as f64);
    }
    let rows = weights
        .chunks_exact(d.max(1))
        .zip(means.chunks_exact(d.max(1)));
    rows.flat_map(|(row, mean)| {
        let inner: f64 = row.iter().zip(mean).map(|(w, &m)| w * f64::from(m)).sum();
        row.iter().copied().chain([-0.5 * inner]).map(|v| v as f32)
    })
    .collect()
}
