//! What a configuration is known to reach elsewhere, for a reader to compare with.

use serde::{Deserialize, Serialize};

use crate::error::TrainError;

/// One published result of a configuration. It changes nothing in a run.
///
/// Numbers are percentages, as papers print them; at least one of `acc` and `aaa` is given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expected {
    /// Accuracy after the last task, 0 to 100 %.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acc: Option<f64>,
    /// Standard error of `acc` over runs, in percentage points, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acc_standard_error: Option<f64>,
    /// Average anytime accuracy, 0 to 100 %.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aaa: Option<f64>,
    /// Standard error of `aaa` over runs, in percentage points, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aaa_standard_error: Option<f64>,
    /// What the mean of an accuracy runs over.
    #[serde(default)]
    pub over: MeanOver,
    /// Where the numbers stand.
    pub source: String,
}

/// What the mean of an accuracy runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MeanOver {
    /// Over tasks, each counting the same (the paper).
    #[default]
    Tasks,
    /// Over the images of all tasks (the published code).
    Images,
}

impl Expected {
    /// Checks the ranges.
    ///
    /// # Errors
    ///
    /// [`TrainError::Setting`] for the first value outside its range, or when there is none.
    pub(crate) fn check(&self) -> Result<(), TrainError> {
        let refuse = |key: &str, found: String, expected: &str| {
            Err(TrainError::setting(
                format!("expected.{key}"),
                found,
                expected,
            ))
        };
        let range = "a percentage from 0 to 100";
        for (key, value, error) in [
            ("acc", self.acc, self.acc_standard_error),
            ("aaa", self.aaa, self.aaa_standard_error),
        ] {
            for (key, value) in [
                (key.to_owned(), value),
                (format!("{key}_standard_error"), error),
            ] {
                if let Some(value) = value
                    && !(0.0..=100.0).contains(&value)
                {
                    return refuse(&key, value.to_string(), range);
                }
            }
            if value.is_none() && error.is_some() {
                return refuse(key, "absent".into(), "the value that the error belongs to");
            }
        }
        if self.acc.is_none() && self.aaa.is_none() {
            return refuse("acc", "absent".into(), "a percentage, or give `aaa`");
        }
        if self.source.trim().is_empty() {
            return refuse("source", "empty".into(), "where the numbers stand");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<(), String> {
        let expected: Expected = toml::from_str(text).map_err(|e| e.to_string())?;
        expected.check().map_err(|e| e.to_string())
    }

    #[test]
    fn what_is_malformed_is_refused_by_name() {
        check("acc = 77.34\nacc_standard_error = 0.35\naaa = 82.04\nsource = \"x\"").unwrap();
        check("aaa = 82.04\nover = \"images\"\nsource = \"x\"").unwrap();
        for (text, named) in [
            ("acc = 101.0\nsource = \"x\"", "expected.acc"),
            ("acc = nan\nsource = \"x\"", "expected.acc"),
            ("acc = 1.0\naaa = -1.0\nsource = \"x\"", "expected.aaa"),
            ("source = \"x\"", "expected.acc"),
            ("acc = 1.0\nsource = \" \"", "expected.source"),
            ("acc = 1.0", "source"),
            ("acc = 1.0\nsource = \"x\"\naccuracy = 2.0", "accuracy"),
            (
                "acc = 1.0\naaa_standard_error = 0.1\nsource = \"x\"",
                "expected.aaa",
            ),
        ] {
            let error = check(text).expect_err(text);
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
