//! `sdlora compare`: every method of a suite on one stream, over several seeds, as one table.

use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context;
use sdlora_data::{ClassOrder, GroupOrder, TaskSplit};
use sdlora_metrics::Summary;
use sdlora_train::files::write_file;
use sdlora_train::{Event, Observer, PLAN_FILE, Plan, RunConfig, Start, TrainError, pixel_floor};
use sha2::{Digest, Sha256};

use crate::UsageError;
use crate::backbone::{BackboneArgs, Backbones};
use crate::commands::job_pool::in_parallel;
use crate::commands::presets::Preset;
use crate::commands::shell;
use crate::commands::suites::Suite;
use crate::commands::train::execute;
use crate::commands::{Common, check_place, refuse_overwriting};
use crate::config::with_settings;
use crate::device::Devices;
use crate::known::KnownArgs;
use crate::output::{self, answer, note, say};
use crate::report::{Entry, side_by_side};
use crate::results::{self, Metrics};
use crate::shown::{clipped, shown};
use crate::stop::{StopRequest, Stoppable, Stopped};

mod names;
pub mod records;
mod rows;
mod search;

use names::slug;
use records::{Key, Record, Records};
use rows::{Row, row_of, table_of};
use search::best_of;

/// Compare methods on one stream over several seeds; finished runs are not repeated
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Suite inside the binary (omniglot, omniglot-shift, omniglot-relatives, omniglot-100x5,
    /// cifar100-10x10, tiny-imagenet-10x10, each also with `tune-` before it; omniglot-long,
    /// cifar100-50x2, paper, heads), or a file
    #[arg(long, default_value = "omniglot")]
    suite: String,
    /// Seeds of class order, drawn weights and order of images [default: those of the suite, which are
    /// 1993,1994,1995 where it names none]
    #[arg(long, value_delimiter = ',')]
    seeds: Vec<u32>,
    /// Only this stream of a suite with several
    #[arg(long)]
    base: Option<String>,
    /// Only the entries whose label contains this, or the one run of this key, as `--list` prints it
    #[arg(long, value_name = "LABEL|KEY")]
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
    /// Runs made at the same time; each has its share of the threads
    #[arg(long, default_value_t = NonZeroUsize::MIN)]
    jobs: NonZeroUsize,
    /// File of the numbers of finished runs, one line of JSON each: a run it has is not made again, one
    /// that finishes is added. Of a folder every run has a file of its own, which needs no lock
    #[arg(long)]
    records: Option<PathBuf>,
    /// Make no run: print a command for each that is missing, a line each; its last word is the key of the run
    #[arg(long, conflicts_with_all = ["finished", "floor", "jobs", "out", "plot"])]
    list: bool,
    /// Make no run: tables of what is finished already, in its folder or in the records
    #[arg(long)]
    finished: bool,
    /// Page with the entries side by side, as `sdlora report` writes it; of a suite with several streams, one page
    /// each, with the name of the stream in its name
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// File for the tables, besides printing them; of a file with the lines `<!-- compare: begin -->` and
    /// `<!-- compare: end -->` only what stands between them is renewed
    #[arg(long)]
    out: Option<PathBuf>,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let typed = args;
    let mut args = typed.clone();
    // Of a list every line of the output is a command.
    args.common.quiet |= typed.list;
    let suite = Suite::find(&args.suite)?;
    if args.seeds.is_empty() {
        let of_key = args.only.as_deref().and_then(names::place_of);
        args.seeds = match of_key {
            Some((_, seed)) => vec![seed],
            None => suite.seeds.clone(),
        };
    }
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
            args.base.clone().unwrap_or_default(),
            known.join(", ")
        ))
        .into());
    }

    check_inputs(&args)?;
    let records = args.records.as_deref().map(Records::open).transpose()?;
    // Every plan is made before anything is trained: a mistake in the last entry costs no hours.
    let mut backbones = Backbones::default();
    let mut streams = Vec::new();
    for base in chosen {
        let mut folder = args.runs.join(&suite.name);
        if bases.len() > 1 {
            folder.push(base.name);
        }
        let jobs = jobs_on(&args, &suite, base, &folder, &mut backbones)?;
        streams.push((base, jobs));
    }
    if let Some(only) = &args.only
        && !(args.floor && FLOOR.contains(only.as_str()))
        && streams.iter().all(|(_, jobs)| jobs.is_empty())
    {
        return Err(UsageError(nothing_called(only, &suite, &streams)).into());
    }
    if typed.list {
        return list(&typed, &streams, records.as_ref());
    }

    let stop = StopRequest::on_signals()?;
    let notices = Notices::default();
    let mut text = String::new();
    let mut failed = Vec::new();
    for (base, jobs) in &streams {
        if bases.len() > 1 {
            say!("\n{}: {}", base.name, base.summary());
        }
        let mut rows = Vec::new();
        if args.floor {
            rows.push(floor(&args, &suite, base, &notices)?);
        }
        let found = rows_of(&args, jobs, records.as_ref(), &stop, &notices, &mut failed);
        if stop.is_made() {
            // Tables without the rest would take the place of whole ones.
            return Err(Stopped(
                "stopped: what is finished is kept, and the same command goes on from there".into(),
            )
            .into());
        }
        let n_found: usize = found.iter().map(Row::n_runs).sum();
        if args.finished && n_found < jobs.len() {
            note!(
                "{}: {n_found} of {} runs are finished, and only those are in the tables",
                base.name,
                jobs.len()
            );
        }
        rows.extend(found);
        if rows.is_empty() {
            continue;
        }
        if let Some(plot) = &args.plot {
            let path = page_of(plot, (bases.len() > 1).then_some(base.name));
            let title = format!("{}, {}", suite.name, base.name);
            write_file(
                &path,
                side_by_side(&title, &entries(jobs, &rows)).as_bytes(),
            )?;
        }
        let table = table_of(&rows, &suite.claim);
        say!("\n{table}");
        if let Some(best) = best_of(&suite, &rows) {
            say!("{best}");
        }
        if bases.len() > 1 {
            text.push_str(&format!("### {}\n\n{}\n\n", base.name, base.summary()));
        }
        text.push_str(&table);
        text.push('\n');
        // Written after every stream: what is finished is not lost with the rest.
        if let Some(path) = &args.out {
            write_text(path, text.trim_end())?;
        }
    }
    if failed.is_empty() {
        // Without `--out` the tables are nowhere else.
        return match args.out {
            None => Ok(output::check()?),
            Some(_) => Ok(()),
        };
    }
    let n_failed = match failed.len() {
        1 => "one run is".to_owned(),
        n => format!("{n} runs are"),
    };
    Err(Unfinished(format!(
        "{n_failed} not finished, the tables stand without them:\n{}",
        failed.join("\n")
    ))
    .into())
}

/// The entries of a stream, with the curves of the runs whose folders are there.
fn entries(jobs: &[Job], rows: &[Row]) -> Vec<Entry> {
    let curve_of = |entry: &str, seed: u32| {
        let is_wanted = |job: &&Job| job.key.entry == entry && job.key.seed == seed;
        let metrics = results::read(&jobs.iter().find(is_wanted)?.folder).ok()?;
        Some(Summary::of(&metrics.log.matrix))
    };
    let rows = rows.iter();
    rows.map(|row| row.entry(|seed| curve_of(row.label(), seed)))
        .collect()
}

/// The page of a stream: `plot.html` becomes `plot-STREAM.html`.
fn page_of(plot: &Path, stream: Option<&str>) -> PathBuf {
    let Some(stream) = stream else {
        return plot.to_owned();
    };
    let stem = plot.file_stem().unwrap_or_default().to_string_lossy();
    let ending = plot.extension().unwrap_or_default().to_string_lossy();
    match ending.is_empty() {
        true => plot.with_file_name(format!("{stem}-{stream}")),
        false => plot.with_file_name(format!("{stem}-{stream}.{ending}")),
    }
}

/// What users should know of the runs, each sentence once: all runs on a data set say the same of it.
#[derive(Debug, Default)]
struct Notices(Mutex<HashSet<String>>);

/// Says the notices of a run, and nothing else.
struct Said<'a>(&'a Notices);

impl Observer for Said<'_> {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Notice { text } = event {
            let mut said = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
            if said.insert((*text).to_owned()) {
                note!("note: {}", shown(text));
            }
        }
    }
}

/// Runs that failed, a line each.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unfinished(String);

/// Refuses what would count a run twice, or overwrite a file that is read.
fn check_inputs(args: &Args) -> Result<(), UsageError> {
    for (i, seed) in args.seeds.iter().enumerate() {
        if args.seeds[..i].contains(seed) {
            return Err(UsageError(format!(
                "seed {seed} stands twice in `--seeds`, and one run is not two: give every seed once"
            )));
        }
    }
    if let Some(records) = &args.records
        && !records.is_dir()
    {
        // What ends in a slash is to be a folder.
        if records.to_string_lossy().ends_with(std::path::is_separator) {
            return Err(UsageError(format!(
                "`--records {}`: there is no such folder: make it first",
                records.display()
            )));
        }
        check_place("--records", records)?;
    }
    if let Some(plot) = &args.plot {
        check_place("--plot", plot)?;
        for input in [Some(Path::new(&args.suite)), args.records.as_deref()] {
            input.map_or(Ok(()), |input| refuse_overwriting(plot, input))?;
        }
    }
    let Some(out) = &args.out else { return Ok(()) };
    check_place("--out", out)?;
    let suite = Path::new(&args.suite);
    for input in [Some(suite), args.records.as_deref()].into_iter().flatten() {
        refuse_overwriting(out, input)?;
    }
    Ok(())
}

/// Why `--only` leaves nothing.
fn nothing_called(only: &str, suite: &Suite, streams: &[(&&Preset, Vec<Job>)]) -> String {
    let labels: Vec<_> = suite
        .entry
        .iter()
        .filter(|entry| streams.iter().any(|(base, _)| entry.is_on(base.name)))
        .map(|entry| clipped(&entry.label))
        .collect();
    if names::place_of(only).is_some() {
        return format!(
            "suite `{}` has no run `{only}` on the chosen streams with the chosen seeds: list its runs anew with \
             `--list`",
            suite.name
        );
    }
    format!(
        "no entry of suite `{}` has `{only}` in its label: choose of {}",
        suite.name,
        labels.join(", ")
    )
}

/// One run of a suite: an entry with a seed.
struct Job {
    key: Key,
    /// What the run is made of; another recipe is another run.
    recipe: String,
    folder: PathBuf,
    plan: Plan,
}

/// All runs of a suite on one stream, their folders in `folder`, in the order of the table.
fn jobs_on(
    args: &Args,
    suite: &Suite,
    base: &Preset,
    folder: &Path,
    backbones: &mut Backbones,
) -> anyhow::Result<Vec<Job>> {
    let only = args.only.as_deref();
    let mut jobs = Vec::new();
    // What a run is called now that has the place of the key.
    let mut renamed = None;
    for entry in suite.entry.iter().filter(|entry| entry.is_on(base.name)) {
        for &seed in &args.seeds {
            let key = Key {
                suite: suite.name.clone(),
                stream: base.name.to_owned(),
                entry: entry.label.clone(),
                seed,
            };
            let is_by_label = only.is_none_or(|only| entry.label.contains(only));
            let place = only.and_then(names::place_of).map(|(place, _)| place);
            if !is_by_label && place != Some(&key.place()) {
                continue;
            }
            let settings = settings(args, suite, &entry.set, seed);
            let plan = plan_of(args, base, &settings, seed, backbones)
                .with_context(|| format!("entry `{}`, seed {seed}", entry.label))?;
            let recipe = recipe(base, &args.backbone, &settings, &plan)?;
            let name = key.name(&recipe);
            if !is_by_label && only != Some(&name) {
                renamed.get_or_insert(name);
                continue;
            }
            jobs.push(Job {
                key,
                recipe,
                folder: folder.join(format!("{}-seed{seed}", slug(&entry.label))),
                plan,
            });
        }
    }
    match (renamed, only) {
        (Some(name), Some(only)) if jobs.is_empty() => Err(UsageError(format!(
            "the run `{only}` is `{name}` now: its settings are not those of the list it stands in; list the runs \
             anew with `--list`"
        ))
        .into()),
        _ => Ok(jobs),
    }
}

/// Prints a command for every run that is neither recorded nor finished in its folder.
fn list(
    typed: &Args,
    streams: &[(&&Preset, Vec<Job>)],
    records: Option<&Records>,
) -> anyhow::Result<()> {
    let jobs = || streams.iter().flat_map(|(_, jobs)| jobs);
    let is_missing = |job: &&Job| {
        let is_recorded =
            records.is_some_and(|records| records.get(&job.key, &job.recipe).is_some());
        !is_recorded && !job.folder.join(results::METRICS_FILE).exists()
    };
    let missing: Vec<&Job> = jobs().filter(is_missing).collect();
    for job in &missing {
        answer!("{}", shell::line(&typed.words_of(job)?)?)?;
    }
    if !typed.common.quiet {
        note!("{} of {} runs are missing", missing.len(), jobs().count());
    }
    Ok(())
}

impl Args {
    /// The words of a command that makes one run and no other, its key last.
    fn words_of(&self, job: &Job) -> anyhow::Result<Vec<String>> {
        // All by name: a new option is to be thought of here.
        let Self {
            common:
                Common {
                    device,
                    data_dir,
                    quiet,
                },
            suite,
            seeds: _,
            base: _,
            only: _,
            set,
            backbone: BackboneArgs { backbone, known },
            floor: _,
            runs,
            jobs: _,
            records,
            list: _,
            finished: _,
            plot: _,
            out: _,
        } = self;
        let KnownArgs {
            heads,
            pooling,
            norm_eps,
            activation,
            positions,
        } = known;
        let path = |path: &Path| {
            let text = path.to_str().map(str::to_owned);
            text.ok_or_else(|| {
                UsageError(format!(
                    "{} is no UTF-8 text and cannot stand in a list of commands: give another path",
                    path.display()
                ))
            })
        };
        let key = job.key.name(&job.recipe);
        let mut options = vec![
            ("--suite", suite.clone()),
            ("--base", job.key.stream.clone()),
            ("--seeds", job.key.seed.to_string()),
        ];
        options.extend(set.iter().map(|set| ("--set", set.clone())));
        for (option, value) in [
            ("--backbone", backbone.clone()),
            ("--heads", heads.map(|n| n.to_string())),
            ("--pooling", pooling.clone()),
            ("--norm-eps", norm_eps.map(|eps| eps.to_string())),
            ("--activation", activation.clone()),
            ("--positions", positions.clone()),
            ("--device", Some(device.clone())),
            ("--data-dir", Some(path(data_dir)?)),
            ("--runs", Some(path(runs)?)),
            ("--records", records.as_deref().map(path).transpose()?),
        ] {
            options.extend(value.map(|value| (option, value)));
        }
        // As it was started: a path stays a path.
        let program = std::env::args_os().next().unwrap_or_default();
        let mut words = vec![path(Path::new(&program))?, "compare".to_owned()];
        words.extend(quiet.then(|| "--quiet".to_owned()));
        for (option, value) in options {
            // A value with a dash in front would be an option.
            match value.starts_with('-') {
                true => words.push(format!("{option}={value}")),
                false => words.extend([option.to_owned(), value]),
            }
        }
        words.extend(["--only".to_owned(), key]);
        Ok(words)
    }
}

/// The plan of one run.
fn plan_of(
    args: &Args,
    base: &Preset,
    settings: &[String],
    seed: u32,
    backbones: &mut Backbones,
) -> anyhow::Result<Plan> {
    let mut config = with_settings(base.text, &args.backbone, settings, &mut |backbone| {
        backbones.transform(backbone, None, &args.common)
    })?;
    order_classes(&mut config, seed);
    backbones.resolve(&mut config.backbone, &args.common)?;
    Ok(config.check()?)
}

/// What tells a run from others, as one checksum: the base, all keys that are set on it, and the tasks that
/// the seed makes of them. Not the whole plan, which says where files lie on a machine, and has a key more
/// with every option of the program.
fn recipe(
    base: &Preset,
    backbone: &BackboneArgs,
    settings: &[String],
    plan: &Plan,
) -> anyhow::Result<String> {
    let table: toml::Table = base.text.parse().context("the base preset")?;
    let backbone = backbone.section()?.unwrap_or_default();
    let settings = settings.join("\n");
    let tasks = serde_json::to_string(&plan.config().stream)?;
    let digest = Sha256::digest(format!("{table}\n{backbone}\n{settings}\n{tasks}"));
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The rows of finished jobs, one for each entry. What fails is told in `failed` and stops no other.
fn rows_of(
    args: &Args,
    jobs: &[Job],
    records: Option<&Records>,
    stop: &StopRequest,
    notices: &Notices,
    failed: &mut Vec<String>,
) -> Vec<Row> {
    let made = in_parallel(args.jobs, jobs, |job| {
        if stop.is_made() {
            return Ok(None);
        }
        let key = &job.key;
        let record = record_of(args, job, records, stop, notices).or_else(|e| {
            if matches!(e.downcast_ref(), Some(TrainError::Stopped { .. })) {
                return Ok(None);
            }
            let reason = shown(&format!("{e:#}"));
            let line = format!(
                "entry `{}`, seed {}: {reason}",
                clipped(&key.entry),
                key.seed
            );
            // At once: the other runs may take hours.
            note!("{line}");
            Err(anyhow::anyhow!(line))
        })?;
        if let Some(record) = &record {
            let seconds = record.seconds_per_task * record.summary.n_tasks as f64;
            say(args, &key.entry, key.seed, &record.summary, seconds);
        }
        Ok(record)
    });
    let mut rows: Vec<Row> = Vec::new();
    for (job, made) in jobs.iter().zip(made) {
        let entry = &job.key.entry;
        match made {
            Ok(Some(record)) => row_of(&mut rows, entry).push_record(record),
            Ok(None) => {}
            Err(e) => {
                row_of(&mut rows, entry);
                failed.push(e.to_string());
            }
        }
    }
    rows
}

/// What a table shows of a run that is recorded, already finished in its folder, continued or made.
/// `None` where it is neither of the first two and no run is to be made.
fn record_of(
    args: &Args,
    job: &Job,
    records: Option<&Records>,
    stop: &StopRequest,
    notices: &Notices,
) -> anyhow::Result<Option<Record>> {
    if let Some(record) = records.and_then(|records| records.get(&job.key, &job.recipe)) {
        return Ok(Some(record));
    }
    if args.finished && !job.folder.join(results::METRICS_FILE).exists() {
        return Ok(None);
    }
    let record = Record::of(&job.key, &job.recipe, &finished(args, job, stop, notices)?);
    if let Some(records) = records {
        records.put(record.clone())?;
    }
    Ok(Some(record))
}

/// What a run leaves that is made, continued, or already finished in its folder.
fn finished(
    args: &Args,
    job: &Job,
    stop: &StopRequest,
    notices: &Notices,
) -> anyhow::Result<Metrics> {
    if job.folder.join(results::METRICS_FILE).exists() {
        // A finished run of other settings would stand in the table under a label it is not.
        sdlora_train::check_plan(&job.folder, &job.plan).with_context(|| {
            format!(
                "{} holds a finished run of other settings: remove it, or choose another --runs",
                job.folder.display()
            )
        })?;
    } else {
        let start = match job.folder.join(PLAN_FILE).exists() {
            true => Start::Resume,
            false => Start::Fresh,
        };
        let devices = Devices::open(std::slice::from_ref(&args.common.device))?;
        let data_dir = &args.common.data_dir;
        let mut said = Said(notices);
        let mut observer = Stoppable::new(stop, &mut said);
        // Held until the folder is as it stays.
        let _finished = execute(
            &job.plan,
            data_dir,
            &devices,
            &job.folder,
            start,
            &mut observer,
        )?;
    }
    results::read(&job.folder)
}

/// Writes the tables: the whole of a file, or what stands between its markers.
fn write_text(path: &Path, tables: &str) -> anyhow::Result<()> {
    const MARKERS: [&str; 2] = ["<!-- compare: begin -->", "<!-- compare: end -->"];
    let old = std::fs::read_to_string(path).unwrap_or_default();
    let whole = match (old.find(MARKERS[0]), old.find(MARKERS[1])) {
        (Some(begin), Some(end)) if begin < end => format!(
            "{}\n{tables}\n{}",
            &old[..begin + MARKERS[0].len()],
            &old[end..]
        ),
        _ => tables.to_owned(),
    };
    Ok(write_file(path, whole.as_bytes())?)
}

/// The keys of one run.
fn settings(args: &Args, suite: &Suite, of_entry: &[String], seed: u32) -> Vec<String> {
    let mut settings = suite.set.clone();
    settings.extend_from_slice(of_entry);
    settings.extend_from_slice(&args.set);
    settings.push(format!("seed={seed}"));
    settings
}

/// The seed also orders the classes, and groups and domains that are not in an order of their own;
/// listed tasks are such an order.
fn order_classes(config: &mut RunConfig, seed: u32) {
    match &mut config.stream.split {
        TaskSplit::Groups(_) => return,
        TaskSplit::PerGroup { order } | TaskSplit::PerDomain { order } => {
            if let GroupOrder::Numpy { seed: of_order } = order {
                *of_order = seed;
            }
        }
        _ => {}
    }
    config.stream.class_order = ClassOrder::Numpy { seed };
}

fn say(args: &Args, label: &str, seed: u32, summary: &Summary, seconds: f64) {
    if args.common.quiet {
        return;
    }
    let accuracy = summary
        .final_average_accuracy
        .map_or("-".into(), |a| format!("{:.2} %", 100.0 * a));
    let label = clipped(label);
    say!("{label:<28} seed {seed}  Acc {accuracy}  in {seconds:.0} s");
}

/// Label of the row without a backbone.
const FLOOR: &str = "pixels, nearest class mean";

/// The row that shows what images give away without any backbone; kept in no run folder.
fn floor(args: &Args, suite: &Suite, base: &Preset, notices: &Notices) -> anyhow::Result<Row> {
    let mut row = Row::new(FLOOR);
    for &seed in &args.seeds {
        let settings = settings(args, suite, &[], seed);
        let no_backbone = BackboneArgs::default();
        let mut config = with_settings(base.text, &no_backbone, &settings, &mut |_| Ok(None))
            .context("the floor")?;
        order_classes(&mut config, seed);
        let start = Instant::now();
        let plan = config.check()?;
        let matrix = pixel_floor(&plan, &args.common.data_dir, &mut Said(notices))
            .with_context(|| format!("the floor, seed {seed}"))?;
        let summary = Summary::of(&matrix);
        let seconds = start.elapsed().as_secs_f64();
        say(args, FLOOR, seed, &summary, seconds);
        let seconds_per_task = seconds / summary.n_tasks.max(1) as f64;
        row.push(seed, summary, seconds_per_task);
    }
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_orders_classes_and_groups_but_no_order_that_is_listed() {
        let ordered = |split: &str| {
            let preset = include_str!("../../../presets/omniglot-alphabets.toml");
            let mut table: toml::Table = preset.parse().unwrap();
            let split: toml::Table = format!("split = {split}").parse().unwrap();
            table.insert("stream".into(), split.into());
            let text = table.to_string();
            let mut config = RunConfig::parse(&text).unwrap();
            order_classes(&mut config, 7);
            config.stream
        };
        let by_seed = ClassOrder::Numpy { seed: 7 };
        for (kind, drawn) in [
            ("per_group", true),
            ("per_domain", true),
            ("per_group", false),
        ] {
            let order = match drawn {
                true => "{ numpy = { seed = 1 } }",
                false => "{ named = [\"b\", \"a\"] }",
            };
            let stream = ordered(&format!("{{ {kind} = {{ order = {order} }} }}"));
            assert_eq!(stream.class_order, by_seed, "{kind}");
            let (TaskSplit::PerGroup { order } | TaskSplit::PerDomain { order }) = stream.split
            else {
                panic!("{kind} became another split");
            };
            assert_eq!(order == GroupOrder::Numpy { seed: 7 }, drawn, "{kind}");
        }
        assert_eq!(
            ordered("{ groups = [[0], [1]] }").class_order,
            ClassOrder::Natural
        );
    }
}
