//! From a decoded image to the square of numbers a model reads.
//!
//! With [`TransformConfig::pipeline`] the steps it names, equal to torchvision's; see [`PipelineConfig`]. Otherwise the
//! drawing transform, made for drawings such as Omniglot's that change cheaply in every epoch:
//!
//! Two stages. The first makes a *base image* once for every image: channels, polarity, the task's appearance, and a
//! size of at most [`TransformConfig::oversample`] times the output, so that it can be cached. The second runs in
//! every epoch: one affine map (fit, then crop, flip and affine augmentation together) is sampled bilinearly from
//! the base image straight into normalised numbers, `[channels, side, side]`.

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::appearance::{Appearance, border_level};
use crate::augment::AugmentConfig;
use crate::dataset::{SampleIdx, Split};
use crate::error::DataError;
use crate::image::Image;
use crate::pipeline::PipelineConfig;
use crate::resample::Interpolation;
use crate::resize::{Affine, sample_affine, shrink};

/// Settings of a [`Transform`].
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
    fn check_pipeline(&self, pipeline: &PipelineConfig) -> Result<(), DataError> {
        let plain = Self::new(self.side, self.channels);
        for (name, is_default) in [
            ("fit", self.fit == plain.fit),
            ("oversample", self.oversample == plain.oversample),
            ("background", self.background == plain.background),
            ("augment", self.augment == plain.augment),
        ] {
            if !is_default {
                return Err(DataError::setting(
                    format!("transform.{name}"),
                    "given together with `transform.pipeline`",
                    "only one of them, the pipeline has steps in its place",
                ));
            }
        }
        pipeline.check(self.side)
    }

    /// What each byte becomes in each channel, rounded as torchvision's `ToTensor` and `Normalize` round; none without
    /// a pipeline. The settings have been checked.
    fn levels(&self) -> Vec<[f32; 256]> {
        let channels = self.pipeline.as_ref().map_or(0, |_| self.channels.count());
        let level = |channel: usize, byte: usize| {
            let level = byte as f32 / 255.0;
            self.normalise.as_ref().map_or(level, |by| {
                (level - by.mean[channel % by.mean.len()]) / by.std[channel % by.std.len()]
            })
        };
        (0..channels)
            .map(|channel| std::array::from_fn(|byte| level(channel, byte)))
            .collect()
    }

    /// Checks the settings and makes the transform.
    ///
    /// # Errors
    ///
    /// [`DataError::Setting`] for the first value outside its range.
    pub fn init(&self) -> Result<Transform, DataError> {
        let refuse = |name: &str, found: String, expected: &str| {
            Err(DataError::setting(
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
        let channels = self.channels.count();
        let (mut gain, mut offset) = ([1.0 / 255.0; 3], [0.0; 3]);
        if let Some(Normalise { mean, std }) = &self.normalise {
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
            for channel in 0..channels {
                let (mean, std) = (mean[channel % mean.len()], std[channel % std.len()]);
                gain[channel] = 1.0 / (255.0 * std);
                offset[channel] = -mean / std;
            }
        }
        let levels = self.levels();
        Ok(Transform {
            config: self.clone(),
            gain,
            offset,
            levels,
        })
    }
}

/// A checked [`TransformConfig`].
#[derive(Clone, Debug, PartialEq)]
pub struct Transform {
    config: TransformConfig,
    gain: [f32; 3],
    offset: [f32; 3],
    /// What each byte becomes, for each channel; used by pipelines.
    levels: Vec<[f32; 256]>,
}

/// An image after the first stage of a [`Transform`], small enough to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseImage {
    image: Image,
    background: [u8; 3],
}

impl BaseImage {
    /// Bytes of its pixels.
    pub(crate) fn n_bytes(&self) -> usize {
        self.image.data().len()
    }
}

impl Transform {
    /// The settings it was made of.
    pub fn config(&self) -> &TransformConfig {
        &self.config
    }

    /// Shape of one output, `[channels, side, side]`.
    pub fn shape(&self) -> [usize; 3] {
        [
            self.config.channels.count(),
            self.config.side,
            self.config.side,
        ]
    }

    /// Number of values of one output.
    pub fn n_values(&self) -> usize {
        self.shape().iter().product()
    }

    /// First stage: the base image of sample `idx` of a split, changed as `appearance` says.
    ///
    /// With a pipeline the whole image is changed, then takes the steps before the first random one.
    pub fn base_image(
        &self,
        image: Image,
        appearance: &[Appearance],
        split: Split,
        idx: SampleIdx,
    ) -> BaseImage {
        let config = &self.config;
        let mut image = match config.channels {
            Channels::Gray => image.into_gray(),
            Channels::Rgb => image.into_rgb(),
        };
        if config.polarity == Polarity::Inverted {
            image = Appearance::Invert.apply(image, split, idx);
        }
        if let Some(pipeline) = &config.pipeline {
            for change in appearance {
                image = change.apply(image, split, idx);
            }
            return BaseImage {
                image: pipeline.apply_fixed(image),
                background: [0; 3],
            };
        }
        let side = (config.side * config.oversample) as f32;
        let (width, height) = match config.fit {
            Fit::Stretch => (side, side),
            Fit::CropCentre { fraction } => {
                let (width, height) = (image.width() as f32, image.height() as f32);
                let factor = side / fraction / width.min(height);
                (width * factor, height * factor)
            }
        };
        image = shrink(&image, width.round() as usize, height.round() as usize);
        for change in appearance {
            image = change.apply(image, split, idx);
        }
        let background = match config.background {
            Background::Border => border_level(&image),
            Background::Level(level) => [(level * 255.0).round() as u8; 3],
        };
        BaseImage { image, background }
    }

    /// Second stage: writes `[channels, side, side]` normalised values to `out`.
    ///
    /// The augmentation is drawn from `rng`; without one, or without augmentation, the image is only fitted (random
    /// crops of a pipeline take the middle).
    ///
    /// # Panics
    ///
    /// When `out` does not have [`n_values`](Self::n_values) elements.
    pub fn write(&self, base: &BaseImage, rng: Option<&mut ChaCha8Rng>, out: &mut [f32]) {
        assert_eq!(out.len(), self.n_values(), "length of the output");
        let config = &self.config;
        if let Some(pipeline) = &config.pipeline {
            let mut rng = rng;
            let image = pipeline.apply_random(&base.image, rng.as_deref_mut());
            self.write_levels(&image, out);
            pipeline.erase(out, config.side, rng);
            return;
        }
        let mut map = match config.fit {
            Fit::Stretch => Affine::IDENTITY,
            Fit::CropCentre { fraction } => {
                let (width, height) = (base.image.width() as f32, base.image.height() as f32);
                let window = width.min(height) * fraction;
                Affine::scale(window / width, window / height)
            }
        };
        if let Some(rng) = rng {
            map = map.after(config.augment.draw(rng));
        }
        let n_pixels = config.side * config.side;
        let size = (config.side, config.side);
        sample_affine(
            &base.image,
            base.background,
            map,
            size,
            |channel, pixel, level| {
                out[channel * n_pixels + pixel] = level * self.gain[channel] + self.offset[channel];
            },
        );
    }

    fn write_levels(&self, image: &Image, out: &mut [f32]) {
        let channels = self.levels.len();
        let n_pixels = self.config.side * self.config.side;
        for (channel, levels) in self.levels.iter().enumerate() {
            let plane = &mut out[channel * n_pixels..][..n_pixels];
            let bytes = image.data()[channel..].iter().step_by(channels);
            for (out, &byte) in plane.iter_mut().zip(bytes) {
                *out = levels[usize::from(byte)];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::RandomAffine;
    use crate::seed::{Purpose, generator};

    fn run(config: &TransformConfig, image: Image) -> Vec<f32> {
        let transform = config.init().unwrap();
        let base = transform.base_image(image, &[], Split::Train, 0);
        let mut out = vec![f32::NAN; transform.n_values()];
        transform.write(&base, None, &mut out);
        out
    }

    fn assert_close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < 1e-5, "{found:?} is not {expected:?}");
        }
    }

    #[test]
    fn levels_become_fractions_in_planes() {
        let image = Image::new(2, 1, 3, vec![0, 51, 102, 255, 204, 153]).unwrap();
        let config = TransformConfig::new(1, Channels::Rgb);
        assert_close(&run(&config, image), &[0.5, 0.5, 0.5]);
        let image = Image::new(1, 1, 3, vec![0, 51, 255]).unwrap();
        let config = TransformConfig::new(2, Channels::Rgb);
        let planes = [[0.0; 4], [0.2; 4], [1.0; 4]].concat();
        assert_close(&run(&config, image), &planes);
    }

    #[test]
    fn inverted_then_normalised() {
        let image = Image::new(2, 2, 1, vec![255, 0, 255, 255]).unwrap();
        let config = TransformConfig {
            normalise: Some(Normalise {
                mean: vec![0.5],
                std: vec![0.25],
            }),
            ..TransformConfig::omniglot(2)
        };
        assert_close(&run(&config, image), &[-2.0, 2.0, -2.0, -2.0]);
    }

    #[test]
    fn without_augmentation_the_output_is_the_average_by_area() {
        let image = Image::new(8, 8, 1, (0..64).map(|i| i * 4).collect()).unwrap();
        let found = run(&TransformConfig::new(2, Channels::Gray), image.clone());
        let expected: Vec<f32> = shrink(&image, 2, 2)
            .data()
            .iter()
            .map(|&v| f32::from(v) / 255.0)
            .collect();
        assert_close(&found, &expected);
    }

    #[test]
    fn centre_crop_takes_the_middle_square() {
        let image = Image::new(4, 2, 1, vec![9, 51, 102, 9, 9, 153, 204, 9]).unwrap();
        let config = TransformConfig {
            fit: Fit::CropCentre { fraction: 1.0 },
            ..TransformConfig::new(2, Channels::Gray)
        };
        assert_close(&run(&config, image), &[0.2, 0.4, 0.6, 0.8]);
    }

    #[test]
    fn appearance_and_border_reach_the_output() {
        let transform = TransformConfig::omniglot(2).init().unwrap();
        let white = Image::new(2, 2, 1, vec![255; 4]).unwrap();
        let base = transform.base_image(white, &[Appearance::Invert], Split::Train, 0);
        let mut out = vec![0.0; 4];
        transform.write(&base, None, &mut out);
        assert_eq!(out, [1.0; 4]);
        assert_eq!(base.background[0], 255);
    }

    #[test]
    fn augmentation_needs_a_generator_and_follows_it() {
        let config = TransformConfig::new(8, Channels::Gray).with_augment(AugmentConfig {
            affine: Some(RandomAffine::default()),
            ..Default::default()
        });
        let transform = config.init().unwrap();
        let image = Image::new(16, 16, 1, (0..=255).collect()).unwrap();
        let base = transform.base_image(image, &[], Split::Train, 0);
        let write = |seed: Option<u64>| {
            let mut out = vec![0.0; 64];
            let mut rng = seed.map(|seed| generator(seed, Purpose::Augment, [0; 3]));
            transform.write(&base, rng.as_mut(), &mut out);
            out
        };
        assert_eq!(write(Some(1)), write(Some(1)));
        assert_ne!(write(Some(1)), write(Some(2)));
        assert_ne!(write(Some(1)), write(None));
    }

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
