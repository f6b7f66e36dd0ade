//! What the query, key and value projections of every block see: for methods that design an update
//! from it.

use burn::tensor::{DType, Tensor};
use sdlora_core::{Updates, cast};

use crate::model::Vit;

impl Vit {
    /// Calls `see` block by block with the normed tokens `[batch, n_tokens, d_model]` that the block
    /// projects to queries, keys and values, for `images: [batch, n_channels, image_size,
    /// image_size]`. What follows the projections of the last block is not computed.
    ///
    /// # Panics
    ///
    /// If the images do not have the size of the model.
    pub fn attention_inputs(
        &self,
        images: Tensor<4>,
        updates: &Updates,
        mut see: impl FnMut(usize, Tensor<3>),
    ) {
        let mut tokens = self.embed(images);
        let last = self.blocks.len().saturating_sub(1);
        for (block_idx, block) in self.blocks.iter().enumerate() {
            // The block norms its tokens again: one norm more, and one way through a block.
            see(
                block_idx,
                cast(block.norm1.forward(tokens.clone()), DType::F32),
            );
            if block_idx < last {
                tokens = block.forward(tokens, block_idx, updates);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VitConfig;
    use rand::SeedableRng;
    use sdlora_testkit::{Tolerance, assert_close, test_device};

    #[test]
    fn a_block_attends_over_the_inputs_that_are_seen() {
        let device = test_device();
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
        let mut vit = Vit::init(&VitConfig::standard(8, 4, 12, 2, 2), &mut rng, &device).unwrap();
        for block in &mut vit.blocks {
            // Without an MLP a block adds to its tokens what its attention makes of its inputs.
            block.mlp.fc2.weight = block.mlp.fc2.weight.clone().map(|w| w.zeros_like());
        }
        let images = Tensor::<4>::from_data([[[[0.5f32; 8]; 8]; 3]; 2], &device);
        let none = Updates::default();
        let mut seen = Vec::new();
        vit.attention_inputs(images.clone(), &none, |block_idx, inputs| {
            seen.push((block_idx, inputs));
        });
        assert_eq!(seen.len(), 2);
        let mut tokens = vit.embed(images.clone());
        for (block_idx, inputs) in seen {
            tokens = tokens + vit.blocks[block_idx].attn.forward(inputs, block_idx, &none);
        }
        let expected: Vec<f32> = vit.forward(images, &none).into_data().iter().collect();
        let found = vit.pool(vit.norm.forward(tokens));
        assert_close(found, expected.as_slice(), Tolerance::Abs(1e-5), "feature");
    }
}
