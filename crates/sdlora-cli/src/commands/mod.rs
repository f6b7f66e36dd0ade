//! One file per command.

pub mod analyse;
pub mod compare;
mod contact_sheet;
pub mod data;
mod data_fetch;
pub mod export;
pub mod features;
mod in_parallel;
pub mod inspect;
pub mod predict;
pub mod presets;
pub mod pretrain;
pub mod suites;
pub mod train;

use std::path::{Path, PathBuf};

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

/// Reads a text file of the user.
pub fn read_text(path: &Path) -> anyhow::Result<String> {
    use anyhow::Context;
    std::fs::read_to_string(path)
        .map_err(|e| crate::UsageError(e.to_string()))
        .with_context(|| format!("cannot read {}; check the path", path.display()))
}
