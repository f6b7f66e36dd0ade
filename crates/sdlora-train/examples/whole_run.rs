//! A whole run as a library: three tasks of five characters, and the class of an image.
//!
//! `cargo run --release --example whole_run`

use std::path::Path;

use burn::tensor::Device;
use sdlora_train::{Event, Observer, RunConfig, RunOptions, TrainError, run, write_model};

const CONFIG: &str = r#"
    seed = 1993
    dataset = "omniglot-evaluation"
    n_epochs = 5
    batch_size = 32
    method = { name = "sdlora", rank = 10 }
    backbone = { weights = "omniglot/vit_omniglot_patch7_28.safetensors" }
    stream = { split = { increment = { init_cls = 5, increment = 5 } }, n_tasks = 3 }
    optimizer = { rule = "sgd", lr = 0.03, momentum = 0.9 }

    [transform]
    side = 28
    channels = "gray"
    polarity = "inverted"
    normalise = { mean = [0.08], std = [0.25] }
"#;

struct Accuracies;

impl Observer for Accuracies {
    #[expect(clippy::print_stdout, reason = "an example shows what happens")]
    fn event(&mut self, event: &Event<'_>) {
        if let Event::Evaluated {
            task_idx, matrix, ..
        } = event
        {
            println!(
                "after task {task_idx}: {:.2?}",
                matrix.last_seen().unwrap_or_default()
            );
        }
    }
}

fn main() -> Result<(), TrainError> {
    let data_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets");
    let folder = tempfile::tempdir().expect("a folder for the run");
    // Everything is checked here, before anything is read or written.
    let plan = RunConfig::parse(CONFIG)?.check()?;
    let device = Device::default();
    let options = RunOptions::new(&data_dir, &device, &folder.path().join("run"));
    let finished = run(&plan, &options, &mut Accuracies)?;
    // `Predictor::load` opens this folder, and so does any program that reads safetensors.
    write_model(&folder.path().join("model"), &finished)
}
