//! How an image becomes the input that a published ViT was trained on.

mod hugging_face;
mod settings;
mod timm;

pub use settings::{Interpolation, Preprocess, Resize};

use crate::sidecar::Sidecar;

/// Metadata key under which a file keeps the [`Preprocess`] of its model, as JSON.
pub const PREPROCESS_KEY: &str = "sdlora.preprocess";

impl Preprocess {
    /// What the files beside the weights tell, or what they ask for that no transform here does;
    /// `None` where they tell nothing.
    pub(crate) fn beside(sidecar: &Sidecar) -> Option<Result<Self, String>> {
        let (file, found) = match (&sidecar.preprocessor, sidecar.pretrained_cfg()) {
            (Some(cfg), _) => ("preprocessor_config.json", hugging_face::read(cfg)),
            (None, Some(cfg)) => ("config.json", timm::read(cfg)?),
            (None, None) => return None,
        };
        Some(found.map_err(|what| format!("{file} asks for {what}")))
    }
}
