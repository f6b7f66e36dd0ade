//! Whole training runs against PyTorch, through the stream, the loader, the trainer and the evaluator
//! (golden README, section 3): every trace of the golden folder, with as many tasks, classes, steps and ranks
//! as it has.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]
#![allow(clippy::result_large_err, reason = "a test ends with its first error")]

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use sdlora_core::{Adapter, Direction, Site, Updates, Variant};
use sdlora_data::{
    Cache, DataError, Dataset, Group, ImageSource, Loader, LoaderConfig, Sample, SampleSet, Split,
    StreamConfig, TaskSplit, TaskStream,
};
use sdlora_image::{Channels, Image, Normalise, TransformConfig};
use sdlora_testkit::discover::{nearest, untold_of};
use sdlora_testkit::{
    Compared, Golden, Tolerance, assert_close, golden_with, test_device, test_device_autodiff,
};
use sdlora_train::heads;
use sdlora_train::methods::{self, LossOver};
use sdlora_train::{
    Model, OptimizerConfig, Precision, Rule, Silent, TaskData, TaskLoader, TaskLog, TrainedHead,
    Trainer, evaluate,
};
use sdlora_vit::{Checkpoint, Hints, Projection, Vit, VitConfig};

// What a trace does not say of itself is as in the golden README, section 3; its metadata may say otherwise.
const BATCH: usize = 16;
const LR: f64 = 1e-2;
const MOMENTUM: f64 = 0.9;

// What float32 may differ from float64 (golden README, section 3); a deviation in the method is
// seen at 1.5e-3 or more in the losses.
const LOSSES: Tolerance = Tolerance::Abs(1e-5);
const WEIGHTS: Tolerance = Tolerance::Abs(1e-5);
const LOGITS: Tolerance = Tolerance::Abs(1e-4);

/// The images of the trace as a data set.
struct Images {
    side: usize,
    names: Vec<String>,
    samples: [Vec<Sample>; 2],
    pixels: [Vec<u8>; 2],
}

impl Images {
    fn open(golden: &Golden) -> Self {
        let labels = golden.i64("train_labels").0;
        let n_classes = labels.iter().max().unwrap() + 1;
        let samples = |name: &str| -> Vec<Sample> {
            let labels = golden.i64(name).0;
            labels
                .iter()
                .enumerate()
                .map(|(i, &label)| Sample {
                    class_id: label as usize,
                    name: format!("{name}[{i}]"),
                })
                .collect()
        };
        Self {
            side: *golden.shape("train_images").last().unwrap(),
            names: (0..n_classes).map(|i| format!("class {i:02}")).collect(),
            samples: [samples("train_labels"), samples("eval_labels")],
            pixels: ["train_images", "eval_images"].map(|name| golden.u8(name).0),
        }
    }
}

impl Dataset for Images {
    fn name(&self) -> &str {
        "trace"
    }

    fn class_names(&self) -> &[String] {
        &self.names
    }

    fn groups(&self) -> &[Group] {
        &[]
    }

    fn samples(&self, split: Split) -> &[Sample] {
        &self.samples[split as usize]
    }

    fn image(&self, split: Split, idx: usize) -> Result<Image, DataError> {
        let n = self.side * self.side;
        let planes = &self.pixels[split as usize][3 * n * idx..3 * n * (idx + 1)];
        let interleaved = (0..3 * n).map(|i| planes[(i % 3) * n + i / 3]).collect();
        Ok(Image::new(self.side, self.side, 3, interleaved)?)
    }
}

/// The trace, its images and what it says of its run.
struct Trace {
    golden: Golden,
    dataset: Arc<dyn Dataset>,
    stream: TaskStream,
    side: usize,
    n_tasks: usize,
    n_steps: usize,
    batch: usize,
    optimizer: OptimizerConfig,
}

impl Trace {
    /// A trace with the images and the backbone that lie beside it.
    fn open(golden: Golden) -> (Self, Model) {
        let data = golden_with(&["train_images", "train_labels", "eval_images", "eval_labels"]);
        let data = nearest(golden.path(), &data).expect("the images of a trace lie beside it");
        let images = Images::open(data);
        let said = |key: &str, otherwise: f64| {
            golden
                .metadata(key)
                .map_or(otherwise, |text| text.parse().unwrap())
        };
        let [n_tasks, n_steps] = golden.shape("losses")[..] else {
            panic!("losses are [n_tasks, n_steps]");
        };
        let sizes = (0..n_tasks).map(|t| golden.shape(&format!("init.task{t}.head_weight_new"))[0]);
        let split = TaskSplit::Sizes(sizes.collect());
        let mut optimizer = OptimizerConfig::sgd(said("lr", LR));
        optimizer.rule = Rule::Sgd {
            momentum: said("momentum", MOMENTUM),
            dampening: 0.0,
            nesterov: false,
        };
        let (vit, shape) = backbone(&golden, images.side);
        let sites = shape.sites(&[Projection::Query, Projection::Value]);
        let adapter = Adapter::new(Variant::Reference.config(), &sites).unwrap();
        let side = images.side;
        let batch = said("batch_size", BATCH as f64) as usize;
        let dataset: Arc<dyn Dataset> = Arc::new(images);
        let stream = TaskStream::new(dataset.as_ref(), &StreamConfig::new(split)).unwrap();
        let trace = Self {
            dataset,
            stream,
            side,
            n_tasks,
            n_steps,
            batch,
            optimizer,
            golden,
        };
        (trace, Model::new(vit, adapter))
    }

    /// Passes over the data of a task: the steps over the batches.
    fn n_epochs(&self, task_idx: usize) -> usize {
        let n_images = self.stream.tasks()[task_idx].train.as_ref().len();
        let n_batches = n_images.div_ceil(self.batch);
        assert!(
            self.n_steps.is_multiple_of(n_batches),
            "{} steps are no whole epochs of {n_batches} batches: give `batch_size` in the metadata of {}",
            self.n_steps,
            self.golden.path().display()
        );
        self.n_steps / n_batches
    }

    /// Accuracy in percent on each task after task `t`, of the predictions of the file.
    fn accuracies(&self, t: usize) -> Vec<f64> {
        let predictions = self.golden.i64(&format!("task{t}.eval_pred")).0;
        let samples = self.dataset.samples(Split::Test);
        let share = |labels: &[usize]| {
            let of_task = samples.iter().zip(&predictions);
            let of_task = of_task.filter(|(sample, _)| labels.contains(&sample.class_id));
            let hits: Vec<bool> = of_task
                .map(|(sample, &prediction)| sample.class_id as i64 == prediction)
                .collect();
            let n_right = hits.iter().filter(|hit| **hit).count();
            100.0 * n_right as f64 / hits.len() as f64
        };
        let tasks = self.stream.tasks()[..=t].iter();
        tasks.map(|task| share(task.labels())).collect()
    }

    /// Images in the order of the file; `(u8 − 128) / 64`, as the mean and deviation of levels to 1.
    fn loader(&self, set: &impl AsRef<SampleSet>, batch_size: usize) -> Loader {
        let mut transform = TransformConfig::new(self.side, Channels::Rgb);
        transform.normalise = Some(Normalise {
            mean: vec![128.0 / 255.0],
            std: vec![64.0 / 255.0],
        });
        let transform = transform.init().unwrap();
        let source = ImageSource::new(self.dataset.clone(), set, transform, Cache::None);
        LoaderConfig::evaluation(batch_size)
            .init(Arc::new(source), 0)
            .unwrap()
    }

    /// PyTorch's `[d_output, d_input]` as burn's `[d_input, d_output]`.
    fn transposed(&self, name: &str) -> TensorData {
        self.golden
            .tensor::<2>(name, &test_device())
            .transpose()
            .into_data()
    }

    /// The model grown for task `t` with the initial values of the file.
    fn grown(&self, mut model: Model, t: usize) -> Model {
        let device = test_device_autodiff();
        let directions = model
            .adapter
            .sites
            .iter()
            .map(|bank| {
                let site = bank.site();
                let name = format!("init.task{t}.block{}.A_{}", site.group, letter(site));
                let a = self.transposed(&name);
                let b = TensorData::zeros::<f32, _>([a.shape()[1], site.d_output]);
                Direction::from_factors(a, b, &device)
            })
            .collect();
        model.adapter = model.adapter.begin_task_with(directions, &device).unwrap();
        let columns = self.transposed(&format!("init.task{t}.head_weight_new"));
        let n_new = columns.shape()[1];
        let new = TrainedHead::from_data(columns, TensorData::zeros::<f32, _>([n_new]), &device);
        model.head.trained = Some(match model.head.trained.take() {
            Some(old) => old.grown(new),
            None => new,
        });
        self.check_head(&model, t, "_before");
        model
    }

    fn check_head(&self, model: &Model, t: usize, when: &str) {
        let head = model.head.trained.as_ref().unwrap();
        let name = format!("task{t}.head_weight{when}");
        let weight = head.weight.val().inner().transpose();
        assert_close(weight, self.golden.f32(&name), WEIGHTS, &name);
        let name = format!("task{t}.head_bias{when}");
        assert_close(
            head.bias.as_ref().unwrap().val().inner(),
            self.golden.f32(&name),
            WEIGHTS,
            &name,
        );
    }

    fn check_trained(&self, model: &Model, t: usize) {
        let alpha: Vec<f32> = model.adapter.magnitude_rows()[0]
            .iter()
            .map(|&v| v as f32)
            .collect();
        let name = format!("task{t}.alpha");
        assert_close(
            alpha.as_slice(),
            self.golden.f32(&name).0.as_slice(),
            WEIGHTS,
            &name,
        );
        for bank in &model.adapter.sites {
            let site = bank.site();
            let current = bank.current.as_ref().unwrap();
            for (factor, param) in [("A", &current.a), ("B", &current.b)] {
                let letter = letter(site);
                let name = format!("task{t}.block{}.{factor}_{letter}_final", site.group);
                let values = param.val().inner().transpose();
                assert_close(values, self.golden.f32(&name), WEIGHTS, &name);
            }
        }
        self.check_head(model, t, "");
    }

    /// Logits of all evaluation images, with the updates beside the weights and inside them.
    fn check_logits(&self, model: &Model, t: usize) {
        let (name, device) = (format!("task{t}.eval_logits"), test_device());
        let (plain, merged) = (model.valid(), model.merged_backbone());
        let head = plain.head.trained.as_ref().unwrap();
        let (mut beside, mut inside) = (Vec::new(), Vec::new());
        for task in self.stream.tasks() {
            for batch in self.loader(&task.test, 48).epoch(0, &device) {
                let images = batch.unwrap().images;
                beside.push(head.linear(plain.features(images.clone())));
                inside.push(head.linear(merged.forward(images, &Updates::default())));
            }
        }
        let expected = self.golden.f32(&name);
        let beside = Tensor::cat(beside, 0);
        let predictions: Vec<i64> = beside.clone().argmax(1).into_data().iter::<i64>().collect();
        assert_close(beside, expected.clone(), LOGITS, &name);
        assert_close(
            Tensor::cat(inside, 0),
            expected,
            LOGITS,
            &format!("{name}, merged"),
        );
        assert_eq!(
            predictions,
            self.golden.i64(&format!("task{t}.eval_pred")).0,
            "task {t}"
        );
    }
}

fn letter(site: &Site) -> &'static str {
    match Projection::of_site(&site.name) {
        Some((_, Projection::Query)) => "q",
        _ => "v",
    }
}

/// The backbone beside a trace whose width and depth are those of its directions.
fn backbone(golden: &Golden, side: usize) -> (Vit, VitConfig) {
    let folder = golden.path().parent().unwrap();
    let d_model = golden.shape("init.task0.block0.A_q")[1];
    let depth = (0..)
        .take_while(|block| golden.has(&format!("init.task0.block{block}.A_q")))
        .count();
    let untold = untold_of(d_model, folder).unwrap_or_else(|| {
        panic!(
            "nothing in {} says how many heads a backbone of width {d_model} has: add its config.json",
            folder.display()
        )
    });
    let hints = Hints {
        image_size: Some(side),
        n_heads: Some(untold.n_heads),
        norm_eps: untold.norm_eps,
        ..Hints::default()
    };
    // Any of the files that hold it: those of transformers have the same numbers.
    let files = golden_with(&["patch_embed.proj.weight"]).into_iter();
    let found = files
        .filter(|file| file.path().parent() == Some(folder))
        .map(|file| Checkpoint::open(file.path(), &hints).unwrap())
        .find(|file| file.config().d_model == d_model && file.config().depth == depth)
        .unwrap_or_else(|| {
            panic!(
                "no backbone of width {d_model} and depth {depth} lies in {}",
                folder.display()
            )
        });
    let (vit, _) = found.load(&test_device_autodiff()).unwrap();
    let shape = vit.config().clone();
    (vit, shape)
}

#[test]
fn every_run_agrees_with_pytorch() {
    let mut compared = Compared::new("training runs");
    for golden in golden_with(&["losses", "init.task0.head_weight_new"]) {
        let name = golden.stem();
        agrees_with_pytorch(golden);
        compared.add(name);
    }
}

fn agrees_with_pytorch(golden: Golden) {
    let (trace, mut model) = Trace::open(golden);
    assert!(trace.n_tasks > 0 && trace.n_steps > 0);
    let device = test_device_autodiff();
    let method = methods::build("sdlora", &Default::default()).unwrap();
    let head = heads::build("linear", &Default::default()).unwrap();
    let trainer = |t: usize| Trainer {
        method: method.as_ref(),
        head: head.as_ref(),
        n_epochs: trace.n_epochs(t),
        optimizer: &trace.optimizer,
        loss: LossOver::NewClasses,
        mix: None,
        seed: 0,
        split: Default::default(),
        checkpoint_every: usize::MAX,
        residual_every: 0,
        precision: Precision::F32,
        gradient_checkpointing: false,
        device: device.clone(),
    };
    let losses = trace.golden.f32("losses").0;
    let n_steps = trace.n_steps;
    let tasks = trace.stream.tasks();
    let tests: Vec<Loader> = tasks
        .iter()
        .map(|task| trace.loader(&task.test, 48))
        .collect();

    for (t, task) in tasks.iter().enumerate() {
        model = trace.grown(model, t);
        let trainer = trainer(t);
        let loader = TaskLoader::new(trace.loader(&task.train, trace.batch));
        assert_eq!(trainer.n_steps(t, &loader), n_steps);
        let data = TaskData {
            task_idx: t,
            labels: task.labels(),
            loader: &loader,
            features: None,
            weights: None,
        };
        let log;
        (model, log) = trainer
            .train(
                model,
                trace.optimizer.init(),
                TaskLog::default(),
                &data,
                &mut Silent,
                &mut |_, _, _, _| unreachable!("no checkpoint was asked for"),
            )
            .unwrap();
        let actual: Vec<f32> = log.losses.iter().map(|&loss| loss as f32).collect();
        let expected = &losses[t * n_steps..(t + 1) * n_steps];
        assert_close(
            actual.as_slice(),
            expected,
            LOSSES,
            &format!("losses of task {t}"),
        );
        trace.check_trained(&model, t);
        trace.check_logits(&model, t);

        let row = evaluate(&model, head.as_ref(), &tests[..=t], &device).unwrap();
        let percent: Vec<f64> = row.iter().map(|share| 100.0 * share).collect();
        assert_eq!(percent, trace.accuracies(t), "accuracies after task {t}");
    }
}
