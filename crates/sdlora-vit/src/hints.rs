//! What the caller knows of a weight file.

use crate::activation::Activation;
use crate::config::{Pooling, VitConfig};
use crate::pos_embed::PositionResize;

/// What the caller knows better than the file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Hints {
    /// The whole shape; the file then has to fit it, but for the grid of its positions, which is
    /// brought to that of `image_size`.
    pub config: Option<VitConfig>,
    /// Side of the input in pixels; the positions are brought to its grid.
    pub image_size: Option<usize>,
    /// Heads per block, which no tensor tells.
    pub n_heads: Option<usize>,
    /// Which tokens become the feature.
    pub pooling: Option<Pooling>,
    /// Added to the variance inside every layer norm, which no tensor tells.
    pub norm_eps: Option<f64>,
    /// The function in the MLP, which no tensor tells.
    pub activation: Option<Activation>,
    /// How positions are brought to another grid; as timm does it when absent.
    pub positions: Option<PositionResize>,
}
