//! SHA-256 of files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::error::FetchError;

/// Bytes read at once.
const CHUNK: usize = 1 << 20;

/// The SHA-256 of a file's content as 64 hexadecimal digits in lower case.
///
/// # Errors
///
/// [`FetchError::Io`] when the file cannot be read.
pub fn sha256_of(path: &Path) -> Result<String, FetchError> {
    let mut file = File::open(path).map_err(FetchError::io("read", path))?;
    let mut hash = Sha256::new();
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
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_abc_is_the_published_one() {
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
    }
}
