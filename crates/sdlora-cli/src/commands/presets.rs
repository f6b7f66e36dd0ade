//! `sdlora presets`: the configurations inside the binary.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use sdlora_train::RunConfig;
use toml::{Table, Value};

use crate::UsageError;
use crate::commands::{cost, read_text};
use crate::output::answer;
use crate::overlay::{self, Base};
use crate::shown::{clipped, shown_path};

/// A configuration that ships with the program.
pub struct Preset {
    /// Name that `--preset` takes.
    pub name: &'static str,
    /// Its TOML text, complete.
    pub text: &'static str,
}

impl Preset {
    /// What it is: the first line of its text, a comment.
    pub fn summary(&self) -> &'static str {
        let first = self.text.lines().next().unwrap_or_default();
        first.trim_start_matches(['#', ' '])
    }
}

/// Every TOML file below `presets`: its path there without ending, and its text. `build.rs` lists them.
const FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/presets.rs"));

/// What a file below `presets` is, by the start of its name; all others are presets of `sdlora train`.
const OTHERS: [&str; 3] = ["suite-", "tune-", "pretrain-"];

/// Names and texts of the suites; that of `suite-omniglot` is `omniglot`.
pub fn suites() -> impl Iterator<Item = (&'static str, &'static str)> {
    let named = |(path, text): &(&'static str, &'static str)| match path.strip_prefix("suite-") {
        Some(name) => Some((name, *text)),
        None => path.starts_with("tune-").then_some((*path, *text)),
    };
    FILES.iter().filter_map(named)
}

/// Every preset of `sdlora train`. Those of the folder `paper` are the rows of the paper, each as the paper describes
/// it and as the published code runs it.
pub fn all() -> &'static [Preset] {
    static ALL: LazyLock<Vec<Preset>> = LazyLock::new(|| {
        written()
            .map(|(name, text)| Preset {
                name,
                text: match with_bases(name, text, None) {
                    // It lives as long as the program, as a text without a base does.
                    Ok(whole) if whole != text => whole.leak(),
                    // A test completes every preset.
                    _ => text,
                },
            })
            .collect()
    });
    &ALL
}

/// Names and texts of the presets as their files have them.
fn written() -> impl Iterator<Item = (&'static str, &'static str)> {
    FILES
        .iter()
        .filter(|(path, _)| !OTHERS.iter().any(|start| path.starts_with(start)))
        .map(|(path, text)| (path.rsplit('/').next().unwrap_or(path), *text))
}

/// The complete text of a configuration. `base` names a preset, or a file by its path from the folder of the file
/// that has it: `file` is that file, `None` for a preset.
///
/// # Errors
///
/// Usage errors that name the file: a base that does not exist, and bases in a circle.
pub fn with_bases(called: &str, text: &str, file: Option<&Path>) -> anyhow::Result<String> {
    let folder = |file: &Path| file.parent().unwrap_or(Path::new("")).to_path_buf();
    overlay::complete(called, text, file.map(folder), &mut |name,
                                                            from: &Option<
        PathBuf,
    >| {
        if let Some((name, text)) = written().find(|(preset, _)| *preset == name) {
            return Ok(Base {
                id: name.to_owned(),
                text: text.to_owned(),
                from: None,
            });
        }
        let path = from.as_ref().map(|from| from.join(name));
        match path {
            Some(path) if path.is_file() || name.ends_with(".toml") => Ok(Base {
                id: shown_path(&path.canonicalize().unwrap_or_else(|_| path.clone())),
                text: read_text(&path)?,
                from: Some(folder(&path)),
            }),
            _ => Err(unknown(name).into()),
        }
    })
}

/// The configuration of a file as TOML, complete.
///
/// # Errors
///
/// Those of [`with_bases`] and of reading.
pub fn read(path: &Path) -> anyhow::Result<String> {
    let text = read_text(path)?;
    let place = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    with_bases(&shown_path(&place), &text, Some(&place))
}

/// The preset of that name.
///
/// # Errors
///
/// A usage error that lists the names that are near.
pub fn find(name: &str) -> Result<&'static Preset, UsageError> {
    let found = all().iter().find(|preset| preset.name == name);
    found.ok_or_else(|| unknown(name))
}

/// The error for a name that no preset has, with the names that are near.
fn unknown(name: &str) -> UsageError {
    let n_shared = |preset: &str| {
        preset
            .bytes()
            .zip(name.bytes())
            .take_while(|(a, b)| a == b)
            .count()
    };
    // The texts are not needed, and one that is being completed must not be asked for.
    let names = || written().map(|(name, _)| name);
    let nearest = names().map(n_shared).max().unwrap_or(0);
    let near: Vec<_> = names()
        .filter(|name| nearest == 0 || n_shared(name) == nearest)
        .take(MOST_NAMES)
        .collect();
    UsageError(format!(
        "no preset is called `{name}`: near it are {}; `sdlora presets list` has all",
        near.join(", ")
    ))
}

/// Names in an error; more are no help.
const MOST_NAMES: usize = 8;

/// List the presets, print one, show how two differ, or say what a run takes
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// Preset to print, as with `show`; without it the presets are listed
    name: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List the presets
    List {
        /// Only those whose name contains every one of these words
        filter: Vec<String>,
    },
    /// Print a preset
    Show {
        /// Its name
        name: String,
    },
    /// Print the keys in which two configurations differ, defaults written out
    Diff {
        /// A preset, or a configuration file (TOML)
        a: String,
        /// The other
        b: String,
    },
    Cost(cost::Args),
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let text = match (args.command, args.name) {
        (Some(Command::Cost(args)), _) => return cost::run(&args, &complete_text(&args.name)?),
        (None, Some(name)) | (Some(Command::Show { name }), _) => find(&name)?.text.to_owned(),
        (None, None) => list(&[])?,
        (Some(Command::List { filter }), _) => list(&filter)?,
        (Some(Command::Diff { a, b }), _) => diff(&a, &b)?,
    };
    Ok(answer!("{}", text.trim_end())?)
}

/// A line for each preset whose name contains all words.
fn list(words: &[String]) -> Result<String, UsageError> {
    let found: Vec<_> = all()
        .iter()
        .filter(|preset| words.iter().all(|word| preset.name.contains(word.as_str())))
        .collect();
    let width = found.iter().map(|preset| preset.name.len()).max();
    let Some(width) = width else {
        return Err(UsageError(format!(
            "no name of a preset contains `{}`: `sdlora presets list` has all",
            words.join("` and `")
        )));
    };
    Ok(found
        .iter()
        .map(|preset| format!("{:<width$}  {}\n", preset.name, preset.summary()))
        .collect())
}

/// A line for each key whose values differ.
fn diff(a: &str, b: &str) -> anyhow::Result<String> {
    let (left, right) = (keys(a)?, keys(b)?);
    let absent = || "-".to_owned();
    let mut rows = vec![("key".to_owned(), clipped(a), clipped(b))];
    for key in left
        .keys()
        .chain(right.keys().filter(|key| !left.contains_key(*key)))
    {
        let (l, r) = (left.get(key), right.get(key));
        if l != r {
            let value = |value: Option<&String>| value.cloned().unwrap_or_else(absent);
            let value = |of| clipped(&value(of));
            rows.push((clipped(key), value(l), value(r)));
        }
    }
    rows[1..].sort();
    if rows.len() == 1 {
        return Ok("no key differs\n".into());
    }
    let width = |of: fn(&(String, String, String)) -> &String| {
        let widths = rows.iter().map(|row| of(row).chars().count());
        widths.max().unwrap_or(0)
    };
    let (w_key, w_left) = (width(|r| &r.0), width(|r| &r.1));
    Ok(rows
        .iter()
        .map(|(key, l, r)| format!("{key:<w_key$}  {l:<w_left$}  {r}\n"))
        .collect())
}

/// The keys of a configuration, dotted, with their values as TOML.
fn keys(name: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let table = Table::try_from(RunConfig::parse(&complete_text(name)?)?)?;
    let mut keys = BTreeMap::new();
    flatten("", &table, &mut keys);
    Ok(keys)
}

/// The complete text of a preset or of a file.
fn complete_text(name: &str) -> anyhow::Result<String> {
    match Path::new(name).is_file() {
        true => read(name.as_ref()),
        false => Ok(find(name)?.text.to_owned()),
    }
}

fn flatten(prefix: &str, table: &Table, keys: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let key = format!("{prefix}{key}");
        match value {
            Value::Table(inner) => flatten(&format!("{key}."), inner, keys),
            // Published numbers, each key for itself.
            Value::Array(items) if items.iter().all(Value::is_table) => {
                for (i, item) in items.iter().enumerate() {
                    let inner = Table::from_iter([(i.to_string(), item.clone())]);
                    flatten(&format!("{key}."), &inner, keys);
                }
            }
            value => {
                keys.insert(key, value.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_data::{ClassOrder, TaskSplit};
    use sdlora_image::TransformConfig;
    use sdlora_train::{MeanOver, Rule, Schedule};

    /// What the paper and its code say of a stream, apart from the presets: data set, tasks, classes,
    /// seed, epochs of the paper, rate of the code, SD-LoRA in the paper and in the log of the code.
    struct Row {
        stream: &'static str,
        dataset: &'static str,
        n_tasks: usize,
        n_classes: usize,
        seed: u32,
        paper_epochs: usize,
        reference_epochs: usize,
        lr: f64,
        paper: [f64; 2],
        log: Option<[f64; 2]>,
    }

    #[rustfmt::skip]
    const ROWS: &[Row] = &[
        Row { stream: "imagenet-r-n5", dataset: "imagenet-r", n_tasks: 5, n_classes: 200, seed: 1995, paper_epochs: 30, reference_epochs: 20, lr: 0.01, paper: [79.15, 83.01], log: Some([79.32, 83.00]) },
        Row { stream: "imagenet-r-n10", dataset: "imagenet-r", n_tasks: 10, n_classes: 200, seed: 1995, paper_epochs: 30, reference_epochs: 20, lr: 0.01, paper: [77.34, 82.04], log: Some([78.17, 82.59]) },
        Row { stream: "imagenet-r-n20", dataset: "imagenet-r", n_tasks: 20, n_classes: 200, seed: 1995, paper_epochs: 30, reference_epochs: 20, lr: 0.01, paper: [75.26, 80.22], log: Some([75.13, 79.80]) },
        Row { stream: "imagenet-a-n10", dataset: "imagenet-a", n_tasks: 10, n_classes: 200, seed: 1993, paper_epochs: 20, reference_epochs: 20, lr: 0.005, paper: [55.96, 64.95], log: Some([58.66, 68.77]) },
        Row { stream: "domainnet-n5", dataset: "domainnet", n_tasks: 5, n_classes: 345, seed: 1993, paper_epochs: 10, reference_epochs: 10, lr: 0.02, paper: [72.82, 78.89], log: None },
        Row { stream: "cifar100-n10", dataset: "cifar100", n_tasks: 10, n_classes: 100, seed: 1993, paper_epochs: 20, reference_epochs: 20, lr: 0.008, paper: [88.01, 92.54], log: Some([87.26, 92.05]) },
        Row { stream: "cub200-n10", dataset: "cub200", n_tasks: 10, n_classes: 200, seed: 1993, paper_epochs: 20, reference_epochs: 20, lr: 0.01, paper: [77.48, 85.59], log: None },
    ];

    /// The paper's table of ImageNet-R for the relatives, by stream.
    fn of_relative(stream: &str, method: &str) -> Option<[f64; 2]> {
        match (stream, method) {
            ("imagenet-r-n5", "sdlora-rr") => Some([79.01, 82.50]),
            ("imagenet-r-n10", "sdlora-rr") => Some([77.18, 81.74]),
            ("imagenet-r-n20", "sdlora-rr") => Some([74.05, 80.65]),
            ("imagenet-r-n5", "sdlora-kd") => Some([78.85, 82.47]),
            ("imagenet-r-n10", "sdlora-kd") => Some([77.03, 81.52]),
            ("imagenet-r-n20", "sdlora-kd") => Some([74.12, 80.11]),
            _ => None,
        }
    }

    #[test]
    fn the_rows_of_the_paper_have_its_settings_and_its_numbers() {
        let mut n_seen = 0;
        for row in ROWS {
            for method in ["sdlora", "sdlora-rr", "sdlora-kd"] {
                for form in ["paper", "reference"] {
                    check_row(row, method, form);
                    n_seen += 1;
                }
            }
        }
        assert_eq!(n_seen, 42);
    }

    fn check_row(row: &Row, method: &str, form: &str) {
        let name = format!("{}-{method}-{form}", row.stream);
        let preset = find(&name).unwrap();
        let config = RunConfig::parse(preset.text).unwrap_or_else(|e| panic!("{name}: {e}"));
        let is_paper = form == "paper";
        assert_eq!(config.dataset, row.dataset, "{name}");
        assert_eq!(config.seed, u64::from(row.seed), "{name}");
        assert_eq!(
            config.stream.class_order,
            ClassOrder::Numpy { seed: row.seed },
            "{name}"
        );
        let n_a_task = row.n_classes / row.n_tasks;
        let split = TaskSplit::Increment {
            init_cls: n_a_task,
            increment: n_a_task,
        };
        assert_eq!(
            (&config.stream.split, config.stream.n_tasks),
            (&split, None),
            "{name}"
        );
        assert_eq!(n_a_task * row.n_tasks, row.n_classes, "{name}");
        assert_eq!(config.batch_size, 128, "{name}");
        let epochs = if is_paper {
            row.paper_epochs
        } else {
            row.reference_epochs
        };
        assert_eq!(config.n_epochs, epochs, "{name}");
        assert_eq!(config.transform, TransformConfig::imagenet(), "{name}");
        assert_eq!(config.method.name, method, "{name}");
        assert_eq!(
            config.method.options["variant"].as_str(),
            Some(form),
            "{name}"
        );
        if method == "sdlora-rr" {
            assert_eq!(
                config.method.options["ranks"].as_str(),
                Some(form),
                "{name}"
            );
        } else {
            assert_eq!(
                config.method.options["rank"].as_integer(),
                Some(10),
                "{name}"
            );
        }
        if is_paper {
            assert!(matches!(config.optimizer.rule, Rule::Adam { .. }), "{name}");
            assert_eq!(config.optimizer.lr, 0.008, "{name}");
        } else {
            let sgd = Rule::Sgd {
                momentum: 0.9,
                dampening: 0.0,
                nesterov: false,
            };
            assert_eq!(
                (config.optimizer.rule, config.optimizer.lr),
                (sgd, row.lr),
                "{name}"
            );
            let steps = |milestones: &[usize], gamma| Schedule::MultiStep {
                milestones: milestones.into(),
                gamma,
            };
            let schedule = match row.dataset {
                "imagenet-a" => steps(&[10, 15], 0.05),
                "domainnet" => steps(&[4, 6, 8], 0.005),
                _ => Schedule::Constant,
            };
            assert_eq!(config.optimizer.schedule, schedule, "{name}");
        }
        assert_eq!(config.optimizer.weight_decay, 0.0, "{name}");
        // Only ImageNet-A starts with another rate.
        let first_lr = (row.dataset == "imagenet-a" && !is_paper).then_some(0.01);
        let first = config
            .first_task
            .as_ref()
            .and_then(|first| first.optimizer.as_ref());
        assert_eq!(first.map(|optimizer| optimizer.lr), first_lr, "{name}");
        assert!(
            first.is_none_or(|o| o.schedule == config.optimizer.schedule),
            "{name}"
        );

        let published = if method == "sdlora" {
            Some(row.paper)
        } else {
            of_relative(row.stream, method)
        };
        let log = row.log.filter(|_| method == "sdlora" && !is_paper);
        let expected: Vec<_> = published
            .map(|numbers| (numbers, MeanOver::Tasks))
            .into_iter()
            .chain(log.map(|numbers| (numbers, MeanOver::Images)))
            .collect();
        let found: Vec<_> = config
            .expected
            .iter()
            .map(|e| ([e.acc.unwrap(), e.aaa.unwrap()], e.over))
            .collect();
        assert_eq!(found, expected, "{name}");
        config.check().unwrap_or_else(|e| panic!("{name}: {e}"));
    }

    #[test]
    fn names_are_unique_and_a_filter_takes_several_words() {
        for (i, preset) in all().iter().enumerate() {
            assert!(all()[..i].iter().all(|other| other.name != preset.name));
            assert!(preset.summary().len() > 20 && preset.text.starts_with("# "));
        }
        let some = list(&["imagenet-r".into(), "kd-paper".into()]).unwrap();
        let names: Vec<_> = some
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert_eq!(
            names,
            [
                "imagenet-r-n5-sdlora-kd-paper",
                "imagenet-r-n10-sdlora-kd-paper",
                "imagenet-r-n20-sdlora-kd-paper"
            ]
        );
        assert_eq!(list(&[]).unwrap().lines().count(), all().len());
        assert!(list(&["imagnet".into()]).is_err());
    }

    #[test]
    fn every_preset_is_complete_and_one_without_a_base_is_its_file() {
        for (preset, (name, text)) in all().iter().zip(written()) {
            assert_eq!(preset.name, name);
            let whole = with_bases(name, text, None).unwrap_or_else(|e| panic!("{e:#}"));
            assert_eq!(preset.text, whole);
            let table: Table = whole.parse().unwrap();
            assert!(!table.contains_key("base"), "{name}");
            let has_base = text.parse::<Table>().unwrap().contains_key("base");
            assert!(has_base || preset.text == text, "{name}");
        }
    }

    #[test]
    fn a_file_starts_from_a_preset_or_from_another_file() {
        let home = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = home.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        write("common.toml", "base = \"omniglot-10x20\"\nn_epochs = 3\n");
        let own = write(
            "mine/own.toml",
            "base = \"../common.toml\"\n\n[optimizer]\nlr = 0.5\n",
        );
        let config = RunConfig::parse(&read(&own).unwrap()).unwrap();
        let main_job = RunConfig::parse(find("omniglot-10x20").unwrap().text).unwrap();
        assert_eq!((config.n_epochs, config.optimizer.lr), (3, 0.5));
        assert_eq!(config.optimizer.rule, main_job.optimizer.rule);
        assert_eq!(config.stream, main_job.stream);
        for (text, part) in [
            ("base = \"own.toml\"\n", "circle"),
            ("base = \"missing.toml\"\n", "missing.toml"),
            ("base = \"omniglot-10x2\"\n", "presets list"),
        ] {
            let error = format!("{:#}", read(&write("mine/own.toml", text)).unwrap_err());
            assert!(
                error.contains(part) && error.contains("own.toml"),
                "{error}"
            );
        }
    }

    /// The 42 rows as they were when every one was a whole file.
    #[test]
    fn rows_with_a_base_are_byte_for_byte_what_whole_files_were() {
        use sha2::{Digest, Sha256};
        let mut names: Vec<String> = Vec::new();
        for row in ROWS {
            for method in ["sdlora", "sdlora-rr", "sdlora-kd"] {
                let form = |form| format!("{}-{method}-{form}", row.stream);
                names.extend(["paper", "reference"].map(form));
            }
        }
        names.sort();
        let mut hash = Sha256::new();
        for name in &names {
            hash.update(find(name).unwrap().text);
        }
        let hex: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        let before = "0417d64cff80c20429c6c1c57876d2d37ab804e058de9015180e97cf89639196";
        assert_eq!(hex, before);
    }

    const BEGIN: &str =
        "<!-- published numbers: `SDLORA_WRITE_PAGES=1 cargo test -p sdlora-cli published` -->\n";
    const END: &str = "<!-- their end -->";

    /// A row for every published number of every preset.
    fn published_table() -> String {
        let mut table = String::from(
            "| preset | last | average | mean over | source |\n| --- | ---: | ---: | --- | --- |\n",
        );
        for preset in all() {
            for one in RunConfig::parse(preset.text).unwrap().expected {
                let number =
                    |value: Option<f64>| value.map_or(String::new(), |v| format!("{v:.2}"));
                let over = match one.over {
                    MeanOver::Tasks => "tasks",
                    MeanOver::Images => "images",
                };
                let (acc, aaa) = (number(one.acc), number(one.aaa));
                let row = format!(
                    "| `{}` | {acc} | {aaa} | {over} | {} |\n",
                    preset.name, one.source
                );
                table.push_str(&row);
            }
        }
        table
    }

    #[test]
    fn the_page_has_the_published_numbers_of_all_presets() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/recipes.md");
        let page = std::fs::read_to_string(&path).unwrap();
        let (before, rest) = page.split_once(BEGIN).unwrap();
        let (found, after) = rest.split_once(END).unwrap();
        let table = published_table();
        if std::env::var_os("SDLORA_WRITE_PAGES").is_some() {
            std::fs::write(&path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
            return;
        }
        assert!(
            found == table,
            "docs/recipes.md is stale: SDLORA_WRITE_PAGES=1 with this test renews it"
        );
    }

    #[test]
    fn a_name_that_is_none_is_answered_with_those_near_it() {
        let error = find("imagenet-r-n10-sdlora")
            .map(drop)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("imagenet-r-n10-sdlora-paper") && !error.contains("cub200"),
            "{error}"
        );
        assert!(
            find("x")
                .map(drop)
                .unwrap_err()
                .to_string()
                .contains("presets list")
        );
    }

    #[test]
    fn a_difference_names_the_keys_and_both_values() {
        let a = "cifar100-n10-sdlora-paper";
        let text = diff(a, "cifar100-n10-sdlora-reference").unwrap();
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert!(
            lines.contains(&vec!["method.variant", "\"paper\"", "\"reference\""]),
            "{text}"
        );
        assert!(
            lines.contains(&vec!["optimizer.momentum", "-", "0.9"]),
            "{text}"
        );
        assert!(
            !text.contains("transform") && !text.contains("batch_size"),
            "{text}"
        );
        let text = diff("imagenet-r-n5-sdlora-paper", "imagenet-r-n10-sdlora-paper").unwrap();
        let acc = text.lines().find(|line| line.starts_with("expected.0.acc"));
        assert_eq!(
            acc.unwrap().split_whitespace().collect::<Vec<_>>()[1..],
            ["79.15", "77.34"]
        );
        assert!(!text.contains("source"), "{text}");
        assert_eq!(diff(a, a).unwrap(), "no key differs\n");
        assert!(diff(a, "nothing").is_err());
    }
}
