//! Features and inner tokens of prepared images, as tensors of a file.

use burn::tensor::{Device, Tensor, TensorData};
use sdlora_core::Updates;

use super::tensors::TensorFile;
use crate::error::TrainError;
use crate::extractor::Extractor;

/// Images per forward pass.
const BATCH: usize = 64;

/// `features` `[n, width]` of prepared images, and `block.N` `[n, n_tokens, d_model]`, not normed,
/// for every block asked for. `pixels` holds the images one after another, each
/// `[n_channels, image_size, image_size]`; what is left behind the last whole image is ignored.
///
/// # Errors
///
/// [`sdlora_vit::VitError::Shape`] for a block the model does not have, [`TrainError::Setting`] for
/// blocks of a model with a second pass, whose tokens the feature does not come from.
pub fn extract_features(
    extractor: &Extractor,
    pixels: &[f32],
    block_indices: &[usize],
    device: &Device,
) -> Result<TensorFile, TrainError> {
    let vit = extractor.vit();
    let c = vit.config();
    if extractor.has_second_pass() && !block_indices.is_empty() {
        return Err(TrainError::setting(
            "layer",
            format!("{block_indices:?}"),
            "no block, because the features of this run come from a second pass",
        ));
    }
    let side = c.image_size;
    let n_values = c.n_channels * side * side;
    let n = pixels.len() / n_values;
    let none = Updates::default();
    let mut features = Vec::with_capacity(n * extractor.width());
    let mut tokens: Vec<Vec<f32>> = vec![Vec::new(); block_indices.len()];
    for chunk in pixels[..n * n_values].chunks(BATCH * n_values) {
        let shape = [chunk.len() / n_values, c.n_channels, side, side];
        let images = Tensor::<4>::from_data(TensorData::new(chunk.to_vec(), shape), device);
        if !block_indices.is_empty() {
            let blocks = vit.block_tokens(images.clone(), &none, block_indices)?;
            for (out, block) in tokens.iter_mut().zip(blocks) {
                out.extend(block.into_data().iter::<f32>());
            }
        }
        features.extend(extractor.features(images).into_data().iter::<f32>());
    }
    let mut file = TensorFile::default();
    file.insert("features", vec![n, extractor.width()], features);
    for (block_idx, values) in block_indices.iter().zip(tokens) {
        let shape = vec![n, c.n_tokens(), c.d_model];
        file.insert(format!("block.{block_idx}"), shape, values);
    }
    Ok(file)
}
