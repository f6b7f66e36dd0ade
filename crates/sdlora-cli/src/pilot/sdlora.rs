//! What the published code of SD-LoRA does with its own files.
//!
//! Its trainer has PILOT's keys for optimiser, weight decay and schedule in every file and builds SGD with
//! momentum 0.9, no decay and a multi-step schedule whatever they say. A file of that code is therefore
//! first turned into what the code runs, and what it ignores is named.

use serde_json::{Value as Json, json};

use super::keys::Keys;
use super::names;

/// The method and its relatives, which that code trains in the same way after an edit by hand.
const FAMILY: &[&str] = &["sdlora", "sdlora-rr", "sdlora-kd"];

/// Keys that code reads into its arguments and never uses, and what it does instead.
const IGNORED: &[(&str, &str)] = &[
    ("optimizer", SGD),
    ("optim", SGD),
    ("momentum", SGD),
    ("weight_decay", NO_DECAY),
    ("init_weight_decay", NO_DECAY),
    ("scheduler", STEPS),
    ("min_lr", STEPS),
    (
        "tuned_epoch",
        "it counts with `init_epoch` in the first task and with `epochs` after it",
    ),
    ("rank", RANK),
    ("lora_rank", RANK),
];

const SGD: &str = "it always trains with SGD of momentum 0.9";
const NO_DECAY: &str = "it never decays weights";
const STEPS: &str = "it always lets the rate fall at the milestones";
const RANK: &str = "its directions have rank 10, those of reduced rank 10, 8 and 6";

/// What that code does in place of the keys it ignores.
fn in_place() -> [(&'static str, Json); 5] {
    [
        ("optimizer", json!("sgd")),
        ("momentum", json!(0.9)),
        ("weight_decay", json!(0.0)),
        ("init_weight_decay", json!(0.0)),
        ("scheduler", json!("multisteplr")),
    ]
}

/// Rank and variant of that code, as options of the method.
fn options(name: &str) -> toml::Table {
    let mut options = toml::Table::from_iter([("variant".to_owned(), "reference".into())]);
    match name {
        // Rank 10, 8 and 6, in lines that wait there to be uncommented.
        "sdlora-rr" => options.insert("ranks".into(), "reference".into()),
        _ => options.insert("rank".into(), 10.into()),
    };
    options
}

impl Keys {
    /// Makes the keys say what the published code of SD-LoRA does, when the file is one of its own, and
    /// notes those it ignores. Returns the options of the method, or `None` for another method.
    pub(super) fn as_sdlora_runs(&mut self) -> Option<toml::Table> {
        let typed = self.map.get("model_name").and_then(Json::as_str)?;
        let name = FAMILY
            .iter()
            .find(|name| names::simple(name) == names::simple(typed))?;
        for (key, instead) in IGNORED {
            if self.map.remove(*key).is_some_and(|value| !value.is_null()) {
                self.notes.push(format!(
                    "`{key}` is left out: the published code of SD-LoRA ignores it; {instead}"
                ));
            }
        }
        for (key, value) in in_place() {
            self.map.insert(key.to_owned(), value);
        }
        Some(options(name))
    }
}

#[cfg(test)]
mod tests {
    use super::super::translate;
    use crate::commands::presets;
    use sdlora_train::{Rule, RunConfig, Schedule};
    use serde_json::{Value as Json, json};

    /// A file with the keys that all four published files have, and those of one of them.
    fn file(own: Json) -> String {
        let mut all = json!({
            "prefix": "reproduce", "memory_size": 0, "memory_per_class": 0, "fixed_memory": false,
            "shuffle": true, "model_name": "sdlora", "backbone_type": "vit_base_patch16_224",
            "device": ["0"], "batch_size": 128
        });
        let (Json::Object(map), Json::Object(own)) = (&mut all, own) else {
            unreachable!("both are objects")
        };
        map.extend(own);
        all.to_string()
    }

    /// Keys and values of `exps/sdlora_inr.json`, `_ina`, `_c100` and `_dom` of WuYichen-97/SD-Lora-CL, the
    /// preset that has the same recipe, and the keys that code ignores.
    fn published() -> [(Json, &'static str, &'static [&'static str]); 4] {
        const OF_TWO: &[&str] = &[
            "optimizer",
            "weight_decay",
            "init_weight_decay",
            "scheduler",
        ];
        [
            (
                json!({
                    "dataset": "imagenetr", "init_cls": 20, "increment": 20, "optimizer": "adam",
                    "scheduler": "constant", "filepath": "./ImageNetR3/", "seed": [1995],
                    "init_epoch": 20, "init_lr": 1e-2, "init_milestones": [10000],
                    "init_lr_decay": 0, "init_weight_decay": 0.0005, "epochs": 20, "lrate": 1e-2,
                    "milestones": [10000], "lrate_decay": 0, "weight_decay": 2e-4
                }),
                "imagenet-r-n10-sdlora-reference",
                OF_TWO,
            ),
            (
                json!({
                    "dataset": "imageneta", "init_cls": 20, "increment": 20, "optimizer": "adam",
                    "scheduler": "constant", "filepath": "./ImageNetA/", "seed": [1993],
                    "init_epoch": 20, "init_lr": 1e-2, "init_milestones": [10, 15],
                    "init_lr_decay": 0.05, "init_weight_decay": 0.0005, "epochs": 20,
                    "lrate": 5e-3, "milestones": [10, 15], "lrate_decay": 0.05,
                    "weight_decay": 5e-4
                }),
                "imagenet-a-n10-sdlora-reference",
                OF_TWO,
            ),
            (
                json!({
                    "dataset": "cifar224", "init_cls": 10, "increment": 10, "seed": [1993],
                    "scheduler": "cosine", "min_lr": 5e-3, "tuned_epoch": 20,
                    "filepath": "./CF100/", "init_epoch": 20, "init_lr": 8e-3,
                    "init_milestones": [60, 120, 170], "init_lr_decay": 0.1,
                    "init_weight_decay": 0.0005, "epochs": 20, "lrate": 8e-3,
                    "milestones": [40, 70], "lrate_decay": 0, "weight_decay": 2e-4
                }),
                "cifar100-n10-sdlora-reference",
                &[
                    "weight_decay",
                    "init_weight_decay",
                    "scheduler",
                    "min_lr",
                    "tuned_epoch",
                ],
            ),
            (
                json!({
                    "dataset": "domainnet", "init_cls": 69, "increment": 69,
                    "device": ["0", "1"], "optimizer": "adam", "scheduler": "steplr",
                    "filepath": "./domainnet-verify/", "seed": [1993], "init_epoch": 10,
                    "init_lr": 0.02, "init_milestones": [4, 6, 8, 10000],
                    "init_lr_decay": 0.005, "init_weight_decay": 0.0, "epochs": 10,
                    "lrate": 0.02, "milestones": [4, 6, 8, 10000], "lrate_decay": 0.005,
                    "weight_decay": 0.0
                }),
                "domainnet-n5-sdlora-reference",
                OF_TWO,
            ),
        ]
    }

    fn read(text: &str) -> (RunConfig, Vec<String>) {
        let translation = translate(text, None).unwrap();
        let config = RunConfig::parse(&translation.table.to_string()).unwrap();
        config.clone().check().unwrap();
        (config, translation.notes)
    }

    #[test]
    fn every_published_file_gives_its_reference_preset_and_names_what_that_code_ignores() {
        for (own, preset, ignored) in published() {
            let (config, notes) = read(&file(own));
            let mut expected = RunConfig::parse(presets::find(preset).unwrap().text).unwrap();
            // Published numbers change nothing in a run, and those files have none.
            expected.expected.clear();
            assert_eq!(config, expected, "{preset}");
            for key in ignored {
                let named = notes.iter().filter(|note| {
                    note.starts_with(&format!("`{key}` is left out: the published"))
                });
                assert_eq!(named.count(), 1, "{preset}: {key} in {notes:?}");
            }
            // And nothing else but what no run of ours has.
            let others: Vec<_> = notes.iter().filter(|n| !n.contains("ignores it")).collect();
            assert_eq!(others.len(), 4, "{preset}: {others:?}");
            for key in ["prefix", "fixed_memory", "device", "filepath"] {
                let found = others
                    .iter()
                    .any(|n| n.starts_with(&format!("`{key}` is left out")));
                assert!(found, "{preset}: {key} in {others:?}");
            }
            assert_eq!(notes.len(), ignored.len() + 4, "{preset}: {notes:?}");
        }
    }

    #[test]
    fn only_the_family_of_sdlora_is_read_as_its_code_runs() {
        let (own, ..) = published()[1].clone();
        for (name, rank) in [
            ("sdlora_rr", None),
            ("SDLoRA-KD", Some(10)),
            ("sdlora", Some(10)),
        ] {
            let text = file(own.clone()).replace("\"sdlora\"", &format!("\"{name}\""));
            let (config, _) = read(&text);
            assert!(matches!(
                config.optimizer.rule,
                Rule::Sgd { momentum: 0.9, .. }
            ));
            assert_eq!(config.optimizer.weight_decay, 0.0, "{name}");
            let options = &config.method.options;
            assert_eq!(options.get("rank").and_then(toml::Value::as_integer), rank);
            let ranks = options.get("ranks").and_then(toml::Value::as_str);
            assert_eq!(ranks, rank.is_none().then_some("reference"));
        }
        let text = file(own).replace("\"sdlora\"", "\"finetune\"");
        let (config, notes) = read(&text);
        assert!(matches!(config.optimizer.rule, Rule::Adam { .. }));
        assert_eq!(config.optimizer.weight_decay, 5e-4);
        assert_eq!(config.optimizer.schedule, Schedule::Constant);
        assert!(!notes.iter().any(|n| n.contains("ignores it")), "{notes:?}");
    }

    #[test]
    fn what_that_code_never_reads_is_no_reason_to_refuse_its_file() {
        let (own, preset, _) = published()[2].clone();
        let text = file(own)
            .replace("\"tuned_epoch\":20", "\"tuned_epoch\":5,\"rank\":8")
            .replace("\"cosine\"", "\"onecycle\"");
        assert!(text.contains("onecycle") && text.contains("\"rank\":8"));
        let (config, notes) = read(&text);
        let expected = RunConfig::parse(presets::find(preset).unwrap().text).unwrap();
        assert_eq!((config.n_epochs, config.method), (20, expected.method));
        assert!(
            notes
                .iter()
                .any(|n| n.starts_with("`rank`") && n.contains("rank 10"))
        );
        // What it does read is missed.
        for (key, of_first) in [
            ("epochs", "init_epoch"),
            ("lrate", "init_lr"),
            ("milestones", "init_milestones"),
            ("lrate_decay", "init_lr_decay"),
        ] {
            let (mut own, ..) = published()[2].clone();
            for key in [key, of_first] {
                own.as_object_mut().unwrap().remove(key).unwrap();
            }
            let error = translate(&file(own), None).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}` is missing")), "{error}");
        }
    }
}
