//! `sdlora pretrain`: make a backbone from a data set, with a model card beside it.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use sdlora_data::{Dataset, Options, datasets};
use sdlora_train::files::{create_folders, write_file};
use sdlora_train::pretrain::{
    PretrainConfig, PretrainLog, Pretraining, card_metadata, nearest_mean_accuracy,
};
use sdlora_train::{FolderLock, TrainError};
use sdlora_vit::{PREPROCESS_KEY, WeightDtype};

use crate::commands::{Common, check_place, read_text, refuse_overwriting};
use crate::output::say;
use crate::preprocess;
use crate::progress::Progress;
use crate::run_log::RunLogger;
use crate::shown::shown_path;
use crate::stop::{StopRequest, Stoppable, Stopped};

/// The recipes inside the binary, by the data set they learn; the first made the backbone that ships.
const RECIPES: &[(&str, &str)] = &[
    (
        "omniglot",
        include_str!("../../presets/pretrain-omniglot.toml"),
    ),
    (
        "tiny-imagenet",
        include_str!("../../presets/pretrain-tiny-imagenet.toml"),
    ),
];

/// Pre-train a backbone; continues by itself where a killed run stopped
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Recipe inside the binary: omniglot (the backbone that ships) or tiny-imagenet (a small one for
    /// photographs)
    #[arg(
        long,
        value_name = "NAME",
        default_value = "omniglot",
        conflicts_with = "config"
    )]
    data: String,
    /// Recipe (TOML) instead
    #[arg(long)]
    config: Option<PathBuf>,
    /// Number of epochs instead of the recipe's
    #[arg(long)]
    epochs: Option<NonZeroUsize>,
    /// Seed instead of the recipe's
    #[arg(long)]
    seed: Option<u64>,
    /// Folder for checkpoints and log
    #[arg(long, default_value = "runs/pretrain")]
    run: PathBuf,
    /// Weight file to write, `vit.safetensors` in the folder of the run when absent; its model card gets
    /// the extension `.md`
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let text = match &args.config {
        Some(path) => read_text(path)?,
        None => recipe(&args.data)?.to_owned(),
    };
    let mut config = PretrainConfig::parse(&text)?;
    config.n_epochs = args.epochs.map_or(config.n_epochs, NonZeroUsize::get);
    config.seed = args.seed.unwrap_or(config.seed);
    config.check()?;
    let out = args
        .out
        .clone()
        .unwrap_or_else(|| args.run.join("vit.safetensors"));
    check_out(&out, args.config.as_deref())?;
    if let Some(out) = &args.out {
        check_place("--out", out)?;
    }
    let device = crate::device::open(&args.common.device)?;
    let data_dir = &args.common.data_dir;
    let train: Arc<dyn Dataset> =
        datasets::open(&config.dataset, data_dir, &config.dataset_options)?.into();
    let judge: Arc<dyn Dataset> =
        datasets::open(&config.eval_dataset, data_dir, &config.eval_options)?.into();

    let notes = [train.notes(), judge.notes()].concat();
    let pretraining = Pretraining::prepare(&config, train, &device)?;
    let recipe = toml::to_string(&config)?;
    let mut progress = Progress::new(args.common.quiet);
    for note in &notes {
        progress.note(note);
    }
    let stop = StopRequest::on_signals()?;
    let mut observer = Stoppable::new(&stop, &mut progress);
    let mut logger = RunLogger::new(&args.run, &mut observer);
    let lock = claim(&args.run, &recipe)?;
    let made = pretraining.run(&lock, &mut logger);
    drop(logger);
    progress.finish();
    let stopped = |what: &str| Stopped(format!("{what}; to continue, give the same command again"));
    let (vit, log) = made.map_err(|error| match &error {
        TrainError::Stopped { .. } => stopped(&error.to_string()).into(),
        _ => anyhow::Error::from(error),
    })?;
    if stop.is_made() {
        return Err(stopped("stopped before the features are judged").into());
    }
    let ncm = nearest_mean_accuracy(&vit, &judge, &config.transform, &device)?;
    let mut metadata = card_metadata(&config, &log, ncm);
    if let Some(preprocess) = preprocess::of_transform(&config.transform) {
        let json = serde_json::to_string(&preprocess)?;
        metadata.insert(PREPROCESS_KEY.into(), json);
    }
    let bytes = vit.to_bytes(WeightDtype::F16, &metadata)?;
    write_file(&out, &bytes)?;
    let card = model_card(&config, &log, ncm, &recipe);
    write_file(&out.with_extension("md"), card.as_bytes())?;
    say!(
        "nearest class mean on {}: {:.2} % of all test images, all {} classes jointly",
        config.eval_dataset,
        100.0 * ncm,
        judge.class_names().len()
    );
    say!("weights: {}", shown_path(&out));
    Ok(())
}

/// Refuses a place for the weights that is their model card or the recipe. Before the training: hours later
/// would be late.
fn check_out(out: &Path, recipe: Option<&Path>) -> Result<(), crate::UsageError> {
    let card = out.with_extension("md");
    if card == out {
        return Err(crate::UsageError(format!(
            "`--out {}` is no name for a weight file: let it end in `.safetensors`",
            out.display()
        )));
    }
    for place in [out, &card] {
        if let Some(recipe) = recipe {
            refuse_overwriting(place, recipe)?;
        }
    }
    Ok(())
}

/// Takes a folder for a run of this recipe, or for going on with one.
fn claim(run: &Path, recipe: &str) -> anyhow::Result<FolderLock> {
    create_folders(run).context("choose another --run")?;
    let lock = FolderLock::take(run)?;
    let path = run.join("recipe.toml");
    if let Ok(earlier) = std::fs::read_to_string(&path)
        && earlier != recipe
    {
        return Err(crate::UsageError(format!(
            "{} holds a run of another recipe: choose another --run, or remove it",
            run.display()
        ))
        .into());
    }
    write_file(&path, recipe.as_bytes())?;
    Ok(lock)
}

/// The recipe of that name.
fn recipe(name: &str) -> Result<&'static str, crate::UsageError> {
    let found = RECIPES.iter().find(|(known, _)| *known == name);
    found.map(|(_, text)| *text).ok_or_else(|| {
        let known: Vec<_> = RECIPES.iter().map(|(name, _)| *name).collect();
        crate::UsageError(format!(
            "no recipe is called `{name}`: choose one of {}, or give a file with `--config`",
            known.join(", ")
        ))
    })
}

/// Options in one line.
fn one_line(options: &Options) -> String {
    match options.0.to_string().trim().replace('\n', ", ") {
        text if text.is_empty() => "no options".into(),
        text => text,
    }
}

fn model_card(config: &PretrainConfig, log: &PretrainLog, ncm: f64, recipe: &str) -> String {
    format!(
        "# Backbone pre-trained on `{dataset}`\n\n\
         A ViT of width {d}, depth {depth}, {heads} heads, patch {patch} at {size} x {size} pixels, \
         written by `sdlora pretrain`.\n\n\
         | | |\n|---|---|\n\
         | data | `{dataset}`, {options} |\n\
         | recipe | below; cosine classifier, thrown away |\n\
         | seed | {seed} |\n\
         | epochs | {epochs} |\n\
         | training time | {minutes:.1} minutes |\n\
         | last training loss | {loss:.3} |\n\
         | nearest class mean on `{eval}`, {eval_options}, all classes jointly | {ncm:.2} % |\n\n\
         The number is the share of all test images whose feature is nearest, by cosine, to the mean \
         of the training images of its own class. None of these images was seen in pre-training.\n\n\
         Weights are stored as f16 under timm's names; the shape is in the file's metadata.\n\n\
         ```toml\n{recipe}```\n",
        dataset = config.dataset,
        d = config.backbone.d_model,
        depth = config.backbone.depth,
        heads = config.backbone.n_heads,
        patch = config.backbone.patch_size,
        size = config.backbone.image_size,
        options = one_line(&config.dataset_options),
        seed = config.seed,
        epochs = log.n_epochs_done,
        minutes = log.seconds / 60.0,
        loss = log.losses.last().copied().unwrap_or(f64::NAN),
        eval = config.eval_dataset,
        eval_options = one_line(&config.eval_options),
        ncm = 100.0 * ncm,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_is_found_by_its_name_and_others_are_refused_with_the_names() {
        for (name, text) in RECIPES {
            assert_eq!(recipe(name).unwrap(), *text);
            PretrainConfig::parse(text).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        let error = recipe("imagenet").unwrap_err().to_string();
        assert!(
            error.contains("omniglot, tiny-imagenet") && error.contains("--config"),
            "{error}"
        );
    }

    #[test]
    fn weights_do_not_take_the_place_of_their_card_or_recipe() {
        let home = tempfile::tempdir().unwrap();
        let recipe = home.path().join("recipe.md");
        std::fs::write(&recipe, "").unwrap();
        for wrong in ["vit.md", "recipe.safetensors"] {
            assert!(
                check_out(&home.path().join(wrong), Some(&recipe)).is_err(),
                "{wrong}"
            );
        }
        check_out(&home.path().join("vit.safetensors"), Some(&recipe)).unwrap();
        check_out(&home.path().join("recipe.safetensors"), None).unwrap();
    }

    #[test]
    fn the_card_names_both_data_sets_with_their_options() {
        let mut config = PretrainConfig::parse(recipe("tiny-imagenet").unwrap()).unwrap();
        config.eval_options = Options::none().with("root", "half");
        let card = model_card(&config, &PretrainLog::default(), 0.25, "");
        assert!(card.contains("tiny-imagenet-base100.zip"), "{card}");
        let judge = "`cifar100`, root = \"half\", all classes jointly | 25.00 %";
        assert!(card.contains(judge), "{card}");
    }
}
