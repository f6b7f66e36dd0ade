//! Which formats of images are read: told by the ending of a name when files are listed, and by the first bytes when an
//! image is read.

/// Endings of the image files that are read, in lower case; an MPO is a JPEG with a second picture behind it.
const READ: [&str; 12] = [
    "png", "jpg", "jpeg", "jpe", "jfif", "mpo", "webp", "bmp", "ppm", "pgm", "pbm", "pnm",
];

/// Endings of image files that are not read, in lower case: formats of phones and scanners, raw files of cameras.
const NOT_READ: [&str; 25] = [
    "heic", "heif", "hif", "gif", "tif", "tiff", "avif", "jxl", "jp2", "j2k", "svg", "ico", "tga",
    "psd", "exr", "hdr", "dds", "cr2", "cr3", "nef", "arw", "dng", "orf", "rw2", "raf",
];

/// What the first bytes of a file say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An image that is read.
    Read,
    /// Something else that is known, with its article.
    Other(&'static str),
    /// Nothing that is known.
    Unknown,
}

/// True when the ending of a file name, in upper or lower case, is that of an image format that is read.
pub fn is_image(name: &str) -> bool {
    ending(name).is_some_and(|ending| READ.contains(&ending.as_str()))
}

/// The ending of a name, in lower case, when it is that of an image that is not read.
pub fn other_ending(name: &str) -> Option<String> {
    ending(name).filter(|ending| NOT_READ.contains(&ending.as_str()))
}

fn ending(name: &str) -> Option<String> {
    let (_, ending) = name.rsplit_once('.')?;
    // Longer than any: what follows a point in a sentence is no ending.
    (ending.len() <= 5).then(|| ending.to_ascii_lowercase())
}

/// The endings that are read, each after `stem`; for names that were written without one.
pub fn with_endings(stem: &str) -> impl Iterator<Item = String> {
    READ.iter()
        .flat_map(|ending| [(*ending).to_owned(), ending.to_ascii_uppercase()])
        .map(move |ending| format!("{stem}.{ending}"))
}

impl Format {
    /// The format of a file by its first bytes; 32 are enough.
    pub fn of(start: &[u8]) -> Self {
        let is_text = |text: &str| {
            let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
            let start = start.trim_ascii_start();
            start.len() >= text.len() && start[..text.len()].eq_ignore_ascii_case(text.as_bytes())
        };
        let brand = start
            .get(4..12)
            .and_then(|kind| kind.strip_prefix(b"ftyp"))
            .unwrap_or_default();
        match start {
            [0x89, b'P', b'N', b'G', ..] | [0xff, 0xd8, 0xff, ..] | [b'B', b'M', ..] => Self::Read,
            [b'P', b'1'..=b'7', ..] => Self::Read,
            [
                b'R',
                b'I',
                b'F',
                b'F',
                _,
                _,
                _,
                _,
                b'W',
                b'E',
                b'B',
                b'P',
                ..,
            ] => Self::Read,
            [b'G', b'I', b'F', b'8', ..] => Self::Other("a GIF"),
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Self::Other("a TIFF"),
            [b'8', b'B', b'P', b'S', ..] => Self::Other("a PSD"),
            [0xff, 0x0a, ..] | [0, 0, 0, 12, b'J', b'X', b'L', ..] => Self::Other("a JPEG XL"),
            [0, 0, 0, 12, b'j', b'P', ..] => Self::Other("a JPEG 2000"),
            _ if matches!(brand, b"avif" | b"avis") => Self::Other("an AVIF"),
            _ if matches!(
                brand,
                b"heic" | b"heix" | b"hevc" | b"heim" | b"mif1" | b"msf1"
            ) =>
            {
                Self::Other("a HEIC")
            }
            _ if is_text("<svg") || is_text("<?xml") => Self::Other("an SVG or XML text"),
            _ if is_text("<!doctype html") || is_text("<html") => Self::Other("an HTML page"),
            _ if is_text("version https://git-lfs") => {
                Self::Other("a Git LFS pointer, not the file it stands for")
            }
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_and_first_bytes_tell_formats() {
        for name in ["a.JPE", "a.jfif", "b/c.PNG", "x.y.webp"] {
            assert!(is_image(name) && other_ending(name).is_none(), "{name}");
        }
        for name in ["a.HEIC", "a.gif", "a.tiff"] {
            assert!(!is_image(name) && other_ending(name).is_some(), "{name}");
        }
        for name in ["a.txt", "png", "a.jpg.part"] {
            assert!(!is_image(name) && other_ending(name).is_none(), "{name}");
        }
        for (start, format) in [
            (&b"\x89PNG\r\n"[..], Format::Read),
            (b"P5 1 1 255\n", Format::Read),
            (b"RIFF\0\0\0\0WEBPVP8 ", Format::Read),
            (b"RIFF\0\0\0\0WAVE", Format::Unknown),
            (b"GIF89a", Format::Other("a GIF")),
            (b"II*\0", Format::Other("a TIFF")),
            (b"\0\0\0\x18ftypheic\0\0\0\0", Format::Other("a HEIC")),
            (b"\0\0\0\x1cftypavif", Format::Other("an AVIF")),
            (b"\n<!DOCTYPE HTML>", Format::Other("an HTML page")),
            (b"", Format::Unknown),
            (b"\0\0\0\0", Format::Unknown),
        ] {
            assert_eq!(Format::of(start), format, "{start:?}");
        }
    }
}
