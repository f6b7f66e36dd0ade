//! One decoded image: 8-bit samples, rows of pixels, channels interleaved.

use std::io::Cursor;

use image::{DynamicImage, ImageReader, Limits};

use crate::error::DataError;

/// Largest accepted width and height of an encoded image, in pixels; guards against decompression bombs.
const MAX_SIDE: u32 = 16_384;
/// Largest memory a decoder may take for one image, in bytes; the decoder's own default is twice as much.
const MAX_DECODE_BYTES: u64 = 256 * 1024 * 1024;

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
    /// [`DataError::ImageShape`] when a side is 0, `channels` is neither 1 nor 3, or `data` has another length.
    pub fn new(
        width: usize,
        height: usize,
        channels: usize,
        data: Vec<u8>,
    ) -> Result<Self, DataError> {
        let fits = width
            .checked_mul(height)
            .and_then(|n| n.checked_mul(channels))
            == Some(data.len());
        if !fits || data.is_empty() || !matches!(channels, 1 | 3) {
            return Err(DataError::ImageShape {
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

    /// Decodes a PNG, JPEG, WebP, BMP or PNM of any colour type, told by its first bytes and not by its name.
    ///
    /// Gray of any depth becomes one channel, everything else three; palettes are looked up, an alpha channel is
    /// dropped and a rotation in the EXIF data is not applied, as by PIL's `convert("RGB")` and torchvision. A
    /// four-colour JPEG is converted, within a few units of PIL. `name` is used in errors only.
    ///
    /// Deviates: 16-bit samples keep their upper byte. PIL does so for colour, but clips 16-bit gray at 255, which
    /// makes nearly all of it white.
    ///
    /// # Errors
    ///
    /// [`DataError::Content`] when there are no bytes, [`DataError::Decode`] when they are of another format, are
    /// damaged, or describe an image with a side above 16,384 pixels.
    pub fn decode(bytes: &[u8], name: &str) -> Result<Self, DataError> {
        if bytes.is_empty() {
            let place = format!("image `{name}`");
            return Err(DataError::content(
                place,
                "is empty",
                "replace or remove it",
            ));
        }
        let decode_error = |source| DataError::Decode {
            name: name.to_owned(),
            source,
        };
        let mut reader = ImageReader::new(Cursor::new(bytes))
            .with_guessed_format()
            .map_err(|source| decode_error(image::ImageError::IoError(source)))?;
        let mut limits = Limits::default();
        limits.max_image_width = Some(MAX_SIDE);
        limits.max_image_height = Some(MAX_SIDE);
        limits.max_alloc = Some(MAX_DECODE_BYTES);
        reader.limits(limits);
        let decoded = reader.decode().map_err(decode_error)?;
        let (width, height) = (decoded.width() as usize, decoded.height() as usize);
        let upper = |samples: &[u16]| samples.iter().map(|v| (v >> 8) as u8).collect();
        let (channels, data) = match decoded {
            DynamicImage::ImageLuma16(gray) => (1, upper(gray.as_raw())),
            DynamicImage::ImageLumaA16(_) => (1, upper(decoded.into_luma16().as_raw())),
            DynamicImage::ImageRgb16(rgb) => (3, upper(rgb.as_raw())),
            DynamicImage::ImageRgba16(_) => (3, upper(decoded.into_rgb16().as_raw())),
            DynamicImage::ImageLuma8(_) | DynamicImage::ImageLumaA8(_) => {
                (1, decoded.into_luma8().into_raw())
            }
            _ => (3, decoded.into_rgb8().into_raw()),
        };
        Self::new(width, height, channels, data)
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

    /// The image with one channel: luma by Rec. 601 weights (299, 587, 114 thousandths), as PIL's `convert("L")`.
    #[must_use]
    pub fn into_gray(self) -> Self {
        if self.channels == 1 {
            return self;
        }
        let luma = |rgb: &[u8]| {
            let [r, g, b] = [rgb[0], rgb[1], rgb[2]].map(u32::from);
            // Rounded to nearest, at most 255.
            ((299 * r + 587 * g + 114 * b + 500) / 1000) as u8
        };
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

/// Packs an image of three channels, `[height, width, 3]`, as PNG.
///
/// # Errors
///
/// [`DataError::ImageShape`] when `data` has another length.
pub fn encode_png(width: usize, height: usize, data: &[u8]) -> Result<Vec<u8>, DataError> {
    let shape = || DataError::ImageShape {
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
        .map_err(|source| DataError::Decode {
            name: "contact sheet".to_owned(),
            source,
        })?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ImageBuffer, ImageFormat, Luma, LumaA, Rgb, Rgba};

    fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn every_colour_type_becomes_one_or_three_channels() {
        let gray = DynamicImage::ImageLuma8(ImageBuffer::from_pixel(2, 1, Luma([7])));
        let gray_alpha = DynamicImage::ImageLumaA8(ImageBuffer::from_pixel(2, 1, LumaA([7, 3])));
        let gray16 = DynamicImage::ImageLuma16(ImageBuffer::from_pixel(2, 1, Luma([0x0707])));
        let rgb = DynamicImage::ImageRgb8(ImageBuffer::from_pixel(2, 1, Rgb([1, 2, 3])));
        // Rounding would make 0x80 of 0x7fff.
        let rgb16 =
            DynamicImage::ImageRgb16(ImageBuffer::from_pixel(2, 1, Rgb([0x7fff, 256, 255])));
        let rgba = DynamicImage::ImageRgba8(ImageBuffer::from_pixel(2, 1, Rgba([1, 2, 3, 0])));
        for (image, channels, pixel) in [
            (gray, 1, vec![7]),
            (gray_alpha, 1, vec![7]),
            (gray16, 1, vec![7]),
            (rgb, 3, vec![1, 2, 3]),
            (rgb16, 3, vec![0x7f, 1, 0]),
            (rgba, 3, vec![1, 2, 3]),
        ] {
            let decoded = Image::decode(&encode(&image, ImageFormat::Png), "x").unwrap();
            assert_eq!(
                (decoded.width(), decoded.height(), decoded.channels()),
                (2, 1, channels)
            );
            assert_eq!(decoded.data(), pixel.repeat(2));
        }
    }

    #[test]
    fn jpeg_is_read() {
        let rgb = DynamicImage::ImageRgb8(ImageBuffer::from_pixel(8, 8, Rgb([100, 100, 100])));
        let decoded = Image::decode(&encode(&rgb, ImageFormat::Jpeg), "x").unwrap();
        assert_eq!(decoded.channels(), 3);
        assert!(decoded.data().iter().all(|&v| v.abs_diff(100) <= 2));
    }

    #[test]
    fn webp_bmp_and_pnm_are_read_whatever_their_name() {
        let rgb = DynamicImage::ImageRgb8(ImageBuffer::from_pixel(3, 2, Rgb([9, 80, 200])));
        for format in [ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Pnm] {
            let decoded = Image::decode(&encode(&rgb, format), "x.jpg").unwrap();
            assert_eq!(decoded.data(), [9, 80, 200].repeat(6), "{format:?}");
        }
    }

    #[test]
    fn no_bytes_are_named() {
        let message = Image::decode(b"", "cat.png").unwrap_err().to_string();
        assert!(
            message.contains("cat.png") && message.contains("empty"),
            "{message}"
        );
    }

    #[test]
    fn error_names_the_file() {
        let message = Image::decode(b"not an image", "cat.png")
            .unwrap_err()
            .to_string();
        assert!(message.contains("cat.png"), "{message}");
    }

    #[test]
    fn truncated_png_is_an_error_at_every_length() {
        let gray = DynamicImage::ImageLuma8(ImageBuffer::from_fn(16, 16, |x, y| {
            Luma([(x * 37 + y * 91) as u8])
        }));
        let png = encode(&gray, ImageFormat::Png);
        // The last 16 bytes are the end chunk and the data's checksum, which a decoder may ignore.
        for len in 0..png.len() - 20 {
            assert!(Image::decode(&png[..len], "x").is_err(), "{len} bytes");
        }
    }

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
        let white = Image::new(1, 1, 3, vec![255; 3]).unwrap();
        assert_eq!(white.into_gray().data(), [255]);
    }
}
