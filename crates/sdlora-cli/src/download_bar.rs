//! The progress of downloads.

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::{note, say};
use crate::shown::shown;

/// One bar per file; without a terminal one line per file.
pub struct DownloadBar {
    bar: ProgressBar,
    quiet: bool,
    file: String,
    n_bytes: u64,
}

impl DownloadBar {
    /// A bar that appears with the first file; none when `quiet`.
    pub fn new(quiet: bool) -> Self {
        let bar = ProgressBar::new(0);
        if quiet {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        if let Ok(style) = ProgressStyle::with_template(
            "{prefix} {wide_bar} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left",
        ) {
            bar.set_style(style);
        }
        Self {
            bar,
            quiet,
            file: String::new(),
            n_bytes: 0,
        }
    }
}

impl sdlora_fetch::Progress for DownloadBar {
    fn start(&mut self, file: &str, total: Option<u64>) {
        (self.file, self.n_bytes) = (file.to_owned(), 0);
        self.bar.reset();
        self.bar.set_length(total.unwrap_or(0));
        self.bar.set_prefix(format!("downloading {}", shown(file)));
    }

    fn advance(&mut self, n: u64) {
        self.n_bytes += n;
        self.bar.inc(n);
    }

    fn done(&mut self) {
        let line = format!(
            "downloaded {}, {}",
            shown(&self.file),
            HumanBytes(self.n_bytes)
        );
        if self.bar.is_hidden() && !self.quiet {
            say!("{line}");
        } else {
            self.bar.println(line);
        }
        self.bar.finish_and_clear();
    }

    fn trouble(&mut self, what: &str) {
        if self.quiet {
            return;
        }
        let what = shown(what);
        let line = match self.file.is_empty() {
            true => what,
            false => format!("{}: {what}", shown(&self.file)),
        };
        if self.bar.is_hidden() {
            note!("{line}");
        } else {
            self.bar.println(line);
        }
    }
}
