//! How many images are done, and how fast.
//!
//! On standard error: a bar where that is a terminal, else two lines a minute at most.

use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::{keep_below, note};
use crate::progress::{Pace, can_draw};
use crate::report::duration;

/// Shows how far a command is that reads images.
pub struct ImageProgress {
    bar: ProgressBar,
    lines: Option<Pace>,
    n_images: usize,
    n_done: usize,
    since: Instant,
    /// Whether anything was shown.
    is_long: bool,
}

impl ImageProgress {
    /// Of `n_images` images; with `quiet` nothing is shown.
    pub fn new(quiet: bool, n_images: usize) -> Self {
        let bar = ProgressBar::new(n_images as u64);
        let draws = !quiet && n_images > 1 && can_draw();
        if !draws {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let template = "{pos}/{len} images {wide_bar} {percent:>3} %  {msg}  {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        if draws {
            keep_below(Some(&bar));
        }
        let since = Instant::now();
        Self {
            bar,
            lines: (!quiet && !draws).then(|| Pace::from(since)),
            n_images,
            n_done: 0,
            since,
            is_long: draws,
        }
    }

    /// Counts images that are done.
    pub fn advance(&mut self, n: usize) {
        self.n_done += n;
        let now = Instant::now();
        let rate = self.rate(now);
        self.bar.set_message(rate.clone());
        self.bar.set_position(self.n_done as u64);
        if self.lines.as_mut().is_some_and(|pace| pace.is_due(now)) {
            self.is_long = true;
            note!("{} of {} images, {rate}", self.n_done, self.n_images);
        }
    }

    /// Removes the bar; where it was shown, or lines, says what it came to.
    pub fn finish(&self) {
        self.clear();
        if self.is_long {
            let now = Instant::now();
            let seconds = now.duration_since(self.since).as_secs_f64();
            let (n, time) = (self.n_done, duration(seconds));
            note!("{n} images in {time}, {}", self.rate(now));
        }
    }

    fn clear(&self) {
        self.bar.finish_and_clear();
        keep_below(None);
    }

    fn rate(&self, now: Instant) -> String {
        let seconds = now.duration_since(self.since).as_secs_f64();
        format!("{:.1} images/s", self.n_done as f64 / seconds.max(1e-9))
    }
}

/// A command that ends early leaves no bar behind its message.
impl Drop for ImageProgress {
    fn drop(&mut self) {
        self.clear();
    }
}
