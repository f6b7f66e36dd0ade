//! Prompts in a safetensors file: every parameter under the path it has in the code, the layout in
//! the metadata.

use std::path::Path;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};

use super::{PromptLayout, Prompts};
use crate::error::TrainError;
use crate::export::TensorFile;

/// Key of the layout, as JSON.
const LAYOUT_KEY: &str = "sdlora.prompts";
/// Key of the version of the file.
const VERSION_KEY: &str = "sdlora.prompts.version";
/// Raised when older files can no longer be read.
const VERSION: &str = "1";

/// Writes the file.
///
/// # Errors
///
/// [`TrainError::Io`] when the file system refuses.
pub(crate) fn write(path: &Path, prompts: &Prompts) -> Result<(), TrainError> {
    #[derive(Default)]
    struct Collect {
        file: TensorFile,
        names: Vec<String>,
    }
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.names.push(name.into());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.names.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.file.push(self.names.join("."), param.val());
        }
    }
    let mut collect = Collect::default();
    prompts.visit(&mut collect);
    let layout = serde_json::to_string(&prompts.layout())
        .map_err(|e| TrainError::setting("prompts", "unwritable", e.to_string()))?;
    let mut file = collect.file;
    file.metadata = [(LAYOUT_KEY, layout), (VERSION_KEY, VERSION.to_owned())]
        .map(|(key, value)| (key.into(), value))
        .into();
    file.write(path)
}

/// Reads a file that [`write`] wrote, for a backbone of `depth` blocks of width `d_model`.
///
/// # Errors
///
/// [`TrainError::Export`] for a file that is none, does not fit the backbone or is not whole.
pub(crate) fn read(
    path: &Path,
    d_model: usize,
    depth: usize,
    device: &Device,
) -> Result<Prompts, TrainError> {
    let file = TensorFile::read(path)?;
    let refuse = |problem: String| TrainError::export(path, problem);
    match file.metadata.get(VERSION_KEY).map(String::as_str) {
        Some(VERSION) => {}
        found => {
            return Err(refuse(format!(
                "it holds prompts of version {}, and this program reads version {VERSION}: use the \
                 program that wrote it",
                found.unwrap_or("none")
            )));
        }
    }
    let layout = file.metadata.get(LAYOUT_KEY).map_or("", String::as_str);
    let layout: PromptLayout = serde_json::from_str(layout)
        .map_err(|e| refuse(format!("the layout of its prompts is unreadable ({e})")))?;
    layout.check(depth).map_err(&refuse)?;

    struct Fill<'a> {
        file: &'a TensorFile,
        names: Vec<String>,
        problem: Option<String>,
    }
    impl ModuleMapper for Fill<'_> {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.names.push(name.into());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.names.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (name, shape) = (self.names.join("."), param.lazy_shape());
            match self.file.tensors.get(&name) {
                Some(found) if found.shape == shape.to_vec() => {
                    let data = TensorData::new(found.values.clone(), shape);
                    param.map(|old| Tensor::from_data(data, &old.device()))
                }
                found => {
                    let found = found.map(|found| &found.shape);
                    self.problem.get_or_insert(format!(
                        "`{name}` has shape {found:?} where {shape:?} is needed: its backbone is \
                         another one, or the file is damaged"
                    ));
                    param
                }
            }
        }
    }
    let mut fill = Fill {
        file: &file,
        names: Vec::new(),
        problem: None,
    };
    let prompts = Prompts::zeros(&layout, d_model, device).map(&mut fill);
    match fill.problem {
        None => Ok(prompts.no_grad()),
        Some(problem) => Err(refuse(problem)),
    }
}
