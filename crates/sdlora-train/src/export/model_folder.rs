//! What a finished run leaves to ship: one ordinary weight file, the head, the class names, and the
//! adapter by itself.
//!
//! | file | what |
//! |---|---|
//! | `vit.safetensors` | backbone with all directions merged into its weights, timm names |
//! | `head.safetensors` | `weight` `[n_classes, d_model]` and `bias` of what predicts, whatever the head |
//! | `classes.json` | names of the classes in the order of their labels |
//! | `prompts.safetensors` | prompts, without which features and head do not fit; only of a prompt method |
//! | `adapter.safetensors` | every direction (PyTorch layout) and the magnitudes; only with directions |
//! | `SHA256SUMS` | the sums of all of them, checked when they are read |

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use sdlora_core::{CurrentForm, HostFactors};
use sdlora_image::TransformConfig;
use sdlora_vit::{Vit, WeightDtype};

use super::adapter::CONFIG_KEY;
use super::tensors::TensorFile;
use crate::config::check_input;
use crate::error::TrainError;
use crate::extractor::Extractor;
use crate::features::FeatureTable;
use crate::files::sums::check_files;
use crate::files::{NewFolder, write_file};
use crate::heads::Classifier;
use crate::methods::{METHODS, MethodEntry};
use crate::model::Model;
use crate::run::Finished;
use crate::state::{self, MethodState};

/// Version of the adapter file.
const ADAPTER_VERSION: &str = "1";

/// Name of the file with the prompts.
pub(super) const PROMPTS_FILE: &str = "prompts.safetensors";
pub(super) const VIT_FILE: &str = "vit.safetensors";
pub(super) const HEAD_FILE: &str = "head.safetensors";
pub(super) const CLASSES_FILE: &str = "classes.json";
pub(super) const ADAPTER_FILE: &str = "adapter.safetensors";

/// Writes the files above into `folder`, which appears when all of them are there. The one above it has to be
/// there already.
///
/// # Errors
///
/// [`TrainError::Io`] when the file system refuses; an earlier folder is then intact.
pub fn write_model(folder: &Path, finished: &Finished) -> Result<(), TrainError> {
    let mut new = NewFolder::named(folder)?;
    let written = write_files(new.path(), finished)?;
    for name in written {
        new.adopt(name)?;
    }
    new.seal()?;
    new.finish()
}

/// Writes the files and says which.
fn write_files(folder: &Path, finished: &Finished) -> Result<Vec<&'static str>, TrainError> {
    let model = &finished.model;
    let vit = model.merged_backbone();
    let bytes = vit.to_bytes(WeightDtype::F32, &BTreeMap::new())?;
    write_file(&folder.join(VIT_FILE), &bytes)?;
    let mut written = vec![VIT_FILE, HEAD_FILE, CLASSES_FILE];

    let head_file = folder.join(HEAD_FILE);
    finished.classifier.write(&head_file, &finished.head_name)?;

    let names = serde_json::to_vec_pretty(&finished.class_names)
        .map_err(|e| TrainError::setting("class names", "unwritable", e.to_string()))?;
    write_file(&folder.join(CLASSES_FILE), &names)?;
    if state::write(&folder.join(PROMPTS_FILE), &model.state)? {
        written.push(PROMPTS_FILE);
    }
    if model.adapter.n_tasks() > 0 {
        write_adapter(&folder.join(ADAPTER_FILE), model)?;
        written.push(ADAPTER_FILE);
    }
    Ok(written)
}

/// The state that the second pass of a model folder reads; empty where its method needs one pass.
pub(super) fn read_state(
    folder: &Path,
    d_model: usize,
    depth: usize,
    methods: &[MethodEntry],
    device: &Device,
) -> Result<MethodState, TrainError> {
    let path = folder.join(PROMPTS_FILE);
    if !path.is_file() {
        return Ok(MethodState::default());
    }
    check_files(folder, &[PROMPTS_FILE])?;
    state::read(&path, d_model, depth, methods, device)
}

/// Directions as `blocks.<i>.<projection>.task<k>.lora_A` `[rank, d_input]` and `.lora_B`
/// `[d_output, rank]`, the factor `norm` that divides each, and `magnitudes` `[n_groups, n_tasks]`.
fn write_adapter(path: &Path, model: &Model) -> Result<(), TrainError> {
    let mut file = TensorFile::default();
    for bank in &model.adapter.sites {
        let site = bank.site();
        let mut all: Vec<(HostFactors, f64, f64)> = Vec::new();
        if let Some(past) = &bank.past {
            let inverse = past.inverse_norms();
            let scales = inverse.into_iter().zip(past.offsets_host());
            let with_scales = past.to_host().into_iter().zip(scales);
            all.extend(with_scales.map(|(factors, (inverse, offset))| (factors, inverse, offset)));
        }
        all.extend(bank.current.as_ref().map(|current| {
            let factors = current.to_host();
            let scale = match model.adapter.config().current {
                CurrentForm::Raw => 1.0,
                CurrentForm::Normalised { eps } => 1.0 / factors.frobenius_norm().hypot(eps),
            };
            (factors, scale, 0.0)
        }));
        for (k, (factors, inverse_norm, offset)) in all.into_iter().enumerate() {
            let matrix = |values: Vec<f32>, shape: [usize; 2]| {
                Tensor::<2>::from_data(TensorData::new(values, shape), &Device::default())
                    .transpose()
            };
            let name = |part: &str| format!("{site}.task{k}.{part}");
            let rank = factors.rank;
            file.push(name("lora_A"), matrix(factors.a, [site.d_input, rank]));
            file.push(name("lora_B"), matrix(factors.b, [rank, site.d_output]));
            for (part, value) in [("inverse_norm", inverse_norm), ("offset", offset)] {
                let value = TensorData::from([value as f32]);
                let value = Tensor::<1>::from_data(value, &Device::default());
                file.push(name(part), value);
            }
        }
    }
    let rows = model.adapter.magnitude_rows();
    let (n_groups, n_tasks) = (rows.len(), rows.first().map_or(0, Vec::len));
    let values: Vec<f32> = rows.into_iter().flatten().map(|v| v as f32).collect();
    file.push(
        "magnitudes",
        Tensor::<2>::from_data(
            TensorData::new(values, [n_groups, n_tasks]),
            &Device::default(),
        ),
    );
    let config = serde_json::to_string(&model.adapter.config())
        .map_err(|e| TrainError::setting("adapter", "unwritable", e.to_string()))?;
    let metadata = [
        ("sdlora.adapter.version", ADAPTER_VERSION.to_owned()),
        (CONFIG_KEY, config),
    ];
    file.metadata = metadata.map(|(key, value)| (key.into(), value)).into();
    file.write(path)
}

/// A model to predict with: merged backbone, prompts, classifier and names, read from the files above.
#[derive(Debug)]
pub struct Predictor {
    extractor: Extractor,
    classifier: Classifier,
    class_names: Vec<String>,
    device: Device,
    path: PathBuf,
}

impl Predictor {
    /// Reads a folder that [`write_model`] wrote.
    ///
    /// # Errors
    ///
    /// Those of missing or damaged files.
    pub fn load(folder: &Path, device: &Device) -> Result<Self, TrainError> {
        check_files(folder, &[VIT_FILE, HEAD_FILE, CLASSES_FILE])?;
        let (vit, _) = Vit::load(&folder.join(VIT_FILE), None, device)?;
        let (d_model, depth) = (vit.config().d_model, vit.config().depth);
        let state = read_state(folder, d_model, depth, METHODS, device)?;
        let head_file = folder.join(HEAD_FILE);
        let classifier = Classifier::read(&head_file, d_model)?;
        let path = folder.join(CLASSES_FILE);
        let text = std::fs::read(&path).map_err(TrainError::io("read", &path))?;
        let class_names: Vec<String> =
            serde_json::from_slice(&text).map_err(|e| TrainError::Damaged {
                path,
                problem: e.to_string(),
            })?;
        let n_classes = classifier.n_classes();
        if class_names.len() < n_classes {
            return Err(TrainError::Damaged {
                path: folder.into(),
                problem: format!("{n_classes} classes have {} names", class_names.len()),
            });
        }
        Ok(Self {
            extractor: Extractor::from(vit).with_state(state),
            classifier,
            class_names,
            device: device.clone(),
            path: folder.join(VIT_FILE),
        })
    }

    /// Checks that images prepared by a transform are what the model takes.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] that names both sizes.
    pub fn check(&self, transform: &TransformConfig) -> Result<(), TrainError> {
        check_input(transform, self.extractor.vit().config(), &self.path)
    }

    /// The class name of each of `images: [batch, n_channels, image_size, image_size]`, which has to be the
    /// size that [`check`](Self::check) accepts.
    pub fn predict(&self, images: Tensor<4>) -> Vec<&str> {
        let features = self.extractor.features(images);
        let [n, d_model] = features.dims();
        let table = FeatureTable {
            features: features.into_data().iter::<f32>().collect(),
            d_model,
            labels: vec![0; n],
        };
        let labels = self.classifier.predict(&table);
        labels
            .into_iter()
            .map(|label| self.class_names[label].as_str())
            .collect()
    }

    /// Where images have to be.
    pub fn device(&self) -> &Device {
        &self.device
    }
}
