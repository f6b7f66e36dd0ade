//! What a run tells the outside while it goes on. Nothing here prints; the command line does.

use std::path::Path;

use sdlora_metrics::AccuracyMatrix;

use crate::run_log::RunLog;
use crate::tested::Tested;

/// Something that happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A run continues that was started before. Comes first.
    Resumed {
        /// The checkpoint it continues from; `None` where it has none yet and starts again.
        path: Option<&'a Path>,
        /// Task it continues in, from 0; the number of tasks when all are done.
        task_idx: usize,
        /// Steps of this task that are done.
        n_steps: usize,
        /// What [`Observer::mark`] said when the checkpoint was written.
        mark: Option<u64>,
        /// What the run has come to so far; `None` where the command keeps none.
        log: Option<&'a RunLog>,
    },
    /// Something the user should know.
    Notice {
        /// A sentence without a full stop.
        text: &'a str,
    },
    /// A task begins, or goes on after a resume.
    TaskStarted {
        /// Task, from 0.
        task_idx: usize,
        /// Tasks of the stream.
        n_tasks: usize,
        /// Classes of this task.
        n_new_classes: usize,
        /// Classes of all tasks so far, this one included.
        n_seen_classes: usize,
        /// Training images of this task.
        n_images: usize,
        /// Steps of this task; 0 for a method that does not step.
        n_steps: usize,
        /// Parameters that receive gradients.
        n_trained: usize,
    },
    /// A step was made.
    Step {
        /// Task, from 0.
        task_idx: usize,
        /// Epoch of the task, from 0.
        epoch: usize,
        /// Step of the task, from 0.
        step: usize,
        /// Steps of this task.
        n_steps: usize,
        /// Images of this step.
        n_images: usize,
        /// Loss before the step.
        loss: f64,
        /// Learning rate of the step.
        lr: f64,
    },
    /// A task was trained; its evaluation begins.
    TaskTrained {
        /// Task, from 0.
        task_idx: usize,
        /// Seconds of the task without evaluation, over all sessions.
        seconds: f64,
        /// Magnitudes after the task, one row per group; empty for methods without.
        magnitudes: &'a [Vec<f64>],
    },
    /// A row of the accuracy matrix is known.
    Evaluated {
        /// Task, from 0.
        task_idx: usize,
        /// All rows so far.
        matrix: &'a AccuracyMatrix,
        /// Mean accuracy over classes, each counting the same; `None` where none was tested.
        class_accuracy: Option<f64>,
        /// Seconds of evaluation.
        seconds: f64,
    },
    /// A checkpoint was written.
    Checkpointed {
        /// The checkpoint.
        path: &'a Path,
    },
    /// A task is over, and its checkpoint is written: a run that continues does not come back to it.
    TaskDone {
        /// Task, from 0.
        task_idx: usize,
        /// What the run has come to so far.
        log: &'a RunLog,
        /// The newest evaluation of this session; `None` before its first.
        tested: Option<&'a Tested>,
    },
}

/// Is told every event of a run, and may end it.
pub trait Observer {
    /// Called in order, on the thread that runs.
    fn event(&mut self, event: &Event<'_>);

    /// Called before a checkpoint is written: makes durable what was told so far, and returns what
    /// [`Event::Resumed`] is to give back, such as the length of a log.
    fn mark(&mut self) -> Option<u64> {
        None
    }

    /// Whether the run is to stop. Asked between steps and between the long parts of a run, which then
    /// keeps what it has and ends with [`TrainError::Stopped`](crate::TrainError::Stopped).
    fn wants_stop(&self) -> bool {
        false
    }
}

/// Ignores everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&mut self, _: &Event<'_>) {}
}
