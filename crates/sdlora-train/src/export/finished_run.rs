//! A finished run, read from its folder.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use sdlora_vit::Vit;

use super::model_folder::{
    ADAPTER_FILE, CLASSES_FILE, HEAD_FILE, NOVELTY_FILE, PREDICT_FILE, VIT_FILE, read_state,
};
use crate::config::{BackboneConfig, RunConfig, check_input};
use crate::error::TrainError;
use crate::extractor::Extractor;
use crate::files::sums::check_files;
use crate::heads::Classifier;
use crate::methods::METHODS;
use crate::run_folder::{PLAN_FILE, read_plan};
use crate::state::MethodState;

/// A finished run, read from its folder.
#[derive(Debug)]
pub struct FinishedRun {
    pub(super) folder: PathBuf,
    pub(super) data_dir: PathBuf,
    pub(super) device: Device,
    pub(super) config: RunConfig,
    /// With all directions inside its weights.
    pub(super) vit: Vit,
    pub(super) classifier: Classifier,
    pub(super) class_names: Vec<String>,
    /// Empty where features need one pass.
    pub(super) state: MethodState,
    /// That of the model, where its owner says it.
    pub(super) licence: Option<String>,
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
        let state = read_state(&model, d_model, depth, METHODS, device)?;
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
    pub(super) fn linear_head(&self) -> Result<(Vec<f32>, Vec<f32>), TrainError> {
        let linear = self.classifier.as_linear();
        let (rows, bias) = linear.ok_or_else(|| {
            let problem = "its head is not linear in the features, and no format of other programs \
                           has a place for it: use `sdlora predict`, which reads the run folder, or \
                           run with another `head`";
            TrainError::export(&self.folder, problem)
        })?;
        Ok((rows.to_vec(), bias.to_vec()))
    }

    pub(super) fn n_classes(&self) -> usize {
        self.class_names.len()
    }

    pub(super) fn d_model(&self) -> usize {
        self.vit.config().d_model
    }

    pub(super) fn adapter_path(&self) -> PathBuf {
        self.folder.join("model").join(ADAPTER_FILE)
    }

    /// The backbone as it was before the run.
    pub(super) fn base(&self) -> Result<Vit, TrainError> {
        let side = self.config.transform.side;
        self.config
            .backbone
            .load(&self.data_dir, Some(side), &self.device)
    }
}
