//! Plain files by HTTP, or from a mirror.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::error::FetchError;
use crate::http::{Client, Retry};
use crate::mirror::{Mirror, Place};
use crate::progress::Progress;
use crate::transfer::{Wanted, check, obtain, open_locked};
use crate::verify::is_sha256;

/// What a file must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    bytes: u64,
    sha256: String,
}

impl Expected {
    /// A file of this size in bytes and this SHA-256.
    ///
    /// # Errors
    ///
    /// [`FetchError::NoSum`] when the sum is not 64 hexadecimal digits.
    pub fn new(bytes: u64, sha256: &str) -> Result<Self, FetchError> {
        if !is_sha256(sha256) {
            return Err(FetchError::NoSum { sum: sha256.into() });
        }
        Ok(Self {
            bytes,
            sha256: sha256.to_ascii_lowercase(),
        })
    }
}

/// Downloads a file with the settings of the environment; see [`Downloader::fetch`].
///
/// # Errors
///
/// Those of [`Downloader::fetch`].
pub fn download(
    url: &str,
    dest: &Path,
    expected: &Expected,
    progress: &mut dyn Progress,
) -> Result<(), FetchError> {
    Downloader::from_env().fetch(url, dest, expected, progress)
}

/// Downloads plain files.
#[derive(Debug, Clone)]
pub struct Downloader {
    client: Client,
    mirror: Option<Mirror>,
}

impl Downloader {
    /// A downloader that uses the proxies the environment names.
    pub fn from_env() -> Self {
        Self {
            client: Client::new(Retry::default(), true),
            mirror: None,
        }
    }

    /// A downloader that uses no proxy.
    pub fn new(retry: Retry) -> Self {
        Self {
            client: Client::new(retry, false),
            mirror: None,
        }
    }

    /// Takes every file from a mirror instead of its own address.
    pub fn with_mirror(mut self, mirror: Mirror) -> Self {
        self.mirror = Some(mirror);
        self
    }

    /// Brings the file of an address to `dest`, by way of `dest` with `.part` added.
    ///
    /// A file that is there and right is kept. A partial file is continued where the server allows
    /// it, and begun anew where it does not or has another version. Never more than the expected
    /// bytes are written. `dest` appears complete and checked, or not at all.
    ///
    /// # Errors
    ///
    /// [`FetchError::Size`] and [`FetchError::Checksum`] for another file than expected, which is
    /// removed; [`FetchError::Connection`] when the network fails, then the partial file stays for
    /// the next attempt; [`FetchError::Status`] and [`FetchError::Io`].
    pub fn fetch(
        &self,
        url: &str,
        dest: &Path,
        expected: &Expected,
        progress: &mut dyn Progress,
    ) -> Result<(), FetchError> {
        let (bytes, sha256) = (Some(expected.bytes), Some(expected.sha256.as_str()));
        let is_there = || dest.is_file() && check(url, dest, bytes, sha256).is_ok();
        if is_there() {
            return Ok(());
        }
        let place = match &self.mirror {
            Some(mirror) => mirror.place(url)?,
            None => Place::Url(url.to_owned()),
        };
        let name = dest
            .file_name()
            .map_or_else(|| url.into(), |name| name.to_string_lossy());
        let part = part_of(dest);
        match place {
            Place::Url(url) => {
                let wanted = Wanted {
                    url: &url,
                    token: None,
                    name: &name,
                    bytes,
                    sha256,
                };
                obtain(&self.client, &wanted, &part, dest, &is_there, progress)
            }
            Place::File(path) => {
                progress.start(&name, bytes);
                copy(&path, &part, dest, expected)?;
                progress.advance(expected.bytes);
                progress.done();
                Ok(())
            }
        }
    }
}

/// Copies a file of a mirror folder.
fn copy(from: &Path, part: &Path, dest: &Path, expected: &Expected) -> Result<(), FetchError> {
    let source = File::open(from).map_err(FetchError::io("read", from))?;
    let mut file = open_locked(part)?;
    file.set_len(0).map_err(FetchError::io("write", part))?;
    // One byte more than expected shows that the file is too long.
    io::copy(
        &mut source.take(expected.bytes.saturating_add(1)),
        &mut file,
    )
    .map_err(FetchError::io("write", part))?;
    let shown = from.display().to_string();
    if let Err(error) = check(&shown, part, Some(expected.bytes), Some(&expected.sha256)) {
        let _ = fs::remove_file(part);
        return Err(error);
    }
    file.sync_all().map_err(FetchError::io("write", part))?;
    fs::rename(part, dest).map_err(FetchError::io("rename", part))
}

fn part_of(dest: &Path) -> PathBuf {
    let mut name = OsString::from(dest);
    name.push(".part");
    PathBuf::from(name)
}
