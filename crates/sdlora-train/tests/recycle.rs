//! LoRA Recycle on a stream: what is left when it is over, and what was read for it.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests may unwrap as tests do"
)]
#![allow(clippy::result_large_err, reason = "a test ends with its first error")]

mod toy;

use burn::tensor::{Tensor, TensorData};
use sdlora_core::Updates;
use sdlora_testkit::{test_device, test_device_autodiff, toy::SplitMix64};
use sdlora_train::methods::{self, AdapterSpec, TaskContext, TaskImages};
use sdlora_train::{Finished, HeadConfig, Model, Start, TrainError};
use sdlora_vit::Vit;
use toy::{Bench, bits, shape};

const METHOD: &str = "name = \"lora-recycle\"\nrank = 5\nmeta_rank = 2\nn_images = 3\nn_steps = 10\n\
                      n_episodes = 20\nn_ways = 3";

fn run(bench: &Bench, name: &str, method: &str) -> Finished {
    let plan = bench.config(method).check().unwrap();
    bench.run(name, &plan, Start::Fresh).unwrap()
}

#[test]
fn the_stream_is_that_of_a_lora_per_task_and_ends_with_one_small_lora_and_prototypes() {
    let bench = Bench::new();
    let recycled = run(&bench, "recycled", METHOD);
    let plain = run(&bench, "plain", "name = \"lora-per-task\"\nrank = 5");
    let losses = |run: &Finished| toy::losses(run);
    assert_eq!(losses(&recycled), losses(&plain));
    assert_eq!(recycled.log.matrix.row(0), plain.log.matrix.row(0));
    assert_eq!(plain.model.adapter.ranks(), [5, 5]);
    assert_eq!(recycled.model.adapter.ranks(), [2]);
    for bank in &recycled.model.adapter.sites {
        let b = bank.current.as_ref().unwrap().to_host().b;
        assert!(b.iter().any(|v| *v != 0.0), "{}", bank.site());
    }
    // Columns of prototypes: the bias of each is minus the square of its row, 2 p / √d.
    let head = recycled.model.head.trained.as_ref().unwrap();
    let ((rows, d), bias) = (head.rows(), head.bias_host().unwrap());
    assert_eq!(bias.len(), 6);
    for (row, bias) in rows.chunks(d).zip(bias) {
        let squares: f32 = row.iter().map(|v| v * v).sum();
        let expected = -squares * (d as f32).sqrt() / 4.0;
        assert!(
            (bias - expected).abs() < 1e-4 * expected.abs(),
            "{bias} {expected}"
        );
    }
    // Where nothing is trained the backbone is as it was, and only the head is another.
    let still = run(
        &bench,
        "still",
        &METHOD.replace("n_episodes = 20", "n_episodes = 0"),
    );
    let images = Tensor::<4>::ones([2, 1, 14, 14], &test_device());
    let host = |features: Tensor<2>| -> Vec<f32> { features.into_data().iter().collect() };
    let found = host(still.model.extractor().features(images.clone()));
    let expected = host(bench.backbone().forward(images, &Updates::default()));
    assert_eq!(found, expected);
}

#[test]
fn a_resumed_run_ends_with_the_same_meta_lora() {
    let bench = Bench::new();
    let whole = bits(&run(&bench, "run", METHOD).model);
    let again = bench
        .run("run", &bench.config(METHOD).check().unwrap(), Start::Resume)
        .unwrap();
    assert_eq!(bits(&again.model), whole);
    let twice = run(&bench, "twice", METHOD);
    assert_eq!(bits(&twice.model), whole);
}

/// Images that may be looked at, or may not.
struct Images(Option<(Tensor<4>, Vec<usize>)>);

impl TaskImages for Images {
    fn each_batch(&self, see: &mut dyn FnMut(Tensor<4>, &[usize])) -> Result<(), TrainError> {
        let (images, labels) = self.0.as_ref().expect("no image is read behind the stream");
        see(images.clone(), labels);
        Ok(())
    }
}

#[test]
fn no_image_is_read_behind_the_stream_and_other_heads_are_refused_before_the_first_step() {
    let bench = Bench::new();
    let options = METHOD.split_once('\n').unwrap().1;
    let method = methods::build("lora-recycle", &options.parse().unwrap()).unwrap();
    let begin = |head: &str| {
        let adapter = AdapterSpec::adapter(method.adapter().as_ref(), &shape()).unwrap();
        let device = test_device_autodiff();
        let (backbone, _) = Vit::load(&bench.path("vit.safetensors"), None, &device).unwrap();
        let task = TaskContext {
            task_idx: 0,
            n_tasks: 1,
            n_new_classes: 3,
            seed: 1,
            device,
            head: HeadConfig::named(head).build().unwrap(),
            start: method.column_start(),
        };
        let model = method.before_task(Model::new(backbone, adapter), &task);
        (model, task)
    };
    let (model, task) = begin("linear");
    let pixels = SplitMix64::new(4).fill(6 * 14 * 14, 1.0);
    let images = Tensor::from_data(TensorData::new(pixels, [6, 1, 14, 14]), &test_device());
    let images = Images(Some((images, vec![0, 1, 2, 0, 1, 2])));
    let model = method.review(model.unwrap(), &task, &images).unwrap();
    assert_eq!(
        model.state.get("means").unwrap().lazy_shape().dims(),
        [3, 16]
    );
    let stored = model.state.floats_stored();
    assert_eq!((stored.per_class, stored.total), (16, 48));
    let model = method.after_task(model, &task).unwrap();
    let model = method.after_stream(model, &task, &Images(None)).unwrap();
    assert_eq!(model.adapter.ranks(), [2]);

    let error = begin("ncm").0.unwrap_err().to_string();
    assert!(
        error.contains("`head`") && error.contains("linear"),
        "{error}"
    );
    // Without matching nothing is kept of a class.
    let options = format!("{options}\nmatching = 0.0");
    let method = methods::build("lora-recycle", &options.parse().unwrap()).unwrap();
    let model = method
        .before_task(begin("linear").0.unwrap(), &task)
        .unwrap();
    let model = method.review(model, &task, &images).unwrap();
    assert_eq!(model.state.floats_stored().total, 0);
}
