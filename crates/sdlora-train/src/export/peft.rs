//! One LoRA that holds the directions of all tasks, for the library peft.
//!
//! `Σ_k s_k A_k B_k` is one product: the factors of all tasks side by side, the scales `s_k`
//! (magnitude over norm) inside the second. `lora_alpha = r` makes peft's own scale 1. The base
//! model is written beside it, in `base`, because a LoRA means nothing without it.
//!
//! Programs look for the base where `adapter_config.json` says, from the folder they run in, so it
//! says an absolute path.
//!
//! Modules carry the names of transformers 5 (`vit.layers.N.attention.q_proj`): peft matches module
//! names and renames nothing.

use std::collections::BTreeSet;
use std::path::Path;

use sdlora_vit::Projection;
use serde_json::json;

use super::adapter::{Bank, SiteBank, transposed};
use super::card::{self, Library};
use super::finished_run::FinishedRun;
use super::hf;
use super::json::write_json;
use super::tensors::TensorFile;
use crate::error::TrainError;

/// Name of the folder with the base.
const BASE: &str = "base";

/// Where the base of an export at `place` will lie, as the adapter names it.
///
/// # Errors
///
/// [`TrainError::Export`] for a path that JSON cannot hold.
pub(super) fn base_path(place: &Path) -> Result<String, TrainError> {
    let path = std::path::absolute(place).map_err(TrainError::io("find", place))?;
    let path = path.join(BASE);
    path.to_str().map(str::to_owned).ok_or_else(|| {
        let problem = "peft finds the base by its path, and this one is no Unicode; choose another";
        TrainError::export(place, problem)
    })
}

/// Writes adapter and base into `out`, whose name will be `place` in the end.
pub(super) fn write(run: &FinishedRun, out: &Path, place: &Path) -> Result<(), TrainError> {
    let base_path = base_path(place)?;
    let base = run.check_directions()?;
    let scales = hf::write_folder(run, &base, false, &out.join(BASE))?;
    let (bank, ..) = Bank::read(&run.adapter_path())?;
    let mut file = TensorFile::default();
    let mut targets = BTreeSet::new();
    let mut rank = 0;
    for site in &bank.sites {
        let (block, module) = (site.block_idx, module(site.projection));
        let name = format!("base_model.model.vit.layers.{block}.{module}");
        let (d_input, d_output) = (site.site.d_input, site.site.d_output);
        let (a, mut b, r) = concatenated(site);
        if let Some(scale) = scales.get(&(block, site.projection)) {
            b = hf::scaled_rows(b, scale);
        }
        file.insert(format!("{name}.lora_A.weight"), vec![r, d_input], a);
        file.insert(format!("{name}.lora_B.weight"), vec![d_output, r], b);
        targets.insert(module);
        rank = r;
    }
    let (n, d) = (run.n_classes(), run.d_model());
    let (weight, bias) = run.linear_head()?;
    let head = "base_model.model.classifier";
    file.insert(format!("{head}.weight"), vec![n, d], weight);
    file.insert(format!("{head}.bias"), vec![n], bias);
    file.write(&out.join("adapter_model.safetensors"))?;
    hf::write_preprocessor(run, out)?;
    card::write(run, Library::Peft, out)?;
    write_json(
        &out.join("adapter_config.json"),
        &json!({
            "peft_type": "LORA",
            // peft has no task for images; `AutoPeftModel` then builds the class that is named here.
            "task_type": null,
            "auto_mapping": {
                "base_model_class": "ViTForImageClassification",
                "parent_library": "transformers.models.vit.modeling_vit",
            },
            "base_model_name_or_path": base_path,
            "inference_mode": true,
            "r": rank,
            "lora_alpha": rank,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": false,
            "target_modules": targets,
            "modules_to_save": ["classifier"],
        }),
    )
}

/// The module of a projection in transformers 5; long enough to match no other.
fn module(projection: Projection) -> &'static str {
    match projection {
        Projection::Query => "attention.q_proj",
        Projection::Key => "attention.k_proj",
        Projection::Value => "attention.v_proj",
        Projection::Output => "attention.o_proj",
        Projection::Fc1 => "mlp.fc1",
        Projection::Fc2 => "mlp.fc2",
    }
}

/// `lora_A` `[Σ rank, d_input]`, `lora_B` `[d_output, Σ rank]` and `Σ rank` of a site.
fn concatenated(
    SiteBank {
        site, directions, ..
    }: &SiteBank,
) -> (Vec<f32>, Vec<f32>, usize) {
    let mut a = Vec::new();
    let mut rows = Vec::new();
    let mut total = 0;
    for (factors, scale) in directions {
        a.extend(transposed(&factors.a, site.d_input, factors.rank));
        rows.extend(factors.b.iter().map(|&v| (f64::from(v) * scale) as f32));
        total += factors.rank;
    }
    (a, transposed(&rows, total, site.d_output), total)
}
