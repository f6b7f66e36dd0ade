//! The adapter by itself: directions, magnitudes, classifier and class names, without a backbone.
//!
//! | file | what |
//! |---|---|
//! | `adapter.json` | format, version, shape and file name of the backbone, settings of the adapter |
//! | `adapter.safetensors` | every direction in PyTorch's layout, and the magnitudes |
//! | `head.safetensors` | `weight` `[n_classes, d_model]` and `bias` `[n_classes]` |
//! | `classes.json` | class names in the order of their labels |

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use sdlora_core::{
    HostFactors, MagnitudeSharing, ScaledFactors, SdLoraConfig, Site, Update, Updates,
};
use sdlora_vit::{Projection, Vit, VitConfig};
use serde::{Deserialize, Serialize};

use super::finished_run::FinishedRun;
use super::json::write_json;
use super::model_folder::CONFIG_KEY;
use super::tensors::{TensorFile, named};
use crate::error::TrainError;
use crate::heads::Classifier;

/// Name of the format in `adapter.json`.
const FORMAT: &str = "sdlora-adapter";

/// Largest difference, relative to the largest weight of a tensor, between the merged weights and
/// base plus directions that is rounding rather than another change.
const MERGE_TOLERANCE: f32 = 1e-5;
/// Version of the folder.
const VERSION: u32 = 1;

/// What `adapter.json` says.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Manifest {
    format: String,
    version: u32,
    /// File the backbone was read from; a hint, not needed to load.
    backbone_file: PathBuf,
    /// Shape of the backbone the adapter belongs to.
    backbone: VitConfig,
    /// Settings of the adapter.
    config: SdLoraConfig,
}

/// All directions of one site in task order, each with the scale in front of it.
#[derive(Debug, Clone)]
pub(super) struct SiteBank {
    pub site: Site,
    /// Block of the site, from 0.
    pub block_idx: usize,
    /// The projection inside the block.
    pub projection: Projection,
    /// Factors, and the sum of magnitude and offset times the inverse norm.
    pub directions: Vec<(HostFactors, f64)>,
}

/// The directions of `adapter.safetensors` with their scales.
#[derive(Debug, Clone)]
pub(super) struct Bank {
    pub sites: Vec<SiteBank>,
}

impl Bank {
    /// Reads `adapter.safetensors`.
    pub(super) fn read(path: &Path) -> Result<(Self, SdLoraConfig, TensorFile), TrainError> {
        let file = TensorFile::read(path)?;
        let text = file.metadata.get(CONFIG_KEY).ok_or_else(|| {
            TrainError::export(path, format!("its metadata have no `{CONFIG_KEY}`"))
        })?;
        let config: SdLoraConfig =
            serde_json::from_str(text).map_err(|e| TrainError::export(path, e.to_string()))?;
        let ([n_groups, n_tasks], magnitudes) = file.get::<2>(path, "magnitudes")?;
        let mut sites = BTreeMap::<(usize, Projection), SiteBank>::new();
        for name in file.tensors.keys() {
            let Some(prefix) = name.strip_suffix(".task0.lora_A") else {
                continue;
            };
            let Some((block_idx, projection)) = Projection::of_site(prefix) else {
                return Err(TrainError::export(path, format!("`{name}` names no site")));
            };
            let group = match config.sharing {
                MagnitudeSharing::Shared => 0,
                MagnitudeSharing::PerGroup => block_idx,
            };
            let row = magnitudes
                .get(group * n_tasks..(group + 1) * n_tasks)
                .filter(|_| group < n_groups)
                .ok_or_else(|| {
                    TrainError::export(path, format!("block {block_idx} has no magnitudes"))
                })?;
            let mut site = Site {
                name: prefix.into(),
                group: block_idx,
                d_input: 0,
                d_output: 0,
            };
            let mut directions = Vec::with_capacity(n_tasks);
            for (k, &magnitude) in row.iter().enumerate() {
                let tensor = |part| format!("{prefix}.task{k}.{part}");
                let ([rank, d_input], a) = file.get::<2>(path, &tensor("lora_A"))?;
                let ([d_output, rank_b], b) = file.get::<2>(path, &tensor("lora_B"))?;
                let (_, inverse) = file.get::<1>(path, &tensor("inverse_norm"))?;
                // Absent in files of before directions could be absorbed.
                let offset = file
                    .get::<1>(path, &tensor("offset"))
                    .map_or(0.0, |(_, offset)| offset.first().copied().unwrap_or(0.0));
                let fits = k == 0 || (site.d_input, site.d_output) == (d_input, d_output);
                if rank != rank_b || rank == 0 || !fits || inverse.len() != 1 {
                    let problem = format!("the factors of `{prefix}.task{k}` do not fit");
                    return Err(TrainError::export(path, problem));
                }
                (site.d_input, site.d_output) = (d_input, d_output);
                let factors = HostFactors {
                    a: transposed(a, rank, d_input),
                    b: transposed(b, d_output, rank),
                    rank,
                };
                let weight = f64::from(magnitude) + f64::from(offset);
                directions.push((factors, weight * f64::from(inverse[0])));
            }
            let bank = SiteBank {
                site,
                block_idx,
                projection,
                directions,
            };
            sites.insert((block_idx, projection), bank);
        }
        let sites: Vec<SiteBank> = sites.into_values().collect();
        if sites.is_empty() {
            return Err(TrainError::export(path, "it holds no direction"));
        }
        Ok((Self { sites }, config, file))
    }

    /// The updates of one forward pass.
    pub(super) fn updates(&self, device: &Device) -> Updates {
        let mut updates = Updates::default();
        for SiteBank {
            site, directions, ..
        } in &self.sites
        {
            let terms = directions.iter().map(|(factors, scale)| {
                let tensor = |values: &[f32], shape: [usize; 2]| {
                    Tensor::<2>::from_data(TensorData::new(values.to_vec(), shape), device)
                };
                let rank = factors.rank;
                ScaledFactors {
                    a: tensor(&factors.a, [site.d_input, rank]).mul_scalar(*scale),
                    b: tensor(&factors.b, [rank, site.d_output]),
                }
            });
            updates.insert(site, Update::new(terms.collect()));
        }
        updates
    }
}

/// Row-major `[n_rows, n_columns]` to `[n_columns, n_rows]`.
pub(super) fn transposed(values: &[f32], n_rows: usize, n_columns: usize) -> Vec<f32> {
    (0..n_columns)
        .flat_map(|j| (0..n_rows).map(move |i| values[i * n_columns + j]))
        .collect()
}

/// An exported adapter, ready to act on a backbone.
#[derive(Debug, Clone)]
pub struct AdapterFolder {
    manifest: Manifest,
    bank: Bank,
    /// What classifies the features.
    pub classifier: Classifier,
    /// Class names in the order of their labels.
    pub class_names: Vec<String>,
}

impl AdapterFolder {
    /// Reads a folder written by the format `safetensors`.
    ///
    /// # Errors
    ///
    /// [`TrainError::Export`] for a folder of another format or a newer version, and those of
    /// missing or damaged files.
    pub fn load(folder: &Path) -> Result<Self, TrainError> {
        let path = folder.join("adapter.json");
        let text = std::fs::read(&path).map_err(TrainError::io("read", &path))?;
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|e| TrainError::export(&path, e.to_string()))?;
        if manifest.format != FORMAT || manifest.version != VERSION {
            return Err(TrainError::export(
                &path,
                format!(
                    "it is {} version {}; this program reads {FORMAT} version {VERSION}",
                    manifest.format, manifest.version
                ),
            ));
        }
        let (bank, ..) = Bank::read(&folder.join("adapter.safetensors"))?;
        let head_file = folder.join("head.safetensors");
        let classifier = Classifier::read(&head_file, manifest.backbone.d_model)?;
        let path = folder.join("classes.json");
        let text = std::fs::read(&path).map_err(TrainError::io("read", &path))?;
        let class_names =
            serde_json::from_slice(&text).map_err(|e| TrainError::export(&path, e.to_string()))?;
        Ok(Self {
            manifest,
            bank,
            classifier,
            class_names,
        })
    }

    /// The backbone with the directions inside its weights.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] when the backbone has another shape than the one of the run.
    pub fn apply(&self, backbone: Vit, device: &Device) -> Result<Vit, TrainError> {
        if backbone.config() != &self.manifest.backbone {
            return Err(TrainError::setting(
                "backbone",
                format!("{:?}", backbone.config()),
                format!(
                    "the shape the adapter was made for, {:?}",
                    self.manifest.backbone
                ),
            ));
        }
        Ok(backbone.merged(&self.bank.updates(device)))
    }
}

/// Writes the folder.
pub(super) fn write(run: &FinishedRun, out: &Path) -> Result<(), TrainError> {
    run.check_directions()?;
    let source = run.adapter_path();
    let (_, config, file) = Bank::read(&source)?;
    let manifest = Manifest {
        format: FORMAT.into(),
        version: VERSION,
        backbone_file: run
            .config
            .backbone
            .weights
            .file_name()
            .map(PathBuf::from)
            .unwrap_or_default(),
        backbone: run.vit.config().clone(),
        config,
    };
    file.write(&out.join("adapter.safetensors"))?;
    let head = run.config.head.as_ref().map_or("linear", |h| &h.name);
    run.classifier.write(&out.join("head.safetensors"), head)?;
    write_json(&out.join("classes.json"), &run.class_names)?;
    // Last, so that a folder with it is whole.
    write_json(&out.join("adapter.json"), &manifest)
}

impl FinishedRun {
    /// Checks that base weights and directions are all there is to the merged weights, and returns
    /// the base.
    pub(super) fn check_directions(&self) -> Result<Vit, TrainError> {
        let method = &self.config.method.name;
        let refuse = |problem: String| Err(TrainError::export(&self.folder, problem));
        if !self.adapter_path().is_file() {
            return refuse(format!(
                "method {method} leaves no directions, so there is no adapter: use the format `hf` \
                 or `timm`"
            ));
        }
        let base = self.base()?;
        let (bank, ..) = Bank::read(&self.adapter_path())?;
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
                     the base file is the one of the run, or use the format `hf` or `timm`",
                    self.config.backbone.weights.display()
                ));
            }
        }
        Ok(base)
    }
}
