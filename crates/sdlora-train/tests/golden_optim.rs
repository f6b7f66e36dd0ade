//! Optimisers and schedules against PyTorch: the steps of every trajectory of the golden folder on
//! `½ (p − c)ᵀ H (p − c)` (golden README, section 5).

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use sdlora_testkit::{
    Compared, OptimCase, OptimConfig, OptimFile, Tolerance, assert_close, test_device_autodiff,
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
fn settings(case: &OptimConfig) -> OptimizerConfig {
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
            Some("cosine") => Schedule::Cosine {
                warmup: 0.0,
                eta_min: case.eta_min.unwrap_or(0.0),
            },
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
    let config = settings(&case.config);
    config.check().unwrap();
    // A cosine may be longer than the trajectory, which is then its beginning.
    let n_in_all = case.config.t_max.unwrap_or(n_steps);
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
        let lr = config.lr_at(k, n_in_all, k);
        let error = (lr - case.lr[k]).abs();
        assert!(error < 1e-12, "{}: off by {error}", what("learning rate"));

        let offset = point.p.val() - column(&file.c);
        let loss = (offset.clone() * h.clone().matmul(offset))
            .sum()
            .mul_scalar(0.5);
        let expected = [case.loss_before_step[k] as f32];
        let tolerance = Tolerance::RelMax(1e-5);
        assert_close(loss.clone(), expected.as_slice(), tolerance, &what("loss"));
        point = config.step(&mut optimizer, point, &loss, lr);
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
    let mut compared = Compared::new("trajectories of optimisers");
    for file in OptimFile::all() {
        for (name, case) in &file.cases {
            run(&file, name, case);
            compared.add(name);
        }
    }
}

/// The rates of a cosine over ten steps, as PyTorch's closed form has them, in a trajectory of four.
#[test]
fn a_cosine_that_is_longer_than_the_trajectory_is_compared_by_its_beginning() {
    let rate = |k: f64| 0.01 + 0.5 * (0.1 - 0.01) * (1.0 + (std::f64::consts::PI * k / 10.0).cos());
    let lr: Vec<f64> = (0..4).map(|k| rate(f64::from(k))).collect();
    // f(p) = ½ p², one number: the gradient is p.
    let (mut p, mut params, mut losses, mut grads) = (1.0, vec![], vec![], vec![]);
    for lr in &lr {
        losses.push(0.5 * p * p);
        grads.push(vec![p]);
        p -= lr * p;
        params.push(vec![p]);
    }
    let text = serde_json::json!({
        "H": [[1.0]], "c": [0.0], "p0": [1.0],
        "cases": { "long cosine": {
            "config": { "kind": "sgd", "lr": 0.1, "scheduler": "cosine", "T_max": 10, "eta_min": 0.01 },
            "lr": lr, "loss_before_step": losses, "grad": grads, "params_after_step": params
        } }
    });
    let file: OptimFile = serde_json::from_value(text).unwrap();
    run(&file, "long cosine", &file.cases["long cosine"]);
}
