//! A graph under construction: inputs, constants, operators, outputs.

use std::collections::BTreeMap;

use half::f16;

use crate::error::OnnxError;
use crate::quantised::Quantised;
use crate::schema::attribute_proto::AttributeType;
use crate::schema::tensor_shape_proto::{Dimension, dimension};
use crate::schema::{
    AttributeProto, GraphProto, NodeProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};
use crate::value::{Dim, Element, Value};

/// How the numbers of a matrix are stored; every graph computes in 32 bits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Weights {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits, cast up where they are used; in 32 bits where a number is out of range.
    F16,
    /// 8 bits with a scale for every column, see [`Quantised`].
    Int8,
}

impl Weights {
    /// All of them with the name that the command line and metadata give them.
    pub const ALL: [(&'static str, Self); 3] =
        [("f32", Self::F32), ("f16", Self::F16), ("int8", Self::Int8)];

    /// Its name, as in [`Weights::ALL`].
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Int8 => "int8",
        }
    }
}

/// A setting of an operator.
#[derive(Debug, Clone)]
pub(crate) enum Attribute {
    Int(i64),
    Ints(Vec<i64>),
    Float(f32),
    Text(&'static str),
}

/// A graph under construction.
///
/// Its methods panic where shapes do not fit: who builds a graph knows them.
#[derive(Debug, Clone)]
pub struct Graph {
    pub(crate) proto: GraphProto,
    /// Constants by what they hold, so that each is there once.
    known: BTreeMap<String, Value>,
}

impl PartialEq for Graph {
    fn eq(&self, other: &Self) -> bool {
        self.proto == other.proto
    }
}

impl Graph {
    /// An empty graph.
    pub fn new(name: &str) -> Self {
        let proto = GraphProto {
            name: Some(name.to_owned()),
            ..GraphProto::default()
        };
        Self {
            proto,
            known: BTreeMap::new(),
        }
    }

    pub(crate) fn of(proto: GraphProto) -> Self {
        Self {
            proto,
            known: BTreeMap::new(),
        }
    }

    /// A value that the caller of the model gives.
    pub fn input(&mut self, name: &str, element: Element, shape: &[Dim]) -> Value {
        let value = Value {
            name: name.to_owned(),
            element,
            shape: shape.to_vec(),
        };
        self.proto.input.push(described(name, &value));
        value
    }

    /// Makes a value one that the model returns, under a name of its own.
    ///
    /// # Panics
    ///
    /// If no operator gives the value.
    pub fn output(&mut self, name: &str, value: Value) {
        let gives = |node: &&mut NodeProto| node.output.contains(&value.name);
        let nodes = &mut self.proto.node;
        let node = nodes.iter_mut().find(gives);
        let node = node.unwrap_or_else(|| panic!("no operator gives {}", value.name));
        node.output = vec![name.to_owned()];
        for node in nodes {
            for input in &mut node.input {
                if *input == value.name {
                    *input = name.to_owned();
                }
            }
        }
        self.proto.output.push(described(name, &value));
    }

    /// Names of the inputs.
    pub fn inputs(&self) -> Vec<&str> {
        self.proto.input.iter().map(|value| value.name()).collect()
    }

    /// Names of the outputs.
    pub fn outputs(&self) -> Vec<&str> {
        self.proto.output.iter().map(|value| value.name()).collect()
    }

    /// Names of the operators in the order in which they run.
    pub fn operators(&self) -> Vec<&str> {
        self.proto.node.iter().map(|node| node.op_type()).collect()
    }

    /// Shape and number of bytes of every stored tensor by its name.
    pub fn stored(&self) -> BTreeMap<&str, (Vec<usize>, usize)> {
        let tensors = self.proto.initializer.iter();
        let shape = |tensor: &TensorProto| tensor.dims.iter().map(|&n| n as usize).collect();
        tensors
            .map(|tensor| (tensor.name(), (shape(tensor), tensor.raw_data().len())))
            .collect()
    }

    /// A stored tensor in 32 bits.
    ///
    /// # Panics
    ///
    /// If there are not as many values as the shape says, or the name is taken.
    pub fn tensor(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Value {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.store(name, Element::F32, shape, bytes)
    }

    /// A stored matrix `[n_rows, n_columns]`, as numbers of 32 bits wherever it is used.
    ///
    /// # Panics
    ///
    /// If there are not as many values as the shape says, or the name is taken.
    pub fn matrix(
        &mut self,
        name: &str,
        shape: [usize; 2],
        values: &[f32],
        weights: Weights,
    ) -> Value {
        if weights == Weights::Int8 {
            return self.quantised(name, shape, &Quantised::of(values, shape[1]));
        }
        self.weight(name, &shape, values, weights)
    }

    /// A stored tensor of any shape in 32 or 16 bits, as numbers of 32 bits wherever it is used. 8 bits are for
    /// [matrices](Self::matrix): this stores 16 instead.
    ///
    /// # Panics
    ///
    /// If there are not as many values as the shape says, or the name is taken.
    pub fn weight(
        &mut self,
        name: &str,
        shape: &[usize],
        values: &[f32],
        weights: Weights,
    ) -> Value {
        let halves: Vec<f16> = match weights {
            Weights::F32 => Vec::new(),
            Weights::F16 | Weights::Int8 => values.iter().map(|&v| f16::from_f32(v)).collect(),
        };
        if halves.is_empty() || halves.iter().any(|half| !half.is_finite()) {
            return self.tensor(name, shape, values);
        }
        let bytes = halves.iter().flat_map(|v| v.to_le_bytes()).collect();
        let half = self.store(name, Element::F16, shape, bytes);
        self.cast(&half, Element::F32)
    }

    /// A stored matrix in 8 bits, as numbers of 32 bits wherever it is used.
    ///
    /// # Panics
    ///
    /// If it does not have the shape, or the name is taken.
    pub fn quantised(&mut self, name: &str, shape: [usize; 2], matrix: &Quantised) -> Value {
        let bytes = matrix.numbers.iter().map(|&n| n as u8).collect();
        let numbers = self.store(name, Element::I8, &shape, bytes);
        let scales = self.tensor(&format!("{name}.scale"), &[shape[1]], &matrix.scales);
        // Not `DequantizeLinear`: ONNX Runtime fuses it with the product and rounds activations to 8 bits too.
        let numbers = self.cast(&numbers, Element::F32);
        self.mul(&numbers, &scales)
    }

    /// A number of 32 bits.
    pub fn number(&mut self, value: f32) -> Value {
        let key = format!("number.{value}");
        self.constant(key, |graph, key| graph.tensor(key, &[], &[value]))
    }

    /// A whole number of 32 bits.
    pub fn whole(&mut self, value: i32) -> Value {
        self.constant(format!("whole.{value}"), |graph, key| {
            graph.store(key, Element::I32, &[], value.to_le_bytes().to_vec())
        })
    }

    /// A list of whole numbers of 64 bits, as operators take shapes and axes.
    pub fn list(&mut self, values: &[i64]) -> Value {
        let words: Vec<String> = values.iter().map(i64::to_string).collect();
        self.constant(format!("list.{}", words.join(",")), |graph, key| {
            let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            graph.store(key, Element::I64, &[values.len()], bytes)
        })
    }

    fn constant(&mut self, key: String, make: impl FnOnce(&mut Self, &str) -> Value) -> Value {
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        let value = make(self, &key);
        self.known.insert(key, value.clone());
        value
    }

    fn store(&mut self, name: &str, element: Element, shape: &[usize], bytes: Vec<u8>) -> Value {
        let size = Element::size(element.number()).unwrap_or(1);
        let n_bytes = size * shape.iter().product::<usize>();
        assert_eq!(bytes.len(), n_bytes, "bytes of {name}, which is {shape:?}");
        assert!(
            self.proto.initializer.iter().all(|t| t.name() != name),
            "{name} is stored twice"
        );
        self.proto.initializer.push(TensorProto {
            dims: shape.iter().map(|&n| n as i64).collect(),
            data_type: Some(element.number()),
            raw_data: Some(bytes),
            name: Some(name.to_owned()),
            ..TensorProto::default()
        });
        Value {
            name: name.to_owned(),
            element,
            shape: shape.iter().copied().map(Dim::Known).collect(),
        }
    }

    /// Adds an operator with one result.
    pub(crate) fn node(
        &mut self,
        operator: &str,
        inputs: &[Option<&Value>],
        settings: Vec<(&str, Attribute)>,
        element: Element,
        shape: Vec<Dim>,
    ) -> Value {
        let name = format!("{operator}.{}", self.proto.node.len());
        let mut input: Vec<String> = inputs
            .iter()
            .map(|value| value.map_or_else(String::new, |value| value.name.clone()))
            .collect();
        // Absent ones at the end are left out.
        while input.last().is_some_and(String::is_empty) {
            input.pop();
        }
        self.proto.node.push(NodeProto {
            input,
            output: vec![name.clone()],
            name: Some(name.clone()),
            op_type: Some(operator.to_owned()),
            attribute: settings.into_iter().map(attribute).collect(),
            ..NodeProto::default()
        });
        Value {
            name,
            element,
            shape,
        }
    }

    /// Checks that every operator finds what it reads, that nothing has two sources, and that stored tensors have
    /// the bytes that their shapes say.
    pub(crate) fn check(&self) -> Result<(), OnnxError> {
        let problem = |text: String| Err(OnnxError::Graph(text));
        let graph = &self.proto;
        let mut known: std::collections::BTreeSet<&str> = std::collections::BTreeSet::new();
        for value in &graph.input {
            if !known.insert(value.name()) {
                return problem(format!("{} is an input twice", value.name()));
            }
        }
        for tensor in &graph.initializer {
            let n: Option<usize> = tensor
                .dims
                .iter()
                .try_fold(1usize, |n, &dim| n.checked_mul(usize::try_from(dim).ok()?));
            let n_bytes = Element::size(tensor.data_type())
                .zip(n)
                .and_then(|(size, n)| size.checked_mul(n));
            if n_bytes != Some(tensor.raw_data().len()) {
                let (name, found) = (tensor.name(), tensor.raw_data().len());
                return problem(format!("{name} of {:?} has {found} bytes", tensor.dims));
            }
            if !known.insert(tensor.name()) {
                return problem(format!("{} has two sources", tensor.name()));
            }
        }
        for node in &graph.node {
            for input in node.input.iter().filter(|name| !name.is_empty()) {
                if !known.contains(input.as_str()) {
                    return problem(format!(
                        "{} reads {input}, which nothing gives",
                        node.name()
                    ));
                }
            }
            for output in &node.output {
                if !known.insert(output) {
                    return problem(format!("{output} has two sources"));
                }
            }
        }
        let missing = |value: &&ValueInfoProto| !known.contains(value.name());
        match graph.output.iter().find(missing) {
            Some(value) => problem(format!("nothing gives the output {}", value.name())),
            None if graph.output.is_empty() => problem("it has no output".to_owned()),
            None => Ok(()),
        }
    }
}

fn attribute((name, value): (&str, Attribute)) -> AttributeProto {
    let mut found = AttributeProto {
        name: Some(name.to_owned()),
        ..AttributeProto::default()
    };
    let kind = match value {
        Attribute::Int(i) => {
            found.i = Some(i);
            AttributeType::Int
        }
        Attribute::Ints(ints) => {
            found.ints = ints;
            AttributeType::Ints
        }
        Attribute::Float(f) => {
            found.f = Some(f);
            AttributeType::Float
        }
        Attribute::Text(text) => {
            found.s = Some(text.as_bytes().to_vec());
            AttributeType::String
        }
    };
    found.r#type = Some(kind as i32);
    found
}

/// Name, element type and shape of an input or output.
fn described(name: &str, value: &Value) -> ValueInfoProto {
    let dims = value.shape.iter().map(|dim| Dimension {
        value: match dim {
            Dim::Known(n) => Some(dimension::Value::DimValue(*n as i64)),
            Dim::Named(name) => Some(dimension::Value::DimParam((*name).to_owned())),
            Dim::Any => None,
        },
        ..Dimension::default()
    });
    let tensor = type_proto::Tensor {
        elem_type: Some(value.element.number()),
        shape: Some(TensorShapeProto {
            dim: dims.collect(),
        }),
    };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_stored_in_the_bits_that_were_asked_for() {
        let values = [1.0f32, -2.0, 0.5, 4.0, 65504.0, 0.25];
        for (weights, n_bytes, operators) in [
            (Weights::F32, 24, vec![]),
            (Weights::F16, 12, vec!["Cast"]),
            (Weights::Int8, 6, vec!["Cast", "Mul"]),
        ] {
            let mut graph = Graph::new("test");
            let value = graph.matrix("w", [2, 3], &values, weights);
            assert_eq!(value.element(), Element::F32);
            assert_eq!(graph.stored()["w"], (vec![2, 3], n_bytes));
            assert_eq!(graph.operators(), operators);
        }
        // Beyond the range of 16 bits.
        let mut graph = Graph::new("test");
        graph.matrix("w", [1, 2], &[1e6, 1.0], Weights::F16);
        assert_eq!(graph.stored()["w"].1, 8);
    }

    #[test]
    fn equal_constants_are_stored_once() {
        let mut graph = Graph::new("test");
        let (a, b) = (graph.number(0.5), graph.number(0.5));
        assert_eq!(a, b);
        assert_ne!(graph.number(0.25), a);
        assert_eq!(graph.list(&[1, 2]), graph.list(&[1, 2]));
        assert_eq!(graph.stored().len(), 3);
    }

    #[test]
    fn graphs_that_do_not_hold_together_are_named() {
        let made = || {
            let mut graph = Graph::new("test");
            let x = graph.input("x", Element::F32, &[Dim::Known(2)]);
            let y = graph.relu(&x);
            graph.output("y", y);
            graph
        };
        made().check().unwrap();
        let mut graph = made();
        graph.proto.node[0].input[0] = "z".into();
        let error = graph.check().unwrap_err().to_string();
        assert!(error.contains("reads z, which nothing gives"), "{error}");
        let mut graph = made();
        graph.tensor("x", &[1], &[0.0]);
        assert!(
            graph
                .check()
                .unwrap_err()
                .to_string()
                .contains("two sources")
        );
        let mut graph = made();
        graph.tensor("w", &[2], &[0.0; 2]);
        graph.proto.initializer[0].dims = vec![3];
        assert!(graph.check().unwrap_err().to_string().contains("8 bytes"));
        let mut graph = made();
        graph.proto.output[0].name = Some("z".into());
        assert!(graph.check().unwrap_err().to_string().contains("output z"));
    }
}
