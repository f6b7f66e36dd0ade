//! What the user did wrong, apart from what failed: it decides on the exit code.

/// A mistake of the user rather than a failed run.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(pub String);
