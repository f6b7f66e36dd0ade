//! Errors of this crate.

use std::path::PathBuf;

use sdlora_image::ImageError;

use crate::split::Split;

/// What can go wrong between a file on disk and a batch on a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// No data set of that name is compiled in.
    #[error("there is no data set `{name}`: choose one of {known}")]
    UnknownDataset {
        /// The name that was asked for.
        name: String,
        /// The known names, separated by commas.
        known: String,
    },
    /// A file of a data set is not where it should be.
    #[error(
        "data set `{dataset}` is not complete in `{data_dir}`: `{path}` is missing; put it there (origin: {origin}) or name another data directory"
    )]
    MissingFile {
        /// Name of the data set.
        dataset: String,
        /// The data directory that was searched.
        data_dir: PathBuf,
        /// The missing file.
        path: PathBuf,
        /// Where the data set comes from.
        origin: String,
    },
    /// The operating system refused to read a file.
    #[error("cannot read `{path}`: check that it exists and may be read")]
    Io {
        /// The file.
        path: PathBuf,
        /// The refusal.
        source: std::io::Error,
    },
    /// A zip file is damaged or not a zip file.
    #[error("`{path}` cannot be read as a zip file{}: fetch it again and compare its sha256 with the manifest", member_suffix(.member))]
    Archive {
        /// The zip file.
        path: PathBuf,
        /// The member that failed, empty when the file as a whole did.
        member: String,
        /// What the reader said.
        source: zip::result::ZipError,
    },
    /// A member of an archive has the wrong name, size or kind.
    #[error(
        "`{path}` holds `{member}`, which {problem}: fetch the file again and compare its sha256 with the manifest"
    )]
    Member {
        /// The archive.
        path: PathBuf,
        /// The member.
        member: String,
        /// What is wrong with it, as the end of a sentence.
        problem: String,
    },
    /// A data set has another number of things than its manifest says.
    #[error(
        "{place} has {found} {what} instead of {expected}: fetch it again and compare its sha256 with the manifest"
    )]
    Count {
        /// A file, a class or a data set.
        place: String,
        /// What was counted.
        what: &'static str,
        /// How many there should be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A file or folder holds something a data set cannot have.
    #[error("{place} {problem}: {action}")]
    Content {
        /// The file, folder or member.
        place: String,
        /// What is wrong with it, as the end of a sentence.
        problem: String,
        /// What to do next.
        action: String,
    },
    /// An image cannot be decoded, or a setting of its transform is out of range.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A manifest is not valid TOML or has unknown or missing fields.
    #[error("manifest `{name}` cannot be read: compare it with one that ships with the project")]
    Manifest {
        /// Name or path of the manifest.
        name: String,
        /// What the parser said.
        source: Box<toml::de::Error>,
    },
    /// A file differs from the one the manifest describes.
    #[error("`{path}` has checksum {found} instead of {expected}: fetch it again")]
    Checksum {
        /// The file.
        path: PathBuf,
        /// The sum in the manifest, in hexadecimal.
        expected: String,
        /// The sum of the file, in hexadecimal.
        found: String,
    },
    /// The options of a data set have an unknown name or a wrong type.
    #[error(
        "the options of data set `{dataset}` cannot be read: see its documentation for their names"
    )]
    Options {
        /// Name of the data set.
        dataset: String,
        /// What the parser said.
        source: Box<toml::de::Error>,
    },
    /// A setting has a value outside its range.
    #[error("setting `{setting}` is {found}, expected {expected}: correct it in the configuration")]
    Setting {
        /// Dotted name of the setting.
        setting: String,
        /// The value that was given.
        found: String,
        /// The values that are allowed.
        expected: String,
    },
    /// An index lies outside a data set, stream or loader.
    #[error("{what} {idx} does not exist, there are {len}: use an index below {len}")]
    OutOfRange {
        /// What the index counts.
        what: &'static str,
        /// The index.
        idx: usize,
        /// How many there are.
        len: usize,
    },
    /// A half of a task has no images.
    #[error(
        "task {task_idx} has no {split} images for class `{class}`: change the split of the data set or leave the class out"
    )]
    EmptyClass {
        /// The task.
        task_idx: usize,
        /// The half that is empty.
        split: Split,
        /// Name of the class without images.
        class: String,
    },
    /// The thread that prepares batches ended without finishing its epoch.
    #[error("the thread that prepares batches stopped: {reason}; set `prefetch = 0` to see where")]
    Worker {
        /// Message of the panic, or of the refusal to start a thread.
        reason: String,
    },
}

fn member_suffix(member: &str) -> String {
    if member.is_empty() {
        String::new()
    } else {
        format!(" at member `{member}`")
    }
}

impl DataError {
    /// Whether what the user typed or set is at fault rather than files or disk.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Image(error) => error.is_usage(),
            _ => matches!(
                self,
                Self::UnknownDataset { .. } | Self::Options { .. } | Self::Setting { .. }
            ),
        }
    }

    /// Shorthand for [`DataError::Content`].
    pub(crate) fn content(
        place: impl Into<String>,
        problem: impl Into<String>,
        action: impl Into<String>,
    ) -> Self {
        Self::Content {
            place: place.into(),
            problem: problem.into(),
            action: action.into(),
        }
    }

    /// Shorthand for [`DataError::Setting`].
    pub(crate) fn setting(
        setting: impl Into<String>,
        found: impl ToString,
        expected: impl Into<String>,
    ) -> Self {
        Self::Setting {
            setting: setting.into(),
            found: found.to_string(),
            expected: expected.into(),
        }
    }
}
