//! Containers of named tensors: safetensors, sharded safetensors, PyTorch zip files.
//!
//! A [`WeightFile`] is opened once, which reads names, shapes and places, and then gives its tensors one at a time:
//! each is read from disk when it is asked for, so a model loads within the size of its own weights and one tensor.
//! The crate knows no model and no tensor library: names stay as they are in the file, values leave it as `Vec<f32>`.
//!
//! A checkpoint is untrusted. Sizes are checked against the file before anything is reserved, counts and depths are
//! bounded, and the pickle inside a PyTorch file is read as data: nothing it names is imported or called. What a
//! pickle asks to build and this crate does not know stays unbuilt, and is listed by [`WeightFile::unbuilt`].
//!
//! | file | what it holds |
//! |---|---|
//! | `weight_file` | [`WeightFile`]: open, list, read |
//! | `tensor` | [`TensorInfo`], [`Dtype`], and the conversion to `f32` |
//! | `foreign` | what a file is that holds no weights |
//! | `container` | [`ContainerKind`] and how a file is recognised; which file of a folder is meant |
//! | `contents` | what one file holds, whatever its container |
//! | `entry` | one tensor as a reader lists it |
//! | `safetensors` | header of a safetensors file |
//! | `sharded` | `*.index.json` and its shards |
//! | `pytorch` | the zip file `torch.save` writes, and the pickle in it |
//! | `prefix` | wrappers around a model in its checkpoint |
//! | `place` | where the numbers of a tensor lie, and reading them |
//! | `error` | [`WeightsError`] |
//!
//! ```
//! use sdlora_weights::WeightFile;
//!
//! let header = br#"{"bias":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
//! let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
//! bytes.extend(header);
//! bytes.extend([1.5_f32, -2.0].iter().flat_map(|x| x.to_le_bytes()));
//!
//! let file = WeightFile::from_bytes("small.safetensors", bytes)?;
//! assert_eq!(file.tensors()[0].shape, [2]);
//! assert_eq!(file.read_f32("bias")?, [1.5, -2.0]);
//! # Ok::<(), sdlora_weights::WeightsError>(())
//! ```

#![forbid(unsafe_code)]

mod container;
mod contents;
mod entry;
mod error;
mod foreign;
mod place;
mod prefix;
mod pytorch;
mod safetensors;
mod sharded;
mod tensor;
mod weight_file;

pub use container::ContainerKind;
pub use error::WeightsError;
pub use tensor::{Dtype, TensorInfo};
pub use weight_file::WeightFile;
