//! A graph with its metadata, and the bytes of the file.

use std::collections::BTreeMap;

use prost::Message;

use crate::error::OnnxError;
use crate::graph::Graph;
use crate::schema::{ModelProto, OperatorSetIdProto, StringStringEntryProto};

/// Version of the operators: the first whose `Resize` averages what it shrinks.
pub const OPSET: i64 = 18;

/// Version of the format that came with these operators.
pub const IR_VERSION: i64 = 8;

/// Largest file: a message of protocol buffers ends below 2 GiB.
const LIMIT: usize = i32::MAX as usize;

/// A graph with what programs that run it should know.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    graph: Graph,
    producer: (String, String),
    /// Texts by key.
    pub metadata: BTreeMap<String, String>,
    /// A description for people.
    pub description: String,
}

impl Model {
    /// A model by a program of a version.
    pub fn new(graph: Graph, producer: &str, version: &str) -> Self {
        Self {
            graph,
            producer: (producer.to_owned(), version.to_owned()),
            metadata: BTreeMap::new(),
            description: String::new(),
        }
    }

    /// What it computes.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The bytes of the file; equal models give equal bytes.
    ///
    /// # Errors
    ///
    /// [`OnnxError::Graph`] for a graph that does not hold together, [`OnnxError::TooLarge`] for one of 2 GiB or more.
    pub fn to_bytes(self) -> Result<Vec<u8>, OnnxError> {
        self.graph.check()?;
        let entry = |(key, value)| StringStringEntryProto {
            key: Some(key),
            value: Some(value),
        };
        let proto = ModelProto {
            ir_version: Some(IR_VERSION),
            opset_import: vec![OperatorSetIdProto {
                domain: Some(String::new()),
                version: Some(OPSET),
            }],
            producer_name: Some(self.producer.0),
            producer_version: Some(self.producer.1),
            doc_string: Some(self.description),
            graph: Some(self.graph.proto),
            metadata_props: self.metadata.into_iter().map(entry).collect(),
            ..ModelProto::default()
        };
        let n_bytes = proto.encoded_len();
        if n_bytes > LIMIT {
            return Err(OnnxError::TooLarge {
                n_bytes,
                limit: LIMIT + 1,
            });
        }
        Ok(proto.encode_to_vec())
    }

    /// Reads the bytes of a file of these versions.
    ///
    /// # Errors
    ///
    /// [`OnnxError::Decode`] for bytes that are no model, [`OnnxError::Graph`] for a graph that does not hold together
    /// or other versions.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, OnnxError> {
        let proto = ModelProto::decode(bytes)?;
        let versions: Vec<i64> = proto.opset_import.iter().map(|set| set.version()).collect();
        if versions != [OPSET] || proto.ir_version() != IR_VERSION {
            return Err(OnnxError::Graph(format!(
                "it has format {} and operators {versions:?}, not {IR_VERSION} and {OPSET}",
                proto.ir_version()
            )));
        }
        let graph = Graph::of(proto.graph.unwrap_or_default());
        graph.check()?;
        let texts = proto.metadata_props.into_iter();
        let text = |entry: StringStringEntryProto| {
            (
                entry.key.unwrap_or_default(),
                entry.value.unwrap_or_default(),
            )
        };
        Ok(Self {
            graph,
            producer: (
                proto.producer_name.unwrap_or_default(),
                proto.producer_version.unwrap_or_default(),
            ),
            metadata: texts.map(text).collect(),
            description: proto.doc_string.unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::{Dim, Element};

    fn model() -> Model {
        let mut graph = Graph::new("test");
        let x = graph.input("x", Element::F32, &[Dim::named("batch"), Dim::Known(2)]);
        let y = graph.relu(&x);
        graph.output("y", y);
        let mut model = Model::new(graph, "test", "1");
        model.metadata.insert("b".into(), "2".into());
        model.metadata.insert("a".into(), "1".into());
        model
    }

    #[test]
    fn a_model_comes_back_from_its_bytes() {
        let bytes = model().to_bytes().unwrap();
        assert_eq!(bytes, model().to_bytes().unwrap());
        let back = Model::from_bytes(&bytes).unwrap();
        assert_eq!(back, model());
        assert_eq!(
            (back.graph().inputs(), back.graph().outputs()),
            (vec!["x"], vec!["y"])
        );
    }

    #[test]
    fn bytes_of_something_else_are_refused() {
        let bytes = model().to_bytes().unwrap();
        assert!(Model::from_bytes(&bytes[..bytes.len() - 3]).is_err());
        assert!(Model::from_bytes(b"{\"format\": \"json\"}").is_err());
        let error = Model::from_bytes(&[]).unwrap_err().to_string();
        assert!(error.contains("operators []"), "{error}");
        let mut unfinished = model();
        unfinished.graph.proto.output.clear();
        assert!(matches!(unfinished.to_bytes(), Err(OnnxError::Graph(_))));
    }
}
