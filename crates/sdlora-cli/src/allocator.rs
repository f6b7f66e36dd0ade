//! The allocator of the program and how long it keeps what is free.
//!
//! A step frees its large tensors and the next one asks for the same again. glibc hands each back to
//! the system at once and mimalloc after ten milliseconds, less than a step takes; every page then
//! has to be cleared again, a tenth to a fifth of the processor time of a training step.

/// mimalloc, see the module.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Number of mimalloc's option `purge_delay` in `mimalloc.h`; the binding does not name it.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
/// Milliseconds free memory is kept: longer than a step of any model on any machine takes.
const KEPT_MS: std::ffi::c_long = 60_000;

/// Lets the allocator keep free memory from step to step; `MIMALLOC_PURGE_DELAY` in the environment
/// goes before.
pub fn keep_free_memory() {
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        // SAFETY: sets one number of the allocator, which every thread reads as an atomic.
        unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, KEPT_MS) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_that_of_the_purge_delay() {
        // SAFETY: reads one number of the allocator.
        let get = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
            // The default names the option: an upgrade that moves it shows here.
            assert!([10, 1000, KEPT_MS].contains(&get()), "{}", get());
            keep_free_memory();
            assert_eq!(get(), KEPT_MS);
        }
    }
}
