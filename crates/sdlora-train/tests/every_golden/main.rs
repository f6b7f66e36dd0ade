//! The golden tests of every crate that computes on a device, as one program: `cargo xtask gpu-check --pack` takes it
//! to a machine without cargo, where twelve programs would hold burn twelve times.
//!
//! Not run by `cargo test`, which runs each file in its own crate.

#[path = "../../../sdlora-core/tests/golden.rs"]
mod core;
#[path = "../../../sdlora-core/tests/golden_absorb.rs"]
mod core_absorb;
#[path = "../../../sdlora-core/tests/golden_variants.rs"]
mod core_variants;
#[path = "../golden_export.rs"]
mod export;
#[path = "../golden_heads.rs"]
mod heads;
#[path = "../../../sdlora-kernels/tests/golden.rs"]
mod kernels;
#[path = "../golden_optim.rs"]
mod optim;
#[path = "../golden_penalties.rs"]
mod penalties;
#[path = "../golden_slots.rs"]
mod slots;
#[path = "../golden_trace.rs"]
mod trace;
#[path = "../../../sdlora-vit/tests/golden.rs"]
mod vit;
#[path = "../../../sdlora-vit/tests/golden_prompting.rs"]
mod vit_prompting;
#[path = "../../../sdlora-vit/tests/golden_published.rs"]
mod vit_published;
