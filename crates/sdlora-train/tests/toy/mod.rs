//! A run of seconds: a tiny ViT with random weights on a few characters of Omniglot.

#![allow(dead_code, reason = "every test file uses another part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sdlora_testkit::test_device;
use sdlora_train::{
    Event, Finished, Observer, OptimizerConfig, Plan, RunConfig, RunOptions, Silent, Start,
    TrainError, run,
};
use sdlora_vit::{Pooling, Vit, VitConfig, WeightDtype};
use tempfile::TempDir;

/// The shape of the backbone.
pub fn shape() -> VitConfig {
    VitConfig {
        image_size: 14,
        patch_size: 7,
        n_channels: 1,
        d_model: 16,
        depth: 2,
        n_heads: 2,
        d_mlp: 32,
        class_token: false,
        pooling: Pooling::Average,
        ..VitConfig::standard(8, 4, 16, 2, 2)
    }
}

/// The folder of the data sets that ship with the repository.
pub fn data_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets")
}

/// Writes the weights of a backbone.
pub fn save(vit: &Vit, path: &Path) {
    let bytes = vit.to_bytes(WeightDtype::F32, &BTreeMap::new()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// A folder with the weights of a backbone and room for runs.
pub struct Bench {
    folder: TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let vit = Vit::init(&shape(), &mut rng, &test_device()).unwrap();
        save(&vit, &folder.path().join("vit.safetensors"));
        Self { folder }
    }

    /// The backbone as it was before any run.
    pub fn backbone(&self) -> Vit {
        Vit::load(&self.path("vit.safetensors"), None, &test_device())
            .unwrap()
            .0
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A small plan; `method` are lines of `[method]`.
    pub fn config(&self, method: &str) -> RunConfig {
        let text = format!(
            r#"
            seed = 11
            dataset = "omniglot-evaluation"
            n_epochs = 3
            batch_size = 16
            checkpoint_every = 4

            [method]
            {method}

            [backbone]
            weights = "{}"

            [stream]
            class_order = {{ numpy = {{ seed = 3 }} }}
            split = {{ increment = {{ init_cls = 3, increment = 3 }} }}
            n_tasks = 2

            [transform]
            side = 14
            channels = "gray"
            polarity = "inverted"

            [optimizer]
            rule = "sgd"
            lr = 0.02
            "#,
            self.path("vit.safetensors")
                .display()
                .to_string()
                .replace('\\', "/"),
        );
        RunConfig::parse(&text).unwrap()
    }

    /// Runs a plan in the folder of that name.
    pub fn run(&self, name: &str, plan: &Plan, start: Start) -> Result<Finished, TrainError> {
        self.run_observed(name, plan, start, &mut Silent)
    }

    pub fn run_observed(
        &self,
        name: &str,
        plan: &Plan,
        start: Start,
        observer: &mut dyn Observer,
    ) -> Result<Finished, TrainError> {
        let options = RunOptions::new(&data_dir(), &test_device(), &self.path(name));
        run(plan, &options.with_start(start), observer)
    }

    /// Runs a configuration on the same device several times over.
    pub fn run_on(&self, name: &str, config: &RunConfig, n_devices: usize) -> Finished {
        let plan = config.clone().check().unwrap();
        let options = RunOptions {
            devices: vec![test_device(); n_devices],
            ..RunOptions::new(&data_dir(), &test_device(), &self.path(name))
        };
        run(&plan, &options, &mut Silent).unwrap()
    }
}

/// An optimiser with the defaults of its rule, and a weight decay.
pub fn optimizer(rule: &str, lr: f64, weight_decay: f64) -> OptimizerConfig {
    let text = format!("rule = \"{rule}\"\nlr = {lr:?}\nweight_decay = {weight_decay:?}");
    toml::from_str(&text).unwrap()
}

/// The loss of every step of every task.
pub fn losses(run: &Finished) -> Vec<f64> {
    let tasks = run.log.tasks.iter();
    tasks.flat_map(|task| task.losses.clone()).collect()
}

/// The largest difference of two lists, relative to values above 1.
pub fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs() / a.abs().max(1.0))
        .fold(0.0, f64::max)
}

/// That of two runs in a loss or a parameter of the model they end with.
pub fn difference(a: &Finished, b: &Finished) -> f64 {
    let values = |finished: &Finished| -> Vec<f64> {
        let parameters = bits(&finished.model).into_iter().flatten();
        let parameters = parameters.map(|bits| f64::from(f32::from_bits(bits)));
        losses(finished).into_iter().chain(parameters).collect()
    };
    largest_difference(&values(a), &values(b))
}

/// Every parameter of a module in its order, as bits: equal means bit-equal.
pub fn bits<M: Module>(module: &M) -> Vec<Vec<u32>> {
    struct Collect(Vec<Vec<u32>>);
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.push(
                param
                    .val()
                    .into_data()
                    .iter::<f32>()
                    .map(f32::to_bits)
                    .collect(),
            );
        }
    }
    let mut collect = Collect(Vec::new());
    module.visit(&mut collect);
    collect.0
}

/// A folder with everything in it, copied.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// An observer that stops a run after some steps.
pub struct StopAfter(AtomicUsize);

impl StopAfter {
    pub fn new(n_steps: usize) -> Self {
        Self(AtomicUsize::new(n_steps))
    }
}

impl Observer for StopAfter {
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Step { .. } = event {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn wants_stop(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }
}
