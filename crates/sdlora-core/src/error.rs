//! The errors of this crate.

use std::path::PathBuf;

/// What can be wrong with settings, shapes and adapter files.
#[derive(Debug, thiserror::Error)]
pub enum CoreError {
    /// A setting has a value that cannot work.
    #[error("setting `{setting}` is {found}: give it {expected}")]
    Setting {
        /// Name of the setting.
        setting: &'static str,
        /// Its value.
        found: String,
        /// What would be accepted.
        expected: &'static str,
    },
    /// A rank that does not fit the widths of a projection.
    #[error(
        "rank {rank} does not fit site {site} of width {d_input} to {d_output}: choose a rank from 1 to {max}"
    )]
    Rank {
        /// The rank asked for.
        rank: usize,
        /// Name of the site.
        site: String,
        /// Input width of the site.
        d_input: usize,
        /// Output width of the site.
        d_output: usize,
        /// Largest rank that fits.
        max: usize,
    },
    /// A command that needs a task in progress, or none.
    #[error("{command} is not possible: {reason}")]
    State {
        /// The command.
        command: &'static str,
        /// Why it cannot run now.
        reason: &'static str,
    },
    /// An adapter file lacks something or holds something else than its header says.
    #[error("adapter file {path}: {problem}; save the adapter again from its run")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The file system refused.
    #[error("cannot {action} {path}: {source}; check that the folder exists and has room")]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason given by the system.
        source: std::io::Error,
    },
}
