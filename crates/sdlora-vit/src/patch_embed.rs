//! Patches of an image as tokens: cut, flatten, project.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use rand::Rng;

use crate::config::VitConfig;
use crate::layers::Linear;

/// Projects every patch to a token. A convolution with kernel and stride of one patch is this
/// product, and the product is the faster form of it.
#[derive(Module, Debug)]
pub struct PatchEmbed {
    /// `[n_channels · patch · patch, d_model]`, rows in the order channel, row, column.
    pub proj: Linear,
    #[module(skip)]
    patch_size: usize,
}

impl PatchEmbed {
    /// Freshly drawn weights.
    pub fn init(config: &VitConfig, rng: &mut impl Rng, device: &Device) -> Self {
        let mut layer = Self::blank(config, device);
        layer.proj.draw(rng, device);
        layer
    }

    pub(crate) fn blank(config: &VitConfig, device: &Device) -> Self {
        let d_patch = config.n_channels * config.patch_size * config.patch_size;
        Self {
            proj: Linear::blank(d_patch, config.d_model, config.patch_bias, device),
            patch_size: config.patch_size,
        }
    }

    /// `images: [batch, n_channels, height, width]` to `[batch, n_patches, d_model]`, patches row
    /// by row from the top left.
    pub fn forward(&self, images: Tensor<4>) -> Tensor<3> {
        let p = self.patch_size;
        let [batch, n_channels, height, width] = images.dims();
        let (rows, columns) = (height / p, width / p);
        let patches = images
            .reshape([batch, n_channels, rows, p, columns, p])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([batch, rows * columns, n_channels * p * p]);
        self.proj.forward(patches, &[])
    }
}
