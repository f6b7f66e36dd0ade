//! Ranges that the settings of several steps share.

use crate::error::ImageError;

/// Largest side a step may ask for, in pixels; keeps a mistyped size from filling the memory.
pub(crate) const MAX_STEP_SIDE: usize = 4096;

/// Largest ratio of a width to a height that a step accepts.
pub(crate) const MAX_RATIO: f64 = 1000.0;

/// Checks that a side lies in 1 to [`MAX_STEP_SIDE`].
pub(crate) fn check_side(setting: &str, side: usize) -> Result<(), ImageError> {
    if (1..=MAX_STEP_SIDE).contains(&side) {
        return Ok(());
    }
    let expected = format!("1 to {MAX_STEP_SIDE}");
    Err(ImageError::setting(setting, side, expected))
}

/// Checks that `pair` ascends and lies in (0, `largest`].
pub(crate) fn check_pair(
    setting: String,
    pair: (f64, f64),
    largest: f64,
) -> Result<(), ImageError> {
    if pair.0 > 0.0 && pair.0 <= pair.1 && pair.1 <= largest {
        return Ok(());
    }
    let expected = format!("an ascending pair above 0, at most {largest}");
    Err(ImageError::setting(setting, format!("{pair:?}"), expected))
}
