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
    let backbone = model.merged_backbone();
    let classifier = model.classifier(head)?;
    let device = device.clone().inner();
    tests
        .iter()
        .map(|loader| {
            let table = FeatureTable::extract(&backbone, loader, &device)?;
            Ok(accuracy(&classifier.predict(&table), &table.labels))
        })
        .collect()
}
