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
use crate::verify::{Sum, is_md5, is_sha256};

/// What a file must be, as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    bytes: Option<u64>,
    sha256: Option<String>,
    md5: Option<String>,
}

impl Expected {
    /// A file of this size in bytes and this SHA-256.
    ///
    /// # Errors
    ///
    /// [`FetchError::NoSum`] when the sum is not 64 hexadecimal digits.
    pub fn new(bytes: u64, sha256: &str) -> Result<Self, FetchError> {
        Self::unknown().with_bytes(bytes).with_sha256(sha256)
    }

    /// A file of which nothing is known. It is complete when the server has sent all it announced,
    /// and one that is there already is kept.
    pub fn unknown() -> Self {
        Self::default()
    }

    /// With a size in bytes.
    #[must_use]
    pub fn with_bytes(mut self, bytes: u64) -> Self {
        self.bytes = Some(bytes);
        self
    }

    /// With a SHA-256.
    ///
    /// # Errors
    ///
    /// [`FetchError::NoSum`] when it is not 64 hexadecimal digits.
    pub fn with_sha256(mut self, sum: &str) -> Result<Self, FetchError> {
        if !is_sha256(sum) {
            return Err(no_sum(sum, "SHA-256", 64));
        }
        self.sha256 = Some(sum.to_ascii_lowercase());
        Ok(self)
    }

    /// With an MD5, as older data sets publish it; a SHA-256 goes before it. It shows a damaged file,
    /// not a forged one.
    ///
    /// # Errors
    ///
    /// [`FetchError::NoSum`] when it is not 32 hexadecimal digits.
    pub fn with_md5(mut self, sum: &str) -> Result<Self, FetchError> {
        if !is_md5(sum) {
            return Err(no_sum(sum, "MD5", 32));
        }
        self.md5 = Some(sum.to_ascii_lowercase());
        Ok(self)
    }

    /// The sum to compare with, the stronger one where there are two.
    fn sum(&self) -> Option<Sum<'_>> {
        let sha256 = self.sha256.as_deref().map(Sum::Sha256);
        sha256.or_else(|| self.md5.as_deref().map(Sum::Md5))
    }
}

fn no_sum(sum: &str, kind: &'static str, n_digits: usize) -> FetchError {
    FetchError::NoSum {
        sum: sum.into(),
        kind,
        n_digits,
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
        let (bytes, sum) = (expected.bytes, expected.sum());
        let is_there = || dest.is_file() && check(url, dest, bytes, sum).is_ok();
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
                    sum,
                };
                obtain(&self.client, &wanted, &part, dest, &is_there, progress)
            }
            Place::File(path) => {
                progress.start(&name, bytes);
                let n_bytes = copy(&path, &part, dest, expected)?;
                progress.advance(n_bytes);
                progress.done();
                Ok(())
            }
        }
    }
}

/// Copies a file of a mirror folder, and says how long it is.
fn copy(from: &Path, part: &Path, dest: &Path, expected: &Expected) -> Result<u64, FetchError> {
    let source = File::open(from).map_err(FetchError::io("read", from))?;
    let mut file = open_locked(part)?;
    file.set_len(0).map_err(FetchError::io("write", part))?;
    // One byte more than expected shows that the file is too long.
    let limit = expected.bytes.unwrap_or(u64::MAX).saturating_add(1);
    let n_bytes =
        io::copy(&mut source.take(limit), &mut file).map_err(FetchError::io("write", part))?;
    let shown = from.display().to_string();
    if let Err(error) = check(&shown, part, expected.bytes, expected.sum()) {
        let _ = fs::remove_file(part);
        return Err(error);
    }
    file.sync_all().map_err(FetchError::io("write", part))?;
    fs::rename(part, dest).map_err(FetchError::io("rename", part))?;
    Ok(n_bytes)
}

fn part_of(dest: &Path) -> PathBuf {
    let mut name = OsString::from(dest);
    name.push(".part");
    PathBuf::from(name)
}
