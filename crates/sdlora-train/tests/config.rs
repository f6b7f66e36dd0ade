//! Configuration files are read strictly: a misspelt key is refused by name wherever it stands, and
//! what is written reads back the same.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]
#![allow(clippy::result_large_err, reason = "a test ends with its first error")]

use std::path::Path;

use sdlora_train::methods::{self, METHODS};
use sdlora_train::pretrain::PretrainConfig;
use sdlora_train::{Plan, RunConfig, TrainError};

/// Every section and most keys there are.
const FULL: &str = r#"
seed = 7
dataset = "omniglot-evaluation"
n_epochs = 2
batch_size = 8
head = "linear"
loss = "new-classes"
checkpoint_every = 100
hold_out = 0

[dataset_options]

[first_task]
n_epochs = 1

[first_task.optimizer]
rule = "adamw"
lr = 0.001
beta1 = 0.9

[mix]
mixup = 0.4
cutmix = 1.0
probability = 0.5
cutmix_share = 0.5

[[expected]]
acc = 77.34
acc_standard_error = 0.35
aaa = 82.04
aaa_standard_error = 0.24
over = "tasks"
source = "a paper"

[method]
name = "sdlora"
variant = "reference"
rank = 4
projections = ["query", "value"]

[method.settings]
past_norm = "frobenius"
sharing = "shared"

[method.settings.current]
form = "raw"

[method.settings.start]
start = "keep"
value = 1.0

[backbone]
weights = "vit.safetensors"
preset = "vit_tiny_patch16_224"

[stream]
n_tasks = 2
appearances = [["invert"], [{ rotate = { degrees = 90.0 } }]]

[stream.class_order.numpy]
seed = 1

[stream.split.increment]
init_cls = 3
increment = 3

[transform]
side = 28
channels = "gray"
polarity = "inverted"
oversample = 2

[transform.normalise]
mean = [0.5]
std = [0.5]

[transform.augment.affine]
degrees = 10.0
scale = [0.9, 1.1]
shear_degrees = 5.0
translate = 0.1

[optimizer]
rule = "sgd"
lr = 0.01
momentum = 0.9
dampening = 0.0
nesterov = false
weight_decay = 0.0
max_grad_norm = 1.0

[optimizer.schedule]
shape = "cosine"
warmup = 0.1
eta_min = 0.0
"#;

fn check(text: &str) -> Result<Plan, TrainError> {
    RunConfig::parse(text)?.check()
}

#[test]
fn a_misspelt_key_is_refused_by_name_wherever_it_stands() {
    check(FULL).unwrap();
    let lines: Vec<&str> = FULL.lines().collect();
    let mut n_keys = 0;
    for (i, line) in lines.iter().enumerate() {
        let Some((key, value)) = line.split_once(" = ") else {
            continue;
        };
        // The key stays, so what is missing cannot be the reason; the misspelt one is added.
        let wrong = format!("{key}x");
        let added = format!("{line}\n{wrong} = {value}");
        let text = [&lines[..i], &[added.as_str()], &lines[i + 1..]]
            .concat()
            .join("\n");
        let error = check(&text).map(drop).expect_err(&wrong).to_string();
        assert!(error.contains(&wrong), "`{wrong}` is not named in: {error}");
        n_keys += 1;
    }
    assert_eq!(n_keys, 58);
}

#[test]
fn a_misspelt_section_is_refused_by_name() {
    let mut n_sections = 0;
    for line in FULL.lines().filter(|line| line.starts_with('[')) {
        let section = line.trim_matches(['[', ']']);
        let wrong = format!("{section}x");
        // A choice has one section, so there the wrong one takes its place.
        let is_choice = ["stream.class_order.numpy", "stream.split.increment"].contains(&section);
        let text = if is_choice {
            FULL.replace(line, &format!("[{wrong}]"))
        } else {
            format!("{FULL}\n[{wrong}]\nanything = 1\n")
        };
        let error = check(&text).map(drop).expect_err(&wrong).to_string();
        let last = wrong.rsplit('.').next().unwrap();
        assert!(error.contains(last), "`{last}` is not named in: {error}");
        n_sections += 1;
    }
    assert_eq!(n_sections, 18);
}

#[test]
fn a_plan_reads_what_it_writes() {
    let plan = check(FULL).unwrap();
    let text = plan.to_toml().unwrap();
    let again = RunConfig::parse(&text).unwrap();
    assert_eq!(&again, plan.config());
    assert_eq!(again.check().unwrap().to_toml().unwrap(), text);
}

#[test]
fn every_run_that_ships_is_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdlora-cli/presets");
    let mut n_presets = 0;
    let files = |folder: &Path| std::fs::read_dir(folder).unwrap();
    for entry in files(&folder).chain(files(&folder.join("paper"))) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("pretrain") {
            PretrainConfig::parse(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        } else if text.starts_with("base = ") || text.contains("\nbase = \"") {
            // The command line completes and checks those that name a base.
            continue;
        } else if text.contains("\n[backbone]\n") {
            check(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        } else {
            // A list of runs, which the command line reads.
            continue;
        }
        n_presets += 1;
    }
    assert!(n_presets > 8, "{n_presets}");
}

#[test]
fn a_recipe_without_options_of_the_judge_is_written_as_before_they_were_a_key() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdlora-cli/presets");
    let text = std::fs::read_to_string(folder.join("pretrain-tiny-imagenet.toml")).unwrap();
    let mut config = PretrainConfig::parse(&text).unwrap();
    assert!(!toml::to_string(&config).unwrap().contains("eval_options"));
    config.eval_options = sdlora_data::Options::none().with("root", "elsewhere");
    let written = toml::to_string(&config).unwrap();
    assert!(
        written.contains("[eval_options]\nroot = \"elsewhere\""),
        "{written}"
    );
    assert_eq!(PretrainConfig::parse(&written).unwrap(), config);
}

#[test]
fn published_numbers_out_of_range_are_refused_with_the_plan() {
    let text = FULL.replace("acc = 77.34", "acc = 7734.0");
    let error = check(&text).map(drop).unwrap_err();
    assert!(error.is_usage());
    assert!(
        error.to_string().contains("`expected.acc` is 7734"),
        "{error}"
    );
}

/// What a method of that name says to options.
fn method(name: &str, options: &str) -> Result<(), TrainError> {
    let options: toml::Table = options.parse().unwrap();
    methods::build(name, &options).map(drop)
}

#[test]
fn every_list_of_every_method_is_refused_when_it_is_empty_names_something_twice_or_has_no_meaning()
{
    let mut n_with_projections = 0;
    for entry in METHODS {
        let name = entry.name;
        let has = |options: &str| method(name, options).is_ok();
        if has("projections = [\"key\"]") {
            n_with_projections += 1;
            for wrong in ["[]", "[\"key\", \"value\", \"key\"]"] {
                let error = method(name, &format!("projections = {wrong}"));
                let error = error.unwrap_err().to_string();
                let says = error.contains("method.projections") && error.contains("key");
                assert!(
                    says && error.contains("each once"),
                    "{name} {wrong}: {error}"
                );
            }
        }
        if has("rank = 3") {
            let error = method(name, "rank = 0").unwrap_err().to_string();
            assert!(
                error.contains("method.rank") && error.contains("at least 1"),
                "{error}"
            );
        }
        for key in ["blocks", "general_blocks", "expert_blocks"] {
            if !has(&format!("{key} = [1]")) {
                continue;
            }
            let wrong = ["[]", "[1, 1]"];
            // No general prefix is a choice.
            for wrong in &wrong[usize::from(key == "general_blocks")..] {
                let error = method(name, &format!("{key} = {wrong}"))
                    .unwrap_err()
                    .to_string();
                assert!(
                    error.contains(&format!("method.{key}")),
                    "{name} {wrong}: {error}"
                );
            }
        }
    }
    assert_eq!(n_with_projections, 29, "of {}", METHODS.len());
}

#[test]
fn lists_of_the_other_sections_are_refused_with_their_range_when_the_configuration_is_read() {
    let steps = |milestones: &str, gamma: &str| {
        format!("shape = \"multi-step\"\nmilestones = {milestones}\ngamma = {gamma}")
    };
    const COSINE: &str = "shape = \"cosine\"\nwarmup = 0.1\neta_min = 0.0";
    const SPLIT: &str = "[stream.split.increment]\ninit_cls = 3\nincrement = 3";
    check(&FULL.replace(COSINE, &steps("[0, 1]", "0.5"))).unwrap();
    for (from, to, setting, part) in [
        (
            COSINE,
            steps("[]", "0.5"),
            "schedule.milestones",
            "one epoch or more",
        ),
        (
            COSINE,
            steps("[1, 1]", "0.5"),
            "schedule.milestones",
            "each once",
        ),
        (
            COSINE,
            steps("[1, 0]", "0.5"),
            "schedule.milestones",
            "ascending",
        ),
        (
            COSINE,
            steps("[1, 2]", "0.5"),
            "schedule.milestones",
            "from 0 to 1",
        ),
        (
            SPLIT,
            "[stream.split]\nsizes = []".into(),
            "split.sizes",
            "one size",
        ),
        (
            SPLIT,
            "[stream.split]\ngroups = [[0, 0]]".into(),
            "split.groups[0]",
            "twice",
        ),
        ("n_tasks = 2", "n_tasks = 0".into(), "n_tasks", "at least 1"),
        (
            "degrees = 90.0",
            "degrees = nan".into(),
            "appearances[1][0]",
            "finite",
        ),
        (
            "mean = [0.5]",
            "mean = []".into(),
            "normalise.mean",
            "1 or 1",
        ),
        (
            "std = [0.5]",
            "std = [0.5, 0.5]".into(),
            "normalise.std",
            "1 or 1",
        ),
    ] {
        let text = FULL.replace(from, &to);
        assert_ne!(text, FULL, "{from}");
        let error = check(&text).unwrap_err();
        assert!(error.is_usage(), "{error}");
        let error = error.to_string();
        assert!(
            error.contains(setting) && error.contains(part),
            "{to}: {error}"
        );
    }
    // The first task has fewer epochs than the others.
    let first = "rule = \"adamw\"\nlr = 0.001\nbeta1 = 0.9";
    let late =
        format!("{first}\nschedule = {{ shape = \"multi-step\", milestones = [1], gamma = 0.5 }}");
    let error = check(&FULL.replace(first, &late)).unwrap_err().to_string();
    assert!(error.contains("from 0 to 0"), "{error}");
}

#[test]
fn labels_are_not_mixed_under_a_method_with_a_loss_of_its_own() {
    for name in ["tspmo", "sgrpo"] {
        let mut config = RunConfig::parse(FULL).unwrap();
        config.head = None;
        config.method = sdlora_train::MethodConfig {
            name: name.into(),
            options: toml::Table::new(),
        };
        assert!(config.mix.is_some());
        let error = config.clone().check().unwrap_err().to_string();
        assert!(
            error.contains("mix") && error.contains("one label"),
            "{error}"
        );
        config.mix = None;
        config.check().unwrap();
    }
}

#[test]
fn prompts_and_gradient_checkpointing_are_refused_by_name_before_there_is_a_plan() {
    for entry in METHODS {
        let mut config = RunConfig::parse(FULL).unwrap();
        config.mix = None;
        config.head = None;
        config.method = sdlora_train::MethodConfig {
            name: entry.name.into(),
            options: toml::Table::new(),
        };
        config.gradient_checkpointing = true;
        // Blocks that read prompts, or that a mask changes.
        let is_refused = entry.second_pass.is_some() || entry.name == "lora-dropout";
        match config.check() {
            Ok(_) => assert!(!is_refused, "{}", entry.name),
            Err(error) => {
                let error = error.to_string();
                assert!(
                    is_refused && error.contains("gradient_checkpointing"),
                    "{error}"
                );
            }
        }
    }
}
