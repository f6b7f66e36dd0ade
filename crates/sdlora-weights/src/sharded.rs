//! A checkpoint in several files and the index that says which tensor lies in which.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::container::{ContainerKind, HEAD};
use crate::contents::Contents;
use crate::error::WeightsError;
use crate::foreign;
use crate::place::Source;

/// An index of 100,000 tensors has about 10 MB.
const MAX_INDEX: u64 = 32 << 20;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The shards of an index and the tensors the index names.
pub(crate) fn read(path: &Path) -> Result<(Vec<Source>, Contents), WeightsError> {
    let refuse = |problem: String| WeightsError::Index {
        path: path.into(),
        problem,
    };
    let index = Source::file(path);
    let mut bytes = Vec::new();
    index
        .open()?
        .take(MAX_INDEX + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| index.io(e))?;
    if bytes.len() as u64 > MAX_INDEX {
        return Err(refuse(format!("it has more than {MAX_INDEX} bytes")));
    }
    let is_index = bytes.windows(12).any(|part| part == b"\"weight_map\"");
    let index: Index = serde_json::from_slice(&bytes).map_err(|e| {
        let head = &bytes[..bytes.len().min(HEAD)];
        match foreign::certain(head) {
            _ if is_index => refuse(format!("it is not the JSON it should be: {e}")),
            _ if e.is_data() => refuse(
                "it is JSON without a `weight_map`, so no index; give the folder or the weights"
                    .into(),
            ),
            Some(problem) => WeightsError::Unknown {
                path: path.into(),
                problem,
            },
            None => refuse(format!("it is not the JSON it should be: {e}")),
        }
    })?;
    if index.weight_map.is_empty() {
        return Err(refuse("it names no tensor".into()));
    }

    let files: BTreeSet<&str> = index.weight_map.values().map(String::as_str).collect();
    let mut sources = Vec::new();
    let mut all: Option<Contents> = None;
    for file in files {
        let shard = shard_path(path, file)
            .ok_or_else(|| refuse(format!("its shard `{file}` is not a file beside it")))?;
        if !shard.is_file() {
            return Err(refuse(format!("its shard `{file}` is missing")));
        }
        let source = Source::file(&shard);
        let mut contents = Contents::read(&source, sources.len())?;
        sources.push(source);
        // The index decides: a shard may hold more, a copy of a tied weight for instance.
        let wanted = |name: &str| index.weight_map.get(name).is_some_and(|f| f == file);
        contents.entries.retain(|entry| wanted(&entry.info.name));
        match &mut all {
            None => all = Some(contents),
            Some(all) => all.append(contents),
        }
    }
    let mut all = all.ok_or_else(|| refuse("it names no shard".into()))?;
    let found: BTreeSet<&str> = all.entries.iter().map(|e| e.info.name.as_str()).collect();
    let lost = index
        .weight_map
        .iter()
        .find(|(n, _)| !found.contains(n.as_str()));
    if let Some((name, file)) = lost {
        return Err(refuse(format!("its shard `{file}` lacks tensor `{name}`")));
    }
    if all.kind == ContainerKind::Safetensors {
        all.kind = ContainerKind::ShardedSafetensors;
    }
    Ok((sources, all))
}

/// A shard lies beside its index or in a folder below; anything else would read files the checkpoint does not own.
fn shard_path(index: &Path, file: &str) -> Option<PathBuf> {
    let relative = Path::new(file);
    let is_below = relative
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    // Backslash and colon are ordinary on Unix and are not on Windows; no published shard has one.
    let is_portable = !file.contains(['\\', ':', '\0']);
    let folder = index.parent().unwrap_or(Path::new(""));
    (is_below && is_portable && !file.is_empty()).then(|| folder.join(relative))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::{ContainerKind, WeightFile};

    /// A shard with one tensor of one number.
    fn shard(folder: &Path, file: &str, tensor: &str, number: f32) {
        let header =
            format!(r#"{{"{tensor}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(number.to_le_bytes());
        std::fs::write(folder.join(file), bytes).unwrap();
    }

    fn index(folder: &Path, map: &str) {
        let text = format!(r#"{{"metadata":{{"total_size":8}},"weight_map":{{{map}}}}}"#);
        std::fs::write(folder.join("model.safetensors.index.json"), text).unwrap();
    }

    #[test]
    fn shards_are_read_as_one_and_by_their_folder() {
        let folder = tempfile::tempdir().unwrap();
        shard(folder.path(), "1.safetensors", "b", 1.0);
        shard(folder.path(), "2.safetensors", "a", 2.0);
        index(folder.path(), r#""b":"1.safetensors","a":"2.safetensors""#);
        let file = WeightFile::open(folder.path()).unwrap();
        assert_eq!(file.kind(), ContainerKind::ShardedSafetensors);
        let names: Vec<_> = file.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(file.read_f32("a").unwrap(), [2.0]);
        assert_eq!(file.read_f32("b").unwrap(), [1.0]);
        assert_eq!(file.n_bytes(), 8);
    }

    #[test]
    fn shards_of_pytorch_are_read_as_well() {
        let golden = sdlora_testkit::repository_dir().join("containers");
        let folder = tempfile::tempdir().unwrap();
        for (shard, name) in [("1.bin", "state_dict.pth"), ("2.bin", "parameter.pth")] {
            std::fs::copy(golden.join(name), folder.path().join(shard)).unwrap();
        }
        let map = r#"{"weight_map":{"0.weight":"1.bin","weight":"2.bin","frozen":"2.bin"}}"#;
        std::fs::write(folder.path().join("pytorch_model.bin.index.json"), map).unwrap();
        let file = WeightFile::open(folder.path()).unwrap();
        assert_eq!(file.kind(), ContainerKind::PyTorchZip);
        // The first shard holds more than the index gives it.
        let names: Vec<_> = file.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["0.weight", "frozen", "weight"]);
        assert_eq!(file.read_f32("frozen").unwrap(), [0.0, 0.25]);
    }

    #[test]
    fn an_index_that_lies_or_leaves_its_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        std::fs::create_dir(&inner).unwrap();
        shard(folder.path(), "outside.safetensors", "a", 1.0);
        shard(&inner, "1.safetensors", "a", 1.0);
        let outside = folder.path().join("outside.safetensors");
        let absolute = format!(r#""a":"{}""#, outside.display());
        for (map, expected) in [
            (r#""a":"2.safetensors""#, "`2.safetensors` is missing"),
            (r#""b":"1.safetensors""#, "lacks tensor `b`"),
            (r#""a":"../outside.safetensors""#, "not a file beside it"),
            (
                r#""a":"x/../../outside.safetensors""#,
                "not a file beside it",
            ),
            (absolute.as_str(), "not a file beside it"),
            (r#""a":"""#, "not a file beside it"),
            ("", "names no tensor"),
            (r#""a":1"#, "JSON"),
        ] {
            index(&inner, map);
            let message = WeightFile::open(&inner).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        for (text, expected) in [
            ("<!DOCTYPE html>", "web page"),
            ("version https://git-lfs.github.com/spec/v1", "git lfs pull"),
            (r#"{"model_type":"vit"}"#, "give the folder"),
        ] {
            std::fs::write(inner.join("model.safetensors.index.json"), text).unwrap();
            let message = WeightFile::open(&inner).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
