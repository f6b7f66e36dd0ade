//! `sdlora data`: what data sets there are, whether their files are right, and what they look like.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sdlora_data::{Dataset, FileState, Image, Options, SampleIdx, Split, TaskStream, datasets};

use super::contact_sheet;
use crate::UsageError;
use crate::config::ConfigArgs;

/// List data sets, verify their files, or show what is in one
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Every data set that can be opened, and which of them are in the data folder
    List(List),
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
    /// Set an option of the data set, for instance `root=photos` or `skip_bad=true`
    #[arg(long = "option", value_name = "KEY=VALUE")]
    options: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct Verify {
    #[command(flatten)]
    which: Which,
    /// Decode every image as well
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
    #[command(flatten)]
    config: ConfigArgs,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::List(args) => list(&args.data_dir),
        Command::Verify(args) => verify(&args),
        Command::Show(args) if args.tasks => show_tasks(&args),
        Command::Show(args) => show(&args),
    }
}

fn list(data_dir: &Path) -> anyhow::Result<()> {
    println!(
        "{:<20} {:>8} {:>9}  {:<7} summary",
        "name", "classes", "images", "present"
    );
    for entry in datasets::DATASETS {
        let manifest = entry.manifest()?;
        let number = |n: Option<usize>| match n {
            None | Some(0) => "any".to_owned(),
            Some(n) => n.to_string(),
        };
        let set = manifest.set(entry.name);
        let is_present = manifest.present_folder(data_dir).is_some();
        println!(
            "{:<20} {:>8} {:>9}  {:<7} {}",
            entry.name,
            number(set.map(|set| set.classes)),
            number(set.map(|set| set.images)),
            if is_present { "yes" } else { "-" },
            entry.summary
        );
    }
    Ok(())
}

fn verify(args: &Verify) -> anyhow::Result<()> {
    let entry = datasets::find(&args.which.name).map_err(|e| UsageError(e.to_string()))?;
    let manifest = entry.manifest()?;
    println!(
        "source   {}\nlicence  {}",
        manifest.source, manifest.licence
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
        println!("file     {}: {state}", check.path.display());
    }
    let dataset = args.which.open()?;
    describe(dataset.as_ref());
    if args.images {
        for split in [Split::Train, Split::Test] {
            for (idx, sample) in dataset.samples(split).iter().enumerate() {
                if let Err(error) = dataset.image(split, idx) {
                    n_wrong += 1;
                    println!("WRONG    {}: {error}", sample.name);
                }
            }
        }
    }
    if n_wrong > 0 {
        anyhow::bail!("{n_wrong} files or images are wrong: fetch or replace them");
    }
    Ok(())
}

/// Prints the numbers of a data set and its notes.
fn describe(dataset: &dyn Dataset) {
    let mut counts = vec![[0usize; 2]; dataset.class_names().len()];
    for (half, split) in [Split::Train, Split::Test].into_iter().enumerate() {
        for sample in dataset.samples(split) {
            counts[sample.class_id][half] += 1;
        }
    }
    println!("classes  {}", counts.len());
    if !dataset.groups().is_empty() {
        println!("groups   {}", dataset.groups().len());
    }
    for (half, split) in [Split::Train, Split::Test].into_iter().enumerate() {
        let of_half = counts.iter().map(|counts| counts[half]);
        println!(
            "{:<8} {} images, {} to {} a class",
            split.to_string(),
            dataset.samples(split).len(),
            of_half.clone().min().unwrap_or(0),
            of_half.max().unwrap_or(0)
        );
    }
    for note in dataset.notes() {
        println!("note     {note}");
    }
}

fn show(args: &Show) -> anyhow::Result<()> {
    if args.classes == 0 || args.per_class == 0 {
        return Err(UsageError("`--classes` and `--per-class` are 1 or more".to_owned()).into());
    }
    let dataset = args.which.open()?;
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
        println!("row {:>3}  {}", row + 1, dataset.class_names()[class_id]);
    }
    contact_sheet::write(&rows, &args.out)?;
    println!("wrote    {}", args.out.display());
    Ok(())
}

fn show_tasks(args: &Show) -> anyhow::Result<()> {
    let dataset: Arc<dyn Dataset> = args.which.open()?.into();
    let stream = TaskStream::new(dataset.as_ref(), &args.config.stream()?)?;
    for (task_idx, task) in stream.tasks().iter().enumerate() {
        let names: Vec<&str> = task
            .labels()
            .map(|label| dataset.class_names()[stream.class_order()[label]].as_str())
            .collect();
        println!(
            "task {task_idx:>3}  labels {:>4} to {:>4}  {:>6} train {:>6} test  {}",
            task.labels().start,
            task.labels().end - 1,
            task.train.as_ref().len(),
            task.test.as_ref().len(),
            names.join(", ")
        );
    }
    Ok(())
}

impl Which {
    /// Opens the data set; a wrong name or option is the user's mistake.
    fn open(&self) -> anyhow::Result<Box<dyn Dataset>> {
        let mut options = Options::none();
        for option in &self.options {
            let (key, value) = option.split_once('=').ok_or_else(|| {
                UsageError(format!(
                    "`--option {option}` has no `=`: write `--option key=value`"
                ))
            })?;
            options = options.with(key.trim(), crate::config::parse_value(value.trim()));
        }
        datasets::find(&self.name).map_err(|e| UsageError(e.to_string()))?;
        Ok(datasets::open(&self.name, &self.data_dir, &options)?)
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
        run_words(&["verify", name, "--data-dir", &data_dir]).unwrap();
        let sheet = ["--classes", "3", "--per-class", "4", "--out", out];
        run_words(&[&["show", name, "--data-dir", &data_dir], &sheet[..]].concat()).unwrap();
        let sheet = Image::decode(&std::fs::read(out).unwrap(), "sheet").unwrap();
        // 105 pixels and a border of 2 around each image.
        assert_eq!((sheet.width(), sheet.height()), (4 * 107 + 2, 3 * 107 + 2));
        run_words(&["show", name, "--data-dir", &data_dir, "--tasks"]).unwrap();
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
            (vec!["verify", "mnist"], "mnist"),
        ] {
            let error = run_words(&[&words[..], &["--data-dir", &data_dir]].concat());
            let error = format!("{:#}", error.unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }
}
