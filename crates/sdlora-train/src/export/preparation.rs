//! What a run does to the images it evaluates, in the terms that other programs have, and what of it they lack.

use sdlora_image::{Drawing, Fit, Interpolation, Polarity, Process, Size, Step, TransformConfig};

/// Size of an image before its centre is cut out, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resized {
    /// Length of the shorter side; the shape is kept.
    Shorter(usize),
    /// Both sides; the shape is not kept.
    Square(usize),
}

/// Filter of a resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    /// Pillow's number 2.
    Bilinear,
    /// Pillow's number 3.
    Bicubic,
    /// The average of the area, Pillow's number 4.
    Area,
}

/// A resize and a crop of the centre.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Preparation {
    pub resized: Resized,
    pub filter: Filter,
    /// Side of the square that is cut out, that of the model's input.
    pub side: usize,
    /// What is not carried over, a sentence each; empty when nothing is lost.
    pub lost: Vec<String>,
}

impl Preparation {
    /// That of the test transform.
    pub fn of(transform: &TransformConfig) -> Self {
        let side = transform.side;
        let new = |resized, filter| Self {
            resized,
            filter,
            side,
            lost: Vec::new(),
        };
        let pipeline = match &transform.process {
            Process::Drawing(drawing) => return Self::of_drawings(side, drawing),
            Process::Pipeline(pipeline) => pipeline,
        };
        let (resize, crops) = match pipeline.test.as_slice() {
            [Step::Resize(resize)] => (Some(resize), false),
            [Step::Resize(resize), Step::CenterCrop(crop)] => (Some(resize), *crop == side),
            _ => (None, false),
        };
        let filter = |interpolation| match interpolation {
            Interpolation::Bilinear => Filter::Bilinear,
            Interpolation::Bicubic => Filter::Bicubic,
        };
        match resize.map(|r| (r.size, filter(r.interpolation))) {
            Some((Size::Shorter(n), filter)) if crops && n >= side => {
                new(Resized::Shorter(n), filter)
            }
            Some((Size::Exact([h, w]), filter)) if h == w && (h == side || crops && h >= side) => {
                new(Resized::Square(h), filter)
            }
            _ => Self {
                lost: vec![format!(
                    "the steps `{}` of the test transform have no counterpart there: a plain resize to {side} pixels \
                     stands in their place, so prepare images as the run does",
                    steps(&pipeline.test)
                )],
                ..new(Resized::Square(side), Filter::Bilinear)
            },
        }
    }

    /// That of the drawing transform, which averages areas.
    fn of_drawings(side: usize, drawing: &Drawing) -> Self {
        let mut lost = Vec::new();
        let resized = match drawing.fit {
            Fit::Stretch => Resized::Square(side),
            Fit::CropCentre { fraction } => {
                let resized = (side as f32 / fraction).round() as usize;
                if (side as f32 / fraction - resized as f32).abs() > 1e-3 {
                    lost.push(format!(
                        "the crop of {fraction} of an image becomes {side} of {resized} pixels, the nearest whole \
                         number"
                    ));
                }
                Resized::Shorter(resized)
            }
        };
        Self {
            resized,
            filter: Filter::Area,
            side,
            lost,
        }
    }

    /// `lost`, and what a program loses that has the filter `instead` of the run's.
    pub fn lost_with(&self, instead: Filter, oversample: usize) -> Vec<String> {
        let mut lost = self.lost.clone();
        if self.filter == Filter::Area {
            let n = self.side * oversample;
            lost.push(match instead {
                Filter::Area => format!(
                    "images are resized by area there as well, rounded to whole levels, and those below {n} pixels, \
                     which sdlora interpolates, otherwise: a few predictions change"
                ),
                Filter::Bilinear | Filter::Bicubic => {
                    "images are resized with another filter there, for its processors have none that averages areas: \
                     predictions near a boundary change, fewer of them with `--format timm`"
                        .into()
                }
            });
        }
        lost
    }
}

/// The steps as the plan names them.
fn steps(steps: &[Step]) -> String {
    serde_json::to_string(steps).unwrap_or_default()
}

/// Mean and standard deviation of every channel as the run normalises levels from 0 to 1. Inverted
/// levels `1 - x` are the same as mean `1 - mean` and a negative deviation.
pub(super) fn normalisation(transform: &TransformConfig) -> (Vec<f64>, Vec<f64>) {
    let n_channels = transform.channels.count();
    let (mean, std) = match &transform.normalise {
        None => (vec![0.0], vec![1.0]),
        Some(n) => (n.mean.clone(), n.std.clone()),
    };
    let inverted = transform.polarity == Polarity::Inverted;
    // Through the shortest decimal form, so that 0.08 stays 0.08 in the file.
    let wide = |v: f32| v.to_string().parse().unwrap_or(f64::from(v));
    (0..n_channels)
        .map(|i| (wide(mean[i % mean.len()]), wide(std[i % std.len()])))
        .map(|(mean, std)| {
            if inverted {
                (1.0 - mean, -std)
            } else {
                (mean, std)
            }
        })
        .unzip()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdlora_image::{Channels, PipelineConfig, Resize};

    fn with_steps(test: Vec<Step>) -> TransformConfig {
        let train = Vec::new();
        TransformConfig::new(32, Channels::Rgb).with_pipeline(PipelineConfig { train, test })
    }

    fn resize(size: Size) -> Step {
        Step::Resize(Resize {
            size,
            interpolation: Interpolation::Bicubic,
        })
    }

    #[test]
    fn a_resize_and_a_crop_are_carried_over_whole() {
        for (test, resized) in [
            (
                vec![resize(Size::Shorter(35)), Step::CenterCrop(32)],
                Resized::Shorter(35),
            ),
            (
                vec![resize(Size::Exact([35, 35])), Step::CenterCrop(32)],
                Resized::Square(35),
            ),
            (vec![resize(Size::Exact([32, 32]))], Resized::Square(32)),
        ] {
            let found = Preparation::of(&with_steps(test));
            assert_eq!((found.resized, found.filter), (resized, Filter::Bicubic));
            assert!(found.lost.is_empty(), "{:?}", found.lost);
        }
    }

    #[test]
    fn steps_without_a_counterpart_are_named() {
        for test in [
            vec![],
            vec![Step::CenterCrop(32)],
            vec![resize(Size::Shorter(20)), Step::CenterCrop(32)],
            vec![resize(Size::Exact([32, 40])), Step::CenterCrop(32)],
            vec![
                resize(Size::Shorter(64)),
                Step::CenterCrop(48),
                resize(Size::Exact([32, 32])),
            ],
        ] {
            let found = Preparation::of(&with_steps(test));
            assert_eq!(
                (found.resized, found.filter),
                (Resized::Square(32), Filter::Bilinear)
            );
            assert!(
                found.lost[0].contains("have no counterpart"),
                "{:?}",
                found.lost
            );
        }
    }

    #[test]
    fn drawings_are_averaged_and_the_loss_of_another_filter_is_said() {
        let cropped = |fraction| {
            TransformConfig::omniglot(28).with_drawing(Drawing {
                fit: Fit::CropCentre { fraction },
                ..Drawing::default()
            })
        };
        let transform = TransformConfig::omniglot(28);
        let found = Preparation::of(&transform);
        assert_eq!(
            (found.resized, found.filter),
            (Resized::Square(28), Filter::Area)
        );
        assert!(found.lost_with(Filter::Area, 2)[0].contains("below 56 pixels"));
        assert!(found.lost_with(Filter::Bicubic, 2)[0].contains("another filter"));
        let found = Preparation::of(&cropped(0.875));
        assert_eq!(found.resized, Resized::Shorter(32));
        assert!(found.lost.is_empty());
        assert!(Preparation::of(&cropped(0.9)).lost[0].contains("28 of 31"));
        assert_eq!(normalisation(&transform), (vec![1.0], vec![-1.0]));
    }
}
