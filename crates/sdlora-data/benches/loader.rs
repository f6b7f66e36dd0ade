//! Images a second from JPEG files to normalised numbers: the published training transform at 224 pixels.
//!
//! `cargo bench -p sdlora-data --bench loader -- FOLDER [WORKERS]` reads the `.jpg` files of a folder.
//! `sdlora-testkit/python/bench_loader.py` makes such a folder, runs this program and PyTorch's loader in turn, and
//! prints both numbers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use sdlora_data::{
    Cache, DataError, Dataset, Group, ImageSource, LoaderConfig, Sample, SampleIdx, Split,
    StreamConfig, TaskStream,
};
use sdlora_image::{Image, TransformConfig};

/// The JPEG files of one folder, all of one class.
struct Folder {
    paths: Vec<PathBuf>,
    classes: Vec<String>,
    train: Vec<Sample>,
    test: Vec<Sample>,
}

impl Folder {
    fn open(folder: &str) -> Result<Self, DataError> {
        let io = |source| DataError::Io {
            path: folder.into(),
            source,
        };
        let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
            .map_err(io)?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|ext| ext == "jpg"))
            .collect();
        paths.sort();
        let sample = |path: &PathBuf| Sample {
            class_id: 0,
            name: path.display().to_string(),
        };
        Ok(Self {
            classes: vec!["all".to_owned()],
            train: paths.iter().map(sample).collect(),
            test: paths.iter().take(1).map(sample).collect(),
            paths,
        })
    }
}

impl Dataset for Folder {
    fn name(&self) -> &str {
        "folder"
    }

    fn class_names(&self) -> &[String] {
        &self.classes
    }

    fn groups(&self) -> &[Group] {
        &[]
    }

    fn samples(&self, split: Split) -> &[Sample] {
        match split {
            Split::Train => &self.train,
            Split::Test => &self.test,
        }
    }

    fn image(&self, _: Split, idx: SampleIdx) -> Result<Image, DataError> {
        let path = &self.paths[idx];
        let bytes = std::fs::read(path).map_err(|source| DataError::Io {
            path: path.clone(),
            source,
        })?;
        Ok(Image::decode(&bytes, &path.display().to_string())?)
    }
}

#[expect(
    clippy::print_stdout,
    reason = "the numbers are what this program is for"
)]
fn main() -> Result<(), DataError> {
    // Cargo adds `--bench` to what follows `--`.
    let mut arguments = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let Some(folder) = arguments.next() else {
        println!("pass a folder of .jpg files, see the head of this file");
        return Ok(());
    };
    let workers = arguments.next().and_then(|text| text.parse().ok());
    let dataset = Arc::new(Folder::open(&folder)?);
    let stream = TaskStream::new(dataset.as_ref(), &StreamConfig::joint())?;
    let transform = TransformConfig::imagenet()
        .with_normalise([0.5], [0.5])
        .init()?;
    let train = &stream.tasks()[0].train;
    let source = Arc::new(ImageSource::new(dataset, train, transform, Cache::None));
    let n = source.set().len();
    let config = LoaderConfig {
        workers,
        ..LoaderConfig::training(64)
    };
    let loader = config.init(source, 0)?;
    for epoch in 0..2 {
        let start = Instant::now();
        let mut sum = 0.0;
        for batch in loader.host_epoch(epoch) {
            sum += f64::from(batch?.pixels[0]);
        }
        let rate = n as f64 / start.elapsed().as_secs_f64();
        // The first epoch also fills the file cache.
        println!("epoch {epoch}: {rate:.1} images/s (checksum {sum:.3})");
    }
    Ok(())
}
