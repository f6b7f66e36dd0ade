//! How many numbers are kept of old classes.

use serde::{Deserialize, Serialize};

/// Numbers that are kept of classes and tasks whose images are gone, each a 32-bit float.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FloatsStored {
    /// For every class.
    pub per_class: usize,
    /// Once.
    pub shared: usize,
    /// For all classes seen.
    pub total: usize,
}
