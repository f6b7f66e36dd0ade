//! L2P: prompts from one pool, chosen for every image by its query, in front of the tokens (Wang et
//! al., CVPR 2022); see [`PromptPool`].
//!
//! Trained in every task: all prompts and keys that are chosen, and the head. The classifier reads
//! the mean of the prompts' outputs, so the method needs no class token (section 4.2).
//!
//! Deviates from the published code in three points. It chooses by majority over a batch, here each
//! image chooses for itself, as in the paper: a prediction must not depend on its neighbours. It
//! adds positions to prompts; they are learned anyway. It trains with Adam at a constant rate; the
//! optimiser is a setting of the run.

mod pool;

use sdlora_vit::ReadOut;
use serde::{Deserialize, Serialize};

use super::{Method, MethodEntry, TaskContext, check_counts, check_number, default_spread, parse};
use crate::error::TrainError;
use crate::heads::ColumnStart;
use crate::model::Model;
use pool::{PoolLayout, PromptPool, SECOND_PASS};

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "l2p",
    summary: "tokens from a pool of prompts, chosen by query and key",
    build: |options| {
        let method: L2p = parse("l2p", options)?;
        method.check()?;
        Ok(Box::new(method))
    },
    second_pass: Some(SECOND_PASS),
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct L2p {
    /// Prompts of the pool (section 5: `M = 10`).
    #[serde(default = "ten")]
    n_prompts: usize,
    /// Tokens of a prompt (`L_p = 5`).
    #[serde(default = "five")]
    length: usize,
    /// Prompts an image gets (`N = 5`).
    #[serde(default = "five")]
    top: usize,
    /// Weight of the distance between queries and selected keys (`λ = 0.5`).
    #[serde(default = "default_pull")]
    pull: f64,
    /// Which tokens become the feature: `prompts` or `backbone`.
    #[serde(default)]
    read_out: ReadOut,
    /// Prompts and keys start in U(-spread, spread).
    #[serde(default = "default_spread")]
    spread: f32,
}

fn ten() -> usize {
    10
}

fn five() -> usize {
    5
}

fn default_pull() -> f64 {
    0.5
}

impl L2p {
    fn check(&self) -> Result<(), TrainError> {
        check_counts(&[("length", self.length), ("top", self.top)])?;
        check_number("method.pull", self.pull, true)?;
        check_number("method.spread", f64::from(self.spread), false)?;
        if self.top > self.n_prompts {
            return Err(TrainError::setting(
                "method.top",
                self.top,
                format!("at most the {} prompts of the pool", self.n_prompts),
            ));
        }
        Ok(())
    }
}

impl Method for L2p {
    fn before_task(&self, mut model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        if model.state.is_empty() {
            let layout = PoolLayout {
                n_prompts: self.n_prompts,
                length: self.length,
                top: self.top,
                pull: self.pull,
                read_out: self.read_out,
            };
            let d_model = model.backbone.config().d_model;
            let (spread, mut rng) = (self.spread, task.prompt_rng());
            let pool = PromptPool::init(&layout, d_model, spread, &mut rng, &task.device);
            model.state = pool.into_state();
        }
        Ok(task.grow_head(model))
    }

    fn column_start(&self) -> ColumnStart {
        ColumnStart::Zeros
    }
}
