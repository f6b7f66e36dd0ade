//! Checkpoints: everything that is needed to continue a run bit for bit.
//!
//! A checkpoint is a folder of up to four files. It is written under a temporary name, synced and then
//! renamed, so a folder with a final name is always whole; `state.json` holds the hashes of the
//! others, so a damaged one is noticed. Parameter ids are part of the record, which is how the
//! optimiser's state finds its parameters again.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use burn::optim::{ModuleOptimizer, OptimizerRecord};
use burn::store::ModuleRecord;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};
use sha2::{Digest, Sha256};

use crate::error::TrainError;
use crate::export::TensorFile;

const MODEL: &str = "model.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
/// Arrays that are no parameters; absent where there are none.
const ARRAYS: &str = "head.safetensors";
const STATE: &str = "state.json";
/// Version of the layout; raised when older checkpoints can no longer be read.
const VERSION: u32 = 2;
/// Folders under construction start with this; they are never read.
const TEMPORARY: &str = ".writing-";

/// A checkpoint that was read back.
pub struct Checkpoint<S> {
    /// Parameters with their ids.
    pub model: ModuleRecord,
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
    model_sha256: String,
    optimizer_sha256: Option<String>,
    arrays_sha256: Option<String>,
    state: S,
}

/// Writes the checkpoint `name` into `folder`, replacing one of the same name, and returns its path.
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
    let damaged = |problem: String| TrainError::Checkpoint {
        path: path.clone(),
        problem,
    };
    fs::create_dir_all(folder).map_err(TrainError::io("create", folder))?;
    let temporary = tempfile::Builder::new()
        .prefix(TEMPORARY)
        .tempdir_in(folder)
        .map_err(TrainError::io("create", folder))?;

    let model = model
        .into_bytes()
        .map_err(|e| damaged(format!("the model cannot be serialised: {e}")))?;
    write_synced(&temporary.path().join(MODEL), &model)?;
    let optimizer_sha256 = match optimizer {
        None => None,
        Some(optimizer) => {
            let bytes = optimizer
                .into_bytes()
                .map_err(|e| damaged(format!("the optimiser cannot be serialised: {e}")))?;
            write_synced(&temporary.path().join(OPTIMIZER), &bytes)?;
            Some(hash(&bytes))
        }
    };
    let arrays_sha256 = match arrays.tensors.is_empty() {
        true => None,
        false => {
            let bytes = arrays.to_bytes(&path)?;
            write_synced(&temporary.path().join(ARRAYS), &bytes)?;
            Some(hash(&bytes))
        }
    };
    let state = StateFile {
        version: VERSION,
        model_sha256: hash(&model),
        optimizer_sha256,
        arrays_sha256,
        state,
    };
    let json = serde_json::to_value(&state)
        .and_then(|tree| serde_json::to_vec(&with_floats_as_text(tree)))
        .map_err(|e| damaged(format!("the state cannot be serialised: {e}")))?;
    write_synced(&temporary.path().join(STATE), &json)?;

    if path.exists() {
        fs::remove_dir_all(&path).map_err(TrainError::io("replace", &path))?;
    }
    fs::rename(temporary.path(), &path).map_err(TrainError::io("rename", &path))?;
    // The folder has its final name now and must not be removed with the temporary one.
    let _ = temporary.keep();
    sync_folder(folder);
    Ok(path)
}

/// Reads a checkpoint.
///
/// # Errors
///
/// [`TrainError::Io`] when a file is missing, [`TrainError::Checkpoint`] when one is damaged or of
/// another version.
pub fn load<S: DeserializeOwned>(path: &Path) -> Result<Checkpoint<S>, TrainError> {
    let damaged = |problem: String| TrainError::Checkpoint {
        path: path.into(),
        problem,
    };
    let read = |name: &str| {
        let file = path.join(name);
        fs::read(&file).map_err(TrainError::io("read", file))
    };
    let state: StateFile<S> = serde_json::from_slice(&read(STATE)?)
        .and_then(|tree| serde_json::from_value(with_text_as_floats(tree)))
        .map_err(|e| damaged(format!("{STATE} is unreadable ({e})")))?;
    if state.version != VERSION {
        return Err(damaged(format!(
            "it has version {} and this program reads version {VERSION}",
            state.version
        )));
    }
    let checked = |name: &str, expected: &str| {
        let bytes = read(name)?;
        if hash(&bytes) == expected {
            Ok(bytes)
        } else {
            Err(damaged(format!("{name} does not have the hash in {STATE}")))
        }
    };
    let record = burn::tensor::Bytes::from_bytes_vec;
    let model = ModuleRecord::from_bytes(record(checked(MODEL, &state.model_sha256)?))
        .map_err(|e| damaged(format!("{MODEL} is unreadable ({e})")))?;
    let optimizer = match &state.optimizer_sha256 {
        None => None,
        Some(expected) => Some(
            OptimizerRecord::from_bytes(record(checked(OPTIMIZER, expected)?))
                .map_err(|e| damaged(format!("{OPTIMIZER} is unreadable ({e})")))?,
        ),
    };
    let arrays = match &state.arrays_sha256 {
        None => TensorFile::default(),
        Some(expected) => TensorFile::from_bytes(&checked(ARRAYS, expected)?, &path.join(ARRAYS))?,
    };
    Ok(Checkpoint {
        model,
        optimizer,
        arrays,
        state: state.state,
    })
}

/// Starts the text of a float in the state.
const FLOAT: &str = "f64:";

/// The tree with every float as text. The reader of serde_json is off by one bit for some floats,
/// and the log of a resumed run has to be that of an unbroken one.
fn with_floats_as_text(tree: Value) -> Value {
    map_leaves(tree, &|leaf| match leaf {
        Value::Number(number) if number.is_f64() => Value::String(format!("{FLOAT}{number}")),
        other => other,
    })
}

/// Undoes [`with_floats_as_text`]; a float that is a number stays one.
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

/// Names of the whole checkpoints of a folder, sorted.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.') && folder.join(name).join(STATE).is_file())
        .collect();
    names.sort();
    names
}

/// Removes checkpoints, and what a killed run left half written.
pub fn remove(folder: &Path, names: &[String]) {
    // What cannot be removed only takes space, so a failure is no reason to stop a run.
    for name in names {
        let _ = fs::remove_dir_all(folder.join(name));
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Writes a file of a run: temporary name, sync, rename.
///
/// # Errors
///
/// [`TrainError::Io`] when the file system refuses; an earlier file of that name is then intact.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = temporary_file()
        .tempfile_in(folder)
        .map_err(TrainError::io("create", path))?;
    file.write_all(bytes)
        .and_then(|()| file.as_file().sync_all())
        .map_err(TrainError::io("write", path))?;
    file.persist(path)
        .map_err(|e| TrainError::io("rename", path)(e.error))?;
    sync_folder(folder);
    Ok(())
}

/// Temporary files are private by default; what a run leaves is as readable as any other file.
fn temporary_file() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), TrainError> {
    let mut file = File::create(path).map_err(TrainError::io("create", path))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(TrainError::io("write", path))
}

/// Makes a rename durable. Not every file system can sync a folder; the rename is atomic anyway.
fn sync_folder(folder: &Path) {
    if let Ok(file) = File::open(folder) {
        let _ = file.sync_all();
    }
}

fn hash(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
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
        // The first is read as its neighbour by serde_json alone.
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
        let back = load::<([f64; 6], String, u64)>(&path).unwrap().state;
        assert_eq!(back.0.map(f64::to_bits), floats.map(f64::to_bits));
        assert_eq!((back.1, back.2), (state.1, state.2));
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
            error.contains("hash") && error.contains("remove it"),
            "{error}"
        );
        fs::write(path.join(STATE), "{").unwrap();
        assert!(load::<()>(&path).is_err());
    }

    #[test]
    fn what_a_killed_run_left_is_never_read_and_can_be_removed() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(format!("{TEMPORARY}x"))).unwrap();
        fs::write(
            folder.path().join(format!("{TEMPORARY}x")).join(STATE),
            "{}",
        )
        .unwrap();
        assert_eq!(latest(folder.path()), None);
        remove(folder.path(), &[]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
