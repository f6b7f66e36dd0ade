//! Small data sets of every format: read right, refused with the name of the file when wrong, never a panic.

#![allow(clippy::unwrap_used, reason = "helpers of tests end the test")]

mod common;

use std::path::Path;

use common::{
    cifar10_pickle, cifar100_record, encoded, idx_images, idx_labels, open, write, zipped,
};
use image::ImageFormat;
use sdlora_data::{Dataset, GroupOrder, Options, Split, StreamConfig, TaskSplit, TaskStream};

fn refusal(name: &str, dir: &Path, options: &Options) -> String {
    open(name, dir, options).err().expect("it was opened")
}

fn counts(dataset: &dyn Dataset) -> (usize, usize) {
    (
        dataset.samples(Split::Train).len(),
        dataset.samples(Split::Test).len(),
    )
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

#[test]
fn labels_out_of_range_are_refused_or_left_out_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let skip = Options::none().with("skip_bad", true);
    let records = [(4, 0), (4, 100), (20, 1), (3, 2)].map(|(c, f)| cifar100_record(c, f));
    write(dir.path(), "cifar-100-binary/test.bin", &records.concat());
    write(dir.path(), "cifar-100-binary/train.bin", &records[3]);
    let message = refusal("cifar100", dir.path(), &Options::none());
    for part in ["test.bin", "image 1", "label 100"] {
        assert!(message.contains(part), "{message}");
    }
    let kept = open("cifar100", dir.path(), &skip).unwrap();
    assert_eq!(counts(kept.as_ref()), (1, 2));
    assert_eq!(kept.samples(Split::Test)[1].class_id, 2);
    // The pixels of the image behind those that were left out.
    assert_eq!(
        kept.image(Split::Test, 1).unwrap().data()[..3],
        [10, 20, 30]
    );
    let notes = kept.notes().join("\n");
    assert!(notes.contains("left out 2 images"), "{notes}");
    assert!(notes.contains("test.bin image 2"), "{notes}");

    write(dir.path(), "mnist/t10k-images-idx3-ubyte", &idx_images(4));
    write(
        dir.path(),
        "mnist/t10k-labels-idx1-ubyte",
        &idx_labels(&[7, 10, 2, 7]),
    );
    let first = Options::none().with("first_of_test", 1);
    let message = refusal("mnist", dir.path(), &first);
    assert!(message.contains("image 1 the label 10"), "{message}");
    let kept = open("mnist", dir.path(), &first.with("skip_bad", true)).unwrap();
    assert_eq!(counts(kept.as_ref()), (1, 2));
    assert_eq!(kept.image(Split::Test, 0).unwrap().data()[0], 12);
    let notes = kept.notes().join("\n");
    assert!(notes.contains("left out 1 images"), "{notes}");
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
