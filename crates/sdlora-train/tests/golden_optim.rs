//! Optimisers and schedules against PyTorch: ten steps of every case of `optim.json` on
//! `½ (p − c)ᵀ H (p − c)` (golden README, section 5).

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use sdlora_testkit::{
    OptimCase, OptimConfig, OptimFile, Tolerance, assert_close, test_device_autodiff,
};
use sdlora_train::{OptimizerConfig, Rule, Schedule};

/// What float32 may differ from float64 (golden README, section 5).
const TOLERANCE: Tolerance = Tolerance::Abs(1e-5);

#[derive(Module, Debug)]
struct Point {
    p: Param<Tensor<2>>,
}

fn column(values: &[f64]) -> Tensor<2> {
    let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    let n = values.len();
    Tensor::from_data(TensorData::new(values, [n, 1]), &test_device_autodiff())
}

/// The settings of a case; PyTorch's defaults where it names none.
fn settings(case: &OptimConfig, n_steps: usize) -> OptimizerConfig {
    assert!(
        case.other.is_empty(),
        "settings this test does not know: {:?}",
        case.other
    );
    let [beta1, beta2] = case.betas.unwrap_or([0.9, 0.999]);
    let eps = case.eps.unwrap_or(1e-8);
    OptimizerConfig {
        rule: match case.kind.as_str() {
            "sgd" => Rule::Sgd {
                momentum: case.momentum.unwrap_or(0.0),
                dampening: case.dampening.unwrap_or(0.0),
                nesterov: case.nesterov.unwrap_or(false),
            },
            "adam" => Rule::Adam { beta1, beta2, eps },
            "adamw" => Rule::AdamW { beta1, beta2, eps },
            kind => panic!("this test does not know the optimiser {kind}"),
        },
        lr: case.lr,
        // AdamW's own default is 0.01, so a case has to name it.
        weight_decay: case.weight_decay.unwrap_or(0.0),
        max_grad_norm: None,
        schedule: match case.scheduler.as_deref() {
            None => Schedule::Constant,
            Some("cosine") => {
                assert_eq!(case.t_max, Some(n_steps), "the cosine ends with the task");
                Schedule::Cosine {
                    warmup: 0.0,
                    eta_min: case.eta_min.unwrap_or(0.0),
                }
            }
            Some("multistep") => Schedule::MultiStep {
                milestones: case.milestones.clone().unwrap(),
                gamma: case.gamma.unwrap(),
            },
            Some(name) => panic!("this test does not know the schedule {name}"),
        },
    }
}

fn run(file: &OptimFile, name: &str, case: &OptimCase) {
    let n_steps = case.lr.len();
    let config = settings(&case.config, n_steps);
    config.check().unwrap();
    let h: Vec<f32> = file.h.iter().flatten().map(|&v| v as f32).collect();
    let n = file.c.len();
    let h = Tensor::<2>::from_data(TensorData::new(h, [n, n]), &test_device_autodiff());
    let mut point = Point {
        p: Param::from_tensor(column(&file.p0)),
    };
    let mut optimizer = config.init();
    for k in 0..n_steps {
        let what = |of: &str| format!("{name}, step {k}: {of}");
        // One step an epoch, so that milestones in epochs are the file's milestones in steps.
        let factor = config.lr_factor(k, n_steps, k);
        let error = (config.lr * factor - case.lr[k]).abs();
        assert!(error < 1e-12, "{}: off by {error}", what("learning rate"));

        let offset = point.p.val() - column(&file.c);
        let loss = (offset.clone() * h.clone().matmul(offset))
            .sum()
            .mul_scalar(0.5);
        let expected = [case.loss_before_step[k] as f32];
        let tolerance = Tolerance::RelMax(1e-5);
        assert_close(loss.clone(), expected.as_slice(), tolerance, &what("loss"));
        point = config.step(&mut optimizer, point, &loss, factor);
        let expected: Vec<f32> = case.params_after_step[k]
            .iter()
            .map(|&v| v as f32)
            .collect();
        let actual: Vec<f32> = point.p.val().into_data().iter().collect();
        assert_close(
            actual.as_slice(),
            expected.as_slice(),
            TOLERANCE,
            &what("parameters"),
        );
    }
}

#[test]
fn every_trajectory_agrees_with_pytorch() {
    let Some(file) = OptimFile::load() else {
        assert!(
            std::env::var_os("SDLORA_GOLDEN").is_some(),
            "optim.json is missing"
        );
        return;
    };
    assert!(!file.cases.is_empty());
    for (name, case) in &file.cases {
        run(&file, name, case);
    }
}
