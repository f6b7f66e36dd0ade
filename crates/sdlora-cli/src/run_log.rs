//! `log.jsonl`: one line per event of a run.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use sdlora_train::{Event, Observer};
use serde_json::{Value, json};

/// Appends every event to `log.jsonl` of a run and passes it on.
///
/// The file is opened with the first event: before it, the folder may belong to another run.
/// A resumed run first drops what was logged after its checkpoint, because these steps are made
/// again: every step stands once.
pub struct RunLogger<'a> {
    path: PathBuf,
    file: Option<BufWriter<File>>,
    next: &'a mut dyn Observer,
}

impl<'a> RunLogger<'a> {
    /// A logger for the run in `folder`.
    pub fn new(folder: &Path, next: &'a mut dyn Observer) -> Self {
        Self {
            path: folder.join("log.jsonl"),
            file: None,
            next,
        }
    }

    fn write(&mut self, line: &Value, flush: bool) {
        // The log is for reading; a full disk stops the run where it matters, at the checkpoint.
        if self.file.is_none() {
            let opened = OpenOptions::new()
                .create(true)
                .append(true)
                .open(&self.path);
            self.file = opened.ok().map(BufWriter::new);
        }
        if let Some(file) = &mut self.file {
            let _ = writeln!(file, "{line}");
            if flush {
                let _ = file.flush();
            }
        }
    }
}

/// Cuts the log after the line of a checkpoint; a log that does not name it is left as it is.
fn drop_after(path: &Path, checkpoint: &str) {
    let Ok(file) = File::open(path) else { return };
    let (mut length, mut kept) = (0, None);
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    while let Ok(n @ 1..) = reader.read_until(b'\n', &mut line) {
        length += n as u64;
        let is_it = serde_json::from_slice::<Value>(&line)
            .is_ok_and(|v| v["event"] == "checkpointed" && v["checkpoint"] == checkpoint);
        if is_it {
            kept = Some(length);
        }
        line.clear();
    }
    if let (Some(kept), Ok(file)) = (kept, OpenOptions::new().write(true).open(path)) {
        // Like every write here: a log that cannot be cut does not stop the run.
        let _ = file.set_len(kept);
    }
}

impl Observer for RunLogger<'_> {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Resumed { path } => {
                let name = path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                drop_after(&self.path, &name);
                self.write(&json!({"event": "resumed", "checkpoint": name}), true);
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
                seconds,
            } => {
                self.write(
                    &json!({"event": "evaluated", "task": task_idx, "seconds": seconds,
                        "accuracy": matrix.row(*task_idx)}),
                    true,
                );
            }
            Event::Checkpointed { path } => {
                let name = path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                self.write(&json!({"event": "checkpointed", "checkpoint": name}), true);
            }
        }
        self.next.event(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_train::Silent;

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

    #[test]
    fn steps_made_again_after_a_resume_stand_once() {
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = folder.path().join("task-0-step-2");
        let path = &checkpoint;
        {
            let mut silent = Silent;
            let mut log = RunLogger::new(folder.path(), &mut silent);
            for event in [step(0), step(1), Event::Checkpointed { path }, step(2)] {
                log.event(&event);
            }
        }
        let mut silent = Silent;
        let mut log = RunLogger::new(folder.path(), &mut silent);
        for event in [Event::Resumed { path }, step(2), step(3)] {
            log.event(&event);
        }
        drop(log);
        let text = std::fs::read_to_string(folder.path().join("log.jsonl")).unwrap();
        let steps: Vec<u64> = text
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap())
            .filter_map(|line| line["step"].as_u64())
            .collect();
        assert_eq!(steps, [0, 1, 2, 3]);
    }
}
