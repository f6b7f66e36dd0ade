//! Configurations of PILOT and its descendants: JSON files whose keys become those of a run.
//!
//! Every key is honoured, refused, or named in a note with the reason why it is left out; no result
//! depends on a key that was passed over in silence.

mod keys;
mod names;
mod sdlora;
mod training;

use sdlora_image::TransformConfig;
use sdlora_train::methods::{self, METHODS};
use serde_json::Value as Json;
use toml::{Table, Value};

use crate::UsageError;
use keys::{Keys, integer, missing, wrong};
use names::{backbone, dataset_name};

/// A configuration in our keys, and what became of the others.
#[derive(Debug)]
pub struct Translation {
    /// The configuration, as a TOML file would have it.
    pub table: Table,
    /// A sentence on each key that is left out, and on each setting that the file does not give.
    pub notes: Vec<String>,
}

/// Keys that change no result here, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    ("prefix", "`--name` names a run"),
    ("device", "`--device` says where to compute"),
    ("filepath", "the run folder keeps what a task leaves"),
    ("topk", "the report has the best class only"),
    ("fixed_memory", "no old image is kept"),
    ("num_workers", "the loader takes the cores there are"),
    ("pin_memory", "the loader has no such choice"),
    (
        "total_sessions",
        "it follows from `init_cls` and `increment`",
    ),
    ("net_type", "`backbone_type` names the backbone"),
    ("embd_dim", "the weight file has the shape"),
    ("num_heads", "the shape of the backbone has it"),
    ("pretrained", "the backbone always is"),
    (
        "get_original_backbone",
        "the backbone always is the original",
    ),
    ("reinit_optimizer", "every task starts with a new optimiser"),
    ("print_forget", "the report always has forgetting"),
    ("debug", "it changes no result"),
];

/// Reads a file of PILOT. `seed` is the run's where the user names one.
///
/// # Errors
///
/// A usage error that names the key: missing, of a wrong type, or one that cannot be honoured and
/// would change the result.
pub fn translate(text: &str, seed: Option<u32>) -> Result<Translation, UsageError> {
    let map = match serde_json::from_str(text) {
        Ok(Json::Object(map)) => map,
        Ok(_) => return Err(UsageError("the file holds no JSON object".into())),
        Err(error) => return Err(UsageError(format!("the file is no JSON: {error}"))),
    };
    let mut keys = Keys {
        map,
        notes: Vec::new(),
    };
    let mut table = Table::new();
    keys.refuse_memory()?;
    let fixed = keys.as_sdlora_runs();
    let seed = keys.seed(seed)?;
    table.insert("seed".into(), Value::Integer(seed));
    let dataset = keys.text("dataset")?.ok_or_else(|| missing("dataset"))?;
    table.insert("dataset".into(), dataset_name(&dataset).into());
    let batch_size = keys
        .count("batch_size")?
        .ok_or_else(|| missing("batch_size"))?;
    table.insert("batch_size".into(), integer(batch_size)?);
    let takes_steps = keys.method(&mut table, fixed)?;
    if let Some(name) = keys.text_of(&["backbone_type", "convnet_type"])? {
        table.insert("backbone".into(), Value::Table(backbone(&name)));
    }
    keys.stream(&mut table, seed)?;
    // What those programs do to images, whatever the data set.
    let transform = Table::try_from(TransformConfig::imagenet())
        .map_err(|e| UsageError(format!("the published transform has no TOML form: {e}")))?;
    table.insert("transform".into(), Value::Table(transform));
    keys.training(&mut table, takes_steps)?;
    let mut notes = keys.notes;
    for key in keys.map.keys() {
        notes.push(match LEFT_OUT.iter().find(|(known, _)| known == key) {
            Some((_, why)) => format!("`{key}` is left out: {why}"),
            None => format!(
                "`{key}` is not known and is left out: check whether the result depends on it"
            ),
        });
    }
    Ok(Translation { table, notes })
}

/// Keys of the programs of single methods, and what the option is called here.
const OPTIONS: &[(&str, &str)] = &[
    ("lamb", "lamb"),
    ("lame", "lame"),
    ("bcb_lrscale", "backbone_lr"),
    ("size", "n_prompts"),
    ("length", "length"),
    ("top_k", "top"),
    ("pull_constraint_coeff", "pull"),
];

impl Keys {
    fn refuse_memory(&mut self) -> Result<(), UsageError> {
        for key in ["memory_size", "memory_per_class"] {
            if let Some(n) = self.number(key)?
                && n > 0.0
            {
                return Err(UsageError(format!(
                    "`{key}` is {n}: no image of an earlier task is kept here; set it to 0 to train \
                     without"
                )));
            }
        }
        Ok(())
    }

    /// The one seed of the run.
    fn seed(&mut self, asked: Option<u32>) -> Result<i64, UsageError> {
        let listed = self.counts("seed")?.unwrap_or_default();
        match (asked, listed.as_slice()) {
            (Some(seed), _) => Ok(seed.into()),
            (None, &[]) => Err(missing("seed")),
            (None, &[seed]) if u32::try_from(seed).is_ok() => Ok(seed as i64),
            (None, &[seed]) => Err(wrong("seed", &seed, "a seed below 2^32, as NumPy's")),
            (None, several) => {
                let several: Vec<_> = several.iter().map(ToString::to_string).collect();
                Err(UsageError(format!(
                    "`seed` lists {}, and a run has one: start a run for each, beginning with \
                     `--seed {}`",
                    several.join(", "),
                    several[0]
                )))
            }
        }
    }

    /// The section of the method; `fixed` are options that its program leaves nobody to choose. Returns
    /// whether the method trains at all.
    fn method(&mut self, table: &mut Table, fixed: Option<Table>) -> Result<bool, UsageError> {
        let typed = self
            .text("model_name")?
            .ok_or_else(|| missing("model_name"))?;
        let simple = names::simple(&typed);
        let name = METHODS
            .iter()
            .map(|method| method.name)
            .find(|name| names::simple(name) == simple)
            // Refused by the check, unless another method is set.
            .unwrap_or(&typed);
        let mut method = Table::from_iter([("name".to_owned(), name.into())]);
        method.extend(fixed.unwrap_or_default());
        if let Some(rank) = self.count_of(&["rank", "lora_rank"])? {
            let options = Table::from_iter([("rank".to_owned(), integer(rank)?)]);
            if methods::build(name, &options).is_ok() {
                method.extend(options);
            } else {
                self.notes.push(format!(
                    "`rank` is left out: `{name}` takes no rank of {rank}"
                ));
            }
        }
        // Some options are limited by others, so those that fit later get a second turn.
        for (key, option) in OPTIONS.iter().chain(OPTIONS) {
            let Some(value) = self.map.get(*key) else {
                continue;
            };
            let counts = value.as_u64().and_then(|n| i64::try_from(n).ok());
            let forms = [value.as_f64().map(Value::Float), counts.map(Value::Integer)];
            for form in forms.into_iter().flatten() {
                let mut options = method.clone();
                options.remove("name");
                options.insert((*option).to_owned(), form.clone());
                // A key of another method is left for the notes.
                if methods::build(name, &options).is_ok() {
                    self.map.remove(*key);
                    method.insert((*option).to_owned(), form);
                    break;
                }
            }
        }
        let mut options = method.clone();
        options.remove("name");
        let takes_steps = methods::build(name, &options).map_or(true, |built| built.takes_steps());
        table.insert("method".into(), Value::Table(method));
        Ok(takes_steps)
    }

    fn stream(&mut self, table: &mut Table, seed: i64) -> Result<(), UsageError> {
        let init = self.count("init_cls")?.ok_or_else(|| missing("init_cls"))?;
        let increment = self
            .count("increment")?
            .ok_or_else(|| missing("increment"))?;
        let sizes = Table::from_iter([
            ("init_cls".to_owned(), integer(init)?),
            ("increment".to_owned(), integer(increment)?),
        ]);
        let order = match self.flag("shuffle")?.unwrap_or(true) {
            true => {
                let seed = Table::from_iter([("seed".to_owned(), Value::Integer(seed))]);
                Value::Table(Table::from_iter([("numpy".to_owned(), Value::Table(seed))]))
            }
            false => "natural".into(),
        };
        let split = Table::from_iter([("increment".to_owned(), Value::Table(sizes))]);
        let stream = Table::from_iter([
            ("class_order".to_owned(), order),
            ("split".to_owned(), Value::Table(split)),
        ]);
        table.insert("stream".into(), Value::Table(stream));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_data::{ClassOrder, TaskSplit};
    use sdlora_train::{Rule, RunConfig, Schedule};

    /// Every key of the form with settings of the first task, as O-LoRA would have it.
    const LONG: &str = r#"{
        "prefix": "reproduce", "dataset": "imagenet_r", "memory_size": 0, "memory_per_class": 0,
        "fixed_memory": true, "shuffle": true, "init_cls": 20, "increment": 20,
        "model_name": "olora", "backbone_type": "vit_base_patch16_224", "device": ["0"],
        "seed": [1995], "init_epoch": 20, "init_lr": 0.01, "init_milestones": [10, 15, 60],
        "init_lr_decay": 0.05, "init_weight_decay": 0.0, "epochs": 10, "lrate": 0.005,
        "milestones": [5], "lrate_decay": 0.1, "batch_size": 128, "weight_decay": 5e-4,
        "optimizer": "sgd", "scheduler": "steplr", "rank": 8, "lamb": 0.95
    }"#;
    /// In the form of PILOT.
    const SIMPLE: &str = r#"{
        "dataset": "cifar224", "memory_size": 0, "shuffle": false, "init_cls": 50, "increment": 10,
        "model_name": "simplecil", "backbone_type": "pretrained_vit_b16_224_in21k",
        "seed": 1993, "tuned_epoch": 5, "init_lr": 0.01, "batch_size": 48,
        "weight_decay": 0.0005, "min_lr": 1e-8, "optimizer": "Adam", "scheduler": "cosine"
    }"#;

    fn read(text: &str) -> (RunConfig, Vec<String>) {
        let translation = translate(text, None).unwrap();
        let config = RunConfig::parse(&translation.table.to_string()).unwrap();
        config.clone().check().unwrap();
        (config, translation.notes)
    }

    fn error(text: &str) -> String {
        translate(text, None).unwrap_err().to_string()
    }

    #[test]
    fn the_first_task_keeps_its_own_epochs_rate_milestones_and_decay() {
        let (config, notes) = read(LONG);
        assert_eq!(config.dataset, "imagenet-r");
        assert_eq!(
            (config.seed, config.batch_size, config.n_epochs),
            (1995, 128, 10)
        );
        assert_eq!(config.stream.class_order, ClassOrder::Numpy { seed: 1995 });
        let split = TaskSplit::Increment {
            init_cls: 20,
            increment: 20,
        };
        assert_eq!(config.stream.split, split);
        assert_eq!(config.method.name, "olora");
        assert_eq!(config.method.options["rank"].as_integer(), Some(8));
        assert_eq!(
            config.backbone.preset.as_deref(),
            Some("vit_base_patch16_224")
        );
        let weights = config.backbone.weights.display().to_string();
        assert_eq!(
            weights,
            "hf:timm/vit_base_patch16_224.augreg2_in21k_ft_in1k"
        );
        assert_eq!(config.transform, TransformConfig::imagenet());
        assert_eq!(config.n_epochs_of(0), 20);
        // The milestone 60 lies behind the end of the task.
        let (first, others) = (config.optimizer_of(0), config.optimizer_of(1));
        let steps = |milestones: &[usize], gamma| Schedule::MultiStep {
            milestones: milestones.into(),
            gamma,
        };
        assert_eq!((first.lr, first.weight_decay), (0.01, 0.0));
        assert_eq!(first.schedule, steps(&[10, 15], 0.05));
        assert_eq!((others.lr, others.weight_decay), (0.005, 5e-4));
        assert_eq!(others.schedule, steps(&[5], 0.1));
        assert!(matches!(others.rule, Rule::Sgd { momentum: 0.9, .. }));
        // Every key that is not honoured is named.
        let named = |key: &str| {
            notes
                .iter()
                .filter(|n| n.starts_with(&format!("`{key}`")))
                .count()
        };
        for key in ["prefix", "fixed_memory", "device", "lamb"] {
            assert_eq!(named(key), 1, "{key} in {notes:?}");
        }
        assert_eq!(notes.len(), 4, "{notes:?}");
        assert!(notes.iter().any(|n| n.starts_with("`lamb` is not known")));
    }

    #[test]
    fn one_spelling_holds_for_all_tasks() {
        let (config, notes) = read(SIMPLE);
        assert_eq!(config.method.name, "simplecil");
        assert_eq!(config.dataset, "cifar100");
        assert_eq!(config.first_task, None);
        assert_eq!(config.stream.class_order, ClassOrder::Natural);
        assert_eq!((config.n_epochs, config.optimizer.lr), (5, 0.01));
        assert!(matches!(config.optimizer.rule, Rule::Adam { .. }));
        let cosine = Schedule::Cosine {
            warmup: 0.0,
            eta_min: 1e-8,
        };
        assert_eq!(config.optimizer.schedule, cosine);
        let weights = config.backbone.weights.display().to_string();
        assert_eq!(weights, "hf:timm/vit_base_patch16_224.augreg_in21k");
        assert_eq!(notes.len(), 1, "{notes:?}");
    }

    #[test]
    fn a_method_without_steps_may_have_no_epoch_and_the_pool_of_l2p_becomes_its_options() {
        let (config, notes) = read(&SIMPLE.replace("\"tuned_epoch\": 5", "\"tuned_epoch\": 0"));
        assert_eq!(config.n_epochs, 1);
        assert!(
            notes
                .iter()
                .any(|n| n.starts_with("`tuned_epoch` is left out")),
            "{notes:?}"
        );
        let none = LONG.replace("\"epochs\": 10", "\"epochs\": 0");
        let refused = translate(&none, None).unwrap().table.to_string();
        assert!(RunConfig::parse(&refused).unwrap().check().is_err());

        let pool = "\"model_name\": \"l2p\", \"size\": 20, \"length\": 4, \"top_k\": 15, \
                    \"pull_constraint_coeff\": 0.1";
        let (config, notes) = read(&SIMPLE.replace("\"model_name\": \"simplecil\"", pool));
        let options = &config.method.options;
        for (option, value) in [("n_prompts", 20), ("length", 4), ("top", 15)] {
            assert_eq!(options[option].as_integer(), Some(value), "{options:?}");
        }
        assert_eq!(options["pull"].as_float(), Some(0.1));
        assert_eq!(notes.len(), 1, "{notes:?}");
    }

    #[test]
    fn a_file_in_the_form_of_inflora_is_read() {
        let text = r#"{
            "prefix": "reproduce", "dataset": "cifar100", "memory_size": 0, "init_cls": 10,
            "increment": 10, "model_name": "Finetune", "net_type": "sip", "embd_dim": 768,
            "num_heads": 12, "total_sessions": 10, "seed": 0, "EPSILON": 1e-8, "init_epoch": 20,
            "optim": "adam", "init_lr": 0.0005, "init_lr_decay": 0.1, "init_weight_decay": 0.0,
            "epochs": 20, "lrate": 0.0005, "lrate_decay": 0.1, "batch_size": 128,
            "weight_decay": 0.0, "rank": 10, "num_workers": 16,
            "backbone_type": "vit_base_patch16_224"
        }"#;
        let (config, notes) = read(text);
        assert_eq!((config.method.name.as_str(), config.seed), ("finetune", 0));
        assert_eq!(config.first_task, None);
        assert!(matches!(config.optimizer.rule, Rule::Adam { .. }));
        // A decay without milestones is no schedule, and fine-tuning has no rank.
        assert_eq!(config.optimizer.schedule, Schedule::Constant);
        for part in [
            "milestones and their decay",
            "`rank`",
            "`EPSILON` is not known",
        ] {
            assert!(
                notes.iter().any(|n| n.starts_with(part)),
                "{part}: {notes:?}"
            );
        }
        assert_eq!(notes.len(), 9, "{notes:?}");
    }

    #[test]
    fn shares_and_rates_of_single_methods_become_their_options() {
        let with = |name: &str, keys: &str| {
            let model = format!("\"model_name\": \"{name}\", {keys}");
            read(&SIMPLE.replace("\"model_name\": \"simplecil\"", &model))
        };
        let (config, notes) = with("InfLoRA", "\"lamb\": 0.9, \"lame\": 1, \"rank\": 5");
        let options = &config.method.options;
        assert_eq!(config.method.name, "inflora");
        assert_eq!(options["lamb"].as_float(), Some(0.9));
        assert_eq!(options["lame"].as_float(), Some(1.0));
        assert_eq!(options["rank"].as_integer(), Some(5));
        assert_eq!(notes.len(), 1, "{notes:?}");
        let (config, _) = with("slca", "\"bcb_lrscale\": 0.02");
        assert_eq!(config.method.options["backbone_lr"].as_float(), Some(0.02));
        let (config, notes) = with("slca", "\"lamb\": 0.9");
        assert!(config.method.options.is_empty());
        assert!(notes.iter().any(|n| n.starts_with("`lamb` is not known")));
    }

    #[test]
    fn what_would_change_the_result_is_refused() {
        for (from, to, named) in [
            (
                "\"memory_size\": 0",
                "\"memory_size\": 2000",
                "`memory_size` is 2000",
            ),
            (
                "\"memory_per_class\": 0",
                "\"memory_per_class\": 20",
                "memory_per_class",
            ),
            (
                "\"scheduler\": \"steplr\"",
                "\"scheduler\": \"onecycle\"",
                "onecycle",
            ),
            ("\"optimizer\": \"sgd\"", "\"optimizer\": \"lion\"", "lion"),
            (
                "\"epochs\": 10",
                "\"epochs\": 10, \"tuned_epoch\": 5",
                "tuned_epoch",
            ),
            (
                "\"batch_size\": 128",
                "\"batch_size\": \"128\"",
                "`batch_size` is \"128\"",
            ),
            ("\"batch_size\": 128,", "", "`batch_size` is missing"),
            ("\"init_cls\": 20,", "", "`init_cls` is missing"),
            ("\"shuffle\": true", "\"shuffle\": 1", "shuffle"),
            ("\"increment\": 20", "\"increment\": -1", "increment"),
            ("\"seed\": [1995]", "\"seed\": [4294967296]", "seed"),
            ("\"seed\": [1995]", "\"seed\": []", "`seed` is missing"),
            (
                "\"model_name\": \"olora\"",
                "\"model_name\": 3",
                "model_name",
            ),
        ] {
            let text = LONG.replace(from, to);
            assert_ne!(text, LONG, "{from}");
            let error = error(&text);
            assert!(error.contains(named), "{to}: {error}");
        }
        assert!(error("{").contains("no JSON"));
        assert!(error("[1]").contains("no JSON object"));
    }

    #[test]
    fn several_seeds_need_one_that_is_named() {
        let text = LONG.replace("[1995]", "[1993, 1994, 1995]");
        let error = error(&text);
        assert!(
            error.contains("1993, 1994, 1995") && error.contains("--seed 1993"),
            "{error}"
        );
        let table = translate(&text, Some(1994)).unwrap().table;
        assert_eq!(table["seed"].as_integer(), Some(1994));
        let order = &table["stream"]["class_order"]["numpy"]["seed"];
        assert_eq!(order.as_integer(), Some(1994));
    }

    #[test]
    fn an_unknown_method_or_backbone_is_left_to_the_check_and_a_rank_that_fits_none_is_named() {
        let text = LONG.replace("\"olora\"", "\"no-such-method\"");
        let translation = translate(&text, None).unwrap();
        assert!(translation.notes.iter().any(|n| n.starts_with("`rank`")));
        let config = RunConfig::parse(&translation.table.to_string()).unwrap();
        let error = config.check().unwrap_err().to_string();
        assert!(
            error.contains("no-such-method") && error.contains("sdlora-rr"),
            "{error}"
        );
        for (typed, weights) in [
            (
                "vit_base_patch16_224_l2p",
                "hf:timm/vit_base_patch16_224.augreg2_in21k_ft_in1k",
            ),
            (
                "vit_base_patch16_224_in21k_adapter",
                "hf:timm/vit_base_patch16_224.augreg_in21k",
            ),
            (
                "vit_base_patch16_224.augreg_in1k",
                "hf:timm/vit_base_patch16_224.augreg_in1k",
            ),
            (
                "vit_small_patch16_224.augreg_in21k",
                "hf:timm/vit_small_patch16_224.augreg_in21k",
            ),
            ("vit_base_patch16_224_dino", "vit_base_patch16_224_dino"),
            ("resnet18", "resnet18"),
        ] {
            assert_eq!(backbone(typed)["weights"].as_str(), Some(weights));
        }
    }
}
