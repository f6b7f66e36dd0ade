//! Small files of every format, and changed ones.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests end the test")]

use std::io::Write;
use std::path::Path;

use image::{DynamicImage, ImageBuffer, ImageFormat, Rgb};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use sdlora_data::{Dataset, Options, Split, datasets};

pub fn encoded(value: u8, format: ImageFormat) -> Vec<u8> {
    let image = ImageBuffer::from_fn(6, 5, |x, y| Rgb([value, x as u8 * 40, y as u8 * 50]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    DynamicImage::ImageRgb8(image)
        .write_to(&mut bytes, format)
        .unwrap();
    bytes.into_inner()
}

pub fn write(dir: &Path, name: &str, bytes: &[u8]) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

pub fn zipped(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in files {
        let options = zip::write::SimpleFileOptions::default();
        writer.start_file(*name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// Opens a data set and decodes all its images.
pub fn open(name: &str, dir: &Path, options: &Options) -> Result<Box<dyn Dataset>, String> {
    let dataset = datasets::open(name, dir, options).map_err(|error| error.to_string())?;
    for split in [Split::Train, Split::Test] {
        for idx in 0..dataset.samples(split).len() {
            dataset
                .image(split, idx)
                .map_err(|error| error.to_string())?;
        }
    }
    Ok(dataset)
}

pub fn cifar100_record(coarse: u8, fine: u8) -> Vec<u8> {
    let planes = [10u8, 20, 30].iter().flat_map(|&v| vec![v; 1024]);
    [coarse, fine].into_iter().chain(planes).collect()
}

pub fn cifar10_pickle(labels: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x80\x02}q\x01(U\x04data".to_vec();
    bytes.extend(
        b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x00K\x00\x86",
    );
    bytes.extend(b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R\x89T");
    bytes.extend((labels.len() as u32 * 3072).to_le_bytes());
    bytes.extend(vec![9; labels.len() * 3072]);
    bytes.extend(b"tbU\x06labels]q\x03(");
    labels.iter().for_each(|&label| bytes.extend([b'K', label]));
    bytes.extend(b"eu.");
    bytes
}

pub fn idx_images(n: u8) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, 3, 0, 0, 0, n, 0, 0, 0, 2, 0, 0, 0, 3];
    bytes.extend((0..n * 6).collect::<Vec<u8>>());
    bytes
}

pub fn idx_labels(labels: &[u8]) -> Vec<u8> {
    [&[0, 0, 8, 1, 0, 0, 0, labels.len() as u8], labels].concat()
}

/// Bytes of `original` with up to four changes; some are cut short.
pub fn mutated(original: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..rng.random_range(1..=4) {
        // Structure lies at both ends of most formats.
        let at = match rng.random_range(0..3) {
            0 => rng.random_range(0..bytes.len().min(64)),
            1 => bytes.len() - 1 - rng.random_range(0..bytes.len().min(128)),
            _ => rng.random_range(0..bytes.len()),
        };
        bytes[at] = match rng.random_range(0..4) {
            0 => 0xff,
            1 => 0,
            2 => bytes[at] ^ (1 << rng.random_range(0..8)),
            _ => rng.random(),
        };
    }
    if rng.random_range(0..4) == 0 {
        bytes.truncate(rng.random_range(0..bytes.len()));
    }
    bytes
}
