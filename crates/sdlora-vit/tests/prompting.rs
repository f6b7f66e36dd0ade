//! Prefixes and tokens in front against PyTorch: features and gradients of the tiny ViT.
#![allow(clippy::unwrap_used)]

use burn::module::Module;
use burn::tensor::Tensor;
use sdlora_core::Updates;
use sdlora_testkit::{Golden, Tolerance, assert_close, golden_file, test_device_autodiff};
use sdlora_vit::{Prefix, Prompting, ReadOut, Vit, VitConfig};

/// Absolute; values and gradients are of order 1, as in section 1 of the golden README.
const TOLERANCE: Tolerance = Tolerance::Abs(1e-5);

#[test]
fn prefixes_and_tokens_in_front_agree_with_pytorch() {
    let (Some(weights), Some(io), Some(prompts)) = (
        golden_file("tiny_vit_timm.safetensors"),
        golden_file("tiny_vit_io.safetensors"),
        golden_file("prompts.safetensors"),
    ) else {
        assert!(
            std::env::var_os("SDLORA_GOLDEN").is_some(),
            "golden files are missing"
        );
        return;
    };
    let device = test_device_autodiff();
    let config = VitConfig::standard(32, 8, 48, 3, 3);
    let (vit, _) = Vit::load(&weights, Some(&config), &device).unwrap();
    let vit = vit.no_grad();
    let images = Golden::open(io).tensor::<4>("input", &device);
    let golden = Golden::open(prompts);
    let leaf = |name: &str| golden.tensor::<3>(name, &device).require_grad();
    let cotangent = golden.tensor::<2>("cotangent", &device);
    let check = |prompting: &Prompting, what: &str, leaves: &[(&str, Tensor<3>)]| {
        let features = vit.forward_prompted(images.clone(), &Updates::default(), prompting);
        let grads = (features.clone() * cotangent.clone()).sum().backward();
        let name = format!("{what}.features");
        assert_close(features, golden.f32(&name), TOLERANCE, &name);
        for (name, leaf) in leaves {
            let name = format!("{name}.grad");
            let grad = leaf.grad(&grads).unwrap();
            assert_close(grad, golden.f32(&name), TOLERANCE, &name);
        }
    };

    let front = leaf("front");
    let prompting = Prompting::default().with_tokens(front.clone(), ReadOut::Prompts);
    check(&prompting, "front", &[("front", front)]);

    let names = [
        "block0.keys",
        "block0.values",
        "block2.keys",
        "block2.values",
    ];
    let leaves = names.map(|name| (name, leaf(name)));
    let prefix = |i: usize| Prefix::new(leaves[i].1.clone(), leaves[i + 1].1.clone());
    let prompting = Prompting::default()
        .with_prefix(0, prefix(0))
        .with_prefix(2, prefix(2));
    check(&prompting, "prefix", &leaves);
}
