//! Damaged descriptions and weights of a backbone: read or refused, never a panic.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::path::Path;

use rand::SeedableRng;
use sdlora_testkit::mutations::{count, survive};
use sdlora_testkit::test_device;
use sdlora_vit::{Checkpoint, Hints, Vit, VitConfig, WeightDtype};

/// The form of Hugging Face's `config.json` for that file.
const CONFIG: &str = r#"{
  "architectures": ["ViTForImageClassification"],
  "model_type": "vit",
  "hidden_act": "gelu",
  "hidden_size": 12,
  "image_size": 16,
  "intermediate_size": 48,
  "layer_norm_eps": 1e-12,
  "num_attention_heads": 3,
  "num_channels": 3,
  "num_hidden_layers": 1,
  "patch_size": 8,
  "qkv_bias": true
}"#;

const PREPROCESSOR: &str = r#"{
  "do_normalize": true, "do_rescale": true, "do_resize": true, "rescale_factor": 0.00392156862745098,
  "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2,
  "size": {"height": 16, "width": 16}
}"#;

/// timm's.
const TIMM: &str = r#"{
  "architecture": "vit_tiny_patch16_224", "num_classes": 0, "global_pool": "token",
  "model_args": {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 3},
  "pretrained_cfg": {"input_size": [3, 16, 16], "interpolation": "bicubic", "crop_pct": 0.9,
    "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
}"#;

/// Opens and loads; what is accepted computes features of its own width.
fn read(path: &Path) -> bool {
    let hints = Hints {
        n_heads: Some(3),
        ..Hints::default()
    };
    match Checkpoint::open(path, &hints).and_then(|checkpoint| {
        assert!(!checkpoint.describe().is_empty());
        checkpoint.load(&test_device())
    }) {
        Ok((vit, _)) => {
            assert!(vit.config().depth <= 1 && vit.config().d_model == 12);
            true
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            false
        }
    }
}

#[test]
fn no_mutation_of_a_backbone_or_of_what_describes_it_panics() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let config = VitConfig::standard(16, 8, 12, 1, 3);
    let vit = Vit::init(&config, &mut rng, &test_device()).unwrap();
    let weights = vit.to_bytes(WeightDtype::F32, &BTreeMap::new()).unwrap();
    std::fs::write(&path, &weights).unwrap();
    assert!(read(&path));

    // The header, where names, shapes and the shape of the model stand.
    let n_header = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let (header, data) = weights[8..].split_at(n_header);
    survive(
        "header of a backbone",
        count(600),
        header,
        header,
        |bytes| {
            let length = (bytes.len() as u64).to_le_bytes();
            std::fs::write(&path, [&length, bytes, data].concat()).unwrap();
            read(&path)
        },
    );

    // Descriptions beside the weights, which then carry none.
    std::fs::write(&path, &weights).unwrap();
    for (name, text) in [
        ("config.json", CONFIG),
        ("config.json", TIMM),
        ("preprocessor_config.json", PREPROCESSOR),
    ] {
        let beside = folder.path().join(name);
        survive(
            name,
            count(400),
            text.as_bytes(),
            TIMM.as_bytes(),
            |bytes| {
                std::fs::write(&beside, bytes).unwrap();
                read(&path)
            },
        );
        std::fs::remove_file(beside).unwrap();
    }
}
