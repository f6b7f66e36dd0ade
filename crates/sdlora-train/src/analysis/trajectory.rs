//! Test features and predictions of every task at the end of every round.

use super::logits::LogitTable;
use super::trained::TrainedRun;
use crate::error::TrainError;
use crate::features::{FeatureTable, accuracy, length};

/// The test images of one task at the end of one round.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskState {
    /// Share of right predictions among all classes seen.
    pub accuracy: f64,
    /// Share of right predictions among the classes of the task: with a task id. The difference to
    /// `accuracy` is what confusion between tasks costs.
    pub accuracy_in_task: f64,
    /// Of the wrong predictions, how many name a class of a later task, of an earlier one.
    pub n_lost_later: usize,
    /// See `n_lost_later`.
    pub n_lost_earlier: usize,
    /// Mean cosine of a feature with the one its image had when the task had just been learned; `None`
    /// where the checkpoint of that moment is gone.
    pub cosine: Option<f64>,
    /// Mean of `‖f − f_learned‖ / ‖f_learned‖`; `None` as `cosine` is.
    pub relative_change: Option<f64>,
    /// Mean cosine with the feature of the pre-trained backbone.
    pub cosine_to_base: f64,
}

/// The states of all tasks seen at the ends of all kept rounds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Trajectory {
    /// The kept rounds.
    pub rounds: Vec<usize>,
    /// `states[k][i]`: task `i` at the end of `rounds[k]`.
    pub states: Vec<Vec<TaskState>>,
    /// Logits of all test images at the end of the last kept round, task after task.
    pub last: LogitTable,
}

impl Trajectory {
    /// Computes features of the tasks seen with the model of every kept round: the cost of the
    /// evaluations of the run. `progress` is told every round that is done.
    ///
    /// A task whose own round has no checkpoint is compared with the pre-trained features alone.
    ///
    /// # Errors
    ///
    /// Those of checkpoints and images.
    pub fn of(run: &TrainedRun, progress: &mut dyn FnMut(usize)) -> Result<Self, TrainError> {
        let loaders = run.test_loaders()?;
        let mut learned: Vec<Option<FeatureTable>> = vec![None; run.n_tasks()];
        let mut start: Vec<FeatureTable> = Vec::new();
        let mut trajectory = Self::default();
        for &round in run.rounds() {
            let (model, _) = run.model_after(round)?;
            let seen = &loaders[..run.n_seen_tasks(round)];
            let new = start.len().min(seen.len());
            start.extend(run.test_features(run.base(), &seen[new..])?);
            let classifier = run.classifier(&model)?;
            let is_last = round == run.last_round();
            let mut row = Vec::new();
            for (task_idx, table) in run.test_features(&model, seen)?.into_iter().enumerate() {
                if run.round_of(task_idx) == round {
                    learned[task_idx] = Some(table.clone());
                }
                let logits = LogitTable::of(&classifier, &table);
                let labels = run.labels_of(task_idx);
                let predictions = logits.predict();
                let within = logits.predict_within(labels.clone());
                let moved = learned[task_idx].as_ref();
                let moved = moved.map(|then| drift(&table, then));
                row.push(TaskState {
                    accuracy: accuracy(&predictions, &table.labels),
                    accuracy_in_task: accuracy(&within, &table.labels),
                    n_lost_later: predictions.iter().filter(|&&p| p >= labels.end).count(),
                    n_lost_earlier: predictions.iter().filter(|&&p| p < labels.start).count(),
                    cosine: moved.map(|(cosine, _)| cosine),
                    relative_change: moved.map(|(_, change)| change),
                    cosine_to_base: drift(&table, &start[task_idx]).0,
                });
                if is_last {
                    trajectory.last.extend(logits);
                }
            }
            trajectory.rounds.push(round);
            trajectory.states.push(row);
            progress(round);
        }
        Ok(trajectory)
    }

    /// Mean of a number over the tasks seen at the end of every kept round.
    pub fn mean(&self, of: impl Fn(&TaskState) -> f64) -> Vec<f64> {
        self.states
            .iter()
            .map(|row| row.iter().map(&of).sum::<f64>() / row.len() as f64)
            .collect()
    }
}

/// Mean cosine and mean relative distance of the rows of two tables of the same images.
fn drift(now: &FeatureTable, then: &FeatureTable) -> (f64, f64) {
    let (mut cosine, mut change) = (0.0, 0.0);
    for i in 0..now.len() {
        let (a, b) = (now.row(i), then.row(i));
        let mut inner = 0.0;
        let mut square = 0.0;
        for (&a, &b) in a.iter().zip(b) {
            let (a, b) = (f64::from(a), f64::from(b));
            inner += a * b;
            square += (a - b) * (a - b);
        }
        let (length_a, length_b) = (length(a), length(b));
        // A feature of length 0 has no direction: it counts as unchanged only where both are 0.
        let is_same = if square == 0.0 { 1.0 } else { 0.0 };
        cosine += match length_a * length_b > 0.0 {
            true => inner / (length_a * length_b),
            false => is_same,
        };
        change += match length_b > 0.0 {
            true => square.sqrt() / length_b,
            false => 1.0 - is_same,
        };
    }
    let n = now.len().max(1) as f64;
    (cosine / n, change / n)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(features: Vec<f32>) -> FeatureTable {
        let n = features.len() / 2;
        FeatureTable {
            features,
            d_model: 2,
            labels: vec![0; n],
            ..FeatureTable::default()
        }
    }

    #[test]
    fn drift_by_hand() {
        let then = table(vec![1.0, 0.0, 0.0, 2.0]);
        assert_eq!(drift(&then, &then), (1.0, 0.0));
        // The first turns by a right angle and keeps its length, the second doubles.
        let (cosine, change) = drift(&table(vec![0.0, 1.0, 0.0, 4.0]), &then);
        assert!((cosine - 0.5).abs() < 1e-12);
        assert!((change - (2f64.sqrt() + 1.0) / 2.0).abs() < 1e-12);
    }

    #[test]
    fn features_of_length_zero_are_no_nan() {
        let zero = table(vec![0.0, 0.0]);
        assert_eq!(drift(&zero, &zero), (1.0, 0.0));
        assert_eq!(drift(&zero, &table(vec![1.0, 0.0])), (0.0, 1.0));
        assert_eq!(drift(&table(vec![1.0, 0.0]), &zero), (0.0, 1.0));
    }
}
