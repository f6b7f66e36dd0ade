//! Names of the DINO, DINOv2 and MAE releases: timm's, but for registers, chunks of blocks and
//! what training wrapped around the network.

use super::place::{Place, block};
use super::timm;

/// Whether the tensors come from one of these releases. `names` are those of the whole file,
/// `inner` those of the backbone without the wrapper.
pub(super) fn is<'a>(
    prefix: &str,
    names: &[&str],
    mut inner: impl Iterator<Item = &'a &'a str>,
) -> bool {
    let wrapped = ["teacher.", "student.", "backbone."]
        .iter()
        .any(|word| prefix.contains(word));
    wrapped
        || names.iter().any(|name| name.contains("decoder_embed"))
        || inner.any(|name| {
            matches!(*name, "register_tokens" | "mask_token") || in_chunk(name).is_some()
        })
}

/// The place of a tensor.
pub(super) fn place(name: &str) -> Place {
    if name == "register_tokens" {
        return Place::Whole("reg_token".into());
    }
    match in_chunk(name) {
        // Chunks count their blocks from the first block of the model.
        Some((idx, part)) => timm::place(&format!("blocks.{idx}.{part}")),
        None => timm::place(name),
    }
}

/// `blocks.1.7.norm1.weight` to `(7, "norm1.weight")`.
fn in_chunk(name: &str) -> Option<(usize, &str)> {
    let (_, rest) = block(name, "blocks.")?;
    let (idx, part) = rest.split_once('.')?;
    Some((idx.parse().ok()?, part))
}
