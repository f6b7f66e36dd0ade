//! Everything the program prints goes through here.
//!
//! Standard output may be gone or full, and what that means depends on the command:
//!
//! | macro | for | when the output cannot be written |
//! |---|---|---|
//! | `say!` | reports on work that leaves files | the work continues, and standard error says so once |
//! | `answer!` | commands whose output is all they do | an [`OutputError`] that ends the command |
//! | `note!` | standard error | nothing: there is no other place to say it |
//!
//! `println!` and its kin panic instead, so a lint of the workspace keeps them out. Every text passes
//! [`shown_lines`]: no byte of a file reaches a terminal as a command to it.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::{Mutex, OnceLock, PoisonError};

use indicatif::ProgressBar;

use crate::shown::shown_lines;

/// Prints a progress line; the work continues even if the line cannot be written.
macro_rules! say {
    ($($text:tt)*) => { $crate::output::say_line(format_args!($($text)*)) };
}

/// Prints a line of the answer to a question, or returns why it cannot.
macro_rules! answer {
    ($($text:tt)*) => { $crate::output::answer_line(format_args!($($text)*)) };
}

/// Prints a line beside the results.
macro_rules! note {
    ($($text:tt)*) => { $crate::output::note_line(format_args!($($text)*)) };
}

pub(crate) use {answer, note, say};

/// Why an answer did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// Its reader has read enough.
    #[error("nobody reads the output any more")]
    Closed,
    /// The device is full or broken.
    #[error("the output cannot be written ({0}): free some space, or send it elsewhere")]
    Failed(String),
}

impl From<io::Error> for OutputError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Failed(error.to_string()),
        }
    }
}

/// The line that stays at the foot of a terminal while a command works.
static FOOT: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Keeps a line at the foot of the terminal: whatever is printed by any thread from now on stands above it, and no part
/// of it stays between the lines. `None` when the line is gone.
pub fn keep_below(bar: Option<&ProgressBar>) {
    let mut foot = FOOT.lock().unwrap_or_else(PoisonError::into_inner);
    *foot = bar.cloned();
}

/// Prints while the line at the foot is out of the way.
fn above_foot<R>(print: impl FnOnce() -> R) -> R {
    let foot = FOOT.lock().unwrap_or_else(PoisonError::into_inner).clone();
    match foot {
        Some(bar) => bar.suspend(print),
        None => print(),
    }
}

/// The first failure of standard output; nothing is written after it.
static LOST: OnceLock<OutputError> = OnceLock::new();

/// Behind `say!`.
pub fn say_line(text: Arguments<'_>) {
    if LOST.get().is_some() {
        return;
    }
    if let Err(error) = answer_line(text) {
        note!("{error}; the command goes on without it");
        // Another thread may have been first, and then has said so as well.
        let _ = LOST.set(error);
    }
}

/// Behind `answer!`.
///
/// # Errors
///
/// When standard output cannot be written.
pub fn answer_line(text: Arguments<'_>) -> Result<(), OutputError> {
    Ok(above_foot(|| write(&mut io::stdout().lock(), text))?)
}

/// Behind `note!`.
pub fn note_line(text: Arguments<'_>) {
    let _ = above_foot(|| write(&mut io::stderr().lock(), text));
}

/// Checks at the end of a command that says its result only, that it was read or could have been.
///
/// # Errors
///
/// When something could not be written, but for a reader that left.
pub fn check() -> Result<(), OutputError> {
    match LOST.get() {
        Some(OutputError::Failed(reason)) => Err(OutputError::Failed(reason.clone())),
        Some(OutputError::Closed) | None => Ok(()),
    }
}

/// Writes a line at once, so that a failure belongs to the line.
fn write(to: &mut dyn Write, text: Arguments<'_>) -> io::Result<()> {
    let mut line = shown_lines(&text.to_string());
    line.push('\n');
    to.write_all(line.as_bytes())?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_written_whole_and_harmless() {
        let mut out = Vec::new();
        write(&mut out, format_args!("two\nlines and \u{1b}[2J")).unwrap();
        assert_eq!(out, b"two\nlines and \\u{1b}[2J\n");
    }

    #[test]
    fn a_reader_that_left_is_no_failure_of_the_device() {
        let of = |kind| OutputError::from(io::Error::from(kind));
        assert!(matches!(of(ErrorKind::BrokenPipe), OutputError::Closed));
        let full = of(ErrorKind::StorageFull);
        assert!(full.to_string().contains("free some space"), "{full}");
    }
}
