//! One tensor of a file, as its reader lists it.

use crate::place::Place;
use crate::tensor::TensorInfo;

/// A tensor and where it lies.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) info: TensorInfo,
    /// Position of its file among the files of the checkpoint.
    pub(crate) source_idx: usize,
    /// Bytes of its numbers, each counted once.
    pub(crate) n_bytes: u64,
    pub(crate) place: Place,
}
