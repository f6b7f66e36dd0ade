//! The halves of a data set: what they are called, and the draw where nobody made them.

use std::collections::BTreeMap;

use rand::seq::SliceRandom;

use super::listed::Listed;
use crate::files::Files;
use crate::seed::{Purpose, generator};
use crate::split::Split;

/// What a folder or a word of a table calls a part of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// Images to learn from.
    Train,
    /// Images to choose settings with; they are the test half where there is no other.
    Validation,
    /// Images to measure accuracy on.
    Test,
}

impl Part {
    /// The part that a folder or a word names, in upper or lower case.
    pub(super) fn of(word: &str) -> Option<Self> {
        match word.to_ascii_lowercase().as_str() {
            "train" | "training" => Some(Self::Train),
            "val" | "valid" | "validation" => Some(Self::Validation),
            "test" | "testing" => Some(Self::Test),
            _ => None,
        }
    }

    /// The half it is, in a data set that has a part for testing or has none; nothing for a part that is held out.
    pub(super) fn split(self, has_test: bool) -> Option<Split> {
        match self {
            Self::Train => Some(Split::Train),
            Self::Test => Some(Split::Test),
            Self::Validation => (!has_test).then_some(Split::Test),
        }
    }
}

/// Moves a random part of each class to the test half; the draw depends on seed and file names alone.
///
/// Of two images or more, each half gets at least one.
pub(super) fn hold_out(listed: &mut [Listed], files: &Files, test_fraction: f64, seed: u64) {
    let mut by_class: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (at, image) in listed.iter().enumerate() {
        by_class.entry(image.class.clone()).or_default().push(at);
    }
    for (class_idx, mut members) in by_class.into_values().enumerate() {
        members.sort_by(|&a, &b| {
            files
                .name(listed[a].file_idx)
                .cmp(files.name(listed[b].file_idx))
        });
        let position = [u32::try_from(class_idx).unwrap_or(u32::MAX), 0, 0];
        members.shuffle(&mut generator(seed, Purpose::HoldOut, position));
        let n = members.len();
        let n_test = ((n as f64 * test_fraction).round() as usize)
            .max(1)
            .min(n.saturating_sub(1));
        for (rank, at) in members.into_iter().enumerate() {
            listed[at].split = if rank < n_test {
                Split::Test
            } else {
                Split::Train
            };
        }
    }
}
