//! What is to be predicted: the arguments, and a list of names on standard input.

use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use crate::UsageError;
use crate::output::note;

/// Stands for the list on standard input.
const STANDARD_INPUT: &str = "-";
/// Longest list in bytes; two million names have about 200 MB.
const MAX_BYTES: u64 = 512 << 20;

/// The names that were given, with those on standard input in the place of `-`.
///
/// # Errors
///
/// Usage errors for a list that is empty, too long, no text, or asked for twice.
pub fn names(given: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let is_list = |path: &&PathBuf| path.as_path() == Path::new(STANDARD_INPUT);
    if given.iter().filter(is_list).count() > 1 {
        let text = "`-` is given twice, and there is one standard input: give it once";
        return Err(UsageError(text.into()).into());
    }
    let mut names = Vec::with_capacity(given.len());
    for path in given {
        match is_list(&path) {
            false => names.push(path.clone()),
            true => names.extend(read_list()?),
        }
    }
    Ok(names)
}

fn read_list() -> anyhow::Result<Vec<PathBuf>> {
    let mut input = std::io::stdin().lock();
    if input.is_terminal() {
        note!("reading names of images from standard input, one a line; Ctrl-D ends the list");
    }
    let mut bytes = Vec::new();
    let mut limited = (&mut input).take(MAX_BYTES + 1);
    limited
        .read_to_end(&mut bytes)
        .map_err(|e| anyhow::anyhow!("standard input cannot be read ({e})"))?;
    if bytes.len() as u64 > MAX_BYTES {
        let text = format!("the list on standard input has more than {MAX_BYTES} bytes: split it");
        return Err(UsageError(text).into());
    }
    let paths = paths(&bytes)?;
    if paths.is_empty() {
        let text = "the list on standard input names no image: give one name a line";
        return Err(UsageError(text.into()).into());
    }
    Ok(paths)
}

/// Names of a list: one a line, or between zero bytes where there is one, as `find -print0` writes them.
fn paths(bytes: &[u8]) -> Result<Vec<PathBuf>, UsageError> {
    let separator = if bytes.contains(&0) { 0 } else { b'\n' };
    let names = bytes
        .split(|&b| b == separator)
        .map(|name| match separator {
            0 => name,
            _ => name.strip_suffix(b"\r").unwrap_or(name),
        });
    names.filter(|name| !name.is_empty()).map(path).collect()
}

#[cfg(unix)]
fn path(name: &[u8]) -> Result<PathBuf, UsageError> {
    use std::os::unix::ffi::OsStrExt;
    Ok(std::ffi::OsStr::from_bytes(name).into())
}

#[cfg(not(unix))]
fn path(name: &[u8]) -> Result<PathBuf, UsageError> {
    let name = std::str::from_utf8(name).map_err(|_| {
        UsageError("the list on standard input is no UTF-8 text: save it as UTF-8".into())
    })?;
    Ok(name.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_a_name_a_line_or_names_between_zero_bytes() {
        let of = |bytes: &[u8]| paths(bytes).unwrap();
        let expected = ["a b.png", "c.png"].map(PathBuf::from);
        assert_eq!(of(b"a b.png\nc.png\n"), expected);
        assert_eq!(of(b"a b.png\r\n\r\nc.png"), expected);
        assert_eq!(of(b"a b.png\0c.png\0"), expected);
        assert_eq!(of(b"two\nlines.png\0"), [PathBuf::from("two\nlines.png")]);
        assert!(of(b"\n\n").is_empty());
    }

    #[test]
    fn there_is_one_standard_input() {
        let error = names(&["-".into(), "-".into()]).unwrap_err().to_string();
        assert!(error.contains("given twice"), "{error}");
        assert_eq!(names(&["a".into()]).unwrap(), [PathBuf::from("a")]);
    }
}
