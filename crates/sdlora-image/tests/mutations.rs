//! Thousands of changed images, or as many as `SDLORA_MUTATIONS` says for each format, the same in every run: each is
//! decoded or refused, and nothing panics.

#![allow(clippy::unwrap_used, reason = "helpers of tests end the test")]

use image::{DynamicImage, ImageBuffer, ImageFormat, Rgb};
use sdlora_image::Image;
use sdlora_testkit::mutations::{count, survive};

fn encoded(value: u8, format: ImageFormat) -> Vec<u8> {
    let image = ImageBuffer::from_fn(6, 5, |x, y| Rgb([value, x as u8 * 40, y as u8 * 50]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    DynamicImage::ImageRgb8(image)
        .write_to(&mut bytes, format)
        .unwrap();
    bytes.into_inner()
}

#[test]
fn changed_images_never_panic() {
    for format in [
        ImageFormat::Png,
        ImageFormat::Jpeg,
        ImageFormat::Bmp,
        ImageFormat::WebP,
        ImageFormat::Pnm,
    ] {
        let (whole, other) = (encoded(5, format), encoded(99, format));
        let n = count(1200);
        let what = format!("image {format:?}");
        let n_decoded = survive(&what, n, &whole, &other, |bytes| {
            Image::decode(bytes, "x").is_ok()
        });
        assert!(n_decoded < n, "{format:?}: no change was noticed");
    }
}
