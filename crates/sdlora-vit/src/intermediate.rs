//! The tokens between blocks: for checks against other programs, and for features of inner layers.

use std::collections::BTreeMap;

use burn::tensor::{DType, Tensor};
use sdlora_core::{Updates, cast};

use crate::error::VitError;
use crate::model::Vit;

impl Vit {
    /// Tokens after each of the named blocks (from 0), `[batch, n_tokens, d_model]` each, in the
    /// order asked for. They are not normed, as in timm's `forward_intermediates(norm=False)`.
    /// Blocks behind the last one named are not computed.
    ///
    /// # Errors
    ///
    /// [`VitError::Shape`] for a block the model does not have.
    ///
    /// # Panics
    ///
    /// If the images do not have the size of the model.
    pub fn block_tokens(
        &self,
        images: Tensor<4>,
        updates: &Updates,
        block_indices: &[usize],
    ) -> Result<Vec<Tensor<3>>, VitError> {
        let depth = self.blocks.len();
        if let Some(&found) = block_indices.iter().find(|&&i| i >= depth) {
            return Err(VitError::Shape {
                field: "layer",
                found,
                expected: format!("a block from 0 to {}", depth - 1),
            });
        }
        let n_needed = block_indices.iter().max().map_or(0, |&last| last + 1);
        let mut tokens = self.embed(images);
        // Only what was asked for is kept: the tokens of all blocks are a lot of memory.
        let mut kept = BTreeMap::new();
        for (block_idx, block) in self.blocks[..n_needed].iter().enumerate() {
            tokens = block.forward(tokens, block_idx, updates);
            if block_indices.contains(&block_idx) {
                kept.insert(block_idx, cast(tokens.clone(), DType::F32));
            }
        }
        Ok(block_indices.iter().map(|i| kept[i].clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VitConfig;
    use rand::SeedableRng;
    use sdlora_testkit::{Tolerance, assert_close, test_device};

    #[test]
    fn the_last_block_normed_and_pooled_is_the_feature() {
        let device = test_device();
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
        let vit = Vit::init(&VitConfig::standard(8, 4, 12, 3, 2), &mut rng, &device).unwrap();
        let images = Tensor::<4>::ones([2, 3, 8, 8], &device);
        let none = Updates::default();
        let tokens = vit.block_tokens(images.clone(), &none, &[2, 0]).unwrap();
        assert_eq!(tokens[0].dims(), [2, 5, 12]);
        let expected: Vec<f32> = vit
            .forward(images.clone(), &none)
            .into_data()
            .iter()
            .collect();
        let feature = vit.pool(vit.norm.forward(tokens[0].clone()));
        assert_close(feature, expected.as_slice(), Tolerance::Abs(1e-6), "last");
        let first = vit.blocks[0].forward(vit.embed(images.clone()), 0, &none);
        let first: Vec<f32> = first.into_data().iter().collect();
        assert_close(
            tokens[1].clone(),
            first.as_slice(),
            Tolerance::Abs(0.0),
            "first",
        );
        let error = vit.block_tokens(images, &none, &[3]).unwrap_err();
        assert!(error.to_string().contains("0 to 2"), "{error}");
    }
}
