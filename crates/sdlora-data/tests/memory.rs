//! Memory follows what is needed, not what an archive claims.

#![allow(clippy::unwrap_used, reason = "helpers of tests end the test")]

mod common;

use std::io::Write;
use std::path::Path;

use common::{encoded, idx_labels, write};
use image::ImageFormat;
use sdlora_data::{Options, Split, datasets};
use sdlora_testkit::allocator::{Counting, peak_of};

#[global_allocator]
static ALLOCATOR: Counting = Counting::moving();

/// Most bytes that `work` had at a time, beyond those before.
fn most(work: impl FnOnce()) -> usize {
    peak_of(work).0
}

const MIB: usize = 1 << 20;

/// Zeros, written in pieces.
fn zeros(mut writer: impl Write, n_bytes: usize) {
    let piece = vec![0; MIB];
    for _ in 0..n_bytes / MIB {
        writer.write_all(&piece).unwrap();
    }
}

/// Opens a data set and decodes its first image; the error of either.
fn first(name: &str, dir: &Path, options: &Options) -> Result<(), String> {
    let dataset = datasets::open(name, dir, options).map_err(|error| error.to_string())?;
    let image = dataset.image(Split::Train, 0);
    image.map(drop).map_err(|error| error.to_string())
}

/// One test, as the allocator counts what all threads take.
#[test]
fn a_small_file_does_not_take_much_memory() {
    let dir = tempfile::tempdir().unwrap();
    // An "image" of 400 MiB of zeros in a zip of 400 kB.
    let path = dir.path().join("bomb.zip");
    let mut zip = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
    let options = zip::write::SimpleFileOptions::default();
    zip.start_file("cat/1.png", options).unwrap();
    zeros(&mut zip, 400 * MIB);
    // Behind the first bytes of a PNG, and not of the size that is read.
    zip.start_file("cat/2.png", options).unwrap();
    zip.write_all(&encoded(1, ImageFormat::Png)).unwrap();
    zeros(&mut zip, 100 * MIB);
    zip.start_file("cat/3.png", options).unwrap();
    zip.write_all(&encoded(1, ImageFormat::Png)).unwrap();
    zeros(&mut zip, 400 * MIB);
    zip.finish().unwrap();
    let own = Options::none().with("root", "bomb.zip");
    let dataset = datasets::open("folder", dir.path(), &own).unwrap();
    let samples = [Split::Train, Split::Test].into_iter().flat_map(|split| {
        dataset
            .samples(split)
            .iter()
            .enumerate()
            .map(move |(i, s)| (split, i, s))
    });
    for (split, idx, sample) in samples {
        let taken = most(|| {
            let image = dataset.image(split, idx);
            // The second is an image with something behind it.
            assert_eq!(image.is_ok(), sample.name.contains('2'), "{}", sample.name);
        });
        // Little more than what is in the file.
        let limit = if sample.name.contains('2') { 110 } else { 2 };
        assert!(taken < limit * MIB, "{}: {} MiB", sample.name, taken / MIB);
    }

    // A tar of 300 MiB of zeros in 300 kB.
    let path = dir.path().join("bomb.tar.gz");
    let file = std::fs::File::create(&path).unwrap();
    let mut gz = flate2::write::GzEncoder::new(file, flate2::Compression::best());
    zeros(&mut gz, 300 * MIB);
    gz.finish().unwrap();
    let own = Options::none().with("root", "bomb.tar.gz");
    let taken = most(|| {
        let error = first("folder", dir.path(), &own).unwrap_err();
        assert!(error.contains("bomb.tar.gz"), "{error}");
    });
    assert!(taken < 130 * MIB, "{} MiB", taken / MIB);

    // 18 bytes are asked for, 300 MiB come.
    for (pixels, asked) in [(300, [0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 3]), (1, [0x7f; 12])] {
        let path = dir.path().join("mnist/t10k-images-idx3-ubyte.gz");
        write(dir.path(), "mnist/t10k-images-idx3-ubyte.gz", b"");
        let file = std::fs::File::create(&path).unwrap();
        let mut gz = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        gz.write_all(&[0, 0, 8, 3]).unwrap();
        gz.write_all(&asked).unwrap();
        zeros(&mut gz, pixels * MIB);
        gz.finish().unwrap();
        write(
            dir.path(),
            "mnist/t10k-labels-idx1-ubyte",
            &idx_labels(&[7, 2, 7]),
        );
        let options = Options::none().with("first_of_test", 1);
        let taken = most(|| {
            let error = first("mnist", dir.path(), &options).unwrap_err();
            assert!(error.contains("t10k"), "{error}");
        });
        // The packed file, and little more.
        assert!(taken < 4 * MIB, "{} MiB", taken / MIB);
    }
}
