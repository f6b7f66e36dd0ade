//! The progress bar: loss, images per second, time left.
//!
//! Rows of results go to standard output, one a task. The bar is drawn on standard error; where that is no
//! terminal, a task that takes long says there how far it is, twice a minute at most.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sdlora_train::{Event, Observer};

use crate::output::{note, say};
use crate::report::AccuracyTable;

/// Shows what a run tells.
pub struct Progress {
    bar: ProgressBar,
    quiet: bool,
    /// Where no bar is drawn, the pace of the lines that take its place.
    lines: Option<Pace>,
    prefix: String,
    n_images: usize,
    since: Instant,
    loss: f64,
    has_header: bool,
    n_rows: usize,
}

/// Between two lines where there is no terminal, and between the start of a task or a row of results and the
/// first of them.
const LINE_EVERY: Duration = Duration::from_secs(30);
/// Columns of the accuracy table.
const TABLE_WIDTH: usize = 120;
/// Weight of the newest loss in the one shown.
const SMOOTHING: f64 = 0.05;

/// When the next line may be printed.
#[derive(Debug)]
pub struct Pace {
    since: Instant,
}

impl From<Instant> for Pace {
    fn from(since: Instant) -> Self {
        Self { since }
    }
}

impl Pace {
    /// Whether a line is due; if so, it counts as printed.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let is_due = now.duration_since(self.since) >= LINE_EVERY;
        if is_due {
            self.since = now;
        }
        is_due
    }

    /// Something else was just said.
    fn rest(&mut self, now: Instant) {
        self.since = now;
    }
}

/// Whether standard error is a terminal on which a line can be drawn over.
pub fn can_draw() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

impl Progress {
    /// A bar that appears with the first task.
    pub fn new(quiet: bool) -> Self {
        let bar = ProgressBar::new(0);
        let draws = !quiet && can_draw();
        if !draws {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let since = Instant::now();
        if let Ok(style) =
            ProgressStyle::with_template("{prefix} {wide_bar} {percent:>3} %  {msg}  {eta} left")
        {
            bar.set_style(style);
        }
        Self {
            bar,
            quiet,
            lines: (!quiet && !draws).then_some(Pace { since }),
            prefix: String::new(),
            n_images: 0,
            since,
            loss: f64::NAN,
            has_header: false,
            n_rows: 0,
        }
    }

    /// Prints a line above the bar.
    pub fn println(&self, text: &str) {
        if self.quiet {
            return;
        }
        // The bar is taken away for it, so that results reach standard output wherever that goes.
        self.bar.suspend(|| say!("{text}"));
    }

    /// The line for a step, where one is due.
    fn line_of_step(&mut self, now: Instant, step: usize, n_steps: usize) -> Option<String> {
        let pace = self.lines.as_mut()?;
        let message = self.bar.message();
        pace.is_due(now)
            .then(|| format!("{}: step {} of {n_steps}, {message}", self.prefix, step + 1))
    }

    /// Counts from here to the next line.
    fn rest(&mut self, now: Instant) {
        if let Some(pace) = &mut self.lines {
            pace.rest(now);
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
                self.rest(self.since);
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
                self.bar.set_message(message);
                if let Some(line) = self.line_of_step(Instant::now(), *step, *n_steps) {
                    note!("{line}");
                }
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
                self.rest(Instant::now());
            }
            Event::TaskTrained { .. } | Event::Checkpointed { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of three tasks of 70 seconds each with a step a second, and what is printed when.
    #[test]
    fn without_a_terminal_a_long_task_says_how_far_it_is_twice_a_minute_at_most() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut progress = Progress::new(false);
        progress.lines = Some(Pace { since: start });
        let mut printed: Vec<(u64, String)> = Vec::new();
        for task in 0..3u64 {
            progress.prefix = format!("task {}/3", task + 1);
            progress.rest(at(70 * task));
            for step in 0..70u64 {
                let now = 70 * task + step;
                if let Some(line) = progress.line_of_step(at(now), step as usize, 70) {
                    printed.push((now, line));
                }
            }
            progress.rest(at(70 * task + 70));
        }
        let times: Vec<u64> = printed.iter().map(|(time, _)| *time).collect();
        assert_eq!(times, [30, 60, 100, 130, 170, 200]);
        // Never of a task whose row is there already.
        for (time, line) in &printed {
            let task = format!("task {}/3: step ", time / 70 + 1);
            assert!(line.starts_with(&task), "{time}: {line}");
        }
    }

    #[test]
    fn short_tasks_leave_their_rows_alone_and_quiet_says_nothing() {
        let start = Instant::now();
        let mut progress = Progress::new(false);
        progress.lines = Some(Pace { since: start });
        for second in 0..300u64 {
            let now = start + Duration::from_secs(second);
            if second % 20 == 0 {
                progress.rest(now);
            }
            assert_eq!(progress.line_of_step(now, 0, 1), None);
        }
        let mut quiet = Progress::new(true);
        let late = start + Duration::from_secs(1000);
        assert_eq!(quiet.line_of_step(late, 0, 1), None);
    }
}
