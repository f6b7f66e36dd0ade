//! The backbone a user names: a weight file, a folder with one, or a model of the Hub.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sdlora_fetch::{Hub, HubRepo, sha256_of};
use sdlora_image::TransformConfig;
use sdlora_train::BackboneConfig;
use sdlora_vit::{BACKBONES, Checkpoint, Preprocess};
use sdlora_weights::{ContainerKind, WeightFile};
use toml::{Table, Value};

use crate::UsageError;
use crate::commands::Common;
use crate::download_bar::DownloadBar;
use crate::known::KnownArgs;
use crate::output::say;
use crate::preprocess;

/// Which backbone instead of the configuration's.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct BackboneArgs {
    /// Backbone instead of the configuration's: a weight file, a folder with one, or a model of the
    /// Hugging Face Hub as hf:ORG/NAME or hf:ORG/NAME@REVISION
    #[arg(long, value_name = "SPEC")]
    pub backbone: Option<String>,
    #[command(flatten)]
    pub known: KnownArgs,
}

impl BackboneArgs {
    /// The section `[backbone]` that takes the place of the configuration's.
    ///
    /// # Errors
    ///
    /// A usage error when the path of the current folder is not known, and for settings of a
    /// backbone that is not named.
    pub fn section(&self) -> anyhow::Result<Option<Table>> {
        let Some(spec) = &self.backbone else {
            return match self.known.first() {
                None => Ok(None),
                Some(option) => Err(UsageError(format!(
                    "`{option}` is said of `--backbone`: name the backbone, or set it in `[backbone]`"
                ))
                .into()),
            };
        };
        let path = Path::new(spec);
        // On the command line a path starts where the user is, in a plan at the data folder.
        let weights = if !HubRepo::is_spec(spec) && path.exists() {
            std::path::absolute(path)?.to_string_lossy().into_owned()
        } else {
            spec.clone()
        };
        let mut section = Table::from_iter([("weights".to_owned(), Value::String(weights))]);
        self.known.add_to(&mut section);
        Ok(Some(section))
    }
}

/// Backbones found so far, each looked up and named to the user once.
#[derive(Debug, Default)]
pub struct Backbones {
    found: BTreeMap<PathBuf, Found>,
}

#[derive(Debug, Clone)]
struct Found {
    /// What [`BackboneConfig::resolved`] becomes: only where the name is no path.
    resolved: Option<PathBuf>,
    /// The file with the weights, of several the list of them.
    file: PathBuf,
    /// Of a model of the Hub, whose content may change under the same name.
    sha256: Option<String>,
    /// Its input and channels, or why no transform can give it.
    preprocess: Result<Option<(Preprocess, usize)>, String>,
}

impl Backbones {
    /// Finds or downloads the weights, says in one line what they are, and completes the section of
    /// the plan: where they lie, and the SHA-256 of a model of the Hub.
    ///
    /// # Errors
    ///
    /// Usage errors when there is no such backbone or its SHA-256 is not the one that is asked for;
    /// otherwise those of the download and of the file.
    pub fn resolve(&mut self, config: &mut BackboneConfig, common: &Common) -> anyhow::Result<()> {
        let found = self.find(config, common)?;
        config.resolved = found.resolved.clone();
        match &config.sha256 {
            Some(expected) => check_sum(found, expected)?,
            None => config.sha256 = found.sha256.clone(),
        }
        Ok(())
    }

    /// The transform that the checkpoint asks for, at images of `side` pixels where given; `None`
    /// where it carries none.
    ///
    /// # Errors
    ///
    /// Those of [`resolve`](Self::resolve), and a usage error for what no transform here does.
    pub fn transform(
        &mut self,
        config: &BackboneConfig,
        side: Option<usize>,
        common: &Common,
    ) -> anyhow::Result<Option<TransformConfig>> {
        match &self.find(config, common)?.preprocess {
            Err(problem) => Err(UsageError(problem.clone()).into()),
            Ok(None) => Ok(None),
            Ok(Some((preprocess, n_channels))) => {
                Ok(Some(preprocess::transform(preprocess, *n_channels, side)?))
            }
        }
    }

    fn find(&mut self, config: &BackboneConfig, common: &Common) -> anyhow::Result<&Found> {
        if !self.found.contains_key(&config.weights) {
            let found = find(config, common)?;
            self.found.insert(config.weights.clone(), found);
        }
        Ok(&self.found[&config.weights])
    }
}

fn find(config: &BackboneConfig, common: &Common) -> anyhow::Result<Found> {
    let spec = config.weights.to_string_lossy();
    let resolved = match HubRepo::is_spec(&spec) {
        true => Some(fetch(&spec, common.quiet)?),
        false => None,
    };
    let path = match &resolved {
        Some(snapshot) => snapshot.clone(),
        None => common.data_dir.join(&config.weights),
    };
    if !path.exists() {
        return Err(UsageError(not_found(&spec, &path)).into());
    }
    let hints = config.hints(None)?;
    let checkpoint = Checkpoint::open(&path, &hints)?;
    let weights = WeightFile::open(&path)?;
    let is_one_file = weights.kind() != ContainerKind::ShardedSafetensors;
    let sha256 = match resolved.is_some() && is_one_file {
        true => Some(sha256_of(weights.path())?),
        false => None,
    };
    if !common.quiet {
        say!(
            "backbone {spec}: {}",
            summary(&checkpoint, sha256.as_deref())
        );
    }
    Ok(Found {
        resolved,
        file: weights.path().to_owned(),
        sha256,
        preprocess: preprocess::of_checkpoint(&checkpoint).map_err(|e| e.to_string()),
    })
}

/// Downloads a model of the Hub, or finds it in the cache, and returns the folder of its files.
///
/// # Errors
///
/// Those of [`HubRepo::parse`] and [`Hub::fetch_model`].
pub fn fetch(spec: &str, quiet: bool) -> anyhow::Result<PathBuf> {
    let repo = HubRepo::parse(spec)?;
    let snapshot = Hub::from_env().fetch_model(&repo, &mut DownloadBar::new(quiet))?;
    Ok(std::path::absolute(snapshot)?)
}

/// One line on a backbone: container, names, size and sum.
fn summary(checkpoint: &Checkpoint, sha256: Option<&str>) -> String {
    // The first two lines of the description; the others are for `sdlora inspect`.
    let description = checkpoint.describe();
    let mut parts: Vec<&str> = description.lines().take(2).collect();
    let sum = sha256.map(|sum| format!("SHA-256 {sum:.12}"));
    parts.extend(sum.as_deref());
    parts.join(", ")
}

fn check_sum(found: &Found, expected: &str) -> anyhow::Result<()> {
    let sum = match &found.sha256 {
        Some(sum) => sum.clone(),
        None => sha256_of(&found.file)?,
    };
    if sum.eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    Err(UsageError(format!(
        "backbone {} has the SHA-256 {sum} instead of {expected}: pin the revision it was, or \
         change `backbone.sha256`",
        found.file.display()
    ))
    .into())
}

/// Backbones of presets that do not ship, and how to get them.
const TO_MAKE: &[(&str, &str)] = &[(
    "tiny-imagenet/vit_tiny_imagenet_patch8_48.safetensors",
    "make it with `sdlora pretrain --data tiny-imagenet`",
)];

fn not_found(spec: &str, path: &Path) -> String {
    if let Some((_, how)) = TO_MAKE.iter().find(|(weights, _)| *weights == spec) {
        let path = path.display();
        return format!("there is no backbone {path}, it does not ship: {how} and `--out {path}`");
    }
    if BACKBONES.iter().any(|preset| preset.name == spec) {
        return format!(
            "`{spec}` is a shape without weights: add its file with `--backbone FILE --set \
             backbone.preset={spec}`"
        );
    }
    format!(
        "there is no backbone `{spec}`, neither here nor at {}: give a weight file, a folder, or a \
         model of the Hub as hf:ORG/NAME",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common(data_dir: &str) -> Common {
        Common {
            device: "flex".into(),
            data_dir: data_dir.into(),
            quiet: true,
        }
    }

    fn backbone(weights: &str) -> BackboneConfig {
        BackboneConfig {
            weights: weights.into(),
            preset: None,
            n_heads: None,
            pooling: None,
            norm_eps: None,
            activation: None,
            positions: None,
            sha256: None,
            resolved: None,
        }
    }

    #[test]
    fn a_missing_backbone_is_named_with_what_to_give() {
        let mut config = backbone("missing.safetensors");
        let error = Backbones::default()
            .resolve(&mut config, &common("/data"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("missing.safetensors") && error.contains("hf:"),
            "{error}"
        );
        let mut config = backbone("tiny-imagenet/vit_tiny_imagenet_patch8_48.safetensors");
        let error = Backbones::default()
            .resolve(&mut config, &common("/data"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("pretrain --data tiny-imagenet") && error.contains("--out /data/tiny"),
            "{error}"
        );
        let mut config = backbone(BACKBONES[0].name);
        let error = Backbones::default()
            .resolve(&mut config, &common("/data"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("backbone.preset="), "{error}");
    }

    #[test]
    fn settings_of_no_backbone_are_refused() {
        let mut args = BackboneArgs::default();
        assert_eq!(args.section().unwrap(), None);
        args.known.heads = Some(3);
        let error = args.section().unwrap_err().to_string();
        assert!(
            error.contains("--heads") && error.contains("--backbone"),
            "{error}"
        );
    }

    #[test]
    fn a_pinned_sum_is_checked_and_a_path_is_left_as_it_is() {
        let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../../datasets");
        let mut config = backbone("omniglot/vit_omniglot_patch7_28.safetensors");
        let mut backbones = Backbones::default();
        backbones.resolve(&mut config, &common(data)).unwrap();
        assert_eq!((&config.sha256, &config.resolved), (&None, &None));
        config.sha256 = Some("0".repeat(64));
        let error = backbones
            .resolve(&mut config, &common(data))
            .unwrap_err()
            .to_string();
        let sum = sha256_of(&Path::new(data).join(&config.weights)).unwrap();
        assert!(error.contains(&sum), "{error}");
        config.sha256 = Some(sum.to_uppercase());
        backbones.resolve(&mut config, &common(data)).unwrap();
    }
}
