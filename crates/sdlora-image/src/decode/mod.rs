//! From the bytes of an image file to an [`Image`].

mod codec;
mod depth;
mod whole;

use image::DynamicImage;
use serde::{Deserialize, Serialize};

pub use codec::MAX_IMAGE_BYTES;
pub use depth::{BitDepth, bits_in_use};

use crate::error::ImageError;
use crate::format::Format;
use crate::image::Image;
use codec::{decoded, decoded_upright};

/// Which side of an image is up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rotation {
    /// The first row of pixels is the top, whatever the EXIF data say; as PIL and torchvision read images.
    #[default]
    Stored,
    /// As the EXIF data say, which phones and cameras rely on.
    Exif,
}

/// How images are read where files leave a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageReading {
    /// Which side is up.
    pub rotation: Rotation,
    /// How many bits 16-bit samples use.
    pub bit_depth: BitDepth,
}

impl Image {
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
    /// [`ImageError::Content`] when there are no bytes, when they are of a format that is not read, or when they end
    /// before the image does; [`ImageError::Decode`] when they are damaged, or describe an image with a side above
    /// 16,384 pixels.
    pub fn decode(bytes: &[u8], name: &str) -> Result<Self, ImageError> {
        Self::decode_as(bytes, name, ImageReading::default())
    }

    /// Decodes an image as [`decode`](Self::decode) does, with another choice of `reading`.
    ///
    /// # Errors
    ///
    /// Those of [`decode`](Self::decode), and [`ImageError::Content`] for a sample above [`BitDepth::Bits`].
    pub fn decode_as(bytes: &[u8], name: &str, reading: ImageReading) -> Result<Self, ImageError> {
        let problem = |problem: &str, action| ImageError::Content {
            name: name.to_owned(),
            problem: problem.to_owned(),
            action,
        };
        let replace = "replace or remove it";
        if bytes.is_empty() {
            return Err(problem("is empty", replace));
        }
        if let Format::Other(what) = Format::of(bytes) {
            let what = format!("is {what}, which is not read");
            return Err(problem(&what, "convert it to JPEG or PNG, or remove it"));
        }
        if let Some(missing) = whole::missing(bytes) {
            return Err(problem(missing, replace));
        }
        let decoded = match reading.rotation {
            Rotation::Stored => decoded(bytes),
            Rotation::Exif => decoded_upright(bytes),
        };
        let decoded = decoded.map_err(|source| ImageError::Decode {
            name: name.to_owned(),
            source,
        })?;
        let (width, height) = (decoded.width() as usize, decoded.height() as usize);
        let upper = |samples: &[u16]| {
            let bytes = reading.bit_depth.upper_bytes(samples, bytes);
            bytes.map_err(|text| problem(&text, "correct `bit_depth`"))
        };
        let (channels, data) = match decoded {
            DynamicImage::ImageLuma16(gray) => (1, upper(gray.as_raw())?),
            DynamicImage::ImageLumaA16(_) => (1, upper(decoded.into_luma16().as_raw())?),
            DynamicImage::ImageRgb16(rgb) => (3, upper(rgb.as_raw())?),
            DynamicImage::ImageRgba16(_) => (3, upper(decoded.into_rgb16().as_raw())?),
            DynamicImage::ImageLuma8(_) | DynamicImage::ImageLumaA8(_) => {
                (1, decoded.into_luma8().into_raw())
            }
            _ => (3, decoded.into_rgb8().into_raw()),
        };
        Self::new(width, height, channels, data)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

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

    /// A picture without two equal blocks.
    fn noise() -> DynamicImage {
        DynamicImage::ImageRgb8(ImageBuffer::from_fn(40, 30, |x, y| {
            let v = (x * 7919 + y * 104_729) % 251;
            Rgb([v as u8, (v * 3) as u8, (x * y) as u8])
        }))
    }

    #[test]
    fn an_image_cut_short_is_refused_at_every_length_and_in_every_format() {
        for (format, n_spare) in [
            (ImageFormat::Jpeg, 0),
            (ImageFormat::WebP, 0),
            (ImageFormat::Bmp, 0),
            (ImageFormat::Pnm, 0),
            // The end chunk and the checksum of the data, which Pillow does not ask for either.
            (ImageFormat::Png, 20),
        ] {
            let whole = encode(&noise(), format);
            for rotation in [Rotation::Stored, Rotation::Exif] {
                let reading = ImageReading {
                    rotation,
                    ..ImageReading::default()
                };
                let read = |bytes: &[u8]| Image::decode_as(bytes, "cat.x", reading);
                let accepted: Vec<usize> = (0..whole.len() - n_spare)
                    .filter(|&len| read(&whole[..len]).is_ok())
                    .collect();
                assert_eq!(accepted, [0; 0], "{format:?} of {} bytes", whole.len());
                let followed = [&whole[..], &[0x55; 300]].concat();
                assert_eq!(
                    read(&followed).unwrap(),
                    read(&whole).unwrap(),
                    "{format:?}"
                );
            }
        }
    }

    /// Files made with Pillow 13.0, which refuses each of them when its last byte is missing.
    #[test]
    fn a_jpeg_cut_short_is_refused_however_it_is_coded() {
        for (name, bytes) in [
            (
                "progressive",
                &include_bytes!("../../tests/images/progressive.jpg")[..],
            ),
            (
                "restarts",
                include_bytes!("../../tests/images/restarts.jpg"),
            ),
            (
                "thumbnail",
                include_bytes!("../../tests/images/thumbnail.jpg"),
            ),
        ] {
            Image::decode(bytes, name).unwrap();
            for len in 0..bytes.len() {
                assert!(
                    Image::decode(&bytes[..len], name).is_err(),
                    "{name} of {len} bytes"
                );
            }
            // Reserved before it was fetched: the rest is zero.
            let mut half = bytes.to_vec();
            half[bytes.len() / 2..].fill(0);
            let error = Image::decode(&half, name).unwrap_err().to_string();
            assert!(
                error.contains(name) && error.contains("cut short"),
                "{error}"
            );
        }
    }

    #[test]
    fn another_format_is_named() {
        let error = Image::decode(b"GIF89a\x01\0\x01\0", "cat.jpg").unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("cat.jpg") && error.contains("a GIF"),
            "{error}"
        );
    }

    #[test]
    fn exif_data_turn_an_image_when_they_are_asked_for() {
        // Stored 4 wide and 2 high, to be turned by a quarter.
        let bytes = include_bytes!("../../tests/images/rotated.jpg");
        let sides = |rotation| {
            let reading = ImageReading {
                rotation,
                ..ImageReading::default()
            };
            let image = Image::decode_as(bytes, "x", reading).unwrap();
            (image.width(), image.height())
        };
        assert_eq!(sides(Rotation::Stored), (4, 2));
        assert_eq!(sides(Rotation::Exif), (2, 4));
    }

    #[test]
    fn sizes_in_a_header_do_not_take_memory() {
        for format in [
            ImageFormat::Png,
            ImageFormat::Bmp,
            ImageFormat::Jpeg,
            ImageFormat::WebP,
        ] {
            let mut bytes = encode(&noise(), format);
            let huge = 16_000u32;
            match format {
                ImageFormat::Png => {
                    bytes[16..20].copy_from_slice(&huge.to_be_bytes());
                    bytes[20..24].copy_from_slice(&huge.to_be_bytes());
                    let mut crc = flate2::Crc::new();
                    crc.update(&bytes[12..29]);
                    bytes[29..33].copy_from_slice(&crc.sum().to_be_bytes());
                }
                ImageFormat::Bmp => {
                    bytes[18..22].copy_from_slice(&huge.to_le_bytes());
                    bytes[22..26].copy_from_slice(&huge.to_le_bytes());
                }
                ImageFormat::Jpeg => {
                    let frame = bytes.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
                    let side = (huge as u16).to_be_bytes();
                    bytes[frame + 5..frame + 7].copy_from_slice(&side);
                    bytes[frame + 7..frame + 9].copy_from_slice(&side);
                }
                _ => {
                    // A lossless WebP: 14 bits of width - 1, then as many of height - 1.
                    let sides = (huge - 1) | (huge - 1) << 14;
                    bytes[21..25].copy_from_slice(&sides.to_le_bytes());
                }
            }
            let error = Image::decode(&bytes, "x").unwrap_err();
            assert!(
                matches!(error, ImageError::Decode { .. }),
                "{format:?}: {error}"
            );
        }
    }
}
