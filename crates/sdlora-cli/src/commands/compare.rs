//! `sdlora compare`: every method of a suite on one stream, over several seeds, as one table.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use sdlora_data::{ClassOrder, TaskSplit};
use sdlora_metrics::Summary;
use sdlora_train::checkpoint::write_file;
use sdlora_train::heads::FloatsStored;
use sdlora_train::{PLAN_FILE, RunConfig, RunLog, Silent, Start, pixel_floor};

use crate::UsageError;
use crate::backbone::{BackboneArgs, Backbones};
use crate::commands::Common;
use crate::commands::presets::Preset;
use crate::commands::suites::{Entry, Suite};
use crate::commands::train::execute;
use crate::config::with_settings;
use crate::report::{Comparison, compare_table};
use crate::results;

/// Compare methods on one stream over several seeds; finished runs are not repeated
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Suite inside the binary (omniglot, omniglot-shift, omniglot-relatives, omniglot-100x5,
    /// cifar100-10x10, tiny-imagenet-10x10, each also with `tune-` before it; omniglot-long; paper), or a file
    #[arg(long, default_value = "omniglot")]
    suite: String,
    /// Seeds of class order, drawn weights and order of images
    #[arg(long, value_delimiter = ',', default_values_t = [1993u32, 1994, 1995])]
    seeds: Vec<u32>,
    /// Only this stream of a suite with several
    #[arg(long)]
    base: Option<String>,
    /// Only the entries whose label contains this
    #[arg(long)]
    only: Option<String>,
    /// Set a key in every run
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Add the floor: nearest class mean on the pixels as they are prepared, without a backbone
    #[arg(long)]
    floor: bool,
    /// Folder of the runs
    #[arg(long, default_value = "runs/compare")]
    runs: PathBuf,
    /// File for the table, besides printing it
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let suite = Suite::find(&args.suite)?;
    let bases = suite.bases()?;
    let chosen: Vec<_> = bases
        .iter()
        .filter(|base| args.base.as_ref().is_none_or(|name| name == base.name))
        .collect();
    if chosen.is_empty() {
        let known: Vec<_> = bases.iter().map(|base| base.name).collect();
        return Err(UsageError(format!(
            "suite `{}` has no base `{}`: choose one of {}",
            suite.name,
            args.base.unwrap_or_default(),
            known.join(", ")
        ))
        .into());
    }

    let mut text = String::new();
    let mut backbones = Backbones::default();
    for base in chosen {
        let mut folder = args.runs.join(&suite.name);
        if bases.len() > 1 {
            folder.push(base.name);
            text.push_str(&format!("## {}\n\n{}\n\n", base.name, base.summary()));
            println!("\n{}: {}", base.name, base.summary());
        }
        let table = compare_on(&args, &suite, base, &folder, &mut backbones)?;
        println!("\n{table}");
        text.push_str(&table);
        text.push('\n');
        // Written after every stream: what is finished is not lost with the rest.
        if let Some(path) = &args.out {
            write_file(path, text.trim_end().as_bytes())?;
        }
    }
    Ok(())
}

/// The table of one stream, its runs in `folder`.
fn compare_on(
    args: &Args,
    suite: &Suite,
    base: &Preset,
    folder: &Path,
    backbones: &mut Backbones,
) -> anyhow::Result<String> {
    let mut rows: Vec<Row> = Vec::new();
    if args.floor {
        rows.push(floor(args, suite, base)?);
    }
    let is_asked_for = |label: &str| args.only.as_ref().is_none_or(|only| label.contains(only));
    for entry in &suite.entry {
        if !entry.is_on(base.name) || !is_asked_for(&entry.label) {
            continue;
        }
        let mut row = Row::new(&entry.label);
        for &seed in &args.seeds {
            let folder = folder.join(format!("{}-seed{seed}", slug(&entry.label)));
            let log = run_of(args, suite, base, entry, seed, &folder, backbones)
                .with_context(|| format!("entry `{}`, seed {seed}", entry.label))?;
            let summary = Summary::of(&log.matrix);
            let trained = log.tasks.iter().map(|t| t.seconds).sum();
            say(args, &entry.label, seed, &summary, trained);
            // Methods that train in their first task only have nothing in the last.
            row.n_parameters = log.n_trained.iter().copied().max().unwrap_or(0);
            row.stored = log.floats_stored.last().copied();
            row.seconds.push(trained);
            row.summaries.push(summary);
        }
        rows.push(row);
    }
    let rows: Vec<Comparison> = rows.iter().map(Row::comparison).collect();
    Ok(compare_table(&rows))
}

/// The log of a run that is made, continued, or already finished in `folder`.
fn run_of(
    args: &Args,
    suite: &Suite,
    base: &Preset,
    entry: &Entry,
    seed: u32,
    folder: &Path,
    backbones: &mut Backbones,
) -> anyhow::Result<RunLog> {
    let settings = settings(args, suite, &entry.set, seed);
    let mut config = with_settings(base.text, &args.backbone, &settings, &mut |backbone| {
        backbones.transform(backbone, &args.common)
    })?;
    order_classes(&mut config, seed);
    backbones.resolve(&mut config.backbone, &args.common)?;
    let plan = config.check()?;
    if folder.join(results::METRICS_FILE).exists() {
        // A finished run of other settings would stand in the table under a label it is not.
        sdlora_train::check_plan(folder, &plan).with_context(|| {
            format!(
                "{} holds a finished run of other settings: remove it, or choose another --runs",
                folder.display()
            )
        })?;
    } else {
        let start = match folder.join(PLAN_FILE).exists() {
            true => Start::Resume,
            false => Start::Fresh,
        };
        execute(&plan, &args.common, folder, start, &mut Silent)?;
    }
    Ok(results::read(folder)?.log)
}

/// The keys of one run.
fn settings(args: &Args, suite: &Suite, of_entry: &[String], seed: u32) -> Vec<String> {
    let mut settings = suite.set.clone();
    settings.extend_from_slice(of_entry);
    settings.extend_from_slice(&args.set);
    settings.push(format!("seed={seed}"));
    settings
}

/// The seed also orders the classes; listed groups are an order of their own.
fn order_classes(config: &mut RunConfig, seed: u32) {
    if !matches!(config.stream.split, TaskSplit::Groups(_)) {
        config.stream.class_order = ClassOrder::Numpy { seed };
    }
}

fn say(args: &Args, label: &str, seed: u32, summary: &Summary, seconds: f64) {
    if args.common.quiet {
        return;
    }
    let accuracy = summary
        .final_average_accuracy
        .map_or("-".into(), |a| format!("{:.2} %", 100.0 * a));
    println!("{label:<28} seed {seed}  Acc {accuracy}  in {seconds:.0} s");
}

/// A row of the table; metrics and seconds of training are those of every seed.
struct Row {
    label: String,
    summaries: Vec<Summary>,
    n_parameters: usize,
    stored: Option<FloatsStored>,
    seconds: Vec<f64>,
}

impl Row {
    fn new(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            summaries: Vec::new(),
            n_parameters: 0,
            stored: None,
            seconds: Vec::new(),
        }
    }

    fn comparison(&self) -> Comparison<'_> {
        Comparison {
            method: &self.label,
            summaries: &self.summaries,
            n_parameters: Some(self.n_parameters),
            stored: self.stored,
            seconds: &self.seconds,
        }
    }
}

/// The row that shows what images give away without any backbone; kept in no run folder.
fn floor(args: &Args, suite: &Suite, base: &Preset) -> anyhow::Result<Row> {
    let label = "pixels, nearest class mean";
    let mut row = Row::new(label);
    for &seed in &args.seeds {
        let settings = settings(args, suite, &[], seed);
        let no_backbone = BackboneArgs::default();
        let mut config = with_settings(base.text, &no_backbone, &settings, &mut |_| Ok(None))
            .context("the floor")?;
        order_classes(&mut config, seed);
        let start = Instant::now();
        let matrix = pixel_floor(&config.check()?, &args.common.data_dir)
            .with_context(|| format!("the floor, seed {seed}"))?;
        let summary = Summary::of(&matrix);
        let seconds = start.elapsed().as_secs_f64();
        say(args, label, seed, &summary, seconds);
        row.seconds.push(seconds);
        row.summaries.push(summary);
    }
    Ok(row)
}

/// A label as a folder name.
fn slug(label: &str) -> String {
    let mut out = String::new();
    for c in label.chars() {
        if c.is_ascii_alphanumeric() {
            out.push(c.to_ascii_lowercase());
        } else if !out.ends_with('-') && !out.is_empty() {
            out.push('-');
        }
    }
    out.trim_end_matches('-').to_owned()
}
