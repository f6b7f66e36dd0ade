//! The published transforms: named steps on 8-bit images, equal to torchvision's on PIL images.
//!
//! ```toml
//! train = [{ random_resized_crop = { size = 224 } }, { random_horizontal_flip = 0.5 }]
//! test = [{ resize = { size = 256, interpolation = "bicubic" } }, { center_crop = 224 }]
//! ```
//!
//! Steps have torchvision's names and defaults. What follows the last step is fixed: bytes become fractions of 255 and are
//! normalised. A list may be any length; the last step that changes the size must give `side` x `side`.
//!
//! Deviates: random numbers come from the generator of (seed, task, epoch, sample), not from torch's; the
//! distributions are the same, the draws are not.

use std::borrow::Cow;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::crop::{
    PaddedCrop, RandomResizedCrop, Resize, Size, center_crop, check_side, flip_horizontally,
};
use crate::error::DataError;
use crate::image::Image;
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
    RandomCrop(PaddedCrop),
    /// Exchanges left and right with this probability, 0 to 1.
    RandomHorizontalFlip(f64),
}

impl Step {
    /// Whether the step draws random numbers.
    pub fn is_random(&self) -> bool {
        !matches!(self, Self::Resize(_) | Self::CenterCrop(_))
    }

    fn check(&self, setting: &str) -> Result<(), DataError> {
        match self {
            Self::Resize(resize) => resize.check(&format!("{setting}.resize")),
            Self::CenterCrop(side) => check_side(&format!("{setting}.center_crop"), *side),
            Self::RandomResizedCrop(crop) => crop.check(&format!("{setting}.random_resized_crop")),
            Self::RandomCrop(crop) => crop.check(&format!("{setting}.random_crop")),
            Self::RandomHorizontalFlip(probability) => {
                check_probability(&format!("{setting}.random_horizontal_flip"), *probability)
            }
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
            | Self::RandomCrop(PaddedCrop { size, .. }) => Some(Side::Square(size)),
            Self::RandomHorizontalFlip(_) => None,
        }
    }

    fn apply<'a>(&self, image: Cow<'a, Image>, rng: Option<&mut ChaCha8Rng>) -> Cow<'a, Image> {
        match (self, rng) {
            (Self::Resize(resize), _) => Cow::Owned(resize.apply(&image)),
            (Self::CenterCrop(size), _) => Cow::Owned(center_crop(&image, *size)),
            (Self::RandomResizedCrop(crop), rng) => Cow::Owned(crop.apply(&image, rng)),
            (Self::RandomCrop(crop), rng) => Cow::Owned(crop.apply(&image, rng)),
            (_, None) => image,
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

/// True with this probability: never at 0, always at 1.
pub(crate) fn happens(probability: f64, rng: &mut ChaCha8Rng) -> bool {
    rng.random::<f64>() < probability
}

/// Size of an image after a step.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Square(usize),
    /// Depends on the image, or is no square.
    Other,
}

pub(crate) fn check_probability(setting: &str, probability: f64) -> Result<(), DataError> {
    if (0.0..=1.0).contains(&probability) {
        return Ok(());
    }
    Err(DataError::setting(setting, probability, "0 to 1"))
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

    pub(crate) fn check(&self, side: usize) -> Result<(), DataError> {
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
            return Err(DataError::setting(half, found, expected));
        }
        if let Some(i) = self.test.iter().position(Step::is_random) {
            return Err(DataError::setting(
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
}
