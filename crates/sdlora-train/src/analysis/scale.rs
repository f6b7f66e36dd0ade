//! How large the update of the weights is against the weights it changes.

use burn::tensor::Tensor;
use sdlora_vit::{Projection, Vit};

use super::trained::TrainedRun;
use crate::error::TrainError;

/// One weight matrix at the ends of tasks.
#[derive(Debug, Clone, PartialEq)]
pub struct SiteScale {
    /// Index of the block, from 0.
    pub block_idx: usize,
    /// The projection inside the block.
    pub projection: Projection,
    /// `‖W0‖_F`.
    pub base: f64,
    /// `‖W − W0‖_F` at the end of every kept round.
    pub update: Vec<f64>,
}

/// Size of the update at the ends of tasks, over all weight matrices that change.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct UpdateScale {
    /// Every matrix that differs from its start in one of the rounds.
    pub sites: Vec<SiteScale>,
}

impl UpdateScale {
    /// The projections that change, in the order of the forward pass.
    pub fn projections(&self) -> Vec<Projection> {
        let changes = |p: &Projection| self.sites.iter().any(|site| site.projection == *p);
        Projection::ALL.into_iter().filter(changes).collect()
    }

    /// `‖W − W0‖_F / ‖W0‖_F` over all changed matrices together, or those of one projection, at the
    /// end of every kept round.
    pub fn relative(&self, projection: Option<Projection>) -> Vec<f64> {
        let n_rounds = self.sites.first().map_or(0, |site| site.update.len());
        let sites = || {
            self.sites
                .iter()
                .filter(|site| projection.is_none_or(|p| p == site.projection))
        };
        let base: f64 = sites().map(|site| site.base * site.base).sum();
        (0..n_rounds)
            .map(|k| {
                let update: f64 = sites().map(|site| site.update[k] * site.update[k]).sum();
                (update / base).sqrt()
            })
            .collect()
    }
}

/// Measures the weight matrices of every block at the end of every kept round against those before
/// the first task. Whatever a method changes is seen, because merged weights are compared.
///
/// # Errors
///
/// Those of the checkpoints.
pub fn update_scale(run: &TrainedRun) -> Result<UpdateScale, TrainError> {
    let base = matrices(&run.base().merged_backbone());
    let mut sites: Vec<SiteScale> = base
        .iter()
        .map(|(block_idx, projection, values)| SiteScale {
            block_idx: *block_idx,
            projection: *projection,
            base: distance(values, None),
            update: Vec::new(),
        })
        .collect();
    for &round in run.rounds() {
        let (model, _) = run.model_after(round)?;
        let now = matrices(&model.merged_backbone());
        for ((site, (.., now)), (.., base)) in sites.iter_mut().zip(&now).zip(&base) {
            site.update.push(distance(now, Some(base)));
        }
    }
    sites.retain(|site| site.update.iter().any(|&d| d > 0.0));
    Ok(UpdateScale { sites })
}

/// `‖a − b‖_F`, or `‖a‖_F` without `b`, in double precision.
pub(super) fn distance(a: &[f32], b: Option<&[f32]>) -> f64 {
    let square = |v: f64| v * v;
    match b {
        None => a.iter().map(|&v| square(f64::from(v))).sum::<f64>(),
        Some(b) => a
            .iter()
            .zip(b)
            .map(|(&a, &b)| square(f64::from(a) - f64::from(b)))
            .sum(),
    }
    .sqrt()
}

/// Every matrix of every block, row-major `[d_input, d_output]`.
pub(super) fn matrices(vit: &Vit) -> Vec<(usize, Projection, Vec<f32>)> {
    let read = |w: Tensor<2>| w.into_data().iter::<f32>().collect::<Vec<f32>>();
    let mut out = Vec::new();
    for (i, block) in vit.blocks.iter().enumerate() {
        let qkv = block.attn.qkv.weight.val();
        let [d_input, width] = qkv.dims();
        let d = width / 3;
        for (k, projection) in [Projection::Query, Projection::Key, Projection::Value]
            .into_iter()
            .enumerate()
        {
            let part = qkv.clone().slice([0..d_input, k * d..(k + 1) * d]);
            out.push((i, projection, read(part)));
        }
        let rest = [
            (Projection::Output, &block.attn.proj),
            (Projection::Fc1, &block.mlp.fc1),
            (Projection::Fc2, &block.mlp.fc2),
        ];
        out.extend(rest.map(|(projection, layer)| (i, projection, read(layer.weight.val()))));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sites_are_weighed_by_their_squares() {
        let site = |projection, base, update| SiteScale {
            block_idx: 0,
            projection,
            base,
            update,
        };
        let scale = UpdateScale {
            sites: vec![
                site(Projection::Query, 3.0, vec![0.0, 3.0]),
                site(Projection::Value, 4.0, vec![5.0, 4.0]),
            ],
        };
        assert_eq!(scale.relative(None), [1.0, 1.0]);
        assert_eq!(scale.relative(Some(Projection::Query)), [0.0, 1.0]);
        assert_eq!(scale.relative(Some(Projection::Value)), [1.25, 1.0]);
        assert!(UpdateScale::default().relative(None).is_empty());
    }

    #[test]
    fn distances_by_hand() {
        assert_eq!(distance(&[3.0, -4.0], None), 5.0);
        assert_eq!(distance(&[3.0, -4.0], Some(&[0.0, 0.0])), 5.0);
        assert_eq!(distance(&[3.0, 1.0], Some(&[3.0, 3.0])), 2.0);
    }
}
