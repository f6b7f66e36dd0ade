//! Fused tensor operations with a generic fallback for every burn backend.
//!
//! A vision transformer spends its time outside the matrix products in four places: GELU, layer
//! norm, attention and the bias of its linear layers.
//! The functions of this crate compute each of them in one pass with a backward of its own:
//!
//! | function | forward | backward keeps |
//! | --- | --- | --- |
//! | [`gelu`] | `x Φ(x)`, exact | `x` |
//! | [`layer_norm`] | `(x − μ) / √(σ² + ε) · γ + β` over the last axis | `x`, `μ`, `1/√(σ² + ε)` |
//! | [`qkv_attention`] | `softmax(q kᵀ / √d_head) v` on packed `q\|k\|v` | `qkv`, probabilities |
//! | [`linear`] | `x W + b` over flattened rows | the operand the other gradient needs |
//!
//! The fused form runs when the crate feature `flex` is on and the tensors are `f32` on burn's
//! `flex` backend, with or without autodiff.
//! Everything else (another backend, another type, the feature off) runs the same formula in plain
//! tensor operations, which [`generic`] also offers by itself.
//! A caller never chooses and never names a backend.

pub mod generic;

#[cfg(feature = "flex")]
mod flex;
mod ops;

pub use ops::{gelu, layer_norm, linear, qkv_attention};
