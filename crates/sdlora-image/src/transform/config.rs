//! Settings of a transform: their ranges, and the levels that bytes become.

use serde::{Deserialize, Serialize};

use crate::augment::AugmentConfig;
use crate::error::ImageError;
use crate::pipeline::PipelineConfig;
use crate::resample::Interpolation;

/// Settings of a [`Transform`](super::Transform).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformConfig {
    /// Width and height of the output in pixels, from 1 to 4,096.
    pub side: usize,
    /// Channels of the output.
    pub channels: Channels,
    /// Whether levels are inverted.
    #[serde(default)]
    pub polarity: Polarity,
    /// How an image that is not square becomes square.
    #[serde(default)]
    pub fit: Fit,
    /// Longest shorter side of a base image, as a multiple of `side`, from 1 to 4. 1 blurs turned images a little
    /// and 2 does not; with 2 an image that is not augmented still comes out as its average by area.
    #[serde(default = "default_oversample")]
    pub oversample: usize,
    /// Level where a map leaves the image.
    #[serde(default)]
    pub background: Background,
    /// Mean and standard deviation to normalise with; levels stay in 0 to 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalise: Option<Normalise>,
    /// Random changes of geometry, for training.
    #[serde(default)]
    pub augment: AugmentConfig,
    /// The steps of a published transform. They take the place of `fit`, `oversample`, `background` and `augment`,
    /// which then keep their defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<PipelineConfig>,
}

fn default_oversample() -> usize {
    2
}

/// Channels of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Channels {
    /// One channel of luma.
    Gray,
    /// Red, green and blue; gray images are repeated.
    Rgb,
}

impl Channels {
    /// Number of channels.
    pub fn count(self) -> usize {
        match self {
            Self::Gray => 1,
            Self::Rgb => 3,
        }
    }
}

/// Whether levels are inverted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Polarity {
    /// As in the file.
    #[default]
    AsIs,
    /// White becomes 0 and black 1: ink on paper becomes bright on dark.
    Inverted,
}

/// How an image that is not square becomes square.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Fit {
    /// The whole image, its shape not kept.
    #[default]
    Stretch,
    /// A square in the centre, its side a fraction of the image's shorter side.
    CropCentre {
        /// The fraction, in (0, 1]; 224/256 = 0.875 is the published test transform.
        fraction: f32,
    },
}

/// Level where a map leaves the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Background {
    /// The median of the image's border, each channel for itself: the paper around a drawing.
    #[default]
    Border,
    /// This level, 0 to 1, before normalisation.
    Level(f32),
}

/// Mean and standard deviation of levels between 0 and 1; one entry for all channels or one for each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalise {
    /// Mean.
    pub mean: Vec<f32>,
    /// Standard deviation, positive.
    pub std: Vec<f32>,
}

impl TransformConfig {
    /// Output of `side` pixels and the given channels, in 0 to 1, nothing else changed.
    pub fn new(side: usize, channels: Channels) -> Self {
        Self {
            side,
            channels,
            polarity: Polarity::AsIs,
            fit: Fit::Stretch,
            oversample: default_oversample(),
            background: Background::Border,
            normalise: None,
            augment: AugmentConfig::default(),
            pipeline: None,
        }
    }

    /// The transforms of published runs on natural images at 224 pixels: [`PipelineConfig::imagenet`] with a test
    /// resize to 256, bicubic; levels in 0 to 1, as those runs feed them.
    pub fn imagenet() -> Self {
        Self::new(224, Channels::Rgb).with_pipeline(PipelineConfig::imagenet(
            224,
            256,
            Interpolation::Bicubic,
        ))
    }

    /// Omniglot as it is usually fed: gray, ink 1 on 0.
    pub fn omniglot(side: usize) -> Self {
        Self {
            polarity: Polarity::Inverted,
            ..Self::new(side, Channels::Gray)
        }
    }

    /// The same with random changes of geometry.
    #[must_use]
    pub fn with_augment(mut self, augment: AugmentConfig) -> Self {
        self.augment = augment;
        self
    }

    /// The same with the steps of a published transform.
    #[must_use]
    pub fn with_pipeline(mut self, pipeline: PipelineConfig) -> Self {
        self.pipeline = Some(pipeline);
        self
    }

    /// The same, normalised: what a checkpoint's preprocessing asks for, one entry for all channels or one for each.
    #[must_use]
    pub fn with_normalise(mut self, mean: impl Into<Vec<f32>>, std: impl Into<Vec<f32>>) -> Self {
        self.normalise = Some(Normalise {
            mean: mean.into(),
            std: std.into(),
        });
        self
    }

    /// The same without random changes: what evaluation uses. With a pipeline, its `test` steps.
    #[must_use]
    pub fn for_evaluation(&self) -> Self {
        let mut config = self.clone().with_augment(AugmentConfig::default());
        config.pipeline = self.pipeline.as_ref().map(PipelineConfig::for_evaluation);
        config
    }

    /// Whether a training image looks different in every epoch.
    pub fn is_random(&self) -> bool {
        match &self.pipeline {
            Some(pipeline) => pipeline.is_random(),
            None => !self.augment.is_none(),
        }
    }

    /// Refuses settings that a pipeline would silently replace, and checks the pipeline.
    fn check_pipeline(&self, pipeline: &PipelineConfig) -> Result<(), ImageError> {
        let plain = Self::new(self.side, self.channels);
        for (name, is_default) in [
            ("fit", self.fit == plain.fit),
            ("oversample", self.oversample == plain.oversample),
            ("background", self.background == plain.background),
            ("augment", self.augment == plain.augment),
        ] {
            if !is_default {
                return Err(ImageError::setting(
                    format!("transform.{name}"),
                    "given together with `transform.pipeline`",
                    "only one of them, the pipeline has steps in its place",
                ));
            }
        }
        pipeline.check(self.side)
    }

    /// Refuses the first value outside its range.
    pub(super) fn check(&self) -> Result<(), ImageError> {
        let refuse = |name: &str, found: String, expected: &str| {
            Err(ImageError::setting(
                format!("transform.{name}"),
                found,
                expected,
            ))
        };
        if !(1..=4096).contains(&self.side) {
            return refuse("side", self.side.to_string(), "1 to 4096");
        }
        if !(1..=4).contains(&self.oversample) {
            return refuse("oversample", self.oversample.to_string(), "1 to 4");
        }
        if let Fit::CropCentre { fraction } = self.fit
            && !(fraction > 0.0 && fraction <= 1.0)
        {
            return refuse(
                "fit.crop_centre.fraction",
                fraction.to_string(),
                "above 0 to 1",
            );
        }
        if let Background::Level(level) = self.background
            && !(0.0..=1.0).contains(&level)
        {
            return refuse("background.level", level.to_string(), "0 to 1");
        }
        self.augment.check()?;
        if let Some(pipeline) = &self.pipeline {
            self.check_pipeline(pipeline)?;
        }
        if let Some(Normalise { mean, std }) = &self.normalise {
            let channels = self.channels.count();
            for (name, values) in [("mean", mean), ("std", std)] {
                if (values.len() != 1 && values.len() != channels)
                    || values.iter().any(|value| !value.is_finite())
                {
                    let expected = format!("1 or {channels} finite numbers");
                    return refuse(
                        &format!("normalise.{name}"),
                        format!("{values:?}"),
                        &expected,
                    );
                }
            }
            if std.iter().any(|&value| value <= 0.0) {
                return refuse("normalise.std", format!("{std:?}"), "positive numbers");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::RandomAffine;

    #[test]
    fn settings_out_of_range_are_named() {
        let good = TransformConfig::new(4, Channels::Rgb);
        let normalise = |mean: &[f32], std: &[f32]| TransformConfig {
            normalise: Some(Normalise {
                mean: mean.to_vec(),
                std: std.to_vec(),
            }),
            ..good.clone()
        };
        for (config, name) in [
            (
                TransformConfig {
                    side: 0,
                    ..good.clone()
                },
                "side",
            ),
            (
                TransformConfig {
                    oversample: 5,
                    ..good.clone()
                },
                "oversample",
            ),
            (
                TransformConfig {
                    fit: Fit::CropCentre { fraction: 0.0 },
                    ..good.clone()
                },
                "fraction",
            ),
            (
                TransformConfig {
                    background: Background::Level(2.0),
                    ..good.clone()
                },
                "background",
            ),
            (normalise(&[0.1, 0.2], &[1.0]), "mean"),
            (normalise(&[0.1], &[0.0]), "std"),
        ] {
            let message = config.init().unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
        assert!(normalise(&[0.1], &[1.0, 1.0, 1.0]).init().is_ok());
    }

    #[test]
    fn configuration_reads_back_what_it_writes() {
        let config = TransformConfig::omniglot(28).with_augment(AugmentConfig {
            affine: Some(RandomAffine::default()),
            flip: 0.5,
            ..Default::default()
        });
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<TransformConfig>(&text).unwrap(), config);
        let minimal = "side = 28\nchannels = 'gray'\npolarity = 'inverted'";
        let parsed: TransformConfig = toml::from_str(minimal).unwrap();
        assert_eq!(parsed, config.for_evaluation());
        assert!(toml::from_str::<TransformConfig>("side = 28\nchannels = 'gray'\nx = 1").is_err());
    }
}
