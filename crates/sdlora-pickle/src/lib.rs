//! Python pickles read as data: nothing is imported, nothing is called, nothing recurses.
//!
//! A pickle is a program for a stack machine whose instructions may import and call anything. Here an import gives a
//! name, and what a call gives is up to the [`Meaning`] that the caller passes: it describes the few calls it knows and
//! refuses or leaves the others. Instructions, values and stack are bounded ([`limits`]), so a hostile file costs
//! bounded time and memory. Protocols 0 to 5 are read.
//!
//! ```text
//! bytes ──Pickle::read──▶ Pickle { values, top }
//!              │
//!              └─ call, instance, persistent, state ──▶ Meaning
//! ```
//!
//! | file | subject |
//! | --- | --- |
//! | `machine.rs` | the instructions |
//! | `value.rs` | the values, in one arena |
//! | `meaning.rs` | what calls mean to a reader |
//! | `limits.rs` | the bounds |
//! | `error.rs` | where a pickle went wrong |
//!
//! ```
//! use sdlora_pickle::{Id, Meaning, Pickle, Problem, Value, Values};
//!
//! /// Knows no call.
//! struct Plain;
//!
//! impl Meaning for Plain {
//!     type Object = ();
//!
//!     fn call(&mut self, values: &mut Values<'_, ()>, function: Id, _: Id) -> Result<Id, Problem> {
//!         Err(format!("it calls `{}`", values.global_name(function)))
//!     }
//!
//!     fn instance(&mut self, values: &mut Values<'_, ()>, class: Id) -> Result<Id, Problem> {
//!         self.call(values, class, class)
//!     }
//! }
//!
//! let pickle = Pickle::read(b"\x80\x02K\x07.", &mut Plain)?;
//! assert!(matches!(pickle.values.get(pickle.top), Value::Int(7)));
//!
//! let error = Pickle::read(b"cos\nsystem\n(S'ls'\ntR.", &mut Plain).unwrap_err();
//! assert_eq!(error.to_string(), "it calls `os.system` (byte 20)");
//! # Ok::<(), sdlora_pickle::PickleError>(())
//! ```

#![forbid(unsafe_code)]

mod error;
pub mod limits;
mod machine;
mod meaning;
mod value;

pub use error::{PickleError, Problem};
pub use machine::Pickle;
pub use meaning::Meaning;
pub use value::{Id, Value, Values};
