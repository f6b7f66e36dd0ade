//! The input of a model as timm's `pretrained_cfg` describes it.

use serde_json::Value;

use super::settings::{Interpolation, Preprocess, Resize, floats};

/// The description as a [`Preprocess`]; `None` when it has neither mean nor deviation. What else it
/// lacks is timm's default (`resolve_data_config`): 224 pixels, 0.875, bicubic. What is not
/// supported is the object of "asks for ...".
pub(super) fn read(cfg: &Value) -> Option<Result<Preprocess, String>> {
    let (mean, std) = (cfg.get("mean")?, cfg.get("std")?);
    Some(preprocess(cfg, mean, std))
}

fn preprocess(cfg: &Value, mean: &Value, std: &Value) -> Result<Preprocess, String> {
    let numbers =
        |key: &str, value: &Value| floats(value).ok_or_else(|| format!("`{key}` = {value}"));
    let text = |key: &str| cfg.get(key).and_then(Value::as_str);
    let input_size = match cfg
        .get("input_size")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
    {
        None => 224,
        Some([_, height, width]) if height == width => height
            .as_u64()
            .ok_or_else(|| format!("`input_size` = {height}"))?
            as usize,
        Some(size) => {
            let size = Value::from(size.to_vec());
            return Err(format!(
                "an input of {size}, and only squares are supported"
            ));
        }
    };
    let crop_fraction = cfg.get("crop_pct").and_then(Value::as_f64).unwrap_or(0.875) as f32;
    let interpolation = match text("interpolation") {
        None | Some("bicubic") => Interpolation::Bicubic,
        Some("bilinear") => Interpolation::Bilinear,
        Some("nearest") => Interpolation::Nearest,
        Some("lanczos") => Interpolation::Lanczos,
        Some("box") => Interpolation::Box,
        Some(other) => return Err(format!("the interpolation `{other}`")),
    };
    let resize = match text("crop_mode") {
        None | Some("center") => Resize::ShortSide,
        Some("squash") => Resize::Squash,
        Some(other) => return Err(format!("the crop mode `{other}`")),
    };
    Preprocess {
        mean: numbers("mean", mean)?,
        std: numbers("std", std)?,
        input_size,
        crop_fraction,
        interpolation,
        resize,
    }
    .valid()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_short_side_is_resized_by_the_crop() {
        let cfg = json!({
            "input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.875,
            "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225],
        });
        let found = read(&cfg).unwrap().unwrap();
        assert_eq!(found.resized_side(), 256);
        assert_eq!(found.resize, Resize::ShortSide);
        assert_eq!(found.mean, [0.485, 0.456, 0.406]);
        let text = serde_json::to_string(&found).unwrap();
        assert_eq!(Preprocess::from_metadata(&text), Some(found));
    }

    #[test]
    fn what_cannot_be_or_is_not_done_here_is_named() {
        for (key, value, expected) in [
            ("std", json!([0.0]), "deviation"),
            ("crop_pct", json!(0), "crop"),
            ("mean", json!("x"), "mean"),
            ("interpolation", json!("random"), "random"),
            ("crop_mode", json!("border"), "border"),
            ("input_size", json!([3, 224, 320]), "320"),
        ] {
            let mut cfg = json!({"mean": [0.5], "std": [0.5]});
            cfg[key] = value;
            let message = read(&cfg).unwrap().unwrap_err();
            assert!(message.contains(expected), "{key}: {message}");
        }
        assert_eq!(read(&json!({"mean": [0.5]})), None);
    }
}
