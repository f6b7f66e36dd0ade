//! LoRA Recycle: after the stream, one meta-LoRA is distilled from the LoRAs of all tasks, without an image of them
//! (Hu et al. 2025, CVPR, "Unlocking Tuning-Free Few-Shot Adaptability in Visual Foundation Models by Recycling
//! Pre-Tuned LoRAs", arXiv 2412.02220).
//!
//! The stream is that of `lora-per-task`; teacher t is the model with the LoRAs of tasks up to t, as it was behind
//! task t.
//!
//! 1. Inversion ([`invert`]): images of every class are optimised until its teacher sees the class in them.
//! 2. Meta-training ([`distil`]): in episodes over classes of a task, prototypes are means of a few features, and the
//!    softmax of negative distances follows the teacher's.
//! 3. The meta-LoRA takes the place of all LoRAs, and the prototypes of the synthetic images that of the head:
//!    `−‖z − p‖²` is linear in `z` but for a number common to all classes.
//!
//! The hook behind the stream gets the images of the last task and does not read them.

mod distil;
mod invert;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use sdlora_core::{Adapter, ScaledFactors, Update, Updates};
use sdlora_vit::{Projection, Vit};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::lora::plain_lora;
use super::lora_per_task::new_slot;
use super::{
    AdapterSpec, Method, MethodEntry, TaskContext, TaskImages, check_counts, check_number,
    check_projections, default_rank, parse, query_and_value,
};
use crate::draws::{Draw, generator};
use crate::error::TrainError;
use crate::features::FeatureTable;
use crate::model::Model;
use crate::state::{MethodState, Role};
use distil::{Distillation, Synthetic};
use invert::{Inversion, Teacher};

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "lora-recycle",
    summary: "a LoRA per task, in the end one meta-LoRA distilled from them without images (meta_rank, prior)",
    build: |options| {
        let method: LoraRecycle = parse("lora-recycle", options)?;
        method.check()?;
        Ok(Box::new(method))
    },
    second_pass: None,
};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LoraRecycle {
    /// Rank of the LoRA of a task.
    #[serde(default = "default_rank")]
    rank: usize,
    /// Adapted projections of every block.
    #[serde(default = "query_and_value")]
    projections: Vec<Projection>,
    /// Rank of the meta-LoRA.
    #[serde(default = "default_meta_rank")]
    meta_rank: usize,
    /// Synthetic images of a class, more than `n_shots`.
    #[serde(default = "default_images")]
    n_images: usize,
    /// Steps of an inversion.
    #[serde(default = "default_steps")]
    n_steps: usize,
    /// Weight of total variation and size of the pixels.
    #[serde(default = "default_prior")]
    prior: f64,
    /// Weight of the distance from the stored mean feature of a class; 0 stores none.
    #[serde(default = "one")]
    matching: f64,
    /// Episodes of the meta-training; 0 leaves the backbone as it is.
    #[serde(default = "default_episodes")]
    n_episodes: usize,
    /// Classes of an episode, at least 2.
    #[serde(default = "default_ways")]
    n_ways: usize,
    /// Images behind a prototype.
    #[serde(default = "default_shots")]
    n_shots: usize,
    /// Learning rate of the meta-training, by Adam.
    #[serde(default = "default_lr")]
    meta_lr: f64,
}

/// That of the paper.
fn default_meta_rank() -> usize {
    4
}

fn default_images() -> usize {
    4
}

/// The paper has 2000 at the size of ImageNet.
fn default_steps() -> usize {
    100
}

fn default_prior() -> f64 {
    0.01
}

fn one() -> f64 {
    1.0
}

fn default_episodes() -> usize {
    300
}

fn default_ways() -> usize {
    5
}

fn default_shots() -> usize {
    1
}

fn default_lr() -> f64 {
    1e-3
}

/// The fact that has the task of every class, in the order of labels.
const CLASS_TASKS: &str = "class_tasks";

/// Mean features of the classes `[n_classes, d_model]`, each by the teacher of its task.
#[derive(Module, Debug)]
struct Kept {
    means: Param<Tensor<2>>,
}

impl LoraRecycle {
    fn check(&self) -> Result<(), TrainError> {
        check_counts(&[
            ("rank", self.rank),
            ("meta_rank", self.meta_rank),
            ("n_steps", self.n_steps),
            ("n_shots", self.n_shots),
        ])?;
        check_projections(&self.projections, &Projection::ALL)?;
        check_number("method.prior", self.prior, true)?;
        check_number("method.matching", self.matching, true)?;
        check_number("method.meta_lr", self.meta_lr, false)?;
        if self.n_ways < 2 {
            let expected = "at least 2: an episode tells classes apart";
            return Err(TrainError::setting("method.n_ways", self.n_ways, expected));
        }
        if self.n_images <= self.n_shots {
            return Err(TrainError::setting(
                "method.n_images",
                self.n_images,
                format!(
                    "more than `n_shots` ({}): an episode also needs images to classify",
                    self.n_shots
                ),
            ));
        }
        Ok(())
    }

    fn inversion(&self) -> Inversion {
        Inversion {
            n_images: self.n_images,
            n_steps: self.n_steps,
            prior: self.prior,
            matching: self.matching,
        }
    }

    fn distillation(&self) -> Distillation {
        Distillation {
            n_episodes: self.n_episodes,
            n_ways: self.n_ways,
            n_shots: self.n_shots,
            lr: self.meta_lr,
        }
    }

    /// Synthetic images of all classes, teacher by teacher.
    fn synthetic(&self, model: &Model, task: &TaskContext) -> Result<Vec<Synthetic>, TrainError> {
        let tasks = class_tasks(&model.state);
        let head = columns(model)?;
        let n_tasks = tasks.iter().map(|task| task + 1).max().unwrap_or(0);
        let mut all = Vec::new();
        for teacher_idx in 0..n_tasks {
            let of_task = tasks.iter().enumerate().filter(|(_, t)| **t == teacher_idx);
            let labels: Vec<usize> = of_task.map(|(label, _)| label).collect();
            if labels.is_empty() {
                continue;
            }
            let vit = teacher(model, teacher_idx, &task.device);
            let means = model.state.get("means").map(|means| host(means.val()));
            let teacher = Teacher::new(vit, &head, means.as_deref(), &labels, &task.device);
            let mut rng = generator(task.seed, Draw::Pixels, teacher_idx);
            all.push(
                self.inversion()
                    .invert(&teacher, labels, &mut rng, &task.device),
            );
        }
        Ok(all)
    }
}

fn host(values: Tensor<2>) -> Vec<f32> {
    values.into_data().iter().collect()
}

fn class_tasks(state: &MethodState) -> Vec<usize> {
    let fact = state.fact(CLASS_TASKS).cloned();
    fact.and_then(|fact| serde_json::from_value(fact).ok())
        .unwrap_or_default()
}

/// Rows and biases of the linear head.
fn columns(model: &Model) -> Result<(Vec<f32>, Vec<f32>), TrainError> {
    let trained = model.head.trained.as_ref();
    let found = trained.and_then(|trained| {
        let bias = trained.scale.is_none().then(|| trained.bias_host())??;
        Some((trained.rows().0, bias))
    });
    found.ok_or_else(|| other_head("one without columns and biases"))
}

fn other_head(found: &str) -> TrainError {
    let expected = "`linear`, whose columns this method inverts and replaces by prototypes";
    TrainError::setting("head", found, expected)
}

/// The backbone with the LoRAs of the tasks up to one inside its weights.
fn teacher(model: &Model, task_idx: usize, device: &Device) -> Vit {
    let mut updates = Updates::default();
    for bank in &model.adapter.sites {
        let past = bank.past.as_ref().map_or(Vec::new(), |past| past.to_host());
        let current = bank.current.as_ref().map(|current| current.to_host());
        let site = bank.site();
        let known = past.into_iter().chain(current).take(task_idx + 1);
        let terms = known.map(|factors| {
            let tensor = |values: Vec<f32>, shape: [usize; 2]| {
                Tensor::from_data(TensorData::new(values, shape), device)
            };
            ScaledFactors {
                a: tensor(factors.a, [site.d_input, factors.rank]),
                b: tensor(factors.b, [factors.rank, site.d_output]),
            }
        });
        if let Some(update) = Update::of(terms.collect(), None) {
            updates.insert(site, update);
        }
    }
    model.backbone.clone().merged(&updates)
}

impl Method for LoraRecycle {
    fn before_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        // Another head is refused before the first step: what one keeps of old features would be of other ones in
        // the end.
        if task.head.is_fitted() {
            return Err(other_head("one that is fitted to features"));
        }
        let model = new_slot(model, task, self.rank)?;
        columns(&model)?;
        Ok(model)
    }

    /// Keeps the tasks of the classes, and their mean features.
    fn review(
        &self,
        mut model: Model,
        task: &TaskContext,
        images: &dyn TaskImages,
    ) -> Result<Model, TrainError> {
        let vit = model.merged_backbone();
        let d_model = vit.config().d_model;
        let mut table = FeatureTable {
            d_model,
            ..FeatureTable::default()
        };
        images.each_batch(&mut |images, labels| {
            let features = vit.forward(images, &Updates::default());
            table.features.extend(features.into_data().iter::<f32>());
            table.labels.extend_from_slice(labels);
        })?;
        let mut tasks = class_tasks(&model.state);
        let mut means = model.state.get("means").map(|means| host(means.val()));
        let labels = table.labels.iter();
        let n_classes = labels.fold(tasks.len(), |n, &label| n.max(label + 1));
        tasks.resize(n_classes, task.task_idx);
        let means = means.get_or_insert_default();
        means.resize(n_classes * d_model, 0.0);
        for label in 0..n_classes {
            let rows = (0..table.len()).filter(|&i| table.labels[i] == label);
            let rows: Vec<&[f32]> = rows.map(|i| table.row(i)).collect();
            if rows.is_empty() {
                continue;
            }
            tasks[label] = task.task_idx;
            for (j, mean) in means[label * d_model..(label + 1) * d_model]
                .iter_mut()
                .enumerate()
            {
                let sum: f64 = rows.iter().map(|row| f64::from(row[j])).sum();
                *mean = (sum / rows.len() as f64) as f32;
            }
        }
        let state = match self.matching > 0.0 {
            false => MethodState::default(),
            true => {
                let data = TensorData::new(means.clone(), [n_classes, d_model]);
                let means = Tensor::from_data(data, &task.device);
                let means = Param::from_tensor(means).set_require_grad(false);
                MethodState::of(&Kept { means }, |_| Role::PerClass)
            }
        };
        model.state = state.with_fact(CLASS_TASKS, json!(tasks));
        Ok(model)
    }

    fn after_stream(
        &self,
        mut model: Model,
        task: &TaskContext,
        _images: &dyn TaskImages,
    ) -> Result<Model, TrainError> {
        let synthetic = self.synthetic(&model, task)?;
        let mut rng = generator(task.seed, Draw::MetaTasks, 0);
        let banks = model.adapter.sites.iter();
        let sites: Vec<_> = banks.map(|bank| bank.site().clone()).collect();
        let adapter = Adapter::new(model.adapter.config(), &sites)?
            .begin_task(self.meta_rank, &mut rng, &task.device)?
            .with_current_magnitude_trainable(false);
        let distillation = self.distillation();
        model.adapter = distillation.distil(&model.backbone, adapter, &synthetic, &mut rng)?;
        let prototypes = distil::prototypes(&model.merged_backbone(), &synthetic);
        let d_model = model.backbone.config().d_model;
        if let Some(trained) = model.head.trained.take() {
            let n_in_task = trained.n_in_task;
            let mut head = distil::prototype_head(&trained, &prototypes, d_model, &task.device);
            head.n_in_task = n_in_task;
            model.head.trained = Some(head);
        }
        Ok(model)
    }

    fn adapter(&self) -> Option<AdapterSpec> {
        Some(plain_lora(&self.projections, self.rank))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_refused_with_their_range() {
        for (options, expected) in [
            ("rank = 0", "at least 1"),
            ("meta_rank = 0", "meta_rank"),
            ("n_steps = 0", "n_steps"),
            ("n_ways = 1", "at least 2"),
            ("n_images = 1", "more than `n_shots`"),
            ("n_images = 4\nn_shots = 4", "more than `n_shots`"),
            ("prior = -1.0", "method.prior"),
            ("matching = nan", "method.matching"),
            ("meta_lr = 0.0", "method.meta_lr"),
            ("lambda = 1.0", "`lambda`"),
        ] {
            let error = (ENTRY.build)(&options.parse().unwrap()).unwrap_err();
            assert!(error.to_string().contains(expected), "{options}: {error}");
        }
    }
}
