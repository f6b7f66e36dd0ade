//! One file per command.

pub mod analyse;
pub mod compare;
mod contact_sheet;
mod cost;
pub mod data;
mod data_description;
pub mod data_fetch;
pub mod evaluate;
pub mod export;
mod export_verify;
pub mod features;
pub mod inspect;
mod job_pool;
pub mod learn;
pub mod predict;
pub mod presets;
pub mod pretrain;
pub mod report;
pub mod runs;
mod shell;
pub mod suites;
pub mod train;

use std::path::{Path, PathBuf};

use clap::builder::{PathBufValueParser, TypedValueParser};
use sdlora_train::learned::{is_run, present_run};

/// Options every command that computes has.
#[derive(Debug, Clone, clap::Args)]
pub struct Common {
    /// Where to compute: flex (CPU), ndarray, cpu, wgpu or cuda as far as compiled in; one of several
    /// with its number, cuda:1
    #[arg(long, default_value = "flex")]
    pub device: String,
    /// Folder of the data sets
    #[arg(long, default_value = "datasets")]
    pub data_dir: PathBuf,
    /// Print only results and errors
    #[arg(long)]
    pub quiet: bool,
}

/// Reads an option that names a run: the folder of one, or its name below `runs`. Of a run that learns folder after
/// folder, it is the folder of the present state.
pub fn run_parser() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().map(|path| run_folder(&path))
}

/// The folder that stands for a run, see [`run_parser`].
pub fn run_folder(path: &Path) -> PathBuf {
    let below = Path::new("runs").join(path);
    match !path.exists() && is_run(&below) {
        true => present_run(&below),
        false => present_run(path),
    }
}

/// Reads a text file of the user.
pub fn read_text(path: &Path) -> anyhow::Result<String> {
    let bytes = read_file(path)?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        crate::UsageError(format!(
            "{} is no UTF-8 text, first at byte {at}: save it as UTF-8",
            path.display()
        ))
        .into()
    })
}

/// Reads a file the user named.
pub fn read_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    use anyhow::Context;
    std::fs::read(path)
        .map_err(|e| crate::UsageError(e.to_string()))
        .with_context(|| format!("cannot read {}; check the path", path.display()))
}

/// Refuses a place for a file whose folder is not there, or that is a folder itself. At the start of a
/// command: what it computes for hours would have no place in the end.
///
/// # Errors
///
/// A usage error that names the option and the place.
pub fn check_place(option: &str, file: &Path) -> Result<(), crate::UsageError> {
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let problem = if file.is_dir() {
        "it is a folder: give the name of a file".to_owned()
    } else if file.metadata().is_ok_and(|found| !found.is_file()) {
        "it is no regular file: choose another place".to_owned()
    } else if !folder.is_dir() {
        format!(
            "there is no folder {}: make it, or choose another place",
            folder.display()
        )
    } else {
        return Ok(());
    };
    Err(crate::UsageError(format!(
        "`{option} {}` cannot be written, {problem}",
        file.display()
    )))
}

/// Refuses a place to write to that is a file the command reads.
///
/// # Errors
///
/// A usage error that names the file.
pub fn refuse_overwriting(out: &Path, input: &Path) -> Result<(), crate::UsageError> {
    let place = |path: &Path| std::fs::canonicalize(path).ok();
    match (place(out), place(input)) {
        (Some(a), Some(b)) if a == b => Err(crate::UsageError(format!(
            "`--out {}` is what the command reads: choose another place",
            out.display()
        ))),
        _ => Ok(()),
    }
}
