//! One battery for every method of the registry: what starts, trains, merges and resumes does so as
//! the trait promises. What a method is on its own stands in `method_properties.rs`.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]
#![allow(clippy::result_large_err, reason = "a test ends with its first error")]

mod toy;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use sdlora_data::{Cache, Dataset, ImageSource, LoaderConfig, TaskSplit, TaskStream, TrainSet};
use sdlora_testkit::{Tolerance, assert_close, test_device, test_device_autodiff};
use sdlora_train::methods::{AdapterSpec, METHODS, TaskContext, TaskImages};
use sdlora_train::{
    Event, HeadConfig, Model, Observer, Plan, Precision, RunConfig, Silent, Start, TaskData,
    TaskLoader, TaskLog, TrainError, Trainer, checkpoint,
};
use toy::{Bench, bits, copy_folder, shape};

/// Methods whose features change when a second task starts, before its first step, and why.
const JUMPS: &[(&str, &str)] = &[
    (
        "sdlora",
        "`reference` divides the first direction and resets its magnitude",
    ),
    ("sdlora-rr", "as sdlora"),
    ("sdlora-kd", "as sdlora"),
    ("sdlora-first", "as sdlora"),
    ("sdlora-fixed-magnitude", "as sdlora"),
    ("coda-prompt", "new components enter the sum"),
];

/// Methods that exchange frozen numbers while a task trains: sketches and merged updates of a chain, running norms,
/// a snapshot.
const EXCHANGE: &[&str] = &["raclora", "xgblora", "prilora", "beamlora"];

const N_NEW: usize = 2;

/// Two tasks of two classes and few steps, default options.
fn plan(bench: &Bench, name: &str) -> Plan {
    changed(bench, name, |_| {})
}

fn changed(bench: &Bench, name: &str, change: impl FnOnce(&mut RunConfig)) -> Plan {
    let mut config = bench.config(&format!("name = \"{name}\""));
    config.n_epochs = 2;
    config.checkpoint_every = 2;
    config.stream.split = TaskSplit::Increment {
        init_cls: N_NEW,
        increment: N_NEW,
    };
    if name == "ranpac" {
        // Ten thousand random features would take minutes.
        config.head = Some(HeadConfig::named("ridge").with("projection", 40));
    }
    change(&mut config);
    config.check().unwrap()
}

/// The stream of a plan, task by task.
struct Stage {
    plan: Plan,
    dataset: Arc<dyn Dataset>,
    stream: TaskStream,
}

impl Stage {
    fn new(plan: Plan) -> Self {
        let config = plan.config();
        let dataset: Arc<dyn Dataset> =
            sdlora_data::datasets::open(&config.dataset, &toy::data_dir(), &Default::default())
                .unwrap()
                .into();
        let stream = TaskStream::new(dataset.as_ref(), &config.stream).unwrap();
        Self {
            plan,
            dataset,
            stream,
        }
    }

    fn source(&self, set: &TrainSet) -> Arc<ImageSource> {
        let transform = self.plan.config().transform.init().unwrap();
        let source = ImageSource::new(self.dataset.clone(), set, transform, Cache::Memory);
        Arc::new(source)
    }

    /// The model before its first task.
    fn model(&self, bench: &Bench) -> Model {
        let (method, device) = (self.plan.method(), test_device_autodiff());
        let weights = bench.path("vit.safetensors");
        let (backbone, _) = sdlora_vit::Vit::load(&weights, None, &device).unwrap();
        let adapter = AdapterSpec::adapter(method.adapter().as_ref(), &shape()).unwrap();
        Model::new(backbone, adapter)
    }

    fn context(&self, task_idx: usize) -> TaskContext {
        TaskContext {
            task_idx,
            n_tasks: self.stream.tasks().len(),
            n_new_classes: N_NEW,
            seed: 1,
            device: test_device_autodiff(),
            head: self.plan.head().clone(),
            start: self.plan.column_start(),
        }
    }

    /// All training images of a task.
    fn images(&self, task_idx: usize) -> AllAtOnce {
        let source = self.source(&self.stream.tasks()[task_idx].train);
        let loader = LoaderConfig::evaluation(1000).init(source, 0).unwrap();
        let batch = loader.epoch(0, &test_device()).next().unwrap().unwrap();
        AllAtOnce(batch.images, batch.labels_host)
    }

    fn begin(&self, model: Model, task_idx: usize) -> Model {
        let (method, context) = (self.plan.method(), self.context(task_idx));
        let model = method.before_task(model, &context).unwrap();
        let images = self.images(task_idx);
        method.prepare(model, &context, &images).unwrap()
    }

    fn train(&self, model: Model, task_idx: usize) -> (Model, TaskLog) {
        let config = self.plan.config();
        let task = &self.stream.tasks()[task_idx];
        let loader = LoaderConfig::training(config.batch_size)
            .init(self.source(&task.train), 1)
            .unwrap();
        let trainer = Trainer {
            method: self.plan.method(),
            head: self.plan.head().as_ref(),
            n_epochs: config.n_epochs,
            optimizer: &config.optimizer,
            loss: config.loss,
            mix: None,
            seed: config.seed,
            split: Default::default(),
            checkpoint_every: usize::MAX,
            residual_every: 0,
            precision: Precision::F32,
            gradient_checkpointing: false,
            device: test_device_autodiff(),
        };
        let loader = TaskLoader::new(loader);
        let data = TaskData {
            task_idx,
            labels: task.labels(),
            loader: &loader,
            features: None,
            weights: None,
        };
        let optimizer = config.optimizer.init();
        trainer
            .train(
                model,
                optimizer,
                TaskLog::default(),
                &data,
                &mut Silent,
                &mut |_, _, _, _| unreachable!("no checkpoint was asked for"),
            )
            .unwrap()
    }

    fn end(&self, model: Model, task_idx: usize) -> Model {
        let (method, context) = (self.plan.method(), self.context(task_idx));
        let images = self.images(task_idx);
        let model = method.review(model, &context, &images).unwrap();
        method.after_task(model, &context).unwrap()
    }
}

/// The images of a task as one batch, and their labels.
struct AllAtOnce(Tensor<4>, Vec<usize>);

impl TaskImages for AllAtOnce {
    fn each_batch(&self, see: &mut dyn FnMut(Tensor<4>, &[usize])) -> Result<(), TrainError> {
        see(self.0.clone(), &self.1);
        Ok(())
    }
}

/// Bits of the parameters that receive gradients, or of those that do not, by id.
fn parameters(model: &Model, trained: bool) -> BTreeMap<u64, Vec<u32>> {
    struct Collect(BTreeMap<u64, Vec<u32>>, bool);
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() == self.1 {
                let values = param.val().into_data();
                let bits = values.iter::<f32>().map(f32::to_bits).collect();
                self.0.insert(param.id.val(), bits);
            }
        }
    }
    let mut collect = Collect(BTreeMap::new(), trained);
    model.visit(&mut collect);
    collect.0
}

/// Features of images without gradients.
fn features(model: &Model, images: &Tensor<4>) -> Vec<f32> {
    let images = Tensor::from_inner(images.clone());
    model.features(images).into_data().iter().collect()
}

#[test]
fn a_task_starts_where_the_last_one_ended_but_for_the_named_exceptions() {
    let bench = Bench::new();
    for entry in METHODS {
        let stage = Stage::new(plan(&bench, entry.name));
        let images = stage.images(0).0;
        let fresh = stage.model(&bench);
        let start = features(&fresh, &images);
        let model = stage.begin(fresh, 0);
        // Prompts are attended to from the start; branches start with a factor of zeros.
        let is_same = features(&model, &images) == start;
        let has_prompts = model.state.second_pass().is_some() && entry.name != "duallora";
        assert_eq!(is_same, !has_prompts, "{}", entry.name);
        let (model, log) = stage.train(model, 0);
        let model = stage.end(model, 0);
        let before = features(&model, &images);
        let changes_features = !stage.plan.method().keeps_features() && !log.losses.is_empty();
        assert_eq!(before != start, changes_features, "{}: trained", entry.name);

        let after = features(&stage.begin(model, 1), &images);
        let largest = |values: &[f32]| values.iter().fold(0.0f32, |max, v| max.max(v.abs()));
        let differences: Vec<f32> = before.iter().zip(&after).map(|(a, b)| a - b).collect();
        let jumps = largest(&differences) > 1e-5 * largest(&before);
        let expected = JUMPS.iter().any(|(name, _)| *name == entry.name);
        assert_eq!(jumps, expected, "{}: {}", entry.name, largest(&differences));
    }
}

/// Columns and biases of some classes of the trained head, as bits.
fn columns(model: &Model, classes: std::ops::Range<usize>) -> Vec<u32> {
    let Some(trained) = &model.head.trained else {
        return Vec::new();
    };
    let (rows, d_model) = trained.rows();
    let bias = trained.bias_host().unwrap_or_default();
    let rows = &rows[classes.start * d_model..classes.end * d_model];
    let bias = bias.get(classes).unwrap_or_default();
    rows.iter().chain(bias).map(|v| v.to_bits()).collect()
}

#[test]
fn what_is_frozen_stays_bit_equal_over_a_task_and_something_else_moves() {
    let bench = Bench::new();
    // Decay moves whatever an optimiser is given, even where its gradient is 0.
    for (rule, decay) in [("sgd", 0.0), ("sgd", 0.1), ("adam", 0.1), ("adamw", 0.1)] {
        for entry in METHODS {
            let plan = changed(&bench, entry.name, |config| {
                config.optimizer = toy::optimizer(rule, 0.02, decay);
            });
            let stage = Stage::new(plan);
            let mut model = stage.model(&bench);
            let n_backbone = parameters(&model, false).len();
            for task_idx in 0..2 {
                model = stage.begin(model, task_idx);
                let (frozen, trained) = (parameters(&model, false), parameters(&model, true));
                let n_old = task_idx * N_NEW;
                let old = columns(&model, 0..n_old.min(n_columns(&model)));
                let (after, log) = stage.train(model, task_idx);
                let what = format!("{}, task {task_idx}, {rule} with decay {decay}", entry.name);
                let still = parameters(&after, false);
                if EXCHANGE.contains(&entry.name) {
                    // What is exchanged has another id; what keeps its id keeps its bits.
                    let same = frozen.iter().filter(|(id, _)| still.contains_key(*id));
                    assert!(same.clone().count() >= n_backbone, "{what}: the backbone");
                    for (id, bits) in same {
                        assert!(&still[id] == bits, "{what}: a frozen one");
                    }
                } else {
                    assert!(still == frozen, "{what}: a frozen one");
                }
                let still = columns(&after, 0..n_old.min(n_columns(&after)));
                assert_eq!(still, old, "{what}: a column of an old class");
                let moved = parameters(&after, true)
                    .iter()
                    .any(|(id, bits)| trained.get(id) != Some(bits));
                assert_eq!(moved, !log.losses.is_empty(), "{what}: a trained one");
                model = stage.end(after, task_idx);
            }
        }
    }
}

fn n_columns(model: &Model) -> usize {
    model
        .head
        .trained
        .as_ref()
        .map_or(0, |trained| trained.n_classes())
}

#[test]
fn merged_gives_the_features_of_unmerged() {
    let bench = Bench::new();
    for entry in METHODS {
        let plan = plan(&bench, entry.name);
        let run = bench.run(entry.name, &plan, Start::Fresh).unwrap();
        let images = Stage::new(plan).images(1).0;
        let merged = run.model.extractor();
        assert_close(
            merged.features(images.clone()),
            features(&run.model, &images).as_slice(),
            Tolerance::Abs(1e-4),
            entry.name,
        );
    }
}

/// Copies the folder of a run inside its last task, as a kill would leave it.
struct Killed {
    folder: PathBuf,
    copy: PathBuf,
    n_started: usize,
    n_tasks: usize,
    is_copied: bool,
}

impl Observer for Killed {
    fn event(&mut self, event: &Event<'_>) {
        let is_in_last = self.n_started == self.n_tasks;
        let now = match event {
            Event::TaskStarted {
                n_tasks, n_steps, ..
            } => {
                self.n_started += 1;
                self.n_tasks = *n_tasks;
                // Without steps there is nothing inside.
                self.n_started == *n_tasks && *n_steps == 0
            }
            Event::Step { step: 2, .. } => is_in_last,
            _ => false,
        };
        if now && !self.is_copied {
            copy_folder(&self.folder, &self.copy);
            self.is_copied = true;
        }
    }
}

#[test]
fn a_run_that_was_killed_in_its_last_task_ends_with_the_same_bits() {
    let bench = Bench::new();
    for entry in METHODS {
        let plan = plan(&bench, entry.name);
        let (whole, rest) = (entry.name.to_owned(), format!("{}-rest", entry.name));
        let mut killed = Killed {
            folder: bench.path(&whole),
            copy: bench.path(&rest),
            n_started: 0,
            n_tasks: 0,
            is_copied: false,
        };
        let unbroken = bench
            .run_observed(&whole, &plan, Start::Fresh, &mut killed)
            .unwrap();
        assert!(killed.is_copied, "{}", entry.name);
        let newest = checkpoint::latest(&bench.path(&rest).join("checkpoints"));
        let newest = newest.unwrap().display().to_string();
        let takes_steps = !unbroken.log.tasks.last().unwrap().losses.is_empty();
        assert_eq!(newest.contains("-step-"), takes_steps, "{newest}");
        let resumed = bench.run(&rest, &plan, Start::Resume).unwrap();
        let losses = |run: &sdlora_train::Finished| -> Vec<Vec<f64>> {
            run.log.tasks.iter().map(|t| t.losses.clone()).collect()
        };
        assert_eq!(losses(&resumed), losses(&unbroken), "{}", entry.name);
        assert_eq!(resumed.log.matrix, unbroken.log.matrix, "{}", entry.name);
        assert_eq!(
            resumed.log.n_trained, unbroken.log.n_trained,
            "{}",
            entry.name
        );
        assert!(
            bits(&resumed.model) == bits(&unbroken.model),
            "{}",
            entry.name
        );
    }
}
