//! Reading files whole, with a limit: only regular ones, and no more memory than what comes.

use std::fs::{File, FileType};
use std::io::{ErrorKind, Read};
use std::path::Path;

use sdlora_image::{Image, ImageReading, MAX_IMAGE_BYTES};

use super::names::place_of;
use crate::error::DataError;

/// Bytes that memory grows by at first.
const FIRST_BYTES: usize = 64 * 1024;

/// Opens the regular file at `path`; gives its length, too. Links are followed.
///
/// # Errors
///
/// [`DataError::Io`] when it cannot be opened, [`DataError::Content`] for a folder, a pipe, a socket or a device: these
/// have no end or wait for one.
pub(crate) fn open_file(path: &Path) -> Result<(File, u64), DataError> {
    let io_error = |source| DataError::Io {
        path: path.to_owned(),
        source,
    };
    // Looked at before it is opened: opening a pipe waits for its other end.
    let metadata = std::fs::metadata(path).map_err(io_error)?;
    if let Some(what) = other_kind(metadata.file_type()) {
        return Err(DataError::content(
            place_of(path),
            format!("is {what}, not a file"),
            "name a file, and write what comes from elsewhere to one first",
        ));
    }
    Ok((File::open(path).map_err(io_error)?, metadata.len()))
}

/// What it is that is no regular file, with its article.
pub(super) fn other_kind(kind: FileType) -> Option<&'static str> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return Some("a named pipe");
        }
        if kind.is_socket() {
            return Some("a socket");
        }
        if kind.is_block_device() || kind.is_char_device() {
            return Some("a device");
        }
    }
    if kind.is_dir() {
        return Some("a folder");
    }
    (!kind.is_file()).then_some("something else")
}

/// Reads the regular file at `path`, which has `max_bytes` at most.
///
/// # Errors
///
/// [`DataError::Io`] when it cannot be read, [`DataError::Content`] when it is no regular file (a folder, a pipe, a
/// socket, a device), has more bytes, or needs more memory than there is.
pub fn read_file(path: &Path, max_bytes: u64) -> Result<Vec<u8>, DataError> {
    let (file, len) = open_file(path)?;
    let too_long = |len: String| {
        DataError::content(
            place_of(path),
            format!("has {len} bytes, {max_bytes} are read at most"),
            "name a smaller file",
        )
    };
    if len > max_bytes {
        return Err(too_long(len.to_string()));
    }
    // Some files of the system have another length than they say.
    let bytes =
        read_to_end(file, len, max_bytes.saturating_add(1)).map_err(|source| DataError::Io {
            path: path.to_owned(),
            source,
        })?;
    if bytes.len() as u64 > max_bytes {
        return Err(too_long("more".to_owned()));
    }
    Ok(bytes)
}

/// Reads and decodes the image file at `path`.
///
/// # Errors
///
/// Those of [`read_file`], and [`DataError::Image`] when it cannot be decoded.
pub fn open_image(path: &Path, reading: ImageReading) -> Result<Image, DataError> {
    let bytes = read_file(path, MAX_IMAGE_BYTES)?;
    Ok(Image::decode_as(
        &bytes,
        &path.display().to_string(),
        reading,
    )?)
}

/// Reads up to `max_bytes`. Memory grows with what comes and not with what was announced: in steps, at first up to
/// `expected` bytes.
///
/// # Errors
///
/// Those of the reader; [`ErrorKind::OutOfMemory`] when there is not enough memory.
pub(super) fn read_to_end(
    mut reader: impl Read,
    expected: u64,
    max_bytes: u64,
) -> std::io::Result<Vec<u8>> {
    let mut bytes: Vec<u8> = Vec::new();
    loop {
        let have = bytes.len() as u64;
        let left = match max_bytes.saturating_sub(have) {
            0 => return Ok(bytes),
            left => left,
        };
        // Twice as much as came before, but no more than what is expected while that has not come.
        let step = (bytes.len().max(FIRST_BYTES) as u64).min(left);
        let step = match expected.checked_sub(have) {
            // Whether more comes than what is expected.
            Some(0) => step.min(32),
            Some(rest) => step.min(rest),
            None => step,
        };
        bytes
            .try_reserve_exact(step as usize)
            .map_err(|source| std::io::Error::new(ErrorKind::OutOfMemory, source))?;
        let n_read = reader.by_ref().take(step).read_to_end(&mut bytes)?;
        if (n_read as u64) < step {
            return Ok(bytes);
        }
    }
}

/// Unpacks gzip bytes of at most `max_bytes` once unpacked; nothing when there are more.
///
/// # Errors
///
/// [`DataError::Content`] when they are damaged or need more memory than there is.
pub(super) fn gunzip(
    packed: impl std::io::BufRead,
    max_bytes: u64,
    place: &str,
) -> Result<Option<Vec<u8>>, DataError> {
    let decoder = flate2::bufread::MultiGzDecoder::new(packed);
    let bytes = read_to_end(decoder, 0, max_bytes.saturating_add(1)).map_err(|source| {
        DataError::content(
            place,
            format!("cannot be unpacked ({source})"),
            "fetch it again",
        )
    })?;
    Ok((bytes.len() as u64 <= max_bytes).then_some(bytes))
}

/// The first bytes of what gzip bytes unpack to; fewer when they end before or are damaged.
pub(super) fn gunzip_start(packed: &[u8], n_bytes: u64) -> Vec<u8> {
    let mut start = Vec::new();
    // What was unpacked before an error stays in `start`.
    flate2::bufread::MultiGzDecoder::new(packed)
        .take(n_bytes)
        .read_to_end(&mut start)
        .ok();
    start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_read_than_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        std::fs::write(&path, vec![7; 200_000]).unwrap();
        assert_eq!(read_file(&path, 200_000).unwrap(), vec![7; 200_000]);
        let error = read_file(&path, 199_999).unwrap_err().to_string();
        assert!(
            error.contains("a.bin") && error.contains("199999"),
            "{error}"
        );
        // Memory beyond what came: at most as much again.
        let bytes = read_to_end(&vec![1; 300_000][..], 1 << 40, 1 << 40).unwrap();
        assert_eq!(bytes.len(), 300_000);
        assert!(
            bytes.capacity() <= 2 * 300_000 + FIRST_BYTES,
            "{}",
            bytes.capacity()
        );
    }

    #[cfg(unix)]
    #[test]
    fn what_has_no_end_is_refused_without_being_opened() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let pipe = dir.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        for (path, what) in [
            (Path::new("/dev/zero"), "a device"),
            (&socket, "a socket"),
            (&pipe, "a named pipe"),
            (dir.path(), "a folder"),
        ] {
            let error = read_file(path, 10).unwrap_err().to_string();
            assert!(
                error.contains(what) && error.contains(path.to_str().unwrap()),
                "{error}"
            );
            let error = super::super::Files::open(path, 10);
            assert_eq!(error.is_err(), !path.is_dir(), "{}", path.display());
        }
    }
}
