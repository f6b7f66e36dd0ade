//! The merge line: one low-rank update is trained per task, and what predicts is a running mean of all of them.
//!
//! `ΔW ← (1 − m) ΔW + m ΔW_task` on every site, in weight space, after the last step of a task; the first task
//! counts whole. `ΔW_task` is what the forward pass of the task had, so the rule reads the same for every start:
//!
//! | `start` | forward pass of task t | `ΔW_task` | begins at |
//! |---|---|---|---|
//! | `previous` | `W0 + A_t B_t` | `A_t B_t` | `A_{t−1} B_{t−1}`, the factors of the last task |
//! | `fresh` | `W0 + A_t B_t` | `A_t B_t` | the backbone: A drawn, B = 0 |
//! | `merged` | `W0 + ΔW + A_t B_t` | `ΔW + A_t B_t` | the merged update: A drawn, B = 0 |
//!
//! With `previous` the tasks train one LoRA in sequence and never see the mean of it, which is what the published
//! line does. What is kept is the accumulated update of every site and, for `previous`, the factors of the last
//! task: the same numbers after a hundred tasks as after two.
//!
//! `merge = "factors"` averages `A` and `B` instead of their product, which is what the public code of this line
//! does (it also truncates the move of `A` by its spectrum, and its own results do not change with that). The mean
//! is then a LoRA of the same rank, and needs the start `previous`: factors drawn apart have nothing in common.
//!
//! `merge = "magnitudes"` says the same with SD-LoRA's directions: every task has one of its own, all magnitudes are
//! trained, and after the task `α ← (1 − m) α + m α_task`, where a new direction had a magnitude of 0 before. The
//! directions stay, so the state grows with the tasks. Directions and magnitudes are those of `sdlora-relative`.
//!
//! The features that a task was trained on are not those that predict after it, so a head that is fitted has to
//! follow: it sees the features of the merged model, before the task and after it (`docs/decisions/0044-merge.md`).
//! The head where none is named is `gaussian` with `drift = "linear"`.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use sdlora_core::{Direction, Magnitudes};
use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::lora::plain_lora;
use super::{
    AdapterSpec, Method, MethodEntry, TaskContext, TaskImages, check_counts, check_projections,
    default_rank, parse, query_and_value,
};
use crate::error::TrainError;
use crate::heads::{ColumnStart, HeadConfig};
use crate::model::Model;
use crate::state::{MethodState, Role};

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "sdlora-merge",
    summary: "a LoRA trained on from task to task, and the running mean of it predicts (share, start, merge)",
    build: |options| {
        let method: SdLoraMerge = parse("sdlora-merge", options)?;
        method.check()?;
        Ok(Box::new(method))
    },
    second_pass: None,
};

/// m: how much of the merged update the newest task is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a number above 0 and at most 1, `by-tasks` or `by-images`"
)]
enum Share {
    /// The same in every task.
    Fixed(f64),
    /// As every task counts the same, or every image.
    Equal(Equal),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Equal {
    /// `m = 1 / t` in task t, from 1.
    ByTasks,
    /// The training images of the task over those of all tasks so far.
    ByImages,
}

/// Where the update of a task starts, and what stands beside it while it is trained; see the table above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum MergeStart {
    Previous,
    Fresh,
    Merged,
}

/// What moves after a task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Merges {
    /// One matrix per site.
    #[default]
    Update,
    /// Both factors of every site.
    Factors,
    /// The magnitude of every direction.
    Magnitudes,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SdLoraMerge {
    /// Rank of the factors.
    #[serde(default = "default_rank")]
    rank: usize,
    /// Adapted projections of every block.
    #[serde(default = "query_and_value")]
    projections: Vec<Projection>,
    /// m.
    #[serde(default = "a_fifth")]
    share: Share,
    /// Where a task starts; where it is left out `previous`, and `merged` with magnitudes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start: Option<MergeStart>,
    /// What is merged.
    #[serde(default)]
    merge: Merges,
}

fn a_fifth() -> Share {
    Share::Fixed(0.2)
}

/// What the method keeps beside the adapter: between tasks the factors that the next one starts from, while a task
/// trains what it will be merged with.
#[derive(Module, Debug, Default)]
struct Kept {
    /// Down-projections of the last task, in the order of sites; while a task trains, those of the mean.
    a: Vec<Param<Tensor<2>>>,
    /// Up-projections of the same.
    b: Vec<Param<Tensor<2>>>,
    /// The accumulated update of every site, where it takes no part in the forward pass of the running task.
    merged: Vec<Param<Tensor<2>>>,
    /// Magnitudes `[n_groups, n_tasks]` before the running task.
    magnitudes: Vec<Param<Tensor<2>>>,
}

impl Kept {
    fn keep(&mut self, a: Tensor<2>, b: Tensor<2>) {
        self.a.push(frozen(a));
        self.b.push(frozen(b));
    }
}

/// The facts that count training images: of all tasks that are over, and of the running one.
const N_IMAGES: &str = "n_images";
const N_IMAGES_OF_TASK: &str = "n_images_of_task";

impl SdLoraMerge {
    fn check(&self) -> Result<(), TrainError> {
        check_counts(&[("rank", self.rank)])?;
        check_projections(&self.projections, &Projection::ALL)?;
        if let Share::Fixed(share) = self.share
            && !(share > 0.0 && share <= 1.0)
        {
            let expected = "a number above 0 and at most 1, `by-tasks` or `by-images`";
            return Err(TrainError::setting("method.share", share, expected));
        }
        let expected = match (self.merge, self.start()) {
            (Merges::Factors, MergeStart::Fresh | MergeStart::Merged) => {
                "`previous` or left out: a mean of factors that were drawn apart means nothing"
            }
            (Merges::Magnitudes, MergeStart::Previous | MergeStart::Fresh) => {
                "`merged` or left out: magnitudes weigh directions that stand side by side"
            }
            _ => return Ok(()),
        };
        let found = format!("{:?}", self.start()).to_lowercase();
        Err(TrainError::setting("method.start", found, expected))
    }

    fn start(&self) -> MergeStart {
        self.start.unwrap_or(match self.merge {
            Merges::Update | Merges::Factors => MergeStart::Previous,
            Merges::Magnitudes => MergeStart::Merged,
        })
    }

    fn spec(&self) -> AdapterSpec {
        plain_lora(&self.projections, self.rank)
    }

    /// m of a task; 1 in the first.
    fn share_of(&self, task_idx: usize, state: &MethodState) -> f64 {
        match self.share {
            _ if task_idx == 0 => 1.0,
            Share::Fixed(share) => share,
            Share::Equal(Equal::ByTasks) => 1.0 / (task_idx + 1) as f64,
            Share::Equal(Equal::ByImages) => {
                let (before, now) = (count(state, N_IMAGES), count(state, N_IMAGES_OF_TASK));
                now as f64 / (before + now).max(1) as f64
            }
        }
    }

    /// The model with the update that a task after the first one trains.
    fn started(&self, mut model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        let directions = match self.start() {
            MergeStart::Previous => previous(&model, &task.device)?,
            MergeStart::Fresh | MergeStart::Merged => task.directions(&model, &self.spec()),
        };
        let mut kept = Kept::default();
        for (bank, direction) in model.adapter.sites.iter_mut().zip(directions) {
            if let Some(mean) = bank.current.replace(direction) {
                kept.keep(mean.a.val(), mean.b.val());
            }
            if self.start() != MergeStart::Merged {
                kept.merged.extend(bank.merged.take());
            }
        }
        model.state = with_count(MethodState::of(&kept, |_| Role::Parameter), &model.state);
        Ok(model)
    }

    /// The model with the update of its task inside the accumulated one.
    fn merged(&self, mut model: Model, share: f64) -> Result<Model, TrainError> {
        let mut kept = Kept::default();
        for i in 0..model.adapter.sites.len() {
            let aside = match self.start() {
                MergeStart::Merged => None,
                _ => model.state.get(&format!("merged.{i}")).map(Param::val),
            };
            let bank = &mut model.adapter.sites[i];
            let Some(current) = bank.current.take() else {
                continue;
            };
            let (a, b) = (current.a.val().detach(), current.b.val().detach());
            let product = a.clone().matmul(b.clone());
            let merged = match (aside, &bank.merged) {
                (Some(before), _) => before.mul_scalar(1.0 - share) + product.mul_scalar(share),
                // (1 − m) ΔW + m (ΔW + A B)
                (None, Some(before)) => before.val() + product.mul_scalar(share),
                (None, None) => product,
            };
            bank.merged = Some(frozen(merged));
            if self.start() == MergeStart::Previous {
                kept.keep(a, b);
            }
        }
        model.state = with_count(MethodState::of(&kept, |_| Role::Parameter), &model.state);
        Ok(model)
    }

    /// The model with the mean of its factors, which is its update until the next task.
    fn with_factors_merged(mut model: Model, share: f64) -> Model {
        let mut kept = Kept::default();
        let state = &model.state;
        for (i, bank) in model.adapter.sites.iter_mut().enumerate() {
            let Some(current) = &mut bank.current else {
                continue;
            };
            kept.keep(current.a.val(), current.b.val());
            for (name, factor) in [("a", &mut current.a), ("b", &mut current.b)] {
                if let Some(before) = state.get(&format!("{name}.{i}")) {
                    let task = factor.val().detach().mul_scalar(share);
                    let mean = before.val().mul_scalar(1.0 - share) + task;
                    *factor = Param::from_tensor(mean.detach());
                }
            }
        }
        model.state = with_count(MethodState::of(&kept, |_| Role::Parameter), &model.state);
        model
    }

    /// The model with magnitudes that moved a share of the way that the task moved them.
    fn with_magnitudes_merged(mut model: Model, share: f64, device: &Device) -> Model {
        let before = model.state.get("magnitudes.0").map(Param::val);
        let before: Vec<f64> = before.map_or(Vec::new(), |rows| {
            rows.into_data().iter::<f32>().map(f64::from).collect()
        });
        let mut rows = model.adapter.magnitude_rows();
        let width = rows.first().map_or(0, Vec::len);
        for (row, before) in rows.iter_mut().zip(before.chunks_exact(width.max(1))) {
            for (after, before) in row.iter_mut().zip(before) {
                *after = (1.0 - share) * before + share * *after;
            }
        }
        model.adapter.magnitudes = Some(Magnitudes::from_rows(&rows, device));
        model.state = with_count(MethodState::default(), &model.state);
        model
    }
}

/// The factors of the last task, to be trained on.
fn previous(model: &Model, device: &Device) -> Result<Vec<Direction>, TrainError> {
    let find = |name: String| {
        let found = model
            .state
            .get(&name)
            .map(|factor| factor.val().into_data());
        found.ok_or_else(|| {
            let expected = "the factors of the last task: it is the state of another method";
            TrainError::setting("state", format!("no `{name}`"), expected)
        })
    };
    let factors = (0..model.adapter.sites.len()).map(|i| {
        let (a, b) = (find(format!("a.{i}"))?, find(format!("b.{i}"))?);
        Ok(Direction::from_factors(a, b, device))
    });
    factors.collect()
}

/// Magnitudes before a task whose new direction has one of 0 there.
fn magnitudes_before(model: &Model, device: &Device) -> Kept {
    let mut rows = model.adapter.magnitude_rows();
    for row in &mut rows {
        row.pop();
        row.push(0.0);
    }
    let shape = [rows.len(), rows.first().map_or(0, Vec::len)];
    let values: Vec<f32> = rows.into_iter().flatten().map(|v| v as f32).collect();
    Kept {
        magnitudes: vec![frozen(Tensor::from_data(
            TensorData::new(values, shape),
            device,
        ))],
        ..Kept::default()
    }
}

fn frozen(values: Tensor<2>) -> Param<Tensor<2>> {
    Param::from_tensor(values.detach()).set_require_grad(false)
}

/// A count among the facts of a state.
fn count(state: &MethodState, name: &str) -> u64 {
    state.fact(name).and_then(Value::as_u64).unwrap_or(0)
}

/// A state with the images that another one counted, those of its task among them.
fn with_count(state: MethodState, before: &MethodState) -> MethodState {
    match count(before, N_IMAGES) + count(before, N_IMAGES_OF_TASK) {
        0 => state,
        n_images => state.with_fact(N_IMAGES, n_images.into()),
    }
}

impl Method for SdLoraMerge {
    fn before_task(&self, mut model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        if self.merge == Merges::Magnitudes {
            model = task.begin_directions(model, &self.spec())?;
            let kept = magnitudes_before(&model, &task.device);
            let state = MethodState::of(&kept, |_| Role::Parameter);
            model.state = with_count(state, &model.state);
        } else if task.task_idx == 0 {
            model = task.begin_directions(model, &self.spec())?;
            model.adapter = model.adapter.with_current_magnitude_trainable(false);
        } else {
            model = self.started(model, task)?;
        }
        Ok(task.grow_head(model))
    }

    fn review(
        &self,
        mut model: Model,
        _task: &TaskContext,
        images: &dyn TaskImages,
    ) -> Result<Model, TrainError> {
        if self.share == Share::Equal(Equal::ByImages) {
            let mut n_images = 0;
            images.each_batch(&mut |_, labels| n_images += labels.len())?;
            model.state = model.state.with_fact(N_IMAGES_OF_TASK, n_images.into());
        }
        Ok(model)
    }

    fn after_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        let share = self.share_of(task.task_idx, &model.state);
        match self.merge {
            Merges::Update => self.merged(model, share),
            Merges::Factors => Ok(Self::with_factors_merged(model, share)),
            Merges::Magnitudes => Ok(Self::with_magnitudes_merged(model, share, &task.device)),
        }
    }

    fn adapter(&self) -> Option<AdapterSpec> {
        Some(self.spec())
    }

    fn default_head(&self) -> HeadConfig {
        HeadConfig::named("gaussian").with("drift", "linear")
    }

    fn column_start(&self) -> ColumnStart {
        ColumnStart::Kaiming
    }
}
