//! Members of a tar file (POSIX ustar, with long names of GNU tar and pax).

use std::path::Path;

use super::listing::{Entry, Listing, Location, empty, too_many};
use super::names::{place_of, place_of_bytes};
use super::store::Store;
use crate::error::DataError;

/// Headers and contents are padded to this many bytes.
const BLOCK: u64 = 512;
/// Longest accepted name record, in bytes.
const MAX_NAME_BYTES: u64 = 64 * 1024;

/// Lists the members of the tar in `store`; `path` is used in errors only.
pub(super) fn list(store: &Store, path: &Path, max_files: usize) -> Result<Listing, DataError> {
    let damaged = |at: u64, problem: &str| {
        DataError::content(
            place_of(path),
            format!("is a damaged tar: at byte {at} {problem}"),
            "fetch it again",
        )
    };
    let mut listing = Listing::default();
    let mut folders = Vec::new();
    let mut long_name: Option<Vec<u8>> = None;
    let mut long_size: Option<u64> = None;
    let mut at = 0;
    loop {
        if at + BLOCK > store.len() {
            return Err(damaged(at, "it ends without its closing block"));
        }
        let header = store.read(at, BLOCK)?;
        if header.iter().all(|&b| b == 0) {
            listing.empty_folders = empty(folders, &listing.entries);
            return Ok(listing);
        }
        if !has_valid_sum(&header) {
            return Err(damaged(at, "a header has a wrong checksum"));
        }
        let size = number(&header[124..136]).ok_or_else(|| damaged(at, "a size is no number"))?;
        let kind = header[156];
        let size = match long_size {
            Some(long) if matches!(kind, b'0' | 0 | b'7') => long,
            _ => size,
        };
        let start = at + BLOCK;
        let end = start
            .checked_add(size)
            .filter(|&end| end <= store.len())
            .ok_or_else(|| damaged(at, "a member is longer than the rest of the file"))?;
        match kind {
            b'0' | 0 | b'7' => {
                if listing.entries.len() == max_files {
                    return Err(too_many(path, max_files));
                }
                let name = long_name.take().unwrap_or_else(|| short_name(&header));
                long_size = None;
                match String::from_utf8(name) {
                    Ok(name) => listing.entries.push(Entry {
                        name: name.strip_prefix("./").unwrap_or(&name).to_owned(),
                        size,
                        at: Location::Range { start },
                        part: 0,
                    }),
                    Err(error) => listing.problems.push(format!(
                        "{} has a name that is not UTF-8",
                        place_of_bytes(error.as_bytes(), path)
                    )),
                }
            }
            b'5' => {
                let name = long_name.take().unwrap_or_else(|| short_name(&header));
                long_size = None;
                if folders.len() < max_files
                    && let Ok(name) = String::from_utf8(name)
                {
                    folders.push(name.strip_prefix("./").unwrap_or(&name).to_owned());
                }
            }
            b'L' | b'x' if size > MAX_NAME_BYTES => {
                return Err(damaged(at, "a name is too long"));
            }
            b'L' => long_name = Some(to_zero(&store.read(start, size)?).to_vec()),
            b'x' => {
                for (key, value) in pax_records(&store.read(start, size)?) {
                    match key.as_str() {
                        "path" => long_name = Some(value),
                        "size" => {
                            long_size = str::from_utf8(&value).ok().and_then(|n| n.parse().ok());
                        }
                        _ => {}
                    }
                }
            }
            // Folders, links and devices hold no data of a data set; their long names end here.
            _ => (long_name, long_size) = (None, None),
        }
        at = end
            .checked_next_multiple_of(BLOCK)
            .ok_or_else(|| damaged(at, "a member is too long"))?;
    }
}

/// Sum of all bytes, with the field of the sum itself read as spaces.
fn has_valid_sum(header: &[u8]) -> bool {
    let sum: u64 = header
        .iter()
        .enumerate()
        .map(|(i, &b)| u64::from(if (148..156).contains(&i) { b' ' } else { b }))
        .sum();
    number(&header[148..156]) == Some(sum)
}

/// An octal number with spaces and zero bytes around it, or a big-endian one after a byte 0x80 (GNU).
fn number(field: &[u8]) -> Option<u64> {
    if field[0] == 0x80 {
        let bytes = field[field.len() - 8..].try_into().ok()?;
        return Some(u64::from_be_bytes(bytes));
    }
    let text = text(field);
    let text = text.trim_matches([' ', '\0']);
    if text.is_empty() {
        return Some(0);
    }
    u64::from_str_radix(text, 8).ok()
}

/// Name and, for ustar, the prefix before it.
fn short_name(header: &[u8]) -> Vec<u8> {
    let name = to_zero(&header[..100]);
    let prefix = to_zero(&header[345..500]);
    // GNU tar writes "ustar " and uses the bytes of the prefix for times.
    if prefix.is_empty() || &header[257..263] != b"ustar\0" {
        name.to_vec()
    } else {
        [prefix, b"/", name].concat()
    }
}

/// The bytes up to the first zero.
fn to_zero(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    &field[..end]
}

/// Text up to the first zero byte.
fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(to_zero(field)).into_owned()
}

/// Records `<length> <key>=<value>\n`; what does not fit is left out.
fn pax_records(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut records = Vec::new();
    let mut rest = bytes;
    while let Some(space) = rest.iter().position(|&b| b == b' ') {
        let Some(len) = text(&rest[..space]).parse::<usize>().ok() else {
            break;
        };
        if len <= space + 1 || len > rest.len() {
            break;
        }
        let record = &rest[space + 1..len];
        let record = record.strip_suffix(b"\n").unwrap_or(record);
        if let Some(equals) = record.iter().position(|&b| b == b'=') {
            let (key, value) = (text(&record[..equals]), to_zero(&record[equals + 1..]));
            records.push((key, value.to_vec()));
        }
        rest = &rest[len..];
    }
    records
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn header(name: &[u8], kind: u8, size: usize) -> Vec<u8> {
        let mut header = vec![0; 512];
        header[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        header[148..156].fill(b' ');
        header[156] = kind;
        header[257..263].copy_from_slice(b"ustar\0");
        let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        header
    }

    fn padded(bytes: &[u8]) -> Vec<u8> {
        let mut padded = bytes.to_vec();
        padded.resize(bytes.len().next_multiple_of(512), 0);
        padded
    }

    pub(crate) fn tarred(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = Vec::new();
        for (name, bytes) in files {
            if name.len() > 100 {
                tar.extend(header(b"././@LongLink", b'L', name.len()));
                tar.extend(padded(name.as_bytes()));
            }
            tar.extend(header(name.as_bytes(), b'0', bytes.len()));
            tar.extend(padded(bytes));
        }
        tar.extend([0; 1024]);
        tar
    }

    #[test]
    fn pax_names_and_gnu_numbers_are_read() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"\x80\0\0\0\0\0\0\0\0\0\x01\x02"), Some(258));
        assert_eq!(number(b"12x4567\0"), None);
        assert_eq!(
            pax_records(b"17 path=a/b.txt\n"),
            [],
            "longer than what is there"
        );
        assert_eq!(
            pax_records(b"16 path=a/b.txt\n11 size=12\n"),
            [
                ("path".to_owned(), b"a/b.txt".to_vec()),
                ("size".to_owned(), b"12".to_vec())
            ]
        );
        let mut tar = header(b"pax", b'x', 16);
        tar.extend(padded(b"16 path=a/b.txt\n"));
        tar.extend(tarred(&[("short", b"x")]));
        let listing = list(&Store::memory(tar), Path::new("p.tar"), 9).unwrap();
        assert_eq!(listing.entries[0].name, "a/b.txt");
    }
}
