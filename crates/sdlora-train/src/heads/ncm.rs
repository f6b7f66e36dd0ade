//! Nearest class mean by cosine: one direction per class, computed once and never changed.
//!
//! Means of an old task are not recomputed when a later task changes the features.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Classifier, Head, HeadEntry, HeadState, HeadTask};
use crate::error::TrainError;
use crate::features::ClassMeans;
use crate::options::parse;

pub(super) const ENTRY: HeadEntry = HeadEntry {
    name: "ncm",
    summary: "nearest class mean by cosine",
    build: |options| Ok(Arc::new(parse::<Ncm>("head (ncm)", options)?)),
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ncm {}

/// Unit-length class means `[n_classes, d_model]`.
const MEANS: &str = "means";

impl Head for Ncm {
    fn is_fitted(&self) -> bool {
        true
    }

    fn fit(&self, mut state: HeadState, task: &HeadTask<'_>) -> Result<HeadState, TrainError> {
        let new = ClassMeans::of(task.table);
        let d = new.d_model;
        let first = task.first_label * d;
        let mut means = state.rows(MEANS);
        means.truncate(first);
        means.extend_from_slice(new.means.get(first..).unwrap_or_default());
        state.set_rows(MEANS, vec![means.len() / d.max(1), d], means);
        Ok(state)
    }

    fn classifier(&self, state: &HeadState) -> Option<Classifier> {
        let means = state.per_class.get(MEANS)?;
        let &[_, d_model] = means.shape.as_slice() else {
            return None;
        };
        Some(Classifier::linear(means.values.clone(), d_model, None))
    }
}
