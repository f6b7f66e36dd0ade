//! Generators for the tests of this crate.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// The generator at `position` under `seed`; different inputs give different generators.
pub(crate) fn generator(seed: u64, position: [u32; 3]) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8] = 2;
    for (slot, value) in key[16..28].chunks_exact_mut(4).zip(position) {
        slot.copy_from_slice(&value.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}
