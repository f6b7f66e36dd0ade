//! A few random changes of one strength (torchvision's `RandAugment`), byte for byte on 8-bit images.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::color;
use crate::error::ImageError;
use crate::image::Image;

/// Changes an image `n_ops` times by one of 14 kinds, drawn anew each time.
///
/// The kinds: nothing, shear and translation along each axis, rotation (nearest pixel, black outside), brightness,
/// colour, contrast, sharpness, posterize, solarize, autocontrast, equalize.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandAugment {
    /// Number of changes, from 0 to 32; 2 when absent.
    #[serde(default = "default_n_ops")]
    pub n_ops: usize,
    /// Strength, from 0 to 30, the strongest; 9 when absent.
    #[serde(default = "default_magnitude")]
    pub magnitude: usize,
}

fn default_n_ops() -> usize {
    2
}

fn default_magnitude() -> usize {
    9
}

/// Largest magnitude: the last of torchvision's 31 bins.
const MAX_MAGNITUDE: usize = 30;

impl Default for RandAugment {
    fn default() -> Self {
        Self {
            n_ops: default_n_ops(),
            magnitude: default_magnitude(),
        }
    }
}

impl RandAugment {
    pub(crate) fn check(&self, setting: &str) -> Result<(), ImageError> {
        for (name, value, largest) in [
            ("n_ops", self.n_ops, 32),
            ("magnitude", self.magnitude, MAX_MAGNITUDE),
        ] {
            if value > largest {
                let expected = format!("at most {largest}");
                return Err(ImageError::setting(
                    format!("{setting}.{name}"),
                    value,
                    expected,
                ));
            }
        }
        Ok(())
    }

    pub(crate) fn apply(&self, image: Image, rng: &mut ChaCha8Rng) -> Image {
        (0..self.n_ops).fold(image, |image, _| {
            let kind = rng.random_range(0..N_KINDS);
            let sign = if rng.random_range(0..2) == 1 {
                -1.0
            } else {
                1.0
            };
            self.change(image, kind, sign)
        })
    }

    fn change(&self, image: Image, kind: usize, sign: f64) -> Image {
        let strength = self.magnitude as f64 / MAX_MAGNITUDE as f64;
        let signed = |largest: f64| sign * strength * largest;
        // A translation by the whole strength of AutoAugment: 150 pixels of 331.
        let pixels = |side: usize| signed(150.0 / 331.0 * side as f64) as isize;
        match kind {
            1 => shear_x(&image, signed(0.3)),
            2 => shear_y(&image, signed(0.3)),
            3 => translate(&image, pixels(image.width()), 0),
            4 => translate(&image, 0, pixels(image.height())),
            5 => rotate(image, signed(30.0)),
            6 => color::brightness(image, 1.0 + signed(0.9)),
            7 => color::saturation(image, 1.0 + signed(0.9)),
            8 => color::contrast(image, 1.0 + signed(0.9)),
            9 => color::sharpness(image, 1.0 + signed(0.9)),
            10 => color::posterize(image, 8 - (strength * 4.0).round_ties_even() as u32),
            11 => color::solarize(image, 255.0 * (1.0 - strength)),
            12 => color::autocontrast(image),
            13 => color::equalize(image),
            _ => image,
        }
    }
}

/// Number of kinds of change, nothing among them.
const N_KINDS: usize = 14;

pub(crate) fn shear_x(image: &Image, shear: f64) -> Image {
    map_affine(image, [1.0, shear, 0.0, 0.0, 1.0, 0.0])
}

pub(crate) fn shear_y(image: &Image, shear: f64) -> Image {
    map_affine(image, [1.0, 0.0, 0.0, shear, 1.0, 0.0])
}

pub(crate) fn translate(image: &Image, x: isize, y: isize) -> Image {
    map_affine(image, [1.0, 0.0, -x as f64, 0.0, 1.0, -y as f64])
}

/// Turns counter-clockwise around the centre.
pub(crate) fn rotate(image: Image, degrees: f64) -> Image {
    if degrees == 0.0 {
        return image;
    }
    // PIL takes the angle modulo 360 and rounds sine and cosine to 15 decimals.
    let (sin, cos) = (-degrees.rem_euclid(360.0).to_radians()).sin_cos();
    let round = |value: f64| (value * 1e15).round_ties_even() / 1e15;
    let (sin, cos) = (round(sin), round(cos));
    let (x, y) = (image.width() as f64 / 2.0, image.height() as f64 / 2.0);
    let tx = cos * -x + sin * -y + x;
    let ty = -sin * -x + cos * -y + y;
    map_affine(&image, [cos, sin, tx, -sin, cos, ty])
}

/// Each pixel is the source's at `[a x + b y + c, d x + e y + f]`, nearest, or black outside.
///
/// Positions are in fixed point with 16 binary places, as PIL has them for this filter.
fn map_affine(image: &Image, [a, b, c, d, e, f]: [f64; 6]) -> Image {
    let (width, height, channels) = (image.width(), image.height(), image.channels());
    let fix = |value: f64| (value * 65_536.0 + 0.5).floor() as i64;
    // Pixel centres lie at halves.
    let (x0, y0) = (fix(c + a * 0.5 + b * 0.5), fix(f + d * 0.5 + e * 0.5));
    let [a, b, d, e] = [a, b, d, e].map(fix);
    let mut out = vec![0; image.data().len()];
    for (i, out) in out.chunks_exact_mut(channels).enumerate() {
        let (x, y) = ((i % width) as i64, (i / width) as i64);
        let source_x = (x0 + a * x + b * y) >> 16;
        let source_y = (y0 + d * x + e * y) >> 16;
        let inside =
            (0..width as i64).contains(&source_x) && (0..height as i64).contains(&source_y);
        if inside {
            let at = (source_y as usize * width + source_x as usize) * channels;
            out.copy_from_slice(&image.data()[at..at + channels]);
        }
    }
    image.with_pixels(width, height, out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::generator;
    use crate::golden::cases;

    #[test]
    fn every_map_equals_torchvision() {
        type Change = fn(Image, f64) -> Image;
        let changes: [(&str, Change); 5] = [
            ("shear_x", |image, by| shear_x(&image, by)),
            ("shear_y", |image, by| shear_y(&image, by)),
            ("translate_x", |image, by| translate(&image, by as isize, 0)),
            ("translate_y", |image, by| translate(&image, 0, by as isize)),
            ("rotate", rotate),
        ];
        for (name, change) in changes {
            for case in cases(name) {
                case.assert_equal(&change(case.input(), case.value.unwrap()));
            }
        }
    }

    #[test]
    fn every_kind_comes_and_keeps_the_size() {
        let data = (0..12 * 9 * 3).map(|i| (i * i % 199) as u8).collect();
        let image = Image::new(12, 9, 3, data).unwrap();
        let once = RandAugment {
            n_ops: 1,
            magnitude: 20,
        };
        let mut seen = std::collections::BTreeSet::new();
        for i in 0..2000 {
            let mut rng = generator(0, [0, 0, i]);
            let found = once.apply(image.clone(), &mut rng);
            assert_eq!((found.width(), found.height()), (12, 9));
            seen.insert(found.data().to_vec());
        }
        // Nine kinds with a sign, posterize, solarize, autocontrast, equalize (which such an image may pass
        // unchanged, as it has less than 255 pixels) and nothing.
        let expected: std::collections::BTreeSet<Vec<u8>> = (0..N_KINDS)
            .flat_map(|kind| [1.0, -1.0].map(|sign| once.change(image.clone(), kind, sign)))
            .map(|image| image.data().to_vec())
            .collect();
        assert_eq!(seen, expected);
        assert!(seen.len() >= 2 * 9 + 3, "{}", seen.len());
    }

    #[test]
    fn strength_0_is_weak_and_ranges_are_checked() {
        let image = Image::new(4, 4, 1, (0..16).collect()).unwrap();
        let weakest = RandAugment {
            magnitude: 0,
            ..Default::default()
        };
        for kind in 0..=10 {
            assert_eq!(weakest.change(image.clone(), kind, 1.0), image, "{kind}");
        }
        for (n_ops, magnitude) in [(33, 9), (2, 31)] {
            assert!(RandAugment { n_ops, magnitude }.check("x").is_err());
        }
    }
}
