//! The input of a model as Hugging Face's `preprocessor_config.json` describes it.

use serde_json::Value;

use super::settings::{Interpolation, Preprocess, Resize, floats};

/// Steps that are understood or do not change what a square photograph becomes.
const KNOWN_STEPS: [&str; 6] = [
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "do_normalize",
    "do_convert_rgb",
    // Of labels, for segmentation.
    "do_reduce_labels",
];

/// What a processor does where its file is silent.
struct Defaults {
    crops: bool,
    resample: Option<u64>,
    /// Whether one number is the length of the shorter side.
    is_short_side: bool,
}

/// The defaults of a class of transformers (4 and 5), by its name.
fn defaults(cfg: &Value) -> Defaults {
    let class = ["image_processor_type", "feature_extractor_type"]
        .iter()
        .find_map(|key| cfg.get(*key)?.as_str())
        .unwrap_or("ViT");
    let is = |names: &[&str]| names.iter().any(|name| class.starts_with(name));
    if is(&["ViT"]) {
        Defaults {
            crops: false,
            resample: Some(2),
            is_short_side: false,
        }
    } else if is(&["CLIP", "Bit", "ChineseCLIP"]) {
        Defaults {
            crops: true,
            resample: Some(3),
            is_short_side: true,
        }
    } else if is(&["DeiT"]) {
        Defaults {
            crops: true,
            resample: Some(3),
            is_short_side: false,
        }
    } else if is(&["Siglip"]) {
        Defaults {
            crops: false,
            resample: Some(3),
            is_short_side: false,
        }
    } else {
        Defaults {
            // A size to crop to is not written for nothing.
            crops: cfg.get("crop_size").is_some_and(|size| !size.is_null()),
            resample: None,
            is_short_side: false,
        }
    }
}

/// The length that `size` gives, and whether it is that of the shorter side.
fn size_of(size: &Value, is_short_side: bool) -> Result<(usize, bool), String> {
    let number = |value: &Value| value.as_u64().map(|v| v as usize);
    if let Some(side) = number(size) {
        return Ok((side, is_short_side));
    }
    let get = |key: &str| size.get(key).filter(|value| !value.is_null());
    let (short, long) = (get("shortest_edge"), get("longest_edge"));
    let (height, width) = (get("height"), get("width"));
    match (
        short.and_then(number),
        long,
        height.and_then(number),
        width.and_then(number),
    ) {
        (Some(side), None, None, None) => Ok((side, true)),
        (None, None, Some(height), Some(width)) if height == width => Ok((height, false)),
        (None, None, Some(height), Some(width)) => Err(format!(
            "a size of {height} x {width} pixels, and only squares are supported"
        )),
        (_, Some(_), ..) => Err("`longest_edge`".into()),
        _ => Err(format!("the size `{size}`")),
    }
}

/// The description as a [`Preprocess`]; what is not supported is the object of "asks for ...".
pub(super) fn read(cfg: &Value) -> Result<Preprocess, String> {
    let defaults = defaults(cfg);
    let flag = |key: &str| cfg.get(key).and_then(Value::as_bool);
    let steps = cfg.as_object().into_iter().flatten();
    let unknown = steps
        .filter(|(key, value)| key.starts_with("do_") && **value == Value::Bool(true))
        .find(|(key, _)| !KNOWN_STEPS.contains(&key.as_str()));
    if let Some((key, _)) = unknown {
        return Err(format!("the step `{key}`"));
    }
    if flag("offset") == Some(true) {
        return Err("`offset`".into());
    }
    if cfg.get("crop_pct").is_some_and(|value| !value.is_null()) {
        return Err("`crop_pct`".into());
    }
    if flag("do_resize") == Some(false) {
        return Err("images that have the size of the model already (`do_resize` is false)".into());
    }
    let size = cfg.get("size").ok_or("a resize without `size`")?;
    let (resized, is_short) = size_of(size, defaults.is_short_side)?;
    let crop = match flag("do_center_crop").unwrap_or(defaults.crops) {
        true => Some(cfg.get("crop_size").ok_or("a crop without `crop_size`")?),
        false => None,
    };
    let input_size = match crop {
        None if is_short => {
            return Err("images that stay rectangles (`shortest_edge` without a crop)".into());
        }
        None => resized,
        Some(crop) => size_of(crop, false)?.0,
    };
    if input_size > resized {
        return Err(format!(
            "a crop of {input_size} out of {resized} pixels, which adds a border"
        ));
    }
    let resample = match cfg.get("resample") {
        None | Some(Value::Null) => defaults.resample.ok_or("a resize without `resample`")?,
        Some(value) => value
            .as_u64()
            .ok_or_else(|| format!("the resampling `{value}`"))?,
    };
    // The numbers of Pillow.
    let interpolation = match resample {
        0 => Interpolation::Nearest,
        1 => Interpolation::Lanczos,
        2 => Interpolation::Bilinear,
        3 => Interpolation::Bicubic,
        4 => Interpolation::Box,
        other => return Err(format!("the resampling {other} of Pillow")),
    };
    let (mut mean, mut std) = if flag("do_normalize").unwrap_or(true) {
        let numbers = |key: &str| {
            let value = cfg
                .get(key)
                .ok_or_else(|| format!("a normalisation without `{key}`"))?;
            floats(value).ok_or_else(|| format!("`{key}` = {value}"))
        };
        (numbers("image_mean")?, numbers("image_std")?)
    } else {
        (vec![0.0; 3], vec![1.0; 3])
    };
    // Levels that reach the normalisation on another scale: the same map on 0 to 1.
    let factor = cfg.get("rescale_factor").and_then(Value::as_f64);
    let scale = match flag("do_rescale") {
        Some(false) => 255.0,
        _ => 255.0 * factor.unwrap_or(1.0 / 255.0),
    } as f32;
    if (scale - 1.0).abs() > 1e-4 {
        for value in mean.iter_mut().chain(&mut std) {
            *value /= scale;
        }
    }
    Preprocess {
        mean,
        std,
        input_size,
        crop_fraction: input_size as f32 / resized as f32,
        interpolation,
        resize: if is_short {
            Resize::ShortSide
        } else {
            Resize::Squash
        },
    }
    .valid()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn images_are_squashed_or_cropped() {
        let vit = json!({
            "size": 224, "resample": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        });
        let found = read(&vit).unwrap();
        assert_eq!((found.input_size, found.crop_fraction), (224, 1.0));
        assert_eq!(found.resize, Resize::Squash);
        assert_eq!(found.interpolation, Interpolation::Bilinear);

        let dinov2 = json!({
            "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224},
            "do_center_crop": true, "resample": 3, "rescale_factor": 0.003_921_568_627,
            "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
        });
        let found = read(&dinov2).unwrap();
        assert_eq!((found.input_size, found.resized_side()), (224, 256));
        assert_eq!(found.resize, Resize::ShortSide);
        assert_eq!(found.std[0], 0.229);
    }

    #[test]
    fn one_number_is_the_shorter_side_for_clip_and_the_square_for_deit() {
        let mut cfg = json!({
            "feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224,
            "image_mean": [0.5], "image_std": [0.5],
        });
        let found = read(&cfg).unwrap();
        assert_eq!(
            (found.resize, found.interpolation),
            (Resize::ShortSide, Interpolation::Bicubic)
        );
        cfg["feature_extractor_type"] = json!("DeiTFeatureExtractor");
        cfg["size"] = json!(256);
        let found = read(&cfg).unwrap();
        assert_eq!((found.resize, found.resized_side()), (Resize::Squash, 256));
    }

    #[test]
    fn levels_left_at_255_are_normalised_on_the_scale_of_one() {
        let cfg = json!({
            "size": {"height": 32, "width": 32}, "do_rescale": false,
            "image_mean": [127.5], "image_std": [51.0],
        });
        let found = read(&cfg).unwrap();
        assert_eq!((found.mean[0], found.std[0]), (0.5, 0.2));
    }

    #[test]
    fn what_is_not_done_here_is_named_and_not_passed_over() {
        let good = json!({
            "image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32},
            "image_mean": [0.5], "image_std": [0.5],
        });
        read(&good).unwrap();
        for (key, value, expected) in [
            ("do_pad", json!(true), "do_pad"),
            ("do_thumbnail", json!(true), "do_thumbnail"),
            ("do_resize", json!(false), "do_resize"),
            ("size", json!({"longest_edge": 32}), "longest_edge"),
            (
                "size",
                json!({"shortest_edge": 32, "longest_edge": 64}),
                "longest_edge",
            ),
            ("size", json!({"shortest_edge": 32}), "rectangles"),
            (
                "size",
                json!({"max_height": 32, "max_width": 32}),
                "max_height",
            ),
            ("size", json!({"height": 32, "width": 48}), "32 x 48"),
            ("resample", json!(5), "resampling 5"),
            ("resample", json!("lanczos"), "lanczos"),
            ("crop_pct", json!(0.9), "crop_pct"),
            ("do_center_crop", json!(true), "crop_size"),
            ("image_mean", json!("x"), "image_mean"),
            ("image_std", json!([0.0]), "deviation"),
        ] {
            let mut cfg = good.clone();
            cfg[key] = value;
            let message = read(&cfg).unwrap_err();
            assert!(message.contains(expected), "{key}: {message}");
        }
        let mut cfg = good;
        cfg["do_pad"] = json!(false);
        cfg["do_center_crop"] = json!(true);
        cfg["crop_size"] = json!(40);
        assert!(read(&cfg).unwrap_err().contains("border"));
    }
}
