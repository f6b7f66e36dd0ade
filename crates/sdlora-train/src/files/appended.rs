//! A file to which lines are added: each of them is there once, or not at all.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::faults::{self, Operation};

/// Bytes that may wait for a file system which refuses them; beyond it new lines are dropped, whole.
const MAX_WAITING: usize = 1 << 20;

/// A file that is open to be added to.
///
/// If the file system takes only a part, the next write continues after it, so no line is torn while the process
/// lives. A kill may tear the last line; [`cut`](Self::cut) removes it.
#[derive(Debug)]
pub struct Appended {
    file: File,
    waiting: Vec<u8>,
    /// What a fault on purpose has still to say.
    fault: Option<io::Error>,
}

impl Appended {
    /// Opens a file, and makes it where it is missing.
    ///
    /// # Errors
    ///
    /// That of the file system.
    pub fn open(path: &Path) -> io::Result<Self> {
        faults::pass(Operation::Create)?;
        let file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .open(path)?;
        Ok(Self {
            file,
            waiting: Vec::new(),
            fault: None,
        })
    }

    /// Waits until no other process holds the file, and holds it until this value is dropped. Some network file
    /// systems know no locks; there one process at a time is safe.
    ///
    /// # Errors
    ///
    /// That of the file system.
    pub fn lock(&self) -> io::Result<()> {
        match self.file.lock() {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
            locked => locked,
        }
    }

    /// Bytes of the file, without those that wait.
    ///
    /// # Errors
    ///
    /// That of the file system.
    pub fn n_bytes(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Bytes of the file once all that waits is in it.
    ///
    /// # Errors
    ///
    /// That of the file system.
    pub fn end(&self) -> io::Result<u64> {
        Ok(self.n_bytes()? + self.waiting.len() as u64)
    }

    /// What stands from a place on.
    ///
    /// # Errors
    ///
    /// That of the file system.
    pub fn read_from(&mut self, start: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file.seek(SeekFrom::Start(start))?;
        self.file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Takes away what stands behind the first `n_bytes`.
    ///
    /// # Errors
    ///
    /// That of the file system.
    pub fn cut(&mut self, n_bytes: u64) -> io::Result<()> {
        faults::pass(Operation::Write)?;
        self.file.set_len(n_bytes)
    }

    /// Adds a line, which is in the file after the next [`flush`](Self::flush).
    pub fn add(&mut self, line: &[u8]) {
        if self.waiting.len() < MAX_WAITING {
            self.waiting.extend(line);
        }
    }

    /// Writes what was added, in one call where the file system takes it so.
    ///
    /// # Errors
    ///
    /// That of the file system; the next call continues where this one stopped.
    pub fn flush(&mut self) -> io::Result<()> {
        while !self.waiting.is_empty() {
            let n = match self.write() {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                written => written?,
            };
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.waiting.drain(..n);
        }
        Ok(())
    }

    /// Writes some of what waits. A fault takes some and then fails, as a full disk does.
    fn write(&mut self) -> io::Result<usize> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        match faults::pass_write(self.waiting.len()) {
            Ok(()) => self.file.write(&self.waiting),
            Err((fault, 0)) => Err(fault),
            Err((fault, n_taken)) => {
                self.fault = Some(fault);
                self.file.write(&self.waiting[..n_taken])
            }
        }
    }

    /// Makes durable what was written.
    ///
    /// # Errors
    ///
    /// That of the file system.
    pub fn sync(&self) -> io::Result<()> {
        faults::pass(Operation::Sync)?;
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use faults::Kind;

    #[test]
    fn a_line_that_the_file_takes_in_part_goes_on_where_it_stopped() {
        for n in 1..8 {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("lines");
            let mut file = Appended::open(&path).unwrap();
            faults::arm(n, Kind::Error);
            let mut n_failed = 0;
            for i in 0..4 {
                file.add(format!("line {i}\n").as_bytes());
                n_failed += usize::from(file.flush().is_err());
            }
            let happened = faults::disarm();
            assert_eq!(n_failed, usize::from(happened));
            file.flush().unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(text, "line 0\nline 1\nline 2\nline 3\n", "{n}");
            if !happened {
                assert_eq!(n, 5);
                return;
            }
        }
        unreachable!("four writes");
    }

    #[test]
    fn what_waits_too_long_is_dropped_line_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines");
        let mut file = Appended::open(&path).unwrap();
        let line = [vec![b'x'; MAX_WAITING / 2], vec![b'\n']].concat();
        faults::arm(1, Kind::Kill);
        for _ in 0..5 {
            file.add(&line);
            assert!(file.flush().is_err());
        }
        // It was full after the first three, of which the file has taken half a line.
        assert_eq!(file.end().unwrap(), 3 * line.len() as u64);
        faults::disarm();
        file.flush().unwrap();
        let text = std::fs::read(&path).unwrap();
        assert_eq!(text, line.repeat(3));
        file.cut(3).unwrap();
        assert_eq!(file.n_bytes().unwrap(), 3);
        assert_eq!(file.read_from(1).unwrap(), b"xx");
    }
}
