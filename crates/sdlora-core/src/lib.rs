//! SD-LoRA: the update of a frozen, pre-trained weight by low-rank directions whose magnitudes
//! stay trainable.
//!
//! ```text
//! h = ( W0 + Σ_{k≤t} α_k · D_k ) x ,      D_k = A_k B_k / ‖A_k B_k‖_F
//! ```
//!
//! | paper | here |
//! |---|---|
//! | direction D_k with its factors | [`Direction`] while trained, [`PastDirections`] once frozen |
//! | magnitude α_k | [`Magnitudes`] |
//! | all directions and magnitudes of a model | [`Adapter`] |
//! | W0 + Σ α_k D_k | [`effective_weight`], used by [`adapted_linear`] |
//!
//! The crate knows linear maps, not images, tasks' data or transformers. On `flex` and in `f32` the sum
//! is formed in weight space once per step, so a step costs the same after twenty tasks as after one;
//! elsewhere [`UpdateForm`] chooses, and half types never add an update to a weight.
//!
//! ```
//! use burn::tensor::{Device, Tensor};
//! use rand::SeedableRng;
//! use sdlora_core::{Adapter, ColumnUpdate, Site, UpdateForm, Variant, adapted_linear};
//!
//! let device = Device::default();
//! let site = Site { name: "query".into(), group: 0, d_input: 8, d_output: 8 };
//! let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
//! let adapter = Adapter::new(Variant::Paper.config(), &[site])?
//!     .begin_task(2, &mut rng, &device)?   // task 1
//!     .begin_task(3, &mut rng, &device)?;  // task 2: direction 1 is frozen, its magnitude is not
//! assert_eq!(adapter.ranks(), [2, 3]);
//!
//! let updates = adapter.updates();
//! let update = updates.get("query").expect("the site has an update");
//! let x = Tensor::<3>::ones([1, 4, 8], &device);
//! let w0 = Tensor::<2>::ones([8, 8], &device);
//! let columns = [ColumnUpdate { first_column: 0, update }];
//! let h = adapted_linear(x, w0, None, &columns, UpdateForm::Auto);
//! assert_eq!(h.dims(), [1, 4, 8]);
//! # Ok::<(), sdlora_core::CoreError>(())
//! ```

#![forbid(unsafe_code)]

mod absorb;
mod adapter;
mod chunks;
mod config;
mod direction;
mod error;
mod gate;
mod linear;
mod magnitude;
mod precision;
mod residual;
mod site;
mod structure;
mod update;

pub use absorb::{Absorption, Coefficients, ResidualNorm};
pub use adapter::{Adapter, SiteDirections, Updates};
pub use chunks::{ChunkLayout, Chunks};
pub use config::{CurrentForm, MagnitudeSharing, MagnitudeStart, PastNorm, SdLoraConfig, Variant};
pub use direction::{Direction, DirectionForm, FinishedDirection, HostFactors, PastDirections};
pub use error::CoreError;
pub use gate::{Gate, GateForm};
pub use linear::{ColumnUpdate, adapted_linear, effective_weight};
pub use magnitude::Magnitudes;
pub use precision::{Precision, cast};
pub use residual::span_residuals;
pub use site::Site;
pub use structure::{AdapterStructure, DirectionStructure, SiteStructure};
pub use update::{GatedFactors, KeptRows, ScaledFactors, Update, UpdateForm};
