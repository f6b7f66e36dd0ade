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

/// Refuses a setting that is no finite number above 0, or not at least 0 where that is allowed.
pub(crate) fn check_number(
    setting: &str,
    value: f64,
    is_zero_allowed: bool,
) -> Result<(), TrainError> {
    let is_fine = value.is_finite() && (value > 0.0 || is_zero_allowed && value == 0.0);
    let expected = match is_zero_allowed {
        true => "a finite number of at least 0",
        false => "a finite number above 0",
    };
    match is_fine {
        true => Ok(()),
        false => Err(TrainError::setting(setting, value, expected)),
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
