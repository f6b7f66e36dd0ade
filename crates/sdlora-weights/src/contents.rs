//! What one file holds, whatever its container.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use crate::container::{self, ContainerKind};
use crate::entry::Entry;
use crate::error::WeightsError;
use crate::place::Source;
use crate::{foreign, pytorch, safetensors};

/// What one file holds.
pub(crate) struct Contents {
    pub(crate) kind: ContainerKind,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) unbuilt: BTreeSet<String>,
    pub(crate) entries: Vec<Entry>,
}

impl Contents {
    /// Adds the tensors of another shard; of metadata that differ the first stays.
    pub(crate) fn append(&mut self, other: Self) {
        self.entries.extend(other.entries);
        self.unbuilt.extend(other.unbuilt);
        for (key, value) in other.metadata {
            self.metadata.entry(key).or_insert(value);
        }
    }

    pub(crate) fn read(source: &Source, source_idx: usize) -> Result<Self, WeightsError> {
        let mut head = Vec::new();
        source
            .open()?
            .take(container::HEAD as u64)
            .read_to_end(&mut head)
            .map_err(|e| source.io(e))?;
        let is_named_safetensors = source.path.extension().is_some_and(|e| e == "safetensors");
        let unknown = |problem| WeightsError::Unknown {
            path: source.path.clone(),
            problem,
        };
        // Before the container: a page or a text may have a brace where a header of safetensors starts.
        if let Some(problem) = foreign::certain(&head) {
            return Err(unknown(problem));
        }
        let kind = ContainerKind::of_head(&head);
        let mut contents = Self {
            kind: kind.unwrap_or(ContainerKind::Safetensors),
            metadata: BTreeMap::new(),
            unbuilt: BTreeSet::new(),
            entries: Vec::new(),
        };
        match kind {
            Some(ContainerKind::PyTorchZip) => {
                (contents.entries, contents.unbuilt) = pytorch::read(source, source_idx)?;
            }
            Some(ContainerKind::PyTorchLegacy) => {
                let is_pickle = head.first() == Some(&0x80);
                if let Some(problem) = (!is_pickle).then(|| foreign::tar(source)).flatten() {
                    return Err(unknown(problem));
                }
                return Err(WeightsError::Legacy {
                    path: source.path.clone(),
                });
            }
            None if !is_named_safetensors => {
                return Err(unknown(foreign::likely(&head, &source.path)));
            }
            _ => {
                (contents.entries, contents.metadata) = safetensors::read(source, source_idx)?;
            }
        }
        Ok(contents)
    }
}
