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
    /// The average of the area. Pillow's `box`, number 4, is the same where the new side divides the old one, and
    /// else gives each pixel whole to one of the two that share it.
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
                if resized.saturating_sub(side) % 2 == 1 {
                    lost.push(format!(
                        "the centre of {side} of {resized} pixels lies half a pixel off there"
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
                    "images are averaged there too, but over whole pixels: that differs where their sides are no \
                     multiples of {side}, and below {n} pixels, where sdlora interpolates; a few predictions change",
                    side = self.side
                ),
                Filter::Bilinear | Filter::Bicubic => {
                    "images are resized with another filter there, for its processors have none that averages areas: \
                     predictions near a boundary change, fewer of them with the format `timm`"
                        .into()
                }
            });
        }
        lost
    }

    /// What a program loses that rounds half a pixel down when it cuts the centre out, as transformers does:
    /// torchvision, timm and sdlora round halves to even, 2.5 to 2 and 3.5 to 4.
    pub fn lost_by_rounding_down(&self) -> Option<String> {
        let side = self.side;
        let moves = |resized: usize| resized.saturating_sub(side) % 4 == 3;
        match self.resized {
            // The run cuts exactly there.
            _ if self.filter == Filter::Area => None,
            Resized::Shorter(n) | Resized::Square(n) if moves(n) => Some(format!(
                "the centre of {side} of {n} pixels lies one pixel further to the left and to the top there"
            )),
            Resized::Shorter(_) => Some(format!(
                "where the longer side becomes 3, 7, 11 or so pixels longer than {side}, the centre lies one pixel \
                 further to the left or to the top there"
            )),
            Resized::Square(_) => None,
        }
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
    fn a_centre_that_moves_by_a_pixel_is_said() {
        for (size, expected) in [
            (Size::Exact([32, 32]), None),
            (Size::Exact([33, 33]), None),
            (Size::Exact([34, 34]), None),
            (Size::Exact([35, 35]), Some("centre of 32 of 35")),
            (Size::Shorter(35), Some("centre of 32 of 35")),
            (Size::Shorter(36), Some("where the longer side")),
            (Size::Shorter(39), Some("centre of 32 of 39")),
        ] {
            let preparation =
                Preparation::of(&with_steps(vec![resize(size), Step::CenterCrop(32)]));
            let found = preparation.lost_by_rounding_down();
            assert_eq!(found.is_some(), expected.is_some(), "{size:?}: {found:?}");
            assert!(found.is_none_or(|found| found.contains(expected.unwrap())));
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
        assert!(
            found.lost_with(Filter::Area, 2)[0].contains("multiples of 28, and below 56 pixels")
        );
        assert!(found.lost_with(Filter::Bicubic, 2)[0].contains("another filter"));
        let found = Preparation::of(&cropped(0.875));
        assert_eq!(found.resized, Resized::Shorter(32));
        assert!(found.lost.is_empty());
        let lost = Preparation::of(&cropped(0.9)).lost;
        assert!(lost[0].contains("28 of 31") && lost[1].contains("half a pixel"));
        assert_eq!(normalisation(&transform), (vec![1.0], vec![-1.0]));
    }
}
