//! Event files for TensorBoard: the loss and rate of every step, and what every task came to.
//!
//! The crates for them bring second versions of libraries that the program has, and the format is four small messages
//! in a short frame, so they are written here with `prost`, which the ONNX export brings anyway
//! (`docs/decisions/0043-what-people-look-at.md`).
//!
//! | file | what |
//! |---|---|
//! | `event.rs` | the messages |
//! | `records.rs` | their frame, with checksums |

mod event;
mod records;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prost::Message;
use sdlora_metrics::{AccuracyMatrix, Summary as Metrics};
use sdlora_train::files::{Appended, create_folders, write_file};
use sdlora_train::{Event as RunEvent, Observer, RunLog};

use crate::output::note;
use crate::shown::shown;
use event::{Event, Picture, Summary, Value};
use records::{record, records};

/// Name of the file. TensorBoard takes what has `tfevents` in its name, in the order of names; one run has one file,
/// which is cut and continued.
const FILE: &str = "events.out.tfevents.0000000000.sdlora";
/// What the first event says.
const VERSION: &str = "brain.Event:2";
/// Whether a folder has events of a run.
pub fn has_events(folder: &Path) -> bool {
    folder.join(FILE).exists()
}

/// How names of values begin whose `step` is a step, and those whose `step` is a task.
const OF_STEPS: &str = "train/";
const OF_TASKS: &str = "task/";
/// Tasks that have a curve of their own each.
const MOST_CURVES: usize = 50;
/// How long events may wait for others before they are in the file, for who follows a run.
const FLUSH_EVERY: Duration = Duration::from_secs(5);
/// Largest side of the picture of the matrix, and of a cell, in pixels.
const PICTURE_SIDE: usize = 640;
const CELL_SIDE: usize = 32;

/// Writes the events of a run to a folder and passes them on.
///
/// A run that continues first takes away what was written behind its checkpoint, so every step stands once; where the
/// file is missing, the losses so far are written again from the log.
pub struct TensorBoard<'a> {
    path: PathBuf,
    file: Option<Appended>,
    /// Steps of the tasks before the running one.
    n_steps_before: usize,
    /// Steps of the running task, so far.
    n_steps_in_task: usize,
    flushed: Instant,
    /// Whether the file could not be written, which is said once.
    has_failed: bool,
    next: &'a mut dyn Observer,
}

impl<'a> TensorBoard<'a> {
    /// Into `folder`, which is made with the first event.
    pub fn new(folder: &Path, next: &'a mut dyn Observer) -> Self {
        Self {
            path: folder.join(FILE),
            file: None,
            n_steps_before: 0,
            n_steps_in_task: 0,
            flushed: Instant::now(),
            has_failed: false,
            next,
        }
    }

    /// The open file, with its first event in it. A file that is there belongs to another run, unless this one
    /// [continued](Self::resume) from it.
    fn open(&mut self) -> std::io::Result<&mut Appended> {
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                if let Some(folder) = self.path.parent() {
                    create_folders(folder).map_err(std::io::Error::other)?;
                }
                let mut file = Appended::open(&self.path)?;
                if file.n_bytes()? > 0 {
                    return Err(std::io::Error::other("it holds the events of another run"));
                }
                file.add(&first_event());
                file
            }
        };
        Ok(self.file.insert(file))
    }

    /// What the file was before the checkpoint of `log`, whose first `n_done` tasks are over and whose next one has
    /// made
    /// `n_steps` steps.
    fn resume(&mut self, log: &RunLog, n_done: usize, n_steps: usize) -> std::io::Result<()> {
        let steps_of = |task: usize| log.tasks.get(task).map_or(0, |task| task.losses.len());
        self.n_steps_before = (0..n_done).map(steps_of).sum();
        self.n_steps_in_task = n_steps;
        let n_made = self.n_steps_before + n_steps;
        // Joint training has more rows than rounds.
        let n_done = n_done.max(log.matrix.n_rows());
        let bytes = match std::fs::read(&self.path) {
            Ok(bytes) => cut(&bytes, n_made, n_done),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => rebuilt(log, n_made),
            Err(e) => return Err(e),
        };
        if let Some(folder) = self.path.parent() {
            create_folders(folder).map_err(std::io::Error::other)?;
        }
        write_file(&self.path, &bytes).map_err(std::io::Error::other)?;
        self.file = Some(Appended::open(&self.path)?);
        Ok(())
    }

    fn write(&mut self, step: usize, value: Vec<Value>, flush: bool) -> std::io::Result<()> {
        let is_due = flush || self.flushed.elapsed() > FLUSH_EVERY;
        let file = self.open()?;
        file.add(&event_record(step, value));
        if is_due {
            file.flush()?;
            self.flushed = Instant::now();
        }
        Ok(())
    }

    /// What an event adds to the file.
    fn take(&mut self, event: &RunEvent<'_>) -> std::io::Result<()> {
        match event {
            RunEvent::Resumed {
                task_idx,
                n_steps,
                log: Some(log),
                ..
            } => self.resume(log, *task_idx, *n_steps),
            RunEvent::Step { step, loss, lr, .. } => {
                self.n_steps_in_task = step + 1;
                self.write(self.n_steps_before + step, of_step(*loss, Some(*lr)), false)
            }
            RunEvent::Evaluated {
                task_idx,
                matrix,
                class_accuracy,
                ..
            } => {
                let mut values = of_task(matrix);
                values.extend(class_accuracy.map(|accuracy| {
                    Value::number(format!("{OF_TASKS}accuracy_over_classes"), accuracy)
                }));
                self.write(*task_idx, values, true)
            }
            RunEvent::TaskDone { task_idx, log, .. } => {
                self.n_steps_before += std::mem::take(&mut self.n_steps_in_task);
                let seconds = log.tasks.get(*task_idx).map_or(0.0, |t| t.total_seconds());
                let value = Value::number(format!("{OF_TASKS}seconds"), seconds);
                self.write(*task_idx, vec![value], true)
            }
            _ => Ok(()),
        }
    }
}

impl Observer for TensorBoard<'_> {
    fn event(&mut self, event: &RunEvent<'_>) {
        if let Err(error) = self.take(event)
            && !std::mem::replace(&mut self.has_failed, true)
        {
            let reason = shown(&error.to_string());
            let path = shown(&self.path.display().to_string());
            note!("note: {path} cannot be written ({reason}); the run goes on");
        }
        self.next.event(event);
    }

    fn mark(&mut self) -> Option<u64> {
        if let Some(file) = &mut self.file {
            // Where this fails, what was told is not durable; the run tells it again from its log.
            let _ = file.flush().and_then(|()| file.sync());
        }
        self.next.mark()
    }

    fn wants_stop(&self) -> bool {
        self.next.wants_stop()
    }
}

impl Drop for TensorBoard<'_> {
    fn drop(&mut self) {
        if let Some(file) = &mut self.file {
            let _ = file.flush();
        }
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

fn first_event() -> Vec<u8> {
    let event = Event {
        wall_time: now(),
        file_version: Some(VERSION.into()),
        ..Event::default()
    };
    record(&event.encode_to_vec())
}

fn event_record(step: usize, value: Vec<Value>) -> Vec<u8> {
    let event = Event {
        wall_time: now(),
        step: i64::try_from(step).unwrap_or(i64::MAX),
        file_version: None,
        summary: Some(Summary { value }),
    };
    record(&event.encode_to_vec())
}

fn of_step(loss: f64, lr: Option<f64>) -> Vec<Value> {
    let mut value = vec![Value::number(format!("{OF_STEPS}loss"), loss)];
    value.extend(lr.map(|lr| Value::number(format!("{OF_STEPS}learning_rate"), lr)));
    value
}

/// What a row of the matrix says; all accuracies are fractions.
fn of_task(matrix: &AccuracyMatrix) -> Vec<Value> {
    let metrics = Metrics::of(matrix);
    let newest = matrix.n_rows().checked_sub(1);
    let number = |name: &str, value: Option<f64>| {
        value.map(|value| Value::number(format!("{OF_TASKS}{name}"), value))
    };
    let mut values: Vec<Value> = [
        number("accuracy_over_tasks", metrics.final_average_accuracy),
        number("accuracy_over_images", metrics.weighted_final_accuracy),
        number(
            "accuracy_on_newest",
            newest.and_then(|task| matrix.get(task, task)),
        ),
        number("average_anytime_accuracy", metrics.average_anytime_accuracy),
        number("forgetting", metrics.forgetting),
    ]
    .into_iter()
    .flatten()
    .collect();
    if matrix.n_tasks() <= MOST_CURVES {
        let row = newest
            .map(|after| matrix.measured(after))
            .unwrap_or_default();
        let tested = row.into_iter().enumerate();
        values.extend(tested.filter_map(|(on, accuracy)| {
            Some(Value::number(
                format!("{OF_TASKS}accuracy_on/{on:03}"),
                accuracy?,
            ))
        }));
    }
    values.extend(picture(matrix).map(|image| Value {
        tag: format!("{OF_TASKS}accuracy_matrix"),
        simple_value: None,
        image: Some(image),
    }));
    values
}

/// The matrix as a picture: row = after task, column = on task, from white, 0, to dark blue, 1; gray where nothing was
/// tested.
fn picture(matrix: &AccuracyMatrix) -> Option<Picture> {
    let n = matrix.n_tasks();
    let cell = (PICTURE_SIDE / n.max(1)).clamp(1, CELL_SIDE);
    let side = n * cell;
    let mut pixels = Vec::with_capacity(side * side * 3);
    for y in 0..side {
        for x in 0..side {
            pixels.extend(match matrix.get(y / cell, x / cell) {
                Some(accuracy) => {
                    let mix = |dark: f64| (255.0 + accuracy * (dark - 255.0)).round() as u8;
                    [mix(13.0), mix(54.0), mix(107.0)]
                }
                None => [225; 3],
            });
        }
    }
    let png = sdlora_image::encode_png(side, side, &pixels).ok()?;
    let side = i32::try_from(side).ok()?;
    Some(Picture {
        height: side,
        width: side,
        colorspace: 3,
        encoded_image_string: png,
    })
}

/// A file without what was written after the first `n_steps` steps and the first `n_tasks` tasks.
fn cut(bytes: &[u8], n_steps: usize, n_tasks: usize) -> Vec<u8> {
    let mut kept = Vec::with_capacity(bytes.len());
    for bytes in records(bytes) {
        // What this program did not write is not continued.
        let Ok(mut event) = Event::decode(bytes) else {
            continue;
        };
        let Some(summary) = &mut event.summary else {
            kept.extend(record(bytes));
            continue;
        };
        let is_before = |n: usize| usize::try_from(event.step).is_ok_and(|step| step < n);
        summary
            .value
            .retain(|value| match value.tag.starts_with(OF_STEPS) {
                true => is_before(n_steps),
                false => is_before(n_tasks),
            });
        if !summary.value.is_empty() {
            kept.extend(record(&event.encode_to_vec()));
        }
    }
    match kept.is_empty() {
        true => first_event(),
        false => kept,
    }
}

/// The file of a run that has none yet: the losses of its first `n_steps` steps, and its newest row.
fn rebuilt(log: &RunLog, n_steps: usize) -> Vec<u8> {
    let mut bytes = first_event();
    let losses = log.tasks.iter().flat_map(|task| &task.losses);
    for (step, &loss) in losses.take(n_steps).enumerate() {
        bytes.extend(event_record(step, of_step(loss, None)));
    }
    if let Some(newest) = log.matrix.n_rows().checked_sub(1) {
        bytes.extend(event_record(newest, of_task(&log.matrix)));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_train::{Silent, TaskLog};
    use std::collections::BTreeMap;

    fn step(step: usize, loss: f64) -> RunEvent<'static> {
        RunEvent::Step {
            task_idx: 0,
            epoch: 0,
            step,
            n_steps: 3,
            n_images: 1,
            loss,
            lr: 0.1,
        }
    }

    fn log(losses: &[&[f64]], rows: &[&[f64]]) -> RunLog {
        let mut matrix = AccuracyMatrix::new(3);
        rows.iter()
            .for_each(|row| matrix.push_row(row.to_vec()).unwrap());
        let task = |losses: &&[f64]| TaskLog {
            losses: losses.to_vec(),
            ..TaskLog::default()
        };
        RunLog {
            matrix,
            tasks: losses.iter().map(task).collect(),
            eval_seconds: Vec::new(),
            magnitudes: Vec::new(),
            n_trained: Vec::new(),
            floats_stored: Vec::new(),
            classes: Vec::new(),
        }
    }

    /// Step and number of every value of a tag.
    fn read(folder: &Path) -> BTreeMap<String, Vec<(i64, f32)>> {
        let bytes = std::fs::read(folder.join(FILE)).unwrap();
        let all = records(&bytes);
        let events: Vec<Event> = all
            .iter()
            .map(|bytes| Event::decode(*bytes).unwrap())
            .collect();
        assert_eq!(events[0].file_version.as_deref(), Some(VERSION));
        assert!(events[1..].iter().all(|event| event.file_version.is_none()));
        let mut found: BTreeMap<String, Vec<(i64, f32)>> = BTreeMap::new();
        for event in events {
            for value in event.summary.into_iter().flat_map(|summary| summary.value) {
                let number = value.simple_value.unwrap_or(f32::NAN);
                found
                    .entry(value.tag)
                    .or_default()
                    .push((event.step, number));
            }
        }
        found
    }

    /// A run of two tasks of three steps, stopped after `n_told` of its events, and continued from its checkpoint.
    #[test]
    fn every_step_and_task_stands_once_wherever_a_run_was_stopped() {
        let both = log(
            &[&[1.0, 0.5, 0.25], &[2.0, 1.0, 0.5]],
            &[&[0.9], &[0.8, 0.7]],
        );
        let first = log(&[&[1.0, 0.5, 0.25]], &[&[0.9]]);
        let tell = |board: &mut TensorBoard<'_>, task: usize, from: usize, log: &RunLog| {
            for i in from..3 {
                board.event(&step(i, log.tasks[task].losses[i]));
            }
            board.event(&RunEvent::Evaluated {
                task_idx: task,
                matrix: &log.matrix,
                class_accuracy: Some(0.25),
                seconds: 1.0,
            });
        };
        let done = |board: &mut TensorBoard<'_>, task: usize, log: &RunLog| {
            board.event(&RunEvent::TaskDone {
                task_idx: task,
                log,
                tested: None,
            });
        };
        let mut silent = Silent;
        // Steps of the second task that the newest checkpoint has: it was written before the evaluation.
        for n_kept in 0..=3 {
            for torn in [0, 5, 40] {
                let folder = tempfile::tempdir().unwrap();
                let mut board = TensorBoard::new(folder.path(), &mut silent);
                tell(&mut board, 0, 0, &first);
                done(&mut board, 0, &first);
                tell(&mut board, 1, 0, &both);
                drop(board);
                let path = folder.path().join(FILE);
                let bytes = std::fs::read(&path).unwrap();
                std::fs::write(&path, &bytes[..bytes.len() - torn]).unwrap();

                let mut board = TensorBoard::new(folder.path(), &mut silent);
                let mut at_checkpoint = first.clone();
                at_checkpoint.tasks.push(TaskLog {
                    losses: both.tasks[1].losses[..n_kept].to_vec(),
                    ..TaskLog::default()
                });
                board.event(&RunEvent::Resumed {
                    path: None,
                    task_idx: 1,
                    n_steps: n_kept,
                    mark: None,
                    log: Some(&at_checkpoint),
                });
                tell(&mut board, 1, n_kept, &both);
                done(&mut board, 1, &both);
                drop(board);
                let found = read(folder.path());
                let losses = [1.0, 0.5, 0.25, 2.0, 1.0, 0.5];
                let expected: Vec<(i64, f32)> = (0..).zip(losses).collect();
                assert_eq!(found["train/loss"], expected, "{n_kept}");
                assert_eq!(found["train/learning_rate"].len(), 6);
                assert_eq!(found["task/accuracy_over_tasks"], [(0, 0.9), (1, 0.75)]);
                assert_eq!(found["task/accuracy_on/001"], [(1, 0.7)]);
                assert_eq!(found["task/accuracy_over_classes"], [(0, 0.25), (1, 0.25)]);
                assert_eq!(found["task/forgetting"].len(), 1);
                let steps =
                    |tag: &str| found[tag].iter().map(|(step, _)| *step).collect::<Vec<_>>();
                assert_eq!(steps("task/accuracy_matrix"), [0, 1]);
                assert_eq!(steps("task/seconds"), [0, 1]);
            }
        }
    }

    #[test]
    fn a_run_that_has_no_file_yet_begins_it_with_its_log_and_never_touches_that_of_another() {
        let mut silent = Silent;
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("new/board");
        let log = log(&[&[1.0, 0.5], &[2.0]], &[&[0.9]]);
        let mut board = TensorBoard::new(&inner, &mut silent);
        board.event(&RunEvent::Resumed {
            path: None,
            task_idx: 1,
            n_steps: 1,
            mark: None,
            log: Some(&log),
        });
        board.event(&step(1, 1.5));
        drop(board);
        let expected = [(0, 1.0), (1, 0.5), (2, 2.0), (3, 1.5)];
        assert_eq!(read(&inner)["train/loss"], expected);
        let mut board = TensorBoard::new(&inner, &mut silent);
        board.event(&step(0, 7.0));
        assert!(board.has_failed);
        drop(board);
        assert_eq!(read(&inner)["train/loss"], expected);
    }

    #[test]
    fn the_matrix_is_a_picture_of_its_cells() {
        let matrix = AccuracyMatrix::from_rows(vec![vec![1.0], vec![0.0, 1.0]]).unwrap();
        let picture = picture(&matrix).unwrap();
        assert_eq!((picture.width, picture.height), (64, 64));
        let image = sdlora_image::Image::decode(&picture.encoded_image_string, "matrix").unwrap();
        let at = |x: usize, y: usize| &image.data()[3 * (y * 64 + x)..][..3];
        assert_eq!(at(0, 0), [13, 54, 107]);
        assert_eq!(at(0, 63), [255; 3]);
        assert_eq!(at(63, 0), [225; 3]);
    }
}
