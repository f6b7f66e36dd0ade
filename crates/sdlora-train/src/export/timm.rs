//! Merged weights with timm's names and the classifier as `head`.

use std::path::Path;

use sdlora_vit::{Activation, BACKBONES, Pooling, PosEmbed, VitConfig};
use serde_json::json;

use super::card::{self, Library};
use super::finished_run::FinishedRun;
use super::json::write_json;
use super::preparation::{Filter, Preparation, Resized, normalisation};
use super::tensors::{TensorFile, named};
use crate::error::TrainError;

/// Added to the variance by timm's ViTs; its configuration file cannot name another.
const NORM_EPS: f64 = 1e-6;

/// Backbone and `head.weight` `[n_classes, d_model]`, `head.bias` `[n_classes]`.
pub(super) fn file(run: &FinishedRun) -> Result<TensorFile, TrainError> {
    let mut file = named(&run.vit)?;
    let (n, d) = (run.n_classes(), run.d_model());
    let (weight, bias) = run.linear_head()?;
    file.insert("head.weight", vec![n, d], weight);
    file.insert("head.bias", vec![n], bias);
    Ok(file)
}

/// A folder for `timm.create_model("local-dir:PATH", pretrained=True)`.
pub(super) fn write(run: &FinishedRun, out: &Path) -> Result<(), TrainError> {
    let c = run.vit.config();
    if c.norm_eps != NORM_EPS {
        let problem = format!(
            "its layer norms use eps {}, and a timm configuration can only say {NORM_EPS}: \
             export to a file ending in .safetensors and set `norm_layer` yourself",
            c.norm_eps
        );
        return Err(TrainError::export(out, problem));
    }
    let (mean, std) = normalisation(&run.config.transform);
    let pool = match c.pooling {
        Pooling::ClassToken => "token",
        Pooling::Average => "avg",
    };
    let side = c.image_size;
    let (crop, mode, interpolation) = evaluation(&Preparation::of(&run.config.transform));
    let mut config = json!({
        "architecture": architecture(c),
        "num_classes": run.n_classes(),
        "num_features": c.d_model,
        "global_pool": pool,
        "label_names": run.class_names,
        "model_args": {
            "img_size": side,
            "patch_size": c.patch_size,
            "in_chans": c.n_channels,
            "embed_dim": c.d_model,
            "depth": c.depth,
            "num_heads": c.n_heads,
            "mlp_ratio": c.d_mlp as f64 / c.d_model as f64,
            "class_token": c.class_token,
            "global_pool": pool,
            "fc_norm": c.fc_norm,
            "qkv_bias": c.qkv_bias,
            "reg_tokens": c.n_registers,
            "no_embed_class": c.pos_embed == PosEmbed::Patches,
            "pre_norm": c.pre_norm,
            "init_values": c.layer_scale.then_some(1e-5),
        },
        "pretrained_cfg": {
            "num_classes": run.n_classes(),
            "input_size": [c.n_channels, side, side],
            "fixed_input_size": true,
            "interpolation": interpolation,
            "crop_pct": crop,
            "crop_mode": mode,
            "mean": mean,
            "std": std,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    });
    if c.activation != Activation::default() {
        config["model_args"]["act_layer"] = json!(c.activation.timm());
    }
    file(run)?.write(&out.join("model.safetensors"))?;
    write_json(&out.join("config.json"), &config)?;
    card::write(run, Library::Timm, out)
}

/// `crop_pct`, `crop_mode` and `interpolation`.
fn evaluation(preparation: &Preparation) -> (f64, &'static str, &'static str) {
    let (resized, mode) = match preparation.resized {
        Resized::Shorter(resized) => (resized, "center"),
        Resized::Square(resized) => (resized, "squash"),
    };
    let interpolation = match preparation.filter {
        Filter::Bilinear => "bilinear",
        Filter::Bicubic => "bicubic",
        Filter::Area => "box",
    };
    (crop_pct(preparation.side, resized), mode, interpolation)
}

/// The fraction that timm turns back into `resized`: it divides `side` by it and rounds down, where
/// the plain quotient may end a hair below.
fn crop_pct(side: usize, resized: usize) -> f64 {
    let (side, resized) = (side as f64, resized as f64);
    let plain = side / resized;
    if (side / plain).floor() == resized {
        plain
    } else {
        side / (resized + 1e-6)
    }
}

/// timm's name of the shape, or the name of a shape that `model_args` then changes.
fn architecture(c: &VitConfig) -> &'static str {
    let is_same = |other: VitConfig| {
        (other.patch_size, other.d_model, other.depth) == (c.patch_size, c.d_model, c.depth)
    };
    BACKBONES
        .iter()
        .find(|preset| is_same((preset.config)()))
        .map_or("vit_tiny_patch16_224", |preset| preset.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_image::{
        Channels, Interpolation, PipelineConfig, Resize, Size, Step, TransformConfig,
    };

    #[test]
    fn the_evaluation_steps_of_a_pipeline_reach_timm() {
        let of = |transform: &TransformConfig| evaluation(&Preparation::of(transform));
        let mut transform = TransformConfig::new(224, Channels::Rgb);
        assert_eq!(of(&transform), (1.0, "squash", "box"));
        let mut pipeline = PipelineConfig::imagenet(224, 256, Interpolation::Bicubic);
        transform = transform.with_pipeline(pipeline.clone());
        assert_eq!(of(&transform), (0.875, "center", "bicubic"));
        pipeline.test[0] = Step::Resize(Resize {
            size: Size::Exact([224, 224]),
            interpolation: Interpolation::Bilinear,
        });
        transform = transform.with_pipeline(pipeline);
        assert_eq!(of(&transform), (1.0, "squash", "bilinear"));
    }

    #[test]
    fn every_size_comes_back_out_of_its_fraction() {
        for side in 1..=600 {
            for resized in side..=side + 200 {
                let back = (side as f64 / crop_pct(side, resized)).floor();
                assert_eq!(back, resized as f64, "{side} of {resized}");
            }
        }
    }
}
