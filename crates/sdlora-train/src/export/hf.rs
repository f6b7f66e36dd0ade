//! A folder that `ViTForImageClassification.from_pretrained` and `AutoImageProcessor` open.
//!
//! Names in the file are those every version of transformers has read so far
//! (`vit.encoder.layer.N.attention.attention.query`); version 5 renames its modules while loading.

use std::path::Path;

use sdlora_data::Fit;
use sdlora_vit::{Pooling, PosEmbed, Vit, VitConfig};
use serde_json::{Map, Value, json};

use super::tensors::{HostTensor, TensorFile};
use super::{FinishedRun, named, normalisation, write_json};
use crate::error::TrainError;

/// Writes the merged model.
pub(super) fn write(run: &FinishedRun, out: &Path) -> Result<(), TrainError> {
    write_folder(run, &run.vit, true, out)
}

/// Writes a backbone of the run's shape; without `trained_head` the classifier is 0.
pub(super) fn write_folder(
    run: &FinishedRun,
    vit: &Vit,
    trained_head: bool,
    out: &Path,
) -> Result<(), TrainError> {
    let (n, d) = (run.n_classes(), run.d_model());
    check(vit.config(), out)?;
    let mut file = tensors(vit, out)?;
    let (weight, bias) = match trained_head {
        true => run.linear_head()?,
        false => (vec![0.0; n * d], vec![0.0; n]),
    };
    file.insert("classifier.weight", vec![n, d], weight);
    file.insert("classifier.bias", vec![n], bias);
    std::fs::create_dir_all(out).map_err(TrainError::io("create", out))?;
    file.write(&out.join("model.safetensors"))?;
    write_json(&out.join("config.json"), &config(run))?;
    write_json(&out.join("preprocessor_config.json"), &preprocessor(run))
}

/// Refuses shapes that `ViTForImageClassification` does not have.
fn check(c: &VitConfig, out: &Path) -> Result<(), TrainError> {
    if !c.class_token || c.pooling != Pooling::ClassToken {
        return Err(TrainError::export(
            out,
            "`ViTForImageClassification` classifies a class token, and this backbone averages its \
             patches: use `--format timm` or `--format safetensors`",
        ));
    }
    // Layer scale, registers and the norm in front are found by the names of their tensors.
    if c.patch_bias && c.qkv_bias && c.pos_embed == PosEmbed::All && !c.fc_norm {
        return Ok(());
    }
    Err(TrainError::export(
        out,
        "`ViTForImageClassification` has biases, positions or a final norm other than those of \
         this backbone: use `--format timm` or `--format safetensors`",
    ))
}

/// Splits the packed projection and renames everything else.
fn tensors(vit: &Vit, out: &Path) -> Result<TensorFile, TrainError> {
    let mut file = TensorFile::default();
    for (name, HostTensor { shape, values }) in named(vit)?.tensors {
        if let Some((block, kind)) = name
            .strip_prefix("blocks.")
            .and_then(|rest| rest.split_once(".attn.qkv."))
        {
            let third = values.len() / 3;
            let mut part_shape = shape.clone();
            part_shape[0] /= 3;
            for (part, values) in ["query", "key", "value"]
                .iter()
                .zip(values.chunks_exact(third.max(1)))
            {
                let name = format!("vit.encoder.layer.{block}.attention.attention.{part}.{kind}");
                file.insert(name, part_shape.clone(), values.to_vec());
            }
            continue;
        }
        let renamed = renamed(&name).ok_or_else(|| {
            let problem = format!("`ViTForImageClassification` has no place for `{name}`");
            TrainError::export(out, problem)
        })?;
        file.insert(renamed, shape, values);
    }
    Ok(file)
}

/// The Hugging Face name of a timm name, the packed projection aside.
fn renamed(name: &str) -> Option<String> {
    let fixed = match name {
        "cls_token" => Some("vit.embeddings.cls_token"),
        "pos_embed" => Some("vit.embeddings.position_embeddings"),
        "patch_embed.proj.weight" => Some("vit.embeddings.patch_embeddings.projection.weight"),
        "patch_embed.proj.bias" => Some("vit.embeddings.patch_embeddings.projection.bias"),
        "norm.weight" => Some("vit.layernorm.weight"),
        "norm.bias" => Some("vit.layernorm.bias"),
        _ => None,
    };
    if let Some(fixed) = fixed {
        return Some(fixed.into());
    }
    let (block, rest) = name.strip_prefix("blocks.")?.split_once('.')?;
    let (layer, kind) = rest.rsplit_once('.')?;
    let layer = match layer {
        "norm1" => "layernorm_before",
        "norm2" => "layernorm_after",
        "attn.proj" => "attention.output.dense",
        "mlp.fc1" => "intermediate.dense",
        "mlp.fc2" => "output.dense",
        _ => return None,
    };
    Some(format!("vit.encoder.layer.{block}.{layer}.{kind}"))
}

fn config(run: &FinishedRun) -> Value {
    let c = run.vit.config();
    let labels: Map<String, Value> = (0..)
        .zip(&run.class_names)
        .map(|(i, name): (usize, _)| (i.to_string(), json!(name)))
        .collect();
    let ids: Map<String, Value> = (0..)
        .zip(&run.class_names)
        .map(|(i, name): (usize, _)| (name.clone(), json!(i)))
        .collect();
    json!({
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": c.d_model,
        "num_hidden_layers": c.depth,
        "num_attention_heads": c.n_heads,
        "intermediate_size": c.d_mlp,
        "hidden_act": "gelu",
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "num_channels": c.n_channels,
        "layer_norm_eps": c.norm_eps,
        "qkv_bias": true,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": labels,
        "label2id": ids,
        "torch_dtype": "float32",
    })
}

/// What the run does to an image, in the words of an image processor.
fn preprocessor(run: &FinishedRun) -> Value {
    let side = run.vit.config().image_size;
    let (mean, std) = normalisation(run);
    let mut all = json!({
        "image_processor_type": "ViTImageProcessor",
        "do_resize": true,
        "size": {"height": side, "width": side},
        "resample": 2,
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": mean,
        "image_std": std,
        "do_convert_rgb": run.vit.config().n_channels == 3,
    });
    if let Fit::CropCentre { fraction } = run.config.transform.fit {
        // Only this processor cuts the centre out.
        all["image_processor_type"] = json!("CLIPImageProcessor");
        all["size"] = json!({"shortest_edge": (side as f32 / fraction).round() as usize});
        all["do_center_crop"] = json!(true);
        all["crop_size"] = json!({"height": side, "width": side});
    }
    all
}
