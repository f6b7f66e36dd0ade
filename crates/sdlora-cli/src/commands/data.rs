//! `sdlora data`: what data sets there are, where their files come from and whether they are right, and what they look
//! like.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sdlora_data::{Dataset, FileState, Options, SampleIdx, Split, Task, TaskStream, datasets};
use sdlora_image::Image;

use super::check_place;
use super::contact_sheet;
use super::data_description::describe;
use super::data_fetch::{Fetch, entries};
use crate::UsageError;
use crate::config::ConfigArgs;
use crate::output::{self, answer, say};
use crate::shown::{clipped, shown, shown_path};

/// List data sets, fetch or verify their files, or show what is in one
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[allow(
    clippy::large_enum_variant,
    reason = "one is made in a process, and clap's derive does not see through a box"
)]
#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Every data set that can be opened, and which of them are in the data folder
    List(List),
    /// Download the files of a data set, where its licence allows it
    Fetch(Fetch),
    /// Compare checksums and numbers of images and classes with the manifest
    Verify(Verify),
    /// Write a contact sheet (PNG), or print the tasks of a stream
    Show(Show),
}

#[derive(Debug, clap::Args)]
struct List {
    /// Folder of the data sets
    #[arg(long, default_value = "datasets")]
    data_dir: PathBuf,
}

/// Which data set, and where.
#[derive(Debug, clap::Args)]
struct Which {
    /// Name of the data set, see `sdlora data list`
    name: String,
    /// Folder of the data sets
    #[arg(long, default_value = "datasets")]
    data_dir: PathBuf,
    /// Set an option of the data set, for instance `root=photos` or `test_fraction=0.1`
    #[arg(long = "option", value_name = "KEY=VALUE")]
    options: Vec<String>,
    /// Leave out what cannot be read, and say how much; the same as `--option skip_bad=true`
    #[arg(long)]
    skip_bad: bool,
}

#[derive(Debug, clap::Args)]
struct Verify {
    #[command(flatten)]
    which: Which,
    /// Decode every image as well, and say which are the same in both halves
    #[arg(long)]
    images: bool,
}

#[derive(Debug, clap::Args)]
struct Show {
    #[command(flatten)]
    which: Which,
    /// Number of classes on the sheet, evenly spread
    #[arg(long, default_value_t = 10)]
    classes: usize,
    /// Number of images of each class
    #[arg(long, default_value_t = 8)]
    per_class: usize,
    /// File of the sheet
    #[arg(long, default_value = "contact-sheet.png")]
    out: PathBuf,
    /// Print the tasks of the stream of a configuration instead
    #[arg(long)]
    tasks: bool,
    /// Print the tasks of a stream of these keys alone instead: `b0-inc20`, or for instance
    /// `split={ per_domain = { order = "natural" } }` and `class_order={ numpy = { seed = 1993 } }`
    #[arg(long, value_name = "KEY=VALUE", conflicts_with_all = ["tasks", "preset", "config", "set"])]
    stream: Vec<String>,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::List(args) => list(&args.data_dir),
        Command::Fetch(args) => args.run(),
        Command::Verify(args) => verify(&args),
        Command::Show(args) if args.tasks || !args.stream.is_empty() => show_tasks(&args),
        Command::Show(args) => show(&args),
    }
}

fn list(data_dir: &Path) -> anyhow::Result<()> {
    answer!(
        "{:<20} {:>8} {:>9}  {:<7} summary",
        "name",
        "classes",
        "images",
        "present"
    )?;
    for entry in datasets::DATASETS {
        let manifest = entry.manifest()?;
        let number = |n: Option<usize>| match n {
            None | Some(0) => "any".to_owned(),
            Some(n) => n.to_string(),
        };
        let set = manifest.set(entry.name);
        let is_present = manifest.present_folder(data_dir).is_some();
        answer!(
            "{:<20} {:>8} {:>9}  {:<7} {}",
            entry.name,
            number(set.map(|set| set.classes)),
            number(set.map(|set| set.images)),
            if is_present { "yes" } else { "-" },
            entry.summary
        )?;
    }
    Ok(())
}

/// Continues without its output; the exit code also reports the failure.
fn verify(args: &Verify) -> anyhow::Result<()> {
    let entries = entries(&args.which.name)?;
    let manifest = entries[0].manifest()?;
    say!(
        "source   {}\nlicence  {}",
        manifest.source,
        manifest.licence
    );
    let mut n_wrong = 0;
    for check in manifest.check_files(&args.which.data_dir)? {
        let state = match check.state {
            FileState::Matches => "ok".to_owned(),
            FileState::Missing => "not there (fine if the data set is unpacked)".to_owned(),
            FileState::Differs { expected, found } => {
                n_wrong += 1;
                format!("WRONG checksum {found} instead of {expected}")
            }
            _ => "not checked".to_owned(),
        };
        say!("file     {}: {state}", shown_path(&check.path));
    }
    for entry in &entries {
        let dataset = args.which.open_named(entry.name)?;
        if entries.len() > 1 {
            say!("opened   {}", entry.name);
        }
        describe(dataset.as_ref());
        if args.images {
            n_wrong += verify_images(dataset.as_ref());
        }
    }
    if n_wrong > 0 {
        anyhow::bail!("{n_wrong} files or images are wrong: fetch or replace them");
    }
    Ok(output::check()?)
}

/// Most pairs of equal images that are named.
const MAX_PAIRS: usize = 10;

/// Decodes every image, and prints those that cannot be and those that are in both halves; the number of the first.
fn verify_images(dataset: &dyn Dataset) -> usize {
    let mut n_wrong = 0;
    let mut learned: HashMap<u64, SampleIdx> = HashMap::new();
    let mut same = Vec::new();
    for split in [Split::Train, Split::Test] {
        for (idx, sample) in dataset.samples(split).iter().enumerate() {
            let image = match dataset.image(split, idx) {
                Ok(image) => image,
                Err(error) => {
                    n_wrong += 1;
                    let error = anyhow::Error::from(error);
                    let (name, reason) = (shown(&sample.name), shown(&format!("{error:#}")));
                    say!("WRONG    {name}: {reason}");
                    continue;
                }
            };
            let mut hasher = DefaultHasher::new();
            (image.width(), image.channels(), image.data()).hash(&mut hasher);
            let hash = hasher.finish();
            if split == Split::Train {
                learned.entry(hash).or_insert(idx);
            } else if let Some(&first) = learned.get(&hash)
                // Two images may have one hash.
                && dataset.image(Split::Train, first).is_ok_and(|other| other == image)
            {
                let first = &dataset.samples(Split::Train)[first].name;
                same.push(format!("`{first}` and `{}`", sample.name));
            }
        }
    }
    if !same.is_empty() {
        let n_more = same.len().saturating_sub(MAX_PAIRS);
        let mut named = same[..same.len() - n_more].join(", ");
        if n_more > 0 {
            named += &format!(" and {n_more} more");
        }
        say!(
            "note     {} test images are the same as an image to learn from: {}",
            same.len(),
            shown(&named)
        );
    }
    n_wrong
}

fn show(args: &Show) -> anyhow::Result<()> {
    if args.classes == 0 || args.per_class == 0 {
        return Err(UsageError("`--classes` and `--per-class` are 1 or more".to_owned()).into());
    }
    check_place("--out", &args.out)?;
    let dataset = args.which.open()?;
    refuse_image(dataset.as_ref(), &args.out)?;
    describe(dataset.as_ref());
    let n_classes = dataset.class_names().len();
    let n_rows = args.classes.min(n_classes);
    let mut rows: Vec<Vec<Image>> = Vec::with_capacity(n_rows);
    for row in 0..n_rows {
        let class_id = row * n_classes / n_rows;
        let of_class: Vec<SampleIdx> = (0..dataset.samples(Split::Train).len())
            .filter(|&idx| dataset.samples(Split::Train)[idx].class_id == class_id)
            .collect();
        let n_shown = args.per_class.min(of_class.len());
        let images: Result<_, _> = (0..n_shown)
            .map(|i| dataset.image(Split::Train, of_class[i * of_class.len() / n_shown]))
            .collect();
        rows.push(images?);
        say!(
            "row {:>3}  {}",
            row + 1,
            clipped(&dataset.class_names()[class_id])
        );
    }
    contact_sheet::write(&rows, &args.out)?;
    say!("wrote    {}", shown_path(&args.out));
    Ok(())
}

/// Refuses a file for the sheet that is an image of the data set.
fn refuse_image(dataset: &dyn Dataset, out: &Path) -> Result<(), UsageError> {
    let Ok(out) = std::fs::canonicalize(out) else {
        return Ok(());
    };
    let mut samples = [Split::Train, Split::Test]
        .into_iter()
        .flat_map(|split| dataset.samples(split));
    match samples.find(|sample| out.ends_with(&sample.name)) {
        None => Ok(()),
        Some(sample) => Err(UsageError(format!(
            "`--out {}` is the image `{}` of the data set: choose another place",
            out.display(),
            sample.name
        ))),
    }
}

fn show_tasks(args: &Show) -> anyhow::Result<()> {
    let config = if args.stream.is_empty() {
        args.config.stream()?
    } else {
        crate::config::stream_of(&args.stream)?
    };
    let dataset: Arc<dyn Dataset> = args.which.open()?.into();
    let stream = TaskStream::new(dataset.as_ref(), &config)?;
    for task in stream.tasks() {
        answer!("{}", task_line(dataset.as_ref(), task))?;
    }
    Ok(())
}

/// One line about a task: its new labels, how many classes come again, its images, its domain and its classes.
fn task_line(dataset: &dyn Dataset, task: &Task) -> String {
    let new = task.new_labels();
    let mut line = format!("task {:>3}  ", task.idx);
    line += &match new.len() {
        0 => format!("{:<19}", "no new labels"),
        _ => format!("labels {:>4} to {:>4}", new.start, new.end - 1),
    };
    match task.classes.len() - new.len() {
        0 => {}
        n_again => line += &format!("  {n_again:>4} again"),
    }
    line += &format!(
        "  {:>6} train {:>6} test",
        task.train.as_ref().len(),
        task.test.as_ref().len()
    );
    if let Some(domain) = task.domain.and_then(|domain| dataset.domains().get(domain)) {
        line += &format!("  domain {}", clipped(domain));
    }
    let names: Vec<String> = task
        .classes
        .iter()
        .map(|&class| clipped(&dataset.class_names()[class]))
        .collect();
    line + "  " + &names.join(", ")
}

impl Which {
    /// Opens the data set; a wrong name or option is the user's mistake.
    fn open(&self) -> anyhow::Result<Box<dyn Dataset>> {
        self.open_named(&self.name)
    }

    /// Opens one of the data sets that the name stands for.
    fn open_named(&self, name: &str) -> anyhow::Result<Box<dyn Dataset>> {
        let mut options = Options::none();
        for option in &self.options {
            let (key, value) = option.split_once('=').ok_or_else(|| {
                UsageError(format!(
                    "`--option {option}` has no `=`: write `--option key=value`"
                ))
            })?;
            options = options.with(key.trim(), crate::config::parse_value(value.trim()));
        }
        if self.skip_bad {
            options = options.with("skip_bad", true);
        }
        Ok(datasets::open(name, &self.data_dir, &options)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn run_words(words: &[&str]) -> anyhow::Result<()> {
        run(Cli::try_parse_from([&["data"], words].concat())?.args)
    }

    fn shipped() -> String {
        format!("{}/../../datasets", env!("CARGO_MANIFEST_DIR"))
    }

    #[test]
    fn the_shipped_data_set_is_listed_verified_and_shown() {
        let (data_dir, dir) = (shipped(), tempfile::tempdir().unwrap());
        let out = dir.path().join("sheet.png");
        let out = out.to_str().unwrap();
        run_words(&["list", "--data-dir", &data_dir]).unwrap();
        let name = "omniglot-evaluation";
        // The name `fetch` takes stands for every data set its files make.
        for name in [name, "omniglot"] {
            run_words(&["verify", name, "--data-dir", &data_dir]).unwrap();
        }
        let sheet = ["--classes", "3", "--per-class", "4", "--out", out];
        run_words(&[&["show", name, "--data-dir", &data_dir], &sheet[..]].concat()).unwrap();
        let sheet = Image::decode(&std::fs::read(out).unwrap(), "sheet").unwrap();
        // 105 pixels and a border of 2 around each image.
        assert_eq!((sheet.width(), sheet.height()), (4 * 107 + 2, 3 * 107 + 2));
        run_words(&["show", name, "--data-dir", &data_dir, "--tasks"]).unwrap();
        for stream in [
            "b0-inc20",
            "split={ groups = [[3, 4], [4]] }",
            "split=joint",
        ] {
            let words = ["show", name, "--data-dir", &data_dir, "--stream", stream];
            let repeats = ["--stream", "repeats=all"];
            let is_repeated = stream.contains("groups");
            let words = [&words[..], if is_repeated { &repeats } else { &[] }].concat();
            run_words(&words).unwrap();
        }
    }

    #[test]
    fn a_task_is_one_line() {
        let dataset = datasets::open(
            "omniglot-evaluation",
            Path::new(&shipped()),
            &Options::none(),
        );
        let dataset = dataset.unwrap();
        let keys = ["split={ groups = [[1, 0], [0], [2, 0]] }", "repeats=all"];
        let config = crate::config::stream_of(&keys.map(str::to_owned)).unwrap();
        let stream = TaskStream::new(dataset.as_ref(), &config).unwrap();
        let lines: Vec<String> = stream
            .tasks()
            .iter()
            .map(|task| task_line(dataset.as_ref(), task))
            .collect();
        let names = dataset.class_names();
        assert_eq!(
            lines[0],
            format!(
                "task   0  labels    0 to    1      30 train     10 test  {}, {}",
                names[1], names[0]
            )
        );
        assert_eq!(
            lines[1],
            format!(
                "task   1  no new labels           1 again      15 train      5 test  {}",
                names[0]
            )
        );
        assert!(
            lines[2].starts_with("task   2  labels    2 to    2     1 again "),
            "{}",
            lines[2]
        );
    }

    /// Run with `SDLORA_DATA=<folder of data sets> cargo test -p sdlora-cli given -- --ignored --nocapture`.
    #[test]
    #[ignore = "needs data sets that do not ship with the project"]
    fn given_data_sets_are_verified_and_shown() {
        let data_dir = std::env::var("SDLORA_DATA").expect("SDLORA_DATA names a folder");
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("sheet.png");
        let at = ["--data-dir", &data_dir];
        run_words(&[&["list"], &at[..]].concat()).unwrap();
        for (name, folder, option) in [
            ("cifar100", "cifar-100-binary", None),
            ("gtsrb", "gtsrb", None),
            ("mnist", "mnist-t10k", Some("first_of_test=8000")),
            (
                "tiny-imagenet",
                "tiny-imagenet",
                Some("root=tiny-imagenet/tiny-imagenet-inc100.zip"),
            ),
        ] {
            if !Path::new(&data_dir).join(folder).exists() {
                continue;
            }
            let option: Vec<&str> = option.into_iter().flat_map(|o| ["--option", o]).collect();
            let verify = ["verify", name, "--images"];
            run_words(&[&verify, &at[..], &option].concat()).unwrap();
            let show = ["show", name, "--out", out.to_str().unwrap()];
            run_words(&[&show, &at[..], &option].concat()).unwrap();
        }
    }

    #[test]
    fn mistakes_are_named() {
        let data_dir = shipped();
        for (words, part) in [
            (vec!["verify", "omniglott"], "omniglott"),
            (
                vec!["show", "omniglot-evaluation", "--option", "x"],
                "no `=`",
            ),
            (
                vec!["show", "omniglot-evaluation", "--classes", "0"],
                "1 or more",
            ),
            (vec!["verify", "mnist"], "sdlora data fetch mnist"),
            (
                vec!["show", "omniglot-evaluation", "--stream", "b0"],
                "b0-inc20",
            ),
            (
                vec!["show", "omniglot-evaluation", "--stream", "split=jont"],
                "jont",
            ),
            (
                vec!["show", "omniglot-evaluation", "--stream", "n_tasks=2"],
                "split",
            ),
        ] {
            let error = run_words(&[&words[..], &["--data-dir", &data_dir]].concat());
            let error = format!("{:#}", error.unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }
}
