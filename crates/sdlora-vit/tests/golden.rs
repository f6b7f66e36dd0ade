//! The backbone against PyTorch: every activation of every tiny ViT of the golden folder.
#![allow(clippy::unwrap_used)]

mod found;

use sdlora_core::Updates;
use sdlora_testkit::{Compared, Golden, Tolerance, assert_close, golden_with, test_device};
use sdlora_vit::Vit;

/// Absolute, values are of order 1 (golden README, section 1).
const TOLERANCE: Tolerance = Tolerance::Abs(1e-5);

#[test]
fn every_activation_agrees_with_pytorch() {
    let mut compared = Compared::new("ViTs with their activations");
    for io in golden_with(&["input", "embed", "norm"]) {
        for (name, vit) in found::backbones(&io, "norm", &test_device()) {
            check(&vit, &io);
            compared.add(format!("{name} with {}", io.stem()));
        }
    }
}

/// Every activation that the file has.
fn check(vit: &Vit, io: &Golden) {
    let check = |actual, name: &str| {
        if io.has(name) {
            assert_close(actual, io.f32(name), TOLERANCE, name);
        }
    };
    let none = Updates::default();
    let input = io.tensor::<4>("input", &test_device());
    check(vit.patch_embed.forward(input.clone()), "patch_embed");
    let embed = vit.embed(input.clone());
    check(embed.clone(), "embed");

    let mut tokens = embed;
    for (i, block) in vit.blocks.iter().enumerate() {
        let name = |part: &str| format!("block{i}.{part}");
        let norm1 = block.norm1.forward(tokens.clone());
        check(norm1.clone(), &name("norm1"));
        check(block.attn.project(norm1.clone(), i, &none), &name("qkv"));
        let attn = block.attn.forward(norm1, i, &none);
        check(attn.clone(), &name("attn"));
        if io.has(&name("norm2")) {
            let norm2 = block.norm2.forward(tokens.clone() + attn);
            check(norm2.clone(), &name("norm2"));
            check(block.mlp.forward(norm2, i, &none), &name("mlp"));
        }
        tokens = block.forward(tokens, i, &none);
        check(tokens.clone(), &format!("block{i}"));
    }
    check(vit.forward_tokens(input.clone(), &none), "norm");
    if io.has("cls") {
        assert_close(vit.forward(input, &none), io.f32("cls"), TOLERANCE, "cls");
    }
}
