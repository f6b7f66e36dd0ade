//! SD-LoRA and its relatives in the paper: low-rank directions whose magnitudes stay trainable.
//!
//! `W = W0 + Σ_{k<t} α_k D_k + α_t A_t B_t`; trained in task t: A_t, B_t, α_1..α_t and the head.
//! The variants differ in norms and starts only, see [`Variant`].
//!
//! | method | a direction begins in | rank | earlier magnitudes | after a task |
//! |---|---|---|---|---|
//! | `sdlora` | every task | constant | trained | |
//! | `sdlora-rr` (section 4.3) | every task | falls with the task | trained | |
//! | `sdlora-kd` (section 4.3) | every task | constant, or falls | trained | a direction that the others span is absorbed |
//! | `sdlora-first` (Table 4, a) | the first task, and is frozen after it | constant | trained | |
//! | `sdlora-single` (Table 4, b) | the first task, and is trained on | constant | trained | |
//! | `sdlora-fixed-magnitude` (Table 4, c) | every task | constant | fixed | |
//!
//! With the variant `paper` the direction of `sdlora-single` is normalised while it is trained, which decouples
//! it from its magnitude; with `reference` and `carry` the running direction is raw.
//!
//! The magnitudes of `sdlora-fixed-magnitude` are fixed at the value that a task starts with: the reset value
//! in `reference`, what was learned in `paper` and `carry`.
//!
//! Algorithm 1 of the paper reduces ranks and absorbs directions in one run: `sdlora-kd` with `ranks`.
//!
//! The paper gives `sdlora-kd` the threshold 9e-4 and leaves the norm open; see [`ResidualNorm`].
//! Differs from the paper: equation 8 adds the coefficients `Δα_k` of the unit direction, which is
//! `coefficients = "paper"`. By default they count by the magnitude `α_t` that it was trained to, because absorbing
//! then changes the function by the residual alone. With `"kept"` they count by what the direction would be worth
//! had it been kept: in `reference` the others jump when the next task starts, and so does it, in the same moment.
//! See [`Coefficients`].

mod ranks;

use sdlora_core::{Coefficients, ResidualNorm, SdLoraConfig, Variant};
use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};

use super::{
    AdapterSpec, Method, MethodEntry, Ranks, TaskContext, check_counts, check_number,
    check_projections, check_slot, default_rank, parse, query_and_value,
};
use crate::error::TrainError;
use crate::heads::ColumnStart;
use crate::model::Model;
use crate::slot::SlotSpec;
use ranks::RankSchedule;

/// The methods of this file.
pub(super) const SDLORA: MethodEntry = MethodEntry {
    name: "sdlora",
    summary: "a direction per task with shared trainable magnitudes (variant: reference, paper, carry)",
    build: |options| built(rank_and_family("sdlora", options)?, Member::default()),
    second_pass: None,
};
pub(super) const RR: MethodEntry = MethodEntry {
    name: "sdlora-rr",
    summary: "SD-LoRA with a rank that falls with the task (ranks: paper, reference or a list)",
    build: |options| {
        let options: WithSchedule = parse("sdlora-rr", options)?;
        let ranks = options.ranks.check()?;
        built((ranks, options.family), Member::default())
    },
    second_pass: None,
};
pub(super) const KD: MethodEntry = MethodEntry {
    name: "sdlora-kd",
    summary: "SD-LoRA that absorbs a direction which the earlier ones span (norm, threshold, coefficients, ranks)",
    build: |options| {
        let options: WithThreshold = parse("sdlora-kd", options)?;
        check_number("method.threshold", options.threshold, true)?;
        let ranks = options.ranks()?;
        let member = Member {
            absorbs: Some(Absorbs {
                norm: options.norm,
                threshold: options.threshold,
                coefficients: options.coefficients,
            }),
            ..Member::default()
        };
        built((ranks, options.family), member)
    },
    second_pass: None,
};
pub(super) const FIRST: MethodEntry = MethodEntry {
    name: "sdlora-first",
    summary: "ablation: the first direction only, its magnitude always trained",
    build: |options| {
        let member = Member {
            begins: Begins::FirstTask {
                is_trained_on: false,
            },
            ..Member::default()
        };
        built(rank_and_family("sdlora-first", options)?, member)
    },
    second_pass: None,
};
pub(super) const SINGLE: MethodEntry = MethodEntry {
    name: "sdlora-single",
    summary: "ablation: one direction and its magnitude, trained on in every task",
    build: |options| {
        let member = Member {
            begins: Begins::FirstTask {
                is_trained_on: true,
            },
            ..Member::default()
        };
        built(rank_and_family("sdlora-single", options)?, member)
    },
    second_pass: None,
};
pub(super) const FIXED_MAGNITUDE: MethodEntry = MethodEntry {
    name: "sdlora-fixed-magnitude",
    summary: "ablation: a direction per task, earlier magnitudes fixed",
    build: |options| {
        let member = Member {
            fixes_past: true,
            ..Member::default()
        };
        built(rank_and_family("sdlora-fixed-magnitude", options)?, member)
    },
    second_pass: None,
};

/// What every method of the family lets choose.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Family {
    /// Named combination of settings.
    #[serde(default = "default_variant")]
    variant: Variant,
    /// Adapted projections of every block.
    #[serde(default = "query_and_value")]
    projections: Vec<Projection>,
    /// Single settings instead of the variant's.
    #[serde(default)]
    settings: Option<SdLoraConfig>,
    /// What the running direction has besides factors.
    #[serde(default)]
    slot: SlotSpec,
}

fn default_variant() -> Variant {
    Variant::Reference
}

// No `deny_unknown_fields` in this file: serde cannot combine it with `flatten`; `parse` refuses unknown options.

/// The options of most.
#[derive(Debug, Serialize, Deserialize)]
struct WithRank {
    /// Rank of every direction.
    #[serde(default = "default_rank")]
    rank: usize,
    #[serde(flatten)]
    family: Family,
}

/// The options of `sdlora-rr`.
#[derive(Debug, Serialize, Deserialize)]
struct WithSchedule {
    /// Which rank from which task on.
    #[serde(default)]
    ranks: RankSchedule,
    #[serde(flatten)]
    family: Family,
}

/// The options of `sdlora-kd`.
#[derive(Debug, Serialize, Deserialize)]
struct WithThreshold {
    /// Rank of every direction; 10 where neither it nor `ranks` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rank: Option<usize>,
    /// Which rank from which task on, as in `sdlora-rr`, in the place of `rank`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ranks: Option<RankSchedule>,
    /// How the residual is measured.
    #[serde(default)]
    norm: ResidualNorm,
    /// A direction whose residual is at most this on every site is absorbed.
    #[serde(default = "paper_threshold")]
    threshold: f64,
    /// What the earlier directions take over: `trained`, `kept` or `paper`.
    #[serde(default)]
    coefficients: Coefficients,
    #[serde(flatten)]
    family: Family,
}

impl WithThreshold {
    fn ranks(&self) -> Result<Ranks, TrainError> {
        match (self.rank, &self.ranks) {
            (Some(rank), Some(_)) => Err(TrainError::setting(
                "method.rank",
                rank,
                "left out beside `ranks`, which says the rank of every task",
            )),
            (None, Some(ranks)) => ranks.check(),
            (rank, None) => constant(rank.unwrap_or_else(default_rank)),
        }
    }
}

/// The paper's τ.
fn paper_threshold() -> f64 {
    9e-4
}

/// A row of the table above.
#[derive(Debug, Clone, Copy, Default)]
struct Member {
    begins: Begins,
    fixes_past: bool,
    absorbs: Option<Absorbs>,
}

/// When a direction is absorbed, and what the others take over.
#[derive(Debug, Clone, Copy)]
struct Absorbs {
    norm: ResidualNorm,
    threshold: f64,
    coefficients: Coefficients,
}

impl Absorbs {
    fn absorb(self, mut model: Model, task: &TaskContext) -> Model {
        let absorbed = model.adapter.absorb_current(
            self.norm,
            self.threshold,
            self.coefficients,
            &task.device,
        );
        (model.adapter, _) = absorbed;
        model
    }

    /// Whether a direction is absorbed when the next task starts, and not when its own ends. In the last task it
    /// stays: there is no later one that it would enter differently.
    fn is_at_the_next_start(self) -> bool {
        self.coefficients == Coefficients::Kept
    }
}

/// When a direction begins.
#[derive(Debug, Clone, Copy, Default)]
enum Begins {
    #[default]
    EveryTask,
    FirstTask {
        is_trained_on: bool,
    },
}

#[derive(Debug)]
struct SdLora {
    adapter: AdapterSpec,
    member: Member,
}

fn constant(rank: usize) -> Result<Ranks, TrainError> {
    check_counts(&[("rank", rank)])?;
    Ok(Ranks::constant(rank))
}

fn rank_and_family(name: &str, options: &toml::Table) -> Result<(Ranks, Family), TrainError> {
    let options: WithRank = parse(name, options)?;
    Ok((constant(options.rank)?, options.family))
}

fn built((ranks, family): (Ranks, Family), member: Member) -> Result<Box<dyn Method>, TrainError> {
    check_projections(&family.projections, &Projection::ALL)?;
    let settings = family.settings.unwrap_or_else(|| family.variant.config());
    settings.check()?;
    for step in ranks.steps() {
        check_slot(&family.slot, &family.projections, step.rank)?;
    }
    Ok(Box::new(SdLora {
        adapter: AdapterSpec {
            settings,
            projections: family.projections,
            ranks,
            slot: family.slot,
        },
        member,
    }))
}

impl Method for SdLora {
    fn before_task(&self, mut model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        let is_first = task.task_idx == 0;
        if let Some(absorbs) = self.member.absorbs
            && absorbs.is_at_the_next_start()
        {
            model = absorbs.absorb(model, task);
        }
        match self.member.begins {
            Begins::FirstTask {
                is_trained_on: true,
            } if !is_first => {}
            Begins::FirstTask {
                is_trained_on: false,
            } if !is_first => {
                model.adapter = model.adapter.begin_task_without_direction(&task.device);
            }
            _ => model = task.begin_directions(model, &self.adapter)?,
        }
        if self.member.fixes_past {
            model.adapter = model.adapter.with_past_magnitudes_trainable(false);
        }
        Ok(task.grow_head(model))
    }

    fn after_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        let model = self.adapter.slot.after_task(model, &task.device);
        Ok(match self.member.absorbs {
            Some(absorbs) if !absorbs.is_at_the_next_start() => absorbs.absorb(model, task),
            _ => model,
        })
    }

    fn adapter(&self) -> Option<AdapterSpec> {
        Some(self.adapter.clone())
    }

    fn column_start(&self) -> ColumnStart {
        ColumnStart::Kaiming
    }
}
