//! What weights in 8 bits cost: accuracy before and after on test images of the run.

use std::fmt;

use sdlora_onnx::Weights;
use sdlora_vit::Vit;
use serde_json::{Value, json};

use super::stored::stored;
use crate::error::TrainError;
use crate::export::FinishedRun;
use crate::extractor::Extractor;
use crate::features::{FeatureTable, accuracy};
use crate::run_data::RunData;

/// Test images that are compared, at most.
const N_IMAGES: usize = 64;

/// Accuracy of a model before and after its weights were stored in 8 bits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Measured {
    n_images: usize,
    before: f64,
    after: f64,
    n_same: usize,
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            n_images,
            before,
            after,
            n_same,
        } = self;
        write!(
            f,
            "weights in 8 bits: accuracy {:.1} % before and {:.1} % after on {n_images} test images, {n_same} of {n_images} predictions are the same",
            100.0 * before,
            100.0 * after
        )
    }
}

impl Measured {
    pub(super) fn to_json(self) -> Value {
        json!({
            "images": self.n_images,
            "f32": self.before,
            "int8": self.after,
            "same": self.n_same,
        })
    }
}

/// Predicts test images, spread evenly over those of the run, with the backbone as it is and as it is stored.
///
/// # Errors
///
/// Those of the data set.
pub(super) fn measure(run: &FinishedRun) -> Result<Measured, TrainError> {
    let plan = run.config.clone().check()?;
    let data = RunData::open(&plan, &run.data_dir)?;
    let (images, labels) = data.test_sample(N_IMAGES, &run.device)?;
    let predicted = |vit: Vit| {
        let extractor = Extractor::from(vit);
        let features = images.iter().flat_map(|image| {
            let features = extractor.features(image.clone());
            features.into_data().iter::<f32>().collect::<Vec<_>>()
        });
        let table = FeatureTable {
            features: features.collect(),
            d_model: run.d_model(),
            labels: labels.clone(),
            ..FeatureTable::default()
        };
        run.classifier.predict(&table)
    };
    let before = predicted(run.vit.clone());
    let after = predicted(stored(run.vit.clone(), Weights::Int8));
    let n_same = before.iter().zip(&after).filter(|(a, b)| a == b).count();
    Ok(Measured {
        n_images: labels.len(),
        before: accuracy(&before, &labels),
        after: accuracy(&after, &labels),
        n_same,
    })
}
