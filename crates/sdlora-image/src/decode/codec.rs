//! The decoders, within limits.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageReader, Limits};

/// Largest accepted width and height of an encoded image, in pixels; guards against decompression bombs.
const MAX_SIDE: u32 = 16_384;
/// Largest memory a decoder may take for one image, in bytes; the decoder's own default is twice as much.
const MAX_DECODE_BYTES: u64 = 256 * 1024 * 1024;
/// Largest encoded image, in bytes: what may be decoded, without compression.
pub const MAX_IMAGE_BYTES: u64 = MAX_DECODE_BYTES + 1024 * 1024;

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_DECODE_BYTES);
    limits
}

fn reader(bytes: &[u8]) -> Result<ImageReader<Cursor<&[u8]>>, ImageError> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    reader.limits(limits());
    Ok(reader)
}

/// The image as it is stored.
pub(super) fn decoded(bytes: &[u8]) -> Result<DynamicImage, ImageError> {
    reader(bytes)?.decode()
}

/// The image turned as its EXIF data say; EXIF data that cannot be read say nothing.
pub(super) fn decoded_upright(bytes: &[u8]) -> Result<DynamicImage, ImageError> {
    let mut decoder = reader(bytes)?.into_decoder()?;
    let mut limits = limits();
    limits.reserve(decoder.total_bytes())?;
    decoder.set_limits(limits)?;
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    Ok(image)
}
