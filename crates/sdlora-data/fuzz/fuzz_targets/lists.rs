//! Any bytes as the list of a data set whose images are files; the first byte says which.

#![no_main]

mod opened;

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use sdlora_data::Options;

/// One pixel.
const IMAGE: &[u8] = b"P6 1 1 255\n\x01\x02\x03";

/// Data set, its list, and its images.
const LISTED: [(&str, &str, [&str; 2]); 5] = [
    (
        "gtsrb",
        "gtsrb/GT-final_test.csv",
        [
            "gtsrb/GTSRB/Final_Training/Images/00001/00000.ppm",
            "gtsrb/GTSRB/Final_Test/Images/00000.ppm",
        ],
    ),
    (
        "cub200",
        "cub200/images.txt",
        ["cub200/images/001.Auk/a.jpg", "cub200/images/001.Auk/b.jpg"],
    ),
    (
        "tiny-imagenet",
        "tiny-imagenet/val/val_annotations.txt",
        [
            "tiny-imagenet/train/n01/images/a.JPEG",
            "tiny-imagenet/val/images/b.JPEG",
        ],
    ),
    (
        "domainnet",
        "domainnet/real_train.txt",
        ["domainnet/real/ant/0.jpg", "domainnet/real/ant/1.jpg"],
    ),
    ("folder", "folder/list.csv", ["folder/a.png", "folder/b.png"]),
];

fn write(dir: &Path, name: &str, bytes: &[u8]) {
    let path = dir.join(name);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).expect("a folder can be made");
    }
    std::fs::write(path, bytes).expect("a file can be written");
}

fuzz_target!(|bytes: &[u8]| {
    let Some((which, bytes)) = bytes.split_first() else {
        return;
    };
    let (name, list, images) = LISTED[usize::from(*which) % LISTED.len()];
    let dir = tempfile::tempdir().expect("a folder can be made");
    write(dir.path(), list, bytes);
    if name == "cub200" {
        write(dir.path(), "cub200/train_test_split.txt", b"1 1\n2 0\n");
    }
    for image in images {
        write(dir.path(), image, IMAGE);
    }
    let options = match name {
        "folder" => Options::none().with("csv", "list.csv"),
        _ => Options::none(),
    };
    opened::open_and_read(name, dir.path(), &options);
});
