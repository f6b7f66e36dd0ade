//! Settings of a transform: their ranges, and the levels that bytes become.

use serde::{Deserialize, Serialize};

use crate::augment::AugmentConfig;
use crate::error::ImageError;
use crate::pipeline::PipelineConfig;
use crate::resample::Interpolation;

/// Settings of a [`Transform`](super::Transform).
///
/// Files have one table of them all. A pipeline excludes `fit`, `oversample`, `background` and `augment`, so
/// a table that has one of these beside `pipeline`, and not at its default, is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct TransformConfig {
    /// Width and height of the output in pixels, from 1 to 4,096.
    pub side: usize,
    /// Channels of the output.
    pub channels: Channels,
    /// Whether levels are inverted.
    pub polarity: Polarity,
    /// How an image becomes the square of the output.
    pub process: Process,
    /// Mean and standard deviation to normalise with; levels stay in 0 to 1 when absent.
    pub normalise: Option<Normalise>,
}

/// How an image becomes the square of the output.
#[derive(Clone, Debug, PartialEq)]
pub enum Process {
    /// Shrunk once by area, then sampled in every epoch through one affine map; made for drawings.
    Drawing(Drawing),
    /// The steps of a published transform.
    Pipeline(PipelineConfig),
}

/// Settings of the drawing transform.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawing {
    /// How an image that is not square becomes square.
    pub fit: Fit,
    /// Longest shorter side of a base image, as a multiple of `side`, from 1 to 4. 1 blurs turned images a little
    /// and 2 does not; with 2 an image that is not augmented still comes out as its average by area.
    pub oversample: usize,
    /// Level where a map leaves the image.
    pub background: Background,
    /// Random changes of geometry, for training.
    pub augment: AugmentConfig,
}

impl Default for Drawing {
    /// Stretched, oversampled twice, on the level of its border, without augmentation.
    fn default() -> Self {
        Self {
            fit: Fit::default(),
            oversample: default_oversample(),
            background: Background::default(),
            augment: AugmentConfig::default(),
        }
    }
}

/// A [`TransformConfig`] as files have it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    side: usize,
    channels: Channels,
    #[serde(default)]
    polarity: Polarity,
    #[serde(default)]
    fit: Fit,
    #[serde(default = "default_oversample")]
    oversample: usize,
    #[serde(default)]
    background: Background,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    normalise: Option<Normalise>,
    #[serde(default)]
    augment: AugmentConfig,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pipeline: Option<PipelineConfig>,
}

fn default_oversample() -> usize {
    2
}

impl TryFrom<Written> for TransformConfig {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let drawing = Drawing {
            fit: written.fit,
            oversample: written.oversample,
            background: written.background,
            augment: written.augment,
        };
        let process = match written.pipeline {
            None => Process::Drawing(drawing),
            Some(pipeline) => {
                // Plans write the defaults.
                let plain = Drawing::default();
                for (name, is_default) in [
                    ("fit", drawing.fit == plain.fit),
                    ("oversample", drawing.oversample == plain.oversample),
                    ("background", drawing.background == plain.background),
                    ("augment", drawing.augment == plain.augment),
                ] {
                    if !is_default {
                        return Err(format!(
                            "`transform.{name}` is given together with `transform.pipeline`, expected only one of \
                             them: the pipeline has steps in its place"
                        ));
                    }
                }
                Process::Pipeline(pipeline)
            }
        };
        Ok(Self {
            side: written.side,
            channels: written.channels,
            polarity: written.polarity,
            process,
            normalise: written.normalise,
        })
    }
}

impl From<TransformConfig> for Written {
    fn from(config: TransformConfig) -> Self {
        let (drawing, pipeline) = match config.process {
            Process::Drawing(drawing) => (drawing, None),
            Process::Pipeline(pipeline) => (Drawing::default(), Some(pipeline)),
        };
        Self {
            side: config.side,
            channels: config.channels,
            polarity: config.polarity,
            fit: drawing.fit,
            oversample: drawing.oversample,
            background: drawing.background,
            normalise: config.normalise,
            augment: drawing.augment,
            pipeline,
        }
    }
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
            process: Process::Drawing(Drawing::default()),
            normalise: None,
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

    /// The drawing transform with random changes of geometry. It takes the place of a pipeline.
    #[must_use]
    pub fn with_augment(self, augment: AugmentConfig) -> Self {
        let drawing = self.drawing().cloned().unwrap_or_default();
        self.with_drawing(Drawing { augment, ..drawing })
    }

    /// The same with the drawing transform of these settings.
    #[must_use]
    pub fn with_drawing(mut self, drawing: Drawing) -> Self {
        self.process = Process::Drawing(drawing);
        self
    }

    /// The same with the steps of a published transform.
    #[must_use]
    pub fn with_pipeline(mut self, pipeline: PipelineConfig) -> Self {
        self.process = Process::Pipeline(pipeline);
        self
    }

    /// The settings of the drawing transform, when it is one.
    pub fn drawing(&self) -> Option<&Drawing> {
        match &self.process {
            Process::Drawing(drawing) => Some(drawing),
            Process::Pipeline(_) => None,
        }
    }

    /// The steps of a published transform, when it is one.
    pub fn pipeline(&self) -> Option<&PipelineConfig> {
        match &self.process {
            Process::Drawing(_) => None,
            Process::Pipeline(pipeline) => Some(pipeline),
        }
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
        match &self.process {
            Process::Drawing(_) => self.clone().with_augment(AugmentConfig::default()),
            Process::Pipeline(pipeline) => self.clone().with_pipeline(pipeline.for_evaluation()),
        }
    }

    /// Whether a training image looks different in every epoch.
    pub fn is_random(&self) -> bool {
        match &self.process {
            Process::Drawing(drawing) => !drawing.augment.is_none(),
            Process::Pipeline(pipeline) => pipeline.is_random(),
        }
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
        match &self.process {
            Process::Drawing(drawing) => drawing.check()?,
            Process::Pipeline(pipeline) => pipeline.check(self.side)?,
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

impl Drawing {
    /// Refuses the first value outside its range.
    fn check(&self) -> Result<(), ImageError> {
        let refuse = |name: &str, found: String, expected: &str| {
            Err(ImageError::setting(
                format!("transform.{name}"),
                found,
                expected,
            ))
        };
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
        self.augment.check()
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
                good.clone().with_drawing(Drawing {
                    oversample: 5,
                    ..Drawing::default()
                }),
                "oversample",
            ),
            (
                good.clone().with_drawing(Drawing {
                    fit: Fit::CropCentre { fraction: 0.0 },
                    ..Drawing::default()
                }),
                "fraction",
            ),
            (
                good.clone().with_drawing(Drawing {
                    background: Background::Level(2.0),
                    ..Drawing::default()
                }),
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

    #[test]
    fn a_pipeline_excludes_the_settings_of_drawings() {
        let pipeline = "side = 4\nchannels = 'rgb'\n[pipeline]\ntrain = [{ center_crop = 4 }]\n\
                        test = [{ center_crop = 4 }]\n";
        let parse =
            |extra: &str| toml::from_str::<TransformConfig>(&format!("{extra}\n{pipeline}"));
        assert!(parse("").unwrap().pipeline().is_some());
        // A plan of before has the defaults beside the pipeline.
        let plan = "polarity = 'as_is'\nfit = 'stretch'\noversample = 2\nbackground = 'border'\naugment = { flip = 0.0 }";
        let parsed = parse(plan).unwrap();
        assert_eq!(parsed, parse("").unwrap());
        let written = toml::to_string(&parsed).unwrap();
        assert!(written.contains("oversample = 2"), "{written}");
        for (extra, name) in [
            ("fit = { crop_centre = { fraction = 0.5 } }", "fit"),
            ("oversample = 1", "oversample"),
            ("background = { level = 0.5 }", "background"),
            ("augment = { flip = 0.5 }", "augment"),
        ] {
            let message = parse(extra).unwrap_err().to_string();
            assert!(
                message.contains(&format!("`transform.{name}`")),
                "{message}"
            );
        }
    }
}
