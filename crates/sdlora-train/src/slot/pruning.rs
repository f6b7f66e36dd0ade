//! PRILoRA's pruning: the down-projection loses its least important entries every few steps (Benedek and Wolf
//! 2024, EACL, arXiv 2401.11316).
//!
//! Importance of an entry is `|a_jk| · n_j`, with n_j the running mean over batches of the ℓ2 norm of input feature
//! j. Of every rank the least important share is set to 0. The entries are not frozen: they may grow back until
//! the next time; the last step of a task prunes once more, so what is kept is sparse.

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};

use super::kept::{SlotState, with_values};
use crate::error::TrainError;
use crate::model::Model;
use crate::options::check_number;
use crate::step_context::StepContext;

/// Settings of the pruning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pruning {
    /// Steps between two times, at least 1.
    #[serde(default = "published_interval")]
    pub every: usize,
    /// Share of the entries of a rank that is set to 0, from 0 to 1.
    #[serde(default = "half")]
    pub share: f64,
    /// Share that the running mean of the norms keeps of what it was, from 0 to below 1.
    #[serde(default = "published_decay")]
    pub decay: f64,
}

impl Default for Pruning {
    fn default() -> Self {
        Self {
            every: published_interval(),
            share: half(),
            decay: published_decay(),
        }
    }
}

fn published_interval() -> usize {
    40
}

fn half() -> f64 {
    0.5
}

fn published_decay() -> f64 {
    0.9
}

impl Pruning {
    pub(super) fn check(&self) -> Result<(), TrainError> {
        let setting = |name: &str| format!("method.slot.pruning.{name}");
        if self.every == 0 {
            return Err(TrainError::setting(setting("every"), 0, "at least 1"));
        }
        check_number(&setting("share"), self.share, true)?;
        if self.share > 1.0 {
            return Err(TrainError::setting(
                setting("share"),
                self.share,
                "a share from 0 to 1",
            ));
        }
        if !(0.0..1.0).contains(&self.decay) {
            let expected = "a share from 0 to below 1";
            return Err(TrainError::setting(setting("decay"), self.decay, expected));
        }
        Ok(())
    }

    /// Refuses projections whose inputs are not known: norms are taken where queries, keys and values are made.
    pub fn check_projections(projections: &[Projection]) -> Result<(), TrainError> {
        let seen = [Projection::Query, Projection::Key, Projection::Value];
        match projections.iter().find(|p| !seen.contains(p)) {
            None => Ok(()),
            Some(other) => Err(TrainError::setting(
                "method.projections",
                other.name(),
                "query, key and value only, because pruning knows the norms of their inputs",
            )),
        }
    }

    pub(super) fn after_step(
        &self,
        mut model: Model,
        step: &StepContext,
    ) -> Result<Model, TrainError> {
        let Some(images) = &step.images else {
            return Ok(model);
        };
        let (depth, d_model) = (
            model.backbone.config().depth,
            model.backbone.config().d_model,
        );
        let device = &step.device;
        let mut kept = SlotState::of(&model);
        let frozen = model.backbone.valid();
        let updates = model.adapter.valid().updates();
        let mut found: Vec<Tensor<2>> = Vec::with_capacity(depth);
        frozen.attention_inputs(images.clone().inner(), &updates, |_, inputs| {
            let [batch, n_tokens, d_model] = inputs.dims();
            let rows: Tensor<2> = inputs.reshape([batch * n_tokens, d_model]);
            found.push(rows.square().sum_dim(0).sqrt());
        });
        let found = Tensor::cat(found, 0);
        let before = kept.input_norms().filter(|_| step.step > 0);
        let mean = match before {
            None => found,
            Some(before) => {
                before.inner().mul_scalar(self.decay) + found.mul_scalar(1.0 - self.decay)
            }
        };
        let of_blocks: Option<Vec<f32>> = self
            .is_time(step)
            .then(|| mean.clone().into_data().iter::<f32>().collect());
        kept.set_input_norms(Tensor::from_inner(mean));
        model.state = kept.into_state();
        let Some(of_blocks) = of_blocks else {
            return Ok(model);
        };
        for bank in &mut model.adapter.sites {
            let block = bank.site().group;
            let Some(mut current) = bank.current.take() else {
                continue;
            };
            let [n_rows, rank] = current.a.lazy_shape().dims();
            let mut a: Vec<f32> = current.a.val().into_data().iter::<f32>().collect();
            prune(
                &mut a,
                rank,
                &of_blocks[block * d_model..(block + 1) * d_model],
                self.share,
            );
            let a = Tensor::from_data(TensorData::new(a, [n_rows, rank]), device);
            current.a = with_values(current.a, a);
            bank.current = Some(current);
        }
        Ok(model)
    }

    fn is_time(&self, step: &StepContext) -> bool {
        let n_done = step.step + 1;
        n_done.is_multiple_of(self.every) || n_done == step.n_steps
    }
}

/// Sets of every column of `a: [d_input, rank]` the ⌊share · d_input⌋ entries of the least importance to 0.
fn prune(a: &mut [f32], rank: usize, norms: &[f32], share: f64) {
    let n_rows = a.len() / rank.max(1);
    let n_pruned = (share * n_rows as f64) as usize;
    let mut order: Vec<usize> = (0..n_rows).collect();
    for k in 0..rank {
        let importance = |j: usize| a[j * rank + k].abs() * norms[j];
        order.sort_by(|&i, &j| importance(i).total_cmp(&importance(j)).then(i.cmp(&j)));
        for &j in &order[..n_pruned] {
            a[j * rank + k] = 0.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_important_entries_of_every_rank_go() {
        // Rows are inputs, columns ranks.
        let a = vec![1.0f32, -4.0, 2.0, 3.0, -3.0, 2.0, 4.0, 1.0];
        let mut by_size = a.clone();
        prune(&mut by_size, 2, &[1.0; 4], 0.5);
        assert_eq!(by_size, [0.0, -4.0, 0.0, 3.0, -3.0, 0.0, 4.0, 0.0]);
        // An input that is always 0 goes first, whatever its entries.
        let mut by_norm = a.clone();
        prune(&mut by_norm, 2, &[1.0, 1.0, 1.0, 0.0], 0.25);
        assert_eq!(by_norm, [1.0, -4.0, 2.0, 3.0, -3.0, 2.0, 0.0, 0.0]);
        // A share between two counts rounds down.
        let mut none = a.clone();
        prune(&mut none, 2, &[1.0; 4], 0.24);
        assert_eq!(none, a);
    }
}
