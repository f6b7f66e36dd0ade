//! Any bytes as an archive of images.

#![no_main]

mod opened;

use libfuzzer_sys::fuzz_target;
use sdlora_data::Options;

fuzz_target!(|bytes: &[u8]| {
    let dir = tempfile::tempdir().expect("a folder can be made");
    std::fs::write(dir.path().join("folder"), bytes).expect("a file can be written");
    opened::open_and_read("folder", dir.path(), &Options::none());
});
