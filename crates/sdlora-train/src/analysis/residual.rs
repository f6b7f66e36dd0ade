//! Whether later directions repeat earlier ones.

use super::trained::TrainedRun;
use crate::error::TrainError;

/// Residual of the direction of every task on the span of the earlier ones, `[site][direction]`, see
/// [`Adapter::span_residuals`](sdlora_core::Adapter::span_residuals), with the names of the sites.
///
/// Directions are frozen after their task, so the last kept round has all of them.
///
/// # Errors
///
/// Those of the checkpoint.
pub fn direction_residuals(run: &TrainedRun) -> Result<(Vec<String>, Vec<Vec<f64>>), TrainError> {
    let (model, _) = run.model_after(run.last_round())?;
    let names = model.adapter.sites.iter();
    let names = names.map(|site| site.site().to_string()).collect();
    Ok((names, model.adapter.span_residuals()))
}
