//! The backbone with the numbers that a graph computes with.

use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use half::f16;
use sdlora_onnx::{Quantised, Weights};
use sdlora_vit::{Linear, Vit};

/// The backbone as weights of these bits give it back.
pub(super) fn stored(mut vit: Vit, weights: Weights) -> Vit {
    if weights == Weights::F32 {
        return vit;
    }
    // Below 16 bits only the maps of the blocks.
    round(&mut vit.patch_embed.proj, Weights::F16);
    for block in &mut vit.blocks {
        let layers = [
            &mut block.attn.qkv,
            &mut block.attn.proj,
            &mut block.mlp.fc1,
            &mut block.mlp.fc2,
        ];
        for layer in layers {
            round(layer, weights);
        }
    }
    vit
}

fn round(layer: &mut Linear, weights: Weights) {
    let weight = layer.weight.val();
    let (shape, device) = (weight.dims(), weight.device());
    let mut values: Vec<f32> = weight.into_data().iter::<f32>().collect();
    match weights {
        Weights::F32 => {}
        Weights::F16 => {
            let halves: Vec<f32> = values.iter().map(|&v| f16::from_f32(v).to_f32()).collect();
            // A matrix with a number out of range stays in 32 bits.
            if halves.iter().all(|v| v.is_finite()) {
                values = halves;
            }
        }
        Weights::Int8 => values = Quantised::of(&values, shape[1]).values(),
    }
    let weight = Tensor::from_data(TensorData::new(values, shape), &device);
    layer.weight = Param::from_tensor(weight);
}
