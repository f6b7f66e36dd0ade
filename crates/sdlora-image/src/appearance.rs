//! Changes of appearance: what a task's images look like, the same in training and test.
//!
//! A stream in which later tasks also look different (thicker strokes, inverted, textured, turned) shows whether a
//! method follows a drift of the inputs besides new classes. A change is part of the data, not an augmentation: it
//! is the same for an image in every epoch.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::ImageError;
use crate::image::Image;
use crate::resize::{Affine, sample_affine};

/// One change; several are applied in order, after polarity and channels of the transform.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Appearance {
    /// Bright becomes dark and dark bright.
    Invert,
    /// Bright parts grow by `radius` on every side, or shrink where it is negative.
    Stroke {
        /// Radius as a fraction of the image's shorter side, from -0.25 to 0.25.
        radius: f32,
    },
    /// The image is turned counter-clockwise around its centre.
    Rotate {
        /// Angle in degrees.
        degrees: f32,
    },
    /// Gaussian noise on a coarse grid, smoothly interpolated, is added; every image has its own.
    Texture {
        /// Standard deviation on the scale where black is 0 and white is 1, from 0 to 1.
        std: f32,
        /// Cells of the grid along each side, from 1 to 256.
        n_cells: usize,
        /// Seed of the noise.
        #[serde(default)]
        seed: u64,
    },
}

impl Appearance {
    /// Checks the ranges; `setting` names this change in the error.
    ///
    /// # Errors
    ///
    /// [`ImageError::Setting`] for a value outside its range.
    pub fn check(&self, setting: &str) -> Result<(), ImageError> {
        match *self {
            Self::Invert => Ok(()),
            Self::Stroke { radius } if !(-0.25..=0.25).contains(&radius) => Err(
                ImageError::setting(format!("{setting}.stroke.radius"), radius, "-0.25 to 0.25"),
            ),
            Self::Rotate { degrees } if !degrees.is_finite() => Err(ImageError::setting(
                format!("{setting}.rotate.degrees"),
                degrees,
                "a finite angle",
            )),
            Self::Texture { std, .. } if !(0.0..=1.0).contains(&std) => Err(ImageError::setting(
                format!("{setting}.texture.std"),
                std,
                "0 to 1",
            )),
            Self::Texture { n_cells, .. } if !(1..=256).contains(&n_cells) => Err(
                ImageError::setting(format!("{setting}.texture.n_cells"), n_cells, "1 to 256"),
            ),
            _ => Ok(()),
        }
    }

    /// The changed image; `noise` gives the image's own generator for a seed.
    pub(crate) fn apply(&self, mut image: Image, noise: impl Fn(u64) -> ChaCha8Rng) -> Image {
        match *self {
            Self::Invert => inverted(image),
            Self::Stroke { radius } => {
                let side = image.width().min(image.height());
                let pixels = (radius.abs() * side as f32).round() as usize;
                if radius > 0.0 {
                    extremum(&image, pixels, u8::max)
                } else {
                    extremum(&image, pixels, u8::min)
                }
            }
            Self::Rotate { degrees } => {
                let size = (image.width(), image.height());
                let channels = image.channels();
                let mut data = vec![0; image.data().len()];
                // From output to source: the inverse turn.
                let map = Affine::rotation(-degrees);
                sample_affine(
                    &image,
                    border_level(&image),
                    map,
                    size,
                    |channel, pixel, level| {
                        data[pixel * channels + channel] = level.round() as u8;
                    },
                );
                image.with_pixels(size.0, size.1, data)
            }
            Self::Texture { std, n_cells, seed } => {
                let mut rng = noise(seed);
                let grid: Vec<f32> = (0..n_cells * n_cells)
                    .map(|_| 255.0 * std * gaussian(&mut rng))
                    .collect();
                add_grid(&mut image, &grid, n_cells);
                image
            }
        }
    }
}

/// The image with bright and dark exchanged.
pub(crate) fn inverted(mut image: Image) -> Image {
    let levels = image.data_mut().iter_mut();
    levels.for_each(|level| *level = 255 - *level);
    image
}

/// Level of each channel in the middle of the sorted border pixels: the background of drawings and signs.
pub(crate) fn border_level(image: &Image) -> [u8; 3] {
    let (width, height, channels) = (image.width(), image.height(), image.channels());
    let border = (0..width)
        .flat_map(|x| [(x, 0), (x, height - 1)])
        .chain((0..height).flat_map(|y| [(0, y), (width - 1, y)]));
    let mut levels = [const { Vec::new() }; 3];
    for (x, y) in border {
        let pixel = (y * width + x) * channels;
        for (channel, levels) in levels.iter_mut().enumerate().take(channels) {
            levels.push(image.data()[pixel + channel]);
        }
    }
    levels.map(|mut levels| {
        let middle = levels.len() / 2;
        if levels.is_empty() {
            0
        } else {
            *levels.select_nth_unstable(middle).1
        }
    })
}

/// Largest or smallest level within a square of `radius` pixels around each pixel.
fn extremum(image: &Image, radius: usize, pick: fn(u8, u8) -> u8) -> Image {
    let (width, height, channels) = (image.width(), image.height(), image.channels());
    // A square is a row of columns, so each direction is done on its own.
    let pass = |data: &[u8], len: usize, step: usize, outer: &dyn Fn(usize) -> usize, n: usize| {
        let mut out = data.to_vec();
        for line in 0..n {
            let start = outer(line);
            for i in 0..len {
                let from = i.saturating_sub(radius);
                let to = (i + radius).min(len - 1);
                let level = (from..=to).map(|j| data[start + j * step]).reduce(pick);
                if let Some(level) = level {
                    out[start + i * step] = level;
                }
            }
        }
        out
    };
    let row_len = width * channels;
    let horizontal = pass(
        image.data(),
        width,
        channels,
        &|line| line / channels * row_len + line % channels,
        height * channels,
    );
    let both = pass(&horizontal, height, row_len, &|line| line, row_len);
    image.with_pixels(width, height, both)
}

/// Standard normal by Box and Muller.
fn gaussian(rng: &mut impl rand::Rng) -> f32 {
    // 1 - u is in (0, 1], where the logarithm is finite.
    let radius = (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
    radius * (std::f32::consts::TAU * rng.random::<f32>()).cos()
}

/// Adds a square grid of values, bilinearly interpolated, to every channel.
fn add_grid(image: &mut Image, grid: &[f32], n_cells: usize) {
    let (width, height, channels) = (image.width(), image.height(), image.channels());
    let position = |i: usize, len: usize| {
        let place = ((i as f32 + 0.5) / len as f32 * n_cells as f32 - 0.5).max(0.0);
        let first = (place as usize).min(n_cells - 1);
        (first, (first + 1).min(n_cells - 1), place - first as f32)
    };
    let data = image.data_mut();
    for y in 0..height {
        let (y0, y1, weight_y) = position(y, height);
        for x in 0..width {
            let (x0, x1, weight_x) = position(x, width);
            let mix = |row: usize| {
                let (left, right) = (grid[row * n_cells + x0], grid[row * n_cells + x1]);
                left + (right - left) * weight_x
            };
            let noise = mix(y0) + (mix(y1) - mix(y0)) * weight_y;
            for level in &mut data[(y * width + x) * channels..][..channels] {
                *level = (f32::from(*level) + noise).round().clamp(0.0, 255.0) as u8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::generator;

    /// The noise of image `idx`.
    fn noise(idx: u32) -> impl Fn(u64) -> ChaCha8Rng {
        move |seed| generator(seed, [idx, 0, 0])
    }

    fn dot() -> Image {
        let mut data = vec![0; 25];
        data[12] = 200;
        Image::new(5, 5, 1, data).unwrap()
    }

    fn applied(appearance: &Appearance) -> Vec<u8> {
        appearance.apply(dot(), noise(0)).data().to_vec()
    }

    #[test]
    fn strokes_grow_and_shrink_by_the_radius() {
        let grown = applied(&Appearance::Stroke { radius: 0.2 });
        let expected: Vec<u8> = (0..25)
            .map(|i| {
                if (1..4).contains(&(i % 5)) && (1..4).contains(&(i / 5)) {
                    200
                } else {
                    0
                }
            })
            .collect();
        assert_eq!(grown, expected);
        assert_eq!(applied(&Appearance::Stroke { radius: -0.2 }), [0; 25]);
        assert_eq!(applied(&Appearance::Stroke { radius: 0.0 }), dot().data());
    }

    #[test]
    fn strokes_do_not_mix_channels() {
        let image = Image::new(3, 1, 3, vec![0, 0, 0, 9, 0, 5, 0, 0, 0]).unwrap();
        let wide = extremum(&image, 1, u8::max);
        assert_eq!(wide.data(), [9, 0, 5].repeat(3));
    }

    #[test]
    fn inverting_twice_is_nothing() {
        let once = Appearance::Invert.apply(dot(), noise(0));
        assert_eq!((once.data()[12], once.data()[0]), (55, 255));
        assert_eq!(Appearance::Invert.apply(once, noise(0)), dot());
    }

    #[test]
    fn half_a_turn_reverses_the_pixels() {
        let image = Image::new(2, 2, 1, vec![1, 2, 3, 4]).unwrap();
        let turned = Appearance::Rotate { degrees: 180.0 }.apply(image.clone(), noise(0));
        assert_eq!(turned.data(), [4, 3, 2, 1]);
        let turned = Appearance::Rotate { degrees: 90.0 }.apply(image, noise(0));
        assert_eq!(turned.data(), [2, 4, 1, 3]);
    }

    #[test]
    fn texture_belongs_to_the_image_and_has_the_asked_spread() {
        let texture = Appearance::Texture {
            std: 0.1,
            n_cells: 32,
            seed: 3,
        };
        let flat = Image::new(32, 32, 1, vec![128; 1024]).unwrap();
        let apply = |idx| texture.apply(flat.clone(), noise(idx));
        let first = apply(4);
        assert_eq!(first, apply(4));
        assert_ne!(first, apply(5));
        let deviations = first.data().iter().map(|&v| f64::from(v) - 128.0);
        let variance = deviations.map(|d| d * d).sum::<f64>() / 1024.0;
        // 25.5 squared, within five standard errors of a sample variance of 1,024 values.
        assert!((variance / 650.25 - 1.0).abs() < 0.22, "{variance}");
    }

    #[test]
    fn border_level_is_the_middle_of_the_border() {
        let mut data = vec![7; 25];
        data[12] = 0;
        // Ink that touches the border, darker and brighter than the paper.
        data[1] = 0;
        data[22] = 255;
        let image = Image::new(5, 5, 1, data).unwrap();
        assert_eq!(border_level(&image)[0], 7);
    }

    #[test]
    fn ranges_are_checked() {
        for wrong in [
            Appearance::Stroke { radius: 0.3 },
            Appearance::Rotate { degrees: f32::NAN },
            Appearance::Texture {
                std: 2.0,
                n_cells: 4,
                seed: 0,
            },
            Appearance::Texture {
                std: 0.1,
                n_cells: 0,
                seed: 0,
            },
        ] {
            let message = wrong.check("appearances[0]").unwrap_err().to_string();
            assert!(message.contains("appearances[0]."), "{message}");
        }
    }
}
