//! Refuses streams on which the columns of a head learn nothing.

use crate::config::Plan;
use crate::error::TrainError;
use crate::heads;
use crate::methods::LossOver;
use crate::run_data::Round;

/// Refuses a head that learns by steps alone where a loss compares a single class: such a loss is exactly
/// 0, and so is its gradient.
///
/// # Errors
///
/// [`TrainError::Setting`] naming the first task with one class.
pub(crate) fn check(plan: &Plan, rounds: &[Round]) -> Result<(), TrainError> {
    let config = plan.config();
    if !plan.head().needs_steps() {
        return Ok(());
    }
    let n_first = rounds.first().map_or(0, Round::n_seen_classes);
    let lonely = match config.loss {
        LossOver::NewClasses => rounds.iter().position(|round| round.labels.len() == 1),
        LossOver::SeenClasses => (n_first == 1).then_some(0),
    };
    let Some(task_idx) = lonely else {
        return Ok(());
    };
    let found = format!(
        "{}, and task {} has one class, over which its loss is always 0",
        plan.head_name(),
        task_idx + 1
    );
    // The loss over all seen classes has something to compare from the second class on.
    let other_loss = match config.loss {
        LossOver::NewClasses if n_first > 1 => "; or set `loss = \"seen-classes\"`",
        _ => "",
    };
    Err(TrainError::setting(
        "head",
        found,
        format!(
            "one of {}, which learn from features{other_loss}; or put two classes or more into every task",
            heads::without_steps().join(", ")
        ),
    ))
}
