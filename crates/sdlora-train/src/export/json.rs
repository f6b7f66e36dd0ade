//! JSON files of an export.

use std::path::Path;

use serde::Serialize;

use crate::error::TrainError;
use crate::files::write_file;

/// A JSON file.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), TrainError> {
    let text =
        serde_json::to_vec_pretty(value).map_err(|e| TrainError::export(path, e.to_string()))?;
    write_file(path, &text)
}
