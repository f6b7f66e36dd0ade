//! From images to features, as a trained model does it: for evaluation, heads and prediction.

use burn::tensor::Tensor;
use sdlora_core::Updates;
use sdlora_vit::Vit;

use crate::prompts::Prompts;

/// A model without its classifier and without autodiff: what turns images into features.
///
/// It costs what the plain backbone costs, and twice that with prompts: the first pass finds them.
#[derive(Debug, Clone)]
pub struct Extractor {
    vit: Vit,
    prompts: Option<Prompts>,
}

impl From<Vit> for Extractor {
    fn from(vit: Vit) -> Self {
        Self { vit, prompts: None }
    }
}

impl Extractor {
    /// The same backbone with prompts.
    pub(crate) fn with_prompts(mut self, prompts: Option<Prompts>) -> Self {
        self.prompts = prompts;
        self
    }

    /// Features `[batch, d_model]` of `images: [batch, n_channels, image_size, image_size]`.
    ///
    /// # Panics
    ///
    /// If the images do not have the size of the backbone.
    pub fn features(&self, images: Tensor<4>) -> Tensor<2> {
        let none = Updates::default();
        match &self.prompts {
            None => self.vit.forward(images, &none),
            Some(prompts) => prompts.features(&self.vit, images, &none),
        }
    }

    /// The backbone, directions inside, without prompts.
    pub fn vit(&self) -> &Vit {
        &self.vit
    }

    /// The prompts; none for a method without.
    pub fn prompts(&self) -> Option<&Prompts> {
        self.prompts.as_ref()
    }
}
