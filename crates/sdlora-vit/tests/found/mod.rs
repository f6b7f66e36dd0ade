//! The backbones that golden values belong to, found by what lies beside them.
#![allow(dead_code, reason = "every test file uses another part")]

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor};
use sdlora_core::Updates;
use sdlora_testkit::Golden;
use sdlora_testkit::discover::{Untold, below, untold_of};
use sdlora_vit::{Checkpoint, Hints, Vit, VitError};

/// Every model in the folder of `io`, with the name of its file: safetensors and PyTorch.
///
/// No tensor tells the heads. Where nothing in the folder does, the number is taken that comes nearest to the
/// tensor `output` of `io`; the test then has to agree with it.
pub fn backbones(io: &Golden, output: &str, device: &Device) -> Vec<(String, Vit)> {
    let folder = io.path().parent().unwrap();
    let side = *io.shape("input").last().unwrap();
    let mut found = Vec::new();
    for path in weight_files(folder) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if let Some(vit) = load(&path, side, io, output, device) {
            found.push((name, vit));
        }
    }
    assert!(
        !found.is_empty(),
        "no model lies beside {}",
        io.path().display()
    );
    found
}

/// Files of the folder itself that may be models.
fn weight_files(folder: &Path) -> Vec<PathBuf> {
    let both = ["safetensors", "pth"].map(|extension| below(folder, extension));
    let files = both.concat().into_iter();
    files.filter(|path| path.parent() == Some(folder)).collect()
}

/// The model of a file; `None` where it holds something else.
fn load(path: &Path, side: usize, io: &Golden, output: &str, device: &Device) -> Option<Vit> {
    let d_model = *io.shape(output).last().unwrap();
    let open = |untold: Option<Untold>| {
        let hints = Hints {
            image_size: Some(side),
            n_heads: untold.map(|untold| untold.n_heads),
            norm_eps: untold.and_then(|untold| untold.norm_eps),
            ..Hints::default()
        };
        Checkpoint::open(path, &hints)?.load(device)
    };
    let failed = match open(None) {
        Ok((vit, _)) => return Some(vit),
        Err(VitError::NotAVit { problem, .. }) if problem.starts_with("none of its") => {
            return None;
        }
        Err(error) => error,
    };
    assert!(failed.to_string().contains("heads"), "{failed}");
    if let Some(untold) = untold_of(d_model, path.parent().unwrap()) {
        return Some(open(Some(untold)).unwrap().0);
    }
    let (expected, _) = io.f32(output);
    let images: Tensor<4> = io.tensor("input", device);
    let error_of = |vit: &Vit| -> f32 {
        let found = match output {
            "norm" => vit
                .forward_tokens(images.clone(), &Updates::default())
                .into_data(),
            _ => vit.forward(images.clone(), &Updates::default()).into_data(),
        };
        let pairs = found.iter::<f32>().zip(&expected);
        pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    let candidates = (1..=d_model).filter(|n| d_model.is_multiple_of(*n));
    let models = candidates.map(|n_heads| {
        let norm_eps = None;
        open(Some(Untold { n_heads, norm_eps })).unwrap().0
    });
    models.min_by(|a, b| error_of(a).total_cmp(&error_of(b)))
}
