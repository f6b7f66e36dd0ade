//! Named f32 tensors on their way to a safetensors file or back.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::tensor::Tensor;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sdlora_vit::{Vit, VitError, WeightDtype, with_sorted_header};

use crate::error::TrainError;
use crate::files::write_file;

/// Shape and row-major values of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// Length of every axis.
    pub shape: Vec<usize>,
    /// As many values as the shape says.
    pub values: Vec<f32>,
}

/// The f32 tensors of a safetensors file by name, and its metadata.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TensorFile {
    /// Tensors by name.
    pub tensors: BTreeMap<String, HostTensor>,
    /// Texts by key.
    pub metadata: BTreeMap<String, String>,
}

impl TensorFile {
    /// Adds a tensor, replacing one of the same name.
    pub fn push<const D: usize>(&mut self, name: impl Into<String>, tensor: Tensor<D>) {
        let shape = tensor.dims().to_vec();
        let values = tensor.into_data().iter::<f32>().collect();
        self.insert(name, shape, values);
    }

    /// Adds values of a shape, replacing a tensor of the same name.
    pub fn insert(&mut self, name: impl Into<String>, shape: Vec<usize>, values: Vec<f32>) {
        self.tensors
            .insert(name.into(), HostTensor { shape, values });
    }

    /// Reads a file; every tensor must be f32.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] for a file that cannot be read, [`VitError::Format`] for one that is cut
    /// off, [`TrainError::Export`] for other number formats.
    pub fn read(path: &Path) -> Result<Self, TrainError> {
        let bytes = std::fs::read(path).map_err(TrainError::io("read", path))?;
        Self::from_bytes(&bytes, path)
    }

    /// Reads the bytes of a file; `path` is for messages.
    pub(crate) fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self, TrainError> {
        let format = |source| VitError::Format {
            path: path.into(),
            source,
        };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(format)?;
        let file = SafeTensors::deserialize(bytes).map_err(format)?;
        let mut all = Self {
            metadata: header
                .metadata()
                .clone()
                .unwrap_or_default()
                .into_iter()
                .collect(),
            ..Self::default()
        };
        for (name, view) in file.tensors() {
            if view.dtype() != Dtype::F32 {
                return Err(TrainError::export(
                    path,
                    format!("`{name}` is {:?} where F32 is needed", view.dtype()),
                ));
            }
            let (values, _) = view.data().as_chunks();
            let values = values.iter().map(|&v| f32::from_le_bytes(v)).collect();
            all.insert(name, view.shape().to_vec(), values);
        }
        Ok(all)
    }

    /// Writes the file; an existing one is replaced only by a whole new one.
    ///
    /// # Errors
    ///
    /// [`TrainError::Io`] when the file system refuses.
    pub fn write(&self, path: &Path) -> Result<(), TrainError> {
        write_file(path, &self.to_bytes(path)?)
    }

    /// The bytes of the file; `path` is for messages.
    pub(crate) fn to_bytes(&self, path: &Path) -> Result<Vec<u8>, TrainError> {
        let format = |source| VitError::Format {
            path: path.into(),
            source,
        };
        let bytes: Vec<(&str, &HostTensor, Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(name, tensor)| {
                let bytes = tensor.values.iter().flat_map(|v| v.to_le_bytes()).collect();
                (name.as_str(), tensor, bytes)
            })
            .collect();
        let mut views = Vec::with_capacity(bytes.len());
        for (name, tensor, bytes) in &bytes {
            let view = TensorView::new(Dtype::F32, tensor.shape.clone(), bytes).map_err(format)?;
            views.push((*name, view));
        }
        // PyTorch programs refuse a file that does not say whose layout it has.
        let mut metadata: HashMap<String, String> = self.metadata.clone().into_iter().collect();
        metadata.insert("format".into(), "pt".into());
        let bytes = safetensors::serialize(views, Some(metadata)).map_err(format)?;
        Ok(with_sorted_header(bytes))
    }

    /// The tensor of that name with `D` axes.
    ///
    /// # Errors
    ///
    /// [`TrainError::Export`] when it is missing or has another number of axes.
    pub(crate) fn get<const D: usize>(
        &self,
        path: &Path,
        name: &str,
    ) -> Result<([usize; D], &[f32]), TrainError> {
        let found = self
            .tensors
            .get(name)
            .ok_or_else(|| TrainError::export(path, format!("it has no tensor `{name}`")))?;
        let shape = found.shape.as_slice().try_into().map_err(|_| {
            TrainError::export(path, format!("`{name}` is {:?}, not {D} axes", found.shape))
        })?;
        Ok((shape, &found.values))
    }
}

/// The parameters of a model with timm's names, on the host.
pub(super) fn named(vit: &Vit) -> Result<TensorFile, TrainError> {
    let bytes = vit.to_bytes(WeightDtype::F32, &BTreeMap::new())?;
    TensorFile::from_bytes(&bytes, Path::new("the backbone"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_files_have_equal_bytes() {
        let file = || {
            let mut file = TensorFile::default();
            for i in 0..8 {
                file.insert(format!("t{i}"), vec![1], vec![i as f32]);
                file.metadata.insert(format!("key {i}"), "value".into());
            }
            file
        };
        let path = Path::new("x");
        let first = file().to_bytes(path).unwrap();
        for _ in 0..20 {
            assert_eq!(file().to_bytes(path).unwrap(), first);
        }
        assert_eq!(
            TensorFile::from_bytes(&first, path).unwrap().tensors,
            file().tensors
        );
    }
}
