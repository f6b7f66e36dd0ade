//! Prefixes and tokens in front against PyTorch: features and gradients of the tiny ViT.
#![allow(clippy::unwrap_used)]

mod found;

use burn::module::Module;
use burn::tensor::Tensor;
use sdlora_core::Updates;
use sdlora_testkit::discover::nearest;
use sdlora_testkit::{
    Compared, Golden, Tolerance, assert_close, golden_with, test_device_autodiff,
};
use sdlora_vit::{Prefix, Prompting, ReadOut, Vit};

/// Absolute; values and gradients are of order 1, as in section 1 of the golden README.
const TOLERANCE: Tolerance = Tolerance::Abs(1e-5);

#[test]
fn prefixes_and_tokens_in_front_agree_with_pytorch() {
    let mut compared = Compared::new("prompts");
    let activations = golden_with(&["input", "norm"]);
    for golden in golden_with(&["cotangent"]) {
        let io = nearest(golden.path(), &activations).expect("activations lie beside the prompts");
        for (name, vit) in found::backbones(io, "norm", &test_device_autodiff()) {
            check(&golden, io, vit.no_grad());
            compared.add(format!("{} with {name}", golden.stem()));
        }
    }
}

fn check(golden: &Golden, io: &Golden, vit: Vit) {
    let device = test_device_autodiff();
    let images = io.tensor::<4>("input", &device);
    let leaf = |name: &str| golden.tensor::<3>(name, &device).require_grad();
    let cotangent = golden.tensor::<2>("cotangent", &device);
    let check = |prompting: &Prompting, what: &str, leaves: &[(String, Tensor<3>)]| {
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
    check(&prompting, "front", &[("front".to_owned(), front)]);

    // In whichever blocks the file has prefixes.
    let mut prompting = Prompting::default();
    let mut leaves: Vec<(String, Tensor<3>)> = Vec::new();
    for block_idx in 0..vit.blocks.len() {
        let names = ["keys", "values"].map(|part| format!("block{block_idx}.{part}"));
        if names.iter().all(|name| golden.has(name)) {
            let [keys, values] = names.map(|name| (leaf(&name), name));
            prompting =
                prompting.with_prefix(block_idx, Prefix::new(keys.0.clone(), values.0.clone()));
            leaves.extend([keys, values].map(|(leaf, name)| (name, leaf)));
        }
    }
    assert!(
        !leaves.is_empty(),
        "{} has no prefix",
        golden.path().display()
    );
    check(&prompting, "prefix", &leaves);
}
