//! The zip file that `torch.save` writes.

use crate::error::WeightsError;
use crate::place::Source;
use crate::weight_file::Entry;

/// Tensors of a PyTorch zip file.
pub(crate) fn read(source: &Source, _source_idx: usize) -> Result<Vec<Entry>, WeightsError> {
    Err(WeightsError::Unknown {
        path: source.path.clone(),
        problem: "is a PyTorch zip file: save it as safetensors".into(),
    })
}
