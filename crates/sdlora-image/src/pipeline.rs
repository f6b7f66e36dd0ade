//! The published transforms: named steps on 8-bit images, equal to torchvision's on PIL images.
//!
//! ```toml
//! [transform.pipeline]
//! train = [{ random_resized_crop = { size = 224 } }, { random_horizontal_flip = 0.5 }]
//! test = [{ resize = { size = 256, interpolation = "bicubic" } }, { center_crop = 224 }]
//! ```
//!
//! Steps have torchvision's names and defaults, and each draws what torchvision's draws. What follows the
//! last step is fixed: bytes become fractions of 255 and are normalised. A list may be any length; the last
//! step that changes the size must give `side` x `side`.
//!
//! Deviates: random numbers come from the generator of (seed, task, epoch, sample), not from torch's; the
//! distributions are the same, the draws are not.

use std::borrow::Cow;

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::chance::{check_probability, happens};
use crate::check::check_side;
use crate::color::ColorJitter;
use crate::crop::{RandomCrop, RandomResizedCrop, Resize, Size, center_crop, flip_horizontally};
use crate::erasing::RandomErasing;
use crate::error::ImageError;
use crate::image::Image;
use crate::rand_augment::RandAugment;
use crate::resample::Interpolation;

/// The steps of training and of evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineConfig {
    /// Steps a training image takes, in order.
    pub train: Vec<Step>,
    /// Steps an evaluated image takes, in order; none of them random.
    pub test: Vec<Step>,
}

/// One step of a [`PipelineConfig`].
///
/// A random step that gets no generator leaves the image as it is, except for the crops, which take the middle.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Resizes the image.
    Resize(Resize),
    /// Cuts the central square of this side out, black where the image is smaller.
    CenterCrop(usize),
    /// Cuts a random window out and resizes it.
    RandomResizedCrop(RandomResizedCrop),
    /// Cuts a square at a random place out.
    RandomCrop(RandomCrop),
    /// Exchanges left and right with this probability, 0 to 1.
    RandomHorizontalFlip(f64),
    /// Changes brightness, contrast, saturation and hue.
    ColorJitter(ColorJitter),
    /// Makes a few changes out of fourteen kinds.
    RandAugment(RandAugment),
    /// Overwrites a rectangle after normalisation; the last step.
    RandomErasing(RandomErasing),
}

impl Step {
    /// Whether the step draws random numbers.
    pub fn is_random(&self) -> bool {
        !matches!(self, Self::Resize(_) | Self::CenterCrop(_))
    }

    fn check(&self, setting: &str) -> Result<(), ImageError> {
        match self {
            Self::Resize(resize) => resize.check(&format!("{setting}.resize")),
            Self::CenterCrop(side) => check_side(&format!("{setting}.center_crop"), *side),
            Self::RandomResizedCrop(crop) => crop.check(&format!("{setting}.random_resized_crop")),
            Self::RandomCrop(crop) => crop.check(&format!("{setting}.random_crop")),
            Self::RandomHorizontalFlip(probability) => {
                check_probability(&format!("{setting}.random_horizontal_flip"), *probability)
            }
            Self::ColorJitter(jitter) => jitter.check(&format!("{setting}.color_jitter")),
            Self::RandAugment(augment) => augment.check(&format!("{setting}.rand_augment")),
            Self::RandomErasing(erasing) => erasing.check(&format!("{setting}.random_erasing")),
        }
    }

    /// Side of the square it makes, `None` when it keeps the size.
    fn side(&self) -> Option<Side> {
        match *self {
            Self::Resize(Resize {
                size: Size::Exact([height, width]),
                ..
            }) if height == width => Some(Side::Square(height)),
            Self::Resize(_) => Some(Side::Other),
            Self::CenterCrop(size)
            | Self::RandomResizedCrop(RandomResizedCrop { size, .. })
            | Self::RandomCrop(RandomCrop { size, .. }) => Some(Side::Square(size)),
            Self::RandomHorizontalFlip(_)
            | Self::ColorJitter(_)
            | Self::RandAugment(_)
            | Self::RandomErasing(_) => None,
        }
    }

    fn apply<'a>(&self, image: Cow<'a, Image>, rng: Option<&mut ChaCha8Rng>) -> Cow<'a, Image> {
        match (self, rng) {
            (Self::Resize(resize), _) => Cow::Owned(resize.apply(&image)),
            (Self::CenterCrop(size), _) => Cow::Owned(center_crop(&image, *size)),
            (Self::RandomResizedCrop(crop), rng) => Cow::Owned(crop.apply(&image, rng)),
            (Self::RandomCrop(crop), rng) => Cow::Owned(crop.apply(&image, rng)),
            (Self::ColorJitter(jitter), Some(rng)) => {
                Cow::Owned(jitter.apply(image.into_owned(), rng))
            }
            (Self::RandAugment(augment), Some(rng)) => {
                Cow::Owned(augment.apply(image.into_owned(), rng))
            }
            // Erasing comes after the bytes have become numbers.
            (Self::RandomErasing(_), _) | (_, None) => image,
            (Self::RandomHorizontalFlip(probability), Some(rng)) => {
                if happens(*probability, rng) {
                    Cow::Owned(flip_horizontally(image.into_owned()))
                } else {
                    image
                }
            }
        }
    }
}

/// Size of an image after a step.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Square(usize),
    /// Depends on the image, or is no square.
    Other,
}

impl PipelineConfig {
    /// The transforms of published class-incremental runs on natural images: for training a random resized crop to
    /// `side` (area 0.05 to 1, ratio 3/4 to 4/3, bilinear) and a flip, for evaluation a resize of the shorter side to
    /// `resize` and the central square.
    ///
    /// The published numbers are `PipelineConfig::imagenet(224, 256, Interpolation::Bicubic)`.
    pub fn imagenet(side: usize, resize: usize, interpolation: Interpolation) -> Self {
        Self {
            train: Self::imagenet_train(side),
            test: Self::imagenet_test(resize, side, interpolation),
        }
    }

    /// The training half of [`imagenet`](Self::imagenet).
    pub fn imagenet_train(side: usize) -> Vec<Step> {
        vec![
            Step::RandomResizedCrop(RandomResizedCrop {
                area: (0.05, 1.0),
                ..RandomResizedCrop::new(side)
            }),
            Step::RandomHorizontalFlip(0.5),
        ]
    }

    /// The evaluation half of [`imagenet`](Self::imagenet): shorter side to `resize`, then the central `side`.
    pub fn imagenet_test(resize: usize, side: usize, interpolation: Interpolation) -> Vec<Step> {
        vec![
            Step::Resize(Resize {
                size: Size::Shorter(resize),
                interpolation,
            }),
            Step::CenterCrop(side),
        ]
    }

    /// The pipeline whose training half is the evaluation half too.
    #[must_use]
    pub fn for_evaluation(&self) -> Self {
        Self {
            train: self.test.clone(),
            test: self.test.clone(),
        }
    }

    /// Whether training draws random numbers.
    pub fn is_random(&self) -> bool {
        self.train.iter().any(Step::is_random)
    }

    pub(crate) fn check(&self, side: usize) -> Result<(), ImageError> {
        for (half, steps) in [("train", &self.train), ("test", &self.test)] {
            let half = format!("transform.pipeline.{half}");
            for (i, step) in steps.iter().enumerate() {
                step.check(&format!("{half}[{i}]"))?;
            }
            let found = match steps.iter().rev().find_map(Step::side) {
                Some(Side::Square(found)) if found == side => continue,
                Some(Side::Square(found)) => {
                    format!("a list that ends at {found} x {found} pixels")
                }
                Some(Side::Other) => {
                    "a list that ends with a resize of the shorter side or to no square".to_owned()
                }
                None => "a list without a step that sets the size".to_owned(),
            };
            let expected = format!(
                "`transform.side`, {side} x {side}, for instance by `center_crop = {side}` at the end"
            );
            return Err(ImageError::setting(half, found, expected));
        }
        let is_erasing = |step: &Step| matches!(step, Step::RandomErasing(_));
        if let Some(i) = self.train.iter().position(is_erasing)
            && i + 1 < self.train.len()
        {
            return Err(ImageError::setting(
                format!("transform.pipeline.train[{i}]"),
                "random_erasing before another step",
                "it to be the last step, as it runs after normalisation",
            ));
        }
        if let Some(i) = self.test.iter().position(Step::is_random) {
            return Err(ImageError::setting(
                format!("transform.pipeline.test[{i}]"),
                "a random step",
                "resize or center_crop",
            ));
        }
        Ok(())
    }

    /// Number of first training steps that are the same in every epoch.
    fn n_fixed(&self) -> usize {
        self.train
            .iter()
            .position(Step::is_random)
            .unwrap_or(self.train.len())
    }

    /// Takes the training steps before the first random one; their result may be cached.
    pub(crate) fn apply_fixed(&self, image: Image) -> Image {
        let steps = &self.train[..self.n_fixed()];
        let image = Cow::Owned(image);
        let image = steps
            .iter()
            .fold(image, |image, step| step.apply(image, None));
        image.into_owned()
    }

    /// Takes the steps from the first random one.
    pub(crate) fn apply_random<'a>(
        &self,
        image: &'a Image,
        mut rng: Option<&mut ChaCha8Rng>,
    ) -> Cow<'a, Image> {
        let steps = &self.train[self.n_fixed()..];
        steps.iter().fold(Cow::Borrowed(image), |image, step| {
            step.apply(image, rng.as_deref_mut())
        })
    }

    /// Overwrites a rectangle of the normalised planes of `side` x `side`, if the last step says so.
    pub(crate) fn erase(&self, values: &mut [f32], side: usize, rng: Option<&mut ChaCha8Rng>) {
        if let (Some(Step::RandomErasing(erasing)), Some(rng)) = (self.train.last(), rng) {
            erasing.apply(values, side, rng);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::generator;
    use crate::golden::{cases, difference};
    use crate::transform::{Channels, TransformConfig};

    #[test]
    fn evaluation_equals_torchvision_to_the_last_bit() {
        for case in cases("evaluation") {
            let side = case.side();
            let pipeline =
                PipelineConfig::imagenet(side, case.resize.unwrap(), Interpolation::Bicubic);
            let transform = TransformConfig::new(side, Channels::Rgb)
                .with_pipeline(pipeline)
                .with_normalise([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
                .for_evaluation()
                .init()
                .unwrap();
            let mut out = vec![0.0; transform.n_values()];
            let base = transform.base_image(case.input());
            transform.write(&base, None, &mut out);
            // Rows and columns 10 and 11 of each plane.
            let at = |c: usize, y: usize, x: usize| out[(c * side + y) * side + x];
            let corner: Vec<f32> = (0..3)
                .flat_map(|c| [at(c, 10, 10), at(c, 10, 11), at(c, 11, 10), at(c, 11, 11)])
                .collect();
            assert_eq!(corner, case.corner.clone().unwrap());
        }
    }

    #[test]
    fn jpegs_decode_nearly_as_in_pil() {
        // The standard leaves the rounding of the inverse transform open, and how colour that was stored at half the
        // size is interpolated. Whole colour (4:4:4) first, then 4:2:0 and 4:2:2.
        let limits = [(2, 0.05), (10, 0.5), (10, 0.5)];
        for (case, (most, mean_most)) in cases("decode").iter().zip(limits) {
            let (largest, mean) = difference(&case.input(), &case.expected());
            assert!(
                largest <= most && mean < mean_most,
                "{case:?}: {largest}, {mean}"
            );
        }
    }

    #[test]
    fn flips_come_as_often_as_asked() {
        let image = Image::new(2, 1, 1, vec![0, 255]).unwrap();
        let n_flips = |probability| {
            let step = Step::RandomHorizontalFlip(probability);
            (0..2000)
                .filter(|&i| {
                    let mut rng = generator(0, [0, 0, i]);
                    step.apply(Cow::Borrowed(&image), Some(&mut rng)).data()[0] == 255
                })
                .count()
        };
        // Binomial: mean 500, standard deviation 19.4.
        assert!((400..600).contains(&n_flips(0.25)));
        assert_eq!((n_flips(0.0), n_flips(1.0)), (0, 2000));
    }

    #[test]
    fn the_published_recipe_in_toml() {
        let text = r#"
            side = 224
            channels = "rgb"

            [pipeline]
            train = [
                { random_resized_crop = { size = 224, area = [0.05, 1.0] } },
                { random_horizontal_flip = 0.5 },
            ]
            test = [
                { resize = { size = 256, interpolation = "bicubic" } },
                { center_crop = 224 },
            ]
        "#;
        let parsed: TransformConfig = toml::from_str(text).unwrap();
        assert_eq!(parsed, TransformConfig::imagenet());
        assert!(parsed.init().is_ok());
        let written = toml::to_string(&parsed).unwrap();
        assert_eq!(
            toml::from_str::<TransformConfig>(&written).unwrap(),
            parsed,
            "{written}"
        );
    }

    #[test]
    fn every_example_of_the_page_is_valid() {
        #[derive(serde::Deserialize)]
        struct Page {
            transform: TransformConfig,
        }
        let page = include_str!("../../../docs/transforms.md");
        let blocks: Vec<&str> = page
            .split("```toml\n")
            .skip(1)
            .map(|rest| rest.split("```").next().unwrap())
            .collect();
        assert_eq!(blocks.len(), 3);
        for block in &blocks {
            let config = toml::from_str::<Page>(block).unwrap().transform;
            config.init().unwrap();
            config.for_evaluation().init().unwrap();
        }
        let first = toml::from_str::<Page>(blocks[0]).unwrap().transform;
        assert_eq!(first, TransformConfig::imagenet());
    }

    #[test]
    fn unknown_names_are_refused() {
        for steps in [
            "[{ centre_crop = 4 }]",
            "[{ resize = { size = 4, filter = 'bicubic' } }]",
            "[{ resize = { size = 4, interpolation = 'nearest' } }]",
            "[{ resize = { size = [4, 4, 4] } }]",
            "[{ random_resized_crop = { size = 4, scale = [0.1, 1.0] } }]",
            "[{ random_crop = { size = 4, pad = 1 } }]",
        ] {
            let text = format!("train = {steps}\ntest = []");
            assert!(toml::from_str::<PipelineConfig>(&text).is_err(), "{steps}");
        }
        assert!(toml::from_str::<PipelineConfig>("train = []\ntest = []\nval = []").is_err());
    }

    #[test]
    fn settings_that_do_not_fit_are_named() {
        let good = TransformConfig::imagenet();
        let with = |train: Vec<Step>| {
            let test = good.pipeline().unwrap().test.clone();
            good.clone().with_pipeline(PipelineConfig { train, test })
        };
        let cropping = RandomResizedCrop::new(224);
        let mut pipeline = good.pipeline().unwrap().clone();
        pipeline.test.push(Step::RandomHorizontalFlip(0.5));
        let random_test = good.clone().with_pipeline(pipeline);
        for (config, name) in [
            (with(vec![]), "pipeline.train"),
            (with(vec![Step::CenterCrop(223)]), "223 x 223"),
            (with(vec![Step::CenterCrop(0)]), "train[0].center_crop"),
            (
                with(PipelineConfig::imagenet_test(224, 224, Interpolation::Bicubic)[..1].to_vec()),
                "shorter side",
            ),
            (
                with(vec![Step::CenterCrop(224), Step::RandomHorizontalFlip(1.5)]),
                "train[1].random_horizontal_flip",
            ),
            (
                with(vec![Step::RandomResizedCrop(RandomResizedCrop {
                    area: (0.5, 0.1),
                    ..cropping
                })]),
                "area",
            ),
            (
                with(vec![Step::RandomResizedCrop(RandomResizedCrop {
                    ratio: (0.0, 1.0),
                    ..cropping
                })]),
                "ratio",
            ),
            (random_test, "test[2]"),
            (
                with(vec![
                    Step::RandomErasing(RandomErasing::default()),
                    Step::CenterCrop(224),
                ]),
                "train[0]",
            ),
        ] {
            let message = config.init().unwrap_err().to_string();
            assert!(message.contains(name), "{name}: {message}");
        }
    }
}
