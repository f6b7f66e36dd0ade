//! The entry to a run.

use crate::config::Plan;
use crate::error::TrainError;
use crate::finished::Finished;
use crate::observer::Observer;
use crate::run_options::RunOptions;
use crate::session::Session;

/// Runs a plan: for each round grow the model, train it, fit the head, evaluate, save.
///
/// # Errors
///
/// Those of settings, files, images and training; what was checkpointed stays usable.
/// [`TrainError::Stopped`] when the observer wants it; [`Start::Resume`](crate::Start::Resume) then goes on.
/// [`TrainError::Setting`] for an empty list of devices, and [`TrainError::Device`] when a device gives up.
pub fn run(
    plan: &Plan,
    options: &RunOptions,
    observer: &mut dyn Observer,
) -> Result<Finished, TrainError> {
    let mut session = Session::open(plan, options, observer)?;
    while let Some(round) = session.next_round() {
        session = session
            .grow(round)?
            .train(round)?
            .fit(round)?
            .evaluate(round)?
            .save(round)?;
    }
    session.finish()
}
