//! The transform that a checkpoint asks for: its own mean, deviation, size, resize and crop.

use sdlora_data::{
    Channels, Interpolation, Normalise, PipelineConfig, Resize, Size, Step, TransformConfig,
};
use sdlora_vit::{Checkpoint, Preprocess};

use crate::UsageError;

/// The published transforms with the numbers of a checkpoint, or `None` where it carries none.
///
/// # Errors
///
/// A usage error for what the transforms cannot do, with the setting that takes its place.
pub fn transform_of(checkpoint: &Checkpoint) -> Result<Option<TransformConfig>, UsageError> {
    match checkpoint.preprocess() {
        None => Ok(None),
        Some(preprocess) => transform(preprocess, checkpoint.config().n_channels).map(Some),
    }
}

fn transform(preprocess: &Preprocess, n_channels: usize) -> Result<TransformConfig, UsageError> {
    let refuse = |what: String| {
        UsageError(format!(
            "the checkpoint asks for {what}, which no transform here does: write a `[transform]` of your own"
        ))
    };
    let interpolation = match preprocess.interpolation {
        sdlora_vit::Interpolation::Bilinear => Interpolation::Bilinear,
        sdlora_vit::Interpolation::Bicubic => Interpolation::Bicubic,
        other => return Err(refuse(format!("{other:?} interpolation"))),
    };
    let channels = match n_channels {
        1 => Channels::Gray,
        3 => Channels::Rgb,
        n => return Err(refuse(format!("{n} channels"))),
    };
    let side = preprocess.input_size;
    let resized = preprocess.resized_side();
    let mut pipeline = PipelineConfig::imagenet(side, resized, interpolation);
    if preprocess.resize == sdlora_vit::Resize::Squash {
        let exact = Resize {
            size: Size::Exact([resized, resized]),
            interpolation,
        };
        pipeline.test[0] = Step::Resize(exact);
    }
    let mut config = TransformConfig::new(side, channels);
    config.normalise = Some(Normalise {
        mean: preprocess.mean.clone(),
        std: preprocess.std.clone(),
    });
    config.pipeline = Some(pipeline);
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn augreg() -> Preprocess {
        Preprocess {
            mean: vec![0.5; 3],
            std: vec![0.5; 3],
            input_size: 224,
            crop_fraction: 0.9,
            interpolation: sdlora_vit::Interpolation::Bicubic,
            resize: sdlora_vit::Resize::ShortSide,
        }
    }

    #[test]
    fn the_numbers_of_a_checkpoint_become_a_transform_that_is_valid() {
        let config = transform(&augreg(), 3).unwrap();
        config.init().unwrap();
        assert_eq!((config.side, config.channels.count()), (224, 3));
        assert_eq!(config.normalise.as_ref().unwrap().mean, [0.5; 3]);
        // 224 / 0.9 = 248.9
        let test = PipelineConfig::imagenet_test(248, 224, Interpolation::Bicubic);
        assert_eq!(config.pipeline.unwrap().test, test);

        let squash = Preprocess {
            resize: sdlora_vit::Resize::Squash,
            crop_fraction: 1.0,
            mean: vec![0.5],
            std: vec![0.5],
            ..augreg()
        };
        let config = transform(&squash, 1).unwrap();
        config.init().unwrap();
        let Step::Resize(resize) = config.pipeline.unwrap().test[0] else {
            panic!("the first step resizes");
        };
        assert_eq!(resize.size, Size::Exact([224, 224]));
    }

    #[test]
    fn what_no_transform_does_is_refused_by_name() {
        let lanczos = Preprocess {
            interpolation: sdlora_vit::Interpolation::Lanczos,
            ..augreg()
        };
        let error = transform(&lanczos, 3).unwrap_err().to_string();
        assert!(
            error.contains("Lanczos") && error.contains("[transform]"),
            "{error}"
        );
        assert!(
            transform(&augreg(), 2)
                .unwrap_err()
                .to_string()
                .contains("2 channels")
        );
    }
}
