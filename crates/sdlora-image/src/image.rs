//! One decoded image: 8-bit samples, rows of pixels, channels interleaved.

use std::io::Cursor;

use crate::error::ImageError;

/// A decoded image, `[height, width, channels]`, one byte a sample, 0 is black and 255 full intensity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    width: usize,
    height: usize,
    channels: usize,
    data: Vec<u8>,
}

impl Image {
    /// Makes an image of `data`, `height` rows of `width` pixels of `channels` (1 or 3) samples.
    ///
    /// # Errors
    ///
    /// [`ImageError::Shape`] when a side is 0, `channels` is neither 1 nor 3, or `data` has another length.
    pub fn new(
        width: usize,
        height: usize,
        channels: usize,
        data: Vec<u8>,
    ) -> Result<Self, ImageError> {
        let fits = width
            .checked_mul(height)
            .and_then(|n| n.checked_mul(channels))
            == Some(data.len());
        if !fits || data.is_empty() || !matches!(channels, 1 | 3) {
            return Err(ImageError::Shape {
                width,
                height,
                channels,
                n_bytes: data.len(),
            });
        }
        Ok(Self {
            width,
            height,
            channels,
            data,
        })
    }

    /// Width in pixels, at least 1.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels, at least 1.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Number of channels, 1 (gray) or 3 (red, green, blue).
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// All samples, `[height, width, channels]`.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    /// All samples, for changes in place.
    pub(crate) fn data_mut(&mut self) -> &mut [u8] {
        &mut self.data
    }

    /// An image with the same channels and other pixels.
    pub(crate) fn with_pixels(&self, width: usize, height: usize, data: Vec<u8>) -> Self {
        debug_assert_eq!(data.len(), width * height * self.channels);
        Self {
            width,
            height,
            channels: self.channels,
            data,
        }
    }

    /// The image with one channel: luma by Rec. 601 weights, the bytes of PIL's `convert("L")`.
    #[must_use]
    pub fn into_gray(self) -> Self {
        if self.channels == 1 {
            return self;
        }
        Self {
            channels: 1,
            data: self.data.chunks_exact(3).map(luma).collect(),
            ..self
        }
    }

    /// The image with three channels; gray is repeated.
    #[must_use]
    pub fn into_rgb(self) -> Self {
        if self.channels == 3 {
            return self;
        }
        Self {
            channels: 3,
            data: self.data.iter().flat_map(|&v| [v, v, v]).collect(),
            ..self
        }
    }
}

/// Luma of a pixel of 1 or 3 channels, rounded to nearest.
///
/// The weights are PIL's: 299, 587 and 114 thousandths, rounded to 16 binary places. Exact thousandths give another
/// byte for one colour of 1,900.
pub(crate) fn luma(pixel: &[u8]) -> u8 {
    match *pixel {
        [r, g, b] => {
            let [r, g, b] = [r, g, b].map(u32::from);
            ((r * 19_595 + g * 38_470 + b * 7_471 + 0x8000) >> 16) as u8
        }
        _ => pixel[0],
    }
}

/// Packs an image of three channels, `[height, width, 3]`, as PNG.
///
/// # Errors
///
/// [`ImageError::Shape`] when `data` has another length.
pub fn encode_png(width: usize, height: usize, data: &[u8]) -> Result<Vec<u8>, ImageError> {
    let shape = || ImageError::Shape {
        width,
        height,
        channels: 3,
        n_bytes: data.len(),
    };
    let sides = u32::try_from(width).ok().zip(u32::try_from(height).ok());
    let image = sides
        .and_then(|(width, height)| image::RgbImage::from_raw(width, height, data.to_vec()))
        .ok_or_else(shape)?;
    let mut bytes = Cursor::new(Vec::new());
    image
        .write_to(&mut bytes, image::ImageFormat::Png)
        .map_err(|source| ImageError::Decode {
            name: "contact sheet".to_owned(),
            source,
        })?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_refuses_wrong_lengths_and_channels() {
        assert!(Image::new(2, 2, 1, vec![0; 4]).is_ok());
        for (width, height, channels, n) in [
            (2, 2, 1, 3),
            (0, 2, 1, 0),
            (2, 2, 2, 8),
            (usize::MAX, 2, 3, 6),
        ] {
            assert!(Image::new(width, height, channels, vec![0; n]).is_err());
        }
    }

    #[test]
    fn gray_and_rgb_convert_by_hand_checked_numbers() {
        // 0.299 * 100 + 0.587 * 50 + 0.114 * 200 = 82.05
        let rgb = Image::new(1, 1, 3, vec![100, 50, 200]).unwrap();
        assert_eq!(rgb.into_gray().data(), [82]);
        let gray = Image::new(2, 1, 1, vec![4, 9]).unwrap();
        assert_eq!(gray.into_rgb().data(), [4, 4, 4, 9, 9, 9]);
        // 28.5 and 32.5 by exact thousandths; PIL's weights lie a little below.
        let halves = Image::new(2, 1, 3, vec![0, 0, 250, 0, 14, 213]).unwrap();
        assert_eq!(halves.into_gray().data(), [28, 32]);
        let white = Image::new(1, 1, 3, vec![255; 3]).unwrap();
        assert_eq!(white.into_gray().data(), [255]);
    }
}
