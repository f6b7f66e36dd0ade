//! Where an update goes: a linear map of a model, by name.

use std::fmt;
use std::sync::Arc;

use crate::error::CoreError;

/// One adapted linear map of the model.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Site {
    /// Name by which the model asks for its update; unique among the sites of an adapter.
    pub name: Arc<str>,
    /// Group of sites that may share magnitudes, from 0; a block of the model, for instance.
    pub group: usize,
    /// Width of the input features.
    pub d_input: usize,
    /// Width of the output features.
    pub d_output: usize,
}

impl Site {
    /// Checks that a direction of this rank fits.
    ///
    /// # Errors
    ///
    /// [`CoreError::Rank`] for 0 and for a rank above either width.
    pub fn check_rank(&self, rank: usize) -> Result<(), CoreError> {
        let max = self.d_input.min(self.d_output);
        if (1..=max).contains(&rank) {
            return Ok(());
        }
        Err(CoreError::Rank {
            rank,
            site: self.to_string(),
            d_input: self.d_input,
            d_output: self.d_output,
            max,
        })
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
