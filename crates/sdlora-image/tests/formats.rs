//! Images of unusual colour types are read as Pillow reads them.

#![allow(clippy::unwrap_used, reason = "helpers of tests end the test")]

use sdlora_image::Image;

/// Images made with Pillow 13.0; the expected pixels are those of its `convert("RGB")`.
#[test]
fn unusual_images_are_read_as_pillow_reads_them() {
    let decode = |bytes: &[u8]| Image::decode(bytes, "x").unwrap().into_rgb();
    let palette = decode(include_bytes!("images/palette.png"));
    assert_eq!(palette.data(), [9, 8, 7, 255, 0, 0, 0, 0, 0]);
    let bits = decode(include_bytes!("images/bits.png"));
    assert_eq!(bits.data(), [255, 255, 255, 0, 0, 0, 255, 255, 255]);
    // The rotation in the EXIF data would make it 2 wide and 4 high.
    let rotated = decode(include_bytes!("images/rotated.jpg"));
    assert_eq!((rotated.width(), rotated.height()), (4, 2));
    let cmyk = decode(include_bytes!("images/cmyk.jpg"));
    for (found, expected) in cmyk.data().iter().zip([125u8, 84, 44].iter().cycle()) {
        assert!(
            found.abs_diff(*expected) <= 3,
            "{found} instead of {expected}"
        );
    }
}
