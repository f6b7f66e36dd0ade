//! Evaluation on the test halves of all tasks seen: one row of the accuracy matrix.

use std::ops::Range;

use burn::tensor::{Device, Tensor};
use sdlora_data::Loader;

use crate::error::TrainError;
use crate::extractor::Extractor;
use crate::features::{FeatureTable, accuracy};
use crate::heads::Head;
use crate::model::Model;
use crate::run_data::EVAL_BATCH;
use crate::tested::{Of, Tested};

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
    let classifier = model.classifier(head)?;
    let tables = features(&model.extractor(), tests, device, &mut || false)?;
    let tables = tables.unwrap_or_default();
    Ok(tables
        .iter()
        .map(|table| accuracy(&classifier.predict(table), &table.labels))
        .collect())
}

/// The test images of a run, with their features as long as those stay what they are.
pub(crate) struct Evaluator {
    /// One for every task.
    tests: Vec<Loader>,
    /// Of the first tasks.
    features: Vec<FeatureTable>,
    /// Names of all classes by their labels.
    class_names: Vec<String>,
    /// Labels of the new classes of every task.
    new_labels: Vec<Range<usize>>,
}

impl Evaluator {
    pub(crate) fn new(
        tests: Vec<Loader>,
        class_names: Vec<String>,
        new_labels: Vec<Range<usize>>,
    ) -> Self {
        Self {
            tests,
            features: Vec::new(),
            class_names,
            new_labels,
        }
    }

    /// That of a run whose first tasks have these features, kept from before.
    pub(crate) fn with_features(self, features: Vec<FeatureTable>) -> Self {
        Self { features, ..self }
    }

    /// What the model says of the test images of the first `n_tasks` tasks, or `None` when `stops` says so before all
    /// are done. The accuracies are those of [`evaluate`]. `is_changed` says whether features may have changed since
    /// the last call; where they have not, only new tasks are read.
    ///
    /// # Errors
    ///
    /// Those of reading the images.
    pub(crate) fn test(
        &mut self,
        model: &Model,
        head: &dyn Head,
        n_tasks: usize,
        is_changed: bool,
        device: &Device,
        stops: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Tested>, TrainError> {
        if is_changed {
            self.features.clear();
        }
        let classifier = model.classifier(head)?;
        if !self.completes(&model.extractor(), n_tasks, device, stops)? {
            return Ok(None);
        }
        Ok(Some(Tested::of(
            &classifier,
            &self.features[..n_tasks],
            Of {
                tests: &self.tests[..n_tasks],
                class_names: &self.class_names,
                new_labels: &self.new_labels[..n_tasks],
            },
        )))
    }

    /// Reads the test images of those of the first `n_tasks` tasks whose features are not known; false when `stops`
    /// says so before.
    fn completes(
        &mut self,
        extractor: &Extractor,
        n_tasks: usize,
        device: &Device,
        stops: &mut dyn FnMut() -> bool,
    ) -> Result<bool, TrainError> {
        let n_known = self.features.len().min(n_tasks);
        let new = &self.tests[n_known..n_tasks];
        let Some(new) = features(extractor, new, device, stops)? else {
            return Ok(false);
        };
        self.features.extend(new);
        Ok(true)
    }

    /// Features of the test images of all tasks.
    ///
    /// # Errors
    ///
    /// Those of reading the images.
    pub(crate) fn into_features(
        mut self,
        extractor: &Extractor,
        device: &Device,
    ) -> Result<Vec<FeatureTable>, TrainError> {
        let n_tasks = self.tests.len();
        self.completes(extractor, n_tasks, device, &mut || false)?;
        Ok(self.features)
    }
}

/// Features of the images of every loader in its order, computed in full batches: a task may have few images.
/// `None` when `stops` says so between two batches.
///
/// # Errors
///
/// Those of reading the images.
pub(crate) fn features(
    extractor: &Extractor,
    loaders: &[Loader],
    device: &Device,
    stops: &mut dyn FnMut() -> bool,
) -> Result<Option<Vec<FeatureTable>>, TrainError> {
    let device = device.clone().inner();
    let d_model = extractor.width();
    let mut all = FeatureTable::default();
    let mut labels: Vec<Vec<usize>> = vec![Vec::new(); loaders.len()];
    let (mut waiting, mut n_waiting): (Vec<Tensor<4>>, usize) = (Vec::new(), 0);
    // Reading waits for the device. What was launched last is read after the next batch has been launched, so that a
    // device with a queue computes while the host decodes and uploads.
    let mut launched = None;
    let mut compute = |waiting: &mut Vec<Tensor<4>>| {
        if !waiting.is_empty() {
            let images = Tensor::cat(std::mem::take(waiting), 0);
            if let Some(before) = launched.replace(extractor.read(images)) {
                all.extend(before);
            }
        }
    };
    for (loader, labels) in loaders.iter().zip(&mut labels) {
        for batch in loader.epoch(0, &device) {
            if stops() {
                return Ok(None);
            }
            let batch = batch?;
            let n = batch.labels_host.len();
            if n_waiting + n > EVAL_BATCH {
                compute(&mut waiting);
                n_waiting = 0;
            }
            n_waiting += n;
            waiting.push(batch.images);
            labels.extend(batch.labels_host);
        }
    }
    compute(&mut waiting);
    if let Some(last) = launched.take() {
        all.extend(last);
    }
    let n_images = labels.iter().map(Vec::len).sum::<usize>();
    let n_shifted = all.shifts.len() / n_images.max(1);
    let (mut rest, mut shifts) = (&all.features[..], &all.shifts[..]);
    let tables = labels.into_iter().map(|labels| {
        let own;
        (own, rest) = rest.split_at(labels.len() * d_model);
        let of_own;
        (of_own, shifts) = shifts.split_at(labels.len() * n_shifted);
        FeatureTable {
            features: own.to_vec(),
            d_model,
            labels,
            shifts: of_own.to_vec(),
        }
    });
    Ok(Some(tables.collect()))
}
