//! Members of a zip file, listed from its directory.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use zip::CompressionMethod;

use super::listing::{Entry, Listing, Location, empty, too_many};
use super::member::Member;
use super::names::place_of_bytes;
use super::read::open_file;
use crate::error::DataError;

/// Length of the end record of the directory (4.3.16), and of the longest comment behind it.
const END_LEN: u64 = 22;
const MAX_COMMENT_LEN: u64 = 65_535;
/// Length of the locator of the 64-bit end record, which stands before the end record (4.3.15).
const LOCATOR_LEN: usize = 20;

/// Lists the members of the zip file at `path`.
///
/// A backslash separates folders as `/` does: some programs of Windows write it, against the format (4.4.17).
pub(super) fn list(path: &Path, max_files: usize) -> Result<Listing, DataError> {
    let archive_error = |member: String, source| DataError::Archive {
        path: path.to_owned(),
        member,
        source,
    };
    let io_error = |source| DataError::Io {
        path: path.to_owned(),
        source,
    };
    let (mut file, _) = open_file(path)?;
    // The directory is read as a whole below, so its length is looked at first. Folders are members, too.
    let n_announced = announced(&mut file).map_err(io_error)?;
    if n_announced.is_some_and(|n| n > 2 * max_files as u64) {
        return Err(too_many(path, max_files));
    }
    let archive = zip::ZipArchive::new(std::io::BufReader::new(file))
        .map_err(|source| archive_error(String::new(), source))?;
    let mut listing = Listing::default();
    let mut folders = Vec::new();
    for idx in 0..archive.len() {
        let member = archive
            .by_index_data(idx)
            .map_err(|source| archive_error(format!("number {idx}"), source))?;
        // A name in UTF-8 that stands in an extra field has taken the place of that of the header.
        let Ok(name) = std::str::from_utf8(member.name_raw()) else {
            listing.problems.push(format!(
                "{} has a name that is not UTF-8, as packed on Windows in a code page such as GBK",
                place_of_bytes(member.name_raw(), path)
            ));
            continue;
        };
        let name = name.replace('\\', "/");
        if name.ends_with('/') {
            folders.push(name);
            continue;
        }
        if !member.is_file() {
            continue;
        }
        if listing.entries.len() == max_files {
            return Err(too_many(path, max_files));
        }
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
        listing.entries.push(Entry {
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
    listing.empty_folders = empty(folders, &listing.entries);
    Ok(listing)
}

/// Number of members that the end record of the directory announces, if one is found.
fn announced(file: &mut std::fs::File) -> std::io::Result<Option<u64>> {
    let len = file.seek(SeekFrom::End(0))?;
    let start = len.saturating_sub(END_LEN + MAX_COMMENT_LEN + LOCATOR_LEN as u64);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.take(len - start).read_to_end(&mut tail)?;
    let Some(end) = tail.windows(4).rposition(|w| w == b"PK\x05\x06") else {
        return Ok(None);
    };
    let Some(&[low, high]) = tail.get(end + 10..end + 12) else {
        return Ok(None);
    };
    let n = u16::from_le_bytes([low, high]);
    let locator = end
        .checked_sub(LOCATOR_LEN)
        .map(|at| &tail[at..end])
        .filter(|locator| n == u16::MAX && locator.starts_with(b"PK\x06\x07"));
    let Some(locator) = locator else {
        return Ok(Some(n.into()));
    };
    let mut long_end = [0; 40];
    let at = locator[8..16]
        .iter()
        .rev()
        .fold(0u64, |n, &b| n << 8 | u64::from(b));
    if at > len.saturating_sub(long_end.len() as u64) {
        return Ok(None);
    }
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut long_end)?;
    let n = long_end[32..]
        .iter()
        .rev()
        .fold(0u64, |n, &b| n << 8 | u64::from(b));
    Ok(long_end.starts_with(b"PK\x06\x06").then_some(n))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::files::member::LOCAL_HEADER_LEN;
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
    fn ten_million_members_are_refused_before_they_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.zip");
        let n: u64 = 10_000_000;
        // The end of a zip: 64-bit end record, its locator, end record. The members themselves are left out, so that
        // reading the directory would fail in another way.
        let mut bytes = b"PK\x06\x06".to_vec();
        bytes.extend(44u64.to_le_bytes());
        bytes.extend([0; 12]);
        bytes.extend(n.to_le_bytes());
        bytes.extend(n.to_le_bytes());
        bytes.extend([0; 16]);
        bytes.extend(b"PK\x06\x07\0\0\0\0");
        bytes.extend(0u64.to_le_bytes());
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(b"PK\x05\x06\0\0\0\0\xff\xff\xff\xff");
        bytes.extend([0xff; 8]);
        bytes.extend([0; 2]);
        std::fs::write(&path, &bytes).unwrap();
        let found = announced(&mut std::fs::File::open(&path).unwrap()).unwrap();
        assert_eq!(found, Some(n));
        let error = list(&path, 1_000_000).unwrap_err().to_string();
        assert!(error.contains("more than 1000000 files"), "{error}");
        let error = list(&path, 10_000_000).unwrap_err().to_string();
        assert!(!error.contains("more than"), "{error}");

        std::fs::write(&path, zipped(&[("a", b"1"), ("b", b"2")])).unwrap();
        let found = announced(&mut std::fs::File::open(&path).unwrap()).unwrap();
        assert_eq!(found, Some(2));
        for len in 0..100 {
            std::fs::write(&path, vec![b'P'; len]).unwrap();
            let found = announced(&mut std::fs::File::open(&path).unwrap()).unwrap();
            assert_eq!(found, None);
        }
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

    #[test]
    fn names_of_windows_are_read_or_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.zip");
        let mut bytes = zipped(&[("dog\\1.png", b"x"), ("e\\", b""), ("??/1.png", b"y")]);
        // The Chinese word for dog in GBK, in the local header and in the directory.
        while let Some(at) = bytes.windows(3).position(|w| w == b"??/") {
            bytes[at..at + 2].copy_from_slice(b"\xb9\xb7");
        }
        std::fs::write(&path, bytes).unwrap();
        let files = crate::files::Files::open(&path, 10).unwrap();
        assert_eq!(files.names().collect::<Vec<_>>(), ["dog/1.png"]);
        assert_eq!(files.read(0).unwrap(), b"x");
        assert_eq!(files.empty_folders(), ["e"]);
        let [problem] = files.problems() else {
            panic!("{:?}", files.problems());
        };
        for part in ["`\\xb9\\xb7/1.png` in `", "a.zip`", "GBK"] {
            assert!(problem.contains(part), "{problem}");
        }
        // A backslash does not lead out of the folder either.
        std::fs::write(&path, zipped(&[("a\\..\\..\\x", b"x")])).unwrap();
        let error = crate::files::Files::open(&path, 10)
            .unwrap_err()
            .to_string();
        assert!(error.contains("leaves the folder"), "{error}");
    }
}
