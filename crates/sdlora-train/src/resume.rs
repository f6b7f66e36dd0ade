//! Saving and restoring a run: what lies in its checkpoints and how the model is built up again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleMapper, Param};
use burn::optim::ModuleOptimizer;
use burn::tensor::{Device, Tensor};
use sdlora_core::{Adapter, AdapterStructure, Site};
use sdlora_vit::{Vit, VitConfig};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::checkpoint;
use crate::config::Plan;
use crate::error::TrainError;
use crate::files::create_folder;
use crate::heads::{HeadState, TrainedHead, TrainedShape};
use crate::methods::LossOver;
use crate::model::{Model, parameters};
use crate::objects::{Objects, References, references};
use crate::run_folder::RunFolder;
use crate::run_log::RunLog;
use crate::soundness::unsound_part;
use crate::state::{MethodState, StateShape};

/// What the names of checkpoints inside a round have; each makes the earlier ones superfluous.
const INSIDE: &str = "-step";

/// Name of the checkpoint after some steps of a round.
pub(crate) fn step_name(round: usize, n_steps: usize) -> String {
    format!("task-{round:03}{INSIDE}-{n_steps:07}")
}

/// Name of the checkpoint of a round of which only the evaluation is missing; it sorts behind those of its
/// steps.
pub(crate) fn steps_done_name(round: usize) -> String {
    format!("task-{round:03}{INSIDE}s-done")
}

/// Name of the checkpoint at the end of a round; it sorts behind those inside the round.
pub(crate) fn task_end_name(round: usize) -> String {
    format!("task-{round:03}-trained")
}

/// The part of a model that differs from the weight file it started with.
#[derive(Module, Debug)]
struct Learned {
    adapter: Adapter,
    head: HeadState,
    state: MethodState,
    /// Only where the method trains it.
    backbone: Option<Vit>,
}

/// Where a run is, and the structure its records need.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Position {
    n_done: usize,
    /// Missing in versions before 5.
    #[serde(default)]
    adapter: Option<AdapterStructure>,
    /// What versions before 5 have in the place of `adapter`: the ranks of every site.
    #[serde(default, skip_serializing)]
    past_ranks: Vec<usize>,
    /// See `past_ranks`.
    #[serde(default, skip_serializing)]
    current_rank: Option<usize>,
    trained_head: Option<TrainedShape>,
    #[serde(default)]
    state: StateShape,
    /// What version 3 has in the place of `state`.
    #[serde(default, skip_serializing)]
    prompts: Option<IgnoredAny>,
    /// See `prompts`.
    #[serde(default, skip_serializing)]
    memory: Option<IgnoredAny>,
    with_backbone: bool,
    /// What lies in objects that checkpoints share; empty in versions before 5, whose records have everything.
    #[serde(default)]
    objects: References,
    /// Ids of the parameters that receive gradients.
    trained: BTreeSet<u64>,
    log: RunLog,
    /// What the observer said of its own log, see [`Observer::mark`](crate::Observer::mark).
    #[serde(default)]
    mark: Option<u64>,
}

impl Position {
    /// The position of a run whose first `n_done` rounds are over.
    pub(crate) fn of(model: &Model, n_done: usize, log: &RunLog, mark: Option<u64>) -> Self {
        Self {
            n_done,
            adapter: Some(model.adapter.structure()),
            past_ranks: Vec::new(),
            current_rank: None,
            trained_head: model.head.trained.as_ref().map(TrainedHead::shape),
            state: model.state.shape(),
            prompts: None,
            memory: None,
            with_backbone: !trained_ids(&model.backbone).is_empty(),
            objects: References::default(),
            trained: trained_ids(model),
            log: log.clone(),
            mark,
        }
    }

    /// The structure of the adapter, for as many sites.
    fn adapter(&self, n_sites: usize) -> AdapterStructure {
        self.adapter.clone().unwrap_or_else(|| {
            AdapterStructure::uniform(n_sites, &self.past_ranks, self.current_rank)
        })
    }

    /// The structure of what the record has of the adapter.
    fn own_adapter(&self, n_sites: usize) -> AdapterStructure {
        let whole = self.adapter(n_sites);
        match self.objects.has_directions() {
            true => whole.without_past(),
            false => whole,
        }
    }

    /// Checks that the structure fits a backbone, its sites and a file with that many bytes of parameters, before
    /// room is made for what it says.
    fn check(&self, vit: &VitConfig, sites: &[Site], n_bytes: usize) -> Result<(), String> {
        if self.prompts.is_some() || self.memory.is_some() {
            return Err(
                "it is of an earlier version, which kept prompts and input subspaces in another form: finish \
                 the run with the version that started it, or start it again"
                    .into(),
            );
        }
        let head = self.trained_head;
        if let Some(shape) = head
            && shape.n_in_task().is_some_and(|n| n > shape.n_classes())
        {
            return Err(format!(
                "its state tells of {shape:?}, more of a task than in all"
            ));
        }
        let n_classes = head.map_or(0, |shape| shape.n_classes());
        for (what, n) in [
            ("classes", n_classes.saturating_mul(vit.d_model)),
            ("matrices of the method", self.state.n_numbers()),
            ("directions", self.own_adapter(sites.len()).n_numbers(sites)),
        ] {
            if n.saturating_mul(size_of::<f32>()) > n_bytes {
                return Err(format!(
                    "its {what} have {n} numbers, for which its {n_bytes} bytes of parameters have no room"
                ));
            }
        }
        Ok(())
    }
}

fn trained_ids<M: Module>(module: &M) -> BTreeSet<u64> {
    let trained = parameters(module)
        .into_iter()
        .filter(|(_, is_trained)| *is_trained);
    trained.map(|(id, _)| id.val()).collect()
}

/// Writes a checkpoint and removes the earlier ones of the same task that it makes superfluous. A model
/// whose numbers are none is refused, so it never takes the place of a sound one. `stored` has the names of the logs of
/// rounds that are over and were stored by this process.
pub(crate) fn save(
    folder: &RunFolder,
    name: &str,
    model: &Model,
    optimizer: Option<&ModuleOptimizer>,
    mut position: Position,
    stored: &mut Vec<String>,
) -> Result<PathBuf, TrainError> {
    if let Some(what) = unsound_part(model) {
        return Err(TrainError::Unsound {
            what,
            task_idx: position.log.tasks.len().saturating_sub(1),
            n_steps: position.log.tasks.last().map_or(0, |t| t.losses.len()),
        });
    }
    folder.check()?;
    let checkpoints = &folder.checkpoints();
    let objects = Objects::of(checkpoints);
    create_folder(checkpoints)?;
    let (adapter, directions) = objects.put_directions(model.adapter.clone())?;
    let n_over = position.n_done.min(position.log.tasks.len());
    let logs = objects.put_log(&mut position.log, n_over, stored)?;
    let (arrays, shared) = objects.put_shared_arrays(model.head.to_file())?;
    position.objects = references(directions, logs, shared);
    let now = position.objects.clone();
    let learned = Learned {
        adapter,
        head: model.head.clone(),
        state: model.state.clone(),
        backbone: position.with_backbone.then(|| model.backbone.clone()),
    };
    let path = checkpoint::save(
        checkpoints,
        name,
        learned.into_record(),
        optimizer,
        &arrays,
        &position,
    )?;
    let superfluous: Vec<String> = checkpoint::names(checkpoints)
        .into_iter()
        .filter(|other| other != name && other.contains(INSIDE))
        .collect();
    checkpoint::remove(checkpoints, &superfluous);
    // Without large arrays no earlier state has to be read. Backwards as far as there are some: usually those of the
    // checkpoint before, and after a kill also those it did not come to.
    if now.has_shared_arrays() {
        for other in checkpoint::names(checkpoints).iter().rev() {
            if other != name
                && let Some(before) = references_of(&checkpoints.join(other))
                && !objects.forget_shared_arrays(&before, &now)
            {
                break;
            }
        }
    }
    Ok(path)
}

/// The objects that a checkpoint needs; `None` where it does not say.
fn references_of(path: &Path) -> Option<References> {
    #[derive(Deserialize)]
    struct State {
        state: Objects,
    }
    #[derive(Deserialize)]
    struct Objects {
        #[serde(default)]
        objects: References,
    }
    let state: State = checkpoint::state_of(path)?;
    Some(state.state.objects)
}

/// Removes the objects of a run that no checkpoint needs: what a kill between two writes left, and what belonged to
/// checkpoints that are gone.
pub(crate) fn clean_objects(checkpoints: &Path) {
    let names = checkpoint::names(checkpoints);
    let needed = names
        .iter()
        .map(|name| references_of(&checkpoints.join(name)));
    Objects::of(checkpoints).keep_only(needed);
}

/// Whether a checkpoint is to be read without the large arrays of its head where they are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrays {
    /// All of them, or the checkpoint is refused: a run continues from it.
    All,
    /// Those that are there: it is looked at.
    ThoseKept,
}

/// A run as a checkpoint kept it.
pub(crate) struct Restored {
    pub(crate) model: Model,
    pub(crate) optimizer: Option<ModuleOptimizer>,
    pub(crate) log: RunLog,
    /// Rounds that are over.
    pub(crate) n_done: usize,
    /// What the observer said of its own log.
    pub(crate) mark: Option<u64>,
}

/// Builds the model of a checkpoint on top of a fresh one.
pub(crate) fn restore(
    fresh: Model,
    path: &Path,
    plan: &Plan,
    arrays: Arrays,
    device: &Device,
) -> Result<Restored, TrainError> {
    let config = plan.config();
    let saved = checkpoint::load::<Position>(path)?;
    let mut position = saved.state;
    let damaged = |problem| TrainError::checkpoint(path, problem);
    let objects = Objects::of(path.parent().unwrap_or(path));
    objects
        .get_log(&mut position.log, &position.objects)
        .map_err(damaged)?;
    let columns = position.trained_head.and_then(|head| head.n_in_task());
    let is_of_whole_head = saved.optimizer.is_some() && position.n_done > 0 && columns.is_none();
    if is_of_whole_head && config.loss == LossOver::NewClasses && position.trained_head.is_some() {
        return Err(TrainError::checkpoint(
            path,
            "it is from the middle of a task and of an earlier version, whose optimiser also moved the head's \
             columns of old classes",
        ));
    }
    let banks = fresh.adapter.sites.iter();
    let sites: Vec<Site> = banks.map(|bank| bank.site().clone()).collect();
    position
        .check(fresh.backbone.config(), &sites, saved.n_model_bytes)
        .map_err(|problem| TrainError::checkpoint(path, problem))?;
    let structure = position.adapter(sites.len());
    let own = position.own_adapter(sites.len());
    let d_model = fresh.backbone.config().d_model;
    let arrays = match objects.get_shared_arrays(saved.arrays.clone(), &position.objects) {
        Ok(arrays) => arrays,
        Err(_) if arrays == Arrays::ThoseKept => saved.arrays,
        Err(problem) => return Err(damaged(problem)),
    };
    let arrays = HeadState::from_file(&arrays).map_err(|name| {
        TrainError::checkpoint(path, format!("its head has an unknown array `{name}`"))
    })?;
    let entry = plan.method_entry().second_pass;
    let state = MethodState::zeros(position.state, entry, device)
        .map_err(|problem| TrainError::checkpoint(path, problem))?;
    if let Some(second_pass) = state.second_pass() {
        second_pass
            .check(fresh.backbone.config().depth)
            .and_then(|()| state.fits(&second_pass.room(d_model, device)))
            .map_err(|problem| TrainError::checkpoint(path, problem))?;
    }
    let learned = Learned {
        adapter: Adapter::with_structure(fresh.adapter.config(), &sites, &own, device)
            .map_err(|e| TrainError::checkpoint(path, e.to_string()))?,
        head: HeadState {
            trained: position
                .trained_head
                .map(|shape| TrainedHead::zeros(shape, d_model, device)),
            per_class: arrays.per_class,
            shared: arrays.shared,
        },
        state,
        backbone: position.with_backbone.then(|| fresh.backbone.clone()),
    };
    let learned = learned
        .try_load_record(saved.model)
        .map_err(|e| TrainError::checkpoint(path, e.to_string()))?;
    let adapter = match position.objects.has_directions() {
        true => {
            let adapter = learned.adapter;
            let joined = objects.get_directions(adapter, &structure, &position.objects, device);
            joined.map_err(damaged)?
        }
        false => learned.adapter,
    };
    let model = Model {
        backbone: learned.backbone.unwrap_or(fresh.backbone),
        adapter,
        head: learned.head,
        state: learned.state,
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
    Ok(Restored {
        model,
        optimizer,
        log: position.log,
        n_done: position.n_done,
        mark: position.mark,
    })
}
