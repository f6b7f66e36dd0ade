//! Saving and restoring a run: what lies in its checkpoints and how the model is built up again.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::ModuleOptimizer;
use burn::tensor::{Device, Tensor};
use sdlora_core::{Adapter, Site};
use sdlora_vit::Vit;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{self, write_file};
use crate::config::{Plan, RunConfig};
use crate::error::TrainError;
use crate::gradient_memory::{GradientMemory, Keeps};
use crate::heads::{HeadState, TrainedHead, TrainedShape};
use crate::model::Model;
use crate::run::{RunLog, Start};

/// Name of the file that holds the plan of a run.
pub const PLAN_FILE: &str = "plan.toml";

/// The part of a model that differs from the weight file it started with.
#[derive(Module, Debug)]
struct Learned {
    adapter: Adapter,
    head: HeadState,
    memory: Option<GradientMemory>,
    /// Only where the method trains it.
    backbone: Option<Vit>,
}

/// Where a run is, and the structure its records need.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Position {
    n_done: usize,
    past_ranks: Vec<usize>,
    current_rank: Option<usize>,
    trained_head: Option<TrainedShape>,
    #[serde(default)]
    memory: Option<Vec<(Keeps, usize)>>,
    with_backbone: bool,
    /// Ids of the parameters that receive gradients.
    trained: BTreeSet<u64>,
    log: RunLog,
}

impl Position {
    /// The position of a run whose first `n_done` rounds are over.
    pub(crate) fn of(model: &Model, n_done: usize, log: &RunLog) -> Self {
        let mut ranks = model.adapter.ranks();
        let is_running = model
            .adapter
            .sites
            .first()
            .is_some_and(|s| s.current.is_some());
        let current_rank = if is_running { ranks.pop() } else { None };
        Self {
            n_done,
            past_ranks: ranks,
            current_rank,
            trained_head: model.head.trained.as_ref().map(TrainedHead::shape),
            memory: model.memory.as_ref().map(GradientMemory::structure),
            with_backbone: !trained_ids(&model.backbone).is_empty(),
            trained: trained_ids(model),
            log: log.clone(),
        }
    }
}

fn trained_ids<M: Module>(module: &M) -> BTreeSet<u64> {
    struct Collect(BTreeSet<u64>);
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                self.0.insert(param.id.val());
            }
        }
    }
    let mut collect = Collect(BTreeSet::new());
    module.visit(&mut collect);
    collect.0
}

/// Writes a checkpoint and removes the earlier ones of the same task that it makes superfluous.
pub(crate) fn save(
    checkpoints: &Path,
    name: &str,
    model: &Model,
    optimizer: Option<&ModuleOptimizer>,
    position: Position,
) -> Result<PathBuf, TrainError> {
    let learned = Learned {
        adapter: model.adapter.clone(),
        head: model.head.clone(),
        memory: model.memory.clone(),
        backbone: position.with_backbone.then(|| model.backbone.clone()),
    };
    let path = checkpoint::save(
        checkpoints,
        name,
        learned.into_record(),
        optimizer,
        &model.head.to_file(),
        &position,
    )?;
    let superfluous: Vec<String> = checkpoint::names(checkpoints)
        .into_iter()
        .filter(|other| other != name && other.contains("-step-"))
        .collect();
    checkpoint::remove(checkpoints, &superfluous);
    Ok(path)
}

type Restored = (Model, Option<ModuleOptimizer>, RunLog, usize);

/// Builds the model of a checkpoint on top of a fresh one.
pub(crate) fn restore(
    fresh: Model,
    path: &Path,
    config: &RunConfig,
    device: &Device,
) -> Result<Restored, TrainError> {
    let saved = checkpoint::load::<Position>(path)?;
    let position = saved.state;
    let d_model = fresh.backbone.config().d_model;
    let arrays = HeadState::from_file(&saved.arrays).map_err(|name| TrainError::Checkpoint {
        path: path.into(),
        problem: format!("its head has an unknown array `{name}`"),
    })?;
    let sites: Vec<Site> = fresh.adapter.sites.iter().map(|s| s.site()).collect();
    let learned = Learned {
        adapter: Adapter::with_structure(
            fresh.adapter.config(),
            &sites,
            &position.past_ranks,
            position.current_rank,
            device,
        )?,
        head: HeadState {
            trained: position
                .trained_head
                .map(|shape| TrainedHead::zeros(shape, d_model, device)),
            per_class: arrays.per_class,
            shared: arrays.shared,
        },
        memory: position
            .memory
            .map(|structure| GradientMemory::with_structure(&structure, d_model, device)),
        backbone: position.with_backbone.then(|| fresh.backbone.clone()),
    };
    let learned = learned
        .try_load_record(saved.model)
        .map_err(|e| TrainError::Checkpoint {
            path: path.into(),
            problem: e.to_string(),
        })?;
    let model = Model {
        backbone: learned.backbone.unwrap_or(fresh.backbone),
        adapter: learned.adapter,
        head: learned.head,
        memory: learned.memory,
    };
    struct Train(BTreeSet<u64>);
    impl ModuleMapper for Train {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let train = self.0.contains(&param.id.val());
            param.set_require_grad(train)
        }
    }
    let model = model.map(&mut Train(position.trained));
    let optimizer = saved.optimizer.map(|record| {
        config
            .optimizer_of(position.n_done)
            .init()
            .load_record(record)
    });
    Ok((model, optimizer, position.log, position.n_done))
}

/// Takes a folder for a run: writes the plan of a fresh one, compares that of a resumed one.
pub(crate) fn claim(folder: &Path, plan: &Plan, start: Start) -> Result<(), TrainError> {
    let file = folder.join(PLAN_FILE);
    let text = plan.to_toml()?;
    match (start, fs::read_to_string(&file)) {
        (Start::Fresh, Ok(_)) => Err(TrainError::RunExists {
            path: folder.into(),
        }),
        (Start::Fresh, Err(_)) => {
            fs::create_dir_all(folder).map_err(TrainError::io("create", folder))?;
            write_file(&file, text.as_bytes())
        }
        (Start::Resume, Err(_)) => Err(TrainError::NoRun {
            path: folder.into(),
        }),
        (Start::Resume, Ok(earlier)) => same_plan(folder, &earlier, &text),
    }
}

/// Checks that the run in `folder`, finished or not, is one of this plan.
///
/// # Errors
///
/// [`TrainError::NoRun`] for a folder without a plan, [`TrainError::PlanChanged`] for another one.
pub fn check_plan(folder: &Path, plan: &Plan) -> Result<(), TrainError> {
    match fs::read_to_string(folder.join(PLAN_FILE)) {
        Ok(earlier) => same_plan(folder, &earlier, &plan.to_toml()?),
        Err(_) => Err(TrainError::NoRun {
            path: folder.into(),
        }),
    }
}

fn same_plan(folder: &Path, earlier: &str, now: &str) -> Result<(), TrainError> {
    match difference(earlier, now) {
        None => Ok(()),
        Some(difference) => Err(TrainError::PlanChanged {
            path: folder.into(),
            difference,
        }),
    }
}

/// The first lines that differ, comments aside.
fn difference(earlier: &str, now: &str) -> Option<String> {
    fn settings(text: &str) -> impl Iterator<Item = &str> {
        text.lines().filter(|line| !line.starts_with('#'))
    }
    let (mut a, mut b) = (settings(earlier), settings(now));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return None,
            (x, y) if x == y => {}
            (x, y) => {
                return Some(format!(
                    "`{}` there, `{}` now",
                    x.unwrap_or("nothing"),
                    y.unwrap_or("nothing")
                ));
            }
        }
    }
}
