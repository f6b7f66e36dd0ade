//! Reading the options of methods and heads.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::TrainError;

/// Reads options as the type of a method or head; `setting` says whose they are.
///
/// What the type has no place for is refused by name at any depth. Serde alone does not see to
/// that: it ignores unknown keys beside a tag, as in `settings.current`.
///
/// # Errors
///
/// [`TrainError::Setting`] that names what is unknown or has the wrong type.
pub(crate) fn parse<T: Serialize + DeserializeOwned>(
    setting: &str,
    options: &toml::Table,
) -> Result<T, TrainError> {
    let refuse = |expected: String| {
        let found = toml::to_string(options).unwrap_or_default();
        let found = found.trim().replace('\n', ", ");
        TrainError::setting(setting, found, expected)
    };
    let read: T = options
        .clone()
        .try_into()
        .map_err(|e: toml::de::Error| refuse(format!("options it knows: {}", e.message())))?;
    let known = toml::Table::try_from(&read)
        .map_err(|e| refuse(format!("options with a TOML form: {e}")))?;
    match unknown_key(options, &known) {
        None => Ok(read),
        Some(key) => Err(refuse(format!("options it knows: unknown field `{key}`"))),
    }
}

/// The first key, with the tables it lies in, that `known` lacks.
fn unknown_key(typed: &toml::Table, known: &toml::Table) -> Option<String> {
    typed
        .iter()
        .find_map(|(key, value)| match (value, known.get(key)) {
            (_, None) => Some(key.clone()),
            (toml::Value::Table(typed), Some(toml::Value::Table(known))) => {
                unknown_key(typed, known).map(|inner| format!("{key}.{inner}"))
            }
            _ => None,
        })
}
