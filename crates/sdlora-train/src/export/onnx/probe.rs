//! Images and the logits that a runtime has to give for them.

use burn::tensor::{Tensor, TensorData};
use rand::RngExt;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sdlora_image::{Fit, Image};

use super::super::FinishedRun;
use super::super::preparation::{Preparation, Resized, normalisation};
use super::stored::stored;
use super::{OnnxOptions, OnnxPreparation, chosen};
use crate::error::TrainError;
use crate::extractor::Extractor;
use crate::features::FeatureTable;

/// Images of a probe.
const N_IMAGES: usize = 4;

/// An input of an exported graph, and the logits of this program for the same numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct OnnxProbe {
    /// Length of every axis of the input.
    pub shape: Vec<usize>,
    /// The numbers of the input as the graph takes them: bytes, or numbers of 32 bits from the lowest byte on.
    pub input: Vec<u8>,
    /// `[n_images, n_classes]`, row-major.
    pub logits: Vec<f32>,
}

/// Largest difference that is rounding, for logits up to 1; larger ones may differ by as much of themselves.
const BOUND: f32 = 1e-4;

impl OnnxProbe {
    /// Random images for the graph that these options give. Pictures have the size that no resize changes: what
    /// it rounds to other bytes is no error of the graph.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] for a transform that cannot be made.
    pub fn of(run: &FinishedRun, options: OnnxOptions) -> Result<Self, TrainError> {
        let config = run.config.transform.for_evaluation();
        let transform = config.init()?;
        let [n_channels, side, _] = transform.shape();
        let n_values = transform.n_values();
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut pixels = vec![0.0f32; N_IMAGES * n_values];
        let (shape, input) = match chosen(&config, options) {
            OnnxPreparation::Normalise => {
                let (mean, std) = normalisation(&config);
                let mut input = Vec::with_capacity(4 * pixels.len());
                for (i, pixel) in pixels.iter_mut().enumerate() {
                    let channel = i / (side * side) % n_channels;
                    let level = rng.random_range(0.0..1.0f32);
                    input.extend(level.to_le_bytes());
                    *pixel = (level - mean[channel] as f32) / std[channel] as f32;
                }
                (vec![N_IMAGES, n_channels, side, side], input)
            }
            OnnxPreparation::Full => {
                let n = match config.drawing() {
                    Some(drawing) => {
                        let n = (side * drawing.oversample) as f32;
                        match drawing.fit {
                            Fit::Stretch => n as usize,
                            Fit::CropCentre { fraction } => (n / fraction).round() as usize,
                        }
                    }
                    None => match Preparation::of(&config).resized {
                        Resized::Shorter(n) | Resized::Square(n) => n,
                    },
                };
                let n_bytes = n * n * 3;
                let input: Vec<u8> = (0..N_IMAGES * n_bytes).map(|_| rng.random()).collect();
                for (bytes, pixels) in input
                    .chunks_exact(n_bytes)
                    .zip(pixels.chunks_exact_mut(n_values))
                {
                    let image = Image::new(n, n, 3, bytes.to_vec())?;
                    transform.write(&transform.base_image(image), None, pixels);
                }
                (vec![N_IMAGES, n, n, 3], input)
            }
        };
        let extractor = Extractor::from(stored(run.vit.clone(), options.weights));
        let images = TensorData::new(pixels, [N_IMAGES, n_channels, side, side]);
        let features = extractor.features(Tensor::from_data(images, &run.device));
        let table = FeatureTable {
            features: features.into_data().iter::<f32>().collect(),
            d_model: run.d_model(),
            labels: vec![0; N_IMAGES],
            ..FeatureTable::default()
        };
        Ok(Self {
            shape,
            input,
            logits: run.classifier.logits(&table),
        })
    }

    /// The largest difference of logits that a runtime gave, and whether all of them are rounding; `None` for another
    /// number of logits.
    pub fn compare(&self, found: &[f32]) -> Option<(f32, bool)> {
        if found.len() != self.logits.len() {
            return None;
        }
        let pairs = || found.iter().zip(&self.logits);
        let largest = pairs().map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // A logit that is no number is no rounding either.
        let are_close = pairs().all(|(a, b)| (a - b).abs() <= BOUND * b.abs().max(1.0));
        Some((largest, are_close))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_told_from_another_model() {
        let probe = OnnxProbe {
            shape: vec![1, 1, 1, 1],
            input: vec![0; 4],
            logits: vec![0.5, -20.0],
        };
        assert_eq!(probe.compare(&[0.5, -20.0]), Some((0.0, true)));
        assert!(
            probe
                .compare(&[0.500_05, -20.001])
                .is_some_and(|(_, close)| close)
        );
        assert!(
            probe
                .compare(&[0.501, -20.0])
                .is_some_and(|(_, close)| !close)
        );
        assert!(
            probe
                .compare(&[0.5, f32::NAN])
                .is_some_and(|(_, close)| !close)
        );
        assert_eq!(probe.compare(&[0.5]), None);
    }
}
