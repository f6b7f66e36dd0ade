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

/// Names of a kind that are shown: a training checkpoint has thousands of unused tensors.
const MAX_SHOWN: usize = 8;

/// The first names, and how many more there are.
fn shortened(names: &[String]) -> String {
    let shown = names[..names.len().min(MAX_SHOWN)].join(", ");
    match names.len().saturating_sub(MAX_SHOWN) {
        0 => shown,
        n_more => format!("{shown} and {n_more} more"),
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
                write!(f, ", {} {what} ({})", names.len(), shortened(names))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_counted_and_not_written_out() {
        let report = WeightReport {
            unused: (0..1000).map(|i| format!("optimizer.{i}")).collect(),
            ..WeightReport::default()
        };
        let text = report.to_string();
        assert!(
            text.contains("1000 unused") && text.ends_with("and 992 more)"),
            "{text}"
        );
        assert!(text.len() < 300, "{text}");
    }
}
