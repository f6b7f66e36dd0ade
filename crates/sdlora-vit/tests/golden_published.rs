//! Tiny ViTs as timm, transformers and the DINO releases write them: understood without help, with
//! the features that those give.
#![allow(clippy::unwrap_used)]

mod found;

use std::path::PathBuf;

use sdlora_core::Updates;
use sdlora_testkit::{
    Compared, Golden, Tolerance, assert_close, golden_dir, golden_file, golden_with, test_device,
};
use sdlora_vit::{
    Activation, Checkpoint, Hints, Pooling, PosEmbed, PositionResize, Resize, Scheme, Vit,
};

/// Absolute, values are of order 1.
const TOLERANCE: Tolerance = Tolerance::Abs(1e-4);

/// The folder of a case and its reference; without them there is nothing to compare with, and the test fails.
fn case(name: &str, io: &str) -> (PathBuf, Golden) {
    let io = golden_file(&format!("vit/{name}/{io}"));
    (golden_dir().join("vit").join(name), Golden::open(io))
}

/// Whatever lies in the golden folder, under whatever name.
#[test]
fn every_model_with_features_beside_it_gives_them() {
    let mut compared = Compared::new("models with their features");
    for io in golden_with(&["input", "features"]) {
        for (name, vit) in found::backbones(&io, "features", &test_device()) {
            let folder = io.path().parent().unwrap().file_name().unwrap();
            let what = format!("{}/{name} with {}", folder.display(), io.stem());
            check_features(&vit, &io, &what);
            compared.add(what);
        }
    }
}

fn check_features(vit: &Vit, io: &Golden, what: &str) {
    let features = vit.forward(io.tensor("input", &test_device()), &Updates::default());
    assert_close(features, io.f32("features"), TOLERANCE, what);
}

/// Opens the case, compares its features, and hands what was understood to `check`.
fn agrees(name: &str, file: &str, hints: &Hints, check: impl Fn(&Checkpoint)) {
    let (folder, io) = case(name, "io.safetensors");
    let checkpoint = Checkpoint::open(&folder.join(file), hints).unwrap();
    let (vit, report) = checkpoint.load(&test_device()).unwrap();
    assert!(report.is_complete(), "{report}");
    check(&checkpoint);
    check_features(&vit, &io, name);

    // Written with our names it is the same model, without any help.
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy.safetensors");
    let bytes = vit.to_bytes(sdlora_vit::WeightDtype::F32, &Default::default());
    std::fs::write(&copy, bytes.unwrap()).unwrap();
    let (again, report) = Vit::load(&copy, None, &test_device()).unwrap();
    assert!(report.unused.is_empty(), "{report}");
    assert_eq!(again.config(), vit.config());
    check_features(&again, &io, name);
}

#[test]
fn timm_with_average_pooling_and_the_norm_behind_it() {
    agrees("timm_avg", "model.safetensors", &Hints::default(), |c| {
        assert_eq!(c.scheme(), Scheme::Timm);
        assert!(c.config().fc_norm && c.config().pooling == Pooling::Average);
        assert_eq!(c.report().unused, ["head.bias", "head.weight"]);
        let preprocess = c.preprocess().unwrap();
        assert_eq!(preprocess.resized_side(), 35);
        assert_eq!(preprocess.std, [0.25; 3]);
        let text = c.describe();
        assert!(
            text.contains("2 heads per block, from config.json"),
            "{text}"
        );
    });
}

#[test]
fn timm_with_registers_layer_scale_and_no_bias() {
    agrees("timm_reg4", "", &Hints::default(), |c| {
        let config = c.config();
        assert_eq!((config.n_registers, config.n_tokens()), (4, 21));
        assert_eq!(config.pos_embed, PosEmbed::Patches);
        assert!(config.layer_scale && !config.qkv_bias);
    });
}

#[test]
fn timm_with_a_norm_before_the_blocks() {
    agrees("timm_pre_norm", "", &Hints::default(), |c| {
        assert!(c.config().pre_norm && !c.config().patch_bias);
        assert_eq!(c.config().norm_eps, 1e-5);
    });
}

#[test]
fn hugging_face_vit_with_a_classifier() {
    agrees("hf_vit", "", &Hints::default(), |c| {
        assert_eq!(c.scheme(), Scheme::HuggingFaceVit);
        assert_eq!(c.config().norm_eps, 1e-12);
        assert_eq!(c.report().unused, ["classifier.bias", "classifier.weight"]);
        assert_eq!(c.preprocess().unwrap().resize, Resize::Squash);
        let key = c
            .mapping()
            .into_iter()
            .find(|t| t.name.ends_with("layer.1.attention.attention.key.bias"))
            .unwrap();
        assert_eq!(key.target.as_deref(), Some("blocks.1.attn.qkv.bias"));
        assert_eq!(key.status, "rows of the key");
    });
}

#[test]
fn hugging_face_dinov2_with_registers() {
    agrees("hf_dinov2_reg", "", &Hints::default(), |c| {
        assert_eq!(c.scheme(), Scheme::HuggingFaceDinov2);
        assert_eq!(c.config().n_registers, 4);
        assert_eq!(c.report().unused, ["embeddings.mask_token"]);
    });
}

#[test]
fn positions_are_brought_to_other_grids() {
    for (io, side) in [("io.safetensors", 56), ("io_24.safetensors", 24)] {
        let (folder, io) = case("timm_resized", io);
        let hints = Hints {
            image_size: Some(side),
            ..Hints::default()
        };
        let checkpoint = Checkpoint::open(&folder, &hints).unwrap();
        assert_eq!(checkpoint.config().image_size, side);
        assert!(checkpoint.describe().contains("resized from 4 x 4"));
        let (vit, _) = checkpoint.load(&test_device()).unwrap();
        check_features(&vit, &io, &format!("{side} pixels"));
    }
}

#[test]
fn a_training_checkpoint_of_dino() {
    // Nothing tells the heads: refused with the way out, then given.
    let (folder, _) = case("dino_pth", "io.safetensors");
    let error = Checkpoint::open(&folder.join("checkpoint.pth"), &Hints::default());
    let message = error.unwrap_err().to_string();
    assert!(message.contains("say the number of heads"), "{message}");
    let hints = Hints {
        n_heads: Some(2),
        ..Hints::default()
    };
    agrees("dino_pth", "checkpoint.pth", &hints, |c| {
        assert_eq!(c.scheme(), Scheme::Original);
        let text = c.describe();
        assert!(text.contains("behind `teacher.module.backbone.`"), "{text}");
        let unused = c.report().unused;
        assert!(
            unused.iter().any(|n| n.starts_with("student.")),
            "{unused:?}"
        );
    });
}

#[test]
fn a_release_of_dinov2_with_registers() {
    let hints = Hints {
        n_heads: Some(2),
        ..Hints::default()
    };
    agrees("dinov2_pth", "dinov2_pretrain.pth", &hints, |c| {
        assert_eq!(c.scheme(), Scheme::Original);
        assert_eq!(c.config().pos_embed, PosEmbed::Patches);
        assert_eq!(c.report().unused, ["mask_token"]);
    });
}

#[test]
fn timm_with_the_function_of_clip_told_by_its_name() {
    agrees("timm_quickgelu", "", &Hints::default(), |c| {
        assert_eq!(c.config().activation, Activation::QuickGelu);
        assert!(c.describe().contains("activation quick-gelu"));
    });
}

#[test]
fn hugging_face_dinov2_at_another_side_as_its_library_does_it() {
    agrees("hf_dinov2_resized", "", &Hints::default(), |c| {
        assert_eq!(c.config().activation, Activation::GeluTanh);
    });
    let (folder, io) = case("hf_dinov2_resized", "io_48.safetensors");
    let features = |positions| {
        let hints = Hints {
            image_size: Some(48),
            positions,
            ..Hints::default()
        };
        let checkpoint = Checkpoint::open(&folder, &hints).unwrap();
        let (vit, _) = checkpoint.load(&test_device()).unwrap();
        vit.forward(io.tensor("input", &test_device()), &Updates::default())
    };
    let expected = io.f32("bicubic_features");
    let found = features(Some(PositionResize::Bicubic));
    assert_close(found, expected.clone(), TOLERANCE, "bicubic");
    // The way of timm, which stays the default, is another.
    let other: Vec<f32> = features(None).into_data().iter().collect();
    let far = other
        .iter()
        .zip(&expected.0)
        .any(|(a, b)| (a - b).abs() > 1e-2);
    assert!(far, "both ways give the same");
}
