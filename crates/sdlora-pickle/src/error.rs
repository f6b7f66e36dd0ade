//! Errors of this crate.

/// What went wrong, as the end of a sentence.
pub type Problem = String;

/// Where a pickle went wrong and how.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem} (byte {offset})")]
pub struct PickleError {
    /// Position in the pickle, behind the instruction.
    pub offset: usize,
    /// What went wrong.
    pub problem: Problem,
}
