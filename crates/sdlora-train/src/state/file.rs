//! The state that a second pass reads, in a safetensors file: every matrix under its name, the layout in the
//! metadata.

use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use serde_json::Value;

use super::definition::{MethodState, SecondPassEntry, kind_of, layout_of};
use crate::error::TrainError;
use crate::export::TensorFile;

/// Key of the layout, as JSON.
const LAYOUT_KEY: &str = "sdlora.prompts";
/// Key of the version of the file.
const VERSION_KEY: &str = "sdlora.prompts.version";
/// Raised when older programs would misread a file.
const VERSION: &str = "2";
/// The version before: the name of every matrix has the kind of prompts before it.
const BEFORE: &str = "1";

/// Writes the file; without a second pass there is nothing to write, and the answer is `false`.
///
/// # Errors
///
/// [`TrainError::Io`] when the file system refuses.
pub(crate) fn write(path: &Path, state: &MethodState) -> Result<bool, TrainError> {
    let Some(second_pass) = state.second_pass() else {
        return Ok(false);
    };
    let mut file = TensorFile::default();
    for matrix in &state.matrices {
        file.push(matrix.name.clone(), matrix.values.val());
    }
    let layout = layout_of(second_pass).to_string();
    file.metadata = [(LAYOUT_KEY, layout), (VERSION_KEY, VERSION.to_owned())]
        .map(|(key, value)| (key.into(), value))
        .into();
    file.write(path)?;
    Ok(true)
}

/// Reads a file that [`write`] wrote, for a backbone of `depth` blocks of width `d_model`; `known` are the
/// second passes that may be in it.
///
/// # Errors
///
/// [`TrainError::Export`] for a file that is none, does not fit the backbone or is not whole.
pub(crate) fn read(
    path: &Path,
    d_model: usize,
    depth: usize,
    known: &[SecondPassEntry],
    device: &Device,
) -> Result<MethodState, TrainError> {
    let file = TensorFile::read(path)?;
    let refuse = |problem: String| TrainError::export(path, problem);
    let version = file.metadata.get(VERSION_KEY).map(String::as_str);
    let Some(version @ (VERSION | BEFORE)) = version else {
        return Err(refuse(format!(
            "it holds prompts of version {}, and this program reads versions {BEFORE} and {VERSION}: use the \
             program that wrote it",
            version.unwrap_or("none")
        )));
    };
    let layout = file.metadata.get(LAYOUT_KEY).map_or("", String::as_str);
    let layout: Value = serde_json::from_str(layout)
        .map_err(|e| refuse(format!("the layout of its prompts is unreadable ({e})")))?;
    let kinds: Vec<&str> = known.iter().map(SecondPassEntry::kind).collect();
    let entry = known
        .iter()
        .find(|entry| entry.kind() == kind_of(&layout))
        .ok_or_else(|| {
            refuse(format!(
                "the layout of its prompts is of kind `{}`, and this program knows {}",
                kind_of(&layout),
                kinds.join(", ")
            ))
        })?;
    let second_pass = entry.read(&layout).map_err(&refuse)?;
    second_pass.check(depth).map_err(&refuse)?;
    let mut state = second_pass.room(d_model, device);
    for matrix in &mut state.matrices {
        let name = matrix.name.as_str();
        let is_it = |key: &str| match version {
            BEFORE => key.split_once('.').is_some_and(|(_, rest)| rest == name),
            _ => key == name,
        };
        let found = file.tensors.iter().find(|(key, _)| is_it(key));
        let shape: [usize; 2] = matrix.values.lazy_shape().dims();
        match found {
            Some((_, found)) if found.shape == shape => {
                let data = TensorData::new(found.values.clone(), shape);
                let values = matrix.values.clone();
                matrix.values = values
                    .map(|old| Tensor::from_data(data, &old.device()))
                    .set_require_grad(false);
            }
            found => {
                let found = found.map(|(_, found)| &found.shape);
                return Err(refuse(format!(
                    "`{name}` has shape {found:?} where {shape:?} is needed: its backbone is another one, or the \
                     file is damaged"
                )));
            }
        }
    }
    Ok(state)
}
