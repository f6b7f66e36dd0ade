//! Opens a data set and reads all its images; what cannot be read is an error and no panic.

use std::path::Path;

use sdlora_data::{Options, Split, datasets};

/// Opens the data set called `name` below `dir`, with and without leaving out what is bad.
pub fn open_and_read(name: &str, dir: &Path, options: &Options) {
    for skip_bad in [false, true] {
        let options = options.clone().with("skip_bad", skip_bad);
        let Ok(dataset) = datasets::open(name, dir, &options) else {
            continue;
        };
        for split in [Split::Train, Split::Test] {
            for (idx, sample) in dataset.samples(split).iter().enumerate() {
                assert!(sample.class_id < dataset.class_names().len());
                let image = dataset.image(split, idx);
                assert!(image.is_ok() || !skip_bad, "{name}: {image:?}");
            }
        }
    }
}
