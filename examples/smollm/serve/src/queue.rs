//! `Queue`: samples that wait for blocks, by priority, then in the order in which their requests came.
//!
//! All workers take from one queue. A preempted sample returns to its old place.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::job::Sample;

/// Priority, number of the request, number of the sample.
type Place = (i64, u64, usize);

/// Samples that wait.
#[derive(Default)]
pub struct Queue {
    samples: Mutex<BTreeMap<Place, Sample>>,
    changed: Notify,
}

impl Queue {
    /// Adds a sample, and wakes a worker.
    pub fn add(&self, sample: Sample) {
        let job = &sample.job;
        let place = (job.parameters.priority, job.number, sample.number);
        self.lock().insert(place, sample);
        self.changed.notify_one();
    }

    /// Takes the first sample if `has_room` says that there is room for it. Samples without a client are dropped.
    pub fn take_if(&self, mut has_room: impl FnMut(&mut Sample) -> bool) -> Option<Sample> {
        let mut samples = self.lock();
        loop {
            let mut first = samples.first_entry()?;
            if first.get().is_unwanted() {
                first.remove();
            } else {
                return has_room(first.get_mut()).then(|| first.remove());
            }
        }
    }

    /// Returns the number of waiting samples.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Returns true if no sample waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lets `read` read the waiting samples in their order.
    pub fn read<R>(&self, read: impl FnOnce(&mut dyn Iterator<Item = &Sample>) -> R) -> R {
        read(&mut self.lock().values())
    }

    /// Wakes a worker: there is more room, or it has to end.
    pub fn wake(&self) {
        self.changed.notify_one();
    }

    /// Waits for a sample or for room, at most for `patience`.
    pub async fn changed(&self, patience: Duration) {
        let _ = tokio::time::timeout(patience, self.changed.notified()).await;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Place, Sample>> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
