//! Whether an encoded image is all there. Decoders fill what is missing with gray, and an image that is half gray is
//! learned like any other.

/// What is missing from an image, as the end of a sentence about it; nothing when its data reach their end.
///
/// Only formats whose decoder reads on without an error are looked at: the others say so themselves.
pub(super) fn missing(bytes: &[u8]) -> Option<&'static str> {
    if bytes.starts_with(&[0xff, 0xd8]) && !reaches_end_of_jpeg(bytes) {
        return Some("is cut short: its JPEG data have no end");
    }
    if bytes.starts_with(b"RIFF") && !holds_riff(bytes) {
        return Some("is cut short: it has fewer bytes than its WebP header says");
    }
    None
}

/// Walks the markers of a JPEG up to its end-of-image marker (ITU-T T.81, B.1.1).
///
/// Bytes behind that marker do not matter: cameras put a second picture or a film there. Bytes between two segments
/// that are no marker are passed over, as by libjpeg. A thumbnail lies inside a segment, so its end is not taken for
/// that of the image.
fn reaches_end_of_jpeg(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        let Some(skipped) = bytes.get(at..).and_then(first_ff) else {
            return false;
        };
        at += skipped;
        // Any number of fill bytes stands before a marker.
        while bytes.get(at) == Some(&0xff) {
            at += 1;
        }
        let Some(&marker) = bytes.get(at) else {
            return false;
        };
        at += 1;
        match marker {
            0xd9 => return true,
            // A stuffed zero or a restart inside coded data, or a marker without a segment.
            0x00 | 0x01 | 0xd0..=0xd8 => {}
            _ => {
                let Some(&[high, low]) = bytes.get(at..at + 2) else {
                    return false;
                };
                at += usize::from(u16::from_be_bytes([high, low])).max(2);
            }
        }
    }
}

/// Position of the first byte 0xff.
fn first_ff(bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|&byte| byte == 0xff)
}

/// Whether a RIFF container has as many bytes as it says.
fn holds_riff(bytes: &[u8]) -> bool {
    match bytes.get(4..8) {
        Some(&[a, b, c, d]) => {
            let len = u64::from(u32::from_le_bytes([a, b, c, d]));
            bytes.len() as u64 >= len + 8
        }
        _ => false,
    }
}
