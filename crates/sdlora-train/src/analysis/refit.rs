//! What heads fitted anew reach on the features: it parts a spoilt feature from a spoilt head.

use super::logits::LogitTable;
use super::trained::TrainedRun;
use crate::error::TrainError;
use crate::features::{ClassMeans, FeatureTable, MeanOf, accuracy};
use crate::heads::{self, HeadState, HeadTask};

/// Accuracy over all test images of the tasks seen, by nearest class means that differ in the
/// features they were computed from. All training images of all tasks are used: a measurement, not
/// a method.
#[derive(Debug, Clone, PartialEq)]
pub struct Refit {
    /// The head of the run.
    pub own: f64,
    /// Means of the pre-trained features, tested on them: what freezing everything would give.
    pub base: f64,
    /// Means taken when each task had been learned, tested on the last features: the price of
    /// drift is the difference to `fresh`. `None` where a checkpoint of such a moment is gone.
    pub stale: Option<f64>,
    /// Means of the last features: what these features could still tell apart.
    pub fresh: f64,
    /// Ridge regression on the last features.
    pub fresh_ridge: Option<f64>,
    /// The head of the run with every task's logits shifted so that tasks score alike on the test
    /// images of other tasks: the price of unequal logits is the difference to `own`.
    pub own_levelled: f64,
}

impl Refit {
    /// Fits the heads and tests them at the end of the last kept round. `last` are the logits of
    /// all test images there.
    ///
    /// # Errors
    ///
    /// Those of checkpoints and images.
    pub fn of(run: &TrainedRun, last: &LogitTable) -> Result<Self, TrainError> {
        let (model, _) = run.model_after(run.last_round())?;
        let base = run.base();
        let tests = run.test_loaders()?;
        let tests = &tests[..run.n_seen_tasks(run.last_round())];
        let test_features = |model| {
            let mut all = FeatureTable::default();
            for table in run.test_features(model, tests)? {
                append(&mut all, table);
            }
            Ok::<_, TrainError>(all)
        };
        let (at_base, at_end) = (test_features(base)?, test_features(&model)?);

        // The images are there whether or not a checkpoint is: all rounds count.
        let has_all = run.missing_rounds().is_empty();
        let mut stale = ClassMeans::default();
        let (mut of_base, mut of_end) = (FeatureTable::default(), FeatureTable::default());
        for round in 0..=run.last_round() {
            if has_all {
                let (then, _) = run.model_after(round)?;
                let means = ClassMeans::of(&run.train_features(round, &then)?, MeanOf::Directions);
                let first = stale.means.len();
                stale.d_model = means.d_model;
                stale
                    .means
                    .extend_from_slice(&means.means[first.min(means.means.len())..]);
            }
            append(&mut of_base, run.train_features(round, base)?);
            append(&mut of_end, run.train_features(round, &model)?);
        }
        let test = |means: &ClassMeans, table: &FeatureTable| {
            accuracy(&means.predict(table), &table.labels)
        };
        let ridge = heads::build("ridge", &toml::Table::new())?;
        let task = HeadTask {
            table: &of_end,
            first_label: 0,
            task_idx: 0,
            seed: run.plan().config().seed,
            device: run.device(),
        };
        let ridge = ridge.classifier(&ridge.fit(HeadState::default(), &task)?);
        Ok(Self {
            own: accuracy(&last.predict(), &last.labels),
            base: test(&ClassMeans::of(&of_base, MeanOf::Directions), &at_base),
            stale: has_all.then(|| test(&stale, &at_end)),
            fresh: test(&ClassMeans::of(&of_end, MeanOf::Directions), &at_end),
            fresh_ridge: ridge.map(|ridge| accuracy(&ridge.predict(&at_end), &at_end.labels)),
            own_levelled: levelled(last, &run.task_labels(run.last_round())),
        })
    }
}

/// Accuracy with the mean foreign logit of every task subtracted from the logits of its classes.
fn levelled(table: &LogitTable, tasks: &[std::ops::Range<usize>]) -> f64 {
    let levels = super::task_logits(table, tasks);
    let mut shifted = table.clone();
    if shifted.n_classes == 0 || tasks.len() < 2 {
        return accuracy(&table.predict(), &table.labels);
    }
    for row in shifted.logits.chunks_exact_mut(table.n_classes) {
        for (labels, level) in tasks.iter().zip(&levels) {
            row[labels.clone()]
                .iter_mut()
                .for_each(|logit| *logit -= level.foreign as f32);
        }
    }
    accuracy(&shifted.predict(), &shifted.labels)
}

fn append(all: &mut FeatureTable, table: FeatureTable) {
    all.d_model = table.d_model;
    all.features.extend(table.features);
    all.labels.extend(table.labels);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levelling_undoes_a_shift_of_a_whole_task() {
        // Without the 10 of the second task every image is right.
        let table = LogitTable {
            logits: vec![
                2.0, 0.0, 10.0, 10.0, 0.0, 2.0, 10.0, 10.0, 0.0, 0.0, 12.0, 10.0,
            ],
            n_classes: 4,
            labels: vec![0, 1, 2],
        };
        assert!((accuracy(&table.predict(), &table.labels) - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(levelled(&table, &[0..2, 2..4]), 1.0);
        // A single task has nothing to level.
        assert!((levelled(&table, &[0..4]) - 1.0 / 3.0).abs() < 1e-12);
    }
}
