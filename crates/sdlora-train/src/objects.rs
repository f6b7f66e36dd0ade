//! What the checkpoints of a run share: finished directions and logs of finished rounds, each stored once under its
//! hash.
//!
//! A finished direction never changes, so the checkpoint of every later task would only repeat it. Neither does the
//! row of accuracies after a task, which has a number for each task before. With this a run of T tasks stores each
//! once, and its checkpoints grow by what is new. Objects lie in `objects` beside the checkpoints; the state of a
//! checkpoint names those it needs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use sdlora_core::{Adapter, AdapterStructure, FinishedDirection, HostFactors, PastDirections};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::export::TensorFile;
use crate::files::sums::sha256;
use crate::files::{create_folder, remove_file, write_file};
use crate::heads::SHARED;
use crate::run_log::RunLog;
use crate::task_log::TaskLog;

/// Folder of the objects, among the checkpoints.
pub(crate) const FOLDER: &str = "objects";

/// The objects that a checkpoint needs, by hash.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct References {
    /// Finished directions, in task order; every one has all sites that have it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    directions: Vec<String>,
    /// Logs of finished rounds, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    task_logs: Vec<String>,
    /// Large arrays of the head whose size does not depend on the number of classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shared_arrays: Option<String>,
}

/// What a finished round added to the log of a run.
#[derive(Serialize, Deserialize)]
struct RoundLog {
    #[serde(flatten)]
    task: TaskLog,
    /// Magnitudes after it. Missing in versions before 6, whose states have those of all rounds.
    #[serde(default)]
    magnitudes: Option<Vec<Vec<f64>>>,
    /// Its rows of the accuracy matrix, missing ones and missing entries among them: one, but for joint training. See
    /// `magnitudes`.
    #[serde(default)]
    rows: Option<Vec<Option<Vec<Option<f64>>>>>,
}

/// Bytes from which arrays of a head are large: a Gram matrix of random features, which every task replaces, would
/// fill the disk when every checkpoint kept its own.
const LARGE: usize = 4 << 20;

impl References {
    /// Whether finished directions lie in objects.
    pub fn has_directions(&self) -> bool {
        !self.directions.is_empty()
    }

    /// Whether large arrays of the head lie in an object.
    pub fn has_shared_arrays(&self) -> bool {
        self.shared_arrays.is_some()
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        let lists = self.directions.iter().chain(&self.task_logs);
        lists.chain(&self.shared_arrays)
    }
}

/// The objects of a run.
pub(crate) struct Objects {
    folder: PathBuf,
}

impl Objects {
    /// Those beside the checkpoints of a folder.
    pub fn of(checkpoints: &Path) -> Self {
        Self {
            folder: checkpoints.join(FOLDER),
        }
    }

    /// Stores bytes that may be there already, and gives their name.
    fn put(&self, bytes: &[u8]) -> Result<String, TrainError> {
        let name = sha256(bytes);
        let path = self.folder.join(&name);
        // The length tells a file that a full disk cut off; its bytes are checked when it is read.
        let is_there = fs::metadata(&path).is_ok_and(|found| found.len() == bytes.len() as u64);
        if !is_there {
            create_folder(&self.folder)?;
            write_file(&path, bytes)?;
        }
        Ok(name)
    }

    /// The bytes of a name that a state from a file gives.
    fn get(&self, name: &str) -> Result<Vec<u8>, String> {
        if !is_hash(name) {
            return Err(format!("{name:?} is no name of an object"));
        }
        let path = self.folder.join(name);
        let bytes =
            fs::read(&path).map_err(|e| format!("{} cannot be read ({e})", path.display()))?;
        match sha256(&bytes) == name {
            true => Ok(bytes),
            false => Err(format!(
                "{} is damaged: its hash is not its name",
                path.display()
            )),
        }
    }

    /// Stores the finished directions of an adapter, and gives the adapter without them.
    pub fn put_directions(
        &self,
        mut adapter: Adapter,
    ) -> Result<(Adapter, Vec<String>), TrainError> {
        let mut files: Vec<TensorFile> = Vec::new();
        for bank in &mut adapter.sites {
            let Some(past) = bank.past.take() else {
                continue;
            };
            let site = bank.site();
            for (k, direction) in past.finished().into_iter().enumerate() {
                if files.len() <= k {
                    files.push(TensorFile::default());
                }
                let HostFactors { a, b, rank } = direction.factors;
                let name = |part: &str| format!("{site}.{part}");
                files[k].insert(name("a"), vec![site.d_input, rank], a);
                files[k].insert(name("b"), vec![rank, site.d_output], b);
                let scales = vec![direction.inverse_norm, direction.offset];
                files[k].insert(name("inverse_norm_and_offset"), vec![2], scales);
            }
        }
        let names = files
            .iter()
            .map(|file| self.put(&file.to_bytes(&self.folder)?));
        let names = names.collect::<Result<_, _>>()?;
        Ok((adapter, names))
    }

    /// An adapter with the finished directions that its structure tells of. Without objects they are in the record
    /// of the adapter.
    pub fn get_directions(
        &self,
        mut adapter: Adapter,
        structure: &AdapterStructure,
        references: &References,
        device: &Device,
    ) -> Result<Adapter, String> {
        let files = references.directions.iter().map(|name| {
            let bytes = self.get(name)?;
            let path = self.folder.join(name);
            TensorFile::from_bytes(&bytes, &path).map_err(|e| e.to_string())
        });
        let files = files.collect::<Result<Vec<_>, String>>()?;
        for (bank, structure) in adapter.sites.iter_mut().zip(&structure.sites) {
            let site = bank.site().clone();
            if structure.past_ranks.is_empty() {
                continue;
            }
            let mut directions = Vec::with_capacity(structure.past_ranks.len());
            for (k, &rank) in structure.past_ranks.iter().enumerate() {
                let file = files
                    .get(k)
                    .ok_or_else(|| format!("direction {k} of {site} has no object"))?;
                let values = |part: &str, shape: &[usize]| -> Result<Vec<f32>, String> {
                    let name = format!("{site}.{part}");
                    let found = file.tensors.get(&name).filter(|found| found.shape == shape);
                    let found = found.ok_or_else(|| {
                        format!("`{name}` of direction {k} is missing or not of shape {shape:?}")
                    })?;
                    Ok(found.values.clone())
                };
                let scales = values("inverse_norm_and_offset", &[2])?;
                directions.push(FinishedDirection {
                    factors: HostFactors {
                        a: values("a", &[site.d_input, rank])?,
                        b: values("b", &[rank, site.d_output])?,
                        rank,
                    },
                    inverse_norm: scales[0],
                    offset: scales[1],
                });
            }
            bank.past = Some(PastDirections::from_finished(&directions, device));
        }
        Ok(adapter)
    }

    /// Stores what the first `n_over` rounds added to a log, and takes it out of the log. `known` has the names of
    /// those that this process has stored already: what is over does not change.
    pub fn put_log(
        &self,
        log: &mut RunLog,
        n_over: usize,
        known: &mut Vec<String>,
    ) -> Result<Vec<String>, TrainError> {
        let n_rows = log.matrix.n_rows();
        let row = |after: usize| Some(log.matrix.measured(after)).filter(|row| !row.is_empty());
        for round in known.len()..n_over {
            // A round has one row, but for the single round of joint training, which has all.
            let end = if round + 1 == n_over {
                n_rows
            } else {
                round + 1
            };
            let added = RoundLog {
                task: log.tasks[round].clone(),
                magnitudes: log.magnitudes.get(round).cloned(),
                rows: Some((round..end).map(row).collect()),
            };
            let bytes = serde_json::to_vec(&added).map_err(|e| {
                TrainError::checkpoint(&self.folder, format!("a log cannot be serialised: {e}"))
            })?;
            known.push(self.put(&bytes)?);
        }
        log.tasks.drain(..n_over);
        log.magnitudes.drain(..n_over.min(log.magnitudes.len()));
        if n_over > 0 {
            log.matrix = log.matrix.without_rows();
        }
        Ok(known[..n_over].to_vec())
    }

    /// Adds to a log what finished rounds added to it.
    pub fn get_log(&self, log: &mut RunLog, references: &References) -> Result<(), String> {
        let rounds = references.task_logs.iter().map(|name| {
            let bytes = self.get(name)?;
            serde_json::from_slice(&bytes)
                .map_err(|e| format!("the log {name} is unreadable ({e})"))
        });
        let rounds = rounds.collect::<Result<Vec<RoundLog>, String>>()?;
        let (mut tasks, mut magnitudes) = (Vec::new(), Vec::new());
        for round in rounds {
            tasks.push(round.task);
            magnitudes.extend(round.magnitudes);
            for row in round.rows.into_iter().flatten() {
                let added = match row {
                    Some(row) => log.matrix.push_measured(row),
                    None => log.matrix.push_missing_row(),
                };
                added.map_err(|e| e.to_string())?;
            }
        }
        log.tasks.splice(0..0, tasks);
        log.magnitudes.splice(0..0, magnitudes);
        Ok(())
    }

    /// Stores the arrays of a head that are shared by all classes where they are large, and gives the file without
    /// them.
    pub fn put_shared_arrays(
        &self,
        mut file: TensorFile,
    ) -> Result<(TensorFile, Option<String>), TrainError> {
        let (shared, own): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut file.tensors)
            .into_iter()
            .partition(|(name, _)| name.starts_with(SHARED));
        let numbers: usize = shared.values().map(|array| array.values.len()).sum();
        if numbers * size_of::<f32>() < LARGE {
            file.tensors = own.into_iter().chain(shared).collect();
            return Ok((file, None));
        }
        file.tensors = own;
        let shared = TensorFile {
            tensors: shared,
            ..TensorFile::default()
        };
        let name = self.put(&shared.to_bytes(&self.folder)?)?;
        Ok((file, Some(name)))
    }

    /// The arrays of a head with those that are shared by all classes.
    pub fn get_shared_arrays(
        &self,
        mut file: TensorFile,
        references: &References,
    ) -> Result<TensorFile, String> {
        let Some(name) = &references.shared_arrays else {
            return Ok(file);
        };
        let path = self.folder.join(name);
        if !path.exists() {
            return Err(
                "only the newest checkpoint of a run keeps the large arrays of its head, and this is an earlier one"
                    .into(),
            );
        }
        let shared = TensorFile::from_bytes(&self.get(name)?, &path).map_err(|e| e.to_string())?;
        file.tensors.extend(shared.tensors);
        Ok(file)
    }

    /// Removes the large arrays of a checkpoint that is not the newest any more, and says whether it did.
    pub fn forget_shared_arrays(&self, of: &References, now: &References) -> bool {
        match &of.shared_arrays {
            Some(name) if of.shared_arrays != now.shared_arrays && is_hash(name) => {
                // What is left over costs room and nothing else.
                remove_file(&self.folder.join(name)).is_ok()
            }
            _ => false,
        }
    }

    /// Removes objects that no checkpoint needs. `of` gives the references of all; where one of them cannot be
    /// read, nothing is removed.
    pub fn keep_only(&self, of: impl Iterator<Item = Option<References>>) {
        let Some(all) = of.collect::<Option<Vec<References>>>() else {
            return;
        };
        let needed: BTreeSet<&String> = all.iter().flat_map(References::names).collect();
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string();
            if name.is_ok_and(|name| is_hash(&name) && !needed.contains(&name)) {
                // What is left over costs room and nothing else.
                let _ = remove_file(&entry.path());
            }
        }
    }
}

/// Whether a name from a file is one that objects have, and so no path to anything else.
fn is_hash(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|c| c.is_ascii_hexdigit())
}

/// What a checkpoint needs: its directions and logs are stored already.
pub(crate) fn references(
    directions: Vec<String>,
    task_logs: Vec<String>,
    shared_arrays: Option<String>,
) -> References {
    References {
        directions,
        task_logs,
        shared_arrays,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_metrics::AccuracyMatrix;

    /// The log of a run after `rounds`, each with its rows.
    fn log(n_tasks: usize, rounds: &[&[Option<Vec<f64>>]]) -> RunLog {
        let matrix = AccuracyMatrix::new(n_tasks)
            .with_test_counts(vec![7; n_tasks])
            .unwrap();
        let mut log = RunLog::new(matrix);
        for (idx, rows) in rounds.iter().enumerate() {
            for row in *rows {
                match row {
                    Some(row) => log.matrix.push_row(row.clone()).unwrap(),
                    None => log.matrix.push_missing_row().unwrap(),
                }
            }
            log.tasks.push(TaskLog {
                losses: vec![1.0 / 3.0, idx as f64],
                seconds: 0.1,
                ..TaskLog::default()
            });
            log.magnitudes.push(vec![vec![0.7; idx + 1]]);
        }
        log
    }

    #[test]
    fn what_is_over_leaves_the_log_once_and_comes_back() {
        let apart: [&[_]; 3] = [
            &[Some(vec![1.0])],
            &[None],
            &[Some(vec![0.5, 1.0 / 3.0, 0.1])],
        ];
        let joint: [&[_]; 1] = [&[None, None, Some(vec![0.9, 0.8, 0.7])]];
        for rounds in [&apart[..], &joint[..]] {
            let folder = tempfile::tempdir().unwrap();
            let objects = Objects::of(folder.path());
            let mut known = Vec::new();
            // As a session saves after each round.
            for n_over in 1..=rounds.len() {
                let whole = log(3, &rounds[..n_over]);
                let mut rest = whole.clone();
                let names = objects.put_log(&mut rest, n_over, &mut known).unwrap();
                assert_eq!((names.len(), rest.matrix.n_rows()), (n_over, 0));
                assert!(rest.tasks.is_empty() && rest.magnitudes.is_empty());
                let n_stored = fs::read_dir(&objects.folder).unwrap().count();
                assert_eq!(n_stored, n_over);
                // Another process that knows of none stores the same.
                let mut again = whole.clone();
                let anew = objects.put_log(&mut again, n_over, &mut Vec::new());
                assert_eq!(anew.unwrap(), names);
                let references = references(Vec::new(), names, None);
                objects.get_log(&mut rest, &references).unwrap();
                assert_eq!(rest, whole);
            }
        }
    }

    #[test]
    fn in_a_round_only_what_is_over_leaves_the_log() {
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::of(folder.path());
        let mut whole = log(3, &[&[Some(vec![1.0])]]);
        whole.tasks.push(TaskLog::default());
        let mut rest = whole.clone();
        let names = objects.put_log(&mut rest, 1, &mut Vec::new()).unwrap();
        assert_eq!((rest.tasks.len(), rest.magnitudes.len()), (1, 0));
        objects
            .get_log(&mut rest, &references(Vec::new(), names, None))
            .unwrap();
        assert_eq!(rest, whole);
    }

    #[test]
    fn logs_of_version_5_are_read_beside_what_their_state_has() {
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::of(folder.path());
        let whole = log(3, &[&[Some(vec![1.0])], &[None]]);
        let mut state = whole.clone();
        let tasks = std::mem::take(&mut state.tasks);
        let names = tasks
            .iter()
            .map(|task| objects.put(&serde_json::to_vec(task).unwrap()).unwrap());
        let references = references(Vec::new(), names.collect(), None);
        objects.get_log(&mut state, &references).unwrap();
        assert_eq!(state, whole);
    }
}
