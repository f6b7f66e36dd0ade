//! Checksums of files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use md5::Md5;
use sha2::{Digest, Sha256};

use crate::error::FetchError;

/// Bytes read at once.
const CHUNK: usize = 1 << 20;

/// A checksum that a file must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sum<'a> {
    /// 64 hexadecimal digits.
    Sha256(&'a str),
    /// 32 hexadecimal digits. It shows a damaged file, not one that was forged.
    Md5(&'a str),
}

impl<'a> Sum<'a> {
    /// Name of the kind, for messages.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::Md5(_) => "MD5",
        }
    }

    /// The digits.
    pub(crate) fn digits(self) -> &'a str {
        match self {
            Self::Sha256(digits) | Self::Md5(digits) => digits,
        }
    }

    /// The sum of the same kind that a file has.
    pub(crate) fn of_file(self, path: &Path) -> Result<String, FetchError> {
        match self {
            Self::Sha256(_) => sha256_of(path),
            Self::Md5(_) => digest_of::<Md5>(path),
        }
    }
}

/// The SHA-256 of a file's content as 64 hexadecimal digits in lower case.
///
/// # Errors
///
/// [`FetchError::Io`] when the file cannot be read.
pub fn sha256_of(path: &Path) -> Result<String, FetchError> {
    digest_of::<Sha256>(path)
}

fn digest_of<D: Digest>(path: &Path) -> Result<String, FetchError> {
    let mut file = File::open(path).map_err(FetchError::io("read", path))?;
    let mut hash = D::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let n = file
            .read(&mut chunk)
            .map_err(FetchError::io("read", path))?;
        if n == 0 {
            break;
        }
        hash.update(&chunk[..n]);
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Whether a text has the form of a SHA-256: 64 hexadecimal digits.
pub fn is_sha256(text: &str) -> bool {
    is_hexadecimal(text, 64)
}

/// Whether a text has the form of an MD5: 32 hexadecimal digits.
pub(crate) fn is_md5(text: &str) -> bool {
    is_hexadecimal(text, 32)
}

fn is_hexadecimal(text: &str, n_digits: usize) -> bool {
    text.len() == n_digits && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sums_of_abc_are_the_published_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        let sum = sha256_of(&path).unwrap();
        // FIPS 180-4, example of one block.
        assert_eq!(
            sum,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert!(is_sha256(&sum) && !is_sha256(&sum[1..]));
        // RFC 1321, test suite.
        let md5 = Sum::Md5("").of_file(&path).unwrap();
        assert_eq!(md5, "900150983cd24fb0d6963f7d28e17f72");
        assert!(is_md5(&md5) && !is_md5(&sum));
    }
}
