//! The keys of a file, each taken out once and of the type it must have.

use serde_json::{Map, Value as Json};
use toml::Value;

use crate::UsageError;

/// Keys that are not read yet, and what there is to say.
pub(super) struct Keys {
    pub(super) map: Map<String, Json>,
    pub(super) notes: Vec<String>,
}

impl Keys {
    fn take(&mut self, key: &str) -> Option<Json> {
        // A key that is null is not given.
        self.map.remove(key).filter(|value| !value.is_null())
    }

    pub(super) fn number(&mut self, key: &str) -> Result<Option<f64>, UsageError> {
        self.take(key)
            .map(|value| value.as_f64().ok_or_else(|| wrong(key, &value, "a number")))
            .transpose()
    }

    pub(super) fn count(&mut self, key: &str) -> Result<Option<usize>, UsageError> {
        self.take(key).map(|value| count(key, &value)).transpose()
    }

    pub(super) fn count_of(&mut self, keys: &[&str]) -> Result<Option<usize>, UsageError> {
        self.first(keys, Self::count)
    }

    /// A list of counts, or a single one.
    pub(super) fn counts(&mut self, key: &str) -> Result<Option<Vec<usize>>, UsageError> {
        self.take(key)
            .map(|value| match &value {
                Json::Array(values) => values.iter().map(|value| count(key, value)).collect(),
                value => Ok(vec![count(key, value)?]),
            })
            .transpose()
    }

    pub(super) fn flag(&mut self, key: &str) -> Result<Option<bool>, UsageError> {
        self.take(key)
            .map(|value| {
                let expected = "true or false";
                value.as_bool().ok_or_else(|| wrong(key, &value, expected))
            })
            .transpose()
    }

    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>, UsageError> {
        self.take(key)
            .map(|value| match value {
                Json::String(text) => Ok(text),
                value => Err(wrong(key, &value, "a string")),
            })
            .transpose()
    }

    pub(super) fn text_of(&mut self, keys: &[&str]) -> Result<Option<String>, UsageError> {
        self.first(keys, Self::text)
    }

    /// The first of several spellings that is given.
    fn first<T>(
        &mut self,
        keys: &[&str],
        read: fn(&mut Self, &str) -> Result<Option<T>, UsageError>,
    ) -> Result<Option<T>, UsageError> {
        for key in keys {
            if let Some(value) = read(self, key)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }
}

fn count(key: &str, value: &Json) -> Result<usize, UsageError> {
    value
        .as_u64()
        .and_then(|n| usize::try_from(n).ok())
        .ok_or_else(|| wrong(key, value, "a whole number from 0"))
}

pub(super) fn integer(n: usize) -> Result<Value, UsageError> {
    i64::try_from(n)
        .map(Value::Integer)
        .map_err(|_| UsageError(format!("{n} is too large: give a smaller number")))
}

pub(super) fn missing(key: &str) -> UsageError {
    UsageError(format!("the key `{key}` is missing: add it"))
}

pub(super) fn wrong(key: &str, found: &impl std::fmt::Display, expected: &str) -> UsageError {
    UsageError(format!("`{key}` is {found}: give it {expected}"))
}
