//! Penalties of N-LoRA and CLoRA against NumPy: value, loss, gradients and one step (golden README, section 8).

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]

mod toy;

use burn::module::{Module, Param};
use burn::tensor::{Tensor, TensorData};
use sdlora_core::Direction;
use sdlora_testkit::{Compared, Tolerance, assert_close, golden_json_with, test_device_autodiff};
use sdlora_train::methods::{self, AdapterSpec};
use sdlora_train::{MethodState, Model, Role};
use sdlora_vit::Vit;
use serde_json::{Value, json};
use toy::{Bench, shape};

/// What float32 may differ from float64.
const TOLERANCE: Tolerance = Tolerance::RelMax(1e-5);

fn numbers(value: &Value) -> Vec<f32> {
    let values = value.as_array().unwrap().iter();
    values.map(|v| v.as_f64().unwrap() as f32).collect()
}

fn matrix(values: Vec<f32>, width: usize) -> Tensor<2> {
    let data = TensorData::new(values.clone(), [values.len() / width, width]);
    Tensor::from_data(data, &test_device_autodiff())
}

/// P and Q as CLoRA keeps them: a direction a row.
#[derive(Module, Debug)]
struct Drawn {
    inputs: Vec<Param<Tensor<2>>>,
    outputs: Vec<Param<Tensor<2>>>,
}

/// The memory of old inputs, a basis a block.
#[derive(Module, Debug)]
struct Memory {
    bases: Vec<Param<Tensor<2>>>,
}

/// The state with which a method has the golden bases.
fn state(method: &str, options: &str, golden: &Value) -> MethodState {
    let width = golden["width"].as_u64().unwrap() as usize;
    let n_bases = golden["n_bases"].as_u64().unwrap() as usize;
    let rows = |key: &str| -> Vec<Param<Tensor<2>>> {
        let sites = golden["penalised"].as_array().unwrap().iter();
        let columns = sites.map(|site| matrix(numbers(&site[key]), n_bases).transpose());
        columns
            .map(|rows| {
                assert_eq!(rows.dims(), [n_bases, width]);
                Param::from_tensor(rows.detach()).set_require_grad(false)
            })
            .collect()
    };
    let is_old = options.contains("old-features");
    match method {
        "clora" if is_old => {
            let bases = rows("p");
            let keeps = json!(vec!["used"; bases.len()]);
            MethodState::of(&Memory { bases }, |_| Role::Shared).with_fact("keeps", keeps)
        }
        "clora" => {
            let (inputs, outputs) = (rows("p"), rows("q"));
            MethodState::of(&Drawn { inputs, outputs }, |_| Role::Shared)
        }
        _ => MethodState::default(),
    }
}

#[test]
fn penalties_gradients_and_a_step_agree_with_numpy() {
    let bench = Bench::new();
    let device = test_device_autodiff();
    let (vit, _) = Vit::load(&bench.path("vit.safetensors"), None, &device).unwrap();
    let mut compared = Compared::new("penalties");
    for (_, golden) in golden_json_with(&["penalised", "methods"]) {
        let (width, rank) = (
            golden["width"].as_u64().unwrap() as usize,
            golden["rank"].as_u64().unwrap() as usize,
        );
        let lr = golden["lr"].as_f64().unwrap();
        let sites = golden["penalised"].as_array().unwrap();
        assert_eq!((shape().d_model, shape().depth), (width, sites.len()));
        for case in golden["methods"].as_array().unwrap() {
            let (name, options) = (
                case["method"].as_str().unwrap(),
                case["options"].as_str().unwrap(),
            );
            let mut table: toml::Table = options.parse().unwrap();
            table.insert("rank".into(), (rank as i64).into());
            table.insert("projections".into(), vec!["value"].into());
            let method = methods::build(name, &table).unwrap();
            let adapter = AdapterSpec::adapter(method.adapter().as_ref(), &shape()).unwrap();
            let factors = sites.iter().map(|site| {
                let data = |key: &str, shape| TensorData::new(numbers(&site[key]), shape);
                let (a, b) = (data("a", [width, rank]), data("b", [rank, width]));
                Direction::from_factors(a, b, &device)
            });
            let adapter = adapter.begin_task_with(factors.collect(), &device).unwrap();
            let mut model = Model::new(vit.clone(), adapter);
            model.state = state(name, options, &golden);

            let penalty = method.penalty(&model).unwrap();
            let what = |of: &str| format!("{name}, {options}: {of}");
            let expected = [case["penalty"].as_f64().unwrap() as f32];
            assert_close(
                penalty.clone(),
                expected.as_slice(),
                TOLERANCE,
                &what("penalty"),
            );
            let of_task = model.adapter.sites.iter().zip(sites).map(|(bank, site)| {
                let current = bank.current.as_ref().unwrap();
                let cotangent = matrix(numbers(&site["cotangent"]), width);
                (current.a.val().matmul(current.b.val()) * cotangent).sum()
            });
            let loss = of_task.fold(penalty, |sum, term| sum + term);
            let expected = [case["loss"].as_f64().unwrap() as f32];
            assert_close(loss.clone(), expected.as_slice(), TOLERANCE, &what("loss"));
            let grads = loss.backward();
            let expected = case["sites"].as_array().unwrap();
            for (bank, expected) in model.adapter.sites.iter().zip(expected) {
                let current = bank.current.as_ref().unwrap();
                for (factor, tensor) in [("a", current.a.val()), ("b", current.b.val())] {
                    let grad = tensor.grad(&grads).unwrap();
                    let after = tensor.inner() - grad.clone().mul_scalar(lr);
                    let of = |key: &str| numbers(&expected[key]);
                    let key = format!("grad_{factor}");
                    assert_close(grad, of(&key).as_slice(), TOLERANCE, &what(&key));
                    let key = format!("{factor}_after");
                    assert_close(after, of(&key).as_slice(), TOLERANCE, &what(&key));
                }
            }
            compared.add(what("agrees"));
        }
    }
}
