//! One safetensors file with all that a prediction needs: every file of `model/`, the plan, and in the header what
//! people and other programs ask for.
//!
//! | in the file | what |
//! |---|---|
//! | tensors `vit/…`, `head/…` and so on | those of `vit.safetensors`, `head.safetensors` and every other one of the folder |
//! | key `files` | each file of the folder: its SHA-256, and its text or the metadata of its tensors |
//! | key `plan` | the settings of the run, as `plan.toml` has them |
//! | keys `classes`, `transform`, `head`, `method`, `data`, `licence`, `history` | the same in parts, for others |
//! | keys `sdlora.bundle`, `sdlora.version` | versions of this format and of the program |
//!
//! A file of the folder comes back with the bytes it had, whatever later versions put there.

use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sdlora_vit::{VitError, with_sorted_header};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::FinishedRun;
use super::history::{History, licence};
use crate::error::TrainError;
use crate::files::sums::sha256;
use crate::files::{Scratch, create_folder, write_file};
use crate::run_folder::PLAN_FILE;

/// Raised when older programs would misread a file.
const VERSION: &str = "1";
const VERSION_KEY: &str = "sdlora.bundle";
const FILES_KEY: &str = "files";
const PLAN_KEY: &str = "plan";

/// Ending of files that hold tensors.
const TENSORS: &str = ".safetensors";

/// What stands in the header of a file of the folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Entry {
    /// SHA-256 of its bytes, in hexadecimal.
    sha256: String,
    #[serde(flatten)]
    contents: Contents,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Contents {
    /// Its text.
    Text(String),
    /// Its tensors are those of the bundle whose names start with its own, without the ending, and a slash; these are
    /// the metadata.
    Tensors(BTreeMap<String, String>),
    /// Its bytes are the tensor of its name.
    Bytes {},
}

/// A tensor under its name in the bundle.
type Named = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// The bytes of the bundle of a run.
///
/// # Errors
///
/// [`TrainError::Io`] for files that cannot be read, and those of damaged ones.
pub(super) fn file(run: &FinishedRun, out: &Path) -> Result<Vec<u8>, TrainError> {
    let folder = run.folder.join("model");
    let (mut tensors, mut files) = (Named::new(), BTreeMap::new());
    for (name, bytes) in contents(&folder)? {
        let entry = Entry {
            sha256: sha256(&bytes),
            contents: packed(&name, bytes, &mut tensors),
        };
        files.insert(name, entry);
    }
    let plan = run.folder.join(PLAN_FILE);
    let plan = std::fs::read_to_string(&plan).map_err(TrainError::io("read", &plan))?;
    let history = History::read(&run.folder);
    let json = |value: serde_json::Value| value.to_string();
    let head = run
        .config
        .head
        .as_ref()
        .map_or("", |head| head.name.as_str());
    let metadata = [
        (VERSION_KEY, VERSION.to_owned()),
        ("sdlora.version", env!("CARGO_PKG_VERSION").to_owned()),
        (FILES_KEY, json(json!(files))),
        (PLAN_KEY, plan),
        ("classes", json(json!(run.class_names))),
        (
            "transform",
            json(json!(run.config.transform.for_evaluation())),
        ),
        ("head", head.to_owned()),
        ("method", run.config.method.name.clone()),
        ("data", run.config.dataset.clone()),
        ("licence", licence(run)),
        ("history", json(history.to_json(&run.class_names))),
    ];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value));
    bytes(&tensors, metadata.into(), out)
}

/// Name and bytes of every file of a folder.
fn contents(folder: &Path) -> Result<Vec<(String, Vec<u8>)>, TrainError> {
    let mut files = Vec::new();
    let read = |path: &Path| std::fs::read(path).map_err(TrainError::io("read", path));
    for entry in std::fs::read_dir(folder).map_err(TrainError::io("read", folder))? {
        let entry = entry.map_err(TrainError::io("read", folder))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // What starts with a point is under construction, or the system's.
        if entry.path().is_file() && !name.starts_with('.') {
            files.push((name, read(&entry.path())?));
        }
    }
    files.sort();
    Ok(files)
}

/// What the header says of a file; its tensors are added to those of the bundle.
fn packed(name: &str, bytes: Vec<u8>, tensors: &mut Named) -> Contents {
    if let Some(stem) = name.strip_suffix(TENSORS)
        && let Some((found, metadata)) = parts(&bytes, stem)
        // A file that would come back with other bytes is kept as it is.
        && unpacked_tensors(&found, stem, &metadata).is_ok_and(|back| back == bytes)
    {
        tensors.extend(found);
        return Contents::Tensors(metadata);
    }
    match String::from_utf8(bytes) {
        Ok(text) => Contents::Text(text),
        Err(error) => {
            let bytes = error.into_bytes();
            tensors.insert(name.to_owned(), (Dtype::U8, vec![bytes.len()], bytes));
            Contents::Bytes {}
        }
    }
}

/// Tensors and metadata of the bytes of a safetensors file.
fn parts(bytes: &[u8], stem: &str) -> Option<(Named, BTreeMap<String, String>)> {
    let (_, header) = SafeTensors::read_metadata(bytes).ok()?;
    let file = SafeTensors::deserialize(bytes).ok()?;
    let tensors = file.tensors().into_iter().map(|(name, view)| {
        let tensor = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
        (format!("{stem}/{name}"), tensor)
    });
    let metadata = header.metadata().clone().unwrap_or_default();
    Some((tensors.collect(), metadata.into_iter().collect()))
}

/// The bytes of a safetensors file again.
fn unpacked_tensors(
    tensors: &Named,
    stem: &str,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, TrainError> {
    let own = tensors.iter().filter_map(|(name, tensor)| {
        let name = name.strip_prefix(stem)?.strip_prefix('/')?;
        Some((name.to_owned(), tensor.clone()))
    });
    bytes(&own.collect(), metadata.clone(), Path::new(stem))
}

fn bytes(
    tensors: &Named,
    metadata: BTreeMap<String, String>,
    path: &Path,
) -> Result<Vec<u8>, TrainError> {
    let format = |source| VitError::Format {
        path: path.into(),
        source,
    };
    let mut views = Vec::with_capacity(tensors.len());
    for (name, (dtype, shape, bytes)) in tensors {
        let view = TensorView::new(*dtype, shape.clone(), bytes).map_err(format)?;
        views.push((name.as_str(), view));
    }
    let metadata: HashMap<String, String> = metadata.into_iter().collect();
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(format)?;
    Ok(with_sorted_header(bytes))
}

/// A bundle as the folder of a run: the plan, and `model/` with the files it had. It is gone when this is dropped.
#[derive(Debug)]
pub struct UnpackedBundle {
    folder: Scratch,
}

impl UnpackedBundle {
    /// Unpacks a file below the folder for temporary files.
    ///
    /// # Errors
    ///
    /// [`TrainError::Export`] for a file that is no bundle of this version, or whose parts do not have the sums that
    /// its header says, [`TrainError::Io`] when the file system refuses.
    pub fn open(file: &Path) -> Result<Self, TrainError> {
        let refuse = |problem: String| TrainError::export(file, problem);
        let damaged = |problem: String| refuse(format!("{problem}: export the run again"));
        let all = std::fs::read(file).map_err(TrainError::io("read", file))?;
        let no_bundle =
            "it is no bundle, the one file that an export in the format `bundle` writes";
        let (_, header) =
            SafeTensors::read_metadata(&all).map_err(|e| refuse(format!("{no_bundle} ({e})")))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        match metadata.get(VERSION_KEY).map(String::as_str) {
            Some(VERSION) => {}
            None => return Err(refuse(no_bundle.to_owned())),
            Some(other) => {
                return Err(refuse(format!(
                    "it is a bundle of version {other}, and this program reads version {VERSION}: use the program \
                     that wrote it"
                )));
            }
        }
        let text = |key: &str| {
            let text = metadata.get(key).map(String::as_str);
            text.ok_or_else(|| damaged(format!("its header has no `{key}`")))
        };
        let files: BTreeMap<String, Entry> = serde_json::from_str(text(FILES_KEY)?)
            .map_err(|e| damaged(format!("its list of files is unreadable ({e})")))?;
        let format = |source| VitError::Format {
            path: file.into(),
            source,
        };
        let tensors: Named = SafeTensors::deserialize(&all)
            .map_err(format)?
            .tensors()
            .into_iter()
            .map(|(name, view)| {
                let tensor = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
                (name, tensor)
            })
            .collect();
        drop(all);

        let mut unpacked = Vec::with_capacity(files.len());
        for (
            name,
            Entry {
                sha256: sum,
                contents,
            },
        ) in files
        {
            let mut components = Path::new(&name).components();
            if !matches!(
                (components.next(), components.next()),
                (Some(Component::Normal(_)), None)
            ) {
                return Err(damaged(format!(
                    "its list of files names {name:?}, which is no name of a file"
                )));
            }
            let bytes = match contents {
                Contents::Text(text) => text.into_bytes(),
                Contents::Tensors(metadata) => {
                    let stem = name.strip_suffix(TENSORS).unwrap_or(&name);
                    unpacked_tensors(&tensors, stem, &metadata)?
                }
                Contents::Bytes {} => match tensors.get(&name) {
                    Some((_, _, bytes)) => bytes.clone(),
                    None => return Err(damaged(format!("it has no {name}"))),
                },
            };
            if sha256(&bytes) != sum {
                return Err(damaged(format!(
                    "{name} in it does not have the hash that its header says"
                )));
            }
            unpacked.push((name, bytes));
        }
        let folder = Scratch::new()?;
        write_file(&folder.path().join(PLAN_FILE), text(PLAN_KEY)?.as_bytes())?;
        let model = folder.path().join("model");
        create_folder(&model)?;
        for (name, bytes) in unpacked {
            write_file(&model.join(name), &bytes)?;
        }
        Ok(Self { folder })
    }

    /// What takes the place of the folder of a run.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_tensors_comes_back_bit_for_bit_and_others_too() {
        let tensors: Named = [
            (
                "b".to_owned(),
                (Dtype::F32, vec![1, 2], vec![1, 2, 3, 4, 5, 6, 7, 8]),
            ),
            ("a".to_owned(), (Dtype::F64, vec![1], vec![9; 8])),
        ]
        .into();
        let metadata: BTreeMap<String, String> = [("key".to_owned(), "value".to_owned())].into();
        let file = bytes(&tensors, metadata.clone(), Path::new("x")).unwrap();
        let mut packed_tensors = Named::new();
        let contents = packed("novelty.safetensors", file.clone(), &mut packed_tensors);
        assert_eq!(contents, Contents::Tensors(metadata.clone()));
        assert_eq!(
            packed_tensors.keys().collect::<Vec<_>>(),
            ["novelty/a", "novelty/b"]
        );
        let back = unpacked_tensors(&packed_tensors, "novelty", &metadata).unwrap();
        assert_eq!(back, file);

        let text = packed("classes.json", b"[\"oak\"]".to_vec(), &mut packed_tensors);
        assert_eq!(text, Contents::Text("[\"oak\"]".into()));
        // Neither a text nor tensors: its bytes are a tensor of the bundle.
        let raw = packed("thumbnail.png", vec![0x89, 0xff, 0], &mut packed_tensors);
        assert_eq!(raw, Contents::Bytes {});
        assert_eq!(packed_tensors["thumbnail.png"].2, [0x89, 0xff, 0]);
    }
}
