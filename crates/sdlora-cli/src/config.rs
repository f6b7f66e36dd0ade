//! From what was typed to a plan: a preset or a file, and single keys set on the command line.

use std::path::PathBuf;

use anyhow::Context;
use sdlora_data::{StreamConfig, datasets};
use sdlora_fetch::HubRepo;
use sdlora_image::{Channels, TransformConfig};
use sdlora_train::{BackboneConfig, Plan, RunConfig, TrainError};
use toml::{Table, Value};

use crate::UsageError;
use crate::backbone::{BackboneArgs, Backbones};
use crate::commands::{Common, presets, read_text};
use crate::output::note;
use crate::pilot::{self, Translation};
use crate::shown::{shown, shown_path};

/// Which configuration, and what is different from it.
#[derive(Debug, Clone, clap::Args)]
pub struct ConfigArgs {
    /// Configuration inside the binary, see `sdlora presets`
    #[arg(long, default_value = "omniglot-10x20", conflicts_with = "config")]
    pub preset: String,
    /// Configuration file: TOML, or the JSON of PILOT and its descendants
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Seed of class order, drawn weights and order of images instead of the configuration's
    #[arg(long)]
    pub seed: Option<u32>,
    /// Set a key of the configuration, for instance `method.variant=paper` or `n_epochs=5`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    #[command(flatten)]
    pub backbone: BackboneArgs,
}

impl ConfigArgs {
    /// The checked plan, its backbone found or downloaded.
    ///
    /// # Errors
    ///
    /// Usage errors that name the key, and those of the backbone.
    pub fn plan(&self, common: &Common) -> anyhow::Result<Plan> {
        let mut backbones = Backbones::default();
        let text = self.text()?;
        let settings = self.settings(&text);
        let mut config = with_settings(&text, &self.backbone, &settings, &mut |backbone| {
            backbones.transform(backbone, None, common)
        })?;
        if HubRepo::is_spec(&config.backbone.weights.to_string_lossy()) {
            // Before a download that would be in vain.
            datasets::open(&config.dataset, &common.data_dir, &config.dataset_options)
                .map_err(TrainError::from)?;
        }
        backbones.resolve(&mut config.backbone, common)?;
        Ok(config.check()?)
    }

    /// The stream of the configuration; no backbone is looked for.
    ///
    /// # Errors
    ///
    /// Usage errors that name the key.
    pub fn stream(&self) -> anyhow::Result<StreamConfig> {
        // It does not depend on how images are prepared.
        let any = TransformConfig::new(1, Channels::Rgb);
        let text = self.text()?;
        let settings = self.settings(&text);
        let config = with_settings(&text, &self.backbone, &settings, &mut |_| {
            Ok(Some(any.clone()))
        })?;
        Ok(config.stream)
    }

    /// The configuration as TOML.
    fn text(&self) -> anyhow::Result<String> {
        let Some(path) = &self.config else {
            return Ok(presets::find(&self.preset)?.text.to_owned());
        };
        let text = read_text(path)?;
        // TOML cannot start with a brace.
        let json = text.trim_start_matches('\u{feff}').trim_start();
        if !json.starts_with('{') {
            return presets::read(path);
        }
        let Translation { table, notes } = pilot::translate(json, self.seed)
            .with_context(|| format!("{} cannot be used", path.display()))?;
        for note in notes {
            note!("{}: {}", shown_path(path), shown(&note));
        }
        Ok(table.to_string())
    }

    /// What is set above the configuration, the seed first.
    fn settings(&self, text: &str) -> Vec<String> {
        let mut settings = Vec::new();
        if let Some(seed) = self.seed {
            settings.push(format!("seed={seed}"));
            let table: Table = text.parse().unwrap_or_default();
            for order in NUMPY_ORDERS {
                let found = order
                    .iter()
                    .try_fold(&table, |table, key| table.get(*key)?.as_table());
                if found.is_some() {
                    settings.push(format!("{}.seed={seed}", order.join(".")));
                }
            }
        }
        settings.extend_from_slice(&self.set);
        settings
    }
}

/// A stream of these keys alone. `b50-inc10` stands for 50 classes and then 10 a task, `b0-inc20` for 20 a task.
///
/// # Errors
///
/// Usage errors that name the key.
pub fn stream_of(keys: &[String]) -> anyhow::Result<StreamConfig> {
    let mut table = Table::new();
    for key in keys {
        match key.split_once('=') {
            Some((key, value)) => set(&mut table, key.trim(), parse_value(value.trim()))?,
            None => {
                let (init_cls, increment) = increments(key).ok_or_else(|| {
                    UsageError(format!(
                        "`--stream {key}` is neither `key=value` nor of the form `b0-inc20`"
                    ))
                })?;
                let split = format!(
                    "{{ increment = {{ init_cls = {init_cls}, increment = {increment} }} }}"
                );
                set(&mut table, "split", parse_value(&split))?;
            }
        }
    }
    Ok(table
        .try_into()
        .map_err(|e| UsageError(format!("`--stream` cannot be read: {e}")))?)
}

/// Classes of the first task and of the later ones, of `b50-inc10`; `b0` starts as it goes on.
fn increments(text: &str) -> Option<(usize, usize)> {
    let text = text.to_ascii_lowercase();
    let (first, increment) = text.strip_prefix('b')?.split_once("-inc")?;
    let (first, increment) = (first.parse().ok()?, increment.parse().ok()?);
    Some((if first == 0 { increment } else { first }, increment))
}

/// Where a configuration may have a permutation of NumPy, which the seed of a run draws too.
const NUMPY_ORDERS: &[&[&str]] = &[
    &["stream", "class_order", "numpy"],
    &["stream", "split", "per_group", "order", "numpy"],
    &["stream", "split", "per_domain", "order", "numpy"],
];

/// Says which transform the checkpoint of a backbone asks for, `None` where it does not say.
pub type TransformOf<'a> =
    dyn FnMut(&BackboneConfig) -> anyhow::Result<Option<TransformConfig>> + 'a;

/// Stands for `[transform]` where the checkpoint decides.
const FROM_CHECKPOINT: &str = "checkpoint";

/// A configuration with another backbone and keys set.
///
/// The transform is that of the checkpoint where the configuration has none, where it is
/// `"checkpoint"`, and where the backbone is another one that says which it wants; keys that are set
/// stand above it.
///
/// # Errors
///
/// Usage errors that name the key, and those of `transform_of`.
pub fn with_settings(
    text: &str,
    backbone: &BackboneArgs,
    settings: &[String],
    transform_of: &mut TransformOf<'_>,
) -> anyhow::Result<RunConfig> {
    let section = backbone.section()?;
    let mut table: Table = match text.parse() {
        Ok(table) => table,
        // The error has a line number.
        Err(_) => return Ok(RunConfig::parse(text)?),
    };
    if settings.is_empty() && section.is_none() && table.get("transform").is_some_and(is_own) {
        // Straight from the text, so that an error has a line number.
        return Ok(RunConfig::parse(text)?);
    }
    let is_other_backbone = section.is_some();
    if let Some(section) = section {
        table.insert("backbone".into(), Value::Table(section));
    }
    let mut later = Vec::new();
    for setting in settings {
        let (key, value) = setting.split_once('=').ok_or_else(|| {
            UsageError(format!(
                "`--set {setting}` has no `=`: write `--set key=value`"
            ))
        })?;
        let (key, value) = (key.trim(), parse_value(value.trim()));
        // Which backbone it is decides what the other keys stand above.
        if key == "transform" || key == "backbone" || key.starts_with("backbone.") {
            set(&mut table, key, value)?;
        } else {
            later.push((key, value));
        }
    }
    let asks = !table.get("transform").is_some_and(is_own);
    if (asks || is_other_backbone) && table.contains_key("backbone") {
        let backbone: BackboneConfig = table["backbone"]
            .clone()
            .try_into()
            .map_err(|e| UsageError(format!("`backbone` cannot be read: {e}")))?;
        match transform_of(&backbone)? {
            Some(transform) => {
                table.insert("transform".into(), Value::try_from(&transform)?);
            }
            None if asks => {
                return Err(UsageError(format!(
                    "the backbone {} does not say how images are prepared: write a `[transform]`",
                    backbone.weights.display()
                ))
                .into());
            }
            None => {}
        }
    }
    for (key, value) in later {
        set(&mut table, key, value)?;
    }
    Ok(RunConfig::parse(&table.to_string())?)
}

fn is_own(transform: &Value) -> bool {
    transform.as_str() != Some(FROM_CHECKPOINT)
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

    /// A checkpoint that does not say.
    fn nothing(_: &BackboneConfig) -> anyhow::Result<Option<TransformConfig>> {
        Ok(None)
    }

    fn main_job(settings: &[&str]) -> anyhow::Result<RunConfig> {
        let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
        with_settings(
            presets::find("omniglot-10x20").unwrap().text,
            &BackboneArgs::default(),
            &settings,
            &mut nothing,
        )
    }

    #[test]
    fn every_preset_is_a_plan() {
        for preset in presets::all() {
            let config = with_settings(preset.text, &BackboneArgs::default(), &[], &mut nothing)
                .unwrap_or_else(|e| panic!("{}: {e:#}", preset.name));
            config.check().unwrap();
        }
    }

    #[test]
    fn a_stream_has_short_names() {
        assert_eq!(increments("B0-Inc20"), Some((20, 20)));
        assert_eq!(increments("b50-inc10"), Some((50, 10)));
        assert_eq!(increments("b50"), None);
        let keys = ["b50-inc10", "class_order.numpy.seed=1993", "n_tasks=3"];
        let stream = stream_of(&keys.map(str::to_owned)).unwrap();
        let expected: StreamConfig = toml::from_str(
            "n_tasks = 3\nsplit = { increment = { init_cls = 50, increment = 10 } }\nclass_order = { numpy = { seed = 1993 } }",
        )
        .unwrap();
        assert_eq!(stream, expected);
    }

    #[test]
    fn keys_are_set_by_their_dotted_name() {
        let config = main_job(&["n_epochs=3", "method.variant=paper", "optimizer.lr=0.5"]).unwrap();
        assert_eq!(config.n_epochs, 3);
        assert_eq!(config.optimizer.lr, 0.5);
        assert_eq!(config.method.options["variant"].as_str(), Some("paper"));
    }

    #[test]
    fn a_seed_also_draws_the_order_where_numpy_does() {
        let args = |seed, set: &[&str]| ConfigArgs {
            preset: "omniglot-alphabets".into(),
            config: None,
            seed,
            set: set.iter().map(|s| s.to_string()).collect(),
            backbone: BackboneArgs::default(),
        };
        let config = |args: ConfigArgs| {
            let text = args.text().unwrap();
            with_settings(&text, &args.backbone, &args.settings(&text), &mut nothing).unwrap()
        };
        let as_it_is = config(args(None, &[]));
        let seeded = config(args(Some(7), &[]));
        assert_eq!((as_it_is.seed, seeded.seed), (1993, 7));
        let written = Table::try_from(&seeded.stream).unwrap().to_string();
        assert!(!written.contains("1993") && written.matches("seed = 7").count() == 2);
        // A single key stands above it, and a natural order stays.
        let natural = config(args(Some(7), &["stream.class_order=natural", "seed=8"]));
        assert_eq!(natural.seed, 8);
        assert_eq!(natural.stream.class_order, sdlora_data::ClassOrder::Natural);
    }

    #[test]
    fn another_backbone_comes_without_the_shape_of_the_first_and_before_the_keys() {
        let text = presets::find("omniglot-10x20").unwrap().text.replace(
            "[backbone]",
            "[backbone]\npreset = \"vit_base_patch16_224\"",
        );
        let args = BackboneArgs {
            backbone: Some("hf:timm/tiny".into()),
            ..BackboneArgs::default()
        };
        let config = with_settings(&text, &args, &[], &mut nothing).unwrap();
        assert_eq!(config.backbone.weights, PathBuf::from("hf:timm/tiny"));
        assert_eq!(config.backbone.preset, None);
        let set = ["backbone.preset=vit_large_patch16_224".to_owned()];
        let config = with_settings(&text, &args, &set, &mut nothing).unwrap();
        assert_eq!(
            config.backbone.preset.as_deref(),
            Some("vit_large_patch16_224")
        );
    }

    #[test]
    fn a_checkpoint_decides_where_it_is_asked_and_keys_stand_above_it() {
        let mut asked = Vec::new();
        let mut transform_of = |backbone: &BackboneConfig| {
            asked.push(backbone.weights.display().to_string());
            Ok(Some(TransformConfig::new(64, sdlora_image::Channels::Rgb)))
        };
        let text = presets::find("omniglot-10x20").unwrap().text;
        let other = BackboneArgs {
            backbone: Some("other.safetensors".into()),
            ..BackboneArgs::default()
        };
        let none = BackboneArgs::default();
        let set = |settings: &[&str]| settings.iter().map(|s| s.to_string()).collect::<Vec<_>>();

        // The preset's own backbone keeps the preset's transform.
        let config = with_settings(text, &none, &set(&["n_epochs=3"]), &mut transform_of).unwrap();
        assert_eq!(config.transform.side, 28);
        for (backbone, settings) in [
            (&other, set(&["transform.side=32"])),
            (&none, set(&["transform.side=32", "transform=checkpoint"])),
        ] {
            let config = with_settings(text, backbone, &settings, &mut transform_of).unwrap();
            assert_eq!(config.transform.side, 32);
            assert_eq!(config.transform.channels, sdlora_image::Channels::Rgb);
        }
        assert_eq!(
            asked,
            [
                "other.safetensors",
                "omniglot/vit_omniglot_patch7_28.safetensors"
            ]
        );

        // A checkpoint that does not say leaves what there is, and is an error where there is nothing.
        let config = with_settings(text, &other, &[], &mut nothing).unwrap();
        assert_eq!(config.transform.side, 28);
        let error = main_job(&["transform=checkpoint"]).unwrap_err().to_string();
        assert!(error.contains("[transform]"), "{error}");
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
