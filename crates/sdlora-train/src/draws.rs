//! Random generators of a run, each for one purpose in one task, never by the order in which they are made.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// What a generator is for; it keeps the streams of equal seeds and tasks apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Draw {
    /// New columns of a head.
    HeadColumns,
    /// Factors of a new direction.
    Direction,
    /// Partners and shares of mixed images.
    Mix,
    /// Features that a classifier is aligned on.
    Alignment,
    /// The projection of random features.
    Projection,
    /// Prompts.
    Prompts,
    /// Masks of a slot.
    Masks,
    /// Fixed directions of CLoRA.
    Bases,
    /// Which direction of a chain a step trains.
    Chain,
    /// Paths of labels.
    LabelPaths,
    /// Branches of DualLoRA.
    Branches,
    /// Patches that a step keeps.
    Patches,
    /// Masks of the passes of an ensemble.
    EnsemblePasses,
    /// Images that are found by inversion.
    Pixels,
    /// Tasks of a meta-training.
    MetaTasks,
}

impl Draw {
    /// Every purpose.
    #[cfg(test)]
    const ALL: [Self; 15] = [
        Self::HeadColumns,
        Self::Direction,
        Self::Mix,
        Self::Alignment,
        Self::Projection,
        Self::Prompts,
        Self::Masks,
        Self::Bases,
        Self::Chain,
        Self::LabelPaths,
        Self::Branches,
        Self::Patches,
        Self::EnsemblePasses,
        Self::Pixels,
        Self::MetaTasks,
    ];

    /// Number of the stream. Another number draws other values, so none changes: results would.
    const fn stream(self) -> u64 {
        match self {
            Self::HeadColumns => 1,
            Self::Direction => 2,
            Self::Mix => 3,
            Self::Alignment => 0x10,
            Self::Projection => 0x11,
            Self::Prompts => 0x50,
            Self::Masks | Self::Bases => 0x60,
            Self::Chain | Self::LabelPaths => 0x61,
            Self::Branches => 0x64,
            Self::Patches => 0x65,
            Self::EnsemblePasses => 0x66,
            Self::Pixels => 0x67,
            Self::MetaTasks => 0x68,
        }
    }
}

/// A generator for one purpose in one task: nothing has to be carried from task to task, so a
/// resumed run draws what an unbroken one does.
pub(crate) fn generator(seed: u64, draw: Draw, task_idx: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream((draw.stream() << 32) | task_idx as u64);
    rng
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Purposes that have shared a stream since they were released.
    const SHARED: [[Draw; 2]; 2] = [[Draw::Masks, Draw::Bases], [Draw::Chain, Draw::LabelPaths]];

    #[test]
    fn every_purpose_has_a_stream_of_its_own_but_for_two_old_pairs() {
        for (i, &a) in Draw::ALL.iter().enumerate() {
            for &b in &Draw::ALL[..i] {
                let is_known = SHARED.contains(&[b, a]);
                assert_eq!(a.stream() == b.stream(), is_known, "{a:?} and {b:?}");
            }
        }
    }
}
