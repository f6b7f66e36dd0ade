//! From what was typed to a plan: a preset or a file, and single keys set on the command line.

use std::path::PathBuf;

use sdlora_train::{Plan, RunConfig};
use toml::{Table, Value};

use crate::UsageError;
use crate::commands::{presets, read_text};

/// Which configuration, and what is different from it.
#[derive(Debug, Clone, clap::Args)]
pub struct ConfigArgs {
    /// Configuration inside the binary, see `sdlora presets`
    #[arg(long, default_value = "omniglot-10x20", conflicts_with = "config")]
    pub preset: String,
    /// Configuration file (TOML)
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Set a key of the configuration, for instance `method.variant=paper` or `n_epochs=5`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl ConfigArgs {
    /// The checked plan.
    ///
    /// # Errors
    ///
    /// Usage errors that name the key.
    pub fn plan(&self) -> anyhow::Result<Plan> {
        Ok(self.run_config()?.check()?)
    }

    /// The configuration, before its parts are checked against each other.
    ///
    /// # Errors
    ///
    /// Usage errors that name the key.
    pub fn run_config(&self) -> anyhow::Result<RunConfig> {
        let text = match &self.config {
            Some(path) => read_text(path)?,
            None => presets::find(&self.preset)?.text.to_owned(),
        };
        with_settings(&text, &self.set)
    }
}

/// A configuration with keys set.
///
/// # Errors
///
/// Usage errors that name the key.
pub fn with_settings(text: &str, settings: &[String]) -> anyhow::Result<RunConfig> {
    if settings.is_empty() {
        // Straight from the text, so that an error has a line number.
        return Ok(RunConfig::parse(text)?);
    }
    let mut table: Table = text
        .parse()
        .map_err(|e| UsageError(format!("configuration is not TOML: {e}")))?;
    for setting in settings {
        let (key, value) = setting.split_once('=').ok_or_else(|| {
            UsageError(format!(
                "`--set {setting}` has no `=`: write `--set key=value`"
            ))
        })?;
        set(&mut table, key.trim(), parse_value(value.trim()))?;
    }
    Ok(RunConfig::parse(&table.to_string())?)
}

/// A TOML value, or a string where it is none: `paper` needs no quotes.
pub fn parse_value(text: &str) -> Value {
    match format!("value = {text}").parse::<Table>() {
        Ok(mut table) => table
            .remove("value")
            .unwrap_or_else(|| Value::String(text.into())),
        Err(_) => Value::String(text.into()),
    }
}

fn set(table: &mut Table, key: &str, value: Value) -> Result<(), UsageError> {
    match key.split_once('.') {
        None => {
            table.insert(key.into(), value);
            Ok(())
        }
        Some((head, rest)) => {
            let inner = table
                .entry(head)
                .or_insert_with(|| Value::Table(Table::new()));
            match inner {
                Value::Table(inner) => set(inner, rest, value),
                _ => Err(UsageError(format!(
                    "`--set {key}`: `{head}` is a value, not a section"
                ))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn main_job(settings: &[&str]) -> anyhow::Result<RunConfig> {
        let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
        with_settings(presets::PRESETS[0].text, &settings)
    }

    #[test]
    fn every_preset_is_a_plan() {
        for preset in presets::PRESETS {
            let config = with_settings(preset.text, &[])
                .unwrap_or_else(|e| panic!("{}: {e:#}", preset.name));
            config.check().unwrap();
        }
    }

    #[test]
    fn keys_are_set_by_their_dotted_name() {
        let config = main_job(&["n_epochs=3", "method.variant=paper", "optimizer.lr=0.5"]).unwrap();
        assert_eq!(config.n_epochs, 3);
        assert_eq!(config.optimizer.lr, 0.5);
        assert_eq!(config.method.options["variant"].as_str(), Some("paper"));
    }

    #[test]
    fn unknown_keys_and_values_are_refused_by_name() {
        let error = format!("{:#}", main_job(&["n_epoch=3"]).unwrap_err());
        assert!(error.contains("n_epoch"), "{error}");
        let error = main_job(&["method.variant=best"])
            .unwrap()
            .check()
            .unwrap_err()
            .to_string();
        assert!(error.contains("best") && error.contains("paper"), "{error}");
        assert!(main_job(&["n_epochs"]).is_err());
        assert!(main_job(&["seed.x=1"]).is_err());
    }
}
