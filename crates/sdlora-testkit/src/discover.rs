//! Golden cases by what a file holds, not by what it is called.
//!
//! The folder that `SDLORA_GOLDEN` names may hold the files of somebody else under names of their own. A test asks for
//! the tensors or keys that it reads, gets every file that has them, and counts with [`Compared`]: one that compared
//! nothing fails and says so.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::golden::{Golden, golden_dir, nothing_of};

/// How many cases a test has compared. When it is dropped with none, the test fails.
#[derive(Debug)]
pub struct Compared {
    what: &'static str,
    cases: Vec<String>,
}

impl Compared {
    /// Of cases of that kind, in the plural, as a message names them.
    pub fn new(what: &'static str) -> Self {
        let cases = Vec::new();
        Self { what, cases }
    }

    /// One more, after its last comparison.
    pub fn add(&mut self, case: impl Into<String>) {
        self.cases.push(case.into());
    }
}

#[allow(
    clippy::print_stdout,
    reason = "a test shows what it compared where its output is asked for"
)]
impl Drop for Compared {
    fn drop(&mut self) {
        // A test that has failed already says why.
        if std::thread::panicking() {
            return;
        }
        let (n, what, dir) = (self.cases.len(), self.what, golden_dir());
        assert!(n > 0, "{}", nothing_of(what));
        println!(
            "compared {n} {what} of {}: {}",
            dir.display(),
            self.cases.join(", ")
        );
    }
}

/// Every safetensors file below the golden folder that has all these tensors, sorted by path.
///
/// # Panics
///
/// If a file whose name ends with `.safetensors` is none.
#[track_caller]
pub fn golden_with(tensors: &[&str]) -> Vec<Golden> {
    let files = below(&golden_dir(), "safetensors").into_iter();
    files
        .map(Golden::open)
        .filter(|golden| tensors.iter().all(|name| golden.has(name)))
        .collect()
}

/// Every JSON object below the golden folder that has all these keys, with its path, sorted by it.
///
/// # Panics
///
/// If a file whose name ends with `.json` holds no JSON.
#[track_caller]
pub fn golden_json_with(keys: &[&str]) -> Vec<(PathBuf, Value)> {
    let files = below(&golden_dir(), "json").into_iter();
    files
        .map(|path| {
            let text = std::fs::read_to_string(&path)
                .unwrap_or_else(|err| panic!("cannot read golden file {}: {err}", path.display()));
            let value: Value = serde_json::from_str(&text)
                .unwrap_or_else(|err| panic!("cannot parse {}: {err}", path.display()));
            (path, value)
        })
        .filter(|(_, value)| keys.iter().all(|key| value.get(key).is_some()))
        .collect()
}

/// All files below a folder whose name has this extension, sorted.
pub fn below(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Of files in the same folder as `path`, the one whose name shares the longest beginning with its name.
pub fn nearest<'a>(path: &Path, files: &'a [Golden]) -> Option<&'a Golden> {
    let n_shared = |file: &Golden| {
        let names =
            [path, file.path()].map(|p| p.file_name().unwrap_or_default().to_string_lossy());
        let pairs = names[0].chars().zip(names[1].chars());
        pairs.take_while(|(a, b)| a == b).count()
    };
    files
        .iter()
        .filter(|file| file.path().parent() == path.parent())
        .max_by_key(|file| n_shared(file))
}

/// What no tensor of a backbone tells.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Untold {
    /// Attention heads per block.
    pub n_heads: usize,
    /// Added to the variance inside every layer norm, where it is given.
    pub norm_eps: Option<f64>,
}

/// [`Untold`] of a backbone of that width, as a JSON configuration of transformers in the folder has it.
pub fn untold_of(d_model: usize, folder: &Path) -> Option<Untold> {
    let files = golden_json_with(&["hidden_size", "num_attention_heads"]).into_iter();
    files
        .filter(|(path, value)| {
            path.parent() == Some(folder) && value["hidden_size"].as_u64() == Some(d_model as u64)
        })
        .find_map(|(_, value)| {
            Some(Untold {
                n_heads: value["num_attention_heads"].as_u64()? as usize,
                norm_eps: value.get("layer_norm_eps").and_then(Value::as_f64),
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::GOLDEN_VAR;

    /// What the tests of this workspace look for: a safetensors file has all tensors of one of these lists.
    const TENSORS: &[&[&str]] = &[
        &["ranks", "alpha", "layer0.x", "layer0.qkv.weight"],
        &["losses", "init.task0.head_weight_new"],
        &["train_images", "train_labels", "eval_images", "eval_labels"],
        &["input", "embed", "norm"],
        &["input", "features"],
        &["input", "bicubic_features"],
        &["input", "logits"],
        &["cotangent"],
        // Weights, under the names of timm and of transformers, behind any prefix, and a head.
        &["patch_embed.proj.weight"],
        &["embeddings.patch_embeddings.projection.weight"],
        &["vit.embeddings.patch_embeddings.projection.weight"],
    ];
    /// And a JSON file all keys of one of these.
    const KEYS: &[&[&str]] = &[
        &["cases"],
        &["H", "c", "p0", "cases"],
        &["sites", "d_input", "d_output"],
        &["variants", "variant_sites"],
        &["width", "rank", "tasks"],
        &["penalised", "methods"],
        &["paths", "objectives"],
        &["shape", "images", "logits", "labels", "cases"],
        &["streams_of_features"],
        &["small_vit"],
        &["hidden_size", "num_attention_heads"],
        &["architecture"],
        &["image_processor_type"],
        &["size"],
    ];
    /// Folders whose files are read by name.
    const BY_NAME: &[&str] = &["containers", "export", "onnx", "transform"];

    #[test]
    fn every_file_of_the_folder_is_of_a_kind_that_some_test_reads() {
        let dir = golden_dir();
        let is_by_name = |path: &Path| {
            let inner = path.strip_prefix(&dir).unwrap_or(path);
            inner
                .iter()
                .next()
                .is_some_and(|first| BY_NAME.iter().any(|name| first == *name))
        };
        let mut unread = Vec::new();
        for path in below(&dir, "safetensors") {
            let golden = Golden::open(&path);
            let is_read = TENSORS
                .iter()
                .any(|list| list.iter().all(|name| golden.has(name)));
            if !is_read && !is_by_name(&path) {
                unread.push(format!("{} with {:?}", path.display(), golden.names()));
            }
        }
        for (path, value) in golden_json_with(&[]) {
            let is_read = KEYS
                .iter()
                .any(|list| list.iter().all(|key| value.get(key).is_some()));
            if !is_read && !is_by_name(&path) {
                unread.push(path.display().to_string());
            }
        }
        assert!(
            unread.is_empty(),
            "no test reads these, so their values are not compared: {unread:#?}"
        );
    }

    #[test]
    fn a_test_that_compared_nothing_fails_and_says_so() {
        let failed = std::panic::catch_unwind(|| drop(Compared::new("left shoes")));
        let message = failed.unwrap_err();
        let message = message.downcast_ref::<String>().unwrap();
        assert!(
            message.contains("compared nothing") && message.contains("left shoes"),
            "{message}"
        );
        let mut compared = Compared::new("left shoes");
        compared.add("one");
    }

    #[test]
    fn files_are_found_by_what_they_hold_also_in_folders_inside() {
        let layers = golden_with(&["ranks", "alpha", "layer0.x"]);
        let inside = golden_with(&["input", "features"]);
        assert!(layers.iter().all(|golden| golden.has("loss")));
        // Under a variable the folder may lack either.
        if std::env::var_os(GOLDEN_VAR).is_none() {
            assert_eq!(layers.len(), 5);
            assert!(inside.len() > 7, "{}", inside.len());
            assert_eq!(golden_json_with(&["H", "p0"]).len(), 1);
        }
        assert!(golden_with(&["no such tensor"]).is_empty());
        assert!(golden_json_with(&["no such key"]).is_empty());
    }
}
