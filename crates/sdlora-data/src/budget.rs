//! Memory that prepared images may take, shared by the sets of a run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cache::Cache;

/// A number of bytes that several [`ImageSource`](crate::ImageSource)s share: images that are kept, and batches that
/// are prepared ahead.
///
/// What is taken never exceeds the limit, so [`peak`](Self::peak) does not either. An image that does not fit is
/// decoded each time it is needed, and a batch that does not fit is prepared when those before it are gone.
#[derive(Clone, Debug)]
pub struct CacheBudget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: u64,
    used: AtomicU64,
    peak: AtomicU64,
    /// The budget that this one is a part of.
    whole: Option<CacheBudget>,
}

impl CacheBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Inner {
            limit,
            used: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            whole: None,
        }))
    }

    /// The budget that a setting means on this machine.
    pub fn of(cache: Cache) -> Self {
        Self::new(cache.n_bytes())
    }

    /// A part of this budget for some of the sets: what they take counts here, too, and ends at the share of the
    /// limit, `share` of `total`.
    #[must_use]
    pub fn part(&self, share: u64, total: u64) -> Self {
        let limit = u128::from(self.limit()) * u128::from(share) / u128::from(total.max(1));
        Self(Arc::new(Inner {
            limit: u64::try_from(limit).unwrap_or(u64::MAX),
            used: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            whole: Some(self.clone()),
        }))
    }

    /// Bytes that may be taken.
    pub fn limit(&self) -> u64 {
        self.0.limit
    }

    /// Bytes that are taken.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// The most bytes that were taken at once.
    pub fn peak(&self) -> u64 {
        self.0.peak.load(Ordering::Relaxed)
    }

    /// Takes bytes, where they fit; they are given back when what is returned is dropped.
    pub(crate) fn take(&self, n_bytes: u64) -> Option<Taken> {
        let whole = match &self.0.whole {
            None => None,
            Some(whole) => Some(Box::new(whole.take(n_bytes)?)),
        };
        let within = |used: u64| {
            used.checked_add(n_bytes)
                .filter(|&used| used <= self.0.limit)
        };
        let used = &self.0.used;
        let before = used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within);
        self.0
            .peak
            .fetch_max(before.ok()?.saturating_add(n_bytes), Ordering::Relaxed);
        Some(Taken {
            budget: self.clone(),
            n_bytes,
            whole,
        })
    }
}

/// Bytes of a budget that are in use.
#[derive(Debug)]
pub(crate) struct Taken {
    budget: CacheBudget,
    n_bytes: u64,
    /// The same bytes of the budget that this one is a part of.
    whole: Option<Box<Taken>>,
}

impl Taken {
    /// Adds the bytes of another piece of the same budget.
    pub(crate) fn join(&mut self, other: Self) {
        let mut other = other;
        debug_assert!(Arc::ptr_eq(&self.budget.0, &other.budget.0));
        self.n_bytes += std::mem::take(&mut other.n_bytes);
        match (&mut self.whole, other.whole.take()) {
            (Some(whole), Some(more)) => whole.join(*more),
            (None, more) => self.whole = more,
            (Some(_), None) => {}
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.budget
            .0
            .used
            .fetch_sub(self.n_bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_taken_than_there_is_and_all_of_it_comes_back() {
        let budget = CacheBudget::new(100);
        let mut first = budget.take(60).unwrap();
        assert!(budget.take(41).is_none());
        first.join(budget.take(40).unwrap());
        assert_eq!((budget.used(), budget.peak()), (100, 100));
        assert!(budget.take(1).is_none() && budget.take(0).is_some());
        drop(first);
        assert_eq!((budget.used(), budget.peak()), (0, 100));
        assert!(CacheBudget::new(0).take(1).is_none());
        let without_limit = CacheBudget::new(u64::MAX);
        let _all = without_limit.take(u64::MAX).unwrap();
        assert!(without_limit.take(1).is_none());
    }

    #[test]
    fn a_part_has_a_limit_of_its_own_and_counts_in_the_whole() {
        let whole = CacheBudget::new(100);
        let part = whole.part(1, 2);
        let mut of_part = part.take(30).unwrap();
        assert!(part.take(21).is_none());
        // Refused by the part, it does not stay in the whole.
        assert_eq!((part.used(), whole.used()), (30, 30));
        of_part.join(part.take(20).unwrap());
        let of_whole = whole.take(50).unwrap();
        assert!(part.take(1).is_none());
        drop(of_part);
        assert_eq!((part.used(), whole.used()), (0, 50));
        drop(of_whole);
        assert_eq!((whole.used(), whole.peak(), part.peak()), (0, 100, 50));
        assert_eq!(CacheBudget::new(u64::MAX).part(1, 2).limit(), u64::MAX / 2);
        assert_eq!(CacheBudget::new(9).part(0, 0).limit(), 0);
    }

    #[test]
    fn threads_together_stay_within_the_limit() {
        let budget = CacheBudget::new(1000);
        std::thread::scope(|scope| {
            for n_bytes in 1..9 {
                let budget = &budget;
                scope.spawn(move || {
                    let mut held = Vec::new();
                    for _ in 0..500 {
                        match budget.take(n_bytes) {
                            Some(taken) => held.push(taken),
                            None => held.clear(),
                        }
                        assert!(budget.used() <= 1000);
                    }
                });
            }
        });
        assert_eq!(budget.used(), 0);
        assert!(budget.peak() > 900 && budget.peak() <= 1000);
    }
}
