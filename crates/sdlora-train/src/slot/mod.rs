//! What the running direction of a method can have besides plain factors: gates, chunks, masks, pruning, a rank
//! that depends on the block.
//!
//! Each came from a method of its own, and each is a setting of every method that begins directions by
//! [`TaskContext::begin_directions`](crate::methods::TaskContext::begin_directions). [`SlotSpec`] is the table
//! `slot` in the options of such a method; the default hooks of [`Method`](crate::methods::Method) carry it out.

mod beam;
mod kept;
mod patches;
mod pruning;
mod threshold;

use burn::tensor::{Device, Tensor, TensorData};
use sdlora_core::{ChunkLayout, Direction, DirectionForm, GateForm, HostFactors, Site, Updates};
use serde::{Deserialize, Serialize};

use crate::draws::{Draw, generator};
use crate::error::TrainError;
use crate::model::{Model, Part};
use crate::step_context::StepContext;

pub use beam::Beam;
pub(crate) use patches::PassPlace;
pub use patches::Patches;
pub use pruning::Pruning;
pub use threshold::{SoftThreshold, Thresholds};

/// Settings of a slot; the default is a plain direction.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotSpec {
    /// A gate that is driven to exact zeros, whose ranks disappear after the task (SoRA).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<SoftThreshold>,
    /// A gate by softmax, weak ranks give way to copies of strong ones (BeamLoRA).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beam: Option<Beam>,
    /// Factors that are expanded from chunks (PRoLoRA).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunks: Option<Chunking>,
    /// Masks over inputs and outputs while the direction is trained (LoRA Dropout).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropout: Option<Masks>,
    /// Down-projections lose their least important entries again and again (PRILoRA).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruning: Option<Pruning>,
    /// A gradient from some patches only (S-GRPO).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patches: Option<Patches>,
    /// Rank in the last block; that of the method is the rank in the first one, and the others lie on the line
    /// between them (PRILoRA).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_block_rank: Option<usize>,
}

/// How factors are cut into chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chunking {
    /// Chunks of either factor, at least 1.
    pub n: usize,
    /// Ranks with factors of their own.
    #[serde(default)]
    pub unshared: usize,
}

/// How many masks a step averages over, and what they drop.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Masks {
    /// Share of inputs and of outputs that is dropped, from 0 to below 1.
    #[serde(default = "half")]
    pub share: f64,
    /// Masks a step, each a forward and a backward pass; at least 1.
    #[serde(default = "two")]
    pub n_masks: usize,
}

fn half() -> f64 {
    0.5
}

fn two() -> usize {
    2
}

impl SlotSpec {
    /// Checks the ranges for the rank of a method.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] for the first setting out of its range, or two that exclude each other.
    pub fn check(&self, rank: usize) -> Result<(), TrainError> {
        let refuse = |name: &str, found: String, expected: &str| {
            Err(TrainError::setting(
                format!("method.slot.{name}"),
                found,
                expected,
            ))
        };
        if self.gate.is_some() && self.beam.is_some() {
            return refuse(
                "beam",
                "beside a `gate`".into(),
                "alone: a rank has one gate",
            );
        }
        if let Some(gate) = &self.gate {
            gate.check()?;
        }
        if let Some(beam) = &self.beam {
            beam.check()?;
        }
        if let Some(pruning) = &self.pruning {
            pruning.check()?;
            if self.chunks.is_some() {
                let expected = "without `chunks`: an entry of a chunk stands for several inputs";
                return refuse("pruning", "beside `chunks`".into(), expected);
            }
        }
        if let Some(masks) = self.dropout
            && masks.n_masks == 0
        {
            return refuse("dropout.n_masks", "0".into(), "at least 1");
        }
        if let Some(patches) = self.patches {
            patches.check("method.slot.patches.probability")?;
        }
        if self.beam.is_some() && self.chunks.is_some() {
            let expected = "without `chunks`: the ranks of a chunk are not apart";
            return refuse("beam", "beside `chunks`".into(), expected);
        }
        if self.last_block_rank == Some(0) {
            return refuse("last_block_rank", "0".into(), "at least 1");
        }
        let least = self.last_block_rank.map_or(rank, |last| last.min(rank));
        if let Some(chunks) = self.chunks
            && chunks.unshared > least
        {
            let expected = "at most the smallest rank of a block";
            return refuse("chunks.unshared", chunks.unshared.to_string(), expected);
        }
        self.form().check(rank).map_err(TrainError::from)
    }

    /// What a direction of this slot is built of.
    pub fn form(&self) -> DirectionForm {
        let of_beam = self.beam.as_ref().map(Beam::form);
        DirectionForm {
            gate: self.gate.as_ref().map(|_| GateForm::Linear).or(of_beam),
            chunks: self.chunks.map(|chunks| ChunkLayout {
                n_input: chunks.n,
                n_output: chunks.n,
                unshared: chunks.unshared,
            }),
            dropout: self.dropout.map(|masks| masks.share),
        }
    }

    /// The rank of a site in a group of sites, a block, of which there are `n_groups`, where the rank of the first
    /// is `rank`.
    pub fn rank(&self, rank: usize, group: usize, n_groups: usize) -> usize {
        let Some(last) = self.last_block_rank else {
            return rank;
        };
        let along = group as f64 / n_groups.saturating_sub(1).max(1) as f64;
        let (first, last) = (rank as f64, last as f64);
        (first + (last - first) * along).round() as usize
    }

    /// The directions that begin on these sites in a task.
    pub(crate) fn directions(
        &self,
        sites: &[Site],
        rank: usize,
        rng: &mut impl rand::Rng,
        device: &Device,
    ) -> Vec<Direction> {
        let n_groups = sites.iter().map(|site| site.group + 1).max().unwrap_or(0);
        let form = self.form();
        let begun = sites.iter().map(|site| {
            let rank = self.rank(rank, site.group, n_groups);
            let mut direction = Direction::init_as(form, site, rank, rng, device);
            if let (Some(_), Some(gate)) = (&self.gate, &mut direction.gate) {
                threshold::draw(gate, rng, device);
            }
            direction
        });
        begun.collect()
    }

    /// Forward passes that a step averages over.
    pub fn n_masks(&self) -> usize {
        self.dropout.map_or(1, |masks| masks.n_masks)
    }

    /// Factor on the learning rate of a part.
    pub fn lr_factor(&self, part: Part) -> f64 {
        match (part, &self.gate) {
            (Part::Gates, Some(gate)) => gate.lr_factor,
            _ => 1.0,
        }
    }

    /// Added to the loss of every step.
    pub fn penalty(&self, model: &Model) -> Option<Tensor<1>> {
        self.gate.as_ref()?.penalty(model)
    }

    /// What follows a step.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] where pruning has no images to take norms of.
    pub fn after_step(&self, mut model: Model, step: &StepContext) -> Result<Model, TrainError> {
        if let Some(gate) = &self.gate {
            model = gate.after_step(model, step);
        }
        if let Some(beam) = &self.beam {
            model = beam.after_step(model, step);
        }
        match &self.pruning {
            None => Ok(model),
            Some(pruning) => pruning.after_step(model, step),
        }
    }

    /// What follows the last step of a task: ranks with a gate of 0 disappear, and the gate goes into the factors.
    pub fn after_task(&self, mut model: Model, device: &Device) -> Model {
        if self.gate.is_some() {
            for bank in &mut model.adapter.sites {
                bank.current = bank
                    .current
                    .take()
                    .map(|current| compacted(current, device));
            }
        }
        model
    }
}

/// The updates of a forward pass in training: under masks where directions have them, with a gradient from some patches
/// where a slot says so.
pub(crate) fn training_updates(
    model: &Model,
    patches: Option<Patches>,
    place: &PassPlace,
    device: &Device,
) -> Updates {
    let updates = match model.adapter.has_masks() {
        false => model.adapter.updates(),
        true => {
            // Far more words than a pass can draw lie between two passes.
            let mut rng = generator(place.seed, Draw::Masks, place.task_idx);
            rng.set_word_pos((place.pass as u128) << 32);
            model.adapter.masked_updates(&mut rng)
        }
    };
    match patches {
        None => updates,
        Some(patches) => patches.on(updates, model, place, device),
    }
}

/// A direction without the ranks whose gate is 0, as plain factors with the gate inside. Where every gate is 0,
/// one rank of zeros is left.
fn compacted(current: Direction, device: &Device) -> Direction {
    let Some(gate) = &current.gate else {
        return current;
    };
    let gate = gate.factors_host();
    let HostFactors { a, b, rank } = current.to_host();
    let mut live: Vec<usize> = (0..rank).filter(|&k| gate[k] != 0.0).collect();
    if live.is_empty() {
        live.push(0);
    }
    let (n_rows, n_columns) = (a.len() / rank, b.len() / rank);
    let kept_a = a
        .chunks_exact(rank)
        .flat_map(|row| live.iter().map(|&k| row[k]));
    let kept_b = live
        .iter()
        .flat_map(|&k| b[k * n_columns..(k + 1) * n_columns].iter().copied());
    Direction::from_factors(
        TensorData::new(kept_a.collect::<Vec<f32>>(), [n_rows, live.len()]),
        TensorData::new(kept_b.collect::<Vec<f32>>(), [live.len(), n_columns]),
        device,
    )
}
