//! The weights each task would choose for itself (paper, section 3).

use sdlora_core::Precision;

use super::scale::{distance, matrices};
use super::trained::TrainedRun;
use crate::error::TrainError;
use crate::heads;
use crate::methods::{self, LossOver, TaskContext};
use crate::observer::Silent;
use crate::optimizer::{OptimizerConfig, Schedule};
use crate::task_log::TaskLog;
use crate::trainer::{TaskData, Trainer};

/// Weights fine-tuned on single tasks, each from the pre-trained ones.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskOptima {
    /// `‖W_i − W0‖_F` over all matrices of all blocks.
    pub to_base: Vec<f64>,
    /// `‖W_i − W_j‖_F`, `[n_tasks][n_tasks]`.
    pub between: Vec<Vec<f64>>,
}

impl TaskOptima {
    /// `‖W_i − W_j‖_F / ‖W_i − W0‖_F`; NaN where a task moved nothing.
    pub fn relative(&self, i: usize, j: usize) -> f64 {
        self.between[i][j] / self.to_base[i]
    }

    /// Mean of [`relative`](Self::relative) over all ordered pairs of two tasks. Below 1 the optima
    /// are nearer to each other than to the start; moves in random directions give about `√2`.
    pub fn mean_relative(&self) -> f64 {
        let n = self.to_base.len();
        let pairs = (0..n).flat_map(|i| (0..n).filter(move |&j| j != i).map(move |j| (i, j)));
        pairs.map(|(i, j)| self.relative(i, j)).sum::<f64>() / (n * n.saturating_sub(1)) as f64
    }
}

/// Fine-tunes the whole backbone, with a head of its own, on each of the first `n_tasks` tasks, every
/// time from the pre-trained weights: optimiser, epochs and images as in the plan, the learning rate
/// times `lr_factor`. `progress` is told every task that is done.
///
/// # Errors
///
/// [`TrainError::Diverged`] when the learning rate is too large for full fine-tuning, and those of
/// images.
pub fn task_optima(
    run: &TrainedRun,
    n_tasks: usize,
    lr_factor: f64,
    progress: &mut dyn FnMut(usize),
) -> Result<TaskOptima, TrainError> {
    let config = run.plan().config();
    // Any head would do; this one is trained with the weights.
    let head = heads::build("linear", &toml::Table::new())?;
    let method = methods::build("finetune", &toml::Table::new())?;
    let optimizer = with_rate_times(&config.optimizer, lr_factor);
    let run_data = run.data();
    let trainer = Trainer {
        method: method.as_ref(),
        head: head.as_ref(),
        n_epochs: config.n_epochs,
        optimizer: &optimizer,
        loss: LossOver::NewClasses,
        split: Default::default(),
        checkpoint_every: usize::MAX,
        residual_every: 0,
        mix: config.mix.as_ref(),
        seed: config.seed,
        precision: Precision::F32,
        gradient_checkpointing: false,
        device: run.device().clone(),
    };
    let base = matrices(&run.base().merged_backbone());
    let mut optima = Vec::new();
    for task_idx in 0..n_tasks.min(run.n_tasks()) {
        let context = TaskContext {
            task_idx,
            n_tasks: run.n_tasks(),
            // Labels count over all tasks: columns of earlier classes are there and take no part.
            n_new_classes: run.labels_of(task_idx).end,
            seed: config.seed,
            device: run.device().clone(),
            head: head.clone(),
            start: method.column_start(),
        };
        let model = method.before_task(run.base().clone(), &context)?;
        let loader = run_data.task_loader(task_idx)?;
        let labels: Vec<usize> = run.labels_of(task_idx).collect();
        let data = TaskData {
            task_idx,
            labels: &labels,
            loader: &loader,
            features: None,
            weights: None,
        };
        let (model, _) = trainer.train(
            model,
            optimizer.init(),
            TaskLog::default(),
            &data,
            &mut Silent,
            &mut |_, _, _, _| Ok(run.folder().into()),
        )?;
        optima.push(matrices(&model.merged_backbone()));
        progress(task_idx);
    }
    let between = |a: &[_], b: &[_]| total_distance(a, b);
    Ok(TaskOptima {
        to_base: optima.iter().map(|w| between(w, &base)).collect(),
        between: optima
            .iter()
            .map(|a| optima.iter().map(|b| between(a, b)).collect())
            .collect(),
    })
}

/// An optimiser whose rate is `factor` times that of `optimizer` in every step: the rate it falls to is
/// part of it, or a small one would rise to a floor meant for a larger.
fn with_rate_times(optimizer: &OptimizerConfig, factor: f64) -> OptimizerConfig {
    let mut scaled = optimizer.clone();
    scaled.lr *= factor;
    if let Schedule::Cosine { eta_min, .. } = &mut scaled.schedule {
        *eta_min *= factor;
    }
    scaled
}

type Matrices = [(usize, sdlora_vit::Projection, Vec<f32>)];

fn total_distance(a: &Matrices, b: &Matrices) -> f64 {
    a.iter()
        .zip(b)
        .map(|((.., a), (.., b))| distance(a, Some(b)).powi(2))
        .sum::<f64>()
        .sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_smaller_rate_is_smaller_in_every_step_of_every_schedule() {
        let schedules = [
            Schedule::Constant,
            Schedule::Cosine {
                warmup: 0.2,
                eta_min: 2e-3,
            },
            Schedule::MultiStep {
                milestones: vec![1, 3],
                gamma: 0.5,
            },
        ];
        for schedule in schedules {
            let whole = OptimizerConfig {
                schedule,
                ..OptimizerConfig::sgd(0.03)
            };
            let scaled = with_rate_times(&whole, 0.01);
            scaled.check().unwrap();
            for step in 0..40 {
                let rate = |o: &OptimizerConfig| o.lr_at(step, 40, step / 10);
                let (found, expected) = (rate(&scaled), 0.01 * rate(&whole));
                let error = (found - expected).abs();
                assert!(
                    error < 1e-12,
                    "{whole:?}, step {step}: {found} for {expected}"
                );
            }
        }
    }

    #[test]
    fn orthogonal_moves_are_root_two_apart_and_equal_ones_zero() {
        let orthogonal = TaskOptima {
            to_base: vec![1.0, 1.0],
            between: vec![vec![0.0, 2f64.sqrt()], vec![2f64.sqrt(), 0.0]],
        };
        assert!((orthogonal.mean_relative() - 2f64.sqrt()).abs() < 1e-12);
        // One step of 3 and one of 1 in the same direction.
        let aligned = TaskOptima {
            to_base: vec![3.0, 1.0],
            between: vec![vec![0.0, 2.0], vec![2.0, 0.0]],
        };
        assert!((aligned.relative(0, 1) - 2.0 / 3.0).abs() < 1e-12);
        assert!((aligned.mean_relative() - (2.0 / 3.0 + 2.0) / 2.0).abs() < 1e-12);
    }
}
