//! Refuses streams on which the columns of a head learn nothing.

use crate::config::Plan;
use crate::error::TrainError;
use crate::heads;
use crate::methods::LossOver;
use crate::rooms::Rooms;

/// Refuses a head that learns by steps alone where a loss compares a single class: such a loss is exactly
/// 0, and so is its gradient.
///
/// # Errors
///
/// [`TrainError::Setting`] naming the first task with one class.
pub(crate) fn check(plan: &Plan, rooms: &Rooms) -> Result<(), TrainError> {
    let config = plan.config();
    if !plan.head().needs_steps() {
        return Ok(());
    }
    let lonely = match config.loss {
        LossOver::NewClasses => (0..rooms.n_rounds()).find(|&round| rooms.labels(round).len() == 1),
        LossOver::SeenClasses => (rooms.n_seen_classes(0) == 1).then_some(0),
    };
    let Some(task_idx) = lonely else {
        return Ok(());
    };
    let found = format!(
        "{}, and task {task_idx} (from 0) has one class, over which its loss is always 0",
        plan.head_name()
    );
    // The loss over all seen classes has something to compare from the second class on.
    let other_loss = match config.loss {
        LossOver::NewClasses if rooms.n_seen_classes(0) > 1 => "; or set `loss = \"seen-classes\"`",
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
