//! Windows of an image, fixed and random, and what is made of them: the geometry of the published transforms.

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::check::{MAX_RATIO, MAX_STEP_SIDE, check_pair, check_side};
use crate::error::ImageError;
use crate::image::Image;
use crate::resample::{Interpolation, Window, resize};

/// Resizes the image; its shape is kept when one number is given (torchvision's `Resize`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    /// Target size.
    pub size: Size,
    /// Filter, bilinear when absent.
    #[serde(default)]
    pub interpolation: Interpolation,
}

/// Target of a [`Resize`], in pixels from 1 to 4,096.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Size {
    /// Length of the shorter side; the longer one follows, cut to a whole number.
    Shorter(usize),
    /// `[height, width]`.
    Exact([usize; 2]),
}

/// A square of random size, shape and place, stretched to `size` (torchvision's `RandomResizedCrop`).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomResizedCrop {
    /// Width and height of the result, from 1 to 4,096.
    pub size: usize,
    /// Smallest and largest area as a fraction of the image, in (0, 1]; drawn uniformly. 0.08 to 1 when absent, as
    /// in torchvision; the published class-incremental runs use 0.05 to 1.
    #[serde(default = "default_area")]
    pub area: (f64, f64),
    /// Smallest and largest width over height; drawn uniformly in its logarithm. 3/4 to 4/3 when absent.
    #[serde(default = "default_ratio")]
    pub ratio: (f64, f64),
    /// Filter, bilinear when absent.
    #[serde(default)]
    pub interpolation: Interpolation,
}

fn default_area() -> (f64, f64) {
    (0.08, 1.0)
}

fn default_ratio() -> (f64, f64) {
    (3.0 / 4.0, 4.0 / 3.0)
}

/// A square of `size` at a random place of the padded image (torchvision's `RandomCrop`).
///
/// An image that is smaller even with its padding is padded further, evenly, as the step `center_crop` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomCrop {
    /// Width and height of the result, from 1 to 4,096.
    pub size: usize,
    /// Black pixels added on every side first, at most 4,096.
    #[serde(default)]
    pub padding: usize,
}

impl Resize {
    pub(crate) fn check(&self, setting: &str) -> Result<(), ImageError> {
        match self.size {
            Size::Shorter(side) => check_side(&format!("{setting}.size"), side),
            Size::Exact(sides) => sides
                .into_iter()
                .try_for_each(|side| check_side(&format!("{setting}.size"), side)),
        }
    }

    /// Width and height of the result for an image of this width and height.
    fn target(&self, width: usize, height: usize) -> (usize, usize) {
        match self.size {
            Size::Exact([height, width]) => (width, height),
            // Cut, not rounded: 300 x 451 to 256 gives 384 rows of the 384.85.
            Size::Shorter(side) if width <= height => (side, (side * height / width).max(1)),
            Size::Shorter(side) => ((side * width / height).max(1), side),
        }
    }

    pub(crate) fn apply(&self, image: &Image) -> Image {
        let size = self.target(image.width(), image.height());
        resize(image, Window::whole(image), size, self.interpolation)
    }
}

impl RandomResizedCrop {
    /// Area 0.08 to 1, ratio 3/4 to 4/3, bilinear: torchvision's defaults.
    pub fn new(size: usize) -> Self {
        Self {
            size,
            area: default_area(),
            ratio: default_ratio(),
            interpolation: Interpolation::default(),
        }
    }

    pub(crate) fn check(&self, setting: &str) -> Result<(), ImageError> {
        check_side(&format!("{setting}.size"), self.size)?;
        check_pair(format!("{setting}.area"), self.area, 1.0)?;
        check_pair(format!("{setting}.ratio"), self.ratio, MAX_RATIO)
    }

    /// The window for an image of this width and height.
    ///
    /// Ten draws of area and ratio are tried; when none fits, or there is no `rng`, it is the largest central window
    /// whose ratio is allowed.
    fn window(&self, width: usize, height: usize, rng: Option<&mut impl Rng>) -> Window {
        let (low, high) = self.ratio;
        if let Some(rng) = rng {
            let area = (width * height) as f64;
            let (low, high) = (low.ln(), high.ln());
            for _ in 0..10 {
                let area = area * rng.random_range(self.area.0..=self.area.1);
                let ratio = rng.random_range(low..=high).exp();
                // Python rounds halves to even.
                let w = (area * ratio).sqrt().round_ties_even() as usize;
                let h = (area / ratio).sqrt().round_ties_even() as usize;
                if (1..=width).contains(&w) && (1..=height).contains(&h) {
                    let top = rng.random_range(0..=height - h);
                    let left = rng.random_range(0..=width - w);
                    return Window {
                        left,
                        top,
                        width: w,
                        height: h,
                    };
                }
            }
        }
        let found = width as f64 / height as f64;
        let side = |exact: f64, largest: usize| {
            // The reference can come to a side of 0 or beyond the image for ratios far from 1.
            (exact.round_ties_even() as usize).clamp(1, largest)
        };
        let (w, h) = if found < low {
            (width, side(width as f64 / low, height))
        } else if found > high {
            (side(height as f64 * high, width), height)
        } else {
            (width, height)
        };
        Window {
            left: (width - w) / 2,
            top: (height - h) / 2,
            width: w,
            height: h,
        }
    }

    pub(crate) fn apply(&self, image: &Image, rng: Option<&mut impl Rng>) -> Image {
        let window = self.window(image.width(), image.height(), rng);
        resize(image, window, (self.size, self.size), self.interpolation)
    }
}

impl RandomCrop {
    pub(crate) fn check(&self, setting: &str) -> Result<(), ImageError> {
        check_side(&format!("{setting}.size"), self.size)?;
        if self.padding > MAX_STEP_SIDE {
            let expected = format!("at most {MAX_STEP_SIDE}");
            let setting = format!("{setting}.padding");
            return Err(ImageError::setting(setting, self.padding, expected));
        }
        Ok(())
    }

    pub(crate) fn apply(&self, image: &Image, rng: Option<&mut impl Rng>) -> Image {
        let Some(rng) = rng else {
            return center_crop(image, self.size);
        };
        let width = image.width() + 2 * self.padding;
        let height = image.height() + 2 * self.padding;
        let mut offset = |side: usize| {
            let border = self.padding as isize;
            if side < self.size {
                return -border - ((self.size - side) / 2) as isize;
            }
            rng.random_range(0..=side - self.size) as isize - border
        };
        // Rows are drawn before columns, as in the reference.
        let top = offset(height);
        let left = offset(width);
        cut(image, left, top, self.size)
    }
}

/// The central square of `size`; where the image is smaller, black is added evenly (torchvision's `CenterCrop`).
pub(crate) fn center_crop(image: &Image, size: usize) -> Image {
    let offset = |side: usize| {
        if side >= size {
            // Halves to even, as Python rounds.
            return ((side - size) as f64 / 2.0).round_ties_even() as isize;
        }
        -(((size - side) / 2) as isize)
    };
    let (left, top) = (offset(image.width()), offset(image.height()));
    cut(image, left, top, size)
}

/// The square whose upper left corner lies at `left`, `top`; black outside the image.
fn cut(image: &Image, left: isize, top: isize, size: usize) -> Image {
    let channels = image.channels();
    let mut data = vec![0; size * size * channels];
    // First column of the image that is seen, and the column of the square where it comes to lie.
    let (from, to) = (left.max(0) as usize, (-left).max(0) as usize);
    let n = image
        .width()
        .saturating_sub(from)
        .min(size.saturating_sub(to))
        * channels;
    for (y, out) in data.chunks_exact_mut(size * channels).enumerate() {
        let y = y as isize + top;
        if n > 0 && (0..image.height() as isize).contains(&y) {
            let start = (y as usize * image.width() + from) * channels;
            out[to * channels..][..n].copy_from_slice(&image.data()[start..start + n]);
        }
    }
    image.with_pixels(size, size, data)
}

/// The image with left and right exchanged.
pub(crate) fn flip_horizontally(mut image: Image) -> Image {
    let channels = image.channels();
    let row_len = image.width() * channels;
    for row in image.data_mut().chunks_exact_mut(row_len) {
        if channels == 1 {
            row.reverse();
            continue;
        }
        let (mut left, mut right) = (0, row_len - channels);
        while left < right {
            for channel in 0..channels {
                row.swap(left + channel, right + channel);
            }
            left += channels;
            right -= channels;
        }
    }
    image
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::generator;
    use crate::golden::cases;
    use rand_chacha::ChaCha8Rng;

    const NO_RNG: Option<&mut ChaCha8Rng> = None;

    fn rng(i: u32) -> ChaCha8Rng {
        generator(1993, [0, 0, i])
    }

    fn numbered(width: usize, height: usize) -> Image {
        let data = (0..width * height * 3).map(|i| i as u8).collect();
        Image::new(width, height, 3, data).unwrap()
    }

    #[test]
    fn resize_equals_torchvision() {
        for case in cases("resize") {
            let resize = Resize {
                size: case.size.unwrap(),
                interpolation: case.interpolation.unwrap(),
            };
            case.assert_equal(&resize.apply(&case.input()));
        }
    }

    #[test]
    fn center_crop_equals_torchvision() {
        for case in cases("center_crop") {
            case.assert_equal(&center_crop(&case.input(), case.side()));
        }
    }

    #[test]
    fn flip_equals_torchvision() {
        for case in cases("flip") {
            case.assert_equal(&flip_horizontally(case.input()));
        }
    }

    #[test]
    fn windows_follow_the_formula() {
        // In a square and with ratios of 1/2 to 2, areas up to a half always fit at the first try, so that area and
        // logarithm of the ratio are uniform: mean (a + b) / 2, variance (b - a)^2 / 12.
        let crop = RandomResizedCrop {
            area: (0.1, 0.5),
            ratio: (0.5, 2.0),
            ..RandomResizedCrop::new(8)
        };
        let (side, n) = (2000.0, 20_000);
        let mut sums = [0.0; 8];
        for i in 0..n {
            let window = crop.window(2000, 2000, Some(&mut rng(i)));
            let (w, h) = (window.width as f64, window.height as f64);
            let values = [
                w * h / (side * side),
                (w / h).ln(),
                window.left as f64 / (side - w),
                window.top as f64 / (side - h),
            ];
            for (sums, value) in sums.chunks_exact_mut(2).zip(values) {
                sums[0] += value;
                sums[1] += value * value;
            }
        }
        let ln2 = 2.0_f64.ln();
        for (sums, (name, low, high)) in sums.chunks_exact(2).zip([
            ("area", 0.1, 0.5),
            ("ratio", -ln2, ln2),
            ("left", 0.0, 1.0),
            ("top", 0.0, 1.0),
        ]) {
            let mean = sums[0] / f64::from(n);
            let variance = sums[1] / f64::from(n) - mean * mean;
            let expected: f64 = (high - low) * (high - low) / 12.0;
            // Five standard deviations of the mean; those of a uniform variance are 0.9 of it over sqrt(n).
            let tolerance = 5.0 * (expected / f64::from(n)).sqrt();
            assert!(
                (mean - (low + high) / 2.0).abs() < tolerance,
                "{name}: mean {mean}"
            );
            assert!(
                (variance / expected - 1.0).abs() < 0.032,
                "{name}: variance {variance}"
            );
        }
    }

    #[test]
    fn every_place_comes_equally_often() {
        // An area of 1/4 at ratio 1 leaves 3 x 3 places in a square of 4.
        let crop = RandomResizedCrop {
            area: (0.25, 0.25),
            ratio: (1.0, 1.0),
            ..RandomResizedCrop::new(8)
        };
        let mut counts = [0_u32; 9];
        for i in 0..9000 {
            let window = crop.window(4, 4, Some(&mut rng(i)));
            assert_eq!((window.width, window.height), (2, 2));
            counts[window.top * 3 + window.left] += 1;
        }
        // Binomial: mean 1000, standard deviation 29.8.
        assert!(counts.iter().all(|n| (850..1150).contains(n)), "{counts:?}");
    }

    #[test]
    fn ten_tries_then_the_middle() {
        let crop = RandomResizedCrop::new(8);
        // A window of ratio 3/4 or more of a 1 x 100 column cannot have 8 of its pixels.
        let window = crop.window(1, 100, Some(&mut rng(0)));
        assert_eq!(
            [window.left, window.top, window.width, window.height],
            [0, 49, 1, 1]
        );
        let window = crop.window(300, 100, NO_RNG);
        assert_eq!(
            [window.left, window.top, window.width, window.height],
            [83, 0, 133, 100]
        );
        let window = crop.window(100, 300, NO_RNG);
        assert_eq!(
            [window.left, window.top, window.width, window.height],
            [0, 83, 100, 133]
        );
        let window = crop.window(100, 90, NO_RNG);
        assert_eq!(
            [window.left, window.top, window.width, window.height],
            [0, 0, 100, 90]
        );
    }

    #[test]
    fn windows_stay_inside_images_of_any_shape() {
        let wide = RandomResizedCrop {
            area: (0.001, 1.0),
            ratio: (0.01, 100.0),
            ..RandomResizedCrop::new(4)
        };
        for crop in [RandomResizedCrop::new(4), wide] {
            for (width, height) in [
                (1, 1),
                (1, 2),
                (1, 900),
                (900, 1),
                (2, 3),
                (5000, 2),
                (31, 7),
            ] {
                for i in 0..200 {
                    for rng in [Some(&mut rng(i)), None] {
                        let window = crop.window(width, height, rng);
                        assert!(window.width >= 1 && window.height >= 1, "{window:?}");
                        assert!(window.left + window.width <= width, "{window:?}");
                        assert!(window.top + window.height <= height, "{window:?}");
                    }
                }
                let image = numbered(width, height);
                let found = crop.apply(&image, Some(&mut rng(0)));
                assert_eq!((found.width(), found.height()), (4, 4));
            }
        }
    }

    #[test]
    fn a_padded_crop_shows_every_offset() {
        let crop = RandomCrop {
            size: 4,
            padding: 1,
        };
        let image = Image::new(4, 4, 1, vec![255; 16]).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for i in 0..300 {
            let found = crop.apply(&image, Some(&mut rng(i)));
            seen.insert(found.data().to_vec());
        }
        // Three offsets of each axis: 12 or 16 white pixels a row and column.
        assert_eq!(seen.len(), 9);
        assert_eq!(crop.apply(&image, NO_RNG), image);
        let small = RandomCrop {
            size: 7,
            padding: 1,
        };
        assert_eq!(
            small.apply(&image, Some(&mut rng(0))),
            center_crop(&image, 7)
        );
    }
}
