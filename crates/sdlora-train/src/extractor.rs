//! From images to features, as a trained model does it: for evaluation, heads and prediction.

use burn::tensor::Tensor;
use sdlora_core::Updates;
use sdlora_vit::Vit;

use crate::second_pass;
use crate::state::MethodState;

/// A model without its classifier and without autodiff: what turns images into features.
///
/// It costs what the plain backbone costs, and twice that with a second pass: the first finds the prompts of an
/// image, or is half of its features.
#[derive(Debug, Clone)]
pub struct Extractor {
    vit: Vit,
    state: MethodState,
}

impl From<Vit> for Extractor {
    fn from(vit: Vit) -> Self {
        Self {
            vit,
            state: MethodState::default(),
        }
    }
}

impl Extractor {
    /// The same backbone with the state of a method, without autodiff.
    pub(crate) fn with_state(mut self, state: MethodState) -> Self {
        self.state = state;
        self
    }

    /// Features `[batch, width]` of `images: [batch, n_channels, image_size, image_size]`.
    ///
    /// # Panics
    ///
    /// If the images do not have the size of the backbone.
    pub fn features(&self, images: Tensor<4>) -> Tensor<2> {
        let none = Updates::default();
        second_pass::features(&self.state, &self.vit, images, &none)
    }

    /// What a batch of images `[batch, n_channels, image_size, image_size]` is classified by.
    ///
    /// # Panics
    ///
    /// If the images do not have the size of the backbone.
    pub(crate) fn read(&self, images: Tensor<4>) -> Read {
        let none = Updates::default();
        let (features, shifts) = second_pass::read(&self.state, &self.vit, images, &none);
        Read { features, shifts }
    }

    /// Width of the features: that of the backbone, unless a second pass makes them wider.
    pub fn width(&self) -> usize {
        let d_model = self.vit.config().d_model;
        let second_pass = self.state.second_pass();
        second_pass.map_or(d_model, |second_pass| second_pass.width(d_model))
    }

    /// The backbone, directions inside, without prompts.
    pub fn vit(&self) -> &Vit {
        &self.vit
    }

    /// Whether features come from a second pass over the images.
    pub fn has_second_pass(&self) -> bool {
        self.state.second_pass().is_some()
    }
}

/// What a classifier reads of a batch of images.
pub(crate) struct Read {
    /// `[batch, d_model]`.
    pub features: Tensor<2>,
    /// Added to the logits of the first classes, `[batch, n_shifted]`.
    pub shifts: Option<Tensor<2>>,
}
