//! Golden files, tolerances and toy images for the tests of the workspace.
//!
//! Only a dev-dependency: everything here is made for assertions, so a wrong name, a wrong type or an unreadable
//! file ends the test with a message instead of returning an error.
//!
//! | module | what |
//! |---|---|
//! | [`allocator`] | an allocator that counts bytes and blocks |
//! | [`golden`] | the golden folder, and safetensors opened |
//! | [`discover`] | finds golden files by what they hold, and counts what was compared |
//! | [`cases`] | the cases of accuracy matrices and optimisers |
//! | [`close`] | comparison of tensors and slices within a [`Tolerance`] |
//! | [`device`] | the one place that chooses the device of the whole test suite |
//! | [`mutations`] | damaged files, and how many of them |
//! | [`toy`] | small class-dependent images |
//!
//! ```
//! use sdlora_testkit::{Compared, Tolerance, assert_close, golden_with, test_device};
//!
//! // Cases are discovered by the tensors they have, never listed. Without any, the test fails.
//! let mut compared = Compared::new("SD-LoRA layers");
//! for golden in golden_with(&["ranks", "layer0.qkv.bias"]) {
//!     let bias = golden.tensor::<1>("layer0.qkv.bias", &test_device());
//!     assert_close(bias, golden.f32("layer0.qkv.bias"), Tolerance::Abs(0.0), "bias");
//!     compared.add(golden.stem());
//! }
//! ```

pub mod allocator;
pub mod cases;
pub mod close;
pub mod device;
pub mod discover;
pub mod golden;
pub mod mutations;
pub mod toy;

pub use cases::{ExpectedMetrics, MetricsCase, MetricsFile, OptimCase, OptimConfig, OptimFile};
pub use close::{Tolerance, Values, assert_close};
pub use device::{test_device, test_device_autodiff};
pub use discover::{Compared, golden_json_with, golden_with};
pub use golden::{Golden, golden_dir, golden_file, repository_dir};
