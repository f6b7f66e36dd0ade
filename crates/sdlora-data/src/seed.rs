//! Random generators that depend only on what they are for, never on the order in which they are made.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// What a generator is for; keeps streams of equal seed and position apart.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    /// Order of the samples of one epoch.
    EpochOrder = 1,
    /// Augmentation of one sample in one epoch.
    Augment = 2,
    /// Which samples of a class are held out.
    HoldOut = 3,
    /// Noise that belongs to one image in every epoch.
    Appearance = 4,
    /// Which task trains on which images of a class that comes again.
    Repeat = 5,
}

/// The generator of `purpose` at `position` (for instance task, epoch, sample) under the run's `seed`.
///
/// The 256-bit key of ChaCha is the seed, the purpose and the position side by side, so different inputs never share
/// a key.
pub(crate) fn generator(seed: u64, purpose: Purpose, position: [u32; 3]) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8] = purpose as u8;
    for (slot, value) in key[16..28].chunks_exact_mut(4).zip(position) {
        slot.copy_from_slice(&value.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng;

    #[test]
    fn every_part_of_the_key_changes_the_stream() {
        let first = |seed, purpose, position| generator(seed, purpose, position).next_u64();
        let base = first(1, Purpose::Augment, [0, 0, 0]);
        assert_eq!(base, first(1, Purpose::Augment, [0, 0, 0]));
        for other in [
            first(2, Purpose::Augment, [0, 0, 0]),
            first(1, Purpose::EpochOrder, [0, 0, 0]),
            first(1, Purpose::Augment, [1, 0, 0]),
            first(1, Purpose::Augment, [0, 1, 0]),
            first(1, Purpose::Augment, [0, 0, 1]),
        ] {
            assert_ne!(base, other);
        }
    }
}
