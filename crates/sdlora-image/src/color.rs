//! Changes of colour, byte for byte as PIL makes them.
//!
//! Most blend the image with a version that lacks something: `out = degenerate + factor * (image - degenerate)`, so
//! factor 0 removes it, 1 changes nothing and more adds to it.

use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::ImageError;
use crate::image::{Image, luma};

/// Random brightness, contrast, saturation and hue, in random order (torchvision's `ColorJitter`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColorJitter {
    /// Factors are drawn from 1 - `brightness` (at least 0) to 1 + `brightness`; from 0 to 100, 0 changes nothing.
    #[serde(default)]
    pub brightness: f64,
    /// The same for contrast.
    #[serde(default)]
    pub contrast: f64,
    /// The same for saturation; gray images have none.
    #[serde(default)]
    pub saturation: f64,
    /// The hue is turned by up to this part of the colour circle either way, from 0 to 0.5.
    #[serde(default)]
    pub hue: f64,
}

impl ColorJitter {
    pub(crate) fn check(&self, setting: &str) -> Result<(), ImageError> {
        for (name, value, largest) in [
            ("brightness", self.brightness, 100.0),
            ("contrast", self.contrast, 100.0),
            ("saturation", self.saturation, 100.0),
            ("hue", self.hue, 0.5),
        ] {
            if !(0.0..=largest).contains(&value) {
                let expected = format!("0 to {largest}");
                return Err(ImageError::setting(
                    format!("{setting}.{name}"),
                    value,
                    expected,
                ));
            }
        }
        Ok(())
    }

    pub(crate) fn apply(&self, mut image: Image, rng: &mut ChaCha8Rng) -> Image {
        let mut order = [0, 1, 2, 3];
        order.shuffle(rng);
        let mut factor = |range: f64| rng.random_range((1.0 - range).max(0.0)..=1.0 + range);
        let factors = [self.brightness, self.contrast, self.saturation].map(&mut factor);
        let hue = rng.random_range(-self.hue..=self.hue);
        for change in order {
            image = match change {
                0 if self.brightness > 0.0 => brightness(image, factors[0]),
                1 if self.contrast > 0.0 => contrast(image, factors[1]),
                2 if self.saturation > 0.0 => saturation(image, factors[2]),
                3 if self.hue > 0.0 => turn_hue(image, hue),
                _ => image,
            };
        }
        image
    }
}

/// Between `degenerate` at factor 0 and `level` at factor 1, or beyond; cut, not rounded.
fn blend(degenerate: u8, level: u8, factor: f32) -> u8 {
    let (from, to) = (f32::from(degenerate), f32::from(level));
    // `as` stops at 0 and 255.
    (from + factor * (to - from)) as u8
}

pub(crate) fn brightness(mut image: Image, factor: f64) -> Image {
    for level in image.data_mut() {
        *level = blend(0, *level, factor as f32);
    }
    image
}

pub(crate) fn contrast(mut image: Image, factor: f64) -> Image {
    let channels = image.channels();
    let pixels = image.data().chunks_exact(channels);
    let n = pixels.len() as f64;
    let sum: u64 = pixels.map(|pixel| u64::from(luma(pixel))).sum();
    let mean = (sum as f64 / n + 0.5) as u8;
    for level in image.data_mut() {
        *level = blend(mean, *level, factor as f32);
    }
    image
}

pub(crate) fn saturation(mut image: Image, factor: f64) -> Image {
    let channels = image.channels();
    for pixel in image.data_mut().chunks_exact_mut(channels) {
        let gray = luma(pixel);
        for level in pixel {
            *level = blend(gray, *level, factor as f32);
        }
    }
    image
}

/// Blends with the image smoothed by a kernel of ones around a five; the border is not smoothed.
pub(crate) fn sharpness(image: Image, factor: f64) -> Image {
    let (width, height, channels) = (image.width(), image.height(), image.channels());
    let row_len = width * channels;
    let source = image.data();
    let mut out = source.to_vec();
    for y in 1..height.saturating_sub(1) {
        for i in channels..row_len.saturating_sub(channels) {
            let at = y * row_len + i;
            let mut sum = 4 * u32::from(source[at]);
            for row in [at - row_len, at, at + row_len] {
                for column in [row - channels, row, row + channels] {
                    sum += u32::from(source[column]);
                }
            }
            // Thirteenths, rounded to nearest.
            let smooth = ((2 * sum + 13) / 26) as u8;
            out[at] = blend(smooth, source[at], factor as f32);
        }
    }
    image.with_pixels(width, height, out)
}

/// Turns the hue by a fraction of the colour circle, -0.5 to 0.5, in PIL's HSV of three bytes.
pub(crate) fn turn_hue(mut image: Image, fraction: f64) -> Image {
    if image.channels() == 1 {
        return image;
    }
    // Cut towards zero, then wrapped.
    let turn = (fraction * 255.0) as i32 as u8;
    for pixel in image.data_mut().chunks_exact_mut(3) {
        let [h, s, v] = to_hsv([pixel[0], pixel[1], pixel[2]]);
        pixel.copy_from_slice(&from_hsv([h.wrapping_add(turn), s, v]));
    }
    image
}

// Single precision where PIL has it: the bytes are cut, so the last bit can matter.
fn to_hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let (largest, smallest) = (r.max(g).max(b), r.min(g).min(b));
    if largest == smallest {
        return [0, 0, largest];
    }
    let range = f32::from(largest - smallest);
    let saturation = range / f32::from(largest);
    let [rc, gc, bc] = [r, g, b].map(|level| f32::from(largest - level) / range);
    let sixths = if r == largest {
        bc - gc
    } else if g == largest {
        (2.0 + f64::from(rc) - f64::from(bc)) as f32
    } else {
        (4.0 + f64::from(gc) - f64::from(rc)) as f32
    };
    let hue = ((f64::from(sixths) / 6.0 + 1.0) % 1.0) as f32;
    [
        (f64::from(hue) * 255.0) as u8,
        (f64::from(saturation) * 255.0) as u8,
        largest,
    ]
}

fn from_hsv([h, s, v]: [u8; 3]) -> [u8; 3] {
    if s == 0 {
        return [v; 3];
    }
    let sixths = f64::from(h) * 6.0 / 255.0;
    let sector = sixths.floor();
    let rest = f64::from((sixths - sector) as f32);
    let saturation = f64::from((f64::from(s) / 255.0) as f32);
    let level = |part: f64| (f64::from(v) * (1.0 - part)).round() as u8;
    let p = level(saturation);
    let q = level(saturation * rest);
    let t = level(saturation * (1.0 - rest));
    match sector as u8 % 6 {
        0 => [v, t, p],
        1 => [q, v, p],
        2 => [p, v, t],
        3 => [p, q, v],
        4 => [t, p, v],
        _ => [v, p, q],
    }
}

/// Keeps the highest `bits` bits of every level, 1 to 8.
pub(crate) fn posterize(mut image: Image, bits: u32) -> Image {
    let mask = !(0xff_u32 >> bits) as u8;
    for level in image.data_mut() {
        *level &= mask;
    }
    image
}

/// Inverts levels at or above the threshold.
pub(crate) fn solarize(mut image: Image, threshold: f64) -> Image {
    for level in image.data_mut() {
        if f64::from(*level) >= threshold {
            *level = 255 - *level;
        }
    }
    image
}

/// Stretches each channel to 0 to 255.
pub(crate) fn autocontrast(image: Image) -> Image {
    map_channels(image, |histogram| {
        let low = histogram.iter().position(|&n| n > 0).unwrap_or(0);
        let high = histogram.iter().rposition(|&n| n > 0).unwrap_or(0);
        if high <= low {
            return std::array::from_fn(|level| level as u8);
        }
        let scale = 255.0 / (high - low) as f64;
        let offset = -(low as f64) * scale;
        std::array::from_fn(|level| (level as f64 * scale + offset) as u8)
    })
}

/// Makes the levels of each channel about equally frequent.
pub(crate) fn equalize(image: Image) -> Image {
    map_channels(image, |histogram| {
        let last = histogram.iter().rev().find(|&&n| n > 0).unwrap_or(&0);
        let step = (histogram.iter().sum::<u64>() - last) / 255;
        if step == 0 {
            return std::array::from_fn(|level| level as u8);
        }
        let mut n = step / 2;
        std::array::from_fn(|level| {
            let out = (n / step).min(255) as u8;
            n += histogram[level];
            out
        })
    })
}

/// Maps every level of a channel by a table made of the channel's histogram.
fn map_channels(mut image: Image, table: impl Fn(&[u64; 256]) -> [u8; 256]) -> Image {
    let channels = image.channels();
    for channel in 0..channels {
        let mut histogram = [0; 256];
        for &level in image.data()[channel..].iter().step_by(channels) {
            histogram[usize::from(level)] += 1;
        }
        let table = table(&histogram);
        for level in image.data_mut()[channel..].iter_mut().step_by(channels) {
            *level = table[usize::from(*level)];
        }
    }
    image
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::generator;
    use crate::golden::cases;

    #[test]
    fn every_change_equals_torchvision() {
        type Change = fn(Image, f64) -> Image;
        let changes: [(&str, Change); 9] = [
            ("brightness", brightness),
            ("contrast", contrast),
            ("saturation", saturation),
            ("sharpness", sharpness),
            ("hue", turn_hue),
            ("posterize", |image, bits| posterize(image, bits as u32)),
            ("solarize", solarize),
            ("autocontrast", |image, _| autocontrast(image)),
            ("equalize", |image, _| equalize(image)),
        ];
        for (name, change) in changes {
            for case in cases(name) {
                case.assert_equal(&change(case.input(), case.value.unwrap()));
            }
        }
    }

    #[test]
    fn jitter_stays_in_its_range_and_varies() {
        let image = Image::new(1, 1, 3, vec![100, 100, 100]).unwrap();
        let jitter = ColorJitter {
            brightness: 0.2,
            ..Default::default()
        };
        let levels: Vec<u8> = (0..500)
            .map(|i| {
                let mut rng = generator(0, [0, 0, i]);
                jitter.apply(image.clone(), &mut rng).data()[0]
            })
            .collect();
        assert!(levels.iter().all(|level| (79..=120).contains(level)));
        assert!(levels.contains(&81) && levels.contains(&118));
        let mut rng = generator(0, [0; 3]);
        assert_eq!(ColorJitter::default().apply(image.clone(), &mut rng), image);
    }

    #[test]
    fn ranges_are_checked() {
        for wrong in [
            ColorJitter {
                hue: 0.6,
                ..Default::default()
            },
            ColorJitter {
                contrast: -0.1,
                ..Default::default()
            },
            ColorJitter {
                saturation: f64::NAN,
                ..Default::default()
            },
        ] {
            assert!(wrong.check("x").is_err(), "{wrong:?}");
        }
    }
}
