//! Where an update goes: a linear map of a model, by name.

use std::fmt;
use std::sync::Arc;

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

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
