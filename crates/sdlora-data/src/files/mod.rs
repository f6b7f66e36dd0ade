//! The files of a data set, read the same way from a folder, a zip, a tar or a tar.gz.
//!
//! Opening lists names and sizes; the bytes of a file are read when they are asked for. Nothing is unpacked to disk. A
//! tar.gz has no index, so it is unpacked once into memory, up to a limit.

mod contents;
mod folder;
mod listing;
mod locate;
mod member;
mod names;
mod read;
mod store;
mod tar;
mod zip;

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

pub(crate) use locate::{Place, locate};
pub(crate) use names::{ARCHIVES, is_litter, place_of};
pub(crate) use read::open_file;
pub use read::{open_image, read_file};

use crate::error::DataError;
use listing::{Entry, Listing, too_many};
use read::gunzip;
use store::Store;

/// Ending of the shards of a data set.
const SHARD: &str = ".tar";

/// Most files that are listed by default; ImageNet-1k has 1.3 million.
pub(crate) const MAX_FILES: usize = 2_000_000;
/// Largest tar that is unpacked into memory, in bytes.
const MAX_UNPACKED_BYTES: u64 = 2 << 30;
/// A tar may unpack to so many times its packed size, and to so many bytes in any case: images are packed already, and
/// gzip makes a thousandth of zeros.
const MAX_UNPACKED_TIMES: u64 = 100;
const MIN_UNPACKED_BYTES: u64 = 64 << 20;

/// A folder or an archive.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    /// The archive; nothing for a folder.
    store: Option<Store>,
    /// What stands before the names of its files.
    prefix: String,
}

/// The files of a folder or an archive, in the order of their names.
#[derive(Debug)]
pub(crate) struct Files {
    /// The folder or archive that was opened, and the archives inside it that were opened with it.
    parts: Vec<Part>,
    entries: Vec<Entry>,
    empty_folders: Vec<String>,
    problems: Vec<String>,
}

impl Files {
    /// Lists the files of the folder or archive at `path`; an archive is told by its first bytes.
    ///
    /// Hidden files and `__MACOSX/` are left out.
    ///
    /// # Errors
    ///
    /// [`DataError::Io`], [`DataError::Archive`] for a damaged zip, and [`DataError::Content`] for more than
    /// `max_files` files, a name that leaves the folder, names that differ in case only and an unknown
    /// archive. What cannot be listed is one of the [`problems`](Self::problems).
    pub(crate) fn open(path: &Path, max_files: usize) -> Result<Self, DataError> {
        let (listing, store) = if path.is_dir() {
            (folder::list(path, max_files)?, None)
        } else {
            Self::open_archive(path, max_files)?
        };
        let part = Part {
            path: path.to_owned(),
            store,
            prefix: String::new(),
        };
        let Listing {
            entries,
            empty_folders,
            problems,
        } = listing;
        let mut files = Self {
            parts: vec![part],
            entries,
            empty_folders,
            problems,
        };
        files
            .entries
            .retain(|entry| !entry.name.split('/').any(is_litter));
        files
            .empty_folders
            .retain(|folder| !folder.split('/').any(is_litter));
        files.empty_folders.sort();
        files.entries.sort_by(|a, b| a.name.cmp(&b.name));
        files.check_names()?;
        Ok(files)
    }

    /// Lists the files of the folder at `path` and of the archives that lie in it, each as if it were a folder of the
    /// archive's name: for a data set that comes in several.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open).
    pub(crate) fn open_with_archives(path: &Path, max_files: usize) -> Result<Self, DataError> {
        let files = Self::open(path, max_files)?;
        let archives = files.archives();
        files.with_inner(path, archives, max_files)
    }

    /// Lists the tar files of the folder at `path` and of those below it, each as if it were a folder of its name, or
    /// the one at `path`. They are closed again, and opened for each read.
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open), and [`DataError::Content`] where there is none, and for one that is packed.
    pub(crate) fn open_shards(path: &Path, max_files: usize) -> Result<Self, DataError> {
        let is_shard = |name: &&str| name.ends_with(SHARD);
        let mut files = match path.is_dir() {
            true => {
                let files = Self::open(path, max_files)?;
                let shards: Vec<String> =
                    files.names().filter(is_shard).map(str::to_owned).collect();
                for shard in &shards {
                    check_tar(&path.join(shard))?;
                }
                files.with_inner(path, shards, max_files)?
            }
            false => {
                check_tar(path)?;
                let mut files = Self::open(path, max_files)?;
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let prefix = format!("{name}/");
                for entry in &mut files.entries {
                    entry.name.insert_str(0, &prefix);
                }
                files.parts[0].prefix = prefix;
                files
            }
        };
        for part in &mut files.parts {
            part.store = part.store.take().map(Store::closed);
        }
        if files.shards().is_empty() {
            return Err(DataError::content(
                place_of(path),
                "holds no shard: no file in it ends in `.tar`",
                "name the folder of the shards with the option `root`",
            ));
        }
        Ok(files)
    }

    /// Names of the archives that were opened as folders.
    pub(crate) fn shards(&self) -> Vec<&str> {
        let inner = self.parts.iter().filter(|part| part.store.is_some());
        inner
            .map(|part| part.prefix.trim_end_matches('/'))
            .collect()
    }

    /// The archive of a file and its name in there, of an archive that was opened as a folder.
    pub(crate) fn shard_of(&self, idx: usize) -> Option<(&str, &str)> {
        let entry = &self.entries[idx];
        let part = &self.parts[entry.part];
        part.store.as_ref()?;
        Some((part.prefix.trim_end_matches('/'), self.inner_name(entry)))
    }

    /// Adds the files of archives of the folder at `path`.
    fn with_inner(
        self,
        path: &Path,
        archives: Vec<String>,
        max_files: usize,
    ) -> Result<Self, DataError> {
        let mut files = self;
        for name in archives {
            let inner = Self::open(&path.join(&name), max_files)?;
            if files.len() + inner.len() > max_files {
                return Err(too_many(path, max_files));
            }
            let part = files.parts.len();
            let prefix = format!("{name}/");
            files
                .entries
                .extend(inner.entries.into_iter().map(|entry| Entry {
                    name: format!("{prefix}{}", entry.name),
                    part,
                    ..entry
                }));
            let empty = inner.empty_folders.iter();
            files
                .empty_folders
                .extend(empty.map(|folder| format!("{prefix}{folder}")));
            files.problems.extend(inner.problems);
            files.parts.extend(inner.parts.into_iter().map(|part| Part {
                prefix: prefix.clone(),
                ..part
            }));
        }
        files.entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }

    /// Names of the archives that lie in the folder itself.
    pub(crate) fn archives(&self) -> Vec<String> {
        let is_archive =
            |name: &&str| !name.contains('/') && ARCHIVES.iter().any(|end| name.ends_with(end));
        self.names().filter(is_archive).map(str::to_owned).collect()
    }

    fn open_archive(path: &Path, max_files: usize) -> Result<(Listing, Option<Store>), DataError> {
        let io_error = |source| DataError::Io {
            path: path.to_owned(),
            source,
        };
        let (file, _) = open_file(path)?;
        let mut start = Vec::new();
        file.take(262).read_to_end(&mut start).map_err(io_error)?;
        if start.starts_with(b"PK") {
            let members = zip::list(path, max_files)?;
            let store = Store::file(path)?;
            return Ok((members, Some(store)));
        }
        let store = if start.starts_with(&[0x1f, 0x8b]) {
            // Unpacked while it is read, so that the packed bytes take no memory.
            let (packed, n_packed) = open_file(path)?;
            let packed = std::io::BufReader::new(packed);
            let max_bytes = n_packed
                .saturating_mul(MAX_UNPACKED_TIMES)
                .clamp(MIN_UNPACKED_BYTES, MAX_UNPACKED_BYTES);
            let bytes = gunzip(packed, max_bytes, &place_of(path))?;
            Store::memory(bytes.ok_or_else(|| {
                DataError::content(
                    place_of(path),
                    format!("has {n_packed} bytes and unpacks to more than {max_bytes}"),
                    "unpack it to a folder and name that",
                )
            })?)
        } else if start.get(257..262) == Some(b"ustar") {
            Store::file(path)?
        } else {
            return Err(DataError::content(
                place_of(path),
                "is neither a folder nor a zip, tar or tar.gz archive",
                "unpack it and name the folder",
            ));
        };
        let entries = tar::list(&store, path, max_files)?;
        Ok((entries, Some(store)))
    }

    /// Refuses names that cannot be told apart everywhere, or that lead out of the folder.
    fn check_names(&self) -> Result<(), DataError> {
        let mut seen: HashMap<String, usize> = HashMap::with_capacity(self.entries.len());
        for (idx, entry) in self.entries.iter().enumerate() {
            let in_archive = self.parts[entry.part].store.is_some();
            if entry
                .name
                .split('/')
                .any(|part| matches!(part, "" | "." | ".."))
                || (in_archive && entry.name.contains(['\\', '\0']))
            {
                return Err(self.error(
                    idx,
                    "has a name that leaves the folder or is not a path with `/`",
                    "pack the archive again with plain names",
                ));
            }
            if let Some(other) = seen.insert(entry.name.to_lowercase(), idx) {
                return Err(self.error(
                    idx,
                    format!(
                        "differs from `{}` in upper and lower case at most",
                        self.entries[other].name
                    ),
                    "rename or remove one of them",
                ));
            }
        }
        Ok(())
    }

    /// Path of the folder or archive.
    pub(crate) fn path(&self) -> &Path {
        &self.parts[0].path
    }

    /// Number of files.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Name of a file, with `/` between the parts.
    pub(crate) fn name(&self, idx: usize) -> &str {
        &self.entries[idx].name
    }

    /// Names of all files, ascending.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.name.as_str())
    }

    /// Size of a file in bytes, once unpacked.
    pub(crate) fn size(&self, idx: usize) -> u64 {
        self.entries[idx].size
    }

    /// Position of the file with exactly this name.
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.entries
            .binary_search_by(|entry| entry.name.as_str().cmp(name))
            .ok()
    }

    /// Position of the file whose last part is `file_name`, the least deep one when there are several.
    pub(crate) fn find_named(&self, file_name: &str) -> Option<usize> {
        let depth = |idx: &usize| self.name(*idx).matches('/').count();
        (0..self.len())
            .filter(|&idx| self.name(idx).rsplit('/').next() == Some(file_name))
            .min_by_key(depth)
    }

    /// The folder in which all files lie that `counts` accepts, with a `/` at the end, or nothing when they share none.
    pub(crate) fn common_folder(&self, counts: impl Fn(&str) -> bool) -> &str {
        let mut names = self.names().filter(|name| counts(name));
        let Some(first) = names.next() else {
            return "";
        };
        // The names are sorted, so what the first and the last share, all share.
        let last = names.last().unwrap_or(first);
        let shared = first
            .bytes()
            .zip(last.bytes())
            .take_while(|(a, b)| a == b)
            .count();
        match first.as_bytes()[..shared].iter().rposition(|&b| b == b'/') {
            Some(slash) => &first[..=slash],
            None => "",
        }
    }

    /// Names of the folders in which nothing lies, ascending.
    pub(crate) fn empty_folders(&self) -> &[String] {
        &self.empty_folders
    }

    /// What could not be listed: links to nothing and loops of links, names that are not UTF-8, pipes and devices. One
    /// sentence each, without a stop.
    pub(crate) fn problems(&self) -> &[String] {
        &self.problems
    }

    /// The file as errors name it.
    pub(crate) fn place(&self, idx: usize) -> String {
        let entry = &self.entries[idx];
        let part = &self.parts[entry.part];
        if part.store.is_some() {
            format!("`{}` in `{}`", self.inner_name(entry), part.path.display())
        } else {
            place_of(&part.path.join(&entry.name))
        }
    }

    /// The name of a file inside its part.
    fn inner_name<'a>(&self, entry: &'a Entry) -> &'a str {
        let prefix = &self.parts[entry.part].prefix;
        entry
            .name
            .strip_prefix(prefix.as_str())
            .unwrap_or(&entry.name)
    }

    /// An error about a file.
    pub(crate) fn error(
        &self,
        idx: usize,
        problem: impl Into<String>,
        action: impl Into<String>,
    ) -> DataError {
        DataError::content(self.place(idx), problem, action)
    }
}

/// Refuses what does not start as a tar: a packed one would be unpacked into memory.
fn check_tar(path: &Path) -> Result<(), DataError> {
    let (file, _) = open_file(path)?;
    let mut start = Vec::new();
    file.take(262)
        .read_to_end(&mut start)
        .map_err(|source| DataError::Io {
            path: path.to_owned(),
            source,
        })?;
    match start.get(257..262) == Some(b"ustar") {
        true => Ok(()),
        false => Err(DataError::content(
            place_of(path),
            "is no tar",
            "unpack it if it is packed, or name it otherwise if it is no shard",
        )),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    pub(crate) use super::tar::tests::tarred;
    use super::*;
    use std::io::Write;

    /// A folder, a zip, a tar and a tar.gz of the same files.
    pub(crate) fn four_ways(files: &[(&str, &[u8])]) -> (tempfile::TempDir, [PathBuf; 4]) {
        let dir = tempfile::tempdir().unwrap();
        let paths = ["folder", "a.zip", "a.tar", "a.tar.gz"].map(|name| dir.path().join(name));
        for (name, bytes) in files {
            let path = paths[0].join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        std::fs::write(&paths[1], zip::tests::zipped(files)).unwrap();
        let tar = tar::tests::tarred(files);
        std::fs::write(&paths[2], &tar).unwrap();
        std::fs::write(&paths[3], gzipped(&tar)).unwrap();
        (dir, paths)
    }

    pub(crate) fn gzipped(bytes: &[u8]) -> Vec<u8> {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn a_folder_and_its_archives_hold_the_same() {
        let long = format!("top/{}/{}", "d".repeat(90), "f".repeat(90));
        let contents: [(&str, &[u8]); 4] = [
            ("top/b/2.txt", &[7; 5000]),
            ("top/a/1.txt", b"one"),
            ("top/.hidden", b"x"),
            (&long, b"long"),
        ];
        let (_dir, paths) = four_ways(&contents);
        for path in &paths {
            let files = Files::open(path, 10).unwrap();
            assert_eq!(
                files.names().collect::<Vec<_>>(),
                ["top/a/1.txt", "top/b/2.txt", &long],
                "{}",
                path.display()
            );
            assert_eq!(files.read(0).unwrap(), b"one");
            assert_eq!(files.read(1).unwrap(), [7; 5000]);
            assert_eq!(files.size(1), 5000);
            assert_eq!(files.common_folder(|_| true), "top/");
            assert_eq!(files.find("top/b/2.txt"), Some(1));
            assert_eq!(files.find_named("2.txt"), Some(1));
            let error = Files::open(path, 2).unwrap_err().to_string();
            assert!(error.contains("more than 2 files"), "{error}");
        }
    }

    #[test]
    fn the_archives_of_a_folder_are_read_as_its_folders() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("list.txt"), "x").unwrap();
        let zipped = zip::tests::zipped(&[("real/a.txt", b"in a zip")]);
        std::fs::write(dir.path().join("real.zip"), zipped).unwrap();
        let tar = tar::tests::tarred(&[("real/a.txt", b"in a tar"), ("top.txt", b"y")]);
        std::fs::write(dir.path().join("b.tar"), tar).unwrap();
        let files = Files::open_with_archives(dir.path(), 6).unwrap();
        assert_eq!(files.archives(), ["b.tar", "real.zip"]);
        let names: Vec<_> = files.names().collect();
        let inside = ["b.tar/real/a.txt", "b.tar/top.txt", "real.zip/real/a.txt"];
        assert_eq!(
            names,
            [
                "b.tar", inside[0], inside[1], "list.txt", "real.zip", inside[2]
            ]
        );
        let read = |name: &str| files.read(files.find(name).unwrap()).unwrap();
        assert_eq!(read(inside[0]), b"in a tar");
        assert_eq!(read(inside[2]), b"in a zip");
        assert_eq!(read("list.txt"), b"x");
        let place = files.place(files.find(inside[2]).unwrap());
        assert!(place.starts_with("`real/a.txt` in `"), "{place}");
        assert!(place.ends_with("real.zip`"), "{place}");
        let error = Files::open_with_archives(dir.path(), 5).unwrap_err();
        assert!(error.to_string().contains("more than 5 files"), "{error}");
    }

    #[test]
    fn names_that_leave_the_folder_or_differ_in_case_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bad.tar");
        for (names, culprit) in [
            (["a/../../x", "b"], "../../x"),
            (["/etc/x", "b"], "/etc/x"),
            (["a\\b", "b"], "a\\b"),
            (["Dog/1.png", "dog/1.png"], "dog/1.png"),
        ] {
            let files = names.map(|name| (name, &b"x"[..]));
            std::fs::write(&path, tar::tests::tarred(&files)).unwrap();
            let error = Files::open(&path, 10).unwrap_err().to_string();
            assert!(
                error.contains(culprit) && error.contains("bad.tar"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_truncated_archive_is_refused_or_its_member_is() {
        let (_dir, paths) = four_ways(&[("a/1.txt", &[1; 700]), ("a/2.txt", &[2; 700])]);
        // A tar may lose its second closing block.
        for (path, spare) in paths[1..].iter().zip([0, 512, 0]) {
            let whole = std::fs::read(path).unwrap();
            for len in (0..whole.len() - spare).step_by(7) {
                std::fs::write(path, &whole[..len]).unwrap();
                let read = Files::open(path, 10).and_then(|files| {
                    (0..files.len()).try_for_each(|idx| files.read(idx).map(drop))
                });
                assert!(read.is_err(), "{} of {len} bytes", path.display());
            }
        }
    }

    #[test]
    fn other_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes.txt");
        std::fs::write(&path, "hello").unwrap();
        let error = Files::open(&path, 10).unwrap_err().to_string();
        assert!(
            error.contains("notes.txt") && error.contains("tar.gz"),
            "{error}"
        );
    }
}
