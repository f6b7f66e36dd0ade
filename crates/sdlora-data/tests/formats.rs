//! Small data sets of every format: read right, refused with the name of the file when wrong, never a panic.

#![allow(clippy::unwrap_used, reason = "helpers of tests end the test")]

use std::io::Write;
use std::path::Path;

use image::{DynamicImage, ImageBuffer, ImageFormat, Rgb};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sdlora_data::{
    Dataset, GroupOrder, Image, Options, Split, StreamConfig, TaskSplit, TaskStream, datasets,
};

fn encoded(value: u8, format: ImageFormat) -> Vec<u8> {
    let image = ImageBuffer::from_fn(6, 5, |x, y| Rgb([value, x as u8 * 40, y as u8 * 50]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    DynamicImage::ImageRgb8(image)
        .write_to(&mut bytes, format)
        .unwrap();
    bytes.into_inner()
}

fn write(dir: &Path, name: &str, bytes: &[u8]) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn zipped(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in files {
        let options = zip::write::SimpleFileOptions::default();
        writer.start_file(*name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// Opens a data set and decodes all its images.
fn open(name: &str, dir: &Path, options: &Options) -> Result<Box<dyn Dataset>, String> {
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

fn refusal(name: &str, dir: &Path, options: &Options) -> String {
    open(name, dir, options).err().expect("it was opened")
}

fn counts(dataset: &dyn Dataset) -> (usize, usize) {
    (
        dataset.samples(Split::Train).len(),
        dataset.samples(Split::Test).len(),
    )
}

/// Images made with Pillow 13.0; the expected pixels are those of its `convert("RGB")`.
#[test]
fn unusual_images_are_read_as_pillow_reads_them() {
    let decode = |bytes: &[u8]| Image::decode(bytes, "x").unwrap().into_rgb();
    let palette = decode(include_bytes!("images/palette.png"));
    assert_eq!(palette.data(), [9, 8, 7, 255, 0, 0, 0, 0, 0]);
    let bits = decode(include_bytes!("images/bits.png"));
    assert_eq!(bits.data(), [255, 255, 255, 0, 0, 0, 255, 255, 255]);
    // The rotation in the EXIF data would make it 2 wide and 4 high.
    let rotated = decode(include_bytes!("images/rotated.jpg"));
    assert_eq!((rotated.width(), rotated.height()), (4, 2));
    let cmyk = decode(include_bytes!("images/cmyk.jpg"));
    for (found, expected) in cmyk.data().iter().zip([125u8, 84, 44].iter().cycle()) {
        assert!(
            found.abs_diff(*expected) <= 3,
            "{found} instead of {expected}"
        );
    }
}

#[test]
fn folders_are_read_in_each_layout() {
    let dir = tempfile::tempdir().unwrap();
    let png = encoded(1, ImageFormat::Png);
    for half in ["train", "val"] {
        for class in ["cat", "dog"] {
            write(
                dir.path(),
                &format!("halves/{half}/{class}/deep/1.PNG"),
                &png,
            );
        }
    }
    let halves = open(
        "folder",
        dir.path(),
        &Options::none().with("root", "halves"),
    )
    .unwrap();
    assert_eq!(halves.class_names(), ["cat", "dog"]);
    assert_eq!(counts(halves.as_ref()), (2, 2));

    for class in ["cat", "dog"] {
        for i in 0..10 {
            write(dir.path(), &format!("one/{class}/{i}.jpg"), &png);
        }
    }
    write(dir.path(), "one/notes.txt", b"");
    let options = Options::none()
        .with("root", "one")
        .with("test_fraction", 0.3);
    let one = open("folder", dir.path(), &options).unwrap();
    assert_eq!(counts(one.as_ref()), (14, 6));
    assert!(one.notes()[0].contains("notes.txt"), "{:?}", one.notes());
    let again = open("folder", dir.path(), &options).unwrap();
    assert_eq!(one.samples(Split::Test), again.samples(Split::Test));
    let other = open("folder", dir.path(), &options.with("seed", 7)).unwrap();
    assert_ne!(one.samples(Split::Test), other.samples(Split::Test));

    write(dir.path(), "table/a b.png", &png);
    write(dir.path(), "table/c.png", &png);
    write(
        dir.path(),
        "table/labels.csv",
        b"path,label,split\n\"a b.png\",\"cat, big\",train\nc.png,\"cat, big\",test\n",
    );
    let options = Options::none()
        .with("root", "table")
        .with("csv", "labels.csv");
    let table = open("folder", dir.path(), &options).unwrap();
    assert_eq!(table.class_names(), ["cat, big"]);
    assert_eq!(table.samples(Split::Test)[0].name, "c.png");
    write(dir.path(), "table/labels.csv", b"c.png,cat\nd.png,cat\n");
    let message = refusal("folder", dir.path(), &options);
    assert!(
        message.contains("d.png") && message.contains("line 2"),
        "{message}"
    );
}

#[test]
fn a_bad_image_is_named_or_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let png = encoded(1, ImageFormat::Png);
    for half in ["train", "test"] {
        for (class, n) in [("cat", 2), ("dog", 2), ("eel", 1)] {
            for i in 0..n {
                write(dir.path(), &format!("folder/{half}/{class}/{i}.png"), &png);
            }
        }
    }
    write(dir.path(), "folder/train/dog/0.png", b"");
    let message = refusal("folder", dir.path(), &Options::none());
    assert!(
        message.contains("train/dog/0.png") && message.contains("skip_bad"),
        "{message}"
    );
    write(dir.path(), "folder/train/dog/0.png", &png[..50]);
    write(dir.path(), "folder/test/eel/0.png", b"");
    let skipped = open(
        "folder",
        dir.path(),
        &Options::none().with("skip_bad", true),
    )
    .unwrap();
    assert_eq!(skipped.class_names(), ["cat", "dog"]);
    assert_eq!(counts(skipped.as_ref()), (3, 4));
    let notes = skipped.notes().join("\n");
    for part in [
        "2 unreadable",
        "train/dog/0.png",
        "`eel` has no test images",
    ] {
        assert!(notes.contains(part), "{notes}");
    }
    std::fs::remove_dir_all(dir.path().join("folder/test/eel")).unwrap();
    let message = refusal(
        "folder",
        dir.path(),
        &Options::none().with("classes", vec!["eel"]),
    );
    assert!(message.contains("`eel` has no test images"), "{message}");
    let message = refusal(
        "folder",
        dir.path(),
        &Options::none().with("classes", vec!["fox"]),
    );
    assert!(message.contains("fox"), "{message}");
}

#[test]
fn classes_that_differ_in_case_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let png = encoded(1, ImageFormat::Png);
    let files = [("Cat/1.png", png.clone()), ("cat/2.png", png)];
    write(dir.path(), "a.zip", &zipped(&files));
    let message = refusal("folder", dir.path(), &Options::none().with("root", "a.zip"));
    assert!(message.contains("upper and lower case"), "{message}");
}

#[test]
fn tiny_imagenet_reads_its_annotations() {
    let dir = tempfile::tempdir().unwrap();
    let jpeg = encoded(1, ImageFormat::Jpeg);
    let top = "tiny-imagenet-200";
    let annotations = "val_0.JPEG\tn02\t0\t0\t1\t1\nval_1.JPEG\tn01\t0\t0\t1\t1\n";
    let files = [
        (format!("{top}/train/n01/images/n01_0.JPEG"), jpeg.clone()),
        (format!("{top}/train/n02/images/n02_0.JPEG"), jpeg.clone()),
        (format!("{top}/val/images/val_0.JPEG"), jpeg.clone()),
        (format!("{top}/val/images/val_1.JPEG"), jpeg.clone()),
        (format!("{top}/test/images/test_0.JPEG"), jpeg),
        (format!("{top}/val/val_annotations.txt"), annotations.into()),
        (
            format!("{top}/words.txt"),
            "n01\tgoldfish, Carassius\nn02\tnewt\n".into(),
        ),
    ];
    let files: Vec<_> = files.iter().map(|(n, b)| (n.as_str(), b.clone())).collect();
    write(
        dir.path(),
        "tiny-imagenet/tiny-imagenet-200.zip",
        &zipped(&files),
    );
    let tiny = open("tiny-imagenet", dir.path(), &Options::none()).unwrap();
    assert_eq!(tiny.class_names(), ["n01 goldfish", "n02 newt"]);
    assert_eq!(counts(tiny.as_ref()), (2, 2));
    assert_eq!(tiny.samples(Split::Test)[0].class_id, 1);
    assert!(tiny.notes()[0].contains("2 classes"), "{:?}", tiny.notes());

    write(dir.path(), "tiny-imagenet/more.zip", &zipped(&files));
    let message = refusal("tiny-imagenet", dir.path(), &Options::none());
    assert!(
        message.contains("more.zip") && message.contains("root"),
        "{message}"
    );
}

#[test]
fn domainnet_has_domains_as_groups() {
    let dir = tempfile::tempdir().unwrap();
    let png = encoded(1, ImageFormat::Png);
    for domain in ["clipart", "real"] {
        for class in ["ant", "bus"] {
            for i in 0..5 {
                write(
                    dir.path(),
                    &format!("domainnet/{domain}/{class}/{i}.jpg"),
                    &png,
                );
            }
        }
    }
    write(
        dir.path(),
        "domainnet/real_train.txt",
        b"real/ant/0.jpg 0\nreal/bus/0.jpg 1\n",
    );
    let rest = ["ant", "bus"].map(|class| {
        (1..5)
            .map(|i| format!("real/{class}/{i}.jpg 0\n"))
            .collect::<String>()
    });
    write(
        dir.path(),
        "domainnet/real_test.txt",
        rest.concat().as_bytes(),
    );
    let merged = open("domainnet", dir.path(), &Options::none()).unwrap();
    assert_eq!(merged.class_names(), ["ant", "bus"]);
    // Clipart is drawn 80 to 20, real is as listed.
    assert_eq!(counts(merged.as_ref()), (8 + 2, 2 + 8));
    assert_eq!(merged.domains(), ["clipart", "real"]);
    for (idx, sample) in merged.samples(Split::Test).iter().enumerate() {
        let domain = merged.domain_of(Split::Test, idx).unwrap();
        assert!(sample.name.starts_with(merged.domains()[domain].as_str()));
    }
    let config = StreamConfig::new(TaskSplit::PerDomain {
        order: GroupOrder::Named(vec!["real".into(), "clipart".into()]),
    });
    let stream = TaskStream::new(merged.as_ref(), &config).unwrap();
    let sizes: Vec<_> = stream
        .tasks()
        .iter()
        .map(|task| (task.train.as_ref().len(), task.test.as_ref().len()))
        .collect();
    assert_eq!(sizes, [(2, 8), (8, 2)]);
    let options = Options::none().with("by_domain", true);
    let apart = open("domainnet", dir.path(), &options).unwrap();
    let groups: Vec<_> = apart
        .groups()
        .iter()
        .map(|g| (g.name.as_str(), g.classes.clone()))
        .collect();
    assert_eq!(groups, [("clipart", vec![0, 1]), ("real", vec![2, 3])]);
    assert_eq!(apart.class_names()[2], "real/ant");
    let message = refusal(
        "domainnet",
        dir.path(),
        &Options::none().with("domains", vec!["photo"]),
    );
    assert!(
        message.contains("photo") && message.contains("quickdraw"),
        "{message}"
    );
}

#[test]
fn domainnet_reads_its_archives_as_they_come() {
    let dir = tempfile::tempdir().unwrap();
    let png = encoded(1, ImageFormat::Png);
    for domain in ["clipart", "real"] {
        let names: Vec<String> = (0..2)
            .flat_map(|i| ["ant", "bus"].map(|class| format!("{domain}/{class}/{i}.jpg")))
            .collect();
        let files: Vec<_> = names.iter().map(|n| (n.as_str(), png.clone())).collect();
        write(
            dir.path(),
            &format!("domainnet/{domain}.zip"),
            &zipped(&files),
        );
        for (half, i) in [("train", 1), ("test", 0)] {
            let list = format!("{domain}/ant/{i}.jpg 0\n{domain}/bus/{i}.jpg 1\n");
            let name = format!("domainnet/{domain}_{half}.txt");
            write(dir.path(), &name, list.as_bytes());
        }
    }
    let dataset = open("domainnet", dir.path(), &Options::none()).unwrap();
    assert_eq!(dataset.domains(), ["clipart", "real"]);
    assert_eq!(counts(dataset.as_ref()), (4, 4));
    let names: Vec<_> = dataset
        .samples(Split::Test)
        .iter()
        .map(|s| &s.name)
        .collect();
    assert!(
        names.iter().all(|name| name.ends_with("/0.jpg")),
        "{names:?}"
    );
    assert!(dataset.image(Split::Train, 3).is_ok());
}

#[test]
fn folders_of_domains_share_their_classes() {
    let dir = tempfile::tempdir().unwrap();
    let png = encoded(1, ImageFormat::Png);
    for (domain, class, n) in [("photo", "ant", 5), ("photo", "bus", 5), ("art", "ant", 10)] {
        for i in 0..n {
            write(dir.path(), &format!("mine/{domain}/{class}/{i}.png"), &png);
        }
    }
    let options = Options::none()
        .with("root", "mine")
        .with("domain_folders", true);
    let dataset = open("folder", dir.path(), &options).unwrap();
    assert_eq!(dataset.class_names(), ["ant", "bus"]);
    assert_eq!(dataset.domains(), ["art", "photo"]);
    // 80 to 20 inside each domain.
    let config = StreamConfig::new(TaskSplit::PerDomain {
        order: GroupOrder::Natural,
    });
    let stream = TaskStream::new(dataset.as_ref(), &config).unwrap();
    let sizes: Vec<_> = stream
        .tasks()
        .iter()
        .map(|task| (task.train.as_ref().len(), task.test.as_ref().len()))
        .collect();
    assert_eq!(sizes, [(8, 2), (8, 2)]);
    assert_eq!(stream.tasks()[1].classes, [0, 1]);

    for half in ["train", "test"] {
        write(dir.path(), &format!("halves/{half}/art/Ant/0.png"), &png);
        write(dir.path(), &format!("halves/{half}/photo/ant/1.png"), &png);
    }
    let options = options.with("root", "halves");
    let message = refusal("folder", dir.path(), &options);
    assert!(message.contains("upper and lower case"), "{message}");
    let message = refusal("folder", dir.path(), &options.with("csv", "x.csv"));
    assert!(message.contains("domain_folders"), "{message}");
}

#[test]
fn cub_reads_its_lists() {
    let dir = tempfile::tempdir().unwrap();
    let png = encoded(1, ImageFormat::Png);
    let mut images = String::new();
    for (number, path) in ["001.A/x.jpg", "001.A/y.jpg", "002.B/x.jpg", "002.B/y.jpg"]
        .iter()
        .enumerate()
    {
        write(dir.path(), &format!("CUB_200_2011/images/{path}"), &png);
        images += &format!("{} {path}\n", number + 1);
    }
    write(dir.path(), "CUB_200_2011/images.txt", images.as_bytes());
    write(
        dir.path(),
        "CUB_200_2011/train_test_split.txt",
        b"1 1\n2 0\n3 0\n4 1\n",
    );
    let cub = open("cub200", dir.path(), &Options::none()).unwrap();
    let names: Vec<_> = cub
        .samples(Split::Train)
        .iter()
        .map(|s| s.name.as_str())
        .collect();
    assert_eq!(names, ["images/001.A/x.jpg", "images/002.B/y.jpg"]);
}

fn cifar100_record(coarse: u8, fine: u8) -> Vec<u8> {
    let planes = [10u8, 20, 30].iter().flat_map(|&v| vec![v; 1024]);
    [coarse, fine].into_iter().chain(planes).collect()
}

#[test]
fn cifar_100_reads_planes_and_superclasses() {
    let dir = tempfile::tempdir().unwrap();
    let records = [
        cifar100_record(4, 0),
        cifar100_record(1, 99),
        cifar100_record(4, 3),
    ];
    write(dir.path(), "cifar-100-binary/train.bin", &records.concat());
    write(dir.path(), "cifar-100-binary/test.bin", &records[0]);
    let cifar = open("cifar100", dir.path(), &Options::none()).unwrap();
    assert_eq!(counts(cifar.as_ref()), (3, 1));
    let groups: Vec<_> = cifar.groups().iter().map(|g| g.classes.clone()).collect();
    assert_eq!(groups, [vec![99], vec![0, 3]]);
    let image = cifar.image(Split::Train, 1).unwrap();
    assert_eq!(image.data()[..6], [10, 20, 30, 10, 20, 30]);

    for (bytes, part) in [
        (cifar100_record(20, 0), "superclass 20"),
        (cifar100_record(0, 100), "label 100"),
        (cifar100_record(5, 0), "superclass 5"),
        (vec![0; 3073], "no multiple"),
    ] {
        write(dir.path(), "cifar-100-binary/test.bin", &bytes);
        let message = refusal("cifar100", dir.path(), &Options::none());
        assert!(
            message.contains(part) && message.contains("test.bin"),
            "{message}"
        );
    }
}

/// A pickle as Python 2 wrote it: a dictionary with an array of bytes and a list of labels.
fn cifar10_pickle(labels: &[u8]) -> Vec<u8> {
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

#[test]
fn cifar_10_reads_pickles() {
    let dir = tempfile::tempdir().unwrap();
    let folder = "cifar10/cifar-10-batches-py";
    for i in 1..=5 {
        write(
            dir.path(),
            &format!("{folder}/data_batch_{i}"),
            &cifar10_pickle(&[i, 9]),
        );
    }
    write(
        dir.path(),
        &format!("{folder}/test_batch"),
        &cifar10_pickle(&[3]),
    );
    let cifar = open("cifar10", dir.path(), &Options::none()).unwrap();
    assert_eq!(counts(cifar.as_ref()), (10, 1));
    assert_eq!(cifar.samples(Split::Test)[0].class_id, 3);
    write(
        dir.path(),
        &format!("{folder}/test_batch"),
        &cifar10_pickle(&[10]),
    );
    let message = refusal("cifar10", dir.path(), &Options::none());
    assert!(
        message.contains("test_batch") && message.contains("label 10"),
        "{message}"
    );
}

fn idx_images(n: u8) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, 3, 0, 0, 0, n, 0, 0, 0, 2, 0, 0, 0, 3];
    bytes.extend((0..n * 6).collect::<Vec<u8>>());
    bytes
}

fn idx_labels(labels: &[u8]) -> Vec<u8> {
    [&[0, 0, 8, 1, 0, 0, 0, labels.len() as u8], labels].concat()
}

#[test]
fn idx_files_are_read_and_half_a_set_is_split() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "mnist/t10k-images-idx3-ubyte", &idx_images(3));
    write(
        dir.path(),
        "mnist/t10k-labels-idx1-ubyte",
        &idx_labels(&[7, 2, 7]),
    );
    let message = refusal("mnist", dir.path(), &Options::none());
    assert!(
        message.contains("train-images") && message.contains("first_of_test"),
        "{message}"
    );
    let options = Options::none().with("first_of_test", 2);
    let mnist = open("mnist", dir.path(), &options).unwrap();
    assert_eq!(counts(mnist.as_ref()), (2, 1));
    let image = mnist.image(Split::Test, 0).unwrap();
    assert_eq!((image.width(), image.height()), (3, 2));
    assert_eq!(image.data(), [12, 13, 14, 15, 16, 17]);
    for (labels, part) in [(&[7, 10, 7][..], "label 10"), (&[7, 2], "2 labels for 3")] {
        write(
            dir.path(),
            "mnist/t10k-labels-idx1-ubyte",
            &idx_labels(labels),
        );
        let message = refusal("mnist", dir.path(), &options);
        assert!(message.contains(part), "{message}");
    }
}

/// Bytes of `original` with up to four changes; some are cut short.
fn mutated(original: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
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
fn ten_thousand_mutations_never_panic() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for format in [
        ImageFormat::Png,
        ImageFormat::Jpeg,
        ImageFormat::Bmp,
        ImageFormat::WebP,
        ImageFormat::Pnm,
    ] {
        let original = encoded(5, format);
        let mut n_decoded = 0;
        for _ in 0..1200 {
            n_decoded += usize::from(Image::decode(&mutated(&original, &mut rng), "x").is_ok());
        }
        assert!(n_decoded < 1200, "{format:?}: no change was noticed");
    }
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
        for _ in 0..680 {
            write(dir.path(), file, &mutated(&original, &mut rng));
            n_refused += usize::from(open(name, dir.path(), &options).is_err());
        }
        assert!(n_refused > 0, "{file}: no change was noticed");
    }
}

/// Run with `SDLORA_DATA=<folder of data sets> cargo test -p sdlora-data --test formats -- --ignored`.
#[test]
#[ignore = "needs data sets that do not ship with the project"]
fn given_data_sets_open() {
    let data_dir =
        std::env::var("SDLORA_DATA").expect("SDLORA_DATA names the folder of the data sets");
    let data_dir = Path::new(&data_dir);
    let root = |root: &str| Options::none().with("root", root);
    let mut n_opened = 0;
    for (name, folder, options, train, test) in [
        (
            "cifar100",
            "cifar-100-binary",
            Options::none(),
            18_000,
            4_000,
        ),
        ("gtsrb", "gtsrb", Options::none(), 43 * 90, 43 * 30),
        (
            "mnist",
            "mnist-t10k",
            Options::none().with("first_of_test", 8000),
            8_000,
            2_000,
        ),
        (
            "tiny-imagenet",
            "tiny-imagenet",
            root("tiny-imagenet/tiny-imagenet-base100.zip"),
            20_000,
            2_000,
        ),
        (
            "tiny-imagenet",
            "tiny-imagenet",
            root("tiny-imagenet/tiny-imagenet-inc100.zip"),
            6_000,
            2_000,
        ),
    ] {
        if !data_dir.join(folder).exists() {
            continue;
        }
        let dataset = open(name, data_dir, &options).unwrap();
        assert_eq!(counts(dataset.as_ref()), (train, test), "{name}");
        assert!(!dataset.notes().is_empty(), "{name} is a subset");
        n_opened += 1;
    }
    assert!(n_opened > 0, "no data set in {}", data_dir.display());
}
