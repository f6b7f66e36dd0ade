//! The Vision Transformer that SD-LoRA adapts: pre-norm, learned positions, class-token or average
//! pooling, fused qkv, GELU; LayerScale, registers and a norm before the blocks where the
//! published model has them.
//!
//! One file per noun: [`VitConfig`] the shape, [`PatchEmbed`], [`Attention`], [`Mlp`] and
//! [`Block`], [`Vit`] the whole, and [`Checkpoint`] what others published, understood from its
//! tensors. A forward pass takes the
//! [`Updates`](sdlora_core::Updates) of an adapter and adds them to its weights; what a task is,
//! this crate does not know.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use rand::SeedableRng;
//! use sdlora_core::Updates;
//! use sdlora_vit::{Vit, VitConfig};
//!
//! let device = Device::default();
//! let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
//! let config = VitConfig::standard(32, 8, 48, 3, 3);
//! let vit = Vit::init(&config, &mut rng, &device)?;
//! let features = vit.forward(Tensor::zeros([2, 3, 32, 32], &device), &Updates::default());
//! assert_eq!(features.dims(), [2, 48]);
//! # Ok::<(), sdlora_vit::VitError>(())
//! ```

#![forbid(unsafe_code)]

mod activation;
mod architectures;
mod attention;
mod attention_inputs;
mod block;
mod checkpoint;
mod config;
mod error;
mod hints;
mod infer;
mod intermediate;
mod layers;
mod model;
mod names;
mod patch_embed;
mod pos_embed;
mod preprocess;
mod presets;
mod projection;
mod prompting;
mod report;
mod sidecar;
mod slots;
mod strangers;
mod weights;

pub use activation::Activation;
pub use attention::Attention;
pub use block::{Block, Mlp};
pub use checkpoint::{Checkpoint, MappedTensor};
pub use config::{CONFIG_KEY, Pooling, PosEmbed, VitConfig};
pub use error::{Untold, VitError};
pub use hints::Hints;
pub use layers::{LayerNorm, Linear};
pub use model::Vit;
pub use names::Scheme;
pub use patch_embed::PatchEmbed;
pub use pos_embed::PositionResize;
pub use preprocess::{Interpolation, PREPROCESS_KEY, Preprocess, Resize};
pub use presets::{BACKBONES, BackbonePreset};
pub use projection::Projection;
pub use prompting::{Prefix, Prompting, ReadOut};
pub use report::WeightReport;
pub use weights::{WeightDtype, with_sorted_header};
