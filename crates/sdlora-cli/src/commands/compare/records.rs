//! Numbers of finished runs in one small file, to be kept beside the tables that are made of them.
//!
//! A run folder holds a model and is large; what a table shows of it is one line. With a file of such
//! lines a table is made again without the runs, and runs of several machines come together in one.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use sdlora_metrics::Summary;
use sdlora_train::files::Appended;
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

/// A file of records, one line of JSON each, that several processes may add to.
///
/// Lines are only ever added: what other runs left stays to the last digit. Of two lines of one run
/// the later one counts.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    lines: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    records: HashMap<Key, Record>,
    /// Bytes and lines of the file that are in `records`.
    n_bytes: u64,
    n_lines: usize,
    /// Whether the last of these lines has no end, as an editor may leave it.
    is_open: bool,
}

impl Records {
    /// Reads a file; one that does not exist yet has no lines.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or a line is no record.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let mut lines = Lines::default();
        match std::fs::read(path) {
            Ok(bytes) => lines.take(&bytes, path)?,
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(cannot("read", path)(e)),
        }
        Ok(Self {
            path: path.to_owned(),
            lines: Mutex::new(lines),
        })
    }

    /// The record of a run by the same recipe.
    pub fn get(&self, key: &Key, recipe: &str) -> Option<Record> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let record = lines.records.get(key)?;
        (record.recipe == recipe).then(|| record.clone())
    }

    /// The record of a run by whatever recipe.
    #[cfg(test)]
    pub fn of_run(&self, key: &Key) -> Option<Record> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.records.get(key).cloned()
    }

    /// Adds the line of a run, which counts instead of an earlier one of the same key. Waits for
    /// another process that is adding one, and reads first what others have added.
    ///
    /// # Errors
    ///
    /// When the file system refuses, or another process wrote what is no record.
    pub fn put(&self, record: Record) -> anyhow::Result<()> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let path = &self.path;
        let mut file = Appended::open(path).map_err(cannot("write", path))?;
        file.lock().map_err(cannot("lock", path))?;
        let added = file.read_from(lines.n_bytes);
        lines.take(&added.map_err(cannot("read", path))?, path)?;
        if lines.records.get(&record.key) == Some(&record) {
            return Ok(());
        }
        // What follows the last whole line was left by a process that was killed while it wrote.
        if file.n_bytes().map_err(cannot("read", path))? > lines.n_bytes {
            file.cut(lines.n_bytes).map_err(cannot("write", path))?;
        }
        let end = if lines.is_open { "\n" } else { "" };
        let line = format!("{end}{}\n", serde_json::to_string(&record)?);
        // One call, so that a reader without the lock sees whole lines.
        file.add(line.as_bytes());
        file.flush()
            .and_then(|()| file.sync())
            .map_err(cannot("write", path))?;
        lines.n_bytes += line.len() as u64;
        lines.n_lines += 1;
        lines.is_open = false;
        lines.records.insert(record.key.clone(), record);
        Ok(())
    }
}

impl Lines {
    /// Takes what was added since; a last line that is no record and has no end is not taken.
    fn take(&mut self, added: &[u8], path: &Path) -> anyhow::Result<()> {
        for line in added.split_inclusive(|&byte| byte == b'\n') {
            let is_whole = line.ends_with(b"\n");
            if !line.trim_ascii().is_empty() {
                let record: Record = match serde_json::from_slice(line) {
                    Ok(record) => record,
                    Err(_) if !is_whole => break,
                    Err(e) => {
                        return Err(e).with_context(|| {
                            format!(
                                "line {} of {} is no record of a run: remove the line, or name \
                                 another file",
                                self.n_lines + 1,
                                path.display()
                            )
                        });
                    }
                };
                self.records.insert(record.key.clone(), record);
            }
            self.n_bytes += line.len() as u64;
            self.n_lines += 1;
            self.is_open = !is_whole;
        }
        Ok(())
    }
}

fn cannot(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> anyhow::Error {
    let text = format!(
        "cannot {action} {}; check the path and the free space",
        path.display()
    );
    move |e| anyhow::Error::from(e).context(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_train::files::faults::{self, Kind};

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
        // The line it replaces is left as it was.
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 4);
        for expected in [
            record("ncm", 1, 0.75),
            record("lora, \"quoted\"", 1, 1.0 / 3.0),
            record("ncm", 2, 0.25),
        ] {
            assert_eq!(read.get(&expected.key, "one"), Some(expected));
        }
    }

    #[test]
    fn adding_a_line_leaves_the_others_as_they_are_and_loses_none_of_another_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.jsonl");
        // Keys in another order, digits that f64 does not keep, a space at the end, and no line end.
        let line = serde_json::to_string(&record("old", 1, 0.5)).unwrap();
        let old = line.replace("0.5", "0.82371428571428571428") + " ";
        std::fs::write(&path, &old).unwrap();
        let (a, b) = (Records::open(&path).unwrap(), Records::open(&path).unwrap());
        for seed in 1..4 {
            a.put(record("a", seed, 0.5)).unwrap();
            b.put(record("b", seed, 0.5)).unwrap();
        }
        // Said twice, there once.
        b.put(record("a", 3, 0.5)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with(&format!("{old}\n{{")), "{text}");
        assert_eq!(text.lines().count(), 7, "{text}");
        let all = Records::open(&path).unwrap();
        for seed in 1..4 {
            for entry in ["a", "b"] {
                assert!(all.get(&record(entry, seed, 0.5).key, "one").is_some());
            }
        }
        assert!(b.get(&record("a", 1, 0.5).key, "one").is_some());
    }

    #[test]
    fn records_added_at_the_same_time_are_all_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.jsonl");
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    let records = Records::open(path).unwrap();
                    for seed in 0..20 {
                        records.put(record(&writer.to_string(), seed, 0.5)).unwrap();
                    }
                });
            }
        });
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 80);
        assert_eq!(
            Records::open(&path)
                .unwrap()
                .lines
                .into_inner()
                .unwrap()
                .records
                .len(),
            80
        );
    }

    #[test]
    fn half_a_line_of_a_killed_process_is_dropped_with_the_next_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.jsonl");
        let line = serde_json::to_string(&record("ncm", 1, 0.5)).unwrap();
        std::fs::write(&path, format!("{line}\n{}", &line[..40])).unwrap();
        let records = Records::open(&path).unwrap();
        records.put(record("ncm", 2, 0.5)).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.starts_with(&format!("{line}\n")) && text.ends_with("}\n"));
        Records::open(&path).unwrap();
    }

    #[test]
    fn whichever_operation_fails_or_is_the_last_no_record_is_lost_or_torn() {
        for kind in [Kind::Error, Kind::Kill] {
            for n in 1.. {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("own.jsonl");
                let records = Records::open(&path).unwrap();
                records.put(record("old", 1, 0.5)).unwrap();
                // Half a line that a killed process left, which the next one takes away.
                let mut text = std::fs::read_to_string(&path).unwrap();
                let half = text[..40].to_owned();
                text.push_str(&half);
                std::fs::write(&path, &text).unwrap();
                faults::arm(n, kind);
                let put = records.put(record("new", 1, 0.25));
                let happened = faults::disarm();
                let what = format!("{kind:?} {n}: {put:?}");
                let found = Records::open(&path).expect(&what);
                let has = |records: &Records, entry: &str| {
                    records.of_run(&record(entry, 1, 0.0).key).is_some()
                };
                assert!(has(&found, "old"), "{what}");
                assert!(put.is_err() || has(&found, "new"), "{what}");
                // The same process and the next one go on from there.
                records.put(record("new", 1, 0.25)).expect(&what);
                found.put(record("next", 1, 0.25)).expect(&what);
                let all = Records::open(&path).expect(&what);
                let all = ["old", "new", "next"].map(|entry| has(&all, entry));
                assert_eq!(all, [true; 3], "{what}");
                let text = std::fs::read_to_string(&path).unwrap();
                assert_eq!(text.lines().count(), 3, "{what}: {text}");
                if !happened {
                    assert_eq!(n, 5, "open, cut, write, sync");
                    break;
                }
            }
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
