//! Golden files, tolerances and toy images for the tests of the workspace.
//!
//! Only a dev-dependency: everything here is made for assertions, so a wrong name, a wrong type or an unreadable
//! file ends the test with a message instead of returning an error.
//!
//! | module | what |
//! |---|---|
//! | [`golden`] | finds golden files and opens safetensors |
//! | [`cases`] | the cases of `metrics.json` and `optim.json` |
//! | [`close`] | comparison of tensors and slices within a [`Tolerance`] |
//! | [`device`] | the one place that chooses the device of the whole test suite |
//! | [`mutations`] | damaged files, and how many of them |
//! | [`toy`] | small class-dependent images |
//!
//! ```
//! use sdlora_testkit::{Golden, Tolerance, assert_close, golden_matching, test_device};
//!
//! // Cases are discovered, never listed: the folder may lack files or hold more of them.
//! for path in golden_matching("sdlora_a_", ".safetensors") {
//!     let golden = Golden::open(&path);
//!     let alpha = golden.tensor::<1>("alpha", &test_device());
//!     assert_close(alpha, golden.f32("alpha"), Tolerance::Abs(0.0), "alpha");
//! }
//! ```

pub mod cases;
pub mod close;
pub mod device;
pub mod golden;
pub mod mutations;
pub mod toy;

pub use cases::{ExpectedMetrics, MetricsCase, MetricsFile, OptimCase, OptimConfig, OptimFile};
pub use close::{Tolerance, Values, assert_close};
pub use device::{test_device, test_device_autodiff};
pub use golden::{Golden, golden_dir, golden_file, golden_matching};
