//! What a finished run leaves to ship: one ordinary weight file, the head, the class names, and the
//! adapter by itself.
//!
//! | file | what |
//! |---|---|
//! | `vit.safetensors` | backbone with all directions merged into its weights, timm names |
//! | `head.safetensors` | `weight` `[n_classes, d_model]` and `bias` of what predicts, whatever the head |
//! | `classes.json` | names of the classes in the order of their labels |
//! | `prompts.safetensors` | what a second pass reads: prompts, branches; without it features and head do not fit |
//! | `adapter.safetensors` | every direction (PyTorch layout) and the magnitudes; only with directions |
//! | `predict.json` | how images are prepared, and what was calibrated; see [`PredictConfig`] |
//! | `novelty.safetensors` | class means and the precision around them; only of a run with `calibrate_on` |
//! | `SHA256SUMS` | the sums of all of them, checked when they are read |

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use sdlora_core::{CurrentForm, HostFactors};
use sdlora_image::TransformConfig;
use sdlora_vit::{Vit, WeightDtype};

use super::tensors::TensorFile;
use crate::config::check_input;
use crate::error::TrainError;
use crate::extractor::Extractor;
use crate::features::FeatureTable;
use crate::files::sums::check_files;
use crate::files::{NewFolder, write_file};
use crate::finished::Finished;
use crate::heads::Classifier;
use crate::methods::{METHODS, MethodEntry};
use crate::model::Model;
use crate::predicting::{Novelty, PredictConfig, energy, probabilities};
use crate::state::{MethodState, file};

/// Metadata key of the settings in `adapter.safetensors`.
pub(super) const CONFIG_KEY: &str = "sdlora.adapter.config";
/// Version of the adapter file.
const ADAPTER_VERSION: &str = "1";

/// Name of the file with the prompts.
pub(super) const PROMPTS_FILE: &str = "prompts.safetensors";
pub(super) const VIT_FILE: &str = "vit.safetensors";
pub(super) const HEAD_FILE: &str = "head.safetensors";
pub(super) const CLASSES_FILE: &str = "classes.json";
pub(super) const PREDICT_FILE: &str = "predict.json";
pub(super) const NOVELTY_FILE: &str = "novelty.safetensors";
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
    let mut written = vec![VIT_FILE, HEAD_FILE, CLASSES_FILE, PREDICT_FILE];

    let head_file = folder.join(HEAD_FILE);
    finished.classifier.write(&head_file, &finished.head_name)?;

    let names = serde_json::to_vec_pretty(&finished.class_names)
        .map_err(|e| TrainError::setting("class names", "unwritable", e.to_string()))?;
    write_file(&folder.join(CLASSES_FILE), &names)?;
    write_file(&folder.join(PREDICT_FILE), &finished.predicting.to_json()?)?;
    if let Some(novelty) = &finished.novelty {
        novelty.write(&folder.join(NOVELTY_FILE))?;
        written.push(NOVELTY_FILE);
    }
    if file::write(&folder.join(PROMPTS_FILE), &model.state)? {
        written.push(PROMPTS_FILE);
    }
    // Where all directions were merged, none is left to write.
    let mut banks = model.adapter.sites.iter();
    if banks.any(|bank| bank.past.is_some() || bank.current.is_some()) {
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
    let known: Vec<_> = methods
        .iter()
        .filter_map(|method| method.second_pass)
        .collect();
    file::read(&path, d_model, depth, &known, device)
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
    /// Absent in folders of earlier versions.
    config: Option<PredictConfig>,
    novelty: Option<Novelty>,
    device: Device,
    path: PathBuf,
}

/// What a model says of one image.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Labels of the most likely classes and their probabilities, the most likely first; of equals, the smaller label.
    /// Probabilities are those of the temperature that the folder knows, of 1 where it knows none.
    pub top: Vec<(usize, f64)>,
    /// Distance from the nearest class mean, see [`Novelty`]; absent where the folder has no means.
    pub distance: Option<f64>,
    /// `−T log Σ exp(logit / T)` over all classes, with the temperature `T` of the probabilities (Liu et al. 2020,
    /// "Energy-based out-of-distribution detection", equation 4): another score of strangers, to compare with.
    pub energy: f64,
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
        let extractor = Extractor::from(vit).with_state(state);
        let head_file = folder.join(HEAD_FILE);
        let classifier = Classifier::read(&head_file, extractor.width())?;
        let path = folder.join(CLASSES_FILE);
        let text = std::fs::read(&path).map_err(TrainError::io("read", &path))?;
        let mut class_names: Vec<String> =
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
        class_names.truncate(n_classes);
        let path = folder.join(PREDICT_FILE);
        let config = match path.is_file() {
            false => None,
            true => {
                check_files(folder, &[PREDICT_FILE])?;
                let text = std::fs::read(&path).map_err(TrainError::io("read", &path))?;
                Some(PredictConfig::from_json(&text, &path)?)
            }
        };
        let path = folder.join(NOVELTY_FILE);
        let novelty = match path.is_file() {
            false => None,
            true => {
                check_files(folder, &[NOVELTY_FILE])?;
                let file = TensorFile::read(&path)?;
                Some(Novelty::from_file(&file, &path, extractor.width())?)
            }
        };
        let has_threshold = config.as_ref().is_some_and(|c| c.calibrated.is_some());
        if has_threshold && novelty.is_none() {
            return Err(TrainError::Damaged {
                path: folder.into(),
                problem: format!("{PREDICT_FILE} has a threshold, and there is no {NOVELTY_FILE}"),
            });
        }
        Ok(Self {
            extractor,
            classifier,
            class_names,
            config,
            novelty,
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
        let labels = self.classifier.predict(&self.features(images));
        labels
            .into_iter()
            .map(|label| self.class_names[label].as_str())
            .collect()
    }

    /// What the model says of each of `images: [batch, n_channels, image_size, image_size]`, with the `n_top` most
    /// likely classes, or all where there are fewer. The size is that of [`predict`](Self::predict).
    pub fn answers(&self, images: Tensor<4>, n_top: usize) -> Vec<Answer> {
        let table = self.features(images);
        let n_classes = self.classifier.n_classes();
        let calibrated = self.config.as_ref().and_then(|c| c.calibrated.as_ref());
        let temperature = calibrated.map_or(1.0, |calibrated| calibrated.temperature);
        let mut distances = self
            .novelty
            .as_ref()
            .map(|n| n.distances(&table).into_iter());
        let logits = self.classifier.logits(&table);
        let rows = logits.chunks_exact(n_classes.max(1)).take(table.len());
        rows.map(|logits| {
            let shares = probabilities(logits, temperature);
            let mut order: Vec<usize> = (0..n_classes).collect();
            let n_top = n_top.min(n_classes);
            // Plus 0 makes one of both zeros.
            let by_logit = |a: &usize, b: &usize| {
                (logits[*b] + 0.0)
                    .total_cmp(&(logits[*a] + 0.0))
                    .then(a.cmp(b))
            };
            if n_top < n_classes {
                order.select_nth_unstable_by(n_top, by_logit);
            }
            order.truncate(n_top);
            order.sort_unstable_by(by_logit);
            Answer {
                top: order
                    .into_iter()
                    .map(|label| (label, shares[label]))
                    .collect(),
                distance: distances.as_mut().and_then(Iterator::next),
                energy: energy(logits, temperature),
            }
        })
        .collect()
    }

    fn features(&self, images: Tensor<4>) -> FeatureTable {
        let read = self.extractor.read(images);
        let [n, d_model] = read.features.dims();
        let mut table = FeatureTable {
            d_model,
            labels: vec![0; n],
            ..FeatureTable::default()
        };
        table.extend(read);
        table
    }

    /// The same model with other means to measure distances from.
    #[must_use]
    pub fn with_novelty(mut self, novelty: Novelty) -> Self {
        self.novelty = Some(novelty);
        self
    }

    /// Names of the classes in the order of their labels.
    pub fn class_names(&self) -> &[String] {
        &self.class_names
    }

    /// How images are prepared, and what was calibrated; `None` of a folder that an earlier version wrote.
    pub fn config(&self) -> Option<&PredictConfig> {
        self.config.as_ref()
    }

    /// Where images have to be.
    pub fn device(&self) -> &Device {
        &self.device
    }
}
