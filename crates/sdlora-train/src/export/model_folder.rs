//! What a finished run leaves to ship: one ordinary weight file, the head, the class names, and the
//! adapter by itself.
//!
//! | file | what |
//! |---|---|
//! | `vit.safetensors` | backbone with all directions merged into its weights, timm names |
//! | `head.safetensors` | `weight` `[n_classes, d_model]` and `bias`, or `class_means` |
//! | `classes.json` | names of the classes in the order of their labels |
//! | `prompts.safetensors` | prompts, without which features and head do not fit; only of a prompt method |
//! | `adapter.safetensors` | every direction (PyTorch layout) and the magnitudes; only with directions |

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use sdlora_core::{CurrentForm, HostFactors};
use sdlora_vit::{Vit, WeightDtype};

use super::adapter::CONFIG_KEY;
use super::tensors::TensorFile;
use crate::checkpoint::write_file;
use crate::error::TrainError;
use crate::features::FeatureTable;
use crate::head::LinearHead;
use crate::model::{HeadKind, Model};
use crate::prompts::{self, Prompts};
use crate::run::Finished;

/// Version of the adapter file.
const ADAPTER_VERSION: &str = "1";

/// Name of the file with the prompts.
pub(super) const PROMPTS_FILE: &str = "prompts.safetensors";

/// Writes the files above into `folder`.
///
/// # Errors
///
/// [`TrainError::Io`] when the file system refuses.
pub fn write_model(folder: &Path, finished: &Finished) -> Result<(), TrainError> {
    std::fs::create_dir_all(folder).map_err(TrainError::io("create", folder))?;
    let model = &finished.model;
    let vit = model.merged_backbone();
    vit.save(
        &folder.join("vit.safetensors"),
        WeightDtype::F32,
        &BTreeMap::new(),
    )?;

    let mut head = TensorFile::default();
    let kind = if model.ridge.is_some() {
        HeadKind::Ridge
    } else {
        HeadKind::Linear
    };
    if let Ok((weight, bias)) = model.linear_classifier(kind) {
        head.push("weight", weight.transpose());
        head.push("bias", bias);
    }
    if let Some(means) = &model.class_means {
        head.push("class_means", means.val());
    }
    head.write(&folder.join("head.safetensors"))?;

    let names = serde_json::to_vec_pretty(&finished.class_names)
        .map_err(|e| TrainError::setting("class names", "unwritable", e.to_string()))?;
    write_file(&folder.join("classes.json"), &names)?;
    if let Some(prompts) = &model.prompts {
        prompts::write(&folder.join(PROMPTS_FILE), prompts)?;
    }
    if model.adapter.n_tasks() > 0 {
        write_adapter(&folder.join("adapter.safetensors"), model)?;
    }
    Ok(())
}

/// The prompts of a model folder; none where the method has none.
pub(super) fn read_prompts(
    folder: &Path,
    d_model: usize,
    depth: usize,
    device: &Device,
) -> Result<Option<Prompts>, TrainError> {
    let path = folder.join(PROMPTS_FILE);
    if !path.is_file() {
        return Ok(None);
    }
    prompts::read(&path, d_model, depth, device).map(Some)
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
    model: Model,
    head: HeadKind,
    class_names: Vec<String>,
    device: Device,
}

impl Predictor {
    /// Reads a folder that [`write_model`] wrote.
    ///
    /// # Errors
    ///
    /// Those of missing or damaged files.
    pub fn load(folder: &Path, device: &Device) -> Result<Self, TrainError> {
        let (vit, _) = Vit::load(&folder.join("vit.safetensors"), None, device)?;
        let (d_model, depth) = (vit.config().d_model, vit.config().depth);
        let adapter = sdlora_core::Adapter::new(sdlora_core::Variant::Paper.config(), &[])?;
        let mut model = Model::new(vit, adapter);
        model.prompts = read_prompts(folder, d_model, depth, device)?;

        let path = folder.join("head.safetensors");
        let file = TensorFile::read(&path)?;
        let damaged = |problem: String| TrainError::Checkpoint {
            path: path.clone(),
            problem,
        };
        let read = |name: &str| {
            let found = file.tensors.get(name);
            found.map(|t| (t.values.clone(), t.shape.clone()))
        };
        let head = match (read("class_means"), read("weight"), read("bias")) {
            (Some((values, shape)), ..) if shape.len() == 2 && shape[1] == d_model => {
                let data = TensorData::new(values, [shape[0], d_model]);
                let means = Tensor::<2>::from_data(data, device);
                model.class_means = Some(burn::module::Param::from_tensor(means));
                HeadKind::Ncm
            }
            (None, Some((weight, shape)), Some((bias, _)))
                if shape.len() == 2 && shape[1] == d_model && shape[0] == bias.len() =>
            {
                let n = bias.len();
                let weight = Tensor::<2>::from_data(TensorData::new(weight, [n, d_model]), device);
                model.head = Some(LinearHead::from_data(
                    weight.transpose().into_data(),
                    TensorData::new(bias, [n]),
                    device,
                ));
                HeadKind::Linear
            }
            _ => {
                return Err(damaged(format!(
                    "it holds no classifier for features of width {d_model}"
                )));
            }
        };
        let path = folder.join("classes.json");
        let text = std::fs::read(&path).map_err(TrainError::io("read", &path))?;
        let class_names: Vec<String> =
            serde_json::from_slice(&text).map_err(|e| TrainError::Checkpoint {
                path,
                problem: e.to_string(),
            })?;
        let n_classes = match head {
            HeadKind::Ncm => model.class_means_host().n_classes(),
            HeadKind::Linear | HeadKind::Ridge => model.n_head_classes(),
        };
        if class_names.len() < n_classes {
            return Err(TrainError::Checkpoint {
                path: folder.into(),
                problem: format!("{n_classes} classes have {} names", class_names.len()),
            });
        }
        Ok(Self {
            model,
            head,
            class_names,
            device: device.clone(),
        })
    }

    /// The class name of each of `images: [batch, n_channels, image_size, image_size]`.
    ///
    /// # Errors
    ///
    /// When the model has no classifier.
    pub fn predict(&self, images: Tensor<4>) -> Result<Vec<&str>, TrainError> {
        let features = self.model.features(images);
        let [n, d_model] = features.dims();
        let table = FeatureTable {
            features: features.into_data().iter::<f32>().collect(),
            d_model,
            labels: vec![0; n],
        };
        let labels = self.model.predict(&table, self.head)?;
        Ok(labels
            .into_iter()
            .map(|label| self.class_names[label].as_str())
            .collect())
    }

    /// Where images have to be.
    pub fn device(&self) -> &Device {
        &self.device
    }
}
