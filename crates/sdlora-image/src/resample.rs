//! Resizing that gives the bytes PIL's `Image.resize` gives: two passes of weighted sums in fixed point.
//!
//! The published transforms run on PIL images, so the numbers a backbone sees depend on how PIL rounds: one axis is
//! resized and rounded to bytes, then the other. Every weight is a filter (bilinear or bicubic) stretched by the
//! factor of shrinking, which is what torchvision calls antialiasing, and is rounded to 22 binary places.

use serde::{Deserialize, Serialize};

use crate::image::Image;

/// Binary places of a weight: a byte times a weight, summed, stays below 2^31 (as PIL's `PRECISION_BITS`).
const PLACES: u32 = 32 - 8 - 2;

/// Filter of a resize, antialiased when it shrinks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// Triangle over two pixels.
    #[default]
    Bilinear,
    /// Cubic convolution over four pixels, with `a = -0.5`.
    Bicubic,
}

impl Interpolation {
    /// Half the width of the filter, in pixels of the smaller image.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// A rectangle of pixels inside an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) left: usize,
    pub(crate) top: usize,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

impl Window {
    /// The whole image.
    pub(crate) fn whole(image: &Image) -> Self {
        Self {
            left: 0,
            top: 0,
            width: image.width(),
            height: image.height(),
        }
    }
}

/// The weights of one axis: those of output `i` are `weights[i * stride..]`, the first for input `starts[i]`.
struct Weights {
    starts: Vec<usize>,
    counts: Vec<usize>,
    weights: Vec<i32>,
    stride: usize,
}

impl Weights {
    fn new(n_in: usize, n_out: usize, filter: Interpolation) -> Self {
        let scale = n_in as f64 / n_out as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let stride = support.ceil() as usize * 2 + 1;
        let mut weights = vec![0; n_out * stride];
        let (mut starts, mut counts) = (Vec::with_capacity(n_out), Vec::with_capacity(n_out));
        let mut exact = vec![0.0; stride];
        for (i, weights) in weights.chunks_exact_mut(stride).enumerate() {
            let centre = (i as f64 + 0.5) * scale;
            // `as usize` cuts towards zero and stops at zero, as PIL does.
            let start = (centre - support + 0.5) as usize;
            let end = ((centre + support + 0.5) as usize).min(n_in);
            let exact = &mut exact[..end - start];
            for (x, weight) in exact.iter_mut().enumerate() {
                let distance = (x + start) as f64 - centre + 0.5;
                *weight = filter.weight(distance * (1.0 / stretch));
            }
            let sum: f64 = exact.iter().sum();
            for (weight, &exact) in weights.iter_mut().zip(exact.iter()) {
                let exact = if sum == 0.0 { exact } else { exact / sum };
                // Rounds to nearest, halves away from zero.
                *weight = (exact * f64::from(1 << PLACES)).round() as i32;
            }
            starts.push(start);
            counts.push(end - start);
        }
        Self {
            starts,
            counts,
            weights,
            stride,
        }
    }

    fn n_out(&self) -> usize {
        self.starts.len()
    }

    /// First input and the weights of output `i`.
    fn of(&self, i: usize) -> (usize, &[i32]) {
        let weights = &self.weights[i * self.stride..][..self.counts[i]];
        (self.starts[i], weights)
    }
}

/// Resizes a window of an image to `width` x `height`; pixels outside the window have no influence.
///
/// An axis whose size does not change is copied. Every side is at least 1 and the window lies inside the image.
pub(crate) fn resize(
    image: &Image,
    window: Window,
    (width, height): (usize, usize),
    filter: Interpolation,
) -> Image {
    let channels = image.channels();
    let source = Rows {
        data: &image.data()[window.top * image.width() * channels..],
        stride: image.width() * channels,
        start: window.left * channels,
        len: window.width * channels,
        n: window.height,
    };
    let across = (width != window.width).then(|| Weights::new(window.width, width, filter));
    let down = (height != window.height).then(|| Weights::new(window.height, height, filter));
    let data = match (across, down) {
        (None, None) => source.copy(),
        (Some(across), None) => source.resize_across(&across, channels),
        (None, Some(down)) => source.resize_down(&down),
        (Some(across), Some(down)) if columns_first(window, (width, height)) => {
            let data = source.resize_down(&down);
            Rows::new(&data, window.width * channels).resize_across(&across, channels)
        }
        (Some(across), Some(down)) => {
            let data = source.resize_across(&across, channels);
            Rows::new(&data, width * channels).resize_down(&down)
        }
    };
    image.with_pixels(width, height, data)
}

/// Whether columns are resized before rows, which changes what is rounded first.
///
/// Pillow does so since 13.0 when the height loses more than twice the pixels the width loses; before, rows always
/// came first. `make_transform_golden.py` says which Pillow the tests compare with.
fn columns_first(window: Window, (width, height): (usize, usize)) -> bool {
    let lost = |from: usize, to: usize| from as isize - to as isize;
    let lost_height = lost(window.height, height);
    lost_height > 0 && lost_height > 2 * lost(window.width, width)
}

/// Rows of bytes: those from `start` to `start + len` of each `stride`.
#[derive(Clone, Copy)]
struct Rows<'a> {
    data: &'a [u8],
    stride: usize,
    start: usize,
    len: usize,
    n: usize,
}

impl<'a> Rows<'a> {
    fn new(data: &'a [u8], len: usize) -> Self {
        Self {
            data,
            stride: len,
            start: 0,
            len,
            n: data.len() / len,
        }
    }

    fn row(&self, y: usize) -> &'a [u8] {
        &self.data[y * self.stride + self.start..][..self.len]
    }

    fn copy(&self) -> Vec<u8> {
        (0..self.n).flat_map(|y| self.row(y)).copied().collect()
    }

    fn resize_across(&self, weights: &Weights, channels: usize) -> Vec<u8> {
        let row_len = weights.n_out() * channels;
        let mut data = vec![0; self.n * row_len];
        for (y, out) in data.chunks_exact_mut(row_len).enumerate() {
            match channels {
                1 => resize_row::<1>(self.row(y), weights, out),
                _ => resize_row::<3>(self.row(y), weights, out),
            }
        }
        data
    }

    /// The same instructions on every processor, in wider vectors where there are some: the bytes are the same.
    fn resize_down(&self, weights: &Weights) -> Vec<u8> {
        let mut data = vec![0; weights.n_out() * self.len];
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, as the line above checked.
            unsafe { resize_down_avx2(*self, weights, &mut data) };
            return data;
        }
        resize_down_plain(*self, weights, &mut data);
        data
    }
}

fn to_byte(sum: i32) -> u8 {
    (sum >> PLACES).clamp(0, 255) as u8
}

fn resize_row<const C: usize>(row: &[u8], weights: &Weights, out: &mut [u8]) {
    for (i, out) in out.chunks_exact_mut(C).enumerate() {
        let (start, weights) = weights.of(i);
        let mut sums = [1 << (PLACES - 1); C];
        let pixels = row[start * C..].chunks_exact(C);
        for (pixel, &weight) in pixels.zip(weights) {
            for (sum, &level) in sums.iter_mut().zip(pixel) {
                *sum += i32::from(level) * weight;
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = to_byte(sum);
        }
    }
}

/// Values of a row summed at once; the sums of a block stay in registers or the first cache.
const BLOCK: usize = 64;

#[inline(always)]
fn resize_down_plain(rows: Rows, weights: &Weights, out: &mut [u8]) {
    for (i, out) in out.chunks_exact_mut(rows.len).enumerate() {
        let (first, weights) = weights.of(i);
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            let mut sums = [1 << (PLACES - 1); BLOCK];
            for (y, &weight) in weights.iter().enumerate() {
                let levels = &rows.row(first + y)[block * BLOCK..][..out.len()];
                for (sum, &level) in sums.iter_mut().zip(levels) {
                    *sum += i32::from(level) * weight;
                }
            }
            for (out, &sum) in out.iter_mut().zip(&sums) {
                *out = to_byte(sum);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn resize_down_avx2(rows: Rows, weights: &Weights, out: &mut [u8]) {
    resize_down_plain(rows, weights, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::cases;
    use proptest::prelude::*;

    #[test]
    fn windows_resize_as_torchvision_does() {
        for case in cases("resized_crop") {
            let [left, top, width, height] = case.window.unwrap();
            let window = Window {
                left,
                top,
                width,
                height,
            };
            let size = (case.side(), case.side());
            case.assert_equal(&resize(
                &case.input(),
                window,
                size,
                case.interpolation.unwrap(),
            ));
        }
    }

    #[test]
    fn halving_by_hand() {
        // Weights of the triangle at a scale of 2, of distance 0.25 and 0.75 either way: 0.375 and 0.125; the border
        // has three pixels, of 3/7, 3/7, 1/7.
        let image = Image::new(4, 1, 1, vec![0, 70, 140, 210]).unwrap();
        let found = resize(
            &image,
            Window::whole(&image),
            (2, 1),
            Interpolation::Bilinear,
        );
        assert_eq!(found.data(), [50, 160]);
    }

    #[test]
    fn vectors_do_not_change_bytes() {
        let (row_len, n_rows) = (191, 37);
        let rows: Vec<u8> = (0..row_len * n_rows).map(|i| (i * i % 251) as u8).collect();
        let rows = Rows::new(&rows, row_len);
        for filter in [Interpolation::Bilinear, Interpolation::Bicubic] {
            let weights = Weights::new(n_rows, 23, filter);
            let mut plain = vec![0; 23 * row_len];
            resize_down_plain(rows, &weights, &mut plain);
            assert_eq!(plain, rows.resize_down(&weights));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn equal_sizes_are_the_identity(
            width in 1_usize..40,
            height in 1_usize..40,
            gray in any::<bool>(),
            bicubic in any::<bool>(),
            seed in any::<u8>(),
        ) {
            let channels = if gray { 1 } else { 3 };
            let n = width * height * channels;
            let data = (0..n).map(|i| (i * 37 + i / 7) as u8 ^ seed).collect();
            let image = Image::new(width, height, channels, data).unwrap();
            let filter = if bicubic { Interpolation::Bicubic } else { Interpolation::Bilinear };
            let found = resize(&image, Window::whole(&image), (width, height), filter);
            prop_assert_eq!(found, image);
        }

        #[test]
        fn a_constant_stays_constant_at_any_size(
            sizes in prop::array::uniform4(1_usize..80),
            level in any::<u8>(),
            bicubic in any::<bool>(),
        ) {
            let [width, height, new_width, new_height] = sizes;
            let image = Image::new(width, height, 1, vec![level; width * height]).unwrap();
            let filter = if bicubic { Interpolation::Bicubic } else { Interpolation::Bilinear };
            let found = resize(&image, Window::whole(&image), (new_width, new_height), filter);
            prop_assert_eq!(found.data(), vec![level; new_width * new_height]);
        }
    }
}
