//! Files that are no ViT of ours say what they are and what to do.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rand::SeedableRng;
use safetensors::SafeTensors;
use sdlora_testkit::test_device;
use sdlora_vit::{Checkpoint, Hints, Pooling, Vit, VitConfig, VitError, WeightDtype};
use tempfile::TempDir;

/// A small timm file without metadata, so that its shape has to be found out.
struct Bench {
    folder: TempDir,
    tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
}

impl Bench {
    fn new(config: &VitConfig) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let vit = Vit::init(config, &mut rng, &test_device()).unwrap();
        let path = folder.path().join("with_metadata.safetensors");
        vit.save(&path, WeightDtype::F32, &BTreeMap::new()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        let tensors = SafeTensors::deserialize(&bytes)
            .unwrap()
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, (view.shape().to_vec(), view.data().to_vec())))
            .collect();
        Self { folder, tensors }
    }

    /// One more tensor, of zeros.
    fn with(mut self, name: &str, shape: &[usize]) -> Self {
        let bytes = vec![0; 4 * shape.iter().product::<usize>()];
        self.tensors.insert(name.into(), (shape.to_vec(), bytes));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.tensors.remove(name).unwrap();
        self
    }

    fn write(&self, name: &str) -> PathBuf {
        let views = self.tensors.iter().map(|(name, (shape, bytes))| {
            let view =
                safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
            (name, view.unwrap())
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
        ("attn_pool.q.weight", &[48, 48], "--pooling"),
    ] {
        let bench = Bench::new(&tiny()).with(tensor, shape);
        let message = message(&bench.write("vit.safetensors"), &heads(3));
        assert!(message.contains(said), "{tensor}: {message}");
    }
}

#[test]
fn heads_come_from_a_name_with_its_width_or_not_at_all() {
    let bench = Bench::new(&VitConfig::standard(32, 16, 192, 1, 3));
    let known = bench.write("vit_tiny_patch16_224.safetensors");
    let checkpoint = Checkpoint::open(&known, &Hints::default()).unwrap();
    assert_eq!(checkpoint.config().n_heads, 3);
    let unknown = bench.write("mine.safetensors");
    let error = Checkpoint::open(&unknown, &Hints::default()).unwrap_err();
    assert!(matches!(error, VitError::NotAVit { .. }));
    assert!(error.to_string().contains("give --heads"), "{error}");
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
    assert!(message(&path, &Hints::default()).contains("--heads"));
    let text = Checkpoint::open(&path, &heads(3)).unwrap().describe();
    assert!(text.contains("width 384 and was passed over"), "{text}");

    let other = r#"{"architecture": "vit_base_patch32_clip_quickgelu_224", "num_features": 48}"#;
    bench.beside("config.json", other);
    assert!(message(&path, &heads(3)).contains("approximate GELU"));
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
