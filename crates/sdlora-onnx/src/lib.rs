//! ONNX graphs under construction.
//!
//! A [`Graph`] takes inputs, weights and operators; every operator gives a [`Value`] that knows its element type and
//! shape, so a graph whose shapes do not fit is a panic where it is built and no surprise in a runtime.
//! [`Weights`] says how a matrix is stored; every graph computes in 32 bits. A [`Model`] is a graph with metadata, and
//! the bytes of a file.
//!
//! Operators are those of [`OPSET`], the messages those of the official schema.
//!
//! ```
//! use sdlora_onnx::{Dim, Element, Graph, Model, Weights};
//!
//! let mut graph = Graph::new("linear");
//! let x = graph.input("x", Element::F32, &[Dim::named("batch"), Dim::Known(2)]);
//! let w = graph.matrix("w", [2, 3], &[1.0, 0.0, 2.0, 0.0, 1.0, 2.0], Weights::F32);
//! let y = graph.matmul(&x, &w);
//! assert_eq!(y.shape(), [Dim::named("batch"), Dim::Known(3)]);
//! graph.output("y", y);
//!
//! let bytes = Model::new(graph, "example", "1").to_bytes()?;
//! assert_eq!(Model::from_bytes(&bytes)?.graph().inputs(), ["x"]);
//! # Ok::<(), sdlora_onnx::OnnxError>(())
//! ```

#![forbid(unsafe_code)]

mod error;
mod graph;
mod model;
mod ops;
mod quantised;
#[allow(
    dead_code,
    missing_docs,
    clippy::all,
    reason = "generated from the schema"
)]
#[rustfmt::skip]
mod schema;
mod value;

pub use error::OnnxError;
pub use graph::{Graph, Weights};
pub use model::{IR_VERSION, Model, OPSET};
pub use ops::{Filter, Resize};
pub use quantised::Quantised;
pub use value::{Dim, Element, Value};
