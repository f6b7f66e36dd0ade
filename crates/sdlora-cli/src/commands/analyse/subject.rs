//! What the diagnostics ask: a run, opened once, with what several of them need computed once.

use std::path::Path;
use std::rc::Rc;

use anyhow::Context;
use sdlora_metrics::Confusion;
use sdlora_train::analysis::{TrainedRun, Trajectory};
use sdlora_train::{Model, PLAN_FILE, RunLog, read_plan};

use super::finding::NotShown;
use crate::UsageError;
use crate::backbone::Backbones;
use crate::commands::Common;
use crate::output::note;

/// Settings of single diagnostics.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Tasks that `optima` trains on, from the first
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(2..))]
    pub tasks: u32,
    /// Learning rate of `optima` as a multiple of the plan's: all weights move, so less is needed
    #[arg(long, default_value_t = 0.1)]
    pub lr_factor: f64,
    /// Steps of `path` from one checkpoint to the other
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub points: u32,
    /// Bins of `calibration`
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    pub bins: u32,
    /// Change of an entry of a weight from which `collisions` counts it
    #[arg(long, default_value_t = 1e-3)]
    pub threshold: f64,
}

/// A run, or nothing, and the settings.
pub struct Subject {
    run: Option<TrainedRun>,
    trajectory: Option<Rc<Trajectory>>,
    /// Settings of single diagnostics.
    pub options: Options,
    quiet: bool,
}

impl Subject {
    /// Opens a run folder.
    ///
    /// # Errors
    ///
    /// Usage errors for a folder that is no run, and those of data and weights.
    pub fn open(folder: Option<&Path>, common: &Common, options: Options) -> anyhow::Result<Self> {
        if !(options.lr_factor.is_finite() && options.lr_factor > 0.0) {
            return Err(UsageError(format!(
                "`--lr-factor {}` is no factor: give a number greater than 0",
                options.lr_factor
            ))
            .into());
        }
        if !(options.threshold.is_finite() && options.threshold > 0.0) {
            return Err(UsageError(format!(
                "`--threshold {}` is no size of a change: give a number greater than 0",
                options.threshold
            ))
            .into());
        }
        let run = match folder {
            None => None,
            Some(folder) => {
                let plan = folder.join(PLAN_FILE);
                if !plan.is_file() {
                    return Err(UsageError(format!(
                        "{} is no run, it has no {PLAN_FILE}: give the folder of one",
                        folder.display()
                    ))
                    .into());
                }
                let mut config = read_plan(folder)?;
                let quiet = Common {
                    quiet: true,
                    ..common.clone()
                };
                Backbones::default().resolve(&mut config.backbone, &quiet)?;
                let device = crate::device::open(&common.device)?;
                let opened = TrainedRun::open(folder, config.check()?, &common.data_dir, &device)
                    .with_context(|| format!("cannot analyse {}", folder.display()))?;
                Some(opened)
            }
        };
        Ok(Self {
            run,
            trajectory: None,
            options,
            quiet: common.quiet,
        })
    }

    /// The run.
    ///
    /// # Errors
    ///
    /// [`NotShown`] when none was given.
    pub fn run(&self) -> anyhow::Result<&TrainedRun> {
        let none = || NotShown("no run was given: add its folder".into()).into();
        self.run.as_ref().ok_or_else(none)
    }

    /// A sentence when the last task has no checkpoint: all that is said of "the end" is then said of an
    /// earlier one.
    pub fn stops_short(&self) -> Option<String> {
        let run = self.run.as_ref()?;
        let (last, n) = (run.last_round(), run.n_rounds());
        (last + 1 < n).then(|| {
            format!(
                "{}: the last checkpoint of the end of a task is that of task {last}, and the stream has \
                 {n} tasks, which count from 0: \"the end\" is the end of task {last} here",
                run.folder().display()
            )
        })
    }

    /// The model and the log at the end of the last task that has a checkpoint.
    ///
    /// # Errors
    ///
    /// Those of [`run`](Self::run) and of the checkpoint.
    pub fn last(&self) -> anyhow::Result<(Model, RunLog)> {
        let run = self.run()?;
        Ok(run.model_after(run.last_round())?)
    }

    /// Features and predictions at the ends of all tasks, computed with the first question.
    ///
    /// # Errors
    ///
    /// Those of [`run`](Self::run), of checkpoints and of images.
    pub fn trajectory(&mut self) -> anyhow::Result<Rc<Trajectory>> {
        if let Some(trajectory) = &self.trajectory {
            return Ok(trajectory.clone());
        }
        let quiet = self.quiet;
        let run = self.run()?;
        let n = run.rounds().len();
        let found = Trajectory::of(run, &mut |round| {
            if !quiet {
                note(&format!("features after task {round} ({n} in all)"));
            }
        })?;
        let found = Rc::new(found);
        self.trajectory = Some(found.clone());
        Ok(found)
    }

    /// Which class is taken for which at the end of the last kept round.
    ///
    /// # Errors
    ///
    /// Those of [`trajectory`](Self::trajectory).
    pub fn confusion(&mut self) -> anyhow::Result<Confusion> {
        let last = &self.trajectory()?.last;
        Ok(Confusion::of(
            &last.labels,
            &last.predict(),
            last.n_classes,
        )?)
    }

    /// Says how far a long diagnostic is.
    pub fn progress(&self) -> impl FnMut(String) + use<> {
        let quiet = self.quiet;
        move |text| {
            if !quiet {
                note(&text);
            }
        }
    }
}

/// A line for who waits, beside the results.
fn note(text: &str) {
    note!("  {text}");
}
