//! The bytes of one file of a data set: of a folder or an archive, whole or its first ones.

use sdlora_image::{Format, MAX_IMAGE_BYTES};

use super::Files;
use super::listing::Location;
use super::member::Problem;
use super::read::{gunzip, gunzip_start, open_file, read_file, read_to_end};
use crate::error::DataError;

/// Largest file that is read where its kind sets no other limit, in bytes, once unpacked; the largest known,
/// the training images of CIFAR-100, have 154 MB.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// Largest text (a table, a list), in bytes, once unpacked; that of two million images has about 200 MB.
const MAX_TEXT_BYTES: u64 = 256 << 20;
/// From this size on, an image is looked at before it is unpacked as a whole.
const LARGE_IMAGE_BYTES: u64 = 4 << 20;

impl Files {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`DataError::Io`], and [`DataError::Content`] when it is damaged or larger than 256 MiB.
    pub(crate) fn read(&self, idx: usize) -> Result<Vec<u8>, DataError> {
        self.read_within(idx, MAX_FILE_BYTES)
    }

    /// Reads a file of `max_bytes` at most; a larger one is not unpacked.
    fn read_within(&self, idx: usize, max_bytes: u64) -> Result<Vec<u8>, DataError> {
        let entry = &self.entries[idx];
        if entry.size > max_bytes {
            return Err(self.error(
                idx,
                format!("has {} bytes, {max_bytes} are read at most", entry.size),
                "leave it out",
            ));
        }
        let part = &self.parts[entry.part];
        match (&entry.at, &part.store) {
            (Location::Range { start }, Some(store)) => store.read(*start, entry.size),
            (Location::Zip(member), Some(store)) => member
                .read(store, entry.size)
                .map_err(|problem| self.zip_error(idx, problem)),
            _ => read_file(&part.path.join(self.inner_name(entry)), max_bytes),
        }
    }

    /// Reads an image.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read); [`DataError::Content`] for a large file that does not start as an image does,
    /// before it is unpacked.
    pub(crate) fn read_image(&self, idx: usize) -> Result<Vec<u8>, DataError> {
        if self.size(idx) > LARGE_IMAGE_BYTES
            && Format::of(&self.read_start(idx, 32)?) == Format::Unknown
        {
            return Err(self.error(
                idx,
                "does not start as an image does",
                "replace or remove it",
            ));
        }
        self.read_within(idx, MAX_IMAGE_BYTES)
    }

    /// Reads the first bytes of a file, `n_bytes` of them or all.
    fn read_start(&self, idx: usize, n_bytes: u64) -> Result<Vec<u8>, DataError> {
        let entry = &self.entries[idx];
        let len = entry.size.min(n_bytes);
        let part = &self.parts[entry.part];
        match (&entry.at, &part.store) {
            (Location::Range { start }, Some(store)) => store.read(*start, len),
            (Location::Zip(member), Some(store)) => member
                .read_start(store, len)
                .map_err(|problem| self.zip_error(idx, problem)),
            _ => {
                let path = part.path.join(self.inner_name(entry));
                let (file, _) = open_file(&path)?;
                read_to_end(file, len, len).map_err(|source| DataError::Io { path, source })
            }
        }
    }

    fn zip_error(&self, idx: usize, problem: Problem) -> DataError {
        match problem {
            Problem::Store(error) => error,
            Problem::Content(text) => self.error(idx, text, "fetch the archive again"),
        }
    }

    /// Reads a file, unpacked when its name ends in `.gz`; nothing when it has more than `max_bytes` then.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read).
    pub(crate) fn read_plain(
        &self,
        idx: usize,
        max_bytes: u64,
    ) -> Result<Option<Vec<u8>>, DataError> {
        if !self.is_packed(idx) {
            if self.size(idx) > max_bytes {
                return Ok(None);
            }
            return self.read_within(idx, max_bytes).map(Some);
        }
        // What cannot be packed grows by five bytes in 16 KiB, and a header with a name stands before it.
        let most = max_bytes.saturating_add(max_bytes / 1024 + (1 << 16));
        if self.size(idx) > most {
            return Ok(None);
        }
        let packed = self.read_within(idx, most)?;
        gunzip(packed.as_slice(), max_bytes, &self.place(idx))
    }

    /// The first bytes of a file, unpacked when its name ends in `.gz`; fewer when it is shorter or damaged.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read).
    pub(crate) fn plain_start(&self, idx: usize, n_bytes: u64) -> Result<Vec<u8>, DataError> {
        if self.is_packed(idx) {
            let packed = self.read_start(idx, n_bytes.saturating_add(1 << 16))?;
            Ok(gunzip_start(&packed, n_bytes))
        } else {
            self.read_start(idx, n_bytes)
        }
    }

    fn is_packed(&self, idx: usize) -> bool {
        self.name(idx).ends_with(".gz")
    }

    /// Reads a text, unpacked when its name ends in `.gz`, as bytes.
    ///
    /// # Errors
    ///
    /// Those of [`read`](Self::read), and [`DataError::Content`] for more than 256 MiB.
    pub(crate) fn read_text_bytes(&self, idx: usize) -> Result<Vec<u8>, DataError> {
        self.read_plain(idx, MAX_TEXT_BYTES)?.ok_or_else(|| {
            self.error(
                idx,
                format!("has more than {MAX_TEXT_BYTES} bytes, too many for a text"),
                "name a smaller one",
            )
        })
    }

    /// Reads a text, unpacked when its name ends in `.gz`; bytes that are not UTF-8 become replacement characters.
    ///
    /// # Errors
    ///
    /// Those of [`read_text_bytes`](Self::read_text_bytes).
    pub(crate) fn read_text(&self, idx: usize) -> Result<String, DataError> {
        let bytes = self.read_text_bytes(idx)?;
        Ok(String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }
}
