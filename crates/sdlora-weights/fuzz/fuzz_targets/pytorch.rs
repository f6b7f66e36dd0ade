//! Any bytes as a PyTorch zip file, and any bytes as the pickle in one that is sound.
//!
//! A fuzzer does not guess checksums, so bytes that are no zip file become `data.pkl` beside two small storages.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sdlora_weights::WeightFile;

fuzz_target!(|bytes: &[u8]| {
    let bytes = if bytes.starts_with(b"PK") {
        bytes.to_vec()
    } else {
        stored(&[
            ("f/data.pkl", bytes),
            ("f/data/0", &[0; 64]),
            ("f/data/1", &[0; 16]),
        ])
    };
    if let Ok(file) = WeightFile::from_bytes("fuzzed.pth", bytes) {
        let _ = file.state_prefix();
        for info in file.tensors() {
            if let Ok(values) = file.read_f32(&info.name) {
                assert_eq!(values.len(), info.n_elements());
            }
        }
    }
});

/// A zip file whose members are stored as they are.
fn stored(members: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in members {
        let start = out.len() as u32;
        let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        common.extend(crc32(data).to_le_bytes());
        common.extend((data.len() as u32).to_le_bytes());
        common.extend((data.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        out.extend(b"PK\x03\x04");
        out.extend(&common);
        out.extend(name.as_bytes());
        out.extend(*data);
        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(start.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let start = out.len() as u32;
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    let n_members = (members.len() as u16).to_le_bytes();
    out.extend(n_members);
    out.extend(n_members);
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    out
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc: u32, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}
