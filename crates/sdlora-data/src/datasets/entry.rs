//! What the list of data sets knows of each.

use std::path::Path;

use crate::dataset::{Dataset, Options};
use crate::error::DataError;
use crate::manifest::Manifest;

/// Data sets that are images of the user's own.
pub(super) const OWN: [&str; 2] = ["folder", "folders"];

/// One data set that can be opened by name.
#[derive(Clone, Copy, Debug)]
pub struct DatasetEntry {
    /// Its name.
    pub name: &'static str,
    /// What it is, in one line.
    pub summary: &'static str,
    /// Text of its manifest, as it ships.
    pub manifest: &'static str,
    /// Opens it from the data directory.
    pub open: OpenDataset,
}

/// Opens a data set from the data directory.
pub type OpenDataset = fn(&Path, &Options) -> Result<Box<dyn Dataset>, DataError>;

impl DatasetEntry {
    /// Its manifest.
    ///
    /// # Errors
    ///
    /// [`DataError::Manifest`] when the text that was compiled in is wrong, which a test excludes.
    pub fn manifest(&self) -> Result<Manifest, DataError> {
        Manifest::parse(self.manifest, self.name)
    }
}
