//! Images for a vision model: decoding, colour, resampling, random changes, and the transform that makes an array of
//! numbers of them.
//!
//! ```text
//! bytes ──Image::decode──▶ Image ──Transform::base_image──▶ BaseImage ──Transform::write──▶ [channels, side, side]
//!                                  once per image, cacheable           once per epoch, random
//! ```
//!
//! | file | subject |
//! | --- | --- |
//! | `image.rs`, `decode/`, `format.rs` | the pixels, and the formats they come from |
//! | `color.rs`, `resample.rs`, `crop.rs`, `erasing.rs`, `rand_augment.rs` | steps equal to torchvision's on PIL images |
//! | `pipeline.rs` | lists of these steps for training and evaluation |
//! | `resize.rs`, `augment.rs` | the drawing transform: shrinking by area and one random affine map |
//! | `appearance.rs` | fixed changes of what images look like |
//! | `transform/` | the settings of a whole transform, and the transform |
//!
//! [`PipelineConfig`] lists the steps of a published transform; [`TransformConfig::imagenet`] is the usual
//! recipe for natural images. Without a pipeline, the drawing transform is cheap and preserves thin strokes.
//!
//! This crate opens no file, knows no data set and no model, and holds no source of random numbers: the caller hands
//! over a generator for every draw.
//!
//! ```
//! use sdlora_image::{Channels, Image, TransformConfig, encode_png};
//!
//! # fn main() -> Result<(), sdlora_image::ImageError> {
//! let png = encode_png(2, 1, &[255, 0, 0, 0, 0, 255])?;
//! let image = Image::decode(&png, "red and blue")?;
//! assert_eq!((image.width(), image.height(), image.channels()), (2, 1, 3));
//!
//! let transform = TransformConfig::new(1, Channels::Rgb).init()?;
//! let mut values = [0.0; 3];
//! transform.write(&transform.base_image(image), None, &mut values);
//! assert_eq!(values, [0.5, 0.0, 0.5]);
//! # Ok(())
//! # }
//! ```

mod appearance;
pub mod augment;
mod chance;
mod check;
mod color;
mod crop;
mod decode;
#[cfg(test)]
mod draws;
mod erasing;
mod error;
mod format;
#[cfg(test)]
mod golden;
mod image;
mod pipeline;
mod rand_augment;
mod resample;
mod resize;
mod transform;

pub use appearance::Appearance;
pub use augment::{AugmentConfig, RandomAffine};
pub use color::ColorJitter;
pub use crop::{RandomCrop, RandomResizedCrop, Resize, Size};
pub use decode::{BitDepth, ImageReading, MAX_IMAGE_BYTES, Rotation, bits_in_use};
pub use erasing::RandomErasing;
pub use error::ImageError;
pub use format::{Format, is_image, other_ending, with_endings};
pub use image::{Image, encode_png};
pub use pipeline::{PipelineConfig, Step};
pub use rand_augment::RandAugment;
pub use resample::Interpolation;
pub use transform::{
    Background, BaseImage, Channels, Drawing, Fit, Normalise, Polarity, Process, Transform,
    TransformConfig,
};
