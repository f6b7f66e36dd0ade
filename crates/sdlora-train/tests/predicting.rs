//! What a run leaves to predict with, besides weights.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]
#![allow(clippy::result_large_err, reason = "a test ends with its first error")]

mod toy;

use burn::tensor::{Tensor, TensorData};
use sdlora_testkit::test_device;
use sdlora_testkit::toy::SplitMix64;
use sdlora_train::{
    Event, Finished, HeadConfig, Observer, Plan, Predictor, Start, TrainError, write_model,
};
use toy::{Bench, bits};

/// Two tasks of three characters with 15 training images each, some of them held out.
fn plan(bench: &Bench, head: &str, calibrate_on: usize) -> Plan {
    let mut config = bench.config("name = \"sdlora\"\nrank = 4");
    config.head = Some(HeadConfig::named(head));
    config.calibrate_on = calibrate_on;
    config.check().unwrap()
}

fn loaded(bench: &Bench, name: &str, finished: &Finished) -> Predictor {
    let folder = bench.path(name).join("model");
    write_model(&folder, finished).unwrap();
    Predictor::load(&folder, &test_device()).unwrap()
}

fn images(n: usize) -> Tensor<4> {
    let pixels = SplitMix64::new(5).fill(n * 14 * 14, 1.0);
    Tensor::from_data(TensorData::new(pixels, [n, 1, 14, 14]), &test_device())
}

/// Asks to stop after the first task.
#[derive(Default)]
struct StopAfterFirst(bool);

impl Observer for StopAfterFirst {
    fn event(&mut self, event: &Event<'_>) {
        self.0 |= matches!(event, Event::TaskTrained { task_idx: 0, .. });
    }

    fn wants_stop(&self) -> bool {
        self.0
    }
}

#[test]
fn a_stopped_run_is_calibrated_as_an_unbroken_one() {
    for head in ["linear", "ncm", "gaussian"] {
        let bench = Bench::new();
        let plan = plan(&bench, head, 2);
        let whole = bench.run("whole", &plan, Start::Fresh).unwrap();
        let calibrated = whole.predicting.calibrated.as_ref().unwrap();
        assert_eq!(calibrated.n_images, 12, "{head}");
        assert!(calibrated.temperature > 0.0 && calibrated.threshold > 0.0);
        let novelty = whole.novelty.as_ref().unwrap();
        assert_eq!(novelty.tensors["means"].shape, [6, 16]);

        let mut observer = StopAfterFirst::default();
        let stopped = bench.run_observed("broken", &plan, Start::Fresh, &mut observer);
        assert!(matches!(stopped, Err(TrainError::Stopped { .. })));
        let again = bench.run("broken", &plan, Start::Resume).unwrap();
        assert_eq!(again.predicting, whole.predicting, "{head}");
        assert_eq!(again.novelty, whole.novelty, "{head}");
    }
}

#[test]
fn a_model_folder_gives_back_what_the_run_knows() {
    let bench = Bench::new();
    for calibrate_on in [0, 3] {
        let plan = plan(&bench, "linear", calibrate_on);
        let name = format!("run-{calibrate_on}");
        let finished = bench.run(&name, &plan, Start::Fresh).unwrap();
        let predictor = loaded(&bench, &name, &finished);
        assert_eq!(predictor.config(), Some(&finished.predicting));
        assert_eq!(predictor.class_names(), finished.class_names);
        let labels = predictor.predict(images(5));
        let answers = predictor.answers(images(5), 4);
        assert_eq!(answers.len(), 5);
        for (answer, label) in answers.iter().zip(labels) {
            assert_eq!(predictor.class_names()[answer.top[0].0], label);
            assert_eq!(answer.top.len(), 4);
            assert!(answer.top.is_sorted_by(|a, b| a.1 >= b.1), "{answer:?}");
            assert_eq!(answer.distance.is_some(), calibrate_on > 0);
        }
        let all = predictor.answers(images(5), 100);
        for answer in &all {
            let total: f64 = answer.top.iter().map(|(_, p)| p).sum();
            assert_eq!(answer.top.len(), 6);
            assert!((total - 1.0).abs() < 1e-9, "{total}");
        }
    }
}

#[test]
fn statistics_that_are_gathered_change_no_weight_and_held_out_images_are_not_seen() {
    // With as many held out on either side, the one by `hold_out` and the other to calibrate: the same steps.
    let bench = Bench::new();
    let calibrated = bench
        .run("a", &plan(&bench, "linear", 3), Start::Fresh)
        .unwrap();
    let mut config = bench.config("name = \"sdlora\"\nrank = 4");
    config.head = Some(HeadConfig::named("linear"));
    config.hold_out = 3;
    let held = bench
        .run("b", &config.check().unwrap(), Start::Fresh)
        .unwrap();
    assert_eq!(bits(&calibrated.model), bits(&held.model));
    assert_eq!(calibrated.classifier, held.classifier);
    assert!(held.predicting.calibrated.is_none() && held.novelty.is_none());
    // What is kept of old classes is counted: a mean of 16 a class, and once 136 numbers of a triangle and a degree.
    let (with, without) = (
        calibrated.log.floats_stored.last().unwrap(),
        held.log.floats_stored.last().unwrap(),
    );
    assert_eq!(with.per_class, without.per_class + 16);
    assert_eq!(with.shared, without.shared + 137);
}

#[test]
fn damage_and_later_versions_are_refused() {
    let bench = Bench::new();
    let finished = bench
        .run("run", &plan(&bench, "ncm", 1), Start::Fresh)
        .unwrap();
    loaded(&bench, "run", &finished);
    let folder = bench.path("run").join("model");
    let error = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let path = folder.join(name);
        let sound = std::fs::read(&path).unwrap();
        let mut changed = sound.clone();
        change(&mut changed);
        std::fs::write(&path, changed).unwrap();
        let error = Predictor::load(&folder, &test_device()).unwrap_err();
        std::fs::write(&path, sound).unwrap();
        error.to_string()
    };
    for name in ["predict.json", "novelty.safetensors"] {
        let text = error(name, &|bytes| bytes[40] ^= 1);
        assert!(text.contains(name) && text.contains("hash"), "{text}");
    }
    // Without sums the contents are looked at.
    std::fs::remove_file(folder.join("SHA256SUMS")).unwrap();
    let later = |bytes: &mut Vec<u8>| {
        let text = String::from_utf8(bytes.clone()).unwrap();
        *bytes = text
            .replace("\"version\": 1", "\"version\": 7")
            .into_bytes();
    };
    let text = error("predict.json", &later);
    assert!(
        text.contains("newer") && text.contains("format 7"),
        "{text}"
    );
    let text = error("novelty.safetensors", &|bytes| bytes.truncate(100));
    assert!(text.contains("novelty.safetensors"), "{text}");
    // A threshold without the means it is measured from would refuse nothing, or everything.
    std::fs::remove_file(folder.join("novelty.safetensors")).unwrap();
    let error = Predictor::load(&folder, &test_device()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("there is no novelty.safetensors"),
        "{error}"
    );
}
