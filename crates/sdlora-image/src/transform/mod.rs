//! From a decoded image to the square of numbers a model reads.
//!
//! [`Process`] says how: [`PipelineConfig`](crate::PipelineConfig) lists steps equal to torchvision's, and [`Drawing`]
//! is made for drawings such as Omniglot's, which change cheaply in every epoch.
//!
//! Both have two stages. The first makes a *base image* once for every image: channels, polarity, its
//! appearance, and for drawings a size of at most [`Drawing::oversample`] times the output, so that it can be
//! cached. The second runs in every epoch: for drawings one affine map (fit, then crop, flip and affine
//! augmentation together) is sampled bilinearly from the base image straight into normalised numbers,
//! `[channels, side, side]`.

mod config;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::appearance::{Appearance, border_level, inverted};
use crate::error::ImageError;
use crate::image::Image;
use crate::resize::{Affine, sample_affine, shrink};

pub use config::{
    Background, Channels, Drawing, Fit, Normalise, Polarity, Process, TransformConfig,
};

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
    pub fn n_bytes(&self) -> usize {
        self.image.data().len()
    }

    /// Its pixels.
    pub fn into_image(self) -> Image {
        self.image
    }
}

impl TransformConfig {
    /// Checks the settings and makes the transform.
    ///
    /// # Errors
    ///
    /// [`ImageError::Setting`] for the first value outside its range.
    pub fn init(&self) -> Result<Transform, ImageError> {
        self.check()?;
        let (mut gain, mut offset) = ([1.0 / 255.0; 3], [0.0; 3]);
        if let Some(Normalise { mean, std }) = &self.normalise {
            for channel in 0..self.channels.count() {
                let (mean, std) = (mean[channel % mean.len()], std[channel % std.len()]);
                gain[channel] = 1.0 / (255.0 * std);
                offset[channel] = -mean / std;
            }
        }
        Ok(Transform {
            config: self.clone(),
            gain,
            offset,
            levels: self.levels(),
        })
    }

    /// What each byte becomes in each channel, rounded as torchvision's `ToTensor` and `Normalize` round; none without
    /// a pipeline. The settings have been checked.
    fn levels(&self) -> Vec<[f32; 256]> {
        let channels = self.pipeline().map_or(0, |_| self.channels.count());
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

    /// First stage: the base image. With a pipeline the image takes the steps before the first random one.
    pub fn base_image(&self, image: Image) -> BaseImage {
        self.base_image_as(image, &[], ChaCha8Rng::seed_from_u64)
    }

    /// First stage: the base image, changed as `appearance` says. With a pipeline the whole image is changed first.
    ///
    /// `noise` gives the image's own generator for the seed of an [`Appearance::Texture`]. It must give the same one
    /// whenever it is called for this image, and another one for every other image.
    pub fn base_image_as(
        &self,
        image: Image,
        appearance: &[Appearance],
        noise: impl Fn(u64) -> ChaCha8Rng,
    ) -> BaseImage {
        let config = &self.config;
        let mut image = match config.channels {
            Channels::Gray => image.into_gray(),
            Channels::Rgb => image.into_rgb(),
        };
        if config.polarity == Polarity::Inverted {
            image = inverted(image);
        }
        let drawing = match &config.process {
            Process::Drawing(drawing) => drawing,
            Process::Pipeline(pipeline) => {
                for change in appearance {
                    image = change.apply(image, &noise);
                }
                return BaseImage {
                    image: pipeline.apply_fixed(image),
                    background: [0; 3],
                };
            }
        };
        let side = (config.side * drawing.oversample) as f32;
        let (width, height) = match drawing.fit {
            Fit::Stretch => (side, side),
            Fit::CropCentre { fraction } => {
                let (width, height) = (image.width() as f32, image.height() as f32);
                let factor = side / fraction / width.min(height);
                (width * factor, height * factor)
            }
        };
        image = shrink(&image, width.round() as usize, height.round() as usize);
        for change in appearance {
            image = change.apply(image, &noise);
        }
        let background = match drawing.background {
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
        let drawing = match &config.process {
            Process::Drawing(drawing) => drawing,
            Process::Pipeline(pipeline) => {
                let mut rng = rng;
                let image = pipeline.apply_random(&base.image, rng.as_deref_mut());
                self.write_levels(&image, out);
                pipeline.erase(out, config.side, rng);
                return;
            }
        };
        let mut map = match drawing.fit {
            Fit::Stretch => Affine::IDENTITY,
            Fit::CropCentre { fraction } => {
                let (width, height) = (base.image.width() as f32, base.image.height() as f32);
                let window = width.min(height) * fraction;
                Affine::scale(window / width, window / height)
            }
        };
        if let Some(rng) = rng {
            map = map.after(drawing.augment.draw(rng));
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
    use crate::augment::{AugmentConfig, RandomAffine};
    use crate::draws::generator;

    fn run(config: &TransformConfig, image: Image) -> Vec<f32> {
        let transform = config.init().unwrap();
        let base = transform.base_image(image);
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
        let config = TransformConfig::new(2, Channels::Gray).with_drawing(Drawing {
            fit: Fit::CropCentre { fraction: 1.0 },
            ..Drawing::default()
        });
        assert_close(&run(&config, image), &[0.2, 0.4, 0.6, 0.8]);
    }

    #[test]
    fn appearance_and_border_reach_the_output() {
        let transform = TransformConfig::omniglot(2).init().unwrap();
        let white = Image::new(2, 2, 1, vec![255; 4]).unwrap();
        let base = transform.base_image_as(white, &[Appearance::Invert], |_| generator(0, [0; 3]));
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
        let base = transform.base_image(image);
        let write = |seed: Option<u64>| {
            let mut out = vec![0.0; 64];
            let mut rng = seed.map(|seed| generator(seed, [0; 3]));
            transform.write(&base, rng.as_mut(), &mut out);
            out
        };
        assert_eq!(write(Some(1)), write(Some(1)));
        assert_ne!(write(Some(1)), write(Some(2)));
        assert_ne!(write(Some(1)), write(None));
    }
}
