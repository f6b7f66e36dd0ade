//! The transform that a checkpoint asks for: its own mean, deviation, size, resize and crop.

use sdlora_image::{
    Channels, Drawing, Fit, Interpolation, Normalise, PipelineConfig, Polarity, Resize, Size, Step,
    TransformConfig,
};
use sdlora_vit::{Checkpoint, Preprocess};

use crate::UsageError;

/// The input of a checkpoint and its channels, or `None` where it tells nothing.
///
/// # Errors
///
/// A usage error for what the transforms cannot do, with the setting that takes its place.
pub fn of_checkpoint(checkpoint: &Checkpoint) -> Result<Option<(Preprocess, usize)>, UsageError> {
    if let Some(problem) = checkpoint.preprocess_problem() {
        return Err(UsageError(format!("{problem}, {INSTEAD}")));
    }
    let n_channels = checkpoint.config().n_channels;
    match checkpoint.preprocess() {
        None => Ok(None),
        // Refused here and not where it is used.
        Some(found) => {
            transform(found, n_channels, None).map(|_| Some((found.clone(), n_channels)))
        }
    }
}

/// What a checkpoint that was trained with a transform tells others of its input, the inverse of [`transform`];
/// `None` for a transform that they cannot be told of.
pub fn of_transform(config: &TransformConfig) -> Option<Preprocess> {
    let drawing = config.drawing()?;
    let (resize, crop_fraction) = match drawing.fit {
        Fit::Stretch => (sdlora_vit::Resize::Squash, 1.0),
        Fit::CropCentre { fraction } => (sdlora_vit::Resize::ShortSide, fraction),
    };
    let n = config.channels.count();
    let none = Normalise {
        mean: vec![0.0; n],
        std: vec![1.0; n],
    };
    let Normalise { mut mean, mut std } = config.normalise.clone().unwrap_or(none);
    if config.polarity == Polarity::Inverted {
        // Levels `1 - x` are a mean `1 - mean` and a negative deviation.
        mean.iter_mut().for_each(|v| *v = 1.0 - *v);
        std.iter_mut().for_each(|v| *v = -*v);
    }
    Some(Preprocess {
        mean,
        std,
        input_size: config.side,
        crop_fraction,
        interpolation: sdlora_vit::Interpolation::Box,
        resize,
    })
}

/// What to do about a preprocessing that no transform does.
const INSTEAD: &str = "which no transform here does: write a `[transform]` of your own";

/// The published transforms with the numbers of a checkpoint, at images of `side` pixels where
/// given: resize and crop keep their proportion.
///
/// # Errors
///
/// A usage error for what the transforms cannot do, with the setting that takes its place.
pub fn transform(
    preprocess: &Preprocess,
    n_channels: usize,
    side: Option<usize>,
) -> Result<TransformConfig, UsageError> {
    let refuse = |what: String| UsageError(format!("the checkpoint asks for {what}, {INSTEAD}"));
    let channels = match n_channels {
        1 => Channels::Gray,
        3 => Channels::Rgb,
        n => return Err(refuse(format!("{n} channels"))),
    };
    let preprocess = Preprocess {
        input_size: side.unwrap_or(preprocess.input_size),
        ..preprocess.clone()
    };
    let mut config = TransformConfig::new(preprocess.input_size, channels);
    let (mut mean, mut std) = (preprocess.mean.clone(), preprocess.std.clone());
    if std.iter().all(|&v| v < 0.0) {
        // An export of ours: levels `1 - x` are a mean `1 - mean` and a negative deviation.
        config.polarity = Polarity::Inverted;
        mean.iter_mut().for_each(|v| *v = 1.0 - *v);
        std.iter_mut().for_each(|v| *v = -*v);
    } else if std.iter().any(|&v| v < 0.0) {
        return Err(refuse(format!("the deviations {std:?}")));
    }
    config.normalise = Some(Normalise { mean, std });
    let interpolation = match (preprocess.interpolation, preprocess.resize) {
        (sdlora_vit::Interpolation::Bilinear, _) => Interpolation::Bilinear,
        (sdlora_vit::Interpolation::Bicubic, _) => Interpolation::Bicubic,
        // The drawing transform averages areas.
        (sdlora_vit::Interpolation::Box, sdlora_vit::Resize::ShortSide) => {
            return Ok(config.with_drawing(Drawing {
                fit: Fit::CropCentre {
                    fraction: preprocess.crop_fraction,
                },
                ..Drawing::default()
            }));
        }
        (sdlora_vit::Interpolation::Box, _) if preprocess.crop_fraction == 1.0 => {
            return Ok(config);
        }
        (other, _) => return Err(refuse(format!("{other:?} interpolation"))),
    };
    let resized = preprocess.resized_side();
    let mut pipeline = PipelineConfig::imagenet(preprocess.input_size, resized, interpolation);
    if preprocess.resize == sdlora_vit::Resize::Squash {
        let exact = Resize {
            size: Size::Exact([resized, resized]),
            interpolation,
        };
        pipeline.test[0] = Step::Resize(exact);
    }
    Ok(config.with_pipeline(pipeline))
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
        let config = transform(&augreg(), 3, None).unwrap();
        config.init().unwrap();
        assert_eq!((config.side, config.channels.count()), (224, 3));
        assert_eq!(config.normalise.as_ref().unwrap().mean, [0.5; 3]);
        // 224 / 0.9 = 248.9
        let test = PipelineConfig::imagenet_test(248, 224, Interpolation::Bicubic);
        assert_eq!(config.pipeline().unwrap().test, test);

        let squash = Preprocess {
            resize: sdlora_vit::Resize::Squash,
            crop_fraction: 1.0,
            mean: vec![0.5],
            std: vec![0.5],
            ..augreg()
        };
        let config = transform(&squash, 1, None).unwrap();
        config.init().unwrap();
        let Step::Resize(resize) = config.pipeline().unwrap().test[0] else {
            panic!("the first step resizes");
        };
        assert_eq!(resize.size, Size::Exact([224, 224]));
    }

    #[test]
    fn another_side_keeps_the_proportion_of_the_crop() {
        let config = transform(&augreg(), 3, Some(384)).unwrap();
        config.init().unwrap();
        // 384 / 0.9 = 426.7
        let test = PipelineConfig::imagenet_test(426, 384, Interpolation::Bicubic);
        assert_eq!(
            (config.side, config.pipeline().unwrap().test.clone()),
            (384, test)
        );
    }

    #[test]
    fn an_export_of_drawings_gives_its_transform_back() {
        let exported = Preprocess {
            mean: vec![0.92],
            std: vec![-0.25],
            crop_fraction: 1.0,
            interpolation: sdlora_vit::Interpolation::Box,
            resize: sdlora_vit::Resize::Squash,
            ..augreg()
        };
        let config = transform(&exported, 1, None).unwrap();
        config.init().unwrap();
        assert_eq!(
            (config.polarity, config.drawing().unwrap().fit),
            (Polarity::Inverted, Fit::Stretch)
        );
        let normalise = config.normalise.unwrap();
        assert!((normalise.mean[0] - 0.08).abs() < 1e-6);
        assert_eq!(normalise.std, [0.25]);
        let mixed = Preprocess {
            std: vec![0.5, -0.5, 0.5],
            ..augreg()
        };
        assert!(transform(&mixed, 3, None).is_err());
    }

    #[test]
    fn a_transform_of_drawings_and_what_a_checkpoint_tells_of_it_are_one_another() {
        for config in [
            TransformConfig::omniglot(28),
            TransformConfig::new(28, Channels::Rgb).with_drawing(Drawing {
                fit: Fit::CropCentre { fraction: 0.875 },
                ..Drawing::default()
            }),
        ] {
            let told = of_transform(&config).unwrap();
            let back = transform(&told, config.channels.count(), None).unwrap();
            let of = |config: &TransformConfig| (config.side, config.channels, config.polarity);
            assert_eq!((of(&back), back.drawing()), (of(&config), config.drawing()));
            assert_eq!(of_transform(&back).unwrap().input_size, told.input_size);
            let normalise = back.normalise.clone().unwrap();
            if let Some(expected) = &config.normalise {
                assert!((normalise.mean[0] - expected.mean[0]).abs() < 1e-6);
                assert_eq!(normalise.std, expected.std);
            }
        }
        let pipeline = PipelineConfig::imagenet(224, 256, Interpolation::Bicubic);
        let photographs = TransformConfig::new(224, Channels::Rgb).with_pipeline(pipeline);
        assert_eq!(of_transform(&photographs), None);
    }

    /// The shipped backbone sees its images as it was trained on them, whoever opens it.
    #[test]
    fn the_shipped_weights_carry_their_preprocessing() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../datasets/omniglot/vit_omniglot_patch7_28.safetensors"
        );
        let hints = sdlora_vit::Hints::default();
        let checkpoint = Checkpoint::open(path.as_ref(), &hints).unwrap();
        let (told, n_channels) = of_checkpoint(&checkpoint).unwrap().unwrap();
        let text = include_str!("../presets/pretrain-omniglot.toml");
        let recipe: toml::Table = text.parse().unwrap();
        let trained: TransformConfig = recipe["transform"].clone().try_into().unwrap();
        assert_eq!(Some(&told), of_transform(&trained).as_ref());
        let config = transform(&told, n_channels, None).unwrap();
        assert_eq!(config.drawing(), trained.for_evaluation().drawing());
    }

    #[test]
    fn what_no_transform_does_is_refused_by_name() {
        let lanczos = Preprocess {
            interpolation: sdlora_vit::Interpolation::Lanczos,
            ..augreg()
        };
        let error = transform(&lanczos, 3, None).unwrap_err().to_string();
        assert!(
            error.contains("Lanczos") && error.contains("[transform]"),
            "{error}"
        );
        assert!(
            transform(&augreg(), 2, None)
                .unwrap_err()
                .to_string()
                .contains("2 channels")
        );
    }
}
