//! The errors of this crate.

use std::path::PathBuf;

use crate::report::WeightReport;

/// What no tensor and no file tells of a ViT, so that the caller has to say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Untold {
    /// The number of heads of a block.
    Heads,
    /// The function in the MLP.
    Activation,
    /// How tokens become a feature.
    Pooling,
}

/// What can be wrong with a shape or a weight file.
#[derive(Debug, thiserror::Error)]
pub enum VitError {
    /// A number of the configuration does not fit the others.
    #[error("backbone setting `{field}` is {found}: give it {expected}")]
    Shape {
        /// Name of the setting.
        field: &'static str,
        /// Its value.
        found: usize,
        /// What would be accepted.
        expected: String,
    },
    /// What is added to the variance of a layer norm is no small positive number.
    #[error(
        "backbone setting `norm_eps` is {found}: give it a number above 0 and below 1, as 1e-6"
    )]
    NormEps {
        /// Its value.
        found: f64,
    },
    /// A preset name nobody knows.
    #[error("no backbone preset is called `{name}`: choose one of {known}, or give a weight file")]
    UnknownPreset {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// A weight file cannot be opened or its values cannot be read.
    #[error(transparent)]
    Weights(#[from] sdlora_weights::WeightsError),
    /// A file cannot be read or written.
    #[error("cannot {action} {path}: {source}; check the path and the free space")]
    Io {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason given by the system.
        source: std::io::Error,
    },
    /// A safetensors file is not whole, or cannot be made.
    #[error("{path} is not a whole safetensors file: {source}; fetch or write it again")]
    Format {
        /// The file.
        path: PathBuf,
        /// The reason given by the reader.
        source: safetensors::SafeTensorError,
    },
    /// A weight file does not say what the model needs to be built.
    #[error("{path} does not describe a ViT this version can build: {problem}")]
    NotAVit {
        /// The file.
        path: PathBuf,
        /// What is missing or odd, and what to do about it.
        problem: String,
        /// What [`Hints`](crate::Hints) can say, where that is enough.
        untold: Option<Untold>,
    },
    /// A weight is infinite or not a number, or too large for `f32`.
    #[error(
        "{path} holds {value} in `{}` (number {place} of it, from 0), so no feature would be a number: the \
         file is damaged or of a training that diverged; fetch it again, or give another one",
        tensor.escape_debug()
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor, as the file names it.
        tensor: String,
        /// Position of the first such number in it, row-major.
        place: usize,
        /// The number.
        value: f32,
    },
    /// Tensors of the file and of the model do not match.
    #[error("{path} does not fit the model: {report}; {advice}")]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Everything that did and did not fit.
        report: Box<WeightReport>,
        /// What to do.
        advice: &'static str,
    },
}

impl VitError {
    /// Whether a name or setting is at fault rather than a file.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::UnknownPreset { .. } | Self::Shape { .. })
    }
}
