//! Cuts a folder of images into tasks and reads their batches.
//!
//! `cargo run --example stream_a_folder -- photos`, with the layout
//! `photos/<class>/*.jpg`; without a folder, it writes a few pictures and streams those.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sdlora_data::{
    Cache, Dataset, ImageSource, LoaderConfig, Options, StreamConfig, TaskSplit, TaskStream,
    datasets,
};
use sdlora_image::{Channels, TransformConfig, encode_png};

#[expect(clippy::print_stdout, reason = "an example shows what happens")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let toy = tempfile::tempdir()?;
    let root = match std::env::args().nth(1) {
        Some(folder) => std::path::absolute(folder)?,
        None => pictures(toy.path())?,
    };
    let options = Options::none().with("root", root.to_string_lossy().into_owned());
    let dataset: Arc<dyn Dataset> = datasets::open("folder", Path::new("."), &options)?.into();
    // Two classes in every task; a fifth of the images of a class is for testing.
    let split = TaskSplit::Increment {
        init_cls: 2,
        increment: 2,
    };
    let stream = TaskStream::new(dataset.as_ref(), &StreamConfig::new(split))?;
    for (task, idx) in stream.tasks().iter().zip(0..) {
        let transform = TransformConfig::new(32, Channels::Rgb).init()?;
        let images = ImageSource::new(Arc::clone(&dataset), &task.train, transform, Cache::None);
        let loader = LoaderConfig::training(8).init(Arc::new(images), idx)?;
        println!(
            "task {idx}: labels {:?}, {} batches",
            task.new_labels(),
            loader.n_batches()
        );
        for batch in loader.host_epoch(0) {
            println!("  labels {:?}", batch?.labels);
        }
    }
    Ok(())
}

/// Writes four classes of five pictures, each class in its own shade.
fn pictures(folder: &Path) -> Result<PathBuf, Box<dyn std::error::Error>> {
    for (shade, class) in [(40, "ash"), (90, "beech"), (140, "maple"), (190, "oak")] {
        let class = folder.join(class);
        std::fs::create_dir(&class)?;
        for i in 0..5_u8 {
            let png = encode_png(48, 48, &[shade + i; 48 * 48 * 3])?;
            std::fs::write(class.join(format!("{i}.png")), png)?;
        }
    }
    Ok(folder.to_path_buf())
}
