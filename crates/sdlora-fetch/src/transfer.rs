//! One file over the network: grows under a temporary name, resumes, is checked, gets its name.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::Path;

use ureq::http::Method;

use crate::error::FetchError;
use crate::http::{Client, Failure, Follow, Response, Speed, Watch, broken, busy, refused};
use crate::names::shown;
use crate::progress::Progress;
use crate::verify::Sum;

/// Bytes read at once.
const CHUNK: usize = 1 << 16;
/// Most bytes taken from a server that does not say how many come.
const UNANNOUNCED: u64 = 100 << 20;

/// A file of a server, and what is known of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) url: &'a str,
    /// Sent to the host of `url` alone.
    pub(crate) token: Option<&'a str>,
    /// Name for the progress.
    pub(crate) name: &'a str,
    pub(crate) bytes: Option<u64>,
    pub(crate) sum: Option<Sum<'a>>,
}

/// Brings a file to `dest` by way of `part`. What `part` holds from an earlier attempt is
/// continued; `is_there` says whether another process has brought the file meanwhile.
pub(crate) fn obtain(
    client: &Client,
    wanted: &Wanted<'_>,
    part: &Path,
    dest: &Path,
    is_there: &dyn Fn() -> bool,
    progress: &mut dyn Progress,
) -> Result<(), FetchError> {
    let mut file = open_locked(part)?;
    if is_there() {
        return Ok(());
    }
    let n_left = length(&file, part)?;
    let mut result = run(client, wanted, &mut file, part, progress)
        .and_then(|()| check(wanted.url, part, wanted.bytes, wanted.sum));
    if n_left > 0 && matches!(result, Err(FetchError::Checksum { .. })) {
        // What was left over may come from an older version of the file.
        truncate(&mut file, part)?;
        result = run(client, wanted, &mut file, part, progress)
            .and_then(|()| check(wanted.url, part, wanted.bytes, wanted.sum));
    }
    if let Err(error) = result {
        let is_wrong = matches!(error, FetchError::Checksum { .. } | FetchError::Size { .. });
        if is_wrong || length(&file, part).is_ok_and(|n| n == 0) {
            // Nothing in it can be continued; that it cannot be removed changes nothing.
            let _ = fs::remove_file(part);
        }
        return Err(error);
    }
    file.sync_all().map_err(FetchError::io("write", part))?;
    fs::rename(part, dest).map_err(FetchError::io("rename", part))?;
    progress.done();
    Ok(())
}

/// Opens a temporary file for this process alone; waits for another one that writes it.
pub(crate) fn open_locked(part: &Path) -> Result<File, FetchError> {
    if let Some(folder) = part.parent() {
        fs::create_dir_all(folder).map_err(FetchError::io("create", folder))?;
    }
    match fs::symlink_metadata(part) {
        // A link would let a download grow in any file of the user. It was not made here.
        Ok(found) if found.is_symlink() => {
            fs::remove_file(part).map_err(FetchError::io("remove", part))?;
        }
        Ok(found) if !found.is_file() => {
            let is_none = std::io::Error::other("it is no file; remove it");
            return Err(FetchError::io("write", part)(is_none));
        }
        _ => {}
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(part)
        .map_err(FetchError::io("write", part))?;
    match file.lock() {
        // Some network file systems know no locks.
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(file),
        Err(error) => Err(FetchError::io("lock", part)(error)),
        Ok(()) => Ok(file),
    }
}

/// Compares a file with what it must be.
pub(crate) fn check(
    url: &str,
    path: &Path,
    bytes: Option<u64>,
    sum: Option<Sum<'_>>,
) -> Result<(), FetchError> {
    let found = fs::metadata(path)
        .map_err(FetchError::io("read", path))?
        .len();
    if let Some(expected) = bytes.filter(|expected| *expected != found) {
        return Err(FetchError::Size {
            url: shown(url),
            expected,
            found,
        });
    }
    if let Some(expected) = sum {
        let found = expected.of_file(path)?;
        if !found.eq_ignore_ascii_case(expected.digits()) {
            return Err(FetchError::Checksum {
                url: shown(url),
                kind: expected.kind(),
                expected: expected.digits().to_ascii_lowercase(),
                found,
            });
        }
    }
    Ok(())
}

/// The state of a file between attempts.
struct State<'a> {
    file: &'a mut File,
    path: &'a Path,
    /// Bytes in the file.
    n_have: u64,
    /// ETag of the version that the bytes belong to, once an answer named it.
    etag: Option<String>,
    /// Over all attempts: a server that breaks before every window ends is as slow as one that does not.
    watch: Watch,
    /// Windows in a row that were too slow.
    n_slow: u32,
}

/// Brings all bytes into the temporary file.
fn run(
    client: &Client,
    wanted: &Wanted<'_>,
    file: &mut File,
    path: &Path,
    progress: &mut dyn Progress,
) -> Result<(), FetchError> {
    let n_have = length(file, path)?;
    let mut state = State {
        file,
        path,
        n_have,
        etag: None,
        watch: Watch::new(client.retry.pace),
        n_slow: 0,
    };
    if wanted.bytes.is_some_and(|bytes| state.n_have > bytes) {
        state.restart()?;
    }
    progress.start(wanted.name, wanted.bytes);
    progress.advance(state.n_have);
    // Only bytes beyond all earlier ones count as progress: a server that always starts anew and
    // always breaks must not be asked forever.
    let (mut n_failed, mut n_best) = (0, state.n_have);
    loop {
        if wanted.bytes == Some(state.n_have) {
            return Ok(());
        }
        match attempt(client, wanted, &mut state, progress) {
            Ok(()) => return Ok(()),
            Err(Failure::Final(error)) => return Err(error),
            Err(failure) => {
                if state.n_have > n_best {
                    (n_failed, n_best) = (0, state.n_have);
                }
                n_failed += 1;
                let n_attempts = n_failed.max(state.n_slow);
                let source = failure.reason();
                if n_attempts >= client.retry.n_attempts {
                    return Err(FetchError::Connection {
                        url: shown(wanted.url),
                        n_attempts,
                        source,
                    });
                }
                progress.trouble(&client.retry.next(source.as_ref(), n_attempts));
                client.retry.pause(n_failed);
            }
        }
    }
}

/// One request, read to its end.
fn attempt(
    client: &Client,
    wanted: &Wanted<'_>,
    state: &mut State<'_>,
    progress: &mut dyn Progress,
) -> Result<(), Failure> {
    let mut headers = Vec::new();
    if state.n_have > 0 {
        headers.push(("range", format!("bytes={}-", state.n_have)));
        if let Some(etag) = state.etag.clone() {
            headers.push(("if-range", etag));
        }
    }
    let mut response = client.send(
        &Method::GET,
        wanted.url,
        wanted.token,
        &headers,
        Follow::All,
    )?;
    let total = match response.status {
        206 if state.n_have > 0 => match continuation(&response) {
            Some((from, total)) if from == state.n_have && !state.is_other(&response) => total,
            // Another part or another version than the one asked for.
            _ => {
                state.restart()?;
                progress.start(wanted.name, wanted.bytes);
                return Err(Failure::Broken(
                    "the server continues elsewhere than asked".into(),
                ));
            }
        },
        200 => {
            if state.n_have > 0 {
                state.restart()?;
                progress.start(wanted.name, wanted.bytes);
            }
            number(response.header("content-length"))
        }
        416 if state.n_have > 0 => {
            state.restart()?;
            progress.start(wanted.name, wanted.bytes);
            return Err(Failure::Broken("the server cannot continue there".into()));
        }
        status => return Err(busy(status).unwrap_or_else(|| refused(wanted.url, status).into())),
    };
    let too_long = |found| FetchError::Size {
        url: shown(wanted.url),
        expected: wanted.bytes.or(total).unwrap_or(UNANNOUNCED),
        found,
    };
    if let (Some(expected), Some(total)) = (wanted.bytes, total)
        && expected != total
    {
        return Err(too_long(total).into());
    }
    state.etag = strong_etag(&response).map(str::to_owned);

    let limit = wanted.bytes.or(total).unwrap_or(UNANNOUNCED);
    let mut reader = response.body.as_reader();
    let mut chunk = vec![0; CHUNK];
    loop {
        let n = match reader.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(broken(error, client.retry.pace)),
        };
        if state.n_have + n as u64 > limit {
            return Err(too_long(state.n_have + n as u64).into());
        }
        state.append(&chunk[..n])?;
        progress.advance(n as u64);
        match state.watch.add(n as u64) {
            Speed::Unknown => {}
            Speed::Enough => state.n_slow = 0,
            Speed::TooSlow(words) => {
                state.n_slow += 1;
                return Err(Failure::Slow(words));
            }
        }
    }
    match wanted.bytes.or(total) {
        Some(expected) if state.n_have < expected => Err(Failure::Broken(
            format!("{} of {expected} bytes came", state.n_have).into(),
        )),
        _ => Ok(()),
    }
}

impl State<'_> {
    fn restart(&mut self) -> Result<(), FetchError> {
        truncate(self.file, self.path)?;
        (self.n_have, self.etag) = (0, None);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        self.file
            .seek(SeekFrom::Start(self.n_have))
            .and_then(|_| self.file.write_all(bytes))
            .map_err(FetchError::io("write", self.path))?;
        self.n_have += bytes.len() as u64;
        Ok(())
    }

    /// Whether an answer is of another version than the bytes in the file.
    fn is_other(&self, response: &Response) -> bool {
        match (&self.etag, strong_etag(response)) {
            (Some(before), Some(now)) => before != now,
            _ => false,
        }
    }
}

fn length(file: &File, path: &Path) -> Result<u64, FetchError> {
    let metadata = file.metadata().map_err(FetchError::io("read", path))?;
    Ok(metadata.len())
}

fn truncate(file: &mut File, path: &Path) -> Result<(), FetchError> {
    file.set_len(0).map_err(FetchError::io("write", path))
}

/// An ETag that stands for the same bytes (RFC 9110, 8.8.1); weak ones do not.
fn strong_etag(response: &Response) -> Option<&str> {
    response.header("etag").filter(|etag| etag.starts_with('"'))
}

/// First byte and total of `Content-Range: bytes 5-9/10`; the total may be `*`.
fn continuation(response: &Response) -> Option<(u64, Option<u64>)> {
    let range = response.header("content-range")?.strip_prefix("bytes ")?;
    let (span, total) = range.split_once('/')?;
    let (from, _) = span.split_once('-')?;
    Some((from.trim().parse().ok()?, number(Some(total))))
}

pub(crate) fn number(text: Option<&str>) -> Option<u64> {
    text?.trim().parse().ok()
}
