//! Fused tensor operations with a generic fallback for every burn backend.
//!
//! A vision transformer spends its time outside the matrix products in four places: GELU, layer
//! norm, attention and the bias of its linear layers.
//! The functions of this crate compute each of them in one pass with a backward of its own:
//!
//! | function | forward | kept for the backward |
//! | --- | --- | --- |
//! | [`gelu`] | `x Φ(x)`, exact | the slope at `x`, in the place of `x` |
//! | [`layer_norm`] | `(x − μ) / √(σ² + ε) · γ + β` over the last axis | `x`, two numbers a row |
//! | [`qkv_attention`] | `softmax(q kᵀ / √d_head) v` on packed `q\|k\|v` | `qkv`, two numbers a row and head |
//! | [`linear`] | `x W + b` over flattened rows | `x` if `W` is tracked, `W` if `x` is |
//! | [`low_rank_linear`] | `x (W + Σ a b) + b` | `x`, the factors, the sum in brackets |
//!
//! The fused form runs when the crate feature `flex` is on and the tensors are `f32` on burn's
//! `flex` backend, with or without autodiff.
//! Everything else (another backend, another type, the feature off) runs the same formula in plain
//! tensor operations, which [`generic`] also offers by itself.
//! A caller never chooses and never names a backend.
//!
//! The fused kernels use every thread of the current rayon pool and the widest vectors of the
//! processor, found when the program runs; without AVX2 they run as plain scalar code.
//! A result has the same bits for any number of threads.
//!
//! ```
//! use burn::tensor::{Device, Distribution, Tensor};
//!
//! # #[cfg(feature = "flex")] {
//! let device = Device::flex().autodiff();
//! let qkv = Tensor::<3>::random([2, 17, 3 * 64], Distribution::Default, &device).require_grad();
//! let attended = sdlora_kernels::qkv_attention(qkv.clone(), 4);
//! assert_eq!(attended.dims(), [2, 17, 64]);
//!
//! let grads = attended.sum().backward();
//! assert_eq!(qkv.grad(&grads).map(|grad| grad.dims()), Some([2, 17, 3 * 64]));
//! # }
//! ```

pub mod generic;

#[cfg(feature = "flex")]
mod flex;
mod low_rank;
mod ops;

pub use low_rank::{GradientPath, LowRank};
pub use ops::{gelu, is_fused, layer_norm, linear, low_rank_linear, qkv_attention};
