//! An allocator that counts, for tests and benchmarks of memory.
//!
//! It counts for all threads, so a test that uses it is alone in its program:
//!
//! ```
//! use sdlora_testkit::allocator::{Counting, peak_of};
//!
//! #[global_allocator]
//! static ALLOCATOR: Counting = Counting::new();
//!
//! let (n_bytes, _) = peak_of(|| drop(vec![0_u8; 1 << 20]));
//! assert!(n_bytes >= 1 << 20);
//! ```

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Smaller than the tensors of any test, larger than the lists of the thread pool.
const LARGE: usize = 4096;

static ALIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
static N_LARGE: AtomicUsize = AtomicUsize::new(0);
static LARGE_BYTES: AtomicUsize = AtomicUsize::new(0);

/// The allocator of the system, with counters.
#[derive(Debug)]
pub struct Counting {
    moves: bool,
}

impl Counting {
    /// Counts the old and the new block of a reallocation as alive at once.
    pub const fn new() -> Self {
        Self { moves: false }
    }

    /// Counts only the new block: the system moves large blocks without a copy.
    pub const fn moving() -> Self {
        Self { moves: true }
    }
}

impl Default for Counting {
    fn default() -> Self {
        Self::new()
    }
}

fn grow(n_bytes: usize) {
    let alive = ALIVE.fetch_add(n_bytes, Relaxed) + n_bytes;
    PEAK.fetch_max(alive, Relaxed);
    if n_bytes >= LARGE {
        N_LARGE.fetch_add(1, Relaxed);
        LARGE_BYTES.fetch_add(n_bytes, Relaxed);
    }
}

fn shrink(n_bytes: usize) {
    ALIVE.fetch_sub(n_bytes, Relaxed);
}

// SAFETY: every call is passed on unchanged to the system's allocator; only counters are kept.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: the caller keeps the contract of `GlobalAlloc::dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, n_bytes: usize) -> *mut u8 {
        if self.moves {
            shrink(layout.size());
            grow(n_bytes);
        } else {
            grow(n_bytes);
            shrink(layout.size());
        }
        // SAFETY: the caller keeps the contract of `GlobalAlloc::realloc`.
        unsafe { System.realloc(pointer, layout, n_bytes) }
    }
}

/// Most bytes that were alive at a time while `work` ran, beyond those before it, and what it returns.
pub fn peak_of<R>(work: impl FnOnce() -> R) -> (usize, R) {
    let before = ALIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = work();
    (PEAK.load(Relaxed).saturating_sub(before), result)
}

/// Bytes that are alive.
pub fn alive() -> usize {
    ALIVE.load(Relaxed)
}

/// Number and bytes of the blocks of at least 4 KiB that were made so far.
pub fn large_blocks() -> (usize, usize) {
    (N_LARGE.load(Relaxed), LARGE_BYTES.load(Relaxed))
}
