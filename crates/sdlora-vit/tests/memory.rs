//! A model is read tensor by tensor. Linux only, and too heavy for every run:
//! `cargo test --release -p sdlora-vit --test memory -- --ignored`.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::io::Write;

use sdlora_testkit::test_device;
use sdlora_vit::{Vit, VitConfig};

/// Highest resident size of this process so far, in bytes.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    1024 * kib
}

#[test]
#[ignore = "writes and reads 1.2 GB"]
fn a_large_model_takes_hardly_more_than_its_size() {
    let config = VitConfig::preset("vit_large_patch16_224").unwrap();
    let (d, h) = (config.d_model, config.d_mlp);
    let mut shapes = vec![
        ("patch_embed.proj.weight".to_string(), vec![d, 3, 16, 16]),
        ("patch_embed.proj.bias".to_string(), vec![d]),
        ("cls_token".to_string(), vec![1, 1, d]),
        ("pos_embed".to_string(), vec![1, config.n_tokens(), d]),
        ("norm.weight".to_string(), vec![d]),
        ("norm.bias".to_string(), vec![d]),
    ];
    for i in 0..config.depth {
        for (name, shape) in [
            ("norm1", vec![d]),
            ("norm2", vec![d]),
            ("attn.qkv", vec![3 * d, d]),
            ("attn.proj", vec![d, d]),
            ("mlp.fc1", vec![h, d]),
            ("mlp.fc2", vec![d, h]),
        ] {
            shapes.push((format!("blocks.{i}.{name}.bias"), vec![shape[0]]));
            shapes.push((format!("blocks.{i}.{name}.weight"), shape));
        }
    }
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in shapes {
        let start = end;
        end += 4 * shape.iter().product::<usize>() as u64;
        let entry =
            serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]});
        header.insert(name, entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vit_large_patch16_224.safetensors");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes())
        .unwrap();
    file.write_all(&header).unwrap();
    // The numbers are zeros that need no room on disk; in memory they do.
    file.set_len(8 + header.len() as u64 + end).unwrap();
    drop(file);

    let before = peak_bytes();
    let (vit, report) = Vit::load(&path, None, &test_device()).unwrap();
    let ratio = (peak_bytes() - before) as f64 / end as f64;
    assert_eq!(end, 4 * vit.config().n_parameters() as u64);
    assert!(report.unused.is_empty());
    assert!(
        ratio > 0.9 && ratio < 1.3,
        "peak is {ratio:.3} of {end} bytes"
    );
    if let Some(path) = std::env::var_os("SDLORA_MEMORY_REPORT") {
        std::fs::write(path, format!("{ratio:.3} of {end} bytes\n")).unwrap();
    }
}
