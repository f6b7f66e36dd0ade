//! What a diagnostic is: a name and a function that looks at a run.

use super::finding::Finding;
use super::subject::Subject;

/// A question to a run.
pub(super) struct Diagnostic {
    /// Name on the command line and of its files.
    pub name: &'static str,
    /// One line for the help text.
    pub summary: &'static str,
    /// Whether it is asked only by name, because it trains.
    pub is_costly: bool,
    /// Answers it.
    pub ask: fn(&mut Subject) -> anyhow::Result<Finding>,
}
