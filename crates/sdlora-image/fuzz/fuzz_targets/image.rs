//! Any bytes as an image.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sdlora_image::Image;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(image) = Image::decode(bytes, "fuzzed") {
        assert_eq!(image.data().len(), image.width() * image.height() * image.channels());
    }
});
