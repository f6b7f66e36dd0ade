//! What a head is.

use std::fmt::Debug;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};
use rand_chacha::ChaCha8Rng;

use super::classifier::Classifier;
use super::drift::{self, Drift};
use super::start::ColumnStart;
use super::state::HeadState;
use super::task::HeadTask;
use super::trained::TrainedHead;
use crate::error::TrainError;

/// A way to classify features. It knows of features and labels, and of no image or backbone.
pub trait Head: Debug + Send + Sync {
    /// Whether the steps of a method are all it learns by: then a method without steps cannot have
    /// it.
    fn needs_steps(&self) -> bool {
        false
    }

    /// Where new columns start under a method that starts them at `of_method`; the option `start`
    /// overrules both.
    fn start(&self, of_method: ColumnStart) -> ColumnStart {
        of_method
    }

    /// Columns of `n_new` classes for the steps of a task to train.
    fn columns(
        &self,
        start: ColumnStart,
        d_model: usize,
        n_new: usize,
        rng: &mut ChaCha8Rng,
        device: &Device,
    ) -> TrainedHead {
        start.draw(d_model, n_new, rng, device)
    }

    /// Logits `[batch, n_classes]` that the loss of a step compares, of `features: [batch, d_model]`;
    /// `trained` has the columns of the classes that are compared, and no others.
    fn logits(&self, trained: &TrainedHead, features: Tensor<2>) -> Tensor<2> {
        trained.linear(features)
    }

    /// What becomes of the statistics of old classes when the features change.
    fn drift(&self) -> Drift {
        Drift::Ignored
    }

    /// Whether [`before_task`](Self::before_task) wants the features of the task's images as they
    /// are before its first step; they cost one forward pass over the images.
    fn wants_features_before(&self) -> bool {
        self.drift() != Drift::Ignored
    }

    /// Sees the features of a task before its first step, and keeps them until [`fit`](Self::fit).
    ///
    /// # Errors
    ///
    /// When the features do not fit what the head keeps.
    fn before_task(
        &self,
        mut state: HeadState,
        task: &HeadTask<'_>,
    ) -> Result<HeadState, TrainError> {
        drift::keep_before(&mut state, task);
        Ok(state)
    }

    /// Whether [`fit`](Self::fit) is to be called after the last step of a task; it costs one forward
    /// pass over the images.
    fn is_fitted(&self) -> bool {
        false
    }

    /// Learns from the features of a task after its last step.
    ///
    /// # Errors
    ///
    /// When the features do not fit what the head keeps.
    fn fit(&self, state: HeadState, _task: &HeadTask<'_>) -> Result<HeadState, TrainError> {
        Ok(state)
    }

    /// Whether more images of a class that is known change what is kept of it.
    fn extends_classes(&self) -> bool {
        true
    }

    /// What predicts, over all classes seen; `None` before the first task.
    fn classifier(&self, state: &HeadState) -> Option<Classifier>;
}

/// A registered head.
#[derive(Debug)]
pub struct HeadEntry {
    /// Name in configuration files.
    pub name: &'static str,
    /// One line for the help text.
    pub summary: &'static str,
    /// Reads the options of the head.
    pub build: fn(&toml::Table) -> Result<Arc<dyn Head>, TrainError>,
}

impl HeadState {
    /// This state with columns for `n_new` more classes, all trainable; as it is where none is new.
    pub fn grown(
        mut self,
        head: &dyn Head,
        start: ColumnStart,
        d_model: usize,
        n_new: usize,
        rng: &mut ChaCha8Rng,
        device: &Device,
    ) -> Self {
        if n_new == 0 {
            return self;
        }
        let new = head.columns(start, d_model, n_new, rng, device);
        self.trained = Some(match self.trained.take() {
            Some(old) => old.grown(new),
            None => new,
        });
        self
    }
}
