//! What every scheme of names answers: who named a file, and what a tensor is to the model.

use std::fmt;

/// Who named the tensors of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// timm's `VisionTransformer`, and the files of this crate.
    Timm,
    /// Hugging Face `ViTModel`, also DeiT, ViT-MAE and ViT-MSN there.
    HuggingFaceVit,
    /// Hugging Face `Dinov2Model` and `Dinov2WithRegistersModel`.
    HuggingFaceDinov2,
    /// The releases of DINO, DINOv2 and MAE.
    Original,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Timm => "timm",
            Self::HuggingFaceVit => "Hugging Face ViT",
            Self::HuggingFaceDinov2 => "Hugging Face DINOv2",
            Self::Original => "DINO, DINOv2 or MAE release",
        })
    }
}

/// What a tensor of a file is to the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// The parameter of that timm name.
    Whole(String),
    /// Query, key or value (0, 1, 2) of the packed parameter of that timm name.
    Part(String, usize),
    /// Not needed for the feature; what it is.
    Unused(&'static str),
    /// Needed for the feature, and this crate lacks it; what it is.
    Foreign(&'static str),
}

/// `blocks.3.attn.qkv.weight` to `(3, "attn.qkv.weight")` for the stem `blocks.`.
pub(super) fn block<'a>(name: &'a str, stem: &str) -> Option<(usize, &'a str)> {
    let (idx, rest) = name.strip_prefix(stem)?.split_once('.')?;
    Some((idx.parse().ok()?, rest))
}
