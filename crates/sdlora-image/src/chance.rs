//! Steps that happen with a probability.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::error::ImageError;

/// Checks that a probability lies in 0 to 1; `setting` names it in the error.
pub(crate) fn check_probability(setting: &str, probability: f64) -> Result<(), ImageError> {
    if (0.0..=1.0).contains(&probability) {
        return Ok(());
    }
    Err(ImageError::setting(setting, probability, "0 to 1"))
}

/// True with this probability: never at 0, always at 1.
pub(crate) fn happens(probability: f64, rng: &mut ChaCha8Rng) -> bool {
    rng.random::<f64>() < probability
}
