//! The settings of a published preprocessing.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// How values between pixels are computed when an image is resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Interpolation {
    /// The nearest pixel.
    Nearest,
    /// Linear along both axes.
    Bilinear,
    /// Cubic along both axes.
    Bicubic,
    /// Lanczos with three lobes.
    Lanczos,
    /// The average of the area.
    Box,
}

/// What happens to an image that is not square.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resize {
    /// The shorter side becomes `input_size / crop_fraction`, then the centre is cut out.
    ShortSide,
    /// Both sides become `input_size / crop_fraction`, which may distort, then the centre is cut
    /// out.
    Squash,
}

/// The input of a model: resize, crop, scale to 0 to 1, normalise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Preprocess {
    /// Subtracted from each channel, whose levels are 0 to 1.
    pub mean: Vec<f32>,
    /// Each channel is divided by it afterwards.
    pub std: Vec<f32>,
    /// Side of the square input, in pixels.
    pub input_size: usize,
    /// Side of the crop as a fraction of the resized image, above 0 and at most 1.
    pub crop_fraction: f32,
    /// How the image is resized.
    pub interpolation: Interpolation,
    /// What happens to an image that is not square.
    pub resize: Resize,
}

impl Preprocess {
    /// What the metadata of a file written by this workspace tells.
    pub(crate) fn from_metadata(text: &str) -> Option<Self> {
        serde_json::from_str::<Self>(text).ok()?.valid().ok()
    }

    /// Side to which the image is resized before the crop, in pixels.
    pub fn resized_side(&self) -> usize {
        // A thousandth of a pixel keeps 224 / 0.875 at 256 in spite of rounding.
        (self.input_size as f32 / self.crop_fraction + 1e-3) as usize
    }

    /// Itself, or what cannot be about it.
    pub(super) fn valid(self) -> Result<Self, String> {
        let (mean, std) = (&self.mean, &self.std);
        if mean.len() != std.len() || mean.is_empty() {
            return Err(format!("{} means and {} deviations", mean.len(), std.len()));
        }
        if mean.iter().any(|v| !v.is_finite()) || std.iter().any(|v| !v.is_finite() || *v == 0.0) {
            return Err(format!("mean {mean:?} and deviation {std:?}"));
        }
        if !(self.crop_fraction > 0.0 && self.crop_fraction <= 1.0) {
            return Err(format!("a crop of {} of the image", self.crop_fraction));
        }
        if !(1..=1 << 16).contains(&self.input_size) {
            return Err(format!("{} pixels", self.input_size));
        }
        Ok(self)
    }
}

/// A number or a list of them.
pub(super) fn floats(value: &Value) -> Option<Vec<f32>> {
    if let Some(number) = value.as_f64() {
        return Some(vec![number as f32]);
    }
    value
        .as_array()?
        .iter()
        .map(|v| v.as_f64().map(|v| v as f32))
        .collect()
}
