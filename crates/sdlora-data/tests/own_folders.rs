//! Folders of one's own, in the forms in which they come: halves of any name, classes of any name, other formats, files
//! that cannot be read.

#![allow(clippy::unwrap_used, reason = "helpers of tests end the test")]

mod common;

use std::path::Path;

use common::{encoded, open, write, zipped};
use image::ImageFormat;
use sdlora_data::{Dataset, Options, Split};

/// Opens the folder `root` below `dir`.
fn folder(dir: &Path, root: &str, options: &Options) -> Result<Box<dyn Dataset>, String> {
    open("folder", dir, &options.clone().with("root", root))
}

fn counts(dataset: &dyn Dataset) -> (usize, usize) {
    (
        dataset.samples(Split::Train).len(),
        dataset.samples(Split::Test).len(),
    )
}

fn notes(dataset: &dyn Dataset) -> String {
    dataset.notes().join("\n")
}

/// Writes images that differ from each other.
fn images(dir: &Path, names: &[&str]) {
    for (value, name) in names.iter().enumerate() {
        write(dir, name, &encoded(value as u8 + 1, ImageFormat::Png));
    }
}

#[track_caller]
fn refused(found: Result<Box<dyn Dataset>, String>, parts: &[&str]) {
    let message = found.err().expect("it was opened");
    for part in parts {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn halves_are_halves_in_upper_and_lower_case() {
    for [train, test] in [
        ["Train", "Test"],
        ["TRAIN", "TEST"],
        ["training", "Validation"],
        ["train", "Valid"],
        ["Training", "testing"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        for half in [train, test] {
            for class in ["cat", "dog"] {
                images(dir.path(), &[&format!("mine/{half}/{class}/1.png")]);
            }
        }
        // A picture beside the halves makes no difference.
        images(dir.path(), &["mine/logo.png"]);
        let found = folder(dir.path(), "mine", &Options::none()).unwrap();
        assert_eq!(found.class_names(), ["cat", "dog"], "{train} and {test}");
        assert_eq!(counts(found.as_ref()), (2, 2));
        let of_test = &found.samples(Split::Test)[0].name;
        assert!(of_test.starts_with(test), "{of_test}");
        assert!(
            notes(found.as_ref()).contains("`logo.png`"),
            "{:?}",
            found.notes()
        );
    }
}

#[test]
fn beside_a_test_half_validation_images_are_held_out_and_named() {
    let dir = tempfile::tempdir().unwrap();
    for (half, n) in [("train", 3), ("Val", 2), ("test", 1)] {
        for class in ["cat", "dog"] {
            for i in 0..n {
                images(dir.path(), &[&format!("mine/{half}/{class}/{i}.png")]);
            }
        }
    }
    let found = folder(dir.path(), "mine", &Options::none()).unwrap();
    assert_eq!(counts(found.as_ref()), (6, 2));
    let tested = found.samples(Split::Test);
    assert!(tested.iter().all(|sample| sample.name.starts_with("test/")));
    let notes = notes(found.as_ref());
    assert!(notes.contains("`Val` (4 images) is held out"), "{notes}");
}

#[test]
fn the_unlabelled_test_images_of_imagenet_leave_its_validation_images_for_testing() {
    let dir = tempfile::tempdir().unwrap();
    let names = [
        "train/n01/1.png",
        "train/n02/1.png",
        "val/n01/2.png",
        "val/n02/2.png",
    ];
    images(
        dir.path(),
        &names
            .map(|name| format!("imagenet/{name}"))
            .each_ref()
            .map(|n| n.as_str()),
    );
    images(dir.path(), &["imagenet/test/ILSVRC_1.png"]);
    let found = open("imagenet-subset", dir.path(), &Options::none()).unwrap();
    assert_eq!(counts(found.as_ref()), (2, 2));
    assert!(
        notes(found.as_ref()).contains("`test/ILSVRC_1.png`"),
        "{:?}",
        found.notes()
    );
}

#[test]
fn a_class_may_be_alone_or_be_called_as_a_half_is() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..5 {
        images(dir.path(), &[&format!("one/cat/{i}.png")]);
        for class in ["train", "bus", "test"] {
            images(dir.path(), &[&format!("vehicles/{class}/{i}.png")]);
        }
        for class in ["train", "test"] {
            images(dir.path(), &[&format!("two/{class}/{i}.png")]);
            for half in ["train", "test"] {
                images(dir.path(), &[&format!("halves/{half}/{class}/{i}.png")]);
            }
        }
    }
    let one = folder(dir.path(), "one", &Options::none()).unwrap();
    assert_eq!(
        (one.class_names(), counts(one.as_ref())),
        (&["cat".to_owned()][..], (4, 1))
    );
    let vehicles = folder(dir.path(), "vehicles", &Options::none()).unwrap();
    assert_eq!(vehicles.class_names(), ["bus", "test", "train"]);
    assert_eq!(counts(vehicles.as_ref()), (12, 3));
    let halves = folder(dir.path(), "halves", &Options::none()).unwrap();
    assert_eq!(halves.class_names(), ["test", "train"]);
    assert_eq!(counts(halves.as_ref()), (10, 10));
    // Two folders of these names and nothing in between: nobody can know.
    let ask = folder(dir.path(), "two", &Options::none());
    refused(
        ask,
        &[
            "`test`, `train`",
            "no folders of classes",
            "layout = \"classes\"",
        ],
    );
    let options = Options::none().with("layout", "classes");
    let two = folder(dir.path(), "two", &options).unwrap();
    assert_eq!(two.class_names(), ["test", "train"]);
    // Domains and one class.
    images(
        dir.path(),
        &["domains/art/cat/1.png", "domains/art/cat/2.png"],
    );
    let options = Options::none().with("domain_folders", true);
    let domains = folder(dir.path(), "domains", &options).unwrap();
    assert_eq!(
        (domains.class_names(), domains.domains()),
        (&["cat".to_owned()][..], &["art".to_owned()][..])
    );
}

#[test]
fn halves_that_are_none_are_refused_with_the_cause() {
    let dir = tempfile::tempdir().unwrap();
    for (root, names, parts) in [
        (
            "kaggle",
            &["Train/0/1.png", "Train/1/1.png", "Test/1.png", "Meta/0.png"][..],
            &["`Test`, `Train`", "no folders of classes in `Test`"][..],
        ),
        (
            "inner",
            &[
                "cat/train/1.png",
                "cat/test/2.png",
                "dog/train/1.png",
                "dog/test/2.png",
            ],
            &["`cat`", "halves above the classes"],
        ),
        (
            "deeper",
            &["mine/train/cat/1.png", "mine/test/cat/1.png", "docs/2.png"],
            &["`mine`", "`root`"],
        ),
        (
            "strange",
            &["train/steam/1.png", "test/x/1.png", "bus/red/1.png"],
            &["share no class", "`layout`"],
        ),
        (
            "flat",
            &["1.png", "2.png"],
            &["holds no images", "2 files are no images of a class"],
        ),
    ] {
        for name in names {
            images(dir.path(), &[&format!("{root}/{name}")]);
        }
        refused(folder(dir.path(), root, &Options::none()), parts);
    }
    let halves = Options::none().with("layout", "halves");
    refused(
        folder(dir.path(), "kaggle", &halves),
        &["training half", "`train` and `test`"],
    );
    let classes = Options::none().with("layout", "classes");
    images(
        dir.path(),
        &["inner/cat/train/3.png", "inner/dog/train/3.png"],
    );
    let inner = folder(dir.path(), "inner", &classes).unwrap();
    assert_eq!(inner.class_names(), ["cat", "dog"]);
}

#[test]
fn formats_that_are_not_read_are_counted_and_classes_of_them_named() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..3 {
        images(
            dir.path(),
            &[&format!("mine/cat/{i}.png"), &format!("mine/dog/{i}.png")],
        );
    }
    let jpeg = encoded(9, ImageFormat::Jpeg);
    write(dir.path(), "mine/cat/3.JPE", &jpeg);
    write(dir.path(), "mine/cat/4.jfif", &jpeg);
    write(dir.path(), "mine/cat/5.HEIC", b"x");
    write(dir.path(), "mine/cat/6.gif", b"x");
    write(dir.path(), "mine/dog/7.gif", b"x");
    let found = folder(dir.path(), "mine", &Options::none()).unwrap();
    assert_eq!(counts(found.as_ref()), (6, 2));
    let said = notes(found.as_ref());
    assert!(
        said.contains("left out 3 images in formats that are not read: 2 .gif, 1 .heic"),
        "{said}"
    );

    write(dir.path(), "mine/eel/1.heic", b"x");
    write(dir.path(), "mine/eel/2.heic", b"x");
    std::fs::create_dir(dir.path().join("mine/fox")).unwrap();
    write(dir.path(), "mine/annotations/1.xml", b"x");
    let parts = [
        "class `eel` has no images",
        "2 .heic",
        "class `fox`",
        "empty",
        "skip_bad",
    ];
    refused(folder(dir.path(), "mine", &Options::none()), &parts);
    let skip = Options::none().with("skip_bad", true);
    let found = folder(dir.path(), "mine", &skip).unwrap();
    assert_eq!(found.class_names(), ["cat", "dog"]);
    let said = notes(found.as_ref());
    assert!(said.contains("`eel`") && said.contains("`fox`"), "{said}");

    write(dir.path(), "phone/cat/1.heic", b"x");
    write(dir.path(), "phone/dog/1.heic", b"x");
    refused(
        folder(dir.path(), "phone", &Options::none()),
        &["`cat`", "1 .heic"],
    );
    // Empty folders of an archive are folders, too.
    let png = encoded(1, ImageFormat::Png);
    let files = [
        ("cat/1.png", png.clone()),
        ("cat/2.png", png),
        ("fox/", Vec::new()),
    ];
    write(dir.path(), "a.zip", &zipped(&files));
    refused(
        folder(dir.path(), "a.zip", &Options::none()),
        &["class `fox`", "empty"],
    );
}

/// The draw of the test half comes after bad images are gone, so that a class does not lose its only test image.
#[test]
fn a_bad_test_image_does_not_take_its_class_along() {
    let dir = tempfile::tempdir().unwrap();
    for class in ["cat", "dog"] {
        for i in 0..5 {
            images(dir.path(), &[&format!("mine/{class}/{i}.png")]);
        }
    }
    let drawn = folder(dir.path(), "mine", &Options::none()).unwrap();
    let skip = Options::none().with("skip_bad", true);
    for sample in drawn.samples(Split::Test) {
        write(dir.path(), &format!("mine/{}", sample.name), b"no image");
    }
    let found = folder(dir.path(), "mine", &skip).unwrap();
    assert_eq!(found.class_names(), ["cat", "dog"]);
    assert_eq!(counts(found.as_ref()), (6, 2));
    assert!(
        notes(found.as_ref()).contains("left out 2 unreadable images"),
        "{:?}",
        found.notes()
    );
    // The same in a table, and in the domains of DomainNet.
    let table: String = (0..5).map(|i| format!("cat/{i}.png,cat\n")).collect();
    write(dir.path(), "mine/labels.csv", table.as_bytes());
    let found = folder(dir.path(), "mine", &skip.with("csv", "labels.csv")).unwrap();
    assert_eq!(counts(found.as_ref()), (3, 1));
    for i in 0..3 {
        images(dir.path(), &[&format!("domainnet/real/ant/{i}.png")]);
    }
    let drawn = open("domainnet", dir.path(), &Options::none()).unwrap();
    let bad = drawn.samples(Split::Test)[0].name.clone();
    write(dir.path(), &format!("domainnet/{bad}"), b"no image");
    let skip = Options::none().with("skip_bad", true);
    let found = open("domainnet", dir.path(), &skip).unwrap();
    assert_eq!(counts(found.as_ref()), (1, 1));
}

#[test]
fn half_of_a_jpeg_is_named_or_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let jpeg = include_bytes!("../../sdlora-image/tests/images/restarts.jpg");
    for class in ["cat", "dog"] {
        for i in 0..3u8 {
            // Bytes behind the end, so that no two files are the same.
            write(
                dir.path(),
                &format!("mine/{class}/{i}.jpg"),
                &[&jpeg[..], &[i; 9]].concat(),
            );
        }
    }
    write(dir.path(), "mine/cat/half.jpg", &jpeg[..jpeg.len() / 2]);
    refused(
        folder(dir.path(), "mine", &Options::none()),
        &["cat/half.jpg", "cut short"],
    );
    let skip = Options::none().with("skip_bad", true);
    let found = folder(dir.path(), "mine", &skip).unwrap();
    assert_eq!(counts(found.as_ref()), (4, 2));
    let said = notes(found.as_ref());
    assert!(
        said.contains("1 unreadable") && said.contains("cat/half.jpg"),
        "{said}"
    );
}

#[test]
fn a_photograph_of_ones_own_is_upright_and_a_published_one_as_stored() {
    let dir = tempfile::tempdir().unwrap();
    let rotated = include_bytes!("../../sdlora-image/tests/images/rotated.jpg");
    for name in ["folder", "imagenet-r"] {
        for i in 0..2 {
            write(dir.path(), &format!("{name}/cat/{i}.jpg"), rotated);
        }
    }
    let width = |name: &str, options: &Options| {
        let dataset = open(name, dir.path(), options).unwrap();
        dataset.image(Split::Train, 0).unwrap().width()
    };
    assert_eq!(width("folder", &Options::none()), 2);
    assert_eq!(width("imagenet-r", &Options::none()), 4);
    assert_eq!(
        width("folder", &Options::none().with("rotation", "stored")),
        4
    );
    assert_eq!(
        width("imagenet-r", &Options::none().with("rotation", "exif")),
        2
    );
    refused(
        folder(
            dir.path(),
            "folder",
            &Options::none().with("rotation", "up"),
        ),
        &["options"],
    );
}

#[test]
fn images_of_twelve_bits_are_noted_and_an_option_scales_them() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..4u16 {
        let image =
            image::ImageBuffer::from_fn(4, 3, |x, y| image::Luma([x as u16 * 1300 + y as u16 + i]));
        let mut bytes = std::io::Cursor::new(Vec::new());
        image::DynamicImage::ImageLuma16(image)
            .write_to(&mut bytes, ImageFormat::Png)
            .unwrap();
        write(
            dir.path(),
            &format!("mine/cat/{i}.png"),
            &bytes.into_inner(),
        );
    }
    let found = folder(dir.path(), "mine", &Options::none()).unwrap();
    assert!(
        notes(found.as_ref()).contains("`bit_depth = 12`"),
        "{:?}",
        found.notes()
    );
    let brightest = |dataset: &dyn Dataset| {
        let image = dataset.image(Split::Train, 0).unwrap();
        image.data().iter().copied().max().unwrap()
    };
    assert_eq!(brightest(found.as_ref()), 15);
    let options = Options::none().with("bit_depth", 12);
    let found = folder(dir.path(), "mine", &options).unwrap();
    assert_eq!(brightest(found.as_ref()), 243);
    assert_eq!(notes(found.as_ref()), "");
}

#[test]
fn the_same_picture_in_both_halves_is_said() {
    let dir = tempfile::tempdir().unwrap();
    images(dir.path(), &["mine/train/cat/1.png", "mine/test/cat/2.png"]);
    let same = encoded(99, ImageFormat::Png);
    write(dir.path(), "mine/train/cat/a.png", &same);
    write(dir.path(), "mine/test/cat/b.png", &same);
    let skip = Options::none().with("skip_bad", true);
    let found = folder(dir.path(), "mine", &skip).unwrap();
    let said = notes(found.as_ref());
    assert!(said.contains("1 test images are the same"), "{said}");
    assert!(
        said.contains("`train/cat/a.png` and `test/cat/b.png`"),
        "{said}"
    );
}

#[test]
fn classes_that_look_alike_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    // An accent in one character, and in one of its own.
    images(
        dir.path(),
        &[
            "mine/caf\u{e9}/1.png",
            "mine/cafe\u{301}/2.png",
            "mine/cafe/3.png",
        ],
    );
    refused(
        folder(dir.path(), "mine", &Options::none()),
        &["caf\u{e9}", "look the same"],
    );
}

#[cfg(unix)]
#[test]
fn one_link_to_nothing_does_not_hide_the_other_images() {
    use std::os::unix::{ffi::OsStrExt, fs::symlink};
    let dir = tempfile::tempdir().unwrap();
    for i in 0..4 {
        images(dir.path(), &[&format!("mine/cat/{i}.png")]);
    }
    let mine = dir.path().join("mine");
    symlink("nowhere", mine.join("cat/dangling.png")).unwrap();
    symlink(&mine, mine.join("cat/loop")).unwrap();
    let latin = std::ffi::OsStr::from_bytes(b"cat/caf\xe9.png");
    std::fs::write(mine.join(latin), encoded(1, ImageFormat::Png)).unwrap();
    let parts = ["dangling.png", "cat/loop", "caf\\xe9.png", "skip_bad"];
    refused(folder(dir.path(), "mine", &Options::none()), &parts);
    let skip = Options::none().with("skip_bad", true);
    let found = folder(dir.path(), "mine", &skip).unwrap();
    assert_eq!(counts(found.as_ref()), (3, 1));
    let said = notes(found.as_ref());
    assert!(parts[..3].iter().all(|part| said.contains(part)), "{said}");
}

#[test]
fn zips_of_windows_are_read_or_named() {
    let dir = tempfile::tempdir().unwrap();
    let png = |value| encoded(value, ImageFormat::Png);
    let files = [
        ("cat\\1.png", png(1)),
        ("cat\\2.png", png(2)),
        ("dog\\1.png", png(3)),
        ("dog\\2.png", png(4)),
    ];
    write(dir.path(), "a.zip", &zipped(&files));
    let found = folder(dir.path(), "a.zip", &Options::none()).unwrap();
    assert_eq!(found.class_names(), ["cat", "dog"]);
    // Two classes in GBK, which were one class of question marks.
    let files = [
        ("cat/1.png", png(1)),
        ("cat/2.png", png(2)),
        ("??/1.png", png(3)),
        ("!!/1.png", png(4)),
    ];
    let mut bytes = zipped(&files);
    for (ascii, gbk) in [(b"??/", b"\xb9\xb7"), (b"!!/", b"\xc4\xf1")] {
        while let Some(at) = bytes.windows(3).position(|w| w == ascii) {
            bytes[at..at + 2].copy_from_slice(gbk);
        }
    }
    write(dir.path(), "gbk.zip", &bytes);
    refused(
        folder(dir.path(), "gbk.zip", &Options::none()),
        &["\\xb9\\xb7/1.png", "GBK", "gbk.zip"],
    );
    let skip = Options::none().with("skip_bad", true);
    let found = folder(dir.path(), "gbk.zip", &skip).unwrap();
    assert_eq!(found.class_names(), ["cat"]);
    assert!(
        notes(found.as_ref()).contains("\\xc4\\xf1"),
        "{:?}",
        found.notes()
    );
}
