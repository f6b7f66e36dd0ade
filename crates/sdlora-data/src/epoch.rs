//! One epoch of a loader: the iterators that give its batches, prepared ahead by a thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use burn::tensor::Device;

use crate::batch::{Batch, HostBatch};
use crate::budget::Taken;
use crate::error::DataError;
use crate::loader::Loader;
use crate::panics::panic_message;
use crate::plan::EpochPlan;

impl Loader {
    /// The batches of epoch `epoch_idx`, from the first, uploaded to `device` by the thread that asks for them.
    pub fn epoch(&self, epoch_idx: usize, device: &Device) -> Batches {
        Batches::new(self.host_epoch(epoch_idx), device.clone())
    }

    /// The batches of epoch `epoch_idx`, from the first, in host memory.
    pub fn host_epoch(&self, epoch_idx: usize) -> HostBatches {
        HostBatches::new(self.clone(), self.plan(epoch_idx))
    }
}

/// Iterator over the batches of one epoch in host memory; ends after the first error.
///
/// The thread that works ahead starts with the first call of `next` and ends with the epoch, or when this is dropped.
pub struct HostBatches {
    loader: Loader,
    plan: Arc<EpochPlan>,
    next: usize,
    ahead: Option<Ahead>,
}

/// What the thread that works ahead has prepared.
struct Ahead {
    receiver: Receiver<Prepared>,
    queue: Arc<Queue>,
}

/// A batch, and what it has of the budget while it waits.
type Prepared = (Result<HostBatch, DataError>, Option<Taken>);

/// How many batches wait, so that one which has no room in the budget is prepared when none does.
#[derive(Default)]
struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    n_waiting: usize,
    /// Nobody will take a batch any more.
    is_closed: bool,
}

impl Queue {
    fn change(&self, change: impl FnOnce(&mut QueueState)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Waits until `take` finds room for a batch, or none waits; `None` when nobody will take one any more.
    fn wait_for_room(&self, take: impl Fn() -> Option<Taken>) -> Option<Option<Taken>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let taken = take();
            if state.is_closed {
                return None;
            }
            if taken.is_some() || state.n_waiting == 0 {
                return Some(taken);
            }
            let changed = self.changed.wait(state);
            state = changed.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.queue.change(|state| state.is_closed = true);
    }
}

impl HostBatches {
    pub(crate) fn new(loader: Loader, plan: EpochPlan) -> Self {
        Self {
            loader,
            plan: Arc::new(plan),
            next: 0,
            ahead: None,
        }
    }

    /// Goes to batch `batch_idx` without preparing those before it; the number of batches goes to the end.
    ///
    /// # Errors
    ///
    /// [`DataError::OutOfRange`] beyond the end of the epoch.
    pub fn skip_to(mut self, batch_idx: usize) -> Result<Self, DataError> {
        let n_batches = self.plan.n_batches();
        if batch_idx > n_batches {
            return Err(DataError::OutOfRange {
                what: "batch",
                idx: batch_idx,
                len: n_batches,
            });
        }
        self.next = batch_idx;
        self.ahead = None;
        Ok(self)
    }

    fn start(&self) -> Result<Ahead, DataError> {
        let (sender, receiver) = sync_channel(self.loader.config().prefetch);
        let (loader, plan, first) = (self.loader.clone(), Arc::clone(&self.plan), self.next);
        let queue = Arc::new(Queue::default());
        let waiting = Arc::clone(&queue);
        let work = move || {
            for batch_idx in first..plan.n_batches() {
                let n_bytes = loader.n_bytes(&plan, batch_idx);
                let budget = loader.source().budget();
                let Some(taken) = waiting.wait_for_room(|| budget.take(n_bytes)) else {
                    return;
                };
                let prepared = prepared(&loader, &plan, batch_idx);
                let failed = prepared.is_err();
                waiting.change(|state| state.n_waiting += 1);
                // The receiver is gone when the epoch was left early.
                if sender.send((prepared, taken)).is_err() || failed {
                    return;
                }
            }
        };
        thread::Builder::new()
            .name("sdlora-loader".to_owned())
            .spawn(work)
            .map_err(|error| DataError::Worker {
                reason: error.to_string(),
            })?;
        Ok(Ahead { receiver, queue })
    }

    fn prepare_next(&mut self) -> Result<HostBatch, DataError> {
        if self.loader.config().prefetch == 0 {
            return self.loader.prepare(&self.plan, self.next);
        }
        // Nothing can be ahead of a single batch, and a stream of many small tasks has as many epochs of one.
        if self.ahead.is_none() && self.next + 1 == self.plan.n_batches() {
            return prepared(&self.loader, &self.plan, self.next);
        }
        if self.ahead.is_none() {
            self.ahead = Some(self.start()?);
        }
        let ended = || DataError::Worker {
            reason: "it ended early".to_owned(),
        };
        let ahead = self.ahead.as_ref().ok_or_else(ended)?;
        let (batch, taken) = ahead.receiver.recv().map_err(|_| ended())?;
        // It is a part of the step from here on; the room is there before the thread looks.
        drop(taken);
        ahead.queue.change(|state| state.n_waiting -= 1);
        batch
    }
}

/// A batch, or the error that a panic becomes.
fn prepared(loader: &Loader, plan: &EpochPlan, batch_idx: usize) -> Result<HostBatch, DataError> {
    catch_unwind(AssertUnwindSafe(|| loader.prepare(plan, batch_idx))).unwrap_or_else(|panic| {
        Err(DataError::Worker {
            reason: panic_message(panic.as_ref()),
        })
    })
}

impl Iterator for HostBatches {
    type Item = Result<HostBatch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let n_batches = self.plan.n_batches();
        if self.next >= n_batches {
            self.ahead = None;
            return None;
        }
        let batch = self.prepare_next();
        self.next = if batch.is_ok() {
            self.next + 1
        } else {
            n_batches
        };
        Some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // An error ends the epoch early.
        let rest = self.plan.n_batches() - self.next;
        (rest.min(1), Some(rest))
    }
}

/// Iterator over the batches of one epoch on a device; ends after the first error.
pub struct Batches {
    host: HostBatches,
    device: Device,
}

impl Batches {
    pub(crate) fn new(host: HostBatches, device: Device) -> Self {
        Self { host, device }
    }

    /// Goes to batch `batch_idx` without preparing those before it; the number of batches goes to the end.
    ///
    /// # Errors
    ///
    /// [`DataError::OutOfRange`] beyond the end of the epoch.
    pub fn skip_to(self, batch_idx: usize) -> Result<Self, DataError> {
        Ok(Self {
            host: self.host.skip_to(batch_idx)?,
            device: self.device,
        })
    }
}

impl Iterator for Batches {
    type Item = Result<Batch, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(
            self.host
                .next()?
                .map(|batch| batch.into_batch(&self.device)),
        )
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.host.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use crate::budget::CacheBudget;
    use crate::cache::Cache;
    use crate::loader::LoaderConfig;
    use crate::toy::{Fault, ToyDataset, batches, loader, loader_of, loader_within};

    #[test]
    fn batches_do_not_depend_on_threads_prefetch_or_cache() {
        let expected = batches(&loader(LoaderConfig::training(4).with_prefetch(0)), 1);
        for prefetch in [0, 1, 3] {
            for workers in [1, 2, 3, 9] {
                for cache in [Cache::Memory, Cache::Bytes(1000), Cache::None] {
                    let config = LoaderConfig::training(4)
                        .with_prefetch(prefetch)
                        .with_workers(workers);
                    let loader = loader_of(ToyDataset::new(4, 7, 1), config, cache, 5);
                    assert_eq!(
                        batches(&loader, 1),
                        expected,
                        "{prefetch} {workers} {cache:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn skipping_gives_the_rest_of_the_epoch() {
        let loader = loader(LoaderConfig::training(4));
        let whole = batches(&loader, 2);
        for first in 0..=whole.len() {
            let rest: Result<Vec<_>, _> = loader.host_epoch(2).skip_to(first).unwrap().collect();
            assert_eq!(rest.unwrap(), whole[first..]);
        }
        assert!(loader.host_epoch(2).skip_to(whole.len() + 1).is_err());
        let mut started = loader.host_epoch(2);
        started.next().unwrap().unwrap();
        assert_eq!(
            started.skip_to(4).unwrap().next().unwrap().unwrap(),
            whole[4]
        );
    }

    #[test]
    fn a_failing_image_is_an_error_and_ends_the_epoch() {
        for (fault, word) in [(Fault::Error, "toy"), (Fault::Panic, "toy panic")] {
            for (prefetch, workers) in [(2, 1), (2, 3), (0, 3)] {
                let mut dataset = ToyDataset::new(4, 7, 1);
                dataset.fault = Some((15, fault));
                let config = LoaderConfig::training(4)
                    .with_prefetch(prefetch)
                    .with_workers(workers);
                let loader = loader_of(dataset, config, Cache::None, 0);
                let results: Vec<_> = loader.host_epoch(0).collect();
                let (last, before) = results.split_last().unwrap();
                assert!(before.iter().all(Result::is_ok));
                let message = last.as_ref().unwrap_err().to_string();
                assert!(message.contains(word), "{message}");
            }
        }
    }

    #[test]
    fn a_single_batch_needs_no_thread() {
        for fault in [None, Some((15, Fault::Panic))] {
            let mut dataset = ToyDataset::new(4, 7, 1);
            dataset.fault = fault;
            let loader = loader_of(dataset, LoaderConfig::training(21), Cache::None, 5);
            let mut epoch = loader.host_epoch(0);
            let batch = epoch.next().unwrap();
            assert!(epoch.ahead.is_none());
            match fault {
                None => assert_eq!(batch.unwrap().len(), 21),
                Some(_) => assert!(batch.unwrap_err().to_string().contains("toy panic")),
            }
            assert!(epoch.next().is_none());
        }
    }

    #[test]
    fn an_epoch_left_early_does_not_block() {
        for cache in [Cache::Memory, Cache::None] {
            let config = LoaderConfig::training(1).with_prefetch(1);
            let loader = loader_of(ToyDataset::new(4, 7, 1), config, cache, 5);
            for _ in 0..20 {
                let mut epoch = loader.host_epoch(0);
                epoch.next().unwrap().unwrap();
            }
        }
    }

    #[test]
    fn batches_that_wait_count_in_the_budget_and_one_is_always_prepared() {
        for (limit, n_least, n_most) in [(0, 1, 1), (700, 1, 2), (u64::MAX, 4, 4)] {
            let budget = CacheBudget::new(limit);
            let config = LoaderConfig::training(4).with_prefetch(3);
            let loader = loader_within(ToyDataset::new(4, 7, 1), config, &budget, 5);
            let mut epoch = loader.host_epoch(0);
            for n_taken in 1..=6 {
                epoch.next().unwrap().unwrap();
                let n_waiting = || {
                    let queue = &epoch.ahead.as_ref().unwrap().queue;
                    queue.state.lock().unwrap().n_waiting
                };
                // What the thread does without another batch being taken.
                while n_waiting() < n_least.min(6 - n_taken) {
                    std::thread::yield_now();
                }
                assert!(n_waiting() <= n_most, "{limit}");
            }
            assert!(epoch.next().is_none());
            assert!(budget.peak() <= limit, "{} of {limit}", budget.peak());
            drop((loader, epoch));
            // The thread gives back what it has when it ends.
            while budget.used() > 0 {
                std::thread::yield_now();
            }
        }
    }
}
