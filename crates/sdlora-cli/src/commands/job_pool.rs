//! Several pieces of work at a time on the threads of one processor.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// What `work` makes of every item, in their order, `n_workers` at a time; several share the threads
/// of the processor, so that each of them computes as one that has a smaller machine for itself.
pub fn in_parallel<I: Sync, O: Send>(
    n_workers: NonZeroUsize,
    items: &[I],
    work: impl Fn(&I) -> anyhow::Result<O> + Sync,
) -> Vec<anyhow::Result<O>> {
    let n_workers = n_workers.get().min(items.len());
    if n_workers <= 1 {
        return items.iter().map(work).collect();
    }
    let n_threads = (rayon::current_num_threads() / n_workers).max(1);
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let worker = || {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(n_threads)
            .build();
        loop {
            let idx = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(idx) else { return };
            let made = match &pool {
                Ok(pool) => pool.install(|| work(item)),
                Err(e) => Err(anyhow::anyhow!(
                    "no threads to compute with ({e}): fewer --jobs"
                )),
            };
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            done.push((idx, made));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..n_workers {
            scope.spawn(worker);
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(idx, _)| *idx);
    done.into_iter().map(|(_, made)| made).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_the_items_and_an_error_stops_no_other() {
        let items: Vec<u64> = (0..9).collect();
        for n_workers in [1, 2, 20] {
            let n_workers = NonZeroUsize::new(n_workers).unwrap();
            let made = in_parallel(n_workers, &items, |&item| match item {
                3 => Err(anyhow::anyhow!("three")),
                // The first takes longest, so that an order of finishing would differ.
                _ => {
                    std::thread::sleep(std::time::Duration::from_millis(9 - item));
                    Ok((item, rayon::current_num_threads()))
                }
            });
            let values: Vec<u64> = made.iter().flatten().map(|(item, _)| *item).collect();
            assert_eq!(values, [0, 1, 2, 4, 5, 6, 7, 8]);
            assert_eq!(made[3].as_ref().unwrap_err().to_string(), "three");
            if n_workers.get() > 1 {
                let share = (rayon::current_num_threads() / n_workers.get().min(9)).max(1);
                assert!(made.iter().flatten().all(|(_, n)| *n == share));
            }
        }
    }
}
