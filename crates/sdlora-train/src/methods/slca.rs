//! SLCA: the whole backbone trained slowly, the head at its own rate, and the head aligned after
//! every task on features sampled from class Gaussians (Zhang et al. 2023, ICCV, "SLCA: Slow Learner
//! with Classifier Alignment for Continual Learning on a Pre-trained Model", sections 3.2 and 3.3).
//!
//! The alignment is that of the `gaussian` head, which is the head where none is named; with
//! `head = "linear"` what is left is the slow learner alone.

use serde::{Deserialize, Serialize};

use super::finetune::train_all;
use super::{Method, MethodEntry, TaskContext, parse};
use crate::error::TrainError;
use crate::heads::{ColumnStart, HeadConfig};
use crate::model::{Model, Part};

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "slca",
    summary: "the whole backbone at a small learning rate, a head aligned on class Gaussians",
    build: |options| {
        let method: Slca = parse("slca", options)?;
        let factor = method.backbone_lr;
        if factor.is_finite() && factor > 0.0 {
            return Ok(Box::new(method));
        }
        Err(TrainError::setting(
            "method.backbone_lr",
            factor,
            "a finite number greater than 0",
        ))
    },
    second_pass: None,
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Slca {
    /// Factor on the learning rate of everything but the head.
    #[serde(default = "default_backbone_lr")]
    backbone_lr: f64,
}

/// The published rates are 1e-4 and 1e-2 (section 4.1).
fn default_backbone_lr() -> f64 {
    0.01
}

impl Method for Slca {
    fn before_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        Ok(train_all(model, task))
    }

    fn default_head(&self) -> HeadConfig {
        HeadConfig::named("gaussian")
    }

    fn lr_factor(&self, part: Part) -> f64 {
        match part {
            Part::Backbone => self.backbone_lr,
            _ => 1.0,
        }
    }

    fn column_start(&self) -> ColumnStart {
        ColumnStart::Normal
    }
}
