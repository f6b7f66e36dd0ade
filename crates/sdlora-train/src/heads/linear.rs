//! The linear classifier that the steps of a task train.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Classifier, Head, HeadEntry, HeadState};
use crate::options::parse;

pub(super) const ENTRY: HeadEntry = HeadEntry {
    name: "linear",
    summary: "a linear classifier, trained by the steps of a task",
    build: |options| Ok(Arc::new(parse::<Linear>("head (linear)", options)?)),
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Linear {}

impl Head for Linear {
    fn needs_steps(&self) -> bool {
        true
    }

    fn classifier(&self, state: &HeadState) -> Option<Classifier> {
        let trained = state.trained.as_ref()?;
        let (rows, d_model) = trained.rows();
        Some(Classifier::linear(rows, d_model, trained.bias_host()))
    }
}
