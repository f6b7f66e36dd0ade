//! What flows between operators: element type, shape and name.

use crate::schema::tensor_proto::DataType;

/// Type of the numbers of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// 32 bits, floating.
    F32,
    /// 16 bits, floating.
    F16,
    /// 8 bits with a sign.
    I8,
    /// 8 bits without a sign.
    U8,
    /// 32 bits with a sign.
    I32,
    /// 64 bits with a sign.
    I64,
    /// True or false.
    Bool,
}

impl Element {
    pub(crate) fn number(self) -> i32 {
        let kind = match self {
            Self::F32 => DataType::Float,
            Self::F16 => DataType::Float16,
            Self::I8 => DataType::Int8,
            Self::U8 => DataType::Uint8,
            Self::I32 => DataType::Int32,
            Self::I64 => DataType::Int64,
            Self::Bool => DataType::Bool,
        };
        kind as i32
    }

    /// Bytes of a number.
    pub(crate) fn size(number: i32) -> Option<usize> {
        Some(match DataType::try_from(number).ok()? {
            DataType::Float | DataType::Int32 => 4,
            DataType::Float16 => 2,
            DataType::Int8 | DataType::Uint8 | DataType::Bool => 1,
            DataType::Int64 => 8,
            _ => return None,
        })
    }
}

/// Length of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dim {
    /// That length.
    Known(usize),
    /// Any length, the same wherever the name is.
    Named(&'static str),
    /// Any length.
    Any,
}

impl Dim {
    /// Any length, the same wherever the name is.
    pub const fn named(name: &'static str) -> Self {
        Self::Named(name)
    }

    /// The length, where it is known.
    pub fn known(self) -> Option<usize> {
        match self {
            Self::Known(n) => Some(n),
            _ => None,
        }
    }

    /// Whether both can be one length.
    pub(crate) fn fits(self, other: Self) -> bool {
        match (self, other) {
            (Self::Known(a), Self::Known(b)) => a == b,
            (Self::Named(a), Self::Named(b)) => a == b,
            (Self::Any, _) | (_, Self::Any) => true,
            _ => false,
        }
    }

    /// The axis of two that an operator spreads over each other, if it can.
    pub(crate) fn spread(self, other: Self) -> Option<Self> {
        match (self, other) {
            (Self::Known(1), other) | (other, Self::Known(1)) => Some(other),
            // Of one length or an error of the runtime, whichever is known says it.
            (Self::Any, other) | (other, Self::Any) => Some(other),
            (a, b) => (a == b).then_some(a),
        }
    }
}

/// A tensor inside a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    pub(crate) name: String,
    pub(crate) element: Element,
    pub(crate) shape: Vec<Dim>,
}

impl Value {
    /// Its name in the graph.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Type of its numbers.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Length of every axis.
    pub fn shape(&self) -> &[Dim] {
        &self.shape
    }
}

/// The shape of two that an operator spreads over each other.
///
/// # Panics
///
/// If they do not fit.
pub(crate) fn broadcast(a: &[Dim], b: &[Dim]) -> Vec<Dim> {
    let n = a.len().max(b.len());
    let at = |shape: &[Dim], i: usize| match (i + shape.len()).checked_sub(n) {
        Some(i) => shape[i],
        None => Dim::Known(1),
    };
    let axes = (0..n).map(|i| at(a, i).spread(at(b, i)));
    let all: Option<Vec<Dim>> = axes.collect();
    all.unwrap_or_else(|| panic!("{a:?} and {b:?} cannot be spread over each other"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_of_one_are_spread_and_others_have_to_be_the_same() {
        let batch = Dim::named("batch");
        let [one, two, three] = [1, 2, 3].map(Dim::Known);
        assert_eq!(
            broadcast(&[batch, two, three], &[three]),
            [batch, two, three]
        );
        assert_eq!(broadcast(&[one, two], &[batch, one]), [batch, two]);
        assert_eq!(broadcast(&[Dim::Any], &[two]), [two]);
        let outcome = std::panic::catch_unwind(|| broadcast(&[two], &[three]));
        assert!(outcome.is_err(), "2 spread over 3");
        assert!(two.fits(Dim::Any) && !two.fits(three) && !batch.fits(Dim::named("width")));
    }
}
