//! What a pickle describes, as data: values in one arena that name each other by position.
//!
//! Positions instead of pointers, so that a value may contain itself and nothing recurses, not even its release.

use std::borrow::Cow;

use crate::error::Problem;
use crate::limits::MAX_VALUES;

/// Position of a value in the arena.
pub type Id = u32;

/// A value; `O` is what the reader makes of calls.
#[derive(Clone, Debug)]
pub enum Value<'a, O> {
    /// `None`, a float, a set, or a number beyond 64 bits: recognised, not kept.
    Plain,
    /// A truth value.
    Bool,
    /// A whole number.
    Int(i64),
    /// A text as it stands in the pickle. Python 2 wrote its byte strings so, hence it need not be UTF-8.
    Str(&'a [u8]),
    /// Bytes.
    Bytes(Cow<'a, [u8]>),
    /// A tuple.
    Tuple(Box<[Id]>),
    /// A list.
    List(Vec<Id>),
    /// A dictionary, in the order of writing.
    Dict(Vec<(Id, Id)>),
    /// Module and name of a class or function; it is never looked up.
    Global(&'a str, &'a str),
    /// What the reader made of a call.
    Object(O),
    /// What a call of that global would have given. Items that are added to it are dropped.
    Unbuilt(Id),
}

/// The arena.
#[derive(Debug)]
pub struct Values<'a, O>(Vec<Value<'a, O>>);

impl<'a, O> Values<'a, O> {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a value.
    ///
    /// # Errors
    ///
    /// When there are [`MAX_VALUES`] already.
    pub fn add(&mut self, value: Value<'a, O>) -> Result<Id, Problem> {
        if self.0.len() >= MAX_VALUES {
            return Err("it describes more values than any checkpoint".into());
        }
        self.0.push(value);
        Ok(self.0.len() as Id - 1)
    }

    /// The value at a position.
    ///
    /// # Panics
    ///
    /// When the position is of another arena.
    pub fn get(&self, id: Id) -> &Value<'a, O> {
        &self.0[id as usize]
    }

    /// The value at a position, for a change.
    ///
    /// # Panics
    ///
    /// When the position is of another arena.
    pub fn get_mut(&mut self, id: Id) -> &mut Value<'a, O> {
        &mut self.0[id as usize]
    }

    /// `module.name` of a global, empty for other values.
    pub fn global_name(&self, id: Id) -> String {
        match self.get(id) {
            Value::Global(module, name) => format!("{module}.{name}"),
            _ => String::new(),
        }
    }

    /// A whole number that is not negative.
    pub fn non_negative(&self, id: Id) -> Option<u64> {
        match self.get(id) {
            Value::Int(x) => u64::try_from(*x).ok(),
            _ => None,
        }
    }

    /// The items of a tuple or list.
    pub fn items(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) => Some(items),
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// A text that is UTF-8.
    pub fn text(&self, id: Id) -> Option<&'a str> {
        match self.get(id) {
            Value::Str(text) => std::str::from_utf8(text).ok(),
            _ => None,
        }
    }

    /// The bytes of a text or of bytes.
    pub fn bytes(&self, id: Id) -> Option<&[u8]> {
        match self.get(id) {
            Value::Str(text) => Some(text),
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }
}
