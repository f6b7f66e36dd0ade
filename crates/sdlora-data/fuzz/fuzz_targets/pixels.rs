//! Any bytes as the test file of a data set of pixels; the first byte says which.

#![no_main]

mod opened;

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use sdlora_data::Options;

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
    let dir = tempfile::tempdir().expect("a folder can be made");
    let dir = dir.path();
    let mut options = Options::none();
    let name = match which % 4 {
        0 => {
            for batch in 1..=5 {
                write(dir, &format!("cifar10/data_batch_{batch}"), bytes);
            }
            write(dir, "cifar10/test_batch", bytes);
            "cifar10"
        }
        1 => {
            write(dir, "cifar-100-binary/train.bin", bytes);
            write(dir, "cifar-100-binary/test.bin", bytes);
            "cifar100"
        }
        is_labels => {
            // Two images of one pixel.
            let images = [0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 1, 7, 8];
            let labels = [0, 0, 8, 1, 0, 0, 0, 2, 3, 3];
            let (images, labels) = match is_labels {
                2 => (bytes, &labels[..]),
                _ => (&images[..], bytes),
            };
            write(dir, "mnist/t10k-images-idx3-ubyte", images);
            write(dir, "mnist/t10k-labels-idx1-ubyte", labels);
            options = options.with("first_of_test", 1);
            "mnist"
        }
    };
    // A class may lack one of its halves; what is read is what counts here.
    opened::open_and_read(name, dir, &options);
});
