//! Members of a zip file, listed from its directory and read when asked for.

use std::io::Read;
use std::path::Path;

use zip::CompressionMethod;

use super::store::Store;
use super::{Entry, Location, too_many};
use crate::error::DataError;

/// Length of the fixed part of a local file header (ZIP specification, 4.3.7).
const LOCAL_HEADER_LEN: u64 = 30;

/// Where a member is, and how it is packed.
#[derive(Debug)]
pub(super) struct Member {
    header_start: u64,
    packed_len: u64,
    crc32: u32,
    is_deflated: bool,
}

/// Why a member could not be read.
pub(super) enum Problem {
    /// The archive could not be read.
    Store(DataError),
    /// The member is damaged, as the end of a sentence about it.
    Content(String),
}

/// Lists the members of the zip file at `path`.
pub(super) fn list(path: &Path, max_files: usize) -> Result<Vec<Entry>, DataError> {
    let archive_error = |member: String, source| DataError::Archive {
        path: path.to_owned(),
        member,
        source,
    };
    let file = std::fs::File::open(path).map_err(|source| DataError::Io {
        path: path.to_owned(),
        source,
    })?;
    let archive = zip::ZipArchive::new(std::io::BufReader::new(file))
        .map_err(|source| archive_error(String::new(), source))?;
    let mut entries = Vec::new();
    for idx in 0..archive.len() {
        let member = archive
            .by_index_data(idx)
            .map_err(|source| archive_error(format!("number {idx}"), source))?;
        if !member.is_file() {
            continue;
        }
        if entries.len() == max_files {
            return Err(too_many(path, max_files));
        }
        let name = String::from_utf8_lossy(member.name_raw()).into_owned();
        let is_deflated = match member.compression() {
            CompressionMethod::Stored => false,
            CompressionMethod::Deflated => true,
            other => {
                return Err(DataError::content(
                    format!("`{name}` in `{}`", path.display()),
                    format!("is packed by the method {other}"),
                    "pack it with deflate or without compression, or unpack it to a folder",
                ));
            }
        };
        if member.encrypted() {
            return Err(DataError::content(
                format!("`{name}` in `{}`", path.display()),
                "is encrypted",
                "unpack it to a folder",
            ));
        }
        entries.push(Entry {
            name,
            size: member.size(),
            at: Location::Zip(Member {
                header_start: member.header_start(),
                packed_len: member.compressed_size(),
                crc32: member.crc32(),
                is_deflated,
            }),
            part: 0,
        });
    }
    Ok(entries)
}

impl Member {
    /// Reads and unpacks the member, `len` bytes, and compares its checksum.
    pub(super) fn read(&self, store: &Store, len: u64) -> Result<Vec<u8>, Problem> {
        let content = |text: &str| Problem::Content(text.to_owned());
        let header = store
            .read(self.header_start, LOCAL_HEADER_LEN)
            .map_err(Problem::Store)?;
        if !header.starts_with(b"PK\x03\x04") {
            return Err(content("does not start where the directory says"));
        }
        let number = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
        // The lengths of name and extra field; those of the directory may differ.
        let start = self.header_start + LOCAL_HEADER_LEN + number(26) + number(28);
        let packed = store.read(start, self.packed_len).map_err(Problem::Store)?;
        let bytes = if self.is_deflated {
            let mut bytes = Vec::new();
            flate2::read::DeflateDecoder::new(packed.as_slice())
                .take(len.saturating_add(1))
                .read_to_end(&mut bytes)
                .map_err(|source| Problem::Content(format!("cannot be unpacked ({source})")))?;
            bytes
        } else {
            packed
        };
        if bytes.len() as u64 != len {
            return Err(content("has another size than the directory says"));
        }
        let mut crc = flate2::Crc::new();
        crc.update(&bytes);
        if crc.sum() != self.crc32 {
            return Err(content("has a wrong checksum"));
        }
        Ok(bytes)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Write;
    use zip::write::SimpleFileOptions;

    pub(crate) fn zipped(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        for (name, bytes) in files {
            writer
                .start_file(*name, SimpleFileOptions::default())
                .unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.zip");
        let mut bytes = zipped(&[("abc.txt", b"abcabcabcabcabcabc")]);
        // Behind the local header and the name: packed bytes.
        bytes[LOCAL_HEADER_LEN as usize + 7 + 2] ^= 0x40;
        std::fs::write(&path, bytes).unwrap();
        let files = crate::files::Files::open(&path, 10).unwrap();
        let error = files.read(0).unwrap_err().to_string();
        assert!(
            error.contains("abc.txt") && error.contains("a.zip"),
            "{error}"
        );
    }
}
