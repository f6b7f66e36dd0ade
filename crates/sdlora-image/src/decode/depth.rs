//! Samples of 16 bits that use fewer: sensors of 10, 12 and 14 bits are stored so, and their images are nearly black
//! when the upper byte is kept.

use serde::{Deserialize, Serialize};

/// How many bits the samples of 16-bit images use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum BitDepth {
    /// As many as the file says: `sBIT` of a PNG, the largest value of a PNM, else all 16. Written `"file"`.
    #[default]
    File,
    /// So many, from 8 to 16; a larger sample is an error. Written as a number.
    Bits(u8),
}

/// [`BitDepth`] as it stands in a configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Bits(i64),
    Name(String),
}

impl TryFrom<Written> for BitDepth {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Name(name) if name == "file" => Ok(Self::File),
            Written::Bits(bits @ 8..=16) => Ok(Self::Bits(bits as u8)),
            Written::Bits(other) => Err(format!(
                "`bit_depth` is {other}, expected \"file\" or a number from 8 to 16"
            )),
            Written::Name(other) => Err(format!(
                "`bit_depth` is \"{other}\", expected \"file\" or a number from 8 to 16"
            )),
        }
    }
}

impl From<BitDepth> for Written {
    fn from(depth: BitDepth) -> Self {
        match depth {
            BitDepth::File => Self::Name("file".to_owned()),
            BitDepth::Bits(bits) => Self::Bits(bits.into()),
        }
    }
}

impl BitDepth {
    /// Samples of 16 bits as bytes: the upper 8 of the bits that are used.
    ///
    /// `bytes` is the encoded image. Errors are the end of a sentence about the image.
    pub(super) fn upper_bytes(self, samples: &[u16], bytes: &[u8]) -> Result<Vec<u8>, String> {
        let bits = match self {
            Self::Bits(bits) => {
                let most = largest(samples);
                if used(most) > bits {
                    return Err(format!(
                        "has a sample of {most}, more than `bit_depth = {bits}` allows"
                    ));
                }
                bits
            }
            Self::File => said_by_png(bytes, samples).unwrap_or(16),
        };
        Ok(samples.iter().map(|&sample| upper(sample, bits)).collect())
    }
}

/// The upper 8 of the lower `bits` bits.
fn upper(sample: u16, bits: u8) -> u8 {
    match bits.checked_sub(8) {
        Some(shift) => (sample >> shift) as u8,
        None => (u32::from(sample) * 255 / ((1 << bits) - 1)) as u8,
    }
}

fn largest(samples: &[u16]) -> u16 {
    samples.iter().copied().max().unwrap_or(0)
}

/// Number of bits that a value takes.
fn used(value: u16) -> u8 {
    (16 - value.leading_zeros()) as u8
}

/// The bits that `sBIT` of a PNG names, when the samples are not scaled to all 16 as they should be (PNG, 13.12): they
/// are no larger than the bits allow, and some has one below those that scaling would leave.
fn said_by_png(bytes: &[u8], samples: &[u16]) -> Option<u8> {
    let bits = significant_bits(bytes).filter(|bits| (1..16).contains(bits))?;
    let is_small = used(largest(samples)) <= bits;
    let is_scaled = |&sample: &u16| {
        let top = sample >> (16 - bits) << (16 - bits);
        // Filled with zeros, or with the upper bits again.
        sample == top || sample == top | top.checked_shr(bits.into()).unwrap_or(0)
    };
    (is_small && !samples.iter().all(is_scaled)).then_some(bits)
}

/// The largest entry of the chunk `sBIT`, without that of the alpha channel.
fn significant_bits(bytes: &[u8]) -> Option<u8> {
    let mut rest = bytes.strip_prefix(b"\x89PNG\r\n\x1a\n")?;
    let mut has_alpha = false;
    loop {
        let (&[a, b, c, d], after) = rest.split_first_chunk()?;
        let len = u32::from_be_bytes([a, b, c, d]) as usize;
        let kind = after.get(..4)?;
        let data = after.get(4..)?.get(..len)?;
        match kind {
            b"IHDR" => has_alpha = data.get(9)? & 4 != 0,
            b"sBIT" => {
                let n_colours = data.len() - usize::from(has_alpha && !data.is_empty());
                return data[..n_colours].iter().copied().max();
            }
            b"IDAT" => return None,
            _ => {}
        }
        rest = after.get(len + 8..)?;
    }
}

/// Number of bits that the samples of a 16-bit PNG use; nothing for other images and those that cannot be read.
pub fn bits_in_use(bytes: &[u8]) -> Option<u8> {
    // Bit depth of the header.
    if !bytes.starts_with(b"\x89PNG") || bytes.get(24) != Some(&16) {
        return None;
    }
    let most = match super::codec::decoded(bytes).ok()? {
        image::DynamicImage::ImageLuma16(image) => largest(image.as_raw()),
        image::DynamicImage::ImageRgb16(image) => largest(image.as_raw()),
        image @ image::DynamicImage::ImageLumaA16(_) => largest(image.into_luma16().as_raw()),
        image @ image::DynamicImage::ImageRgba16(_) => largest(image.into_rgb16().as_raw()),
        _ => return None,
    };
    let is_said = significant_bits(bytes).is_some_and(|bits| bits < 16);
    (!is_said).then(|| used(most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{DynamicImage, ImageBuffer, ImageFormat, Luma};

    /// A 16-bit PNG of one row, with a chunk `sBIT`.
    fn png(values: &[u16], significant: Option<u8>) -> Vec<u8> {
        let image = ImageBuffer::from_fn(values.len() as u32, 1, |x, _| Luma([values[x as usize]]));
        let mut bytes = std::io::Cursor::new(Vec::new());
        DynamicImage::ImageLuma16(image)
            .write_to(&mut bytes, ImageFormat::Png)
            .unwrap();
        let bytes = bytes.into_inner();
        let Some(bits) = significant else {
            return bytes;
        };
        let chunk = [b"sBIT".as_slice(), &[bits]].concat();
        let mut crc = flate2::Crc::new();
        crc.update(&chunk);
        // Signature and header have 33 bytes.
        [
            &bytes[..33],
            &1u32.to_be_bytes(),
            &chunk,
            &crc.sum().to_be_bytes(),
            &bytes[33..],
        ]
        .concat()
    }

    fn read(bytes: &[u8], bit_depth: BitDepth) -> Result<Vec<u8>, String> {
        let reading = super::super::ImageReading {
            bit_depth,
            ..Default::default()
        };
        crate::Image::decode_as(bytes, "x", reading)
            .map(|image| image.data().to_vec())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn samples_of_twelve_bits_are_not_black() {
        let values = [0, 1000, 2047, 4095];
        let plain = png(&values, None);
        assert_eq!(read(&plain, BitDepth::File).unwrap(), [0, 3, 7, 15]);
        assert_eq!(read(&plain, BitDepth::Bits(12)).unwrap(), [0, 62, 127, 255]);
        let said = png(&values, Some(12));
        assert_eq!(read(&said, BitDepth::File).unwrap(), [0, 62, 127, 255]);
        assert_eq!(bits_in_use(&plain), Some(12));
        assert_eq!(bits_in_use(&said), None);
        let error = read(&plain, BitDepth::Bits(10)).unwrap_err();
        assert!(
            error.contains("4095") && error.contains("bit_depth = 10"),
            "{error}"
        );
    }

    #[test]
    fn a_pnm_is_scaled_by_its_largest_value() {
        for (pnm, expected) in [
            (&b"P5 2 1 4095\n\x0f\xff\x08\x00"[..], [255, 128]),
            (b"P5 2 1 15\n\x0f\x08", [255, 136]),
        ] {
            assert_eq!(read(pnm, BitDepth::File).unwrap(), expected);
        }
    }

    #[test]
    fn samples_that_are_scaled_stay_as_they_are() {
        // 12 bits filled with zeros, or with the upper bits again, as the PNG specification wants it.
        for values in [[0x0120, 0x0fe0], [0x1231, 0xfedf]] {
            let expected = values.map(|value: u16| (value >> 8) as u8);
            let said = png(&values, Some(12));
            assert_eq!(read(&said, BitDepth::File).unwrap(), expected);
        }
    }

    #[test]
    fn bit_depths_are_named_or_numbers() {
        #[derive(Debug, Deserialize, Serialize)]
        struct Config {
            bit_depth: BitDepth,
        }
        let parse = |text: &str| toml::from_str::<Config>(text);
        for (text, depth) in [
            ("bit_depth = \"file\"", BitDepth::File),
            ("bit_depth = 12", BitDepth::Bits(12)),
        ] {
            let config = parse(text).unwrap();
            assert_eq!(config.bit_depth, depth);
            assert_eq!(toml::to_string(&config).unwrap().trim(), text);
        }
        for text in ["bit_depth = 7", "bit_depth = 17", "bit_depth = \"data\""] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains("from 8 to 16"), "{error}");
        }
    }
}
