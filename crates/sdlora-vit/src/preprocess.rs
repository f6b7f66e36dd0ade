//! How an image becomes the input that a published ViT was trained on.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::sidecar::Sidecar;

/// Metadata key under which a file keeps the [`Preprocess`] of its model, as JSON.
pub const PREPROCESS_KEY: &str = "sdlora.preprocess";

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
    /// From timm's `pretrained_cfg`; `None` when it lacks mean or deviation. What else it lacks is
    /// timm's default (`resolve_data_config`): 224 pixels, 0.875, bicubic.
    pub(crate) fn from_timm(cfg: &Value) -> Option<Self> {
        let number = |key: &str| cfg.get(key).and_then(Value::as_f64);
        let side = cfg.get("input_size").and_then(|size| size.get(1)?.as_u64());
        Self {
            mean: floats(cfg.get("mean")?)?,
            std: floats(cfg.get("std")?)?,
            input_size: side.unwrap_or(224) as usize,
            crop_fraction: number("crop_pct").unwrap_or(0.875) as f32,
            interpolation: match cfg.get("interpolation").and_then(Value::as_str) {
                Some("nearest") => Interpolation::Nearest,
                Some("bilinear") => Interpolation::Bilinear,
                Some("lanczos") => Interpolation::Lanczos,
                _ => Interpolation::Bicubic,
            },
            resize: match cfg.get("crop_mode").and_then(Value::as_str) {
                Some("squash") => Resize::Squash,
                _ => Resize::ShortSide,
            },
        }
        .valid()
    }

    /// From Hugging Face's `preprocessor_config.json`; `None` when it does not tell the size.
    pub(crate) fn from_hugging_face(cfg: &Value) -> Option<Self> {
        let flag = |key: &str| cfg.get(key).and_then(Value::as_bool).unwrap_or(true);
        let side = |key: &str, of: &str| {
            let size = cfg.get(key)?;
            size.get(of).unwrap_or(size).as_u64().map(|v| v as usize)
        };
        let short = side("size", "shortest_edge").filter(|_| cfg["size"].is_object());
        let size = short.or_else(|| side("size", "height"));
        let crop = side("crop_size", "height")
            .filter(|_| cfg.get("do_center_crop").and_then(Value::as_bool) != Some(false));
        // Without resizing an image already has the size of the model.
        let resized = size.filter(|_| flag("do_resize")).or(crop)?;
        let input_size = crop.unwrap_or(resized).min(resized);
        let (mut mean, mut std) = if flag("do_normalize") {
            (
                floats(cfg.get("image_mean")?)?,
                floats(cfg.get("image_std")?)?,
            )
        } else {
            (vec![0.0; 3], vec![1.0; 3])
        };
        // Levels that reach the normalisation on another scale: the same map on 0 to 1.
        let factor = cfg
            .get("rescale_factor")
            .and_then(Value::as_f64)
            .unwrap_or(1.0 / 255.0);
        let scale = if flag("do_rescale") {
            255.0 * factor
        } else {
            255.0
        } as f32;
        if (scale - 1.0).abs() > 1e-4 {
            for value in mean.iter_mut().chain(&mut std) {
                *value /= scale;
            }
        }
        Self {
            mean,
            std,
            input_size,
            crop_fraction: input_size as f32 / resized as f32,
            // The numbers of Pillow.
            interpolation: match cfg.get("resample").and_then(Value::as_u64) {
                Some(0) => Interpolation::Nearest,
                Some(1) => Interpolation::Lanczos,
                Some(3) => Interpolation::Bicubic,
                _ => Interpolation::Bilinear,
            },
            resize: if short.is_some() {
                Resize::ShortSide
            } else {
                Resize::Squash
            },
        }
        .valid()
    }

    /// What the metadata of a file written by this workspace tells.
    pub(crate) fn from_metadata(text: &str) -> Option<Self> {
        serde_json::from_str::<Self>(text).ok()?.valid()
    }

    /// What the files beside the weights tell.
    pub(crate) fn beside(sidecar: &Sidecar) -> Option<Self> {
        sidecar
            .preprocessor
            .as_ref()
            .and_then(Self::from_hugging_face)
            .or_else(|| Self::from_timm(sidecar.pretrained_cfg()?))
    }

    /// Key and value to put into the metadata of [`Vit::save`](crate::Vit::save), from where
    /// [`Checkpoint::preprocess`](crate::Checkpoint::preprocess) reads it back.
    pub fn metadata_entry(&self) -> (String, String) {
        let text = serde_json::json!({
            "mean": self.mean,
            "std": self.std,
            "input_size": self.input_size,
            "crop_fraction": self.crop_fraction,
            "interpolation": self.interpolation,
            "resize": self.resize,
        });
        (PREPROCESS_KEY.into(), text.to_string())
    }

    /// Side to which the image is resized before the crop, in pixels.
    pub fn resized_side(&self) -> usize {
        // A thousandth of a pixel keeps 224 / 0.875 at 256 in spite of rounding.
        (self.input_size as f32 / self.crop_fraction + 1e-3) as usize
    }

    fn valid(self) -> Option<Self> {
        let channels = self.mean.len() == self.std.len() && !self.mean.is_empty();
        let finite = self.mean.iter().chain(&self.std).all(|v| v.is_finite());
        let divides = self.std.iter().all(|&v| v > 0.0);
        let crop = self.crop_fraction > 0.0 && self.crop_fraction <= 1.0;
        let side = (1..=1 << 16).contains(&self.input_size);
        (channels && finite && divides && crop && side).then_some(self)
    }
}

fn floats(value: &Value) -> Option<Vec<f32>> {
    value
        .as_array()?
        .iter()
        .map(|v| v.as_f64().map(|v| v as f32))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn timm_resizes_the_short_side_by_the_crop() {
        let cfg = json!({
            "input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.875,
            "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
        });
        let found = Preprocess::from_timm(&cfg).unwrap();
        assert_eq!(found.resized_side(), 256);
        assert_eq!(found.resize, Resize::ShortSide);
        assert_eq!(found.mean, [0.485, 0.456, 0.406]);
        let (key, text) = found.metadata_entry();
        assert_eq!(key, PREPROCESS_KEY);
        assert_eq!(Preprocess::from_metadata(&text), Some(found));
    }

    #[test]
    fn hugging_face_squashes_or_crops() {
        let vit = json!({
            "size": 224, "resample": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        });
        let found = Preprocess::from_hugging_face(&vit).unwrap();
        assert_eq!((found.input_size, found.crop_fraction), (224, 1.0));
        assert_eq!(found.resize, Resize::Squash);
        assert_eq!(found.interpolation, Interpolation::Bilinear);

        let dinov2 = json!({
            "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224},
            "do_center_crop": true, "resample": 3, "rescale_factor": 0.003_921_568_627,
            "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
        });
        let found = Preprocess::from_hugging_face(&dinov2).unwrap();
        assert_eq!((found.input_size, found.resized_side()), (224, 256));
        assert_eq!(found.resize, Resize::ShortSide);
        assert_eq!(found.std[0], 0.229);
    }

    #[test]
    fn levels_left_at_255_are_normalised_on_the_scale_of_one() {
        let cfg = json!({
            "size": {"height": 32, "width": 32}, "do_rescale": false,
            "image_mean": [127.5], "image_std": [51.0],
        });
        let found = Preprocess::from_hugging_face(&cfg).unwrap();
        assert_eq!((found.mean[0], found.std[0]), (0.5, 0.2));
    }

    #[test]
    fn numbers_that_cannot_be_are_no_preprocessing() {
        for (key, value) in [
            ("std", json!([0.0])),
            ("crop_pct", json!(0)),
            ("mean", json!("x")),
        ] {
            let mut cfg = json!({"mean": [0.5], "std": [0.5]});
            cfg[key] = value;
            assert_eq!(Preprocess::from_timm(&cfg), None, "{key}");
        }
    }
}
