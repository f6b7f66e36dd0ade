//! Any bytes as a safetensors file: opened, and every tensor read.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sdlora_weights::WeightFile;

fuzz_target!(|bytes: &[u8]| {
    // The name decides for safetensors where the first bytes do not.
    if let Ok(file) = WeightFile::from_bytes("fuzzed.safetensors", bytes.to_vec()) {
        for info in file.tensors() {
            if let Ok(values) = file.read_f32(&info.name) {
                assert_eq!(values.len(), info.n_elements());
            }
        }
    }
});
