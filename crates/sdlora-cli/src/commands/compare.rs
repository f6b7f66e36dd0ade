//! `sdlora compare`: every method of a suite on one stream, over several seeds, as one table.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use sdlora_data::{ClassOrder, TaskSplit};
use sdlora_metrics::Summary;
use sdlora_train::checkpoint::write_file;
use sdlora_train::heads::FloatsStored;
use sdlora_train::{PLAN_FILE, RunConfig, Silent, Start, pixel_floor};
use serde::Deserialize;

use crate::UsageError;
use crate::backbone::{BackboneArgs, Backbones};
use crate::commands::presets::{self, Preset};
use crate::commands::train::execute;
use crate::commands::{Common, read_text};
use crate::config::with_settings;
use crate::report::{Comparison, compare_table};
use crate::results;

/// The suites inside the binary.
const SUITES: &[(&str, &str)] = &[
    (
        "omniglot",
        include_str!("../../presets/suite-omniglot.toml"),
    ),
    (
        "omniglot-shift",
        include_str!("../../presets/suite-omniglot-shift.toml"),
    ),
    (
        "omniglot-relatives",
        include_str!("../../presets/suite-omniglot-relatives.toml"),
    ),
    (
        "omniglot-100x5",
        include_str!("../../presets/suite-omniglot-100x5.toml"),
    ),
    (
        "omniglot-long",
        include_str!("../../presets/suite-omniglot-long.toml"),
    ),
    (
        "cifar100-10x10",
        include_str!("../../presets/suite-cifar100-10x10.toml"),
    ),
    (
        "tiny-imagenet-10x10",
        include_str!("../../presets/suite-tiny-imagenet-10x10.toml"),
    ),
    (
        "tune-omniglot",
        include_str!("../../presets/tune-omniglot.toml"),
    ),
    (
        "tune-omniglot-shift",
        include_str!("../../presets/tune-omniglot-shift.toml"),
    ),
    (
        "tune-omniglot-relatives",
        include_str!("../../presets/tune-omniglot-relatives.toml"),
    ),
    (
        "tune-omniglot-100x5",
        include_str!("../../presets/tune-omniglot-100x5.toml"),
    ),
    (
        "tune-cifar100-10x10",
        include_str!("../../presets/tune-cifar100-10x10.toml"),
    ),
    (
        "tune-tiny-imagenet-10x10",
        include_str!("../../presets/tune-tiny-imagenet-10x10.toml"),
    ),
];

/// Compare methods on one stream over several seeds; finished runs are not repeated
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Suite inside the binary (omniglot, omniglot-shift, omniglot-relatives, omniglot-100x5,
    /// cifar100-10x10, tiny-imagenet-10x10, each also with `tune-` before it; omniglot-long), or a file
    #[arg(long, default_value = "omniglot")]
    suite: String,
    /// Seeds of class order, drawn weights and order of images
    #[arg(long, value_delimiter = ',', default_values_t = [1993u32, 1994, 1995])]
    seeds: Vec<u32>,
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

/// A list of runs to compare.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Suite {
    /// Name; runs of different suites lie in different folders.
    name: String,
    /// The preset all entries start from.
    base: String,
    /// Keys set in every entry.
    #[serde(default)]
    set: Vec<String>,
    /// The runs.
    entry: Vec<Entry>,
}

/// One row of the table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// Name in the table.
    label: String,
    /// Keys that differ from the base.
    set: Vec<String>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let text = match SUITES.iter().find(|(name, _)| *name == args.suite) {
        Some((_, text)) => (*text).to_owned(),
        None => read_text(args.suite.as_ref())?,
    };
    let suite: Suite = toml::from_str(&text)
        .map_err(|e| UsageError(format!("suite `{}` is not usable: {e}", args.suite)))?;
    let base = presets::find(&suite.base)?;

    let mut rows: Vec<Row> = Vec::new();
    if args.floor {
        rows.push(floor(&args, &suite, base)?);
    }
    let mut backbones = Backbones::default();
    for entry in &suite.entry {
        if args
            .only
            .as_ref()
            .is_some_and(|only| !entry.label.contains(only.as_str()))
        {
            continue;
        }
        let (mut summaries, mut seconds) = (Vec::new(), Vec::new());
        let (mut n_parameters, mut stored) = (0, None);
        for seed in &args.seeds {
            let settings = settings(&args, &suite, &entry.set, *seed);
            let mut config = with_settings(base.text, &args.backbone, &settings, &mut |backbone| {
                backbones.transform(backbone, &args.common)
            })
            .with_context(|| format!("entry `{}`", entry.label))?;
            order_classes(&mut config, *seed);
            let folder = args
                .runs
                .join(&suite.name)
                .join(format!("{}-seed{seed}", slug(&entry.label)));
            if !folder.join(results::METRICS_FILE).exists() {
                backbones.resolve(&mut config.backbone, &args.common)?;
                let plan = config
                    .check()
                    .with_context(|| format!("entry `{}`", entry.label))?;
                let start = match folder.join(PLAN_FILE).exists() {
                    true => Start::Resume,
                    false => Start::Fresh,
                };
                execute(&plan, &args.common, &folder, start, &mut Silent)
                    .with_context(|| format!("entry `{}`, seed {seed}", entry.label))?;
            }
            let metrics = results::read(&folder)?;
            let summary = Summary::of(&metrics.log.matrix);
            let trained = metrics.log.tasks.iter().map(|t| t.seconds).sum();
            say(&args, &entry.label, *seed, &summary, trained);
            n_parameters = metrics.log.n_trained.last().copied().unwrap_or(0);
            stored = metrics.log.floats_stored.last().copied();
            seconds.push(trained);
            summaries.push(summary);
        }
        rows.push((
            entry.label.clone(),
            summaries,
            n_parameters,
            stored,
            seconds,
        ));
    }
    let rows: Vec<Comparison> = rows
        .iter()
        .map(
            |(label, summaries, n_parameters, stored, seconds)| Comparison {
                method: label,
                summaries,
                n_parameters: Some(*n_parameters),
                stored: *stored,
                seconds,
            },
        )
        .collect();
    let table = compare_table(&rows);
    println!("\n{table}");
    if let Some(path) = &args.out {
        write_file(path, table.as_bytes())?;
    }
    Ok(())
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

/// A row of the table: label, metrics, trained parameters, floats kept of old classes, and seconds of
/// every seed.
type Row = (String, Vec<Summary>, usize, Option<FloatsStored>, Vec<f64>);

/// The row that shows what images give away without any backbone; kept in no run folder.
fn floor(args: &Args, suite: &Suite, base: &Preset) -> anyhow::Result<Row> {
    let label = "pixels, nearest class mean";
    let (mut summaries, mut seconds) = (Vec::new(), Vec::new());
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
        seconds.push(start.elapsed().as_secs_f64());
        say(args, label, seed, &summary, seconds[seconds.len() - 1]);
        summaries.push(summary);
    }
    Ok((label.to_owned(), summaries, 0, None, seconds))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_of_every_suite_is_a_plan() {
        for (name, text) in SUITES {
            let suite: Suite = toml::from_str(text).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(suite.name, *name, "runs of two suites would share a folder");
            let base = presets::find(&suite.base).unwrap();
            for entry in &suite.entry {
                let settings = [suite.set.as_slice(), &entry.set].concat();
                let none = BackboneArgs::default();
                with_settings(base.text, &none, &settings, &mut |_| Ok(None))
                    .and_then(|config| Ok(config.check()?))
                    .unwrap_or_else(|e| panic!("{name}, {}: {e:#}", entry.label));
            }
        }
    }
}
