//! Numbers of finished runs in one small file, to be kept beside the tables that are made of them.
//!
//! A run folder holds a model and is large; what a table shows of it is one line. With a file of such
//! lines a table is made again without the runs, and runs of several machines come together in one: the files of
//! two machines one after the other are a file of records, too.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use sdlora_metrics::Summary;
use sdlora_train::files::Appended;
use sdlora_train::heads::FloatsStored;
use sdlora_train::{RunLog, TaskLog};
use serde::{Deserialize, Serialize};

use super::names;
use crate::results::Metrics;
use crate::shown::clipped;

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

impl Key {
    /// What the name of the run says before its checksum.
    pub fn place(&self) -> String {
        names::place(&self.suite, &self.stream, &self.entry, self.seed)
    }

    /// The name of the run by a recipe.
    pub fn name(&self, recipe: &str) -> String {
        names::name(&self.place(), &self.entry, recipe)
    }
}

impl Record {
    /// The run and how it was made: what two records of the same run share.
    fn id(&self) -> (Key, String) {
        (self.key.clone(), self.recipe.clone())
    }

    /// The file of the run in a folder of records.
    fn file_name(&self) -> String {
        format!("{}.jsonl", self.key.name(&self.recipe).replace('/', "."))
    }

    /// Whether another record of the same run has the same results as far as both say them. How long it took, by
    /// which version and on which device, may differ.
    fn agrees_with(&self, other: &Self) -> bool {
        let metrics = self.summary.metrics().into_iter();
        let mut pairs = metrics.zip(other.summary.metrics());
        // A version may know a metric that an earlier one did not.
        self.summary.n_tasks == other.summary.n_tasks
            && self.n_parameters == other.n_parameters
            && (self.head_keeps.is_none()
                || other.head_keeps.is_none()
                || self.head_keeps == other.head_keeps)
            && pairs.all(|(a, b)| a.value.is_none() || b.value.is_none() || a.value == b.value)
    }

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

/// A file of records, one line of JSON each, or a folder of such files with one for each run. Several processes
/// may add to it.
///
/// Lines are only ever added: what other runs left stays to the last digit. Their order means nothing: of lines by
/// other recipes each stands for its own run, and lines of one run must agree.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    is_folder: bool,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// By run and recipe.
    runs: HashMap<(Key, String), Line>,
    /// The files that were read, and how far.
    files: HashMap<PathBuf, Read>,
}

/// A record and where it stands.
#[derive(Debug)]
struct Line {
    record: Record,
    file: PathBuf,
    /// From 1.
    number: usize,
}

#[derive(Debug, Default)]
struct Read {
    /// Bytes and lines of the file that are known.
    n_bytes: u64,
    n_lines: usize,
    /// Whether the last of these lines has no end, as an editor may leave it.
    is_open: bool,
}

impl Records {
    /// Reads a file, or the files of a folder that end in `.jsonl`; a file that does not exist yet has no lines.
    ///
    /// # Errors
    ///
    /// When something cannot be read, a line is no record, or two lines of one run by one recipe do not agree.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let mut known = Known::default();
        let is_folder = path.is_dir();
        let mut files = vec![path.to_owned()];
        if is_folder {
            files.clear();
            for entry in std::fs::read_dir(path).map_err(cannot("read", path))? {
                let file = entry.map_err(cannot("read", path))?.path();
                files.extend(
                    file.extension()
                        .is_some_and(|e| e == "jsonl")
                        .then_some(file),
                );
            }
            files.sort();
        }
        for file in files {
            match std::fs::read(&file) {
                Ok(bytes) => known.take(&bytes, &file)?,
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(cannot("read", &file)(e)),
            }
        }
        Ok(Self {
            path: path.to_owned(),
            is_folder,
            known: Mutex::new(known),
        })
    }

    /// The record of a run by the same recipe.
    pub fn get(&self, key: &Key, recipe: &str) -> Option<Record> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let line = known.runs.get(&(key.clone(), recipe.to_owned()))?;
        Some(line.record.clone())
    }

    /// The record of a run by whatever recipe; `None` also where there are several.
    #[cfg(test)]
    pub fn of_run(&self, key: &Key) -> Option<Record> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = known.runs.values().filter(|line| line.record.key == *key);
        let line = found.next()?;
        found.next().is_none().then(|| line.record.clone())
    }

    /// Adds the line of a run, unless there is one that agrees. Waits for another process that is adding to the
    /// same file, and reads first what others have added there.
    ///
    /// # Errors
    ///
    /// When the file system refuses, another process wrote what is no record, or there is a line of this run by
    /// this recipe that does not agree.
    pub fn put(&self, record: Record) -> anyhow::Result<()> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let path = &match self.is_folder {
            true => self.path.join(record.file_name()),
            false => self.path.clone(),
        };
        let mut file = Appended::open(path).map_err(cannot("write", path))?;
        file.lock().map_err(cannot("lock", path))?;
        let n_known = known.files.get(path).map_or(0, |read| read.n_bytes);
        let added = file.read_from(n_known);
        known.take(&added.map_err(cannot("read", path))?, path)?;
        if let Some(line) = known.runs.get(&record.id()) {
            return match line.record.agrees_with(&record) {
                true => Ok(()),
                false => Err(anyhow::anyhow!(
                    "line {} of {} has other results of this run by the same recipe: remove the line if it is \
                     wrong, and give the same command again",
                    line.number,
                    line.file.display()
                )),
            };
        }
        let read = known.files.entry(path.clone()).or_default();
        // What follows the last whole line was left by a process that was killed while it wrote.
        if file.n_bytes().map_err(cannot("read", path))? > read.n_bytes {
            file.cut(read.n_bytes).map_err(cannot("write", path))?;
        }
        let end = if read.is_open { "\n" } else { "" };
        let text = format!("{end}{}\n", serde_json::to_string(&record)?);
        // One call, so that a reader without the lock sees whole lines.
        file.add(text.as_bytes());
        file.flush()
            .and_then(|()| file.sync())
            .map_err(cannot("write", path))?;
        read.n_bytes += text.len() as u64;
        read.n_lines += 1;
        read.is_open = false;
        let line = Line {
            number: read.n_lines,
            file: path.clone(),
            record,
        };
        known.runs.insert(line.record.id(), line);
        Ok(())
    }
}

impl Known {
    /// Takes what was added to a file since; a last line that is no record and has no end is not taken.
    fn take(&mut self, added: &[u8], file: &Path) -> anyhow::Result<()> {
        let read = self.files.entry(file.to_owned()).or_default();
        for line in added.split_inclusive(|&byte| byte == b'\n') {
            let is_whole = line.ends_with(b"\n");
            let number = read.n_lines + 1;
            if !line.trim_ascii().is_empty() {
                let record: Record = match serde_json::from_slice(line) {
                    Ok(record) => record,
                    Err(_) if !is_whole => break,
                    Err(e) => {
                        return Err(e).with_context(|| {
                            format!(
                                "line {number} of {} is no record of a run: remove the line, or name \
                                 another file",
                                file.display()
                            )
                        });
                    }
                };
                let new = Line {
                    record,
                    file: file.to_owned(),
                    number,
                };
                match self.runs.entry(new.record.id()) {
                    Entry::Vacant(place) => {
                        place.insert(new);
                    }
                    Entry::Occupied(mut old) => old.get_mut().meet(new)?,
                }
            }
            read.n_bytes += line.len() as u64;
            read.n_lines = number;
            read.is_open = !is_whole;
        }
        Ok(())
    }
}

impl Line {
    /// Meets another line of the same run: the one with the shorter time stays, whatever their order is.
    fn meet(&mut self, other: Self) -> anyhow::Result<()> {
        if !self.record.agrees_with(&other.record) {
            let key = &self.record.key;
            anyhow::bail!(
                "line {} of {} and line {} of {} have different results of the same run, entry `{}`, seed {}, by \
                 the same recipe: remove the line that is wrong",
                self.number,
                self.file.display(),
                other.number,
                other.file.display(),
                clipped(&key.entry),
                key.seed
            );
        }
        if other.record.seconds_per_task < self.record.seconds_per_task {
            *self = other;
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

/// Seconds of a run but for evaluation.
fn seconds_of(log: &RunLog) -> f64 {
    log.tasks.iter().map(TaskLog::total_seconds).sum()
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
    fn records_survive_the_file_and_each_recipe_is_a_run_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.jsonl");
        let records = Records::open(&path).unwrap();
        records.put(record("ncm", 1, 0.5)).unwrap();
        // A number that decimals of a table would not bring back.
        records
            .put(record("lora, \"quoted\"", 1, 1.0 / 3.0))
            .unwrap();
        records.put(record("ncm", 2, 0.25)).unwrap();
        let other = Record {
            recipe: "two".into(),
            ..record("ncm", 1, 0.75)
        };
        records.put(other.clone()).unwrap();

        let read = Records::open(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 4);
        for expected in [
            record("ncm", 1, 0.5),
            record("lora, \"quoted\"", 1, 1.0 / 3.0),
            record("ncm", 2, 0.25),
            other,
        ] {
            assert_eq!(read.get(&expected.key, &expected.recipe), Some(expected));
        }
        // By two recipes it is two runs.
        assert_eq!(read.of_run(&record("ncm", 1, 0.0).key), None);
    }

    #[test]
    fn lines_of_one_run_agree_or_are_both_named_and_their_order_means_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("own.jsonl");
        let fast = record("ncm", 1, 0.5);
        let slow = Record {
            seconds_per_task: 2.0,
            device: "wgpu".into(),
            version: "1".into(),
            ..fast.clone()
        };
        let line = |record: &Record| serde_json::to_string(record).unwrap() + "\n";
        for both in [[&fast, &slow], [&slow, &fast]] {
            let text = line(&record("lora", 1, 0.5)) + "\n" + &both.map(line).concat();
            std::fs::write(&path, &text).unwrap();
            let records = Records::open(&path).unwrap();
            assert_eq!(records.get(&fast.key, "one").as_ref(), Some(&fast));
            // One that agrees is not added again.
            records.put(slow.clone()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
            let other = record("ncm", 1, 0.75);
            let error = records.put(other.clone()).unwrap_err().to_string();
            let number = if both[0] == &fast { 3 } else { 4 };
            assert!(error.contains(&format!("line {number} of")), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
            std::fs::write(&path, text + &line(&other)).unwrap();
            let error = Records::open(&path).unwrap_err().to_string();
            assert!(
                error.contains(&format!("line {number} of")) && error.contains("line 5 of"),
                "{error}"
            );
            assert!(error.contains("entry `ncm`, seed 1"), "{error}");
        }
    }

    #[test]
    fn a_folder_has_a_file_for_each_run_and_they_merge_in_any_order() {
        let folder = tempfile::tempdir().unwrap();
        let parts = folder.path().join("parts");
        std::fs::create_dir(&parts).unwrap();
        std::fs::write(parts.join("notes.txt"), "no record").unwrap();
        let (a, b) = (
            Records::open(&parts).unwrap(),
            Records::open(&parts).unwrap(),
        );
        a.put(record("ncm", 1, 0.5)).unwrap();
        b.put(record("ncm", 2, 0.25)).unwrap();
        // Both made it.
        a.put(record("lora", 1, 0.5)).unwrap();
        b.put(record("lora", 1, 0.5)).unwrap();
        let mut files: Vec<_> = std::fs::read_dir(&parts)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|file| file.extension().unwrap() == "jsonl")
            .collect();
        files.sort();
        assert_eq!(files.len(), 3, "{files:?}");
        let name = record("lora", 1, 0.5).key.name("one").replace('/', ".");
        assert_eq!(files[0], parts.join(format!("{name}.jsonl")));
        let texts = files
            .iter()
            .map(|file| std::fs::read_to_string(file).unwrap());
        let texts: Vec<String> = texts.collect();
        let whole = folder.path().join("all.jsonl");
        let orders = [
            texts.concat(),
            texts.iter().rev().cloned().collect::<String>(),
        ];
        for text in orders {
            std::fs::write(&whole, text).unwrap();
            for from in [&whole, &parts] {
                let records = Records::open(from).unwrap();
                for expected in [
                    record("ncm", 1, 0.5),
                    record("ncm", 2, 0.25),
                    record("lora", 1, 0.5),
                ] {
                    assert_eq!(records.get(&expected.key, "one"), Some(expected));
                }
            }
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
        let known = Records::open(&path).unwrap().known.into_inner().unwrap();
        assert_eq!(known.runs.len(), 80);
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
