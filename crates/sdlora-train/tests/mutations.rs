//! Damaged files of a run: every reader takes them or refuses them, and nothing panics. A run that
//! continues from a damaged checkpoint all the same must continue to the bits of the undisturbed one.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]
#![allow(clippy::result_large_err, reason = "a test ends with its first error")]

mod toy;

use std::fs;
use std::path::{Path, PathBuf};

use sdlora_testkit::mutations::{count, survive};
use sdlora_testkit::test_device;
use sdlora_train::pretrain::PretrainConfig;
use sdlora_train::{
    AdapterFolder, FinishedRun, Format, HeadConfig, Plan, Predictor, RunConfig, Start, checkpoint,
    export, write_model,
};
use sha2::{Digest, Sha256};
use toy::{Bench, bits, copy_folder, data_dir};

/// The hashes of the files of a folder; one without them is of an earlier version.
const SUMS: &str = "SHA256SUMS";

/// A finished run on a stream of two tasks.
fn finished(bench: &Bench, method: &str, head: &str) -> (Plan, PathBuf, Vec<Vec<u32>>) {
    let mut config = bench.config(method);
    config.n_epochs = 1;
    config.calibrate_on = 1;
    config.head = Some(HeadConfig::named(head));
    let plan = config.check().unwrap();
    let finished = bench.run("run", &plan, Start::Fresh).unwrap();
    let folder = bench.path("run");
    write_model(&folder.join("model"), &finished).unwrap();
    (plan, folder, bits(&finished.model))
}

/// Damages one file, lets `read` look at the folder, and puts the file back.
fn damage(path: &Path, n: usize, read: impl Fn() -> bool) -> usize {
    let whole = fs::read(path).unwrap();
    let what = path.file_name().unwrap().to_string_lossy().into_owned();
    let n_accepted = survive(&what, n, &whole, &whole, |bytes| {
        fs::write(path, bytes).unwrap();
        read()
    });
    fs::write(path, whole).unwrap();
    assert!(read(), "{what} is back, and is not accepted any more");
    n_accepted
}

/// Every reader of a finished run.
fn read_run(folder: &Path) -> bool {
    let predictor = Predictor::load(&folder.join("model"), &test_device());
    match FinishedRun::open(folder, &data_dir(), &test_device()) {
        Err(_) => false,
        Ok(run) => {
            let _ = run.config().clone().check();
            predictor.is_ok()
        }
    }
}

#[test]
fn no_mutation_of_a_finished_run_panics() {
    let bench = Bench::new();
    let (_, folder, _) = finished(&bench, "name = \"sdlora\"\nrank = 4", "linear");
    let model = folder.join("model");
    // With their hashes the files would not be looked into.
    fs::remove_file(model.join(SUMS)).unwrap();
    for (name, n) in [
        ("plan.toml", 400),
        ("model/classes.json", 200),
        ("model/predict.json", 200),
        ("model/novelty.safetensors", 200),
        ("model/head.safetensors", 300),
        ("model/vit.safetensors", 300),
    ] {
        let n_accepted = damage(&folder.join(name), count(n), || read_run(&folder));
        assert!(n_accepted < count(n), "{name}: no change was noticed");
    }
    let (run, out) = (
        FinishedRun::open(&folder, &data_dir(), &test_device()).unwrap(),
        bench.path("out"),
    );
    damage(&model.join("adapter.safetensors"), count(200), || {
        let _ = fs::remove_dir_all(&out);
        export(&run, Format::Safetensors, &out, false).is_ok()
    });
    export(&run, Format::Safetensors, &out, true).unwrap();
    for name in [
        "adapter.json",
        "adapter.safetensors",
        "head.safetensors",
        "classes.json",
    ] {
        damage(&out.join(name), count(200), || {
            AdapterFolder::load(&out)
                .and_then(|adapter| adapter.apply(run.vit().clone(), &test_device()))
                .is_ok()
        });
    }
}

#[test]
fn no_mutation_of_prompts_or_of_another_head_panics() {
    for (method, head, name) in [
        ("name = \"l2p\"", "linear", "prompts.safetensors"),
        ("name = \"sdlora\"\nrank = 4", "cosine", "head.safetensors"),
        (
            "name = \"sdlora\"\nrank = 4",
            "gaussian",
            "head.safetensors",
        ),
    ] {
        let bench = Bench::new();
        let (_, folder, _) = finished(&bench, method, head);
        fs::remove_file(folder.join("model").join(SUMS)).unwrap();
        damage(&folder.join("model").join(name), count(200), || {
            read_run(&folder)
        });
    }
}

#[test]
fn a_damaged_checkpoint_is_refused_or_continues_to_the_same_bits() {
    let bench = Bench::new();
    let (plan, folder, expected) = finished(&bench, "name = \"sdlora\"\nrank = 4", "gaussian");
    let newest = checkpoint::latest(&folder.join("checkpoints")).unwrap();
    let mut names: Vec<_> = fs::read_dir(&newest)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    assert!(names.len() >= 3, "{names:?}");
    for path in &names {
        // What is small or not hashed elsewhere is damaged more often.
        let n = match path.extension().is_some_and(|e| e == "bpk") {
            true => 8,
            false => 40,
        };
        damage(path, count(n), || {
            match bench.run("run", &plan, Start::Resume) {
                Err(_) => false,
                Ok(again) => {
                    assert!(bits(&again.model) == expected, "another model, and no word");
                    true
                }
            }
        });
    }
    // Under a hash that fits every change is looked into: it may lead elsewhere, but nothing panics.
    // A run that goes on from it writes, so every case has a folder of its own.
    let (whole, sealed) = (
        fs::read(newest.join("state.json")).unwrap(),
        fs::read_to_string(newest.join(SUMS)).unwrap(),
    );
    assert!(sealed.contains(&sha256(&whole)));
    let name = newest.file_name().unwrap();
    let case = bench.path("case");
    survive("sealed state", count(80), &whole, &whole, |bytes| {
        let _ = fs::remove_dir_all(&case);
        copy_folder(&folder, &case);
        let checkpoint = case.join("checkpoints").join(name);
        fs::write(checkpoint.join("state.json"), bytes).unwrap();
        let sums = sealed.replace(&sha256(&whole), &sha256(bytes));
        fs::write(checkpoint.join(SUMS), sums).unwrap();
        bench.run("case", &plan, Start::Resume).is_ok()
    });
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn no_mutation_of_a_configuration_panics() {
    let bench = Bench::new();
    let methods = [
        "name = \"sdlora\"\nrank = 4\nvariant = \"carry\"\nprojections = [\"query\", \"value\"]",
        "name = \"sdlora-kd\"\nrank = 4\nnorm = \"fro\"\nthreshold = 1.0",
        "name = \"coda-prompt\"",
    ];
    let texts = methods.map(|method| {
        let plan = bench.config(method).check().unwrap();
        plan.to_toml().unwrap()
    });
    for (i, text) in texts.iter().enumerate() {
        let other = &texts[(i + 1) % texts.len()];
        survive(
            "plan",
            count(1500),
            text.as_bytes(),
            other.as_bytes(),
            |bytes| {
                let parsed = RunConfig::parse(&String::from_utf8_lossy(bytes));
                // What a plan says of images is acted on by `predict`, before any check of a run.
                parsed.is_ok_and(|config| {
                    let _ = config.transform.for_evaluation().init();
                    config.check().is_ok_and(|plan| plan.to_toml().is_ok())
                })
            },
        );
    }
    let recipe = include_str!("../../sdlora-cli/presets/pretrain-omniglot.toml");
    survive(
        "recipe",
        count(1500),
        recipe.as_bytes(),
        texts[0].as_bytes(),
        |bytes| PretrainConfig::parse(&String::from_utf8_lossy(bytes)).is_ok(),
    );
}
