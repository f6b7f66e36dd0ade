//! S-GRPO's stochastic gradient of patch tokens: the adapters get a gradient from some tokens of an image only (Lee and
//! Tong 2025, arXiv 2504.20834, carried over from the tokens of a text).
//!
//! The class token and registers always pass a gradient, every patch with probability p, and then with 1/p of it. Every
//! site draws for itself, so the gradient of a step is that of all tokens in the mean: a product of independent
//! factors has the product of their means. What a token adds to the forward pass stays what it is.

use std::ops::Range;

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::RngExt;
use sdlora_core::{KeptRows, Updates};
use serde::{Deserialize, Serialize};

use crate::draws::{Draw, generator};
use crate::error::TrainError;
use crate::model::Model;

/// Which patches pass a gradient.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patches {
    /// Probability of a patch, above 0, to 1.
    pub probability: f64,
}

/// Bits of the position in that stream that belong to an image, and to a pass: far more words than either draws.
const IMAGE_BITS: u32 = 24;
const PASS_BITS: u32 = 46;

/// Where in a run a pass is.
#[derive(Debug, Clone)]
pub(crate) struct PassPlace {
    pub seed: u64,
    pub task_idx: usize,
    /// Pass of the task, from 0.
    pub pass: usize,
    /// Its images, by their place in the batch of the step.
    pub rows: Range<usize>,
}

impl Patches {
    /// Checks the probability; `setting` names it.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] for one out of its range.
    pub(crate) fn check(self, setting: &str) -> Result<(), TrainError> {
        match self.probability > 0.0 && self.probability <= 1.0 {
            true => Ok(()),
            false => Err(TrainError::setting(
                setting,
                self.probability,
                "a probability above 0, to 1",
            )),
        }
    }

    /// Updates through which some patches pass no gradient.
    pub(crate) fn on(
        self,
        mut updates: Updates,
        model: &Model,
        place: &PassPlace,
        device: &Device,
    ) -> Updates {
        if self.probability == 1.0 {
            return updates;
        }
        let vit = model.backbone.config();
        let (n_tokens, n_front) = (vit.n_tokens(), vit.n_prefix_tokens());
        let banks = model.adapter.sites.iter();
        let names: Vec<String> = banks.map(|bank| bank.site().name.to_string()).collect();
        let mut kept: Vec<(Vec<i32>, Vec<f32>)> = vec![Default::default(); names.len()];
        let mut rng = generator(place.seed, Draw::Patches, place.task_idx);
        for (i, image) in place.rows.clone().enumerate() {
            let position = ((place.pass as u128) << PASS_BITS) | ((image as u128) << IMAGE_BITS);
            rng.set_word_pos(position);
            for (rows, scales) in &mut kept {
                for token in 0..n_tokens {
                    let is_drawn = rng.random::<f64>() < self.probability;
                    let is_front = token < n_front;
                    if is_front || is_drawn {
                        rows.push((i * n_tokens + token) as i32);
                        scales.push(match is_front {
                            true => 1.0,
                            false => (1.0 / self.probability) as f32,
                        });
                    }
                }
            }
        }
        for (name, (mut rows, mut scales)) in names.iter().zip(kept) {
            if rows.is_empty() {
                // No row at all: one that counts nothing, so that parameters have a gradient of 0.
                (rows, scales) = (vec![0], vec![0.0]);
            }
            let n = rows.len();
            let kept = KeptRows {
                rows: Tensor::<1, Int>::from_data(TensorData::new(rows, [n]), device),
                scale: Tensor::from_data(TensorData::new(scales, [n, 1]), device),
            };
            updates.keep_rows(name, kept);
        }
        updates
    }
}
