//! Numbers of finished runs in one small file, to be kept beside the tables that are made of them.
//!
//! A run folder holds a model and is large; what a table shows of it is one line. With a file of such
//! lines a table is made again without the runs, and runs of several machines come together in one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use sdlora_metrics::Summary;
use sdlora_train::files::write_file;
use sdlora_train::heads::FloatsStored;
use serde::{Deserialize, Serialize};

use super::seconds_of;
use crate::results::Metrics;

/// What a table shows of a finished run, and what tells it from other runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Which run it is.
    #[serde(flatten)]
    pub key: Key,
    /// SHA-256 of the base preset and of the keys set on it.
    pub recipe: String,
    /// Version of the program.
    pub version: String,
    /// Device of the run.
    pub device: String,
    /// Its metrics, without those that are a list by task.
    pub summary: Summary,
    /// Most parameters trained in one task.
    pub n_parameters: usize,
    /// What the head keeps after the last task.
    pub head_keeps: Option<FloatsStored>,
    /// Seconds of a task but for evaluation, mean over the tasks.
    pub seconds_per_task: f64,
}

/// What a run is in a file of records.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key {
    /// Name of the suite.
    pub suite: String,
    /// Name of the base preset.
    pub stream: String,
    /// Label of the entry.
    pub entry: String,
    /// Seed of the run.
    pub seed: u32,
}

impl Record {
    /// The line of a run that has finished.
    pub fn of(key: &Key, recipe: &str, run: &Metrics) -> Self {
        let log = &run.log;
        let summary = Summary {
            accuracy_curve: Vec::new(),
            weighted_accuracy_curve: Vec::new(),
            forgetting_per_task: None,
            ..Summary::of(&log.matrix)
        };
        Self {
            key: key.clone(),
            recipe: recipe.to_owned(),
            version: run.version.clone(),
            device: run.device.clone(),
            summary,
            // Methods that train in their first task only have nothing in the last.
            n_parameters: log.n_trained.iter().copied().max().unwrap_or(0),
            head_keeps: log.floats_stored.last().copied(),
            seconds_per_task: seconds_of(log) / log.tasks.len().max(1) as f64,
        }
    }
}

/// A file of records, one line of JSON each; renewed whenever a run finishes.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    lines: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    /// In the order of the file.
    records: Vec<Record>,
    place: HashMap<Key, usize>,
}

impl Lines {
    /// Puts a record in the place of an earlier one of the same run, or at the end.
    fn put(&mut self, record: Record) {
        let next = self.records.len();
        let place = *self.place.entry(record.key.clone()).or_insert(next);
        match self.records.get_mut(place) {
            Some(earlier) => *earlier = record,
            None => self.records.push(record),
        }
    }
}

impl Records {
    /// Reads a file; one that does not exist yet has no lines.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or a line is no record.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        let mut lines = Lines::default();
        for (i, line) in text.lines().enumerate() {
            if !line.trim().is_empty() {
                lines.put(serde_json::from_str(line).with_context(|| {
                    format!(
                        "line {} of {} is no record of a run: remove the line, or name another file",
                        i + 1,
                        path.display()
                    )
                })?);
            }
        }
        Ok(Self {
            path: path.to_owned(),
            lines: Mutex::new(lines),
        })
    }

    /// The record of a run by the same recipe.
    pub fn get(&self, key: &Key, recipe: &str) -> Option<Record> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let record = &lines.records[*lines.place.get(key)?];
        (record.recipe == recipe).then(|| record.clone())
    }

    /// Adds a run, in the place of an earlier one of the same key, and writes the file.
    ///
    /// # Errors
    ///
    /// When the file system refuses.
    pub fn put(&self, record: Record) -> anyhow::Result<()> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.put(record);
        let mut text = String::new();
        for record in &lines.records {
            text.push_str(&serde_json::to_string(record)?);
            text.push('\n');
        }
        Ok(write_file(&self.path, text.as_bytes())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(entry: &str, seed: u32, accuracy: f64) -> Record {
        Record {
            key: Key {
                suite: "own".into(),
                stream: "toy".into(),
                entry: entry.into(),
                seed,
            },
            recipe: "one".into(),
            version: "0".into(),
            device: "flex".into(),
            summary: Summary {
                n_tasks: 3,
                final_average_accuracy: Some(accuracy),
                ..Summary::default()
            },
            n_parameters: 10,
            head_keeps: None,
            seconds_per_task: 0.5,
        }
    }

    #[test]
    fn records_survive_the_file_and_replace_their_own_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.jsonl");
        let records = Records::open(&path).unwrap();
        records.put(record("ncm", 1, 0.5)).unwrap();
        // A number that decimals of a table would not bring back.
        records
            .put(record("lora, \"quoted\"", 1, 1.0 / 3.0))
            .unwrap();
        records.put(record("ncm", 2, 0.25)).unwrap();
        records.put(record("ncm", 1, 0.75)).unwrap();

        let read = Records::open(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 3);
        for expected in [
            record("ncm", 1, 0.75),
            record("lora, \"quoted\"", 1, 1.0 / 3.0),
            record("ncm", 2, 0.25),
        ] {
            assert_eq!(read.get(&expected.key, "one"), Some(expected));
        }
    }

    #[test]
    fn a_record_of_another_recipe_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records::open(&folder.path().join("own.jsonl")).unwrap();
        let ncm = record("ncm", 1, 0.5);
        records.put(ncm.clone()).unwrap();
        assert_eq!(records.get(&ncm.key, "two"), None);
        let other_seed = Key { seed: 2, ..ncm.key };
        assert_eq!(records.get(&other_seed, "one"), None);
    }

    #[test]
    fn a_damaged_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.jsonl");
        let line = serde_json::to_string(&record("ncm", 1, 0.5)).unwrap();
        std::fs::write(&path, format!("{line}\n\n{}\n", &line[..40])).unwrap();
        let error = Records::open(&path).unwrap_err().to_string();
        assert!(
            error.contains("line 3 of") && error.contains("own.jsonl"),
            "{error}"
        );
    }
}
