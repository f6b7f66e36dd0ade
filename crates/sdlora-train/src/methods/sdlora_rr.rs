//! SD-LoRA-RR: the rank of a new direction falls with the task (paper, section 4.3).
//!
//! The schedule is a list of steps, or one of two names: `paper` has rank 10 for the first three
//! tasks, 8 for the next four and 6 from then on; `reference` is the published code, whose steps
//! come one task later.

use sdlora_core::SdLoraConfig;
use sdlora_vit::Projection;
use serde::{Deserialize, Serialize};

use super::sdlora::Family;
use super::{Method, MethodEntry, TaskContext, parse};
use crate::error::TrainError;
use crate::heads::ColumnStart;
use crate::model::Model;

pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "sdlora-rr",
    summary: "SD-LoRA with a rank that falls with the task (ranks: paper, reference or a list)",
    build: |options| {
        let method: SdLoraRr = parse("sdlora-rr", options)?;
        method.family.check()?;
        method.ranks.check()?;
        Ok(Box::new(method))
    },
    second_pass: None,
};

#[derive(Debug, Clone, Serialize, Deserialize)]
struct SdLoraRr {
    /// Which rank from which task on.
    #[serde(default)]
    ranks: Ranks,
    #[serde(flatten)]
    family: Family,
}

/// A rank for every task.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Ranks {
    Named(NamedRanks),
    Steps(Vec<RankStep>),
}

/// The schedules that were published.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum NamedRanks {
    /// Paper, section 4.3: µ = 4, ν = 8, counted from 1.
    #[default]
    Paper,
    /// Published code: from task 5 and 9, counted from 1.
    Reference,
}

/// From a task on, this rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct RankStep {
    /// First task with this rank, from 0.
    from_task: usize,
    /// The rank.
    rank: usize,
}

impl Default for Ranks {
    fn default() -> Self {
        Self::Named(NamedRanks::default())
    }
}

impl Ranks {
    fn steps(&self) -> Vec<RankStep> {
        let named = |second, third| {
            [(0, 10), (second, 8), (third, 6)]
                .map(|(from_task, rank)| RankStep { from_task, rank })
                .to_vec()
        };
        match self {
            Self::Named(NamedRanks::Paper) => named(3, 7),
            Self::Named(NamedRanks::Reference) => named(4, 8),
            Self::Steps(steps) => steps.clone(),
        }
    }

    fn at(&self, task_idx: usize) -> usize {
        self.steps()
            .into_iter()
            .take_while(|step| step.from_task <= task_idx)
            .last()
            .map_or(0, |step| step.rank)
    }

    fn check(&self) -> Result<(), TrainError> {
        let steps = self.steps();
        let starts_at_0 = steps.first().is_some_and(|step| step.from_task == 0);
        let ascends = steps.windows(2).all(|w| w[0].from_task < w[1].from_task);
        if starts_at_0 && ascends && steps.iter().all(|step| step.rank > 0) {
            return Ok(());
        }
        Err(TrainError::setting(
            "method.ranks",
            format!("{steps:?}"),
            "`paper`, `reference`, or a list of `{ from_task, rank }` that starts at task 0, \
             ascends, and has ranks of at least 1",
        ))
    }
}

impl Method for SdLoraRr {
    fn before_task(&self, mut model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        model = task.begin_direction(model, self.ranks.at(task.task_idx))?;
        Ok(task.grow_head(model))
    }

    fn adapter(&self) -> SdLoraConfig {
        self.family.config()
    }

    fn projections(&self) -> &[Projection] {
        self.family.projections()
    }

    fn column_start(&self) -> ColumnStart {
        ColumnStart::Kaiming
    }

    fn ranks(&self) -> Vec<usize> {
        self.ranks.steps().iter().map(|step| step.rank).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks(options: &str) -> Result<Vec<usize>, TrainError> {
        let method: SdLoraRr = parse("sdlora-rr", &options.parse().unwrap())?;
        method.ranks.check()?;
        Ok((0..10).map(|task_idx| method.ranks.at(task_idx)).collect())
    }

    #[test]
    fn ranks_by_task() {
        let paper = [10, 10, 10, 8, 8, 8, 8, 6, 6, 6];
        assert_eq!(ranks("").unwrap(), paper);
        assert_eq!(ranks("ranks = \"paper\"").unwrap(), paper);
        assert_eq!(
            ranks("ranks = \"reference\"").unwrap(),
            [10, 10, 10, 10, 8, 8, 8, 8, 6, 6]
        );
        let list = "ranks = [{ from_task = 0, rank = 3 }, { from_task = 9, rank = 5 }]";
        assert_eq!(ranks(list).unwrap(), [3, 3, 3, 3, 3, 3, 3, 3, 3, 5]);
    }

    #[test]
    fn schedules_with_gaps_and_unknown_names_are_refused() {
        for options in [
            "ranks = []",
            "ranks = [{ from_task = 1, rank = 3 }]",
            "ranks = [{ from_task = 0, rank = 0 }]",
            "ranks = [{ from_task = 0, rank = 3 }, { from_task = 0, rank = 2 }]",
            "ranks = \"papr\"",
            "rank = 10",
        ] {
            let error = ranks(options).unwrap_err().to_string();
            assert!(error.contains("rank"), "{options}: {error}");
        }
    }
}
