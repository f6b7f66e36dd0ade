//! Ordinary weights out: what a finished run leaves, and the forms other programs read.
//!
//! [`write_model`] ends every run; [`export`] turns what it left into one of [`Format`], without
//! training code or data.

mod adapter;
mod bundle;
mod card;
mod extract;
mod hf;
mod history;
mod model_folder;
mod onnx;
mod peft;
mod place;
mod preparation;
mod tensors;
mod timm;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use sdlora_vit::{Vit, WeightDtype};
use serde::Serialize;

pub use adapter::AdapterFolder;
pub use bundle::UnpackedBundle;
pub use extract::extract_features;
pub use model_folder::{Answer, Predictor, write_model};
pub use onnx::{OnnxOptions, OnnxPreparation, OnnxProbe};
pub use tensors::{HostTensor, TensorFile};

use self::model_folder::{
    ADAPTER_FILE, CLASSES_FILE, HEAD_FILE, NOVELTY_FILE, PREDICT_FILE, PROMPTS_FILE, VIT_FILE,
};
use self::place::{Kind, Place};
use self::preparation::Preparation;
use crate::config::{BackboneConfig, RunConfig, check_input};
use crate::error::TrainError;
use crate::extractor::Extractor;
use crate::files::sums::check_files;
use crate::files::write_file;
use crate::heads::Classifier;
use crate::methods::METHODS;
use crate::run_folder::{PLAN_FILE, read_plan};
use crate::state::MethodState;

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

/// Largest difference, relative to the largest weight of a tensor, between the merged weights and
/// base plus directions that is rounding rather than another change.
const MERGE_TOLERANCE: f32 = 1e-5;

/// A finished run, read from its folder.
#[derive(Debug)]
pub struct FinishedRun {
    folder: PathBuf,
    data_dir: PathBuf,
    device: Device,
    config: RunConfig,
    /// With all directions inside its weights.
    vit: Vit,
    classifier: Classifier,
    class_names: Vec<String>,
    /// Empty where features need one pass.
    state: MethodState,
    /// That of the model, where its owner says it.
    licence: Option<String>,
}

impl FinishedRun {
    /// Reads the folder of a run; the base weights, where a form needs them, are looked for as the
    /// run did, from `data_dir`.
    ///
    /// # Errors
    ///
    /// [`TrainError::NotFinished`] for a folder without plan or model, and those of damaged files.
    pub fn open(folder: &Path, data_dir: &Path, device: &Device) -> Result<Self, TrainError> {
        let plan = folder.join(PLAN_FILE);
        let model = folder.join("model");
        let (vit_file, head_file) = (model.join(VIT_FILE), model.join(HEAD_FILE));
        let classes = model.join(CLASSES_FILE);
        for needed in [&plan, &vit_file, &head_file, &classes] {
            if !needed.is_file() {
                return Err(TrainError::NotFinished {
                    path: folder.into(),
                    missing: needed.clone(),
                });
            }
        }
        let config = read_plan(folder)?;
        let mut files = vec![VIT_FILE, HEAD_FILE, CLASSES_FILE];
        let others = [ADAPTER_FILE, PREDICT_FILE, NOVELTY_FILE];
        files.extend(others.into_iter().filter(|name| model.join(name).is_file()));
        check_files(&model, &files)?;
        let (vit, _) = Vit::load(&vit_file, None, device)?;
        check_input(&config.transform, vit.config(), &vit_file)?;
        let (d_model, depth) = (vit.config().d_model, vit.config().depth);
        let state = model_folder::read_state(&model, d_model, depth, METHODS, device)?;
        let width = Extractor::from(vit.clone())
            .with_state(state.clone())
            .width();
        let classifier = Classifier::read(&head_file, width)?;
        let n_classes = classifier.n_classes();
        let text = std::fs::read(&classes).map_err(TrainError::io("read", &classes))?;
        let mut class_names: Vec<String> = serde_json::from_slice(&text)
            .map_err(|e| TrainError::export(&classes, e.to_string()))?;
        if class_names.len() < n_classes {
            let problem = format!("{n_classes} classes have {} names", class_names.len());
            return Err(TrainError::export(&classes, problem));
        }
        class_names.truncate(n_classes);
        Ok(Self {
            folder: folder.into(),
            data_dir: data_dir.into(),
            device: device.clone(),
            config,
            vit,
            classifier,
            class_names,
            state,
            licence: None,
        })
    }

    /// The same run with the section of its backbone completed: where the base weights lie, when the
    /// plan names no path.
    #[must_use]
    pub fn with_backbone(mut self, backbone: BackboneConfig) -> Self {
        self.config.backbone = backbone;
        self
    }

    /// The same run under a licence, which model cards and bundles carry; an identifier such as `Apache-2.0` or a text.
    #[must_use]
    pub fn with_licence(mut self, licence: Option<String>) -> Self {
        self.licence = licence;
        self
    }

    /// The plan of the run.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// The backbone with all directions inside its weights.
    pub fn vit(&self) -> &Vit {
        &self.vit
    }

    /// What classifies the features of the run.
    pub fn classifier(&self) -> &Classifier {
        &self.classifier
    }

    /// What turns images into the features of the run: the backbone, and what a second pass
    /// reads.
    pub fn extractor(&self) -> Extractor {
        Extractor::from(self.vit.clone()).with_state(self.state.clone())
    }

    /// Rows `[n_classes, d_model]` and biases `[n_classes]` of the head, for formats that know no
    /// other than a linear one.
    fn linear_head(&self) -> Result<(Vec<f32>, Vec<f32>), TrainError> {
        let linear = self.classifier.as_linear();
        let (rows, bias) = linear.ok_or_else(|| {
            let problem = "its head is not linear in the features, and no format of other programs \
                           has a place for it: use `sdlora predict`, which reads the run folder, or \
                           run with another `head`";
            TrainError::export(&self.folder, problem)
        })?;
        Ok((rows.to_vec(), bias.to_vec()))
    }

    fn n_classes(&self) -> usize {
        self.class_names.len()
    }

    fn d_model(&self) -> usize {
        self.vit.config().d_model
    }

    fn adapter_path(&self) -> PathBuf {
        self.folder.join("model").join(ADAPTER_FILE)
    }

    /// The backbone as it was before the run.
    fn base(&self) -> Result<Vit, TrainError> {
        let side = self.config.transform.side;
        self.config
            .backbone
            .load(&self.data_dir, Some(side), &self.device)
    }

    /// Checks that base weights and directions are all there is to the merged weights, and returns
    /// the base.
    fn check_directions(&self) -> Result<Vit, TrainError> {
        let method = &self.config.method.name;
        let refuse = |problem: String| Err(TrainError::export(&self.folder, problem));
        if !self.adapter_path().is_file() {
            return refuse(format!(
                "method {method} leaves no directions, so there is no adapter: use `--format hf` \
                 or `--format timm`"
            ));
        }
        let base = self.base()?;
        let (bank, ..) = adapter::Bank::read(&self.adapter_path())?;
        let composed = named(&base.clone().merged(&bank.updates(&self.device)))?;
        let merged = named(&self.vit)?;
        for (name, expected) in &merged.tensors {
            let largest = expected.values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            let is_same = composed.tensors.get(name).is_some_and(|found| {
                found.shape == expected.shape
                    && found
                        .values
                        .iter()
                        .zip(&expected.values)
                        .all(|(a, b)| (a - b).abs() <= MERGE_TOLERANCE * largest)
            });
            if !is_same {
                return refuse(format!(
                    "`{name}` is not base plus directions (method {method}, base {}): check that \
                     the base file is the one of the run, or use `--format hf` or `--format timm`",
                    self.config.backbone.weights.display()
                ));
            }
        }
        Ok(base)
    }
}

/// The parameters of a model with timm's names, on the host.
fn named(vit: &Vit) -> Result<TensorFile, TrainError> {
    let bytes = vit.to_bytes(WeightDtype::F32, &BTreeMap::new())?;
    TensorFile::from_bytes(&bytes, Path::new("the backbone"))
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
                "method {} {}, which no form of weights can hold: use `--format bundle`, `sdlora predict` and \
                 `sdlora features --run`, or read {} in the folder of the run as docs/formats.md says",
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
                 place, or replace it with `--force`",
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
            "a file of weights says nothing of how images are prepared: a folder (`--out` without \
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

/// A JSON file.
fn write_json(path: &Path, value: &impl Serialize) -> Result<(), TrainError> {
    let text =
        serde_json::to_vec_pretty(value).map_err(|e| TrainError::export(path, e.to_string()))?;
    write_file(path, &text)
}
