//! The progress bar: loss, images per second, time left.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sdlora_train::{Event, Observer};

use crate::output::{note, say};
use crate::report::AccuracyTable;
use crate::shown::shown_lines;

/// Shows what a run tells; without a terminal a line every few seconds.
pub struct Progress {
    bar: ProgressBar,
    quiet: bool,
    prefix: String,
    n_images: usize,
    since: Instant,
    loss: f64,
    last_line: Instant,
    has_header: bool,
    n_rows: usize,
}

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(15);
/// Columns of the accuracy table.
const TABLE_WIDTH: usize = 120;
/// Weight of the newest loss in the one shown.
const SMOOTHING: f64 = 0.05;

impl Progress {
    /// A bar that appears with the first task.
    pub fn new(quiet: bool) -> Self {
        let bar = ProgressBar::new(0);
        if quiet {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        if let Ok(style) =
            ProgressStyle::with_template("{prefix} {wide_bar} {percent:>3} %  {msg}  {eta} left")
        {
            bar.set_style(style);
        }
        Self {
            bar,
            quiet,
            prefix: String::new(),
            n_images: 0,
            since: Instant::now(),
            loss: f64::NAN,
            last_line: Instant::now(),
            has_header: false,
            n_rows: 0,
        }
    }

    /// Prints a line above the bar.
    pub fn println(&self, text: &str) {
        if self.quiet {
            return;
        }
        if self.bar.is_hidden() {
            say!("{text}");
        } else {
            self.bar.println(shown_lines(text));
        }
    }

    /// Prints what the user should know, also where nothing else is printed: images may be missing.
    pub fn note(&self, text: &str) {
        if self.quiet {
            note!("note: {text}");
        } else {
            self.println(&format!("note: {text}"));
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Observer for Progress {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Resumed {
                path,
                task_idx,
                n_steps,
                ..
            } => {
                let place = match (task_idx, n_steps) {
                    (0, 0) => "at the start".to_owned(),
                    (done, 0) => format!("after task {done}"),
                    (task_idx, n) => format!("in task {}, after step {n}", task_idx + 1),
                };
                self.println(&match path {
                    Some(path) => format!("continuing {place} ({})", path.display()),
                    None => "no checkpoint was written yet: starting again".to_owned(),
                });
            }
            Event::Notice { text } => self.note(text),
            Event::TaskStarted {
                task_idx,
                n_tasks,
                n_steps,
                n_new_classes,
                ..
            } => {
                self.prefix = if *n_tasks == 1 {
                    format!("{n_new_classes} classes")
                } else {
                    format!("task {}/{n_tasks}", task_idx + 1)
                };
                self.bar.reset();
                self.bar.set_length(*n_steps as u64);
                self.bar.set_prefix(self.prefix.clone());
                self.n_images = 0;
                self.since = Instant::now();
                self.loss = f64::NAN;
            }
            Event::Step {
                step,
                n_steps,
                n_images,
                loss,
                ..
            } => {
                self.n_images += n_images;
                self.loss = if self.loss.is_nan() {
                    *loss
                } else {
                    (1.0 - SMOOTHING) * self.loss + SMOOTHING * loss
                };
                let rate = self.n_images as f64 / self.since.elapsed().as_secs_f64();
                let message = format!("loss {:.3}  {rate:.0} images/s", self.loss);
                self.bar.set_position(*step as u64 + 1);
                if self.bar.is_hidden() && !self.quiet && self.last_line.elapsed() > LINE_EVERY {
                    self.last_line = Instant::now();
                    say!("{} step {}/{n_steps}  {message}", self.prefix, step + 1);
                }
                self.bar.set_message(message);
            }
            Event::Evaluated {
                task_idx, matrix, ..
            } => {
                let table = AccuracyTable::new(matrix.n_tasks(), TABLE_WIDTH);
                if !self.has_header {
                    self.println(table.header().trim_end());
                    self.has_header = true;
                }
                for after in self.n_rows..=*task_idx {
                    if matrix.row(after).is_some() {
                        self.println(table.row(matrix, after).trim_end());
                    }
                }
                self.n_rows = task_idx + 1;
            }
            Event::TaskTrained { .. } | Event::Checkpointed { .. } => {}
        }
    }
}
