//! What the training of a task leaves besides its weights.

use serde::{Deserialize, Serialize};

/// Position and log of a task in training.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskLog {
    /// Loss of every step so far, before its update; its length is the position.
    pub losses: Vec<f64>,
    /// Seconds of the steps, over all sessions.
    pub seconds: f64,
    /// Seconds of what method and head compute before and after the steps, over all sessions: looks at
    /// the images, statistics, solves, alignment.
    #[serde(default)]
    pub around_seconds: f64,
    /// Steps with the relative residual of the running direction on the earlier ones after them,
    /// mean over the sites; empty unless asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub residuals: Vec<(usize, f64)>,
}

impl TaskLog {
    /// Seconds of all that a task costs but its evaluation.
    pub fn total_seconds(&self) -> f64 {
        self.seconds + self.around_seconds
    }
}
