//! `sdlora train`: the main job.

use std::path::{Path, PathBuf};

use anyhow::Context;
use sdlora_metrics::Summary;
use sdlora_train::{Finished, Observer, Plan, Start};

use crate::commands::Common;
use crate::config::ConfigArgs;
use crate::device::Devices;
use crate::progress::Progress;
use crate::report::{published_block, published_numbers, summary_block};
use crate::results;
use crate::run_log::RunLogger;

/// Learn a stream of tasks one after another
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    #[command(flatten)]
    config: ConfigArgs,
    /// Name of the run; its files go to runs/NAME. Counted up from the preset's name when absent
    #[arg(long)]
    name: Option<String>,
    /// Folder of the runs
    #[arg(long, default_value = "runs")]
    runs: PathBuf,
    /// Devices that share every batch, for instance cuda:0,cuda:1; the first makes the steps and evaluates
    #[arg(long, value_delimiter = ',', conflicts_with = "device")]
    devices: Vec<String>,
    /// Continue the run NAME where it stopped
    #[arg(long, requires = "name")]
    resume: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let plan = args.config.plan(&args.common)?;
    let folder = match &args.name {
        Some(name) => args.runs.join(name),
        None => free_folder(&args.runs, &stem(&args.config)),
    };
    let names = match args.devices.is_empty() {
        true => std::slice::from_ref(&args.common.device),
        false => &args.devices,
    };
    // Before a folder is announced that will not come to be.
    let devices = Devices::open(names)?;
    let start = if args.resume {
        Start::Resume
    } else {
        Start::Fresh
    };
    let mut progress = Progress::new(args.common.quiet);
    progress.println(&format!(
        "{} on {}: run folder {}",
        plan.config().method.name,
        plan.config().dataset,
        folder.display()
    ));
    let data_dir = &args.common.data_dir;
    let finished = execute(&plan, data_dir, &devices, &folder, start, &mut progress)?;
    progress.finish();
    let summary = Summary::of(&finished.log.matrix);
    print!("\n{}", summary_block(&summary));
    let published = published_numbers(&plan.config().expected, &summary);
    println!("{}", published_block(&published));
    println!("report: {}", folder.join("report.html").display());
    println!("model:  {}", folder.join("model").display());
    Ok(())
}

/// Runs a plan on devices and writes its files.
///
/// # Errors
///
/// Those of the run and of its files.
pub fn execute(
    plan: &Plan,
    data_dir: &Path,
    devices: &Devices,
    folder: &Path,
    start: Start,
    observer: &mut dyn Observer,
) -> anyhow::Result<Finished> {
    let mut log = RunLogger::new(folder, observer);
    let finished =
        sdlora_train::run_on_devices(plan, data_dir, &devices.opened, folder, start, &mut log)?;
    results::write(folder, plan, &finished, &devices.names).with_context(|| {
        format!(
            "the run in {} is complete, its files are not",
            folder.display()
        )
    })?;
    Ok(finished)
}

fn stem(config: &ConfigArgs) -> String {
    config
        .config
        .as_ref()
        .and_then(|path| path.file_stem())
        .map_or_else(
            || config.preset.clone(),
            |stem| stem.to_string_lossy().into_owned(),
        )
}

/// The first of `stem-001`, `stem-002`, … that does not exist.
fn free_folder(runs: &Path, stem: &str) -> PathBuf {
    (1..)
        .map(|i| runs.join(format!("{stem}-{i:03}")))
        .find(|path| !path.exists())
        .unwrap_or_else(|| runs.join(stem))
}
