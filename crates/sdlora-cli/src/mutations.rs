//! Damaged files of the command line: every reader takes them or refuses them, and nothing panics.

use sdlora_testkit::mutations::{count, survive};

use crate::commands::compare::records::Records;
use crate::commands::inspect::describe_run;
use crate::commands::suites::Suite;
use crate::pilot;

#[test]
fn no_mutation_of_a_file_of_records_panics() {
    let shipped = include_str!("../../../docs/results/paper.jsonl");
    let lines: Vec<&str> = shipped.lines().take(3).collect();
    let (text, other) = (lines.join("\n") + "\n", lines[2]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.jsonl");
    let n = count(1500);
    let n_accepted = survive("records", n, text.as_bytes(), other.as_bytes(), |bytes| {
        std::fs::write(&path, bytes).unwrap();
        Records::open(&path).is_ok()
    });
    assert!(n_accepted < n, "no change was noticed");
}

#[test]
fn no_mutation_of_the_metrics_of_a_run_panics() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let plan = include_str!("../presets/omniglot-10x20.toml");
    std::fs::write(at("plan.toml"), plan).unwrap();
    let metrics = r#"{
        "version": "0.1.0", "device": "flex",
        "summary": {"final_average_accuracy": 0.75, "forgetting": null},
        "log": {
            "matrix": {"n_tasks": 2, "acc": [[1.0], [0.5, 0.75]], "test_counts": [4, 4]},
            "tasks": [], "eval_seconds": [0.5, 0.25], "magnitudes": [[[1.0, 0.5]]],
            "n_trained": [10, 12], "floats_stored": []
        },
        "class_order": [1, 0], "class_names": ["a", "b"]
    }"#;
    std::fs::write(at("metrics.json"), metrics).unwrap();
    describe_run(folder.path()).unwrap();
    survive(
        "metrics",
        count(1500),
        metrics.as_bytes(),
        plan.as_bytes(),
        |bytes| {
            std::fs::write(at("metrics.json"), bytes).unwrap();
            describe_run(folder.path()).is_ok()
        },
    );
    std::fs::write(at("metrics.json"), metrics).unwrap();
    survive(
        "plan",
        count(1500),
        plan.as_bytes(),
        metrics.as_bytes(),
        |bytes| {
            std::fs::write(at("plan.toml"), bytes).unwrap();
            describe_run(folder.path()).is_ok()
        },
    );
}

#[test]
fn no_mutation_of_a_suite_or_of_a_foreign_configuration_panics() {
    let suite = include_str!("../presets/omniglot-10x20.toml");
    let text = "name = \"own\"\nbase = [\"omniglot-10x20\", \"omniglot-100x5\"]\n\
                set = [\"n_epochs=1\"]\n[[entry]]\nlabel = \"ncm\"\nset = []\non = [\"omniglot-10x20\"]\n\
                [[entry]]\nlabel = \"lora\"\nset = [\"optimizer.lr=0.1\"]\n\
                [[claim]]\nhigher = \"ncm\"\nlower = \"lora\"\nsource = \"Table 9\"\n";
    survive(
        "suite",
        count(1500),
        text.as_bytes(),
        suite.as_bytes(),
        |bytes| Suite::parse("own.toml", &String::from_utf8_lossy(bytes)).is_ok(),
    );
    let pilot = r#"{
        "prefix": "x", "dataset": "imagenetr", "memory_size": 0, "shuffle": true,
        "init_cls": 20, "increment": 20, "model_name": "sdlora", "backbone_type": "vit_base_patch16_224",
        "device": ["0", "1"], "seed": [1993], "init_epoch": 20, "init_lr": 0.01, "epochs": 20,
        "lrate": 0.01, "batch_size": 128, "weight_decay": 0.0005, "optimizer": "sgd",
        "scheduler": "cosine", "lamb": 0.95, "init_milestones": [60, 120], "init_lr_decay": 0.1
    }"#;
    survive(
        "pilot",
        count(3000),
        pilot.as_bytes(),
        text.as_bytes(),
        |bytes| pilot::translate(&String::from_utf8_lossy(bytes), Some(1)).is_ok(),
    );
}
