//! Gradient checkpointing: a block keeps what goes into it and nothing else, and computes the rest
//! again when the gradient comes back.
//!
//! Forward, the blocks run without autodiff and their inputs are kept. Backward, from the last block
//! to the first that matters, a block runs once more with autodiff, from its kept input; the gradient
//! of its output gives those of its parameters and of its input. Only one block's activations exist
//! at a time.
//!
//! burn's own strategy (`Device::gradient_checkpointing`) recomputes single operations that it knows
//! to be cheap. It saves little of a transformer, whose memory lies with products and attention.

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Gradients, Tensor};

use crate::model::{Model, n_trained};

/// What the backward pass needs of the blocks of a forward pass.
#[derive(Debug)]
pub struct Recompute {
    /// Images, where the embedding is trained.
    images: Option<Tensor<4>>,
    /// First block that gets a gradient.
    first: usize,
    /// Inputs of the blocks from `first` on, `[batch, n_tokens, d_model]`, without autodiff.
    inputs: Vec<Tensor<3>>,
    /// Output of the last block, a leaf.
    output: Tensor<3>,
}

impl Recompute {
    /// Features `[batch, d_model]` of a model, and what gives the gradients of its blocks once that of the
    /// features is there. `images` is `[batch, n_channels, image_size, image_size]` with autodiff. `None` where
    /// no block gets a gradient, and for a model with a second pass, whose blocks read more than tokens.
    ///
    /// # Panics
    ///
    /// If the images do not have the size of the backbone.
    pub fn features(model: &Model, images: &Tensor<4>) -> Option<(Tensor<2>, Self)> {
        if model.state.second_pass().is_some() {
            return None;
        }
        let trains_backbone = n_trained(&model.backbone) > 0;
        let adapted = model.adapter.sites.iter().map(|bank| bank.site().group);
        let first = match trains_backbone {
            true => 0,
            false if n_trained(&model.adapter) == 0 => return None,
            false => adapted.min()?,
        };
        let constant = model.backbone.valid();
        let updates = model.adapter.valid().updates();
        let mut tokens = constant.embed(images.clone().inner());
        let mut inputs = Vec::with_capacity(constant.blocks.len());
        for (block_idx, block) in constant.blocks.iter().enumerate() {
            let input = tokens.clone();
            tokens = block.forward(tokens, block_idx, &updates);
            if block_idx >= first {
                inputs.push(input);
            }
        }
        let output = Tensor::from_inner(tokens).require_grad();
        let features = model.backbone.read_out(output.clone());
        let kept = Self {
            images: trains_backbone.then(|| images.clone()),
            first,
            inputs,
            output,
        };
        Some((features, kept))
    }

    /// The gradients of all blocks, given those of a loss of the features: `add` gets the gradients
    /// of the parameters part by part, some parameters more than once; their sum counts. Those of
    /// what stands behind the blocks are in `gradients` and stay there.
    pub fn backward(
        mut self,
        model: &Model,
        gradients: &mut Gradients,
        mut add: impl FnMut(GradientsParams),
    ) {
        let Some(mut gradient) = self.output.grad_remove(gradients) else {
            return;
        };
        while let Some(input) = self.inputs.pop() {
            let block_idx = self.first + self.inputs.len();
            let input = Tensor::from_inner(input).require_grad();
            let updates = model.adapter.group_updates(block_idx);
            let block = &model.backbone.blocks[block_idx];
            let output = block.forward(input.clone(), block_idx, &updates);
            let mut gradients = pulled(output, gradient).backward();
            add(GradientsParams::from_module(&mut gradients, model));
            match input.grad_remove(&mut gradients) {
                Some(below) => gradient = below,
                None => return,
            }
        }
        if let Some(images) = self.images {
            let tokens = model.backbone.embed(images);
            let mut gradients = pulled(tokens, gradient).backward();
            add(GradientsParams::from_module(&mut gradients, model));
        }
    }
}

/// A number `[1]` whose gradient with respect to `output` is `gradient`.
fn pulled(output: Tensor<3>, gradient: Tensor<3>) -> Tensor<1> {
    (output * Tensor::from_inner(gradient)).sum()
}
