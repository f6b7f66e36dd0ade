//! What came of reading a weight file.

use std::fmt;

/// What fitted and what did not, by name, when a file met a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WeightReport {
    /// Tensors that were loaded.
    pub applied: Vec<String>,
    /// Tensors the model needs and the file lacks.
    pub missing: Vec<String>,
    /// Tensors of the file the model has no place for (a classifier head, for instance).
    pub unused: Vec<String>,
    /// Tensors whose shape or number format does not fit, with both.
    pub misfit: Vec<String>,
}

impl WeightReport {
    /// Whether every tensor of the model was loaded.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.misfit.is_empty()
    }
}

impl fmt::Display for WeightReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tensors applied", self.applied.len())?;
        for (what, names) in [
            ("missing", &self.missing),
            ("wrong shape or type", &self.misfit),
            ("unused", &self.unused),
        ] {
            if !names.is_empty() {
                write!(f, ", {} {what} ({})", names.len(), names.join(", "))?;
            }
        }
        Ok(())
    }
}
