//! Ordinary weights out: what a finished run leaves, and the forms other programs read.
//!
//! [`write_model`] ends every run; [`export`] turns what it left into one of [`Format`], without
//! training code or data.

mod adapter;
mod bundle;
mod card;
mod extract;
mod finished_run;
mod hf;
mod history;
mod json;
mod model_folder;
mod onnx;
mod peft;
mod place;
mod preparation;
mod tensors;
mod timm;

use std::path::Path;

pub use adapter::AdapterFolder;
pub use bundle::UnpackedBundle;
pub use extract::extract_features;
pub use finished_run::FinishedRun;
pub use model_folder::{Answer, Predictor, write_model};
pub use onnx::{OnnxOptions, OnnxPreparation, OnnxProbe};
pub use tensors::{HostTensor, TensorFile};

use self::model_folder::PROMPTS_FILE;
use self::place::{Kind, Place};
use self::preparation::Preparation;
use crate::error::TrainError;
use crate::files::write_file;

/// A form to export to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Merged weights with timm's names, one file or a folder timm opens with `local-dir:`.
    Timm,
    /// Merged weights as a Hugging Face folder of `ViTForImageClassification`.
    Hf,
    /// One exact LoRA of all directions for the library peft, with its base model beside it.
    Peft,
    /// The adapter by itself, see [`AdapterFolder`].
    Safetensors,
    /// One safetensors file with the whole model folder and the plan, see [`UnpackedBundle`].
    Bundle,
    /// One ONNX file with everything from the picture to the logits.
    Onnx(OnnxOptions),
}

impl Format {
    /// Every form with its name, and its settings as they are when nothing is said.
    pub const ALL: [(&'static str, Self); 6] = [
        ("timm", Self::Timm),
        ("hf", Self::Hf),
        ("peft", Self::Peft),
        ("safetensors", Self::Safetensors),
        ("bundle", Self::Bundle),
        ("onnx", Self::Onnx(OnnxOptions::DEFAULT)),
    ];

    /// The form of that name.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] that lists the names.
    pub fn from_name(name: &str) -> Result<Self, TrainError> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.map(|&(_, format)| format).ok_or_else(|| {
            let known: Vec<&str> = Self::ALL.iter().map(|(name, _)| *name).collect();
            TrainError::setting("format", name, format!("one of {}", known.join(", ")))
        })
    }
}

/// Writes `run` in a form to `out`; only `force` replaces what is there. A folder appears whole or not
/// at all, and a replaced one keeps no file of before.
///
/// # Errors
///
/// [`TrainError::OutputExists`], [`TrainError::Export`] for what the form cannot express, which is
/// so with prompts for all but [`Format::Bundle`], and for a place that holds what no export writes
/// or what the run is read from, and those of the file system.
///
/// Returns what the form does not carry over, a sentence each.
pub fn export(
    run: &FinishedRun,
    format: Format,
    out: &Path,
    force: bool,
) -> Result<Vec<String>, TrainError> {
    let second_pass = run.state.second_pass();
    if let Some(second_pass) = second_pass.filter(|_| format != Format::Bundle) {
        return Err(TrainError::export(
            &run.folder,
            format!(
                "method {} {}, which no form of weights can hold: use the format `bundle`, let the run itself predict \
                 and compute features, or read {} in the folder of the run as docs/formats.md says",
                run.config.method.name,
                second_pass.does(),
                Path::new("model").join(PROMPTS_FILE).display()
            ),
        ));
    }
    let ends_in = |extension: &str| out.extension().is_some_and(|e| e == extension);
    let is_file = match format {
        Format::Timm => ends_in("safetensors"),
        Format::Onnx(_) if !ends_in("onnx") => {
            let problem = "the format is one file whose name ends in .onnx; give such a name";
            return Err(TrainError::export(out, problem));
        }
        Format::Bundle if !ends_in("safetensors") => {
            let problem =
                "the format is one file whose name ends in .safetensors; give such a name";
            return Err(TrainError::export(out, problem));
        }
        Format::Onnx(_) | Format::Bundle => true,
        Format::Hf | Format::Peft | Format::Safetensors => false,
    };
    let kind = if is_file { Kind::File } else { Kind::Folder };
    let back = place::recover(out)?;
    let place = Place::check(out, kind, run, force).map_err(|error| {
        let is_new = matches!(error, TrainError::OutputExists { .. });
        match back.iter().any(|path| place::is_same(path, out)) && is_new {
            true => TrainError::export(
                out,
                "an export that was killed had moved what lay there aside, and it is back now: choose another \
                 place, or have it replaced",
            ),
            false => error,
        }
    })?;
    // Refused before anything is written.
    if matches!(format, Format::Timm | Format::Hf | Format::Peft) {
        run.linear_head()?;
    }
    let mut said = Vec::new();
    match format {
        Format::Timm if is_file => place.file(|out| timm::file(run)?.write(out)),
        Format::Timm => place.folder(|out| timm::write(run, out)),
        Format::Hf => place.folder(|out| hf::write(run, out)),
        Format::Peft => place.folder(|folder| peft::write(run, folder, out)),
        Format::Safetensors => place.folder(|out| adapter::write(run, out)),
        Format::Bundle => {
            let bytes = bundle::file(run, out)?;
            place.file(|out| write_file(out, &bytes))
        }
        Format::Onnx(options) => {
            let (bytes, notes) = onnx::file(run, options, out)?;
            said = notes;
            place.file(|out| write_file(out, &bytes))
        }
    }?;
    let mut notes = notes(run, format, is_file, out)?;
    notes.splice(0..0, said);
    notes.extend(back.iter().map(|path| {
        format!(
            "an export that was killed had moved {} aside: it {}",
            path.display(),
            match place::is_same(path, out) {
                true => "was back, and is replaced now",
                false => "is back",
            }
        )
    }));
    Ok(notes)
}

/// What a form at `out` does not carry over.
fn notes(
    run: &FinishedRun,
    format: Format,
    is_file: bool,
    out: &Path,
) -> Result<Vec<String>, TrainError> {
    let transform = &run.config.transform;
    let preparation = Preparation::of(transform);
    let oversample = transform.drawing().map_or(1, |drawing| drawing.oversample);
    let mut notes = match format {
        Format::Timm if is_file => vec![
            "a file of weights says nothing of how images are prepared: a folder (a place whose name does not end in \
             .safetensors) does"
                .into(),
        ],
        Format::Timm => preparation.lost_with(preparation.filter, oversample),
        Format::Hf | Format::Peft => {
            let mut lost = preparation.lost_with(hf::filter(&preparation), oversample);
            lost.extend(preparation.lost_by_rounding_down());
            lost
        }
        Format::Safetensors | Format::Bundle => return Ok(Vec::new()),
        Format::Onnx(_) => Vec::new(),
    };
    if let Some(head) = run.config.head.as_ref().map(|head| head.name.as_str())
        && ["ncm", "cosine"].contains(&head)
    {
        notes.push(format!(
            "the head `{head}` is a linear classifier there: it predicts the same classes, with other \
             probabilities"
        ));
    }
    if format == Format::Peft {
        notes.push(format!(
            "adapter_config.json finds the base at `{}`: when the folder moves, change \
             `base_model_name_or_path` in it",
            peft::base_path(out)?
        ));
    }
    Ok(notes)
}
