//! `log.jsonl`: one line per event of a run.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sdlora_train::files::Appended;
use sdlora_train::{Event, Observer};
use serde_json::{Value, json};

/// Appends every event to `log.jsonl` of a run and passes it on.
///
/// The file is opened with the first event: before it, the folder may belong to another run. A checkpoint
/// keeps how long the file was, and a run that continues from it first cuts what was logged later, because
/// these steps are made again: every step stands once.
pub struct RunLogger<'a> {
    path: PathBuf,
    file: Option<Appended>,
    /// Set when the log continues that of an earlier session: its length then, if known. What follows is cut before
    /// anything is added.
    uncut: Option<Option<u64>>,
    flushed: Instant,
    next: &'a mut dyn Observer,
}

/// How long a line may wait for others before it is in the file, for who follows a run.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

impl<'a> RunLogger<'a> {
    /// A logger for the run in `folder`.
    pub fn new(folder: &Path, next: &'a mut dyn Observer) -> Self {
        Self {
            path: folder.join("log.jsonl"),
            file: None,
            uncut: None,
            flushed: Instant::now(),
            next,
        }
    }

    /// The open file. The log is for reading: where it cannot be opened, the next line tries again, and a full disk
    /// stops the run where it matters, at the checkpoint.
    fn open(&mut self) -> Option<&mut Appended> {
        if self.file.is_none() {
            let mut file = Appended::open(&self.path).ok()?;
            if let Some(length) = self.uncut {
                cut(&mut file, length).ok()?;
                self.uncut = None;
            }
            self.file = Some(file);
        }
        self.file.as_mut()
    }

    fn write(&mut self, line: &Value, flush: bool) {
        let is_due = flush || self.flushed.elapsed() > FLUSH_EVERY;
        if let Some(file) = self.open() {
            file.add(format!("{line}\n").as_bytes());
            if is_due {
                let _ = file.flush();
                self.flushed = Instant::now();
            }
        }
    }
}

impl Drop for RunLogger<'_> {
    fn drop(&mut self) {
        if let Some(file) = &mut self.file {
            let _ = file.flush();
        }
    }
}

/// Cuts a log to a length, and back to the end of its last whole line.
fn cut(file: &mut Appended, length: Option<u64>) -> std::io::Result<()> {
    let bytes = file.read_from(0)?;
    let kept = length.map_or(bytes.len(), |length| {
        usize::try_from(length).unwrap_or(usize::MAX)
    });
    let kept = &bytes[..kept.min(bytes.len())];
    let end = kept.iter().rposition(|&byte| byte == b'\n');
    let end = end.map_or(0, |newline| newline + 1);
    match end < bytes.len() {
        true => file.cut(end as u64),
        false => Ok(()),
    }
}

/// The last part of a path.
fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

impl Observer for RunLogger<'_> {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Resumed {
                path,
                task_idx,
                n_steps,
                mark,
                ..
            } => {
                (self.file, self.uncut) = (None, Some(*mark));
                self.write(
                    &json!({"event": "resumed", "checkpoint": path.map(name_of), "task": task_idx,
                        "steps": n_steps}),
                    true,
                );
            }
            Event::Notice { text } => {
                self.write(&json!({"event": "notice", "text": text}), true);
            }
            Event::TaskStarted {
                task_idx,
                n_new_classes,
                n_seen_classes,
                n_images,
                n_steps,
                n_trained,
                ..
            } => {
                self.write(
                    &json!({"event": "task_started", "task": task_idx, "new_classes": n_new_classes,
                        "seen_classes": n_seen_classes, "images": n_images, "steps": n_steps,
                        "trained_parameters": n_trained}),
                    true,
                );
            }
            Event::Step {
                task_idx,
                epoch,
                step,
                loss,
                lr,
                ..
            } => {
                self.write(
                    &json!({"event": "step", "task": task_idx, "epoch": epoch, "step": step,
                        "loss": loss, "lr": lr}),
                    false,
                );
            }
            Event::TaskTrained {
                task_idx,
                seconds,
                magnitudes,
            } => {
                self.write(
                    &json!({"event": "task_trained", "task": task_idx, "seconds": seconds,
                        "magnitudes": magnitudes}),
                    true,
                );
            }
            Event::Evaluated {
                task_idx,
                matrix,
                class_accuracy,
                seconds,
            } => {
                self.write(
                    &json!({"event": "evaluated", "task": task_idx, "seconds": seconds,
                        "accuracy": matrix.measured(*task_idx), "class_accuracy": class_accuracy}),
                    true,
                );
            }
            Event::Checkpointed { path } => {
                let name = name_of(path);
                self.write(&json!({"event": "checkpointed", "checkpoint": name}), true);
            }
            // The checkpoint says so.
            Event::TaskDone { .. } => {}
        }
        self.next.event(event);
    }

    fn mark(&mut self) -> Option<u64> {
        let uncut = self.uncut.flatten();
        match self.open() {
            Some(file) => {
                // Where this fails, what was told is not durable; the length is right all the same.
                let _ = file.flush().and_then(|()| file.sync());
                file.end().ok()
            }
            None => uncut.or_else(|| Some(self.path.metadata().map_or(0, |found| found.len()))),
        }
    }

    fn wants_stop(&self) -> bool {
        self.next.wants_stop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_train::Silent;
    use sdlora_train::files::faults::{self, Kind};
    use std::fs;

    fn step(step: usize) -> Event<'static> {
        Event::Step {
            task_idx: 0,
            epoch: 0,
            step,
            n_steps: 9,
            n_images: 1,
            loss: 1.0,
            lr: 0.1,
        }
    }

    /// The steps of a log, every line of which has to be whole.
    fn steps(folder: &Path) -> Vec<u64> {
        let text = fs::read_to_string(folder.join("log.jsonl")).unwrap();
        text.lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .filter(|line| line["event"] == "step")
            .map(|line| line["step"].as_u64().unwrap())
            .collect()
    }

    fn resumed(mark: Option<u64>) -> Event<'static> {
        Event::Resumed {
            path: None,
            task_idx: 0,
            n_steps: 2,
            mark,
            log: None,
        }
    }

    #[test]
    fn every_step_stands_once_wherever_a_run_was_killed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let mut silent = Silent;
        let mut log = RunLogger::new(folder.path(), &mut silent);
        log.event(&step(0));
        log.event(&step(1));
        let mark = log.mark();
        assert_eq!(mark, Some(fs::metadata(&path).unwrap().len()), "flushed");
        let checkpoint = folder.path().join("task-0-step-2");
        log.event(&Event::Checkpointed { path: &checkpoint });
        for i in 2..6 {
            log.event(&step(i));
        }
        drop(log);
        let whole = fs::read(&path).unwrap();
        // A kill leaves any part of what came after the mark, cut in the middle of a line or not.
        for length in (mark.unwrap() as usize)..=whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            let mut log = RunLogger::new(folder.path(), &mut silent);
            log.event(&resumed(mark));
            for i in 2..4 {
                log.event(&step(i));
            }
            drop(log);
            assert_eq!(steps(folder.path()), [0, 1, 2, 3], "{length} bytes");
        }
    }

    #[test]
    fn whichever_operation_fails_or_is_the_last_every_line_is_whole_and_no_step_stands_twice() {
        let mut silent = Silent;
        for kind in [Kind::Error, Kind::Kill] {
            for n in 1.. {
                let folder = tempfile::tempdir().unwrap();
                let mut log = RunLogger::new(folder.path(), &mut silent);
                log.event(&step(0));
                let mark = log.mark();
                drop(log);
                faults::arm(n, kind);
                let mut log = RunLogger::new(folder.path(), &mut silent);
                log.event(&resumed(mark));
                log.event(&step(1));
                let second = log.mark();
                log.event(&step(2));
                drop(log);
                let happened = faults::disarm();
                // A process that is killed there writes no second checkpoint, and the run continues from the first.
                let (mark, next) = match happened && kind == Kind::Kill {
                    true => (mark, 1),
                    false => (second, 2),
                };
                let mut log = RunLogger::new(folder.path(), &mut silent);
                log.event(&resumed(mark));
                for i in next..4 {
                    log.event(&step(i));
                }
                drop(log);
                assert_eq!(steps(folder.path()), [0, 1, 2, 3], "{kind:?} {n}");
                if !happened {
                    assert!(n > 4, "{n}");
                    break;
                }
            }
        }
    }

    #[test]
    fn a_run_without_a_checkpoint_starts_its_log_again_and_a_broken_line_is_repaired() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let line = "{\"event\":\"step\",\"step\":7}\n";
        let mut silent = Silent;
        for (mark, expected) in [
            (Some(0), vec![8]),
            (None, vec![7, 8]),
            (Some(999), vec![7, 8]),
        ] {
            fs::write(&path, format!("{line}{}", &line[..9])).unwrap();
            let mut log = RunLogger::new(folder.path(), &mut silent);
            log.event(&resumed(mark));
            log.event(&step(8));
            drop(log);
            assert_eq!(steps(folder.path()), expected, "{mark:?}");
        }
    }
}
