//! What a model folder knows besides weights: how images are prepared, and what its numbers mean.
//!
//! | file | what |
//! |---|---|
//! | `temperature.rs` | the one number that turns logits into probabilities, fitted on held-out images |
//! | `novelty.rs` | how far a feature lies from every class, and from where on it belongs to none |

mod novelty;
mod temperature;

use std::path::Path;

use sdlora_image::{BitDepth, ImageReading, Rotation, TransformConfig};
use serde::{Deserialize, Serialize};

pub use novelty::Novelty;
pub(crate) use novelty::{gather, gathers, quantile};
pub(crate) use temperature::{energy, fit_temperature, probabilities};

use crate::error::TrainError;
use crate::features::FeatureTable;
use crate::heads::Classifier;

/// Version of `predict.json`; raised when an earlier program would misread it.
const VERSION: u32 = 1;

/// Share of held-out images of known classes that the threshold keeps.
pub(crate) const KEPT: f64 = 0.95;

/// How the images of a model are prepared, and what is known of its numbers: `predict.json` of its folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PredictConfig {
    /// Version of the file.
    version: u32,
    /// How images are prepared, without augmentation.
    pub transform: TransformConfig,
    /// Which side of an image is up.
    pub rotation: Rotation,
    /// How many bits 16-bit samples use.
    pub bit_depth: BitDepth,
    /// What was fitted on held-out images; absent where the run held none out
    /// ([`calibrate_on`](crate::RunConfig::calibrate_on)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibrated: Option<Calibrated>,
}

/// What was fitted on training images that no step and no head has seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibrated {
    /// Probabilities are the softmax of the logits divided by this.
    pub temperature: f64,
    /// Held-out images it comes from.
    pub n_images: usize,
    /// Largest [`Answer::distance`](crate::Answer::distance) of an image that belongs to a class.
    pub threshold: f64,
    /// Share of the held-out images that the threshold keeps, a fraction.
    pub kept: f64,
}

impl Calibrated {
    /// What the features of held-out images say; their labels are the classes they show.
    pub(crate) fn of(classifier: &Classifier, novelty: &Novelty, tables: &[FeatureTable]) -> Self {
        let (mut logits, mut labels, mut distances) = (Vec::new(), Vec::new(), Vec::new());
        for table in tables {
            logits.extend(classifier.logits(table));
            labels.extend_from_slice(&table.labels);
            distances.extend(novelty.distances(table));
        }
        Self {
            temperature: fit_temperature(&logits, classifier.n_classes(), &labels),
            n_images: labels.len(),
            threshold: quantile(&distances, KEPT),
            kept: KEPT,
        }
    }
}

impl PredictConfig {
    /// That of a model whose images were prepared by `transform` and read as `reading` says.
    pub fn new(transform: &TransformConfig, reading: ImageReading) -> Self {
        Self {
            version: VERSION,
            transform: transform.for_evaluation(),
            rotation: reading.rotation,
            bit_depth: reading.bit_depth,
            calibrated: None,
        }
    }

    /// How image files are read.
    pub fn reading(&self) -> ImageReading {
        ImageReading {
            rotation: self.rotation,
            bit_depth: self.bit_depth,
        }
    }

    /// The text of the file.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] when a value has no JSON form.
    pub(crate) fn to_json(&self) -> Result<Vec<u8>, TrainError> {
        serde_json::to_vec_pretty(self)
            .map_err(|e| TrainError::setting("transform", "unwritable", e.to_string()))
    }

    /// Reads the text of the file at `path`.
    ///
    /// # Errors
    ///
    /// [`TrainError::Newer`] for one of a later version, [`TrainError::Damaged`] for anything else that is wrong.
    pub(crate) fn from_json(text: &[u8], path: &Path) -> Result<Self, TrainError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let damaged = |problem: String| TrainError::Damaged {
            path: path.into(),
            problem,
        };
        let read: Version = serde_json::from_slice(text).map_err(|e| damaged(e.to_string()))?;
        if read.version > VERSION {
            return Err(TrainError::newer(path, read.version, VERSION));
        }
        let config: Self = serde_json::from_slice(text).map_err(|e| damaged(e.to_string()))?;
        if let Some(calibrated) = &config.calibrated {
            let temperature = calibrated.temperature;
            if !(temperature.is_finite() && temperature > 0.0) {
                return Err(damaged(format!("a temperature of {temperature}")));
            }
            if calibrated.threshold.is_nan() {
                return Err(damaged("a threshold that is no number".into()));
            }
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_image::{Channels, Interpolation, PipelineConfig};

    #[test]
    fn a_file_comes_back_as_it_was_written() {
        let path = Path::new("predict.json");
        let pipeline = PipelineConfig::imagenet(224, 256, Interpolation::Bicubic);
        let photographs = TransformConfig::new(224, Channels::Rgb)
            .with_pipeline(pipeline)
            .with_normalise([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        for transform in [TransformConfig::omniglot(28), photographs] {
            for calibrated in [
                None,
                Some(Calibrated {
                    temperature: 0.1 + 0.2,
                    n_images: 600,
                    threshold: 31.25,
                    kept: KEPT,
                }),
            ] {
                let reading = ImageReading {
                    rotation: Rotation::Exif,
                    bit_depth: BitDepth::Bits(12),
                };
                let config = PredictConfig {
                    calibrated,
                    ..PredictConfig::new(&transform, reading)
                };
                assert_eq!(config.reading(), reading);
                let text = config.to_json().unwrap();
                assert_eq!(PredictConfig::from_json(&text, path).unwrap(), config);
            }
        }
    }

    #[test]
    fn a_later_version_and_numbers_that_are_none_are_refused() {
        let path = Path::new("predict.json");
        let transform = TransformConfig::omniglot(28);
        let config = PredictConfig {
            calibrated: Some(Calibrated {
                temperature: 1.5,
                n_images: 1,
                threshold: 2.0,
                kept: KEPT,
            }),
            ..PredictConfig::new(&transform, ImageReading::default())
        };
        let text = String::from_utf8(config.to_json().unwrap()).unwrap();
        for (from, to, part) in [
            ("\"version\": 1", "\"version\": 2", "newer"),
            ("1.5", "0.0", "temperature of 0"),
            ("1.5", "-1.5", "temperature of -1.5"),
            ("1.5", "null", "damaged"),
            ("\"transform\"", "\"transfrm\"", "damaged"),
        ] {
            assert!(text.contains(from), "{text}");
            let changed = text.replace(from, to);
            let error = PredictConfig::from_json(changed.as_bytes(), path).unwrap_err();
            assert!(error.to_string().contains(part), "{to}: {error}");
        }
    }
}
