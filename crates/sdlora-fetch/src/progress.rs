//! What a download tells its caller.

/// Told of every file as it arrives. A file that is there already is not reported.
pub trait Progress {
    /// A file begins; `total` is its size in bytes where the server says it.
    fn start(&mut self, file: &str, total: Option<u64>);
    /// `n` more bytes of it are on the disk; those of an earlier, broken attempt count first.
    fn advance(&mut self, n: u64);
    /// The file is complete and checked.
    fn done(&mut self);
    /// Nothing or too little comes: what happened, and which attempt follows.
    fn trouble(&mut self, _what: &str) {}
}

/// Tells no one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn start(&mut self, _file: &str, _total: Option<u64>) {}
    fn advance(&mut self, _n: u64) {}
    fn done(&mut self) {}
}
