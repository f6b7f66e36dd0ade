//! `sdlora pretrain`: make a backbone from a data set, with a model card beside it.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use sdlora_data::{Dataset, Options, datasets};
use sdlora_train::checkpoint::write_file;
use sdlora_train::pretrain::{
    PretrainConfig, PretrainLog, card_metadata, nearest_mean_accuracy, pretrain,
};
use sdlora_vit::WeightDtype;

use crate::commands::{Common, read_text};
use crate::progress::Progress;

/// The recipe of the backbone that ships with the repository.
pub const RECIPE: &str = include_str!("../../presets/pretrain-omniglot.toml");

/// Pre-train a backbone; continues by itself where a killed run stopped
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Recipe (TOML); the one of the shipped backbone when absent
    #[arg(long)]
    config: Option<PathBuf>,
    /// Number of epochs instead of the recipe's
    #[arg(long)]
    epochs: Option<usize>,
    /// Seed instead of the recipe's
    #[arg(long)]
    seed: Option<u64>,
    /// Folder for checkpoints and log
    #[arg(long, default_value = "runs/pretrain")]
    run: PathBuf,
    /// Weight file to write; its model card gets the extension `.md`
    #[arg(long, default_value = "runs/pretrain/vit.safetensors")]
    out: PathBuf,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let text = match &args.config {
        Some(path) => read_text(path)?,
        None => RECIPE.to_owned(),
    };
    let mut config = PretrainConfig::parse(&text)?;
    config.n_epochs = args.epochs.unwrap_or(config.n_epochs);
    config.seed = args.seed.unwrap_or(config.seed);
    let device = crate::device::open(&args.common.device)?;
    let data_dir = &args.common.data_dir;
    let train: Arc<dyn Dataset> =
        datasets::open(&config.dataset, data_dir, &config.dataset_options)?.into();
    let judge: Arc<dyn Dataset> =
        datasets::open(&config.eval_dataset, data_dir, &Options::none())?.into();

    std::fs::create_dir_all(&args.run)
        .with_context(|| format!("cannot create {}; choose another --run", args.run.display()))?;
    let recipe = toml::to_string(&config)?;
    let recipe_path = args.run.join("recipe.toml");
    if let Ok(earlier) = std::fs::read_to_string(&recipe_path)
        && earlier != recipe
    {
        return Err(crate::UsageError(format!(
            "{} holds a run of another recipe: choose another --run, or remove it",
            args.run.display()
        ))
        .into());
    }
    write_file(&recipe_path, recipe.as_bytes())?;

    let mut progress = Progress::new(args.common.quiet);
    let (vit, log) = pretrain(&config, train, &device, &args.run, &mut progress)?;
    progress.finish();
    let ncm = nearest_mean_accuracy(&vit, &judge, &config.transform, &device)?;
    vit.save(
        &args.out,
        WeightDtype::F16,
        &card_metadata(&config, &log, ncm),
    )?;
    let card = model_card(&config, &log, ncm, &recipe);
    write_file(&args.out.with_extension("md"), card.as_bytes())?;
    println!(
        "nearest class mean on {}: {:.2} % of all test images, all {} classes jointly",
        config.eval_dataset,
        100.0 * ncm,
        judge.class_names().len()
    );
    println!("weights: {}", args.out.display());
    Ok(())
}

fn model_card(config: &PretrainConfig, log: &PretrainLog, ncm: f64, recipe: &str) -> String {
    format!(
        "# Backbone pre-trained on `{dataset}`\n\n\
         A ViT of width {d}, depth {depth}, {heads} heads, patch {patch} at {size} x {size} pixels, \
         written by `cargo xtask pretrain`.\n\n\
         | | |\n|---|---|\n\
         | data | `{dataset}`, {options} |\n\
         | recipe | below; cosine classifier, thrown away |\n\
         | seed | {seed} |\n\
         | epochs | {epochs} |\n\
         | training time | {minutes:.1} minutes |\n\
         | last training loss | {loss:.3} |\n\
         | nearest class mean on `{eval}`, all classes jointly | {ncm:.2} % |\n\n\
         The number is the share of all test images whose feature is nearest, by cosine, to the mean \
         of the training images of its own class. The classes were never seen in pre-training.\n\n\
         Weights are stored as f16 under timm's names; the shape is in the file's metadata.\n\n\
         ```toml\n{recipe}```\n",
        dataset = config.dataset,
        d = config.backbone.d_model,
        depth = config.backbone.depth,
        heads = config.backbone.n_heads,
        patch = config.backbone.patch_size,
        size = config.backbone.image_size,
        options = config
            .dataset_options
            .0
            .to_string()
            .trim()
            .replace('\n', ", "),
        seed = config.seed,
        epochs = log.n_epochs_done,
        minutes = log.seconds / 60.0,
        loss = log.losses.last().copied().unwrap_or(f64::NAN),
        eval = config.eval_dataset,
        ncm = 100.0 * ncm,
    )
}
