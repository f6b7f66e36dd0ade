//! What a method adapts, and by updates of which rank.

use sdlora_core::{Adapter, SdLoraConfig, Variant};
use sdlora_vit::{Projection, VitConfig};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::slot::SlotSpec;

/// The low-rank updates of a method.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterSpec {
    /// Norms and magnitudes.
    pub settings: SdLoraConfig,
    /// Adapted projections of every block.
    pub projections: Vec<Projection>,
    /// Ranks of the directions that begin.
    pub ranks: Ranks,
    /// What the directions have besides factors.
    pub slot: SlotSpec,
}

impl AdapterSpec {
    /// An adapter without directions for a backbone; one without sites for a method that adapts nothing.
    ///
    /// # Errors
    ///
    /// [`TrainError::Core`] for settings that do not hold together and for a rank that does not fit a site.
    pub fn adapter(spec: Option<&Self>, vit: &VitConfig) -> Result<Adapter, TrainError> {
        let Some(spec) = spec else {
            return Ok(Adapter::new(Variant::Reference.config(), &[])?);
        };
        let sites = vit.sites(&spec.projections);
        for step in spec.ranks.steps() {
            for site in &sites {
                site.check_rank(spec.slot.rank(step.rank, site.group, vit.depth))?;
            }
        }
        Ok(Adapter::new(spec.settings, &sites)?)
    }
}

/// From a task on, this rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankStep {
    /// First task with this rank, from 0.
    pub from_task: usize,
    /// The rank, at least 1.
    pub rank: usize,
}

/// The rank of the direction of every task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ranks(Vec<RankStep>);

impl Ranks {
    /// The same rank in every task.
    pub fn constant(rank: usize) -> Self {
        Self(vec![RankStep { from_task: 0, rank }])
    }

    /// Ranks that change with the task; `None` unless the steps start at task 0, ascend, and have ranks of at
    /// least 1.
    pub fn by_task(steps: Vec<RankStep>) -> Option<Self> {
        let starts_at_0 = steps.first().is_some_and(|step| step.from_task == 0);
        let ascends = steps.windows(2).all(|w| w[0].from_task < w[1].from_task);
        let is_whole = starts_at_0 && ascends && steps.iter().all(|step| step.rank > 0);
        is_whole.then_some(Self(steps))
    }

    /// The rank of a task, which is counted from 0.
    pub fn at(&self, task_idx: usize) -> usize {
        let reached = self.0.iter().take_while(|step| step.from_task <= task_idx);
        reached.last().map_or(0, |step| step.rank)
    }

    /// The steps, in the order of tasks.
    pub fn steps(&self) -> &[RankStep] {
        &self.0
    }
}
