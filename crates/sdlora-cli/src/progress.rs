//! How far a run is: loss, images per second, time left.
//!
//! Rows of results go to standard output, one a task; a task that is not tested has a line on standard error instead.
//! A line that stays at the foot of the terminal is drawn on standard error. Where that is no terminal, a task that
//! takes long says there how far it is, twice a minute at most.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use sdlora_train::{Event, Observer};

use crate::output::{keep_below, note, say};
use crate::report::{AccuracyTable, duration};

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

/// What the bar of a task shows.
const BAR: &str = "{prefix} {wide_bar} {percent:>3} %  {msg}  {eta} left";

fn set_style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}

/// A line that is printed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Line {
    /// To standard output.
    Result(String),
    /// Beside the results.
    Beside(String),
}

impl Progress {
    /// A bar that appears with the first task.
    pub fn new(quiet: bool) -> Self {
        let draws = !quiet && can_draw();
        let target = match draws {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let progress = Self::drawn(quiet, draws, target, Instant::now());
        if draws {
            keep_below(Some(&progress.bar));
        }
        progress
    }

    fn drawn(quiet: bool, draws: bool, target: ProgressDrawTarget, since: Instant) -> Self {
        let bar = ProgressBar::with_draw_target(Some(0), target);
        // Before the first task there is nothing to measure.
        set_style(&bar, "{prefix}");
        bar.set_prefix("preparing");
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
        self.print(&Line::Result(text.to_owned()));
    }

    fn print(&self, line: &Line) {
        match line {
            _ if self.quiet => {}
            Line::Result(text) => say!("{text}"),
            Line::Beside(text) => note!("{text}"),
        }
    }

    /// A line about the running task, where one is due.
    fn due(&mut self, now: Instant, text: impl FnOnce(&str) -> String) -> Option<Line> {
        let is_due = self.lines.as_mut()?.is_due(now);
        is_due.then(|| Line::Beside(format!("{}: {}", self.prefix, text(&self.bar.message()))))
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
        keep_below(None);
    }

    /// What an event at `now` says, and what the bar shows from then on.
    fn told(&mut self, event: &Event<'_>, now: Instant) -> Vec<Line> {
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
                vec![Line::Result(match path {
                    Some(path) => format!("continuing {place} ({})", path.display()),
                    None => "no checkpoint was written yet: starting again".to_owned(),
                })]
            }
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
                set_style(&self.bar, BAR);
                self.bar.reset();
                self.bar.set_length(*n_steps as u64);
                self.bar.set_prefix(self.prefix.clone());
                self.bar.set_message("");
                (self.n_images, self.since) = (0, now);
                self.loss = f64::NAN;
                self.rest(now);
                Vec::new()
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
                let seconds = now.duration_since(self.since).as_secs_f64();
                let rate = self.n_images as f64 / seconds.max(1e-9);
                let message = format!("loss {:.3}  {rate:.0} images/s", self.loss);
                self.bar.set_position(*step as u64 + 1);
                self.bar.set_message(message);
                let text = |message: &str| format!("step {} of {n_steps}, {message}", step + 1);
                self.due(now, text).into_iter().collect()
            }
            Event::TaskTrained { .. } => {
                self.bar.set_message("testing");
                let due = self.due(now, |_| "trained, now testing".to_owned());
                due.into_iter().collect()
            }
            Event::Evaluated {
                task_idx, matrix, ..
            } => {
                let table = AccuracyTable::new(matrix.n_tasks(), TABLE_WIDTH);
                let mut lines = Vec::new();
                if !self.has_header {
                    lines.push(Line::Result(table.header().trim_end().to_owned()));
                    self.has_header = true;
                }
                for after in self.n_rows..=*task_idx {
                    if !matrix.measured(after).is_empty() {
                        let row = table.row(matrix, after).trim_end().to_owned();
                        lines.push(Line::Result(row));
                    }
                }
                self.n_rows = task_idx + 1;
                self.rest(now);
                lines
            }
            // Tested tasks have their row.
            Event::TaskDone { task_idx, log, .. } if *task_idx >= self.n_rows => {
                self.rest(now);
                let seconds = log.tasks.get(*task_idx).map_or(0.0, |t| t.total_seconds());
                let time = duration(seconds);
                let text = format!("{}: trained in {time}, not tested", self.prefix);
                vec![Line::Beside(text)]
            }
            Event::Notice { .. } | Event::Checkpointed { .. } | Event::TaskDone { .. } => {
                Vec::new()
            }
        }
    }
}

/// A command that ends early leaves no bar behind its message.
impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

impl Observer for Progress {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Notice { text } = event {
            return self.note(text);
        }
        for line in self.told(event, Instant::now()) {
            self.print(&line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::TermLike;
    use sdlora_metrics::AccuracyMatrix;
    use sdlora_train::{RunLog, TaskLog};
    use std::io;
    use std::sync::{Arc, Mutex};

    /// The log of `n` tasks, of which only the last is tested.
    fn log(n: usize) -> RunLog {
        let mut matrix = AccuracyMatrix::new(3);
        for after in 0..n {
            match after + 1 == n {
                true => matrix.push_row(vec![0.5; n]).unwrap(),
                false => matrix.push_missing_row().unwrap(),
            }
        }
        RunLog {
            matrix,
            tasks: vec![TaskLog::default(); n],
            eval_seconds: vec![0.0; n],
            magnitudes: Vec::new(),
            n_trained: Vec::new(),
            floats_stored: Vec::new(),
            classes: Vec::new(),
        }
    }

    /// What a run says whose three tasks have `n_steps` steps of a second each and are tested for ten; with the second
    /// at which it is said. `shows` prints a line.
    fn run(
        progress: &mut Progress,
        start: Instant,
        n_steps: usize,
        is_tested: impl Fn(usize) -> bool,
        mut shows: impl FnMut(&Progress, &Line),
    ) -> Vec<(u64, Line)> {
        let mut said = Vec::new();
        let mut second = 0;
        let mut tell = |second: u64, event: &Event<'_>| {
            let now = start + Duration::from_secs(second);
            for line in progress.told(event, now) {
                shows(progress, &line);
                said.push((second, line));
            }
        };
        for task_idx in 0..3 {
            let started = Event::TaskStarted {
                task_idx,
                n_tasks: 3,
                n_new_classes: 2,
                n_seen_classes: 2 * (task_idx + 1),
                n_images: 10,
                n_steps,
                n_trained: 1,
            };
            tell(second, &started);
            for step in 0..n_steps {
                second += 1;
                let made = Event::Step {
                    task_idx,
                    epoch: 0,
                    step,
                    n_steps,
                    n_images: 10,
                    loss: 1.0,
                    lr: 0.1,
                };
                tell(second, &made);
            }
            let trained = Event::TaskTrained {
                task_idx,
                seconds: n_steps as f64,
                magnitudes: &[],
            };
            tell(second, &trained);
            let log = log(task_idx + 1);
            if is_tested(task_idx) {
                second += 10;
                let matrix = &log.matrix;
                let seconds = 10.0;
                tell(
                    second,
                    &Event::Evaluated {
                        task_idx,
                        matrix,
                        class_accuracy: None,
                        seconds,
                    },
                );
            }
            let (log, tested) = (&log, None);
            tell(
                second,
                &Event::TaskDone {
                    task_idx,
                    log,
                    tested,
                },
            );
        }
        said
    }

    fn without_terminal(quiet: bool, start: Instant) -> Progress {
        Progress::drawn(quiet, false, ProgressDrawTarget::hidden(), start)
    }

    #[test]
    fn without_a_terminal_every_task_has_its_line_and_a_long_one_says_how_far_it_is() {
        let start = Instant::now();
        let mut progress = without_terminal(false, start);
        let said = run(&mut progress, start, 70, |_| true, |_, _| {});
        let beside: Vec<_> = said
            .iter()
            .filter_map(|(second, line)| match line {
                Line::Beside(text) => Some((*second, text.as_str())),
                Line::Result(_) => None,
            })
            .collect();
        let times: Vec<u64> = beside.iter().map(|(second, _)| *second).collect();
        assert_eq!(times, [30, 60, 110, 140, 190, 220]);
        // Never of a task whose row is there already.
        for (second, text) in beside {
            let task = format!("task {}/3: step ", second / 80 + 1);
            assert!(text.starts_with(&task), "{second}: {text}");
        }
        let rows: Vec<_> = said
            .iter()
            .filter(|(_, line)| matches!(line, Line::Result(_)))
            .map(|(second, _)| *second)
            .collect();
        // The header comes with the first row.
        assert_eq!(rows, [80, 80, 160, 240]);
    }

    #[test]
    fn short_tasks_have_one_line_each_also_where_they_are_not_tested_and_quiet_says_nothing() {
        let start = Instant::now();
        let mut progress = without_terminal(false, start);
        let said = run(
            &mut progress,
            start,
            15,
            |task_idx| task_idx == 2,
            |_, _| {},
        );
        let texts: Vec<String> = said
            .into_iter()
            .map(|(_, line)| match line {
                Line::Beside(text) => format!("beside {text}"),
                Line::Result(text) => text.lines().last().unwrap_or_default().to_owned(),
            })
            .collect();
        assert_eq!(
            texts[..2],
            [
                "beside task 1/3: trained in 0.00 s, not tested",
                "beside task 2/3: trained in 0.00 s, not tested"
            ]
        );
        // The header, and the row.
        assert_eq!(texts.len(), 4, "{texts:?}");
        assert!(texts[3].starts_with("    2 │ 50.0 50.0 50.0"), "{texts:?}");
        let mut quiet = without_terminal(true, start);
        let mut n_printed = 0;
        run(
            &mut quiet,
            start,
            100,
            |_| true,
            |progress, line| {
                n_printed += usize::from(!progress.quiet);
                progress.print(line);
            },
        );
        assert_eq!(n_printed, 0);
    }

    /// A terminal as text.
    #[derive(Debug, Clone, Default)]
    struct Screen(Arc<Mutex<Cells>>);

    #[derive(Debug, Default)]
    struct Cells {
        lines: Vec<Vec<char>>,
        row: usize,
        column: usize,
    }

    impl Cells {
        fn put(&mut self, text: &str) {
            for c in text.chars() {
                match c {
                    '\n' => (self.row, self.column) = (self.row + 1, 0),
                    '\r' => self.column = 0,
                    c => {
                        let needed = self.row + 1;
                        if self.lines.len() < needed {
                            self.lines.resize(needed, Vec::new());
                        }
                        let line = &mut self.lines[self.row];
                        if line.len() <= self.column {
                            line.resize(self.column + 1, ' ');
                        }
                        line[self.column] = c;
                        self.column += 1;
                    }
                }
            }
        }
    }

    impl Screen {
        fn lines(&self) -> Vec<String> {
            let cells = self.0.lock().unwrap();
            let lines = cells
                .lines
                .iter()
                .map(|line| line.iter().collect::<String>());
            let lines = lines.map(|line| line.trim_end().to_owned());
            lines.filter(|line| !line.is_empty()).collect()
        }
    }

    impl TermLike for Screen {
        fn width(&self) -> u16 {
            100
        }
        fn move_cursor_up(&self, n: usize) -> io::Result<()> {
            let mut cells = self.0.lock().unwrap();
            cells.row = cells.row.saturating_sub(n);
            Ok(())
        }
        fn move_cursor_down(&self, n: usize) -> io::Result<()> {
            self.0.lock().unwrap().row += n;
            Ok(())
        }
        fn move_cursor_right(&self, n: usize) -> io::Result<()> {
            self.0.lock().unwrap().column += n;
            Ok(())
        }
        fn move_cursor_left(&self, n: usize) -> io::Result<()> {
            let mut cells = self.0.lock().unwrap();
            cells.column = cells.column.saturating_sub(n);
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().put(&format!("{text}\n"));
            Ok(())
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().put(text);
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            let mut cells = self.0.lock().unwrap();
            let row = cells.row;
            if let Some(line) = cells.lines.get_mut(row) {
                line.clear();
            }
            cells.column = 0;
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn on_a_terminal_one_line_stays_below_the_rows_and_leaves_no_fragment() {
        let screen = Screen::default();
        let target = ProgressDrawTarget::term_like_with_hz(Box::new(screen.clone()), 255);
        let start = Instant::now();
        let mut progress = Progress::drawn(false, true, target, start);
        // What `output.rs` does with the bar that it keeps below.
        let shows = |progress: &Progress, line: &Line| {
            let (Line::Result(text) | Line::Beside(text)) = line;
            progress.bar.suspend(|| screen.write_line(text).unwrap());
            progress.bar.tick();
            let lines = screen.lines();
            let n_bars = lines
                .iter()
                .filter(|line| line.starts_with("task "))
                .count();
            assert!(n_bars <= 1, "{lines:#?}");
            assert!(lines.last().unwrap().starts_with("task "), "{lines:#?}");
        };
        let said = run(&mut progress, start, 70, |_| true, shows);
        // On a terminal the bar says how far the run is.
        assert!(said.iter().all(|(_, line)| matches!(line, Line::Result(_))));
        let lines = screen.lines();
        assert_eq!(lines.len(), 2 + 3 + 1, "{lines:#?}");
        assert!(lines[5].starts_with("task 3/3 "), "{lines:#?}");
        progress.finish();
        let lines = screen.lines();
        let rows: Vec<_> = said
            .iter()
            .flat_map(|(_, line)| match line {
                Line::Result(text) | Line::Beside(text) => text.lines(),
            })
            .map(|line| line.trim_end().to_owned())
            .collect();
        assert_eq!(lines, rows);
    }
}
