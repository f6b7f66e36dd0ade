//! Reads a checkpoint, says what it is, and computes the features of an image.
//!
//! `cargo run --example read_a_checkpoint -- vit_base.safetensors`;
//! without a path, it reads the backbone that the repository ships.

use std::path::Path;

use burn::tensor::{Device, Tensor};
use sdlora_core::Updates;
use sdlora_vit::{Checkpoint, Hints, VitError};

const SHIPPED: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../datasets/omniglot/vit_omniglot_patch7_28.safetensors"
);

#[expect(clippy::print_stdout, reason = "an example shows what happens")]
fn main() -> Result<(), VitError> {
    let path = std::env::args()
        .nth(1)
        .unwrap_or_else(|| SHIPPED.to_owned());
    // What a file does not tell, such as the number of heads, goes into the hints.
    let checkpoint = Checkpoint::open(Path::new(&path), &Hints::default())?;
    println!("{}", checkpoint.describe());
    for tensor in checkpoint.mapping().iter().take(3) {
        println!(
            "{} {:?} {}: {}",
            tensor.name, tensor.shape, tensor.dtype, tensor.status
        );
    }

    let device = Device::default();
    let (vit, report) = checkpoint.load(&device)?;
    println!("{report}");
    let (channels, side) = (vit.config().n_channels, vit.config().image_size);
    let image = Tensor::<4>::zeros([1, channels, side, side], &device);
    let features = vit.forward(image, &Updates::default());
    println!("features of an empty image: {:?}", features.dims());
    Ok(())
}
