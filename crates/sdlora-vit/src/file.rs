//! stand-in
use std::path::Path;
use crate::error::VitError;
pub struct TensorInfo { pub name: String, pub dtype: safetensors::Dtype, pub shape: Vec<usize> }
pub struct WeightFile { tensors: Vec<TensorInfo>, bytes: Vec<u8>, metadata: std::collections::BTreeMap<String,String> }
impl WeightFile {
    pub fn open(path: &Path) -> Result<Self, VitError> {
        let path = if path.is_dir() { path.join("model.safetensors") } else { path.into() };
        let bytes = std::fs::read(&path).map_err(|source| VitError::Io { action: "read", path: path.clone(), source })?;
        let format = |source| VitError::Format { path: path.clone(), source };
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).map_err(format)?;
        let file = safetensors::SafeTensors::deserialize(&bytes).map_err(format)?;
        let tensors = file.tensors().into_iter().map(|(name, v)| TensorInfo { name, dtype: v.dtype(), shape: v.shape().to_vec() }).collect();
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Self { tensors, metadata, bytes })
    }
    pub fn tensors(&self) -> &[TensorInfo] { &self.tensors }
    pub fn metadata(&self) -> &std::collections::BTreeMap<String,String> { &self.metadata }
    pub fn kind(&self) -> &'static str { "safetensors" }
    pub fn read_f32(&self, name: &str) -> Result<Vec<f32>, VitError> {
        let file = safetensors::SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(name).unwrap();
        Ok(match view.dtype() {
            safetensors::Dtype::F16 => view.data().as_chunks().0.iter().map(|&c| half::f16::from_le_bytes(c).to_f32()).collect(),
            _ => view.data().as_chunks().0.iter().map(|&c| f32::from_le_bytes(c)).collect() })
    }
}
