//! Shrinking by area, and sampling through an affine map.
//!
//! Shrinking weighs every source pixel by the area it shares with the new pixel, so nothing is skipped however large
//! the factor is. Sampling is bilinear and right for factors up to about 2; larger ones shrink first.

use crate::image::Image;

/// Map from output to source: both in units of their own side, with the origin in the centre.
///
/// `source = [[a, b], [c, d]] * output + [tx, ty]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Affine {
    pub(crate) a: f32,
    pub(crate) b: f32,
    pub(crate) c: f32,
    pub(crate) d: f32,
    pub(crate) tx: f32,
    pub(crate) ty: f32,
}

impl Affine {
    pub(crate) const IDENTITY: Self = Self::scale(1.0, 1.0);

    pub(crate) const fn scale(x: f32, y: f32) -> Self {
        Self {
            a: x,
            b: 0.0,
            c: 0.0,
            d: y,
            tx: 0.0,
            ty: 0.0,
        }
    }

    /// Counter-clockwise as seen on screen, where y points down.
    pub(crate) fn rotation(degrees: f32) -> Self {
        let (sin, cos) = degrees.to_radians().sin_cos();
        Self {
            a: cos,
            b: sin,
            c: -sin,
            d: cos,
            tx: 0.0,
            ty: 0.0,
        }
    }

    pub(crate) fn shear(x_degrees: f32, y_degrees: f32) -> Self {
        Self {
            a: 1.0,
            b: x_degrees.to_radians().tan(),
            c: y_degrees.to_radians().tan(),
            d: 1.0,
            tx: 0.0,
            ty: 0.0,
        }
    }

    pub(crate) fn translation(tx: f32, ty: f32) -> Self {
        Self {
            tx,
            ty,
            ..Self::IDENTITY
        }
    }

    /// The map that applies `first`, then `self`.
    pub(crate) fn after(self, first: Self) -> Self {
        Self {
            a: self.a * first.a + self.b * first.c,
            b: self.a * first.b + self.b * first.d,
            c: self.c * first.a + self.d * first.c,
            d: self.c * first.b + self.d * first.d,
            tx: self.a * first.tx + self.b * first.ty + self.tx,
            ty: self.c * first.tx + self.d * first.ty + self.ty,
        }
    }

    /// The inverse map; `None` when there is none.
    pub(crate) fn inverse(self) -> Option<Self> {
        let determinant = self.a * self.d - self.b * self.c;
        if !determinant.is_normal() {
            return None;
        }
        let (a, b) = (self.d / determinant, -self.b / determinant);
        let (c, d) = (-self.c / determinant, self.a / determinant);
        Some(Self {
            a,
            b,
            c,
            d,
            tx: -(a * self.tx + b * self.ty),
            ty: -(c * self.tx + d * self.ty),
        })
    }
}

/// Calls `write(channel, output pixel, level 0 to 255)` for each sample of a `width` x `height` output.
///
/// A point inside the source is interpolated between its four nearest pixels, the border pixel repeated where one is
/// missing; a point outside is `background`.
pub(crate) fn sample_affine(
    source: &Image,
    background: [u8; 3],
    map: Affine,
    (width, height): (usize, usize),
    mut write: impl FnMut(usize, usize, f32),
) {
    let (source_width, source_height) = (source.width() as f32, source.height() as f32);
    let channels = source.channels();
    let (last_x, last_y) = (source.width() - 1, source.height() - 1);
    let row_stride = source.width() * channels;
    let data = source.data();
    let (step_u, step_v) = (1.0 / width as f32, 1.0 / height as f32);
    for y in 0..height {
        let v = (y as f32 + 0.5) * step_v - 0.5;
        for x in 0..width {
            let u = (x as f32 + 0.5) * step_u - 0.5;
            let source_x = (map.a * u + map.b * v + map.tx + 0.5) * source_width;
            let source_y = (map.c * u + map.d * v + map.ty + 0.5) * source_height;
            let pixel = y * width + x;
            let inside = (0.0..=source_width).contains(&source_x)
                && (0.0..=source_height).contains(&source_y);
            if !inside {
                for (channel, &level) in background.iter().enumerate().take(channels) {
                    write(channel, pixel, f32::from(level));
                }
                continue;
            }
            // Pixel centres lie at halves.
            let left = (source_x - 0.5).max(0.0);
            let top = (source_y - 0.5).max(0.0);
            let x0 = (left as usize).min(last_x);
            let y0 = (top as usize).min(last_y);
            let (weight_x, weight_y) = (left - x0 as f32, top - y0 as f32);
            let x1 = (x0 + 1).min(last_x);
            let y1 = (y0 + 1).min(last_y);
            for channel in 0..channels {
                let at =
                    |x: usize, y: usize| f32::from(data[y * row_stride + x * channels + channel]);
                let upper = at(x0, y0) + (at(x1, y0) - at(x0, y0)) * weight_x;
                let lower = at(x0, y1) + (at(x1, y1) - at(x0, y1)) * weight_x;
                write(channel, pixel, upper + (lower - upper) * weight_y);
            }
        }
    }
}

/// Shrinks to `width` x `height` by area; a side that would grow keeps its length.
pub(crate) fn shrink(image: &Image, width: usize, height: usize) -> Image {
    let width = width.clamp(1, image.width());
    let height = height.clamp(1, image.height());
    if (width, height) == (image.width(), image.height()) {
        return image.clone();
    }
    let channels = image.channels();
    let columns = shares(image.width(), width);
    let rows = shares(image.height(), height);

    // Columns first: [source height, width, channels].
    let mut narrow = Vec::with_capacity(image.height() * width * channels);
    for row in image.data().chunks_exact(image.width() * channels) {
        for share in &columns {
            for channel in 0..channels {
                let sum: f32 = share
                    .weights
                    .iter()
                    .zip(
                        row[share.first * channels + channel..]
                            .iter()
                            .step_by(channels),
                    )
                    .map(|(weight, &level)| weight * f32::from(level))
                    .sum();
                narrow.push(sum);
            }
        }
    }
    let row_len = width * channels;
    let mut data = Vec::with_capacity(height * row_len);
    for share in &rows {
        for i in 0..row_len {
            let sum: f32 = share
                .weights
                .iter()
                .zip(narrow[share.first * row_len + i..].iter().step_by(row_len))
                .map(|(weight, level)| weight * level)
                .sum();
            data.push(sum.round() as u8);
        }
    }
    image.with_pixels(width, height, data)
}

/// Source pixels of one output pixel and their weights, which sum to 1.
struct Share {
    first: usize,
    weights: Vec<f32>,
}

fn shares(source_len: usize, len: usize) -> Vec<Share> {
    let factor = source_len as f64 / len as f64;
    (0..len)
        .map(|i| {
            let (start, end) = (i as f64 * factor, (i + 1) as f64 * factor);
            let first = (start as usize).min(source_len - 1);
            let last = (end.ceil() as usize).clamp(first + 1, source_len);
            let weights = (first..last)
                .map(|pixel| {
                    let overlap = end.min((pixel + 1) as f64) - start.max(pixel as f64);
                    (overlap.max(0.0) / factor) as f32
                })
                .collect();
            Share { first, weights }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gray(width: usize, height: usize, data: &[u8]) -> Image {
        Image::new(width, height, 1, data.to_vec()).unwrap()
    }

    fn sampled(image: &Image, map: Affine, side: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; side * side];
        sample_affine(image, [9; 3], map, (side, side), |_, pixel, level| {
            out[pixel] = level
        });
        out
    }

    #[test]
    fn shrinking_averages_whole_and_partial_pixels() {
        let small = shrink(&gray(4, 2, &[0, 10, 20, 30, 10, 20, 30, 40]), 2, 1);
        assert_eq!((small.width(), small.height()), (2, 1));
        assert_eq!(small.data(), [10, 30]);
        // 3 to 2: the middle pixel is shared. (10 + 20 / 2) / 1.5 and (20 / 2 + 40) / 1.5.
        assert_eq!(shrink(&gray(3, 1, &[10, 20, 40]), 2, 1).data(), [13, 33]);
        let rgb = Image::new(2, 1, 3, vec![0, 100, 50, 10, 200, 50]).unwrap();
        assert_eq!(shrink(&rgb, 1, 1).data(), [5, 150, 50]);
    }

    #[test]
    fn shrinking_never_grows_and_keeps_constants() {
        assert_eq!(shrink(&gray(2, 1, &[1, 2]), 8, 8), gray(2, 1, &[1, 2]));
        let flat = shrink(&gray(105, 105, &[200; 105 * 105]), 28, 28);
        assert!(flat.data().iter().all(|&v| v == 200));
    }

    #[test]
    fn identity_copies_and_half_size_averages_four_pixels() {
        let image = gray(2, 2, &[0, 10, 20, 30]);
        assert_eq!(
            sampled(&image, Affine::IDENTITY, 2),
            [0.0, 10.0, 20.0, 30.0]
        );
        assert_eq!(sampled(&image, Affine::IDENTITY, 1), [15.0]);
    }

    #[test]
    fn quarter_turn_moves_corners_counter_clockwise() {
        let image = gray(2, 2, &[1, 2, 3, 4]);
        // The map goes from output to source, so turning the image by 90 degrees is the inverse rotation.
        let map = Affine::rotation(90.0).inverse().unwrap();
        for (found, expected) in sampled(&image, map, 2).iter().zip([2.0, 4.0, 1.0, 3.0]) {
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
    }

    #[test]
    fn outside_is_background() {
        let image = gray(2, 1, &[50, 60]);
        let out = sampled(&image, Affine::translation(1.0, 0.0), 2);
        assert_eq!(out, [9.0; 4]);
        let out = sampled(&image, Affine::translation(0.5, 0.0), 2);
        assert_eq!(out, [60.0, 9.0, 60.0, 9.0]);
    }

    #[test]
    fn inverse_undoes() {
        let map = Affine::translation(0.1, -0.2)
            .after(Affine::rotation(20.0))
            .after(Affine::shear(5.0, -3.0))
            .after(Affine::scale(1.2, 0.8));
        let unit = map.after(map.inverse().unwrap());
        let parts = [unit.a - 1.0, unit.b, unit.c, unit.d - 1.0, unit.tx, unit.ty];
        assert!(parts.iter().all(|part| part.abs() < 1e-6), "{unit:?}");
        assert!(Affine::scale(0.0, 1.0).inverse().is_none());
    }
}
