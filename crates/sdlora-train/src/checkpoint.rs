//! Checkpoints: everything that is needed to continue a run bit for bit.
//!
//! A checkpoint is a folder of up to four files and `SHA256SUMS`, which covers them all. It is written under
//! a temporary name, synced and then renamed, so a folder with a final name is always whole, and a damaged
//! one is noticed. Parameter ids are part of the record, which is how the optimiser's state finds its
//! parameters again.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use burn::optim::{ModuleOptimizer, OptimizerRecord};
use burn::store::ModuleRecord;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};

use crate::error::TrainError;
use crate::export::TensorFile;
use crate::files::sums::Sums;
use crate::files::{self, NewFolder, create_folder, remove_folder};

pub use crate::files::write_file;

const MODEL: &str = "model.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
/// Arrays that are no parameters; absent where there are none.
const ARRAYS: &str = "head.safetensors";
const STATE: &str = "state.json";
/// Version of the layout; raised when an earlier program would misread it.
const VERSION: u32 = 6;
/// Layouts that are read like the present one: version 3 kept prompts and input subspaces in another form, version 4
/// the same ranks for every site, version 5 the accuracies and magnitudes of all rounds in every state.
const BEFORE: std::ops::RangeInclusive<u32> = 3..=5;
/// The oldest layout that is read: it has no `SHA256SUMS`, and the hashes of all but the state in the state.
const OLDEST: u32 = 2;

/// A checkpoint that was read back.
pub struct Checkpoint<S> {
    /// Parameters with their ids.
    pub model: ModuleRecord,
    /// Bytes of their file, which no part of them can exceed.
    pub n_model_bytes: usize,
    /// State of the optimiser; absent between tasks.
    pub optimizer: Option<OptimizerRecord>,
    /// Arrays that are no parameters.
    pub arrays: TensorFile,
    /// Position and logs of the run.
    pub state: S,
}

#[derive(Serialize, Deserialize)]
struct StateFile<S> {
    version: u32,
    state: S,
}

/// What is read of a state before the rest: of other versions it may be all that can be.
#[derive(Deserialize)]
struct Version {
    version: u32,
    /// Hashes of the oldest layout.
    model_sha256: Option<String>,
    optimizer_sha256: Option<String>,
    arrays_sha256: Option<String>,
}

/// Writes the checkpoint `name` into `folder`, replacing one of the same name, and returns its path. The folder
/// is made when the one above it is there.
///
/// # Errors
///
/// [`TrainError::Io`] when the file system refuses, [`TrainError::Checkpoint`] when a part cannot be
/// serialised; an earlier checkpoint is then still whole.
pub fn save<S: Serialize>(
    folder: &Path,
    name: &str,
    model: ModuleRecord,
    optimizer: Option<&ModuleOptimizer>,
    arrays: &TensorFile,
    state: &S,
) -> Result<PathBuf, TrainError> {
    let path = folder.join(name);
    let unwritable = |what: &str, problem: String| {
        TrainError::checkpoint(&path, format!("the {what} cannot be serialised: {problem}"))
    };
    create_folder(folder)?;
    let mut new = NewFolder::named(&path)?;
    let model = model
        .into_bytes()
        .map_err(|e| unwritable("model", e.to_string()))?;
    new.write(MODEL, &model)?;
    if let Some(optimizer) = optimizer {
        let bytes = optimizer
            .into_bytes()
            .map_err(|e| unwritable("optimiser", e.to_string()))?;
        new.write(OPTIMIZER, &bytes)?;
    }
    if !arrays.tensors.is_empty() {
        new.write(ARRAYS, &arrays.to_bytes(&path)?)?;
    }
    let state = StateFile {
        version: VERSION,
        state,
    };
    let json = serde_json::to_vec(&state).map_err(|e| unwritable("state", e.to_string()))?;
    new.write(STATE, &json)?;
    new.seal()?;
    new.finish()?;
    Ok(path)
}

/// Reads a checkpoint.
///
/// # Errors
///
/// [`TrainError::Checkpoint`] when a file is missing or damaged, [`TrainError::Newer`] for one of a later
/// version, [`TrainError::Io`] when a file cannot be read.
pub fn load<S: DeserializeOwned>(path: &Path) -> Result<Checkpoint<S>, TrainError> {
    let damaged = |problem: String| TrainError::Checkpoint {
        path: path.into(),
        problem,
        earlier: before(path),
    };
    let read = |name: &str| {
        let file = path.join(name);
        fs::read(&file).map_err(TrainError::io("read", file))
    };
    let json = read(STATE)?;
    let unreadable = |e: serde_json::Error| damaged(format!("{STATE} is unreadable ({e})"));
    let sums = Sums::read(path).map_err(damaged)?;
    if let Some(sums) = &sums {
        sums.check(STATE, &json).map_err(damaged)?;
    }
    let version: Version = serde_json::from_slice(&json).map_err(unreadable)?;
    match (version.version, &sums) {
        (version, Some(_)) if version == VERSION || BEFORE.contains(&version) => {}
        (OLDEST, None) => {}
        (version, None) if version == VERSION || BEFORE.contains(&version) => {
            return Err(damaged(format!("it has no {}", files::sums::FILE)));
        }
        (newer, _) if newer > VERSION => return Err(TrainError::newer(path, newer, VERSION)),
        (older, _) => {
            return Err(damaged(format!(
                "it has version {older} and this program reads versions {OLDEST} to {VERSION}"
            )));
        }
    }
    let state: StateFile<S> = serde_json::from_slice(&json)
        .and_then(|tree| serde_json::from_value(with_text_as_floats(tree)))
        .map_err(unreadable)?;
    let sums = sums.unwrap_or_else(|| {
        Sums::of([
            (MODEL, version.model_sha256),
            (OPTIMIZER, version.optimizer_sha256),
            (ARRAYS, version.arrays_sha256),
        ])
    });
    let checked = |name: &str| -> Result<Vec<u8>, TrainError> {
        let bytes = read(name)?;
        sums.check(name, &bytes).map_err(damaged)?;
        Ok(bytes)
    };
    let record = burn::tensor::Bytes::from_bytes_vec;
    let bytes = checked(MODEL)?;
    let n_model_bytes = bytes.len();
    let model = ModuleRecord::from_bytes(record(bytes))
        .map_err(|e| damaged(format!("{MODEL} is unreadable ({e})")))?;
    let optimizer = match sums.has(OPTIMIZER) {
        false => None,
        true => Some(
            OptimizerRecord::from_bytes(record(checked(OPTIMIZER)?))
                .map_err(|e| damaged(format!("{OPTIMIZER} is unreadable ({e})")))?,
        ),
    };
    let arrays = match sums.has(ARRAYS) {
        false => TensorFile::default(),
        true => TensorFile::from_bytes(&checked(ARRAYS)?, &path.join(ARRAYS))?,
    };
    Ok(Checkpoint {
        model,
        n_model_bytes,
        optimizer,
        arrays,
        state: state.state,
    })
}

/// The state of a checkpoint that its hash is right of; `None` where it is damaged or has no hash.
pub(crate) fn state_of<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let json = fs::read(path.join(STATE)).ok()?;
    let sums = Sums::read(path).ok()??;
    sums.check(STATE, &json).ok()?;
    serde_json::from_slice(&json).ok()
}

/// Starts the text that was a float in the states of earlier versions, whose reader was off by one bit for some.
const FLOAT: &str = "f64:";

/// The tree with such texts as numbers; a float that is a number stays one.
fn with_text_as_floats(tree: Value) -> Value {
    map_leaves(tree, &|leaf| {
        let number = leaf
            .as_str()
            .and_then(|text| text.strip_prefix(FLOAT))
            .and_then(|text| text.parse().ok())
            .and_then(Number::from_f64);
        number.map_or(leaf, Value::Number)
    })
}

fn map_leaves(tree: Value, f: &dyn Fn(Value) -> Value) -> Value {
    match tree {
        Value::Array(items) => items.into_iter().map(|item| map_leaves(item, f)).collect(),
        Value::Object(fields) => fields
            .into_iter()
            .map(|(key, value)| (key, map_leaves(value, f)))
            .collect(),
        leaf => f(leaf),
    }
}

/// The newest checkpoint of a folder: the last by name, because names carry the position.
pub fn latest(folder: &Path) -> Option<PathBuf> {
    names(folder).pop().map(|name| folder.join(name))
}

/// The checkpoint before one.
fn before(path: &Path) -> Option<PathBuf> {
    let (folder, name) = (path.parent()?, path.file_name()?.to_str()?);
    let mut names = names(folder);
    names.retain(|other| by_position(other, name).is_lt());
    names.pop().map(|name| folder.join(name))
}

/// Names of the whole checkpoints of a folder, in the order in which a run writes them.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.') && folder.join(name).join(STATE).is_file())
        .collect();
    names.sort_by(|a, b| by_position(a, b));
    names
}

/// The order of two names: numbers by their value, so that 1000 comes after 999, and the rest as text.
fn by_position(a: &str, b: &str) -> Ordering {
    match (parts(a).cmp(parts(b)), a.cmp(b)) {
        (Ordering::Equal, as_text) => as_text,
        (by_parts, _) => by_parts,
    }
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum NamePart<'a> {
    Number(u64),
    Text(&'a str),
}

fn parts(mut name: &str) -> impl Iterator<Item = NamePart<'_>> {
    std::iter::from_fn(move || {
        let is_digit = |c: char| c.is_ascii_digit();
        let starts_a_number = name.chars().next()?.is_ascii_digit();
        let end = name.find(|c| is_digit(c) != starts_a_number);
        let (part, rest) = name.split_at(end.unwrap_or(name.len()));
        name = rest;
        Some(match part.parse() {
            Ok(number) if starts_a_number => NamePart::Number(number),
            _ => NamePart::Text(part),
        })
    })
}

/// Removes checkpoints. What cannot be removed only takes space, so a failure is no reason to stop a run.
pub fn remove(folder: &Path, names: &[String]) {
    for name in names {
        let _ = remove_folder(&folder.join(name));
    }
}

/// Removes what a killed run left half written or half removed, and returns what it has put back. Nobody else may be
/// writing there.
pub(crate) fn clean(folder: &Path) -> Vec<PathBuf> {
    let back = files::clean(folder);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let is_ours = name.to_str().is_some_and(|name| {
            ["task-", "epoch-"]
                .iter()
                .any(|start| name.starts_with(start))
        });
        if is_ours && path.is_dir() && !path.join(STATE).exists() {
            let _ = remove_folder(&path);
        }
    }
    back
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heads::TrainedHead;
    use burn::module::Module;
    use rand::SeedableRng;
    use sdlora_testkit::test_device;

    fn head(seed: u64) -> TrainedHead {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        TrainedHead::draw(4, 3, &mut rng, &test_device())
    }

    fn none() -> TensorFile {
        TensorFile::default()
    }

    fn weights(head: &TrainedHead) -> Vec<f32> {
        head.weight.val().into_data().iter().collect()
    }

    #[test]
    fn the_newest_checkpoint_comes_back_as_it_was_saved() {
        let folder = tempfile::tempdir().unwrap();
        for (name, seed) in [("task-001", 1), ("task-002", 2), ("task-002", 3)] {
            save(
                folder.path(),
                name,
                head(seed).into_record(),
                None,
                &none(),
                &seed,
            )
            .unwrap();
        }
        assert_eq!(names(folder.path()), ["task-001", "task-002"]);
        let path = latest(folder.path()).unwrap();
        let checkpoint: Checkpoint<u64> = load(&path).unwrap();
        assert_eq!(checkpoint.state, 3);
        let restored = head(9).load_record(checkpoint.model);
        assert_eq!(weights(&restored), weights(&head(3)));
    }

    #[test]
    fn arrays_come_back_and_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let mut arrays = TensorFile::default();
        arrays.insert("gram", vec![1, 2], vec![0.1, -2.0]);
        let path = save(
            folder.path(),
            "a",
            head(1).into_record(),
            None,
            &arrays,
            &(),
        )
        .unwrap();
        let back = load::<()>(&path).unwrap().arrays;
        assert_eq!(back.tensors, arrays.tensors);
        let file = path.join(ARRAYS);
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, bytes).unwrap();
        let error = load::<()>(&path).err().unwrap().to_string();
        assert!(error.contains(ARRAYS), "{error}");
    }

    #[test]
    fn every_bit_of_a_float_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        // The first is read as its neighbour by serde_json without `float_roundtrip`.
        let floats = [
            f64::from_bits(4607409307963621376),
            14.0 / 15.0,
            0.1,
            1e-300,
            -2.0,
            3e38,
        ];
        let state = (floats, "f64 is no float".to_owned(), 7u64);
        let path = save(
            folder.path(),
            "a",
            head(1).into_record(),
            None,
            &none(),
            &state,
        )
        .unwrap();
        let json = fs::read_to_string(path.join(STATE)).unwrap();
        assert!(json.contains("0.1,1e-300,-2.0,3e+38]"), "{json}");
        let back = load::<([f64; 6], String, u64)>(&path).unwrap().state;
        assert_eq!(back.0.map(f64::to_bits), floats.map(f64::to_bits));
        assert_eq!((back.1, back.2), (state.1, state.2));
    }

    #[test]
    fn floats_that_an_earlier_version_kept_as_text_are_read_to_the_last_bit() {
        let folder = tempfile::tempdir().unwrap();
        let mut new = NewFolder::named(&folder.path().join("task-000-trained")).unwrap();
        new.write(MODEL, &head(1).into_record().into_bytes().unwrap())
            .unwrap();
        let (odd, whole) = (f64::from_bits(4607409307963621376), -2.0f64);
        let state = format!(
            r#"{{"version":3,"state":[["f64:{odd}","f64:{whole:?}","f64:3e38"],"f64 is no float",7,0.5]}}"#
        );
        new.write(STATE, state.as_bytes()).unwrap();
        new.seal().unwrap();
        new.finish().unwrap();
        let path = folder.path().join("task-000-trained");
        let ([a, b, c], text, n, half) = load::<([f64; 3], String, u64, f64)>(&path).unwrap().state;
        assert_eq!(a.to_bits(), odd.to_bits());
        assert_eq!((b, c, half), (whole, 3e38, 0.5));
        assert_eq!((text.as_str(), n), ("f64 is no float", 7));
    }

    #[test]
    fn a_damaged_checkpoint_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = save(
            folder.path(),
            "a",
            head(1).into_record(),
            None,
            &none(),
            &(),
        )
        .unwrap();
        let file = path.join(MODEL);
        let mut bytes = fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&file, bytes).unwrap();
        let error = load::<()>(&path).err().unwrap().to_string();
        assert!(
            error.contains("hash") && error.contains("start the run anew"),
            "{error}"
        );
        fs::write(path.join(STATE), "{").unwrap();
        assert!(load::<()>(&path).is_err());
    }

    #[test]
    fn what_a_killed_run_left_is_never_read_and_can_be_removed() {
        let folder = tempfile::tempdir().unwrap();
        // The last is a folder whose removal was interrupted.
        for (name, file) in [
            (".tmp-x", STATE),
            (".writing-x", STATE),
            ("task-000-step-7", MODEL),
        ] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join(file), "{}").unwrap();
        }
        fs::write(folder.path().join(".tmpabc"), "").unwrap();
        fs::create_dir(folder.path().join("mine")).unwrap();
        assert_eq!(latest(folder.path()), None);
        clean(folder.path());
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().flatten().collect();
        assert!(left.len() == 1 && left[0].file_name() == "mine", "{left:?}");
    }

    #[test]
    fn names_are_in_the_order_of_their_numbers() {
        let in_order = [
            "task-002-step-0000500",
            "task-002-step-10000000",
            "task-002-steps-done",
            "task-002-trained",
            "task-010-step-0000002",
            "task-999-trained",
            "task-1000-step-0000001",
            "task-1000-trained",
        ];
        let folder = tempfile::tempdir().unwrap();
        for name in in_order.iter().rev() {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join(STATE), "{}").unwrap();
        }
        assert_eq!(names(folder.path()), in_order);
    }

    #[test]
    fn a_checkpoint_of_a_later_version_says_so_and_is_not_to_be_removed() {
        let folder = tempfile::tempdir().unwrap();
        let mut new = NewFolder::named(&folder.path().join("task-000-trained")).unwrap();
        let next = VERSION + 1;
        new.write(
            STATE,
            format!(r#"{{"version": {next}, "what": "ever"}}"#).as_bytes(),
        )
        .unwrap();
        new.seal().unwrap();
        new.finish().unwrap();
        let error = load::<()>(&folder.path().join("task-000-trained"))
            .err()
            .unwrap();
        assert!(matches!(error, TrainError::Newer { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("newer version") && !text.contains("remove"),
            "{text}"
        );
    }

    #[test]
    fn every_bit_of_every_file_of_a_checkpoint_is_covered() {
        let folder = tempfile::tempdir().unwrap();
        let mut arrays = TensorFile::default();
        arrays.insert("gram", vec![1, 2], vec![0.1, -2.0]);
        let save = |name: &str| {
            save(
                folder.path(),
                name,
                head(1).into_record(),
                None,
                &arrays,
                &(7, 0.5),
            )
            .unwrap()
        };
        let first = save("task-000-trained");
        let path = save("task-001-trained");
        for entry in fs::read_dir(&path).unwrap() {
            let file = entry.unwrap().path();
            let bytes = fs::read(&file).unwrap();
            // Every bit of the small files, every 37th of the others.
            let every = if bytes.len() > 400 { 37 } else { 1 };
            for bit in (0..8 * bytes.len()).step_by(every) {
                let mut changed = bytes.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                fs::write(&file, &changed).unwrap();
                let error = load::<(u32, f64)>(&path).err();
                let text = error.map(|e| e.to_string());
                let text = text.unwrap_or_else(|| panic!("bit {bit} of {}", file.display()));
                assert!(text.contains(first.to_str().unwrap()), "{text}");
            }
            fs::write(&file, bytes).unwrap();
        }
        assert!(load::<(u32, f64)>(&path).is_ok());
    }

    #[test]
    fn a_checkpoint_of_the_version_before_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = save(
            folder.path(),
            "a",
            head(1).into_record(),
            None,
            &none(),
            &7u64,
        )
        .unwrap();
        let model = fs::read(path.join(MODEL)).unwrap();
        let mut sums = Sums::default();
        sums.add(MODEL, &model);
        let hash = sums.to_string();
        let state = format!(
            r#"{{"version":2,"model_sha256":"{}","optimizer_sha256":null,"arrays_sha256":null,"state":7}}"#,
            &hash[..64]
        );
        fs::write(path.join(STATE), state).unwrap();
        fs::remove_file(path.join(files::sums::FILE)).unwrap();
        assert_eq!(load::<u64>(&path).unwrap().state, 7);
        fs::write(path.join(MODEL), &model[1..]).unwrap();
        assert!(load::<u64>(&path).is_err());
    }
}
