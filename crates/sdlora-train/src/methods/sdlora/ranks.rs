//! The ranks of SD-LoRA-RR: that of a new direction falls with the task (paper, section 4.3).
//!
//! The schedule is a list of steps, or one of two names: `paper` has rank 10 for the first three
//! tasks, 8 for the next four and 6 from then on; `reference` is the published code, whose steps
//! come one task later.

use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::methods::{RankStep, Ranks};

/// A rank for every task.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum RankSchedule {
    Named(NamedRanks),
    Steps(Vec<RankStep>),
}

/// The schedules that were published.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum NamedRanks {
    /// Paper, section 4.3: µ = 4, ν = 8, counted from 1.
    #[default]
    Paper,
    /// Published code: from task 5 and 9, counted from 1.
    Reference,
}

impl Default for RankSchedule {
    fn default() -> Self {
        Self::Named(NamedRanks::default())
    }
}

impl RankSchedule {
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

    /// The ranks.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] for a list with a gap before the first step, out of order, or with a rank of 0.
    pub(super) fn check(&self) -> Result<Ranks, TrainError> {
        let steps = self.steps();
        Ranks::by_task(steps.clone()).ok_or_else(|| {
            TrainError::setting(
                "method.ranks",
                format!("{steps:?}"),
                "`paper`, `reference`, or a list of `{ from_task, rank }` that starts at task 0, \
                 ascends, and has ranks of at least 1",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks(options: &str) -> Result<Vec<usize>, TrainError> {
        let method = (super::super::RR.build)(&options.parse().unwrap())?;
        let ranks = method.adapter().unwrap().ranks;
        Ok((0..10).map(|task_idx| ranks.at(task_idx)).collect())
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
