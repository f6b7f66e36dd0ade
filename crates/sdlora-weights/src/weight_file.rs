//! Weights on disk: opened once, then read tensor by tensor.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::container::{self, ContainerKind};
use crate::contents::Contents;
use crate::error::WeightsError;
use crate::place::{Place, Source};
use crate::tensor::{Dtype, TensorInfo};
use crate::{prefix, sharded};

/// A checkpoint: its tensors by name, read from disk one at a time.
#[derive(Debug)]
pub struct WeightFile {
    path: PathBuf,
    kind: ContainerKind,
    metadata: BTreeMap<String, String>,
    unbuilt: BTreeSet<String>,
    sources: Vec<Source>,
    /// Sorted by name, as `infos`.
    entries: Vec<(usize, Place)>,
    infos: Vec<TensorInfo>,
    n_bytes: u64,
}

impl WeightFile {
    /// Opens a file, the index of a sharded checkpoint, or a folder.
    ///
    /// In a folder it takes the first there is of `model.safetensors.index.json`, `model.safetensors`,
    /// `pytorch_model.bin.index.json`, `pytorch_model.bin`, else the only `*.safetensors`, else the only one of
    /// `*.pth`, `*.pt` and `*.bin`. What a file is follows from its first bytes, whatever its name.
    /// Names, shapes and places are read and checked here; the numbers stay on disk.
    ///
    /// # Errors
    ///
    /// [`WeightsError`] names the file, the tensor where there is one, what is wrong and what to do next.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let path = if path.is_dir() {
            container::file_in(path)?
        } else {
            path.to_owned()
        };
        if path.extension().is_some_and(|e| e == "json") {
            let (sources, contents) = sharded::read(&path)?;
            return Self::new(path, sources, contents);
        }
        Self::of_source(Source::file(&path))
    }

    /// The same for a single file that is already in memory; `name` stands for its path in messages.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn from_bytes(name: impl AsRef<Path>, bytes: Vec<u8>) -> Result<Self, WeightsError> {
        Self::of_source(Source::memory(name.as_ref(), bytes))
    }

    fn of_source(source: Source) -> Result<Self, WeightsError> {
        let contents = Contents::read(&source, 0)?;
        Self::new(source.path.clone(), vec![source], contents)
    }

    /// Puts the parts together.
    fn new(
        path: PathBuf,
        sources: Vec<Source>,
        mut contents: Contents,
    ) -> Result<Self, WeightsError> {
        contents
            .entries
            .sort_by(|a, b| a.info.name.cmp(&b.info.name));
        let mut pairs = contents.entries.windows(2);
        if let Some(pair) = pairs.find(|pair| pair[0].info.name == pair[1].info.name) {
            return Err(WeightsError::Tensor {
                path,
                name: pair[0].info.name.clone(),
                problem: "is there twice, so which one is meant is open".into(),
            });
        }
        let n_bytes = contents.entries.iter().fold(0, |n: u64, entry| {
            // Views of one storage may claim it again and again.
            n.saturating_add(entry.n_bytes)
        });
        let (infos, entries) = contents
            .entries
            .into_iter()
            .map(|entry| (entry.info, (entry.source_idx, entry.place)))
            .unzip();
        Ok(Self {
            path,
            kind: contents.kind,
            metadata: contents.metadata,
            unbuilt: contents.unbuilt,
            sources,
            entries,
            infos,
            n_bytes,
        })
    }

    /// The file that was opened: of a folder, the one chosen in it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The container.
    pub fn kind(&self) -> ContainerKind {
        self.kind
    }

    /// `__metadata__` of a safetensors file; empty for other containers.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// All tensors, sorted by name, prefixes kept as in the file.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.infos
    }

    /// The tensor `name`.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.position(name).map(|idx| &self.infos[idx])
    }

    /// Python classes and functions (`module.name`, sorted) that a pickle asked to build or call and this crate did
    /// not: what they would have made is not among the tensors. Empty for safetensors.
    pub fn unbuilt(&self) -> &BTreeSet<String> {
        &self.unbuilt
    }

    /// What stands before the model's own names: `""`, `"model."`, `"teacher.backbone."`, ...
    ///
    /// Training programs wrap a model in dictionaries and modules; this peels off the known wrappers one after the
    /// other (`state_dict`, `model`, `module`, `backbone`, ...) and takes the averaged model where there are two
    /// (`teacher` before `student`). Tensors outside it, an optimizer's for instance, are listed all the same.
    pub fn state_prefix(&self) -> &str {
        prefix::state_prefix(&self.infos)
    }

    /// Bytes that the numbers of all tensors take in the file.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Reads one tensor from disk: row-major, without gaps, `shape` product numbers. Formats of 16 bits widen exactly,
    /// 64 bits are rounded.
    ///
    /// # Errors
    ///
    /// [`WeightsError::NoSuchTensor`], [`WeightsError::NotFloat`] for integers and the like,
    /// [`WeightsError::Io`] when the file has changed or cannot be read any more.
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let idx = self
            .position(name)
            .ok_or_else(|| WeightsError::NoSuchTensor {
                path: self.path.clone(),
                name: name.into(),
                n_tensors: self.infos.len(),
            })?;
        let (info, (source_idx, place)) = (&self.infos[idx], &self.entries[idx]);
        if matches!(info.dtype, Dtype::Other(_)) {
            return Err(WeightsError::NotFloat {
                path: self.path.clone(),
                name: name.into(),
                dtype: info.dtype.clone(),
            });
        }
        place.read_f32(&self.sources[*source_idx], info)
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.infos
            .binary_search_by(|info| info.name.as_str().cmp(name))
            .ok()
    }
}
