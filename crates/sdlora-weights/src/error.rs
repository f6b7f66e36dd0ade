//! The errors of this crate.

use std::path::PathBuf;

use crate::tensor::Dtype;

/// What can be wrong with a file of weights.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The operating system refused to read a file, or the file ends early.
    #[error("cannot read `{path}`: check that it exists, may be read and is complete")]
    Io {
        /// The file.
        path: PathBuf,
        /// The refusal.
        source: std::io::Error,
    },
    /// A folder holds no file of weights, or several of which none is the obvious one.
    #[error("folder `{path}` {problem}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is wrong and what to do, as the end of a sentence.
        problem: String,
    },
    /// A file is none of the known containers.
    #[error("`{path}` holds no weights this version can read: it {problem}")]
    Unknown {
        /// The file.
        path: PathBuf,
        /// What it seems to be and what to do, as the end of a sentence.
        problem: String,
    },
    /// A PyTorch file of the time before zip files (PyTorch 1.5 and older).
    #[error(
        "`{path}` is in PyTorch's legacy format: convert it with `python -c \"import torch; torch.save(torch.load('{path}', map_location='cpu', weights_only=True), '{path}.zip.pth')\"` and give `{path}.zip.pth`"
    )]
    Legacy {
        /// The file.
        path: PathBuf,
    },
    /// A PyTorch file written on a big-endian machine.
    #[error(
        "`{path}` stores numbers in `{byteorder}` byte order, only `little` is read: save it as safetensors on the machine that wrote it"
    )]
    ByteOrder {
        /// The file.
        path: PathBuf,
        /// What its member `byteorder` says.
        byteorder: String,
    },
    /// The header of a safetensors file contradicts itself or the file.
    #[error("`{path}` is not a whole safetensors file: {problem}; fetch or write it again")]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The index of a sharded checkpoint cannot be followed.
    #[error(
        "index `{path}` cannot be followed: {problem}; fetch the whole checkpoint again, index and shards"
    )]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A PyTorch file is no zip file, or a member of it is damaged.
    #[error("`{path}` cannot be read as a zip file (member `{member}`): fetch it again")]
    Zip {
        /// The file.
        path: PathBuf,
        /// The member, or `*` when the file as a whole is meant.
        member: String,
        /// What the reader said.
        source: zip::result::ZipError,
    },
    /// A member of a PyTorch file is missing or not as it must be.
    #[error("`{path}` has no usable member `{member}`: {problem}; fetch or save it again")]
    Member {
        /// The file.
        path: PathBuf,
        /// The member.
        member: String,
        /// What is wrong.
        problem: String,
    },
    /// The pickle of a PyTorch file is damaged or beyond the bounds.
    #[error(
        "`{path}` has a pickle that cannot be read: {problem} (byte {offset}); fetch it again, or save the bare state dict"
    )]
    Pickle {
        /// The file.
        path: PathBuf,
        /// Position in the pickle.
        offset: usize,
        /// What is wrong.
        problem: String,
    },
    /// A file is readable and holds not one tensor.
    #[error("`{path}` holds no tensor: {problem}")]
    NoTensors {
        /// The file.
        path: PathBuf,
        /// What it holds instead and what to do.
        problem: String,
    },
    /// A tensor's shape, place or strides cannot be.
    #[error("tensor `{name}` of `{path}` {problem}; fetch or write the file again")]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What is wrong, as the end of a sentence.
        problem: String,
    },
    /// No tensor of that name.
    #[error(
        "`{path}` holds no tensor `{name}`, but {n_tensors} others: list them to see their prefix"
    )]
    NoSuchTensor {
        /// The file.
        path: PathBuf,
        /// The name asked for.
        name: String,
        /// How many tensors there are.
        n_tensors: usize,
    },
    /// A tensor holds numbers that are no weights as they are: quantised ones, integers.
    #[error("tensor `{name}` of `{path}` holds {dtype}, {}", .dtype.why_not_read())]
    NotFloat {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its number format.
        dtype: Dtype,
    },
}
