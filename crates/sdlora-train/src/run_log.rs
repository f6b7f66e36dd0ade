//! The log of a run: its accuracies, losses and seconds.

use sdlora_metrics::AccuracyMatrix;
use serde::{Deserialize, Serialize};

use crate::heads::FloatsStored;
use crate::task_log::TaskLog;

/// Everything a run learned besides its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunLog {
    /// Accuracy after each task on each task seen.
    pub matrix: AccuracyMatrix,
    /// Losses and seconds of every task; the last may be in progress.
    pub tasks: Vec<TaskLog>,
    /// Seconds of evaluation after every task.
    pub eval_seconds: Vec<f64>,
    /// Magnitudes after every task, one row per group.
    pub magnitudes: Vec<Vec<Vec<f64>>>,
    /// Parameters that received gradients in every task.
    pub n_trained: Vec<usize>,
    /// Numbers that head and method keep of old tasks, after every task; absent in logs of earlier versions.
    #[serde(default)]
    pub floats_stored: Vec<FloatsStored>,
    /// Test images of every class by label, and how many of them were right, after the newest evaluation; absent in
    /// logs of earlier versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<ClassScore>,
}

/// How a class was tested.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassScore {
    /// Test images; 0 where none are left.
    pub n_images: usize,
    /// Images that were named rightly.
    pub n_right: usize,
}

impl ClassScore {
    /// Accuracy, a fraction; `None` without images.
    pub fn accuracy(&self) -> Option<f64> {
        (self.n_images > 0).then(|| self.n_right as f64 / self.n_images as f64)
    }
}

impl RunLog {
    pub(crate) fn new(matrix: AccuracyMatrix) -> Self {
        Self {
            matrix,
            tasks: Vec::new(),
            eval_seconds: Vec::new(),
            magnitudes: Vec::new(),
            n_trained: Vec::new(),
            floats_stored: Vec::new(),
            classes: Vec::new(),
        }
    }

    /// Mean accuracy **over classes** after the newest evaluation, each class counting the same; `None` where no
    /// class was tested.
    pub fn class_accuracy(&self) -> Option<f64> {
        let tested: Vec<f64> = self
            .classes
            .iter()
            .filter_map(ClassScore::accuracy)
            .collect();
        sdlora_metrics::mean(&tested)
    }

    /// Checks that as many entries are there as rounds are over, or one more of what is known before the end.
    pub(crate) fn check(&self, n_done: usize) -> Result<(), String> {
        let begun = [self.tasks.len(), self.n_trained.len()];
        let is_whole = begun[0] == begun[1]
            && (begun[0] == n_done || begun[0] == n_done + 1)
            && self.eval_seconds.len() == n_done
            && (self.magnitudes.len() == n_done || self.magnitudes.len() == begun[0]);
        match is_whole {
            true => Ok(()),
            false => Err(format!(
                "its log does not fit the {n_done} tasks it says are done"
            )),
        }
    }

    /// Whether only the evaluation of a round is missing.
    pub(crate) fn is_trained(&self, round: usize) -> bool {
        self.magnitudes.len() > round
    }
}
