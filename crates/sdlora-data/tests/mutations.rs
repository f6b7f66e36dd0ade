//! Thousands of changed files, or as many as `SDLORA_MUTATIONS` says for each, the same in every run: whatever is in a
//! file, it is read or refused and nothing panics.

#![allow(clippy::unwrap_used, reason = "helpers of tests end the test")]

mod common;

use std::io::Write;
use std::path::Path;

use common::{
    cifar10_pickle, cifar100_record, encoded, idx_images, idx_labels, mutated, open, write, zipped,
};
use image::ImageFormat;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sdlora_data::{ClassOrder, Options};
use sdlora_testkit::mutations::count;

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

/// A tar with one member of 512 bytes or less.
fn tarred(name: &str, contents: &[u8]) -> Vec<u8> {
    let mut tar = vec![0; 512];
    tar[..name.len()].copy_from_slice(name.as_bytes());
    tar[124..135].copy_from_slice(format!("{:011o}", contents.len()).as_bytes());
    tar[148..156].fill(b' ');
    tar[156] = b'0';
    tar[257..263].copy_from_slice(b"ustar\0");
    let sum: u32 = tar.iter().map(|&b| u32::from(b)).sum();
    tar[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    tar.extend(contents);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

#[test]
fn changed_files_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let png = encoded(5, ImageFormat::Png);
    let files = [("a/1.png", png.clone()), ("a/2.png", png.clone())];
    for (name, file, original) in [
        ("mnist", "mnist/t10k-images-idx3-ubyte", idx_images(3)),
        (
            "mnist",
            "mnist/t10k-labels-idx1-ubyte",
            idx_labels(&[7, 2, 7]),
        ),
        (
            "cifar100",
            "cifar-100-binary/test.bin",
            cifar100_record(4, 0),
        ),
        ("cifar10", "cifar10/test_batch", cifar10_pickle(&[1])),
        ("folder", "folder", zipped(&files)),
        ("folder", "folder", tarred("a/1.png", &png)),
        ("folder", "folder", gzipped(&tarred("a/1.png", &png))),
    ] {
        write(dir.path(), "mnist/t10k-images-idx3-ubyte", &idx_images(3));
        write(
            dir.path(),
            "mnist/t10k-labels-idx1-ubyte",
            &idx_labels(&[7, 2, 7]),
        );
        write(
            dir.path(),
            "cifar-100-binary/train.bin",
            &cifar100_record(4, 0),
        );
        (1..=5).for_each(|i| {
            write(
                dir.path(),
                &format!("cifar10/data_batch_{i}"),
                &cifar10_pickle(&[1]),
            );
        });
        let options = match name {
            "mnist" => Options::none().with("first_of_test", 1),
            _ => Options::none(),
        };
        let mut n_refused = 0;
        for _ in 0..count(680) {
            write(dir.path(), file, &mutated(&original, &mut rng));
            n_refused += usize::from(open(name, dir.path(), &options).is_err());
        }
        assert!(n_refused > 0, "{file}: no change was noticed");
    }
}

/// The data sets whose images are told apart by a list, with the list.
fn listed(dir: &Path) -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let png = encoded(5, ImageFormat::Png);
    for name in [
        "gtsrb/GTSRB/Final_Training/Images/00001/00000_00000.ppm",
        "gtsrb/GTSRB/Final_Test/Images/00000.ppm",
        "cub200/images/001.Auk/a.jpg",
        "cub200/images/001.Auk/b.jpg",
        "tiny-imagenet/train/n01/images/n01_0.JPEG",
        "tiny-imagenet/val/images/val_0.JPEG",
        "domainnet/real/ant/0.jpg",
        "domainnet/real/ant/1.jpg",
        "folder/a/1.png",
        "folder/a/2.png",
    ] {
        write(dir, name, &png);
    }
    write(
        dir,
        "cub200/images.txt",
        b"1 001.Auk/a.jpg\n2 001.Auk/b.jpg\n",
    );
    vec![
        (
            "gtsrb",
            "gtsrb/GT-final_test.csv",
            b"Filename;Width;ClassId\n00000.ppm;6;1\n".to_vec(),
        ),
        (
            "cub200",
            "cub200/train_test_split.txt",
            b"1 1\n2 0\n".to_vec(),
        ),
        (
            "cub200",
            "cub200/images.txt",
            b"1 001.Auk/a.jpg\n2 001.Auk/b.jpg\n".to_vec(),
        ),
        (
            "tiny-imagenet",
            "tiny-imagenet/val/val_annotations.txt",
            b"val_0.JPEG\tn01\t0\t0\t1\t1\n".to_vec(),
        ),
        (
            "domainnet",
            "domainnet/real_train.txt",
            b"real/ant/0.jpg 0\n".to_vec(),
        ),
        (
            "domainnet",
            "domainnet/real_test.txt",
            b"real/ant/1.jpg 0\n".to_vec(),
        ),
        (
            "folder",
            "folder/list.csv",
            b"path,label,split\na/1.png,cat,train\na/2.png,\"cat\",test\n".to_vec(),
        ),
    ]
}

#[test]
fn changed_lists_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let lists = listed(dir.path());
    let write_all = || {
        lists
            .iter()
            .for_each(|(_, file, text)| write(dir.path(), file, text))
    };
    for (name, file, text) in &lists {
        write_all();
        let options = match *name {
            "folder" => Options::none().with("csv", "list.csv"),
            _ => Options::none(),
        };
        open(name, dir.path(), &options).unwrap();
        let mut n_refused = 0;
        for _ in 0..count(150) {
            write(dir.path(), file, &mutated(text, &mut rng));
            let opened = open(name, dir.path(), &options);
            n_refused += usize::from(opened.is_err());
            // Skipping never makes a readable data set unreadable.
            let skipped = open(name, dir.path(), &options.clone().with("skip_bad", true));
            assert!(opened.is_err() || skipped.is_ok(), "{file}");
        }
        // An image that no list names may be drawn to either half, so DomainNet refuses little.
        assert!(
            n_refused > 0 || *name == "domainnet",
            "{file}: no change was noticed"
        );
    }
}

#[test]
fn changed_class_orders_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let names: Vec<String> = ["ant", "bus", "cat"].map(str::to_owned).to_vec();
    let path = dir.path().join("order.txt");
    for text in [&b"2\n0\n1\n"[..], b"cat\nant\n"] {
        for _ in 0..count(300) {
            std::fs::write(&path, mutated(text, &mut rng)).unwrap();
            if let Ok(order) = ClassOrder::File(path.clone()).resolve(&names) {
                assert!(order.iter().all(|&class| class < 3));
            }
        }
    }
}
