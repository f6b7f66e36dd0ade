//! A published ViT on disk: what it was understood to be, and the way into memory.

use std::fmt;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use sdlora_weights::WeightFile;

use crate::activation::Activation;
use crate::config::{CONFIG_KEY, VitConfig};
use crate::error::VitError;
use crate::hints::Hints;
use crate::infer::{
    Known, Positions, Shapes, Understanding, foreign, infer, pooling_name, with_config,
};
use crate::model::Vit;
use crate::names::{Names, Place, Scheme, Source};
use crate::pos_embed::{PositionResize, resample};
use crate::preprocess::{PREPROCESS_KEY, Preprocess};
use crate::report::WeightReport;
use crate::sidecar::Sidecar;
use crate::strangers::{stranger, unlike_float};

/// One tensor of a file and what it is to the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MappedTensor {
    /// Its name in the file.
    pub name: String,
    /// Its number format, as the file names it.
    pub dtype: String,
    /// Its shape in the file.
    pub shape: Vec<usize>,
    /// timm's name of the parameter it fills, or a part of; `None` for what is not used.
    pub target: Option<String>,
    /// How it is used, or why it is not.
    pub status: String,
}

/// A weight file or folder that was understood; the values are still on disk.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    file: WeightFile,
    names: Names,
    config: VitConfig,
    positions: Positions,
    notes: Vec<String>,
    /// Whether the caller named the whole shape.
    is_shape_given: bool,
    /// How positions are brought to another grid.
    resize: PositionResize,
    /// The input of the model, or why it cannot be had.
    preprocess: Option<Result<Preprocess, String>>,
    /// timm name and shape of every parameter, in the model's order.
    wanted: Vec<(String, Vec<usize>)>,
}

impl Checkpoint {
    /// Reads the list of tensors of a file or folder and what lies beside it (`config.json`,
    /// `preprocessor_config.json`), and understands which ViT it is. Values are not read yet.
    ///
    /// # Errors
    ///
    /// [`VitError::Weights`] for a file that cannot be read or is cut off, [`VitError::NotAVit`]
    /// when it is no ViT, one with parts this crate lacks (named), or one whose number of heads
    /// nothing tells, [`VitError::Shape`] when its numbers do not fit each other.
    pub fn open(path: &Path, hints: &Hints) -> Result<Self, VitError> {
        let not_a_vit = |problem: String| VitError::NotAVit {
            path: path.into(),
            problem,
            untold: None,
        };
        let file = WeightFile::open(path)?;
        let mut sidecar = Sidecar::read(file.path())?;
        if let Some(problem) = stranger(file.tensors(), file.unbuilt()) {
            return Err(not_a_vit(problem));
        }
        let files: Vec<&str> = file.tensors().iter().map(|t| t.name.as_str()).collect();
        let names = Names::find(&files).ok_or_else(|| {
            not_a_vit(format!(
                "none of its {} tensors is the patch projection of a ViT; give a file with the names of \
                 timm, Hugging Face, DINO, DINOv2 or MAE",
                files.len()
            ))
        })?;
        let is_used = |idx: usize| matches!(names.places[idx], Place::Whole(_) | Place::Part(..));
        let problem = foreign(&names, &files).or_else(|| unlike_float(file.tensors(), is_used));
        if let Some(problem) = problem {
            return Err(not_a_vit(problem));
        }
        let shapes = Shapes {
            names: &names,
            shapes: file.tensors().iter().map(|t| t.shape.as_slice()).collect(),
        };
        let width = shapes
            .get("patch_embed.proj.weight")
            .and_then(|shape| shape.first().copied());
        let stranger = width.and_then(|width| sidecar.keep_for(width));
        let metadata = |key: &str| file.metadata().get(key);
        let name = name_of(file.path());
        let Understanding {
            config,
            positions,
            mut notes,
        } = match (&hints.config, metadata(CONFIG_KEY)) {
            (Some(config), _) => {
                let config = config.clone();
                with_config(config, &shapes, hints, Known::Caller, &sidecar, &name)
            }
            (None, Some(text)) => {
                let config: VitConfig = serde_json::from_str(text).map_err(|e| {
                    not_a_vit(format!(
                        "its metadata `{CONFIG_KEY}` is unreadable ({e}); write it again with this version"
                    ))
                })?;
                with_config(config, &shapes, hints, Known::Metadata, &sidecar, &name)
            }
            (None, None) => infer(&shapes, &sidecar, hints, &name),
        }
        .map_err(|unclear| VitError::NotAVit {
            path: path.into(),
            problem: unclear.problem,
            untold: unclear.untold,
        })?;
        config.check()?;
        if let Some(width) = stranger {
            notes.push(format!(
                "config.json beside it is of a model of width {width} and was passed over"
            ));
        }
        let preprocess = metadata(PREPROCESS_KEY)
            .and_then(|text| Preprocess::from_metadata(text).map(Ok))
            .or_else(|| Preprocess::beside(&sidecar));
        let mut wanted = Vec::new();
        // Parameters without values: only their names and shapes are asked.
        Vit::blank(&config, &Device::default())?
            .each_weight(&mut |name, slot| wanted.push((name, slot.file_shape())));
        Ok(Self {
            path: path.into(),
            names,
            config,
            positions,
            notes,
            is_shape_given: hints.config.is_some(),
            resize: hints.positions.unwrap_or_default(),
            preprocess,
            wanted,
            file,
        })
    }

    /// The shape of the model that [`Checkpoint::load`] gives.
    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    /// Who named the tensors.
    pub fn scheme(&self) -> Scheme {
        self.names.scheme
    }

    /// The input the model was trained on, when the file or what lies beside it tells.
    pub fn preprocess(&self) -> Option<&Preprocess> {
        self.preprocess.as_ref()?.as_ref().ok()
    }

    /// What the files beside it ask for and no transform here does, with what to do.
    pub fn preprocess_problem(&self) -> Option<&str> {
        Some(self.preprocess.as_ref()?.as_ref().err()?)
    }

    /// What was understood, line by line, as [`Display`](fmt::Display) writes it.
    pub fn describe(&self) -> String {
        self.to_string()
    }

    /// Every tensor of the file with what it is to the model, in the order of the file.
    pub fn mapping(&self) -> Vec<MappedTensor> {
        let report = self.report();
        let shape_of = |target: &str| self.wanted.iter().find(|(name, _)| name == target);
        self.file
            .tensors()
            .iter()
            .zip(&self.names.places)
            .map(|(tensor, place)| {
                let (target, status) = match place {
                    Place::Foreign(what) => (None, format!("refused: {what}")),
                    Place::Unused(what) => (None, format!("unused: {what}")),
                    Place::Whole(target) | Place::Part(target, _) => {
                        let start = format!("{target}:");
                        let status = match (shape_of(target), place) {
                            (None, _) => "refused: the model has no such part".into(),
                            _ if report.misfit.iter().any(|m| m.starts_with(&start)) => {
                                "wrong shape".into()
                            }
                            (_, Place::Part(_, part)) => {
                                format!("rows of the {}", ["query", "key", "value"][*part])
                            }
                            _ if target == "pos_embed" => self.positions_status(),
                            _ if target == "cls_token" && self.positions.first_to_class => {
                                "with its position added".into()
                            }
                            _ => "as it is".into(),
                        };
                        (Some(target.clone()), status)
                    }
                };
                MappedTensor {
                    name: tensor.name.clone(),
                    dtype: tensor.dtype.to_string(),
                    shape: tensor.shape.clone(),
                    target,
                    status,
                }
            })
            .collect()
    }

    /// What would be applied, lacks, is left over and does not fit, from the shapes alone.
    ///
    /// Names of parameters are timm's, those of unused tensors the file's.
    pub fn report(&self) -> WeightReport {
        let shapes = Shapes {
            names: &self.names,
            shapes: self
                .file
                .tensors()
                .iter()
                .map(|t| t.shape.as_slice())
                .collect(),
        };
        let mut report = WeightReport::default();
        for (name, expected) in &self.wanted {
            let expected = if name == "pos_embed" {
                let Positions { n_prefix, grid, .. } = self.positions;
                vec![1, n_prefix + grid * grid, self.config.d_model]
            } else {
                expected.clone()
            };
            match (self.names.sources.get(name), shapes.get(name)) {
                (None, _) => report.missing.push(name.clone()),
                (Some(_), Some(shape)) if shape == expected => report.applied.push(name.clone()),
                (Some(Source::Parts(parts)), None) if parts.contains(&None) => {
                    report
                        .missing
                        .push(format!("{name} (a part of query, key and value)"));
                }
                (Some(_), Some(shape)) => report
                    .misfit
                    .push(format!("{name}: {shape:?} where {expected:?} is needed")),
                (Some(_), None) => report
                    .misfit
                    .push(format!("{name}: query, key and value differ in shape")),
            }
        }
        for name in self.names.sources.keys() {
            if !self.wanted.iter().any(|(wanted, _)| wanted == name) {
                report
                    .misfit
                    .push(format!("{name}: the model has no such part"));
            }
        }
        for (tensor, place) in self.file.tensors().iter().zip(&self.names.places) {
            if matches!(place, Place::Unused(_)) {
                report.unused.push(tensor.name.clone());
            }
        }
        report
    }

    /// Checks that every parameter is there and has the shape of the model.
    ///
    /// # Errors
    ///
    /// [`VitError::Mismatch`] with the whole report.
    pub fn check(&self) -> Result<(), VitError> {
        let report = self.report();
        if report.is_complete() {
            return Ok(());
        }
        Err(VitError::Mismatch {
            path: self.path.clone(),
            advice: self.advice(&report),
            report: Box::new(report),
        })
    }

    /// Reads the model, all parameters trainable, one tensor after the other, so that hardly more
    /// memory is needed than the model takes.
    ///
    /// # Errors
    ///
    /// [`VitError::Mismatch`] with the whole report when a parameter is missing or does not fit,
    /// [`VitError::Weights`] when a value cannot be read, [`VitError::NotFinite`] when one is infinite
    /// or not a number.
    pub fn load(&self, device: &Device) -> Result<(Vit, WeightReport), VitError> {
        self.check()?;
        let mut vit = Vit::blank(&self.config, device)?;
        let mut failed = None;
        vit.each_weight(&mut |name, slot| {
            if failed.is_none() {
                match self.values(&name) {
                    Ok(values) => slot.set(values, device),
                    Err(error) => failed = Some(error),
                }
            }
        });
        match failed {
            Some(error) => Err(error),
            None => Ok((vit, self.report())),
        }
    }

    /// What to do about parameters that lack or do not fit.
    fn advice(&self, report: &WeightReport) -> &'static str {
        if !self.file.unbuilt().is_empty() && !report.missing.is_empty() {
            "the pickle would build some of it with code of its own: save `model.state_dict()`, tensors alone"
        } else if self.is_shape_given {
            "choose the matching preset, or leave it out and let the file tell its shape"
        } else {
            "fetch the whole file again, or use another model"
        }
    }

    /// The values of one parameter in the layout of a timm file of the model's input size.
    fn values(&self, name: &str) -> Result<Vec<f32>, VitError> {
        let mut values = self.raw(name)?;
        let Positions {
            n_prefix,
            grid,
            first_to_class,
        } = self.positions;
        let d_model = self.config.d_model;
        match name {
            "cls_token" if first_to_class => {
                let positions = self.raw("pos_embed")?;
                for (value, position) in values.iter_mut().zip(positions) {
                    *value += position;
                }
            }
            "pos_embed" => {
                let mut n_prefix = n_prefix;
                if first_to_class {
                    values.drain(..d_model);
                    n_prefix = 0;
                }
                if grid != self.config.grid() {
                    values = resample(
                        &values,
                        n_prefix,
                        grid,
                        self.config.grid(),
                        d_model,
                        self.resize,
                    );
                }
            }
            _ => {}
        }
        Ok(values)
    }

    /// The values of one parameter as the file has them, parts in a row.
    fn raw(&self, name: &str) -> Result<Vec<f32>, VitError> {
        let read = |idx: usize| {
            let tensor = &self.file.tensors()[idx].name;
            let values = self.file.read_f32(tensor)?;
            match values.iter().position(|value| !value.is_finite()) {
                None => Ok(values),
                Some(place) => Err(VitError::NotFinite {
                    path: self.path.clone(),
                    tensor: tensor.clone(),
                    place,
                    value: values[place],
                }),
            }
        };
        Ok(match self.names.sources.get(name) {
            Some(Source::Whole(idx)) => read(*idx)?,
            Some(Source::Parts(parts)) => {
                let mut values = Vec::new();
                for idx in parts.iter().flatten() {
                    values.extend(read(*idx)?);
                }
                values
            }
            // `report` has named it already.
            None => Vec::new(),
        })
    }

    fn positions_status(&self) -> String {
        let (from, to) = (self.positions.grid, self.config.grid());
        if from == to {
            "as it is".into()
        } else {
            format!("resized from {from} x {from} to {to} x {to} patches")
        }
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = &self.config;
        write!(
            f,
            "{}, {} tensors, names of {}",
            self.file.kind(),
            self.file.tensors().len(),
            self.scheme()
        )?;
        if !self.names.prefix.is_empty() {
            write!(f, " behind `{}`", self.names.prefix)?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "ViT of {} blocks, width {}, MLP {}, {} heads: {:.1} million parameters",
            c.depth,
            c.d_model,
            c.d_mlp,
            c.n_heads,
            c.n_parameters() as f64 / 1e6
        )?;
        writeln!(
            f,
            "input {} x {} pixels, {} channels, patches of {}: {} tokens",
            c.image_size,
            c.image_size,
            c.n_channels,
            c.patch_size,
            c.n_tokens()
        )?;
        let mut parts = vec![format!("pooling {}", pooling_name(c.pooling))];
        for (has, what) in [
            (c.class_token, "class token".to_string()),
            (c.n_registers > 0, format!("{} registers", c.n_registers)),
            (c.layer_scale, "LayerScale".into()),
            (c.pre_norm, "norm before the blocks".into()),
            (c.fc_norm, "norm behind the pooling".into()),
            (!c.qkv_bias, "no bias of query, key and value".into()),
            (!c.patch_bias, "no bias of the patches".into()),
            (
                c.activation != Activation::Gelu,
                format!("activation {}", c.activation.name()),
            ),
        ] {
            if has {
                parts.push(what);
            }
        }
        writeln!(f, "{}", parts.join(", "))?;
        if self.positions.grid != c.grid() {
            writeln!(f, "positions {}", self.positions_status())?;
        }
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        if let Some(p) = self.preprocess() {
            writeln!(
                f,
                "trained on {} pixels after resizing to {}, mean {:?}, deviation {:?}",
                p.input_size,
                p.resized_side(),
                p.mean,
                p.std
            )?;
        }
        if let Some(problem) = self.preprocess_problem() {
            writeln!(f, "its preprocessing cannot be taken over: {problem}")?;
        }
        write!(f, "{}", self.report())
    }
}

/// The name by which people know a file: its own, or its folder's where its own says nothing.
fn name_of(path: &Path) -> String {
    let part = |path: Option<&Path>| {
        path.and_then(Path::file_name)
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    };
    let own = part(Some(path));
    let says_nothing = ["model.", "pytorch_model", "checkpoint"]
        .iter()
        .any(|start| own.starts_with(start));
    if says_nothing {
        part(path.parent())
    } else {
        own
    }
}
