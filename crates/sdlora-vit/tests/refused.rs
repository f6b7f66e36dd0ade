//! Files that are no ViT of ours say what they are and what to do.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::Tensor;
use rand::SeedableRng;
use safetensors::SafeTensors;
use sdlora_core::Updates;
use sdlora_testkit::test_device;
use sdlora_vit::{
    Activation, Checkpoint, Hints, Pooling, PosEmbed, PositionResize, Untold, Vit, VitConfig,
    VitError, WeightDtype,
};
use tempfile::TempDir;

/// A small timm file without metadata, so that its shape has to be found out.
struct Bench {
    folder: TempDir,
    tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
    /// Tensors of which a quarter of the bytes is written, as numbers of 8 bits.
    eight_bit: Vec<String>,
}

impl Bench {
    fn new(config: &VitConfig) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let vit = Vit::init(config, &mut rng, &test_device()).unwrap();
        let bytes = vit.to_bytes(WeightDtype::F32, &BTreeMap::new()).unwrap();
        let tensors = SafeTensors::deserialize(&bytes)
            .unwrap()
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, (view.shape().to_vec(), view.data().to_vec())))
            .collect();
        Self {
            folder,
            tensors,
            eight_bit: Vec::new(),
        }
    }

    /// One more tensor, of zeros.
    fn with(mut self, name: &str, shape: &[usize]) -> Self {
        let bytes = vec![0; 4 * shape.iter().product::<usize>()];
        self.tensors.insert(name.into(), (shape.to_vec(), bytes));
        self
    }

    /// The same tensors under other names.
    fn renamed(mut self, rename: impl Fn(&str) -> String) -> Self {
        let all = self.tensors.into_iter();
        self.tensors = all.map(|(name, t)| (rename(&name), t)).collect();
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.tensors.remove(name).unwrap();
        self
    }

    fn write(&self, name: &str) -> PathBuf {
        let views = self.tensors.iter().map(|(name, (shape, bytes))| {
            use safetensors::{Dtype, tensor::TensorView};
            let (dtype, bytes) = match self.eight_bit.contains(name) {
                true => (Dtype::F8_E4M3, &bytes[..bytes.len() / 4]),
                false => (Dtype::F32, bytes.as_slice()),
            };
            (name, TensorView::new(dtype, shape.clone(), bytes).unwrap())
        });
        let path = self.folder.path().join(name);
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        path
    }

    fn beside(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }
}

fn tiny() -> VitConfig {
    VitConfig::standard(32, 8, 48, 2, 3)
}

fn heads(n_heads: usize) -> Hints {
    Hints {
        n_heads: Some(n_heads),
        ..Hints::default()
    }
}

fn message(path: &Path, hints: &Hints) -> String {
    Checkpoint::open(path, hints)
        .and_then(|checkpoint| checkpoint.load(&test_device()))
        .unwrap_err()
        .to_string()
}

#[test]
fn parts_that_change_the_function_are_named() {
    for (tensor, shape, said) in [
        ("dist_token", &[1, 1, 48][..], "distillation"),
        ("blocks.1.mlp.w12.weight", &[8, 48], "SwiGLU"),
        (
            "blocks.0.attn.q_norm.weight",
            &[16],
            "norms of query and key",
        ),
        (
            "blocks.0.attn.relative_position_bias_table",
            &[9, 3],
            "BEiT",
        ),
        ("patch_embed.backbone.stem.weight", &[4], "embedding"),
        ("attn_pool.q.weight", &[48, 48], "another pooling"),
    ] {
        let bench = Bench::new(&tiny()).with(tensor, shape);
        let message = message(&bench.write("vit.safetensors"), &heads(3));
        assert!(message.contains(said), "{tensor}: {message}");
    }
}

#[test]
fn heads_come_from_a_name_with_its_width_or_not_at_all() {
    let bench = Bench::new(&VitConfig::standard(32, 16, 192, 1, 3));
    let known = bench.write("vit_tiny_mine.safetensors");
    let checkpoint = Checkpoint::open(&known, &Hints::default()).unwrap();
    assert_eq!(checkpoint.config().n_heads, 3);
    let unknown = bench.write("mine.safetensors");
    let error = Checkpoint::open(&unknown, &Hints::default()).unwrap_err();
    let untold = Some(Untold::Heads);
    assert!(matches!(&error, VitError::NotAVit { untold: found, .. } if *found == untold));
    assert!(
        error.to_string().contains("say the number of heads"),
        "{error}"
    );
    // Following a guess would load and be wrong: huge, giant and gigantic have 16.
    assert!(!error.to_string().contains("most models"), "{error}");
    assert!(message(&unknown, &heads(5)).contains("n_heads"));
}

#[test]
fn config_json_is_believed_only_for_a_model_of_its_width() {
    let bench = Bench::new(&tiny());
    let path = bench.write("vit.safetensors");
    let config = r#"{"model_type": "vit", "hidden_size": 48, "num_attention_heads": 6}"#;
    bench.beside("config.json", config);
    let checkpoint = Checkpoint::open(&path, &Hints::default()).unwrap();
    assert_eq!(checkpoint.config().n_heads, 6);

    bench.beside("config.json", &config.replace("48", "384"));
    assert!(message(&path, &Hints::default()).contains("number of heads"));
    let text = Checkpoint::open(&path, &heads(3)).unwrap().describe();
    assert!(text.contains("width 384 and was passed over"), "{text}");

    let other = r#"{"architecture": "vit_base_patch32_clip_quickgelu_224", "num_features": 48}"#;
    bench.beside("config.json", other);
    let text = Checkpoint::open(&path, &heads(3)).unwrap().describe();
    assert!(text.contains("activation quick-gelu"), "{text}");
    // timm computes these positions and keeps none of them in the file.
    let other = r#"{"architecture": "vit_small_patch16_rope_ape_224", "num_features": 48}"#;
    bench.beside("config.json", other);
    assert!(message(&path, &heads(3)).contains("rotary"));
    let other = r#"{"model_type": "vit", "hidden_act": "relu"}"#;
    bench.beside("config.json", other);
    assert!(message(&path, &heads(3)).contains("`relu`"));
}

#[test]
fn a_missing_part_and_a_wrong_shape_are_reported_together() {
    let bench = Bench::new(&tiny())
        .without("blocks.1.mlp.fc2.bias")
        .with("blocks.0.norm1.bias", &[47])
        .with("blocks.1.ls1.gamma", &[48])
        .with("head.weight", &[7, 48]);
    let path = bench.write("vit.safetensors");
    let checkpoint = Checkpoint::open(&path, &heads(3)).unwrap();
    let report = checkpoint.report();
    assert_eq!(report.missing, ["blocks.1.mlp.fc2.bias"]);
    assert_eq!(report.unused, ["head.weight"]);
    // LayerScale in one block only has no place, and leaving it out would be another function.
    assert_eq!(report.misfit.len(), 2, "{report}");
    let statuses: Vec<String> = checkpoint
        .mapping()
        .into_iter()
        .map(|t| t.status)
        .filter(|status| status != "as it is")
        .collect();
    assert_eq!(
        statuses,
        [
            "wrong shape",
            "refused: the model has no such part",
            "unused: classifier"
        ]
    );
    let error = checkpoint.load(&test_device()).unwrap_err();
    assert!(matches!(error, VitError::Mismatch { .. }), "{error}");
}

#[test]
fn positions_that_are_no_square_and_block_numbers_without_end_are_refused() {
    let bench = Bench::new(&tiny()).with("pos_embed", &[1, 1 + 12, 48]);
    assert!(message(&bench.write("vit.safetensors"), &heads(3)).contains("no square"));
    let bench = Bench::new(&tiny()).with("blocks.99999999.norm1.bias", &[48]);
    assert!(message(&bench.write("vit.safetensors"), &heads(3)).contains("100000000 blocks"));
    let bench = Bench::new(&tiny()).without("patch_embed.proj.weight");
    assert!(message(&bench.write("vit.safetensors"), &heads(3)).contains("patch projection"));
}

#[test]
fn a_lone_file_that_keeps_its_name_is_known_by_it() {
    let bench = Bench::new(&tiny());
    for name in [
        "vit_base_patch16_rpn_224.safetensors",
        "vit_base_patch16_rpn_224.sw_in1k.safetensors",
        "vit-base-patch16-rpn-224.pth",
        "vit_small_patch16_rope_ape_224.safetensors",
        "vit_pe_core_tiny_patch16_384.safetensors",
    ] {
        let path = bench.write(name);
        for hints in [
            heads(3),
            // A shape that the caller names does not make it another function.
            Hints {
                config: Some(tiny()),
                ..Hints::default()
            },
        ] {
            let message = message(&path, &hints);
            assert!(
                message.contains(name) && message.contains("rename"),
                "{message}"
            );
        }
    }
    for (name, expected) in [
        (
            "vit_base_patch32_clip_quickgelu_224.safetensors",
            Activation::QuickGelu,
        ),
        (
            "vit_so400m_patch16_siglip_gap_256.safetensors",
            Activation::GeluTanh,
        ),
        (
            "vit_base_patch16_siglip_gap_512.safetensors",
            Activation::Gelu,
        ),
        (
            "vit_so400m_patch14_siglip_gap_224.safetensors",
            Activation::Gelu,
        ),
        (
            "vit_so400m_patch14_reg1_tipsv2.safetensors",
            Activation::Gelu,
        ),
    ] {
        let path = bench.write(name);
        let found = Checkpoint::open(&path, &heads(3)).unwrap();
        assert_eq!(found.config().activation, expected, "{name}");
        let given = Hints {
            activation: Some(Activation::Gelu),
            ..heads(3)
        };
        let found = Checkpoint::open(&path, &given).unwrap();
        assert_eq!(found.config().activation, Activation::Gelu);
    }
}

#[test]
fn the_function_of_clip_is_asked_for_where_nothing_tells() {
    let config = VitConfig {
        pre_norm: true,
        ..tiny()
    };
    let bench = Bench::new(&config);
    let path = bench.write("weights.safetensors");
    assert!(message(&path, &heads(3)).contains("say the activation"));
    let given = Hints {
        activation: Some(Activation::QuickGelu),
        ..heads(3)
    };
    let (vit, _) = Checkpoint::open(&path, &given)
        .unwrap()
        .load(&test_device())
        .unwrap();
    let exact = Hints {
        activation: Some(Activation::Gelu),
        ..heads(3)
    };
    let (other, _) = Checkpoint::open(&path, &exact)
        .unwrap()
        .load(&test_device())
        .unwrap();
    let features = |vit: &Vit| {
        let images = Tensor::<4>::ones([1, 3, 32, 32], &test_device());
        let data = vit.forward(images, &Updates::default()).into_data();
        data.iter::<f32>().collect::<Vec<_>>()
    };
    let quick = features(&vit);
    assert_ne!(quick, features(&other));
    // Written and read again it is the same function, without any help.
    let copy = bench.folder.path().join("copy");
    let bytes = vit.to_bytes(WeightDtype::F32, &BTreeMap::new()).unwrap();
    std::fs::write(&copy, bytes).unwrap();
    let (again, _) = Vit::load(&copy, None, &test_device()).unwrap();
    assert_eq!(features(&again), quick);
}

#[test]
fn blocks_of_other_kinds_are_named() {
    for (bench, said) in [
        (
            Bench::new(&tiny()).with("blocks.0.mlp.fc2.weight", &[48, 96]),
            "SwiGLU",
        ),
        (
            Bench::new(&tiny()).without("blocks.0.norm1.bias"),
            "RMSNorm",
        ),
        (Bench::new(&tiny()).without("pos_embed"), "DINOv3"),
        (
            Bench::new(&tiny())
                .without("norm.weight")
                .without("norm.bias"),
            "no final norm",
        ),
    ] {
        let path = bench.write("vit.safetensors");
        for hints in [
            heads(3),
            Hints {
                config: Some(tiny()),
                ..Hints::default()
            },
        ] {
            let message = message(&path, &hints);
            assert!(message.contains(said), "{message}");
            assert!(!message.contains("preset"), "{message}");
        }
    }
    let mut bench = Bench::new(&tiny());
    bench.eight_bit.push("blocks.1.attn.qkv.weight".into());
    let message = message(&bench.write("vit.safetensors"), &heads(3));
    assert!(
        message.contains("F8_E4M3") && message.contains("quantisation"),
        "{message}"
    );
}

#[test]
fn a_file_with_fewer_blocks_than_its_config_is_not_whole() {
    let bench = Bench::new(&tiny());
    let path = bench.write("vit.safetensors");
    let config = r#"{"model_type": "vit", "hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 3}"#;
    bench.beside("config.json", config);
    let message = message(&path, &Hints::default());
    assert!(
        message.contains("2 blocks") && message.contains("has 3"),
        "{message}"
    );
    bench.beside("config.json", &config.replace("layers\": 3", "layers\": 2"));
    Checkpoint::open(&path, &Hints::default()).unwrap();

    // The name of a known model tells as well.
    let bench = Bench::new(&VitConfig::standard(32, 16, 192, 11, 3));
    let path = bench.write("vit_tiny_patch16_224.augreg_in21k.safetensors");
    let message = self::message(&path, &Hints::default());
    assert!(
        message.contains("11 blocks") && message.contains("has 12"),
        "{message}"
    );
}

#[test]
fn a_rectangle_of_patches_and_a_class_token_are_not_taken_for_a_square() {
    // 16 rows: 4 x 4 patches, or 3 x 5 and the class token.
    let bench = Bench::new(&tiny()).with("pos_embed", &[1, 16, 48]);
    let path = bench.write("vit.safetensors");
    let refused = message(&path, &heads(3));
    assert!(refused.contains("rectangle"), "{refused}");
    for config in [
        r#"{"architecture": "vit_x", "model_args": {"no_embed_class": true}}"#,
        r#"{"architecture": "vit_x", "pretrained_cfg": {"input_size": [3, 32, 32]}}"#,
        r#"{"architecture": "deit3_medium_patch16_224"}"#,
    ] {
        bench.beside("config.json", config);
        let checkpoint = Checkpoint::open(&path, &heads(3)).unwrap();
        assert_eq!(checkpoint.config().pos_embed, PosEmbed::Patches, "{config}");
        assert_eq!(checkpoint.config().image_size, 32);
    }
    let config = r#"{"architecture": "vit_x", "pretrained_cfg": {"input_size": [3, 24, 40]}}"#;
    bench.beside("config.json", config);
    assert!(message(&path, &heads(3)).contains("rectangle"));
}

#[test]
fn wrappers_that_pytorch_leaves_in_names_are_taken_off() {
    let plain = Bench::new(&tiny());
    let wrapped = Bench::new(&tiny()).renamed(|name| {
        let name = name.replace(".attn.", "._checkpoint_wrapped_module.attn.");
        format!("_orig_mod.module.{name}")
    });
    let load = |bench: &Bench| {
        let path = bench.write("vit.safetensors");
        let (vit, report) = Checkpoint::open(&path, &heads(3))
            .unwrap()
            .load(&test_device())
            .unwrap();
        assert!(report.unused.is_empty(), "{report}");
        vit.blocks[1].attn.qkv.weight.val().into_data()
    };
    assert_eq!(load(&wrapped), load(&plain));
}

#[test]
fn preprocessing_that_is_not_done_here_is_a_reason_and_no_silence() {
    let bench = Bench::new(&tiny());
    let path = bench.write("vit.safetensors");
    let config = r#"{"size": {"height": 32, "width": 32}, "do_pad": true, "image_mean": [0.5], "image_std": [0.5]}"#;
    bench.beside("preprocessor_config.json", config);
    let checkpoint = Checkpoint::open(&path, &heads(3)).unwrap();
    assert_eq!(checkpoint.preprocess(), None);
    assert!(
        checkpoint
            .preprocess_problem()
            .unwrap()
            .contains("`do_pad`")
    );
    assert!(checkpoint.describe().contains("do_pad"));
}

#[test]
fn positions_of_other_libraries_are_another_resize() {
    let bench = Bench::new(&tiny());
    let path = bench.write("vit.safetensors");
    let positions = |how| {
        let hints = Hints {
            image_size: Some(48),
            positions: how,
            ..heads(3)
        };
        let (vit, _) = Checkpoint::open(&path, &hints)
            .unwrap()
            .load(&test_device())
            .unwrap();
        let data = vit.pos_embed.val().into_data();
        data.iter::<f32>().collect::<Vec<_>>()
    };
    let [default, timm, bicubic] = [
        None,
        Some(PositionResize::Antialiased),
        Some(PositionResize::Bicubic),
    ]
    .map(positions);
    assert_eq!(default, timm);
    assert_ne!(timm, bicubic);
    assert_eq!(timm[..48], bicubic[..48], "the class token");
}

#[test]
fn the_caller_goes_over_the_file() {
    let bench = Bench::new(&tiny());
    let path = bench.write("vit.safetensors");
    let hints = Hints {
        pooling: Some(Pooling::Average),
        image_size: Some(48),
        norm_eps: Some(1e-5),
        ..heads(4)
    };
    let checkpoint = Checkpoint::open(&path, &hints).unwrap();
    let c = checkpoint.config();
    assert_eq!((c.pooling, c.n_heads, c.grid()), (Pooling::Average, 4, 6));
    assert_eq!(c.norm_eps, 1e-5);
    let (vit, _) = checkpoint.load(&test_device()).unwrap();
    assert_eq!(vit.pos_embed.val().dims(), [1, 37, 48]);
}
