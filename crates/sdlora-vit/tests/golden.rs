//! The backbone against PyTorch: every activation of the tiny ViT.
#![allow(clippy::unwrap_used)]

use sdlora_core::Updates;
use sdlora_testkit::{Golden, Tolerance, assert_close, golden_file, test_device};
use sdlora_vit::{Vit, VitConfig};

/// Absolute, values are of order 1 (golden README, section 1).
const TOLERANCE: Tolerance = Tolerance::Abs(1e-5);

#[test]
fn every_activation_agrees_with_pytorch() {
    let (Some(weights), Some(io)) = (
        golden_file("tiny_vit_timm.safetensors"),
        golden_file("tiny_vit_io.safetensors"),
    ) else {
        assert!(
            std::env::var_os("SDLORA_GOLDEN").is_some(),
            "golden files are missing"
        );
        return;
    };
    let device = test_device();
    let config = VitConfig::standard(32, 8, 48, 3, 3);
    let (vit, report) = Vit::load(&weights, Some(&config), &device).unwrap();
    assert_eq!(report.applied.len(), 42);
    assert!(report.unused.is_empty(), "{report}");

    let io = Golden::open(io);
    let check = |actual, name: &str| assert_close(actual, io.f32(name), TOLERANCE, name);
    let none = Updates::default();
    let input = io.tensor::<4>("input", &device);
    check(vit.patch_embed.forward(input.clone()), "patch_embed");
    let embed = vit.embed(input.clone());
    check(embed.clone(), "embed");

    let block = &vit.blocks[0];
    let norm1 = block.norm1.forward(embed.clone());
    check(norm1.clone(), "block0.norm1");
    check(block.attn.project(norm1.clone(), 0, &none), "block0.qkv");
    let attn = block.attn.forward(norm1, 0, &none);
    check(attn.clone(), "block0.attn");
    let norm2 = block.norm2.forward(embed.clone() + attn);
    check(norm2.clone(), "block0.norm2");
    check(block.mlp.forward(norm2, 0, &none), "block0.mlp");

    let mut tokens = embed;
    for (i, block) in vit.blocks.iter().enumerate() {
        tokens = block.forward(tokens, i, &none);
        check(tokens.clone(), &format!("block{i}"));
    }
    check(vit.forward_tokens(input.clone(), &none), "norm");
    assert_close(vit.forward(input, &none), io.f32("cls"), TOLERANCE, "cls");
}
