//! Faults on purpose: a test lets the n-th operation on files fail, as a full disk or a kill would.
//!
//! Faults are of one thread and nothing sets them but tests; without one an operation only counts itself.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Write};

/// What is done to the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A file or folder is created.
    Create,
    /// Bytes are written.
    Write,
    /// They are made durable.
    Sync,
    /// A file or folder is renamed.
    Rename,
    /// A file or folder is removed.
    Remove,
}

/// What a fault is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// This operation fails, later ones succeed.
    Error,
    /// This operation fails and so does every later one: the process is as good as dead.
    Kill,
}

#[derive(Debug, Clone, Copy)]
struct Armed {
    left: usize,
    kind: Kind,
    has_happened: bool,
}

thread_local! {
    static ARMED: Cell<Option<Armed>> = const { Cell::new(None) };
    static EXCHANGES: Cell<bool> = const { Cell::new(true) };
}

/// Says whether the file system of this thread exchanges two names at once; many cannot.
pub fn set_exchange(exchanges: bool) {
    EXCHANGES.set(exchanges);
}

#[cfg(target_os = "linux")]
pub(super) fn can_exchange() -> bool {
    EXCHANGES.get()
}

/// Lets the `n`-th operation of this thread from now on fail, counted from 1.
pub fn arm(n: usize, kind: Kind) {
    ARMED.set(Some(Armed {
        left: n,
        kind,
        has_happened: false,
    }));
}

/// Ends it, and says whether the fault has happened.
pub fn disarm() -> bool {
    ARMED.take().is_some_and(|armed| armed.has_happened)
}

/// Counts an operation; an error when it is to fail.
pub(super) fn pass(operation: Operation) -> io::Result<()> {
    let Some(mut armed) = ARMED.get() else {
        return Ok(());
    };
    let fails = match armed.has_happened {
        true => armed.kind == Kind::Kill,
        false => {
            armed.left = armed.left.saturating_sub(1);
            armed.has_happened = armed.left == 0;
            armed.has_happened
        }
    };
    ARMED.set(Some(armed));
    match fails {
        true => Err(io::Error::other(format!(
            "a fault on purpose ({operation:?})"
        ))),
        false => Ok(()),
    }
}

/// Counts a write of so many bytes; where it is to fail, how many of them the file takes all the same: half, and none
/// of a process that is dead already.
pub(super) fn pass_write(n_bytes: usize) -> Result<(), (io::Error, usize)> {
    let is_dead = ARMED
        .get()
        .is_some_and(|armed| armed.has_happened && armed.kind == Kind::Kill);
    let n_taken = if is_dead { 0 } else { n_bytes / 2 };
    pass(Operation::Write).map_err(|fault| (fault, n_taken))
}

/// Writes bytes; some of them when it is to fail.
pub(super) fn write(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    match pass_write(bytes.len()) {
        Ok(()) => file.write_all(bytes),
        Err((fault, n_taken)) => {
            file.write_all(&bytes[..n_taken])?;
            Err(fault)
        }
    }
}
