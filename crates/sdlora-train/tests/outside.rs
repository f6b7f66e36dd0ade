//! A method of another crate: one value of `MethodEntry`, with a state of its own and every hook.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]
#![allow(clippy::result_large_err, reason = "a test ends with its first error")]

mod toy;

use burn::module::{Module, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};
use sdlora_core::Variant;
use sdlora_testkit::{test_device, test_device_autodiff};
use sdlora_train::methods::{
    AdapterSpec, LossBatch, METHODS, Method, MethodEntry, Ranks, StepContext, TaskContext,
    TaskImages,
};
use sdlora_train::slot::SlotSpec;
use sdlora_train::{
    Finished, MethodState, Model, Plan, Role, RunOptions, Start, TrainError, cross_entropy, run,
};
use sdlora_vit::Projection;
use toy::{Bench, StopAfter, bits, data_dir};

/// A sparse LoRA that spares the inputs that old tasks used: gradients of `A` are small in the rows that old
/// updates changed most, and small entries of `B` are cut to 0 after every step.
#[derive(Debug)]
struct Sparing {
    threshold: f64,
}

const ENTRY: MethodEntry = MethodEntry {
    name: "sparing-lora",
    summary: "for this test",
    build: |options| {
        let threshold = options.get("threshold").and_then(toml::Value::as_float);
        Ok(Box::new(Sparing {
            threshold: threshold.unwrap_or(0.0),
        }))
    },
    second_pass: None,
};

/// What the method keeps.
#[derive(Module, Debug)]
struct Kept {
    /// How much old tasks changed every input, `[n_sites, d_input]`.
    used: Param<Tensor<2>>,
    /// How many times the stream ended, `[1, 1]`.
    n_ends: Param<Tensor<2>>,
}

impl Kept {
    fn of(model: &Model) -> Self {
        let shape = [model.adapter.sites.len(), toy::shape().d_model];
        let rows = |shape: [usize; 2]| {
            Param::from_tensor(Tensor::<2>::zeros(shape, &test_device_autodiff()))
                .set_require_grad(false)
        };
        let fresh = Self {
            used: rows(shape),
            n_ends: rows([1, 1]),
        };
        match model.state.is_empty() {
            true => fresh,
            false => model.state.view(fresh),
        }
    }

    fn into_state(self) -> MethodState {
        MethodState::of(&self, |_| Role::Shared)
    }
}

impl Method for Sparing {
    fn adapter(&self) -> Option<AdapterSpec> {
        Some(AdapterSpec {
            settings: Variant::Reference.config(),
            projections: vec![Projection::Query, Projection::Value],
            ranks: Ranks::constant(2),
            slot: SlotSpec::default(),
        })
    }

    fn before_task(&self, model: Model, task: &TaskContext) -> Result<Model, TrainError> {
        let mut model = task.begin_direction(model, 2)?;
        model.state = Kept::of(&model).into_state();
        Ok(task.grow_head(model))
    }

    fn after_backward(
        &self,
        model: &Model,
        mut gradients: GradientsParams,
        _step: &StepContext,
    ) -> Result<GradientsParams, TrainError> {
        // Gradients are outside the graph.
        let used = Kept::of(model).used.val().inner();
        for (i, bank) in model.adapter.sites.iter().enumerate() {
            let Some(current) = &bank.current else {
                continue;
            };
            if let Some(gradient) = gradients.remove::<2>(current.a.id) {
                let scale = (used.clone().narrow(0, i, 1).transpose() + 1.0).recip();
                let scale = scale.to_device(&gradient.device());
                gradients.register(current.a.id, gradient * scale);
            }
        }
        Ok(gradients)
    }

    fn after_step(&self, mut model: Model, _step: &StepContext) -> Result<Model, TrainError> {
        for bank in &mut model.adapter.sites {
            let Some(mut current) = bank.current.take() else {
                continue;
            };
            // The same parameter with other values: its moments stay.
            current.b = current.b.map(|b| {
                let b = b.detach();
                let is_small = b.clone().abs().lower_elem(self.threshold);
                b.mask_fill(is_small, 0.0).detach().require_grad()
            });
            bank.current = Some(current);
        }
        Ok(model)
    }

    fn after_task(&self, mut model: Model, _task: &TaskContext) -> Result<Model, TrainError> {
        let mut kept = Kept::of(&model);
        let changes = model.adapter.sites.iter().filter_map(|bank| {
            let factors = bank.current.as_ref()?;
            let change = factors.a.val().detach().matmul(factors.b.val().detach());
            Some(change.abs().sum_dim(1).transpose())
        });
        let changes = Tensor::cat(changes.collect(), 0);
        kept.used =
            Param::from_tensor((kept.used.val() + changes).detach()).set_require_grad(false);
        model.state = kept.into_state();
        Ok(model)
    }

    fn after_stream(
        &self,
        mut model: Model,
        _task: &TaskContext,
        images: &dyn TaskImages,
    ) -> Result<Model, TrainError> {
        let mut n_images = 0;
        images.each_batch(&mut |_, labels| n_images += labels.len())?;
        assert!(n_images > 0);
        let mut kept = Kept::of(&model);
        kept.n_ends =
            Param::from_tensor((kept.n_ends.val() + 1.0).detach()).set_require_grad(false);
        model.state = kept.into_state();
        Ok(model)
    }

    /// The cross-entropy of the columns, by hand.
    fn loss(&self, model: &Model, batch: &LossBatch<'_>) -> Option<Tensor<1>> {
        let trained = model.head.trained.as_ref()?;
        let position = |label| batch.task_labels.binary_search(label).unwrap() as i32;
        let targets: Vec<i32> = batch.labels.iter().map(position).collect();
        let data = TensorData::new(targets, [batch.labels.len()]);
        let targets = Tensor::from_data(data, &batch.features.device());
        Some(cross_entropy(
            trained.linear(batch.features.clone()),
            targets,
        ))
    }
}

/// Cuts some entries and leaves others: a step moves an entry by about as much.
const THRESHOLD: f64 = 2e-4;

fn plan(bench: &Bench, threshold: f64) -> Plan {
    let method = format!("name = \"sparing-lora\"\nthreshold = {threshold:?}");
    bench
        .config(&method)
        .check_with(&[METHODS, &[ENTRY]].concat())
        .unwrap()
}

fn assert_equal(a: &Finished, b: &Finished, what: &str) {
    assert_eq!(bits(&a.model.adapter), bits(&b.model.adapter), "{what}");
    assert_eq!(bits(&a.model.state), bits(&b.model.state), "{what}");
    assert_eq!(a.log.matrix, b.log.matrix, "{what}");
}

#[test]
fn a_method_of_another_crate_has_a_state_and_every_hook() {
    let bench = Bench::new();
    let sparse = bench
        .run("sparse", &plan(&bench, THRESHOLD), Start::Fresh)
        .unwrap();
    let entries = |run: &Finished| -> Vec<f32> {
        let banks = run.model.adapter.sites.iter();
        banks
            .flat_map(|bank| bank.current.as_ref().unwrap().to_host().b)
            .collect()
    };
    let (n_zero, b) = (
        |b: &[f32]| b.iter().filter(|v| **v == 0.0).count(),
        entries(&sparse),
    );
    assert!(
        b.iter().all(|v| *v == 0.0 || v.abs() >= THRESHOLD as f32),
        "{b:?}"
    );
    assert!(n_zero(&b) > 0 && n_zero(&b) < b.len(), "{b:?}");
    let dense = bench
        .run("dense", &plan(&bench, 0.0), Start::Fresh)
        .unwrap();
    assert_eq!(
        n_zero(&entries(&dense)),
        0,
        "without the threshold nothing is cut"
    );

    let kept = Kept::of(&sparse.model);
    let used: Vec<f32> = kept.used.val().into_data().iter().collect();
    assert!(used.iter().any(|&v| v > 0.0));
    assert_eq!(kept.n_ends.val().into_scalar::<f32>(), 1.0);
    // Two matrices, which nothing else of the program knows, are counted.
    let stored = sparse.log.floats_stored.last().unwrap();
    assert_eq!(stored.shared, 4 * toy::shape().d_model + 1);
}

#[test]
fn a_run_of_it_that_was_stopped_inside_a_task_ends_as_an_unbroken_one() {
    let bench = Bench::new();
    let plan = plan(&bench, THRESHOLD);
    let whole = bench.run("whole", &plan, Start::Fresh).unwrap();
    let n_steps: usize = whole.log.tasks.iter().map(|task| task.losses.len()).sum();
    let mut stop = StopAfter::new(n_steps - 2);
    let error = bench.run_observed("broken", &plan, Start::Fresh, &mut stop);
    assert!(matches!(error, Err(TrainError::Stopped { .. })));
    let resumed = bench.run("broken", &plan, Start::Resume).unwrap();
    assert_equal(&whole, &resumed, "resumed");
}

#[test]
fn its_hooks_see_whole_batches_on_several_devices() {
    let bench = Bench::new();
    let plan = plan(&bench, THRESHOLD);
    let one = bench.run("one", &plan, Start::Fresh).unwrap();
    let options = RunOptions {
        devices: vec![test_device(); 2],
        ..RunOptions::new(&data_dir(), &test_device(), &bench.path("two"))
    };
    let two = run(&plan, &options, &mut sdlora_train::Silent).unwrap();
    let far = one.log.tasks[1].losses.iter().zip(&two.log.tasks[1].losses);
    let far = far.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(far < 1e-4, "losses differ by {far}");
}
