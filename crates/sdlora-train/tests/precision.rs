//! Training in half precision: what is frozen computes in it, what is trained is none of it.
#![allow(clippy::unwrap_used)]
#![allow(clippy::result_large_err, reason = "a test ends with its first error")]

mod toy;

use std::num::NonZeroUsize;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor, TensorData};
use sdlora_testkit::test_device_autodiff;
use sdlora_train::{Event, Observer, Precision, RunConfig, Start, TrainError, checkpoint};
use sdlora_vit::Vit;
use toy::{Bench, bits, difference, largest_difference, losses};

/// Methods whose steps go through a backbone in different ways.
const METHODS: &[&str] = &[
    "name = \"sdlora\"\nrank = 4",
    "name = \"olora\"\nrank = 4",
    "name = \"finetune\"",
    "name = \"dualprompt\"",
    "name = \"l2p\"",
];

const HALVES: [(Precision, DType, f64); 2] = [
    // Eight and eleven bits: the relative error of one rounding.
    (Precision::Bf16, DType::BF16, 1.0 / 256.0),
    (Precision::F16, DType::F16, 1.0 / 2048.0),
];

fn config(bench: &Bench, method: &str, precision: Precision) -> RunConfig {
    let mut config = bench.config(method);
    config.precision = precision;
    config
}

/// Number types of all parameters.
fn dtypes<M: Module>(module: &M) -> Vec<DType> {
    struct Collect(Vec<DType>);
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.push(param.val().dtype());
        }
    }
    let mut collect = Collect(Vec::new());
    module.visit(&mut collect);
    collect.0
}

fn images() -> Tensor<4> {
    let values: Vec<f32> = (0..3 * 14 * 14)
        .map(|i| ((i * 7) % 13) as f32 / 6.0 - 1.0)
        .collect();
    Tensor::from_data(
        TensorData::new(values, [3, 1, 14, 14]),
        &test_device_autodiff(),
    )
}

fn on_autodiff(bench: &Bench) -> Vit {
    Vit::load(
        &bench.path("vit.safetensors"),
        None,
        &test_device_autodiff(),
    )
    .unwrap()
    .0
}

#[test]
fn features_in_half_precision_are_near_those_in_single() {
    let bench = Bench::new();
    let vit = on_autodiff(&bench).no_grad();
    let features = |vit: &Vit| -> Vec<f32> {
        let features = vit.forward(images(), &Default::default());
        assert_eq!(features.dtype(), DType::F32);
        features.into_data().iter().collect()
    };
    let single = features(&vit);
    let largest = single.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    for (precision, dtype, unit) in HALVES {
        let half = vit.clone().with_precision(precision);
        let kept = dtypes(&half);
        // Two norms a block and the last one: scale and shift.
        let norms = kept.iter().filter(|&&dtype| dtype == DType::F32).count();
        assert_eq!(norms, 2 * (2 * half.blocks.len() + 1), "{kept:?}");
        assert!(kept.iter().all(|&d| d == dtype || d == DType::F32));
        let difference = features(&half)
            .iter()
            .zip(&single)
            .map(|(a, b)| f64::from((a - b).abs() / largest))
            .fold(0.0, f64::max);
        // A dozen roundings on the way through two blocks; and it does compute in halves.
        assert!(
            difference < 12.0 * unit && difference > unit / 64.0,
            "{precision:?}: {difference:e}"
        );
    }
}

#[test]
fn a_run_in_half_precision_follows_the_one_in_single_and_keeps_single() {
    let bench = Bench::new();
    for method in METHODS {
        let name =
            |kind: &str| format!("{}-{kind}", method.lines().next().unwrap().replace('"', ""));
        let single = bench.run_on(&name("f32"), &config(&bench, method, Precision::F32), 1);
        for (precision, _, unit) in HALVES {
            let what = format!("{method} in {precision:?}");
            let half = bench.run_on(
                &name(precision.name()),
                &config(&bench, method, precision),
                1,
            );
            assert!(
                dtypes(&half.model).iter().all(|&d| d == DType::F32),
                "{what}"
            );
            let (a, b) = (losses(&single), losses(&half));
            assert_ne!(a, b, "{what}: no half precision at all");
            // The first step differs by the forward pass alone, later ones by all that came before.
            assert!(
                largest_difference(&a[..1], &b[..1]) < 8.0 * unit,
                "{what}: {} {}",
                a[0],
                b[0]
            );
            assert!(largest_difference(&a, &b) < 0.1, "{what}: {a:?} {b:?}");
        }
    }
}

#[test]
fn parts_and_devices_make_the_step_of_the_whole_batch() {
    let bench = Bench::new();
    for precision in [Precision::Bf16, Precision::F16] {
        let mut config = bench.config("name = \"sdlora\"\nrank = 4");
        config.n_epochs = 1;
        config.precision = precision;
        let whole = bench.run_on(&format!("{precision:?} whole"), &config, 1);
        config.micro_batch = NonZeroUsize::new(5);
        let parts = bench.run_on(&format!("{precision:?} parts"), &config, 2);
        // Activations are halves in either case; their gradients are added in another order.
        let found = difference(&whole, &parts);
        assert!(found < 0.02, "{precision:?}: {found:e}");
    }
}

#[test]
fn what_is_frozen_ends_in_the_bits_of_the_file() {
    let bench = Bench::new();
    let method = "name = \"sdlora\"\nrank = 4";
    let run = bench.run_on("run", &config(&bench, method, Precision::Bf16), 1);
    assert!(bits(&run.model.backbone.valid()) == bits(&bench.backbone()));
}

/// Stops a run after its second checkpoint inside a task.
struct Stop(usize);

impl Observer for Stop {
    fn event(&mut self, event: &Event<'_>) {
        if matches!(event, Event::Checkpointed { .. }) {
            self.0 += 1;
        }
        assert!(self.0 < 2, "stopped");
    }
}

#[test]
fn a_resumed_run_ends_in_the_bits_of_an_unbroken_one() {
    let bench = Bench::new();
    for (i, method) in ["name = \"sdlora\"\nrank = 4", "name = \"finetune\""]
        .iter()
        .enumerate()
    {
        let plan = config(&bench, method, Precision::Bf16).check().unwrap();
        let whole = bench
            .run(&format!("{i} whole"), &plan, Start::Fresh)
            .unwrap();
        let broken = format!("{i} broken");
        let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            bench.run_observed(&broken, &plan, Start::Fresh, &mut Stop(0))
        }));
        assert!(stopped.is_err());
        let checkpoints = bench.path(&broken).join("checkpoints");
        let latest = checkpoint::latest(&checkpoints).unwrap();
        assert!(
            latest.to_string_lossy().contains("-step-"),
            "{}",
            latest.display()
        );
        let resumed = bench.run(&broken, &plan, Start::Resume).unwrap();
        assert_eq!(losses(&whole), losses(&resumed), "{method}");
        assert!(bits(&whole.model) == bits(&resumed.model), "{method}");
    }
}

#[test]
fn an_unknown_precision_is_refused_and_single_stands_in_no_plan() {
    let bench = Bench::new();
    let plan = bench.config("name = \"sdlora\"").check().unwrap();
    let text = plan.to_toml().unwrap();
    assert!(!text.contains("precision") && !text.contains("gradient_checkpointing"));
    let error = RunConfig::parse(&format!("precision = \"f8\"\n{text}")).unwrap_err();
    assert!(matches!(error, TrainError::Config { .. }));
    assert!(format!("{error:?}").contains("bf16"), "{error:?}");
    let half = RunConfig::parse(&format!("precision = \"bf16\"\n{text}")).unwrap();
    assert_eq!(half.precision, Precision::Bf16);
}
