//! Which samples make which batch of one epoch.

/// Which samples make which batch of one epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochPlan {
    epoch_idx: usize,
    positions: Vec<usize>,
    batch_size: usize,
    n_batches: usize,
}

impl EpochPlan {
    pub(crate) fn new(
        epoch_idx: usize,
        positions: Vec<usize>,
        batch_size: usize,
        n_batches: usize,
    ) -> Self {
        Self {
            epoch_idx,
            positions,
            batch_size,
            n_batches,
        }
    }

    /// The epoch, from 0.
    pub fn epoch_idx(&self) -> usize {
        self.epoch_idx
    }

    /// Number of batches.
    pub fn n_batches(&self) -> usize {
        self.n_batches
    }

    /// Positions in the sample set of the samples of batch `batch_idx`; empty beyond the last batch.
    pub fn batch(&self, batch_idx: usize) -> &[usize] {
        if batch_idx >= self.n_batches {
            return &[];
        }
        let start = batch_idx * self.batch_size;
        let end = (start + self.batch_size).min(self.positions.len());
        &self.positions[start..end]
    }
}
