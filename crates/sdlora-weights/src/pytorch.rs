//! The zip file that `torch.save` writes: a pickle `data.pkl`, and the numbers of every storage in a member of its own.

mod build;
mod flatten;
mod value;

use std::collections::{BTreeSet, HashMap};
use std::io::Read;

use sdlora_pickle::{Pickle, PickleError, Value};
use zip::{CompressionMethod, ZipArchive};

use crate::entry::Entry;
use crate::error::WeightsError;
use crate::foreign;
use crate::place::{Place, ReadSeek, Run, Source};
use crate::tensor::{TensorInfo, n_elements};
use build::Torch;
use value::View;

/// The pickle of ViT-L has 53,000 bytes, 122,000 with the state of AdamW beside it (timm, 296 tensors, torch 2.15).
const MAX_PICKLE: u64 = 32 << 20;
/// A compressed member may grow by this factor, beyond the first [`SMALL`] bytes. The shipped backbone shrinks by 8 %.
const MAX_RATIO: u64 = 64;
const SMALL: u64 = 16 << 20;

/// Names, shapes and places of a file's tensors, unsorted, and what its pickle asked to build in vain.
pub(crate) fn read(
    source: &Source,
    source_idx: usize,
) -> Result<(Vec<Entry>, BTreeSet<String>), WeightsError> {
    let mut archive = Archive::open(source)?;
    archive.check_byte_order()?;
    archive.refuse_torchscript()?;
    let member = format!("{}data.pkl", archive.prefix);
    let bytes = archive.small_member(&member, MAX_PICKLE)?;
    let refuse = |PickleError { offset, problem }| WeightsError::Pickle {
        path: source.path.clone(),
        offset,
        problem,
    };
    let mut torch = Torch::default();
    let pickle = Pickle::read(&bytes, &mut torch).map_err(refuse)?;
    let tensors = flatten::flatten(&pickle).map_err(|problem| {
        refuse(PickleError {
            offset: bytes.len(),
            problem,
        })
    })?;
    if tensors.is_empty() {
        let problem = match pickle.values.get(pickle.top) {
            Value::Unbuilt(class) => format!(
                "it is an object `{}` saved whole; load it where its class is defined and save `model.state_dict()`",
                pickle.values.global_name(*class)
            ),
            _ => "save `model.state_dict()` into it".into(),
        };
        return Err(WeightsError::NoTensors {
            path: source.path.clone(),
            problem,
        });
    }
    let mut entries = Vec::with_capacity(tensors.len());
    for (name, view) in tensors {
        entries.push(archive.entry(name, view, source_idx)?);
    }
    Ok((entries, torch.unbuilt))
}

struct Archive<'a> {
    source: &'a Source,
    zip: ZipArchive<Box<dyn ReadSeek>>,
    n_file: u64,
    /// What precedes `data.pkl`: the name of the folder everything lies in, with its slash.
    prefix: String,
    /// Storages met so far, with their length in bytes.
    storages: HashMap<String, (Run, u64)>,
}

impl<'a> Archive<'a> {
    fn open(source: &'a Source) -> Result<Self, WeightsError> {
        let zip = ZipArchive::new(source.open()?).map_err(|e| WeightsError::Zip {
            path: source.path.clone(),
            member: "*".into(),
            source: e,
        })?;
        let prefixes: Vec<&str> = zip
            .file_names_raw()
            .filter_map(|name| std::str::from_utf8(name).ok()?.strip_suffix("data.pkl"))
            .filter(|prefix| prefix.is_empty() || prefix.find('/') == Some(prefix.len() - 1))
            .take(2)
            .collect();
        match prefixes.as_slice() {
            &[prefix] => Ok(Self {
                source,
                n_file: source.len()?,
                prefix: prefix.into(),
                zip,
                storages: HashMap::new(),
            }),
            [] => {
                let names = zip.file_names_raw();
                let names: Vec<&str> = names
                    .filter_map(|name| std::str::from_utf8(name).ok())
                    .collect();
                Err(WeightsError::Unknown {
                    path: source.path.clone(),
                    problem: foreign::zip_without_pickle(&names),
                })
            }
            _ => Err(WeightsError::Member {
                path: source.path.clone(),
                member: "data.pkl".into(),
                problem: "it is there twice".into(),
            }),
        }
    }

    /// A compiled module keeps its code beside the pickle; its tensors have no names of a state dict.
    fn refuse_torchscript(&self) -> Result<(), WeightsError> {
        let constants = format!("{}constants.pkl", self.prefix);
        if self.zip.index_for_name(&constants).is_none() {
            return Ok(());
        }
        Err(WeightsError::Unknown {
            path: self.source.path.clone(),
            problem: "is a TorchScript module: load it with `torch.jit.load(FILE, map_location='cpu')` and save \
                      `module.state_dict()` as safetensors"
                .into(),
        })
    }

    /// Older files do not say and are taken as little-endian.
    fn check_byte_order(&mut self) -> Result<(), WeightsError> {
        let member = format!("{}byteorder", self.prefix);
        if self.zip.index_for_name(&member).is_none() {
            return Ok(());
        }
        let bytes = self.small_member(&member, 16)?;
        if bytes.trim_ascii() == b"little" {
            return Ok(());
        }
        Err(WeightsError::ByteOrder {
            path: self.source.path.clone(),
            byteorder: String::from_utf8_lossy(&bytes).into_owned(),
        })
    }

    /// Unpacks a member of at most `limit` bytes, whatever the directory says of its size.
    fn small_member(&mut self, member: &str, limit: u64) -> Result<Vec<u8>, WeightsError> {
        let path = &self.source.path;
        let zip_error = |source| WeightsError::Zip {
            path: path.clone(),
            member: member.into(),
            source,
        };
        let mut bytes = Vec::new();
        let n_read = self
            .zip
            .by_name(member)
            .map_err(zip_error)?
            .take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| zip_error(zip::result::ZipError::Io(e)))?;
        if n_read as u64 > limit {
            return Err(WeightsError::Member {
                path: path.clone(),
                member: member.into(),
                problem: format!("it unpacks to more than {limit} bytes"),
            });
        }
        Ok(bytes)
    }

    /// Checks a tensor against the storage it views.
    fn entry(
        &mut self,
        name: String,
        view: &View,
        source_idx: usize,
    ) -> Result<Entry, WeightsError> {
        let (run, n_stored) = self.storage(&view.storage.key)?;
        let refuse = |problem: String| WeightsError::Tensor {
            path: self.source.path.clone(),
            name: name.clone(),
            problem,
        };
        let size = view.dtype.n_bytes().unwrap_or(1);
        let unit = view.storage.dtype.as_ref().and_then(|d| d.n_bytes());
        let n_claimed = view.storage.n_elements.checked_mul(unit.unwrap_or(1));
        let Some(n_claimed) = n_claimed.filter(|&n| n <= n_stored) else {
            return Err(refuse(format!(
                "lies in storage `{}` of {} numbers, of which the file has {n_stored} bytes: it is cut off",
                view.storage.key, view.storage.n_elements
            )));
        };
        let n = n_elements(&view.shape);
        let end = n
            .and_then(|_| end_of(view))
            .and_then(|n| n.checked_mul(size));
        let (Some(n), Some(_)) = (n, end.filter(|&end| end <= n_claimed)) else {
            return Err(refuse(format!(
                "has shape {:?}, strides {:?} and offset {}, which leave its storage of {n_claimed} bytes",
                view.shape, view.strides, view.offset
            )));
        };
        let shape = view.shape.iter().map(|&extent| extent as usize);
        Ok(Entry {
            info: TensorInfo {
                dtype: view.dtype.clone(),
                shape: shape.collect(),
                name,
            },
            source_idx,
            n_bytes: n.saturating_mul(size),
            place: Place {
                run,
                offset: if n == 0 { 0 } else { view.offset * size },
                strides: (!is_row_major(view)).then(|| view.strides.clone()),
            },
        })
    }

    /// Where the storage `key` lies and how many bytes it has.
    fn storage(&mut self, key: &str) -> Result<(Run, u64), WeightsError> {
        if let Some(found) = self.storages.get(key) {
            return Ok(found.clone());
        }
        let member = format!("{}data/{key}", self.prefix);
        let refuse = |problem: &str| WeightsError::Member {
            path: self.source.path.clone(),
            member: member.clone(),
            problem: problem.into(),
        };
        let member_idx = self
            .zip
            .index_for_name(&member)
            .ok_or_else(|| refuse("it is missing, yet a tensor lies in it"))?;
        let file = self
            .zip
            .by_index_raw(member_idx)
            .map_err(|source| WeightsError::Zip {
                path: self.source.path.clone(),
                member: member.clone(),
                source,
            })?;
        let (n_bytes, n_packed) = (file.size(), file.compressed_size());
        if file.encrypted() {
            return Err(refuse("it is encrypted"));
        }
        let run = if file.compression() == CompressionMethod::Stored {
            let start = file.data_start().filter(|start| {
                start
                    .checked_add(n_bytes)
                    .is_some_and(|end| end <= self.n_file)
            });
            Run::Plain {
                start: start.ok_or_else(|| refuse("it reaches beyond the end of the file"))?,
            }
        } else {
            if n_bytes > n_packed.saturating_mul(MAX_RATIO).saturating_add(SMALL) {
                return Err(refuse("it claims to unpack to far more than weights would"));
            }
            Run::Packed {
                member_idx,
                member: member.clone(),
            }
        };
        self.storages.insert(key.into(), (run.clone(), n_bytes));
        Ok((run, n_bytes))
    }
}

/// One past the last number a view reaches, `None` on overflow.
fn end_of(view: &View) -> Option<u64> {
    if view.shape.contains(&0) {
        return Some(0);
    }
    let mut last = view.offset;
    for (&extent, &stride) in view.shape.iter().zip(&view.strides) {
        last = last.checked_add((extent - 1).checked_mul(stride)?)?;
    }
    last.checked_add(1)
}

/// Whether the numbers lie one after the other; the stride of an axis of extent 1 does not matter.
fn is_row_major(view: &View) -> bool {
    let mut expected = 1;
    for (&extent, &stride) in view.shape.iter().zip(&view.strides).rev() {
        if extent != 1 && stride != expected {
            return false;
        }
        expected = extent.saturating_mul(expected);
    }
    true
}
