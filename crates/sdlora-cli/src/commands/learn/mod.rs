//! `sdlora learn`: a folder of images, and later the next one.
//!
//! Every task is a run of its own that goes on from the one before; [`Learned`] says which is the present one.

mod choice;
mod look;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use sdlora_data::datasets::{FoldersOptions, LearnedFolder, look_of};
use sdlora_data::{Options, Survey};
use sdlora_fetch::HubRepo;
use sdlora_train::learned::{Learned, LearnedResult, LearnedTask, is_run, now};
use sdlora_train::{
    BackboneConfig, LossWeights, PLAN_FILE, Plan, RunConfig, RunLog, RunOptions, Start, TrainError,
    read_plan,
};
use toml::{Table, Value};

use crate::UsageError;
use crate::backbone::{BackboneArgs, Backbones};
use crate::commands::Common;
use crate::commands::train::{execute_with, inside_runs};
use crate::config::{parse_value, with_settings};
use crate::device::Devices;
use crate::output::{note, say};
use crate::progress::Progress;
use crate::shown::{shown, shown_path};
use crate::stop::{StopRequest, Stoppable, Stopped};
use look::{Odd, Seen, look};

/// Learn the classes of a folder of images; later the next folder, without the images of the first
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    common: Common,
    /// Folder, zip or tar with a folder of images for every class, or with such folders in `train` and `test`
    folder: PathBuf,
    /// Name of what learns; its files go to runs/NAME. With a name that is there, the folder is learned on top
    #[arg(long)]
    name: String,
    /// Folder of the runs
    #[arg(long, default_value = "runs")]
    runs: PathBuf,
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Set a key of the configuration, for instance `head=ridge` or `dataset_options.test_fraction=0.1`
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// What to do with classes that are known already
    #[arg(long, value_enum, default_value = "refuse")]
    same_classes: SameClasses,
    /// Refuse a folder in which anything is odd
    #[arg(long, conflicts_with = "skip_bad")]
    strict: bool,
    /// Leave out images and classes that cannot be used
    #[arg(long)]
    skip_bad: bool,
}

/// What to do with classes that are known already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum SameClasses {
    /// An error that names them
    Refuse,
    /// Their images are more of the same class
    Extend,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let home = args.runs.join(inside_runs(&args.name)?);
    let before = Learned::read(&home)?;
    if before.is_none() && is_run(&home) {
        return Err(UsageError(format!(
            "{} is a run of another command, and `learn` goes on from its own only: choose another --name",
            home.display()
        ))
        .into());
    }
    let root = args.root()?;
    if let Some(unfinished) = before.as_ref().and_then(Learned::unfinished)
        && unfinished.images != root
    {
        return Err(UsageError(format!(
            "{name} has not finished {there}: learn that first, with the same command and {there}, or drop it with \
             `sdlora runs undo {name}`",
            name = args.name,
            there = unfinished.images.display()
        ))
        .into());
    }
    let progress = Progress::new(args.common.quiet);
    let begun = before.as_ref().and_then(|learned| {
        let task = learned.unfinished()?.clone();
        let folder = learned.next();
        folder.join(PLAN_FILE).is_file().then_some((task, folder))
    });
    let (plan, task, start) = match begun {
        Some((task, folder)) => {
            let mut config = read_plan(&folder)?;
            args.check_same(&config)?;
            let common = args.common_for(&config.backbone);
            Backbones::default().resolve(&mut config.backbone, &common)?;
            (config.check()?, task, Start::Resume)
        }
        None => {
            let (plan, task) = args.plan(before.as_ref(), &root, &progress)?;
            (plan, task, Start::Fresh)
        }
    };
    drop(progress);
    // Before anything is written.
    let devices = Devices::open(std::slice::from_ref(&args.common.device))?;
    let stop = StopRequest::on_signals()?;
    let mut learned = Learned::hold(&home)?;
    let n_known = before.as_ref().map_or(0, |before| before.tasks().len());
    if learned.tasks().len() != n_known {
        return Err(TrainError::Locked { path: home }.into());
    }
    if start == Start::Fresh {
        learned.begin(task.clone())?;
    }
    let options = RunOptions {
        data_dir: args.common.data_dir.clone(),
        devices: devices.opened.clone(),
        folder: learned.next(),
        start,
        after: learned.present(),
    };
    let mut progress = Progress::new(args.common.quiet);
    let mut observer = Stoppable::new(&stop, &mut progress);
    let finished = execute_with(&plan, &options, &devices, &mut observer);
    progress.finish();
    let finished = match finished {
        Ok(finished) => finished,
        Err(error) => return Err(args.after_failure(error, learned)),
    };
    let result = result(&finished.log, &devices.names);
    learned.end(result.clone())?;
    drop(finished);
    args.tell(&learned, &task, &result);
    Ok(())
}

impl Args {
    /// The folder, as the history keeps it.
    fn root(&self) -> anyhow::Result<PathBuf> {
        if !self.folder.exists() {
            return Err(UsageError(format!(
                "there is no {}: give a folder, zip or tar with a folder of images for every class",
                self.folder.display()
            ))
            .into());
        }
        let absolute = std::fs::canonicalize(&self.folder)
            .with_context(|| format!("cannot read {}", self.folder.display()))?;
        if absolute.to_str().is_none() {
            return Err(UsageError(format!(
                "the path {} is no text that a plan can hold: rename the folder",
                absolute.display()
            ))
            .into());
        }
        Ok(absolute)
    }

    /// The plan of a new task, and what the history will say of it. Looks at the folder and prints what there is
    /// and what was chosen.
    fn plan(
        &self,
        before: Option<&Learned>,
        root: &Path,
        progress: &Progress,
    ) -> anyhow::Result<(Plan, LearnedTask)> {
        let earlier = match before.and_then(Learned::present) {
            None => None,
            Some(present) => Some(read_plan(&present)?),
        };
        let options = match &earlier {
            Some(config) => folders(config)?,
            None => self.folder_options()?,
        };
        let odd = match (self.strict, self.skip_bad) {
            (true, _) => Odd::Refuse,
            (false, true) => Odd::SkipBad,
            (false, false) => Odd::Say,
        };
        let Seen { survey, folder } = look(
            (root, &self.folder),
            &options,
            &self.common.data_dir,
            odd,
            progress,
        )?;
        let known: Vec<String> = before.map_or_else(Vec::new, |before| {
            before.classes().map(str::to_owned).collect()
        });
        let (extended, new): (Vec<String>, Vec<String>) = folder
            .classes
            .iter()
            .cloned()
            .partition(|class| known.contains(class));
        self.check_classes(&known, &extended, &new)?;
        let task = LearnedTask {
            images: root.to_owned(),
            learned: now(),
            classes: new,
            extended,
            n_train: survey.n_train(),
            n_test: survey.n_test(),
            result: None,
        };
        let mut config = match earlier {
            Some(config) => self.continued(config, folder, &survey)?,
            None => self.first(folder, &survey)?,
        };
        let mut plan = config.clone().check()?;
        let is_set = self
            .set
            .iter()
            .any(|set| set.trim_start().starts_with("loss_weights"));
        if !is_set {
            // Balance stays when a later folder does not need it.
            if choice::loss_weights(&plan, &survey) == LossWeights::Balanced {
                config.loss_weights = LossWeights::Balanced;
            }
            plan = config.check()?;
        }
        if plan.method().needs_all_tasks() {
            return Err(UsageError(format!(
                "the method {} has to know all classes from the start, and `learn` takes more later: choose another \
                 with --set method.name=NAME, or leave it out",
                plan.config().method.name
            ))
            .into());
        }
        if !task.extended.is_empty() && !plan.head().extends_classes() {
            return Err(UsageError(format!(
                "the head {} keeps what it knows of a class from its first images: take the classes {} out of the \
                 folder",
                plan.head_name(),
                listed(&task.extended)
            ))
            .into());
        }
        let rows = choice::rows(&plan, &survey, !known.is_empty());
        let width = |i: usize| {
            rows.iter()
                .map(|row| row[i].chars().count())
                .max()
                .unwrap_or(0)
        };
        let (a, b) = (width(0), width(1));
        let lines = rows.iter().map(|[what, which, why]| {
            format!("  {what:<a$}  {:<b$}  {}", shown(which), shown(why))
        });
        let lines: Vec<String> = lines.collect();
        progress.println(&lines.join("\n"));
        if let Some(text) = choice::mismatch(&plan, &survey) {
            note!("note: {text}");
        }
        Ok((plan, task))
    }

    /// Refuses classes that are known, unless they are to be extended, and names two of which look alike.
    fn check_classes(
        &self,
        known: &[String],
        same: &[String],
        new: &[String],
    ) -> Result<(), UsageError> {
        if !same.is_empty() && self.same_classes == SameClasses::Refuse {
            return Err(UsageError(format!(
                "{} knows {} already: {}. Give `--same-classes extend` if these are more images of the same, or \
                 rename the folders; nothing was learned",
                self.name,
                if same.len() == 1 {
                    "this class"
                } else {
                    "these classes"
                },
                listed(same)
            )));
        }
        let mut by_look: HashMap<String, &String> = HashMap::new();
        for class in known {
            by_look.entry(look_of(class)).or_insert(class);
        }
        let alike = new
            .iter()
            .find_map(|class| Some((by_look.get(&look_of(class))?, class)));
        match alike {
            None => Ok(()),
            Some((known, class)) => Err(UsageError(format!(
                "the class `{class}` looks like `{known}`, which {} knows: give both one name, or names that nobody \
                 confuses; nothing was learned",
                self.name
            ))),
        }
    }

    /// Options of the first folder, of which keys may be set.
    fn folder_options(&self) -> anyhow::Result<FoldersOptions> {
        let mut table = Table::new();
        for set in &self.set {
            if let Some((key, value)) = set.split_once('=')
                && let Some(key) = key.trim().strip_prefix("dataset_options.")
            {
                table.insert(key.to_owned(), parse_value(value.trim()));
            }
        }
        Ok(Options(table).parse("folders")?)
    }

    /// The configuration of the first folder.
    fn first(&self, folder: LearnedFolder, survey: &Survey) -> anyhow::Result<RunConfig> {
        let mut table = choice::configuration(survey);
        let options = FoldersOptions {
            folders: vec![folder],
            ..self.folder_options()?
        };
        table.insert("dataset_options".into(), options_table(&options)?);
        let mut backbones = Backbones::default();
        let mut config = with_settings(
            &table.to_string(),
            &self.backbone,
            &self.set,
            &mut |backbone| backbones.transform(backbone, None, &self.common_for(backbone)),
        )?;
        let common = self.common_for(&config.backbone);
        backbones.resolve(&mut config.backbone, &common)?;
        Ok(config)
    }

    /// The configuration of one more folder.
    fn continued(
        &self,
        earlier: RunConfig,
        folder: LearnedFolder,
        survey: &Survey,
    ) -> anyhow::Result<RunConfig> {
        let (smallest, _) = survey.train_range();
        let options = FoldersOptions {
            folders: [folders(&earlier)?.folders, vec![folder]].concat(),
            ..folders(&earlier)?
        };
        let mut now = earlier.clone();
        now.calibrate_on = choice::calibrate_on(smallest);
        if earlier.calibrate_on == 0 {
            now.calibrate_on = 0;
        }
        let mut table = Table::try_from(&now)?;
        table.insert("dataset_options".into(), options_table(&options)?);
        let none = BackboneArgs::default();
        let mut config = with_settings(&table.to_string(), &none, &self.set, &mut |_| Ok(None))?;
        for (what, is_same) in [
            (
                "backbone",
                config.backbone == earlier.backbone && self.has_backbone_of(&earlier),
            ),
            ("transform", config.transform == earlier.transform),
            ("method", config.method == earlier.method),
            ("head", config.head == earlier.head),
            ("stream", config.stream == earlier.stream),
            ("dataset", config.dataset == earlier.dataset),
        ] {
            if !is_same {
                return Err(UsageError(format!(
                    "{} has another `{what}`, and what it knows fits only that: leave it as it is, or learn under \
                     another --name",
                    self.name
                ))
                .into());
            }
        }
        let common = self.common_for(&config.backbone);
        Backbones::default().resolve(&mut config.backbone, &common)?;
        Ok(config)
    }

    /// Options with which a backbone is looked for: of the one that ships there is nothing to say.
    fn common_for(&self, backbone: &BackboneConfig) -> Common {
        let ships = backbone.weights == Path::new(choice::SHIPPED);
        Common {
            quiet: self.common.quiet || ships,
            ..self.common.clone()
        }
    }

    /// Refuses to go on with a task whose settings are not those that it began with.
    fn check_same(&self, begun: &RunConfig) -> anyhow::Result<()> {
        let table = Table::try_from(begun)?;
        let none = BackboneArgs::default();
        let now = with_settings(&table.to_string(), &none, &self.set, &mut |_| Ok(None))?;
        let is_same = now.check()?.to_toml()? == begun.clone().check()?.to_toml()?;
        if is_same && self.has_backbone_of(begun) {
            return Ok(());
        }
        Err(UsageError(format!(
            "{name} began this folder with other settings: repeat those, leave out `--set` and `--backbone`, or drop \
             the task with `sdlora runs undo {name}`",
            name = self.name
        ))
        .into())
    }

    /// Whether the backbone that is named, if any, is that of an earlier configuration.
    fn has_backbone_of(&self, earlier: &RunConfig) -> bool {
        let Some(spec) = &self.backbone.backbone else {
            return self.backbone.known.first().is_none();
        };
        let named = match HubRepo::is_spec(spec) {
            true => PathBuf::from(spec),
            false => std::path::absolute(spec).unwrap_or_else(|_| spec.into()),
        };
        named == earlier.backbone.weights || Path::new(spec) == earlier.backbone.weights
    }

    /// What to say when a task did not come to its end. One that left nothing is not kept as unfinished.
    fn after_failure(&self, error: anyhow::Error, mut learned: Learned) -> anyhow::Error {
        if matches!(error.downcast_ref(), Some(TrainError::Stopped { .. })) {
            return anyhow::anyhow!(Stopped(format!(
                "{error}; to continue, give the same command again, or drop what began with `sdlora runs undo {}`",
                self.name
            )));
        }
        if !learned.next().join(PLAN_FILE).is_file() {
            // Refused before anything was kept. What cannot be undone is undone by the user.
            let _ = learned.undo();
            learned.discard();
        } else {
            return error.context(format!(
                "{} is as it was before; to drop what began, `sdlora runs undo {}`",
                self.name, self.name
            ));
        }
        error
    }

    fn tell(&self, learned: &Learned, task: &LearnedTask, result: &LearnedResult) {
        let n = |n: usize| format!("{n} {}", if n == 1 { "class" } else { "classes" });
        let mut line = match task.classes.len() {
            0 => "learned no new class".to_owned(),
            new => format!("learned {}", n(new)),
        };
        if !task.extended.is_empty() {
            line += &format!(" and more images of {}", n(task.extended.len()));
        }
        say!(
            "\n{line}; {} knows {}",
            shown(&self.name),
            n(learned.classes().count())
        );
        say!("{}", accuracy_line(result));
        for &number in &result.not_measured {
            let images = &learned.tasks()[number - 1].images;
            say!(
                "not measured: task {number}, the images of {} are gone or changed",
                shown_path(images)
            );
        }
        let present = learned.present().unwrap_or_default();
        say!("report:  {}", shown_path(&present.join("report.html")));
        say!("predict: sdlora predict --run {} IMAGES", shown(&self.name));
    }
}

/// The accuracies of a result in one line.
pub fn accuracy_line(result: &LearnedResult) -> String {
    let percent = |share: Option<f64>| {
        share.map_or_else(|| "–".to_owned(), |share| format!("{:.1} %", 100.0 * share))
    };
    format!(
        "accuracy on test images: {} over images, {} over classes",
        percent(result.accuracy),
        percent(result.class_accuracy)
    )
}

/// What a log came to.
fn result(log: &RunLog, device: &str) -> LearnedResult {
    let (n_images, n_right) = log.classes.iter().fold((0, 0), |(n, right), class| {
        (n + class.n_images, right + class.n_right)
    });
    let last = log.matrix.n_rows().saturating_sub(1);
    let row = log.matrix.measured(last);
    let not_measured = (0..row.len())
        .filter(|&on| row[on].is_none())
        .map(|on| on + 1);
    LearnedResult {
        accuracy: (n_images > 0).then(|| n_right as f64 / n_images as f64),
        class_accuracy: log.class_accuracy(),
        not_measured: not_measured.collect(),
        device: device.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// The options of the data set of a configuration.
fn folders(config: &RunConfig) -> anyhow::Result<FoldersOptions> {
    Ok(config.dataset_options.parse(&config.dataset)?)
}

fn options_table(options: &FoldersOptions) -> anyhow::Result<Value> {
    Ok(Value::try_from(options)?)
}

/// Most names in one message.
const MOST_LISTED: usize = 10;

/// Names in a message, and how many more there are.
fn listed(names: &[String]) -> String {
    let some: Vec<String> = names
        .iter()
        .take(MOST_LISTED)
        .map(|name| format!("`{name}`"))
        .collect();
    match names.len().saturating_sub(MOST_LISTED) {
        0 => some.join(", "),
        more => format!("{} and {more} more", some.join(", ")),
    }
}
