//! Evaluation on the test halves of all tasks seen: one row of the accuracy matrix.

use burn::tensor::Device;
use sdlora_data::Loader;

use crate::error::TrainError;
use crate::features::{FeatureTable, accuracy};
use crate::heads::Head;
use crate::model::Model;

/// Accuracy, a fraction over images, on each of the given test sets, by one argmax over all classes
/// seen; no task id is used. The model is merged once, then costs what the plain backbone costs.
///
/// # Errors
///
/// Those of reading the images.
pub fn evaluate(
    model: &Model,
    head: &dyn Head,
    tests: &[Loader],
    device: &Device,
) -> Result<Vec<f64>, TrainError> {
    let row = evaluate_unless(model, head, tests, device, &mut || false)?;
    Ok(row.unwrap_or_default())
}

/// [`evaluate`], or `None` when `stops` says so between two test sets.
pub(crate) fn evaluate_unless(
    model: &Model,
    head: &dyn Head,
    tests: &[Loader],
    device: &Device,
    stops: &mut dyn FnMut() -> bool,
) -> Result<Option<Vec<f64>>, TrainError> {
    let extractor = model.extractor();
    let classifier = model.classifier(head)?;
    let device = device.clone().inner();
    let mut row = Vec::with_capacity(tests.len());
    for loader in tests {
        if stops() {
            return Ok(None);
        }
        let table = FeatureTable::extract(&extractor, loader, &device)?;
        row.push(accuracy(&classifier.predict(&table), &table.labels));
    }
    Ok(Some(row))
}
