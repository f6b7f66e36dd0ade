//! The Vision Transformer that SD-LoRA adapts: pre-norm, learned positions, class-token or average
//! pooling, fused qkv, exact GELU.
//!
//! One file per noun: [`VitConfig`] the shape, [`PatchEmbed`], [`Attention`], [`Mlp`] and
//! [`Block`], [`Vit`] the whole, and the weight files. A forward pass takes the
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

mod attention;
mod block;
mod config;
mod error;
mod intermediate;
mod layers;
mod model;
mod patch_embed;
mod weights;

pub use attention::Attention;
pub use block::{Block, Mlp};
pub use config::{BACKBONES, BackbonePreset, Pooling, VitConfig};
pub use error::VitError;
pub use layers::{LayerNorm, Linear};
pub use model::Vit;
pub use patch_embed::PatchEmbed;
pub use weights::{CONFIG_KEY, WeightDtype, WeightReport};
