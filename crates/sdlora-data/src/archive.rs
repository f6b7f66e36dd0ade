//! A zip file read into memory, for data sets that ship as one.

use std::io::{Cursor, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::files::read_file;

/// The files of a zip archive, unpacked, in the order of their names.
#[derive(Debug)]
pub(crate) struct Archive {
    path: PathBuf,
    names: Vec<String>,
    ranges: Vec<Range<usize>>,
    bytes: Vec<u8>,
}

impl Archive {
    /// Unpacks every file but those that operating systems add (`__MACOSX/`, names with a leading dot).
    ///
    /// The archive is not trusted: a member larger than `max_member_bytes` once unpacked is refused, whatever its
    /// header says, and so is one whose checksum is wrong, or an archive of more than `max_total_bytes` in all.
    pub(crate) fn read(
        path: &Path,
        max_member_bytes: u64,
        max_total_bytes: u64,
    ) -> Result<Self, DataError> {
        // Names and headers come on top of the contents.
        let file = read_file(path, max_total_bytes.saturating_add(1 << 20))?;
        let archive_error = |member: &str, source| DataError::Archive {
            path: path.to_owned(),
            member: member.to_owned(),
            source,
        };
        let mut zip =
            zip::ZipArchive::new(Cursor::new(file)).map_err(|source| archive_error("", source))?;
        let mut members = Vec::new();
        let mut bytes = Vec::new();
        for idx in 0..zip.len() {
            let member = zip
                .by_index(idx)
                .map_err(|source| archive_error(&format!("number {idx}"), source))?;
            let name = String::from_utf8_lossy(member.name_raw()).into_owned();
            if member.is_dir()
                || name
                    .split('/')
                    .any(|part| part.starts_with(['.']) || part == "__MACOSX")
            {
                continue;
            }
            let start = bytes.len();
            let left = max_total_bytes.saturating_sub(start as u64);
            let limit = max_member_bytes.min(left);
            let n_read = member
                .take(limit.saturating_add(1))
                .read_to_end(&mut bytes)
                .map_err(|source| archive_error(&name, zip::result::ZipError::Io(source)))?;
            if n_read as u64 > limit {
                return Err(DataError::Member {
                    path: path.to_owned(),
                    member: name,
                    problem: format!(
                        "unpacks to more than {max_member_bytes} bytes, or all members together to more than \
                         {max_total_bytes}"
                    ),
                });
            }
            members.push((name, start..bytes.len()));
        }
        members.sort_by(|a, b| a.0.cmp(&b.0));
        let (names, ranges) = members.into_iter().unzip();
        Ok(Self {
            path: path.to_owned(),
            names,
            ranges,
            bytes,
        })
    }

    /// Path of the archive.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the members, ascending.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// Contents of the member at a position of [`names`](Self::names).
    pub(crate) fn bytes(&self, member_idx: usize) -> &[u8] {
        &self.bytes[self.ranges[member_idx].clone()]
    }

    /// An error about the member at a position; `problem` ends the sentence "holds `member`, which ...".
    pub(crate) fn member_error(&self, member_idx: usize, problem: impl Into<String>) -> DataError {
        DataError::Member {
            path: self.path.clone(),
            member: self.names[member_idx].clone(),
            problem: problem.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use zip::write::SimpleFileOptions;

    fn written(members: &[(&str, &[u8])]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.zip");
        let mut writer = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
        for (name, bytes) in members {
            writer
                .start_file(*name, SimpleFileOptions::default())
                .unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap();
        (dir, path)
    }

    #[test]
    fn members_are_sorted_and_litter_is_left_out() {
        let (_dir, path) = written(&[
            ("b/2", b"two"),
            ("__MACOSX/b/._2", b"x"),
            ("b/.DS_Store", b"x"),
            ("a/1", b"one"),
        ]);
        let archive = Archive::read(&path, 100, 100).unwrap();
        assert_eq!(archive.names(), ["a/1", "b/2"]);
        assert_eq!(
            (archive.bytes(0), archive.bytes(1)),
            (&b"one"[..], &b"two"[..])
        );
    }

    #[test]
    fn members_that_unpack_too_large_are_refused() {
        let (_dir, path) = written(&[("bomb", &[0; 5000]), ("tail", &[0; 10])]);
        assert!(Archive::read(&path, 5000, 5010).is_ok());
        for (member, total, culprit) in [(4999, 5010, "bomb"), (5000, 5009, "tail")] {
            let message = Archive::read(&path, member, total).unwrap_err().to_string();
            assert!(message.contains(culprit), "{message}");
        }
    }

    #[test]
    fn a_file_that_is_no_zip_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("not.zip");
        std::fs::write(&path, "hello").unwrap();
        let message = Archive::read(&path, 1, 1).unwrap_err().to_string();
        assert!(message.contains("not.zip"), "{message}");
        assert!(matches!(
            Archive::read(&dir.path().join("none.zip"), 1, 1),
            Err(DataError::Io { .. })
        ));
    }
}
