//! `log.jsonl`: one line per event of a run.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use sdlora_train::{Event, Observer};
use serde_json::{Value, json};

/// Appends every event to `log.jsonl` of a run and passes it on.
///
/// The file is opened with the first event: before it, the folder may belong to another run.
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

impl Observer for RunLogger<'_> {
    fn event(&mut self, event: &Event<'_>) {
        match event {
            Event::Resumed { path } => {
                let name = path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
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
