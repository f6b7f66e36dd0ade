//! Options that methods read and checks that several of them make.

use sdlora_vit::Projection;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::TrainError;
use crate::slot::{Pruning, SlotSpec};

/// Reads options as the type of a method.
pub(crate) fn parse<T: Serialize + DeserializeOwned>(
    method: &str,
    options: &toml::Table,
) -> Result<T, TrainError> {
    crate::options::parse(&format!("method ({method})"), options)
}

pub(crate) fn default_rank() -> usize {
    10
}

pub(crate) fn query_and_value() -> Vec<Projection> {
    vec![Projection::Query, Projection::Value]
}

/// Half the width of the uniform distribution that prompts and keys of L2P and DualPrompt are drawn
/// from. Published code draws from U(0, 0.01).
///
/// Deviates: here the distribution is symmetric, so that no two keys start in the same direction.
pub(crate) fn default_spread() -> f32 {
    0.01
}

/// Refuses counts of 0.
pub(crate) fn check_counts(counts: &[(&str, usize)]) -> Result<(), TrainError> {
    match counts.iter().find(|(_, count)| *count == 0) {
        Some((name, _)) => Err(TrainError::setting(
            format!("method.{name}"),
            0,
            "at least 1",
        )),
        None => Ok(()),
    }
}

/// Refuses a slot that does not make sense for a rank and these projections.
pub(crate) fn check_slot(
    slot: &SlotSpec,
    projections: &[Projection],
    rank: usize,
) -> Result<(), TrainError> {
    if slot.pruning.is_some() {
        Pruning::check_projections(projections)?;
    }
    slot.check(rank)
}

/// Refuses an empty list of projections, which leaves nothing to train, one that is not among `known`, and
/// one named twice: its second direction would never be read, and so never get a gradient.
pub(crate) fn check_projections(
    projections: &[Projection],
    known: &[Projection],
) -> Result<(), TrainError> {
    let names = |list: &[Projection]| -> String {
        let names: Vec<_> = list.iter().map(|p| p.name()).collect();
        names.join(", ")
    };
    let is_twice = |i: usize| projections[..i].contains(&projections[i]);
    let is_wrong = |i: usize| !known.contains(&projections[i]) || is_twice(i);
    if projections.is_empty() || (0..projections.len()).any(is_wrong) {
        return Err(TrainError::setting(
            "method.projections",
            format!("[{}]", names(projections)),
            format!("one or more of {}, each once", names(known)),
        ));
    }
    Ok(())
}

/// Refuses, of a list of blocks as it is typed, one without any or with one twice; whether the backbone has
/// them is asked by [`check_blocks`].
pub(crate) fn check_block_list(setting: &str, blocks: Option<&[usize]>) -> Result<(), TrainError> {
    let Some(blocks) = blocks else {
        return Ok(());
    };
    let is_twice = |i: usize| blocks[..i].contains(&blocks[i]);
    if blocks.is_empty() || (0..blocks.len()).any(is_twice) {
        return Err(TrainError::setting(
            format!("method.{setting}"),
            format!("{blocks:?}"),
            "one or more blocks, each once, or none of the key to have the default",
        ));
    }
    Ok(())
}

/// Refuses blocks that the backbone lacks or that are named twice.
pub(crate) fn check_blocks(
    setting: &str,
    blocks: &[usize],
    depth: usize,
) -> Result<(), TrainError> {
    let is_twice = |i: usize| blocks[..i].contains(&blocks[i]);
    if (0..blocks.len()).any(|i| blocks[i] >= depth || is_twice(i)) {
        return Err(TrainError::setting(
            format!("method.{setting}"),
            format!("{blocks:?}"),
            format!(
                "different blocks of the backbone, from 0 to {}",
                depth.saturating_sub(1)
            ),
        ));
    }
    Ok(())
}
