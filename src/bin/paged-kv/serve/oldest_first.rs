//! `Seniority`: the lease that protects the oldest running request from eviction.
//!
//! Of all running requests, the one that arrived first holds the only lease. The lease passes on when
//! that request leaves, or when an older request is admitted again. So it never passes to a younger
//! request while its holder runs. `worker` explains why one lease is enough.

use std::collections::BTreeMap;

use paged_kv::{Lease, PagedKvCache, PagedKvError, SeqId};

/// The running requests, by their place in the order of arrival.
#[derive(Default)]
pub struct Seniority {
    running: BTreeMap<usize, SeqId>,
    oldest: Option<(usize, Lease)>,
}

impl Seniority {
    /// Adds a running request, and gives it the lease if no older request has it.
    ///
    /// # Errors
    /// Those of [`PagedKvCache::lease`] but `SequenceNotFound`. That one means that the sequence was evicted;
    /// its worker has not noticed yet, and will remove it here.
    pub fn enter(
        &mut self,
        cache: &PagedKvCache,
        arrival: usize,
        sequence: SeqId,
    ) -> Result<(), PagedKvError> {
        self.running.insert(arrival, sequence);
        if self.oldest.as_ref().is_none_or(|&(oldest, _)| arrival < oldest) {
            // The new lease is taken before the old one is dropped, so that there is one at any time.
            if let Some(lease) = lease(cache, sequence)? {
                self.oldest = Some((arrival, lease));
            }
        }
        Ok(())
    }

    /// Removes a request. If it held the lease, the lease passes to the oldest request that is left.
    ///
    /// # Errors
    /// Those of [`enter`](Self::enter).
    pub fn leave(&mut self, cache: &PagedKvCache, arrival: usize) -> Result<(), PagedKvError> {
        self.running.remove(&arrival);
        if !self.is_oldest(arrival) {
            return Ok(());
        }
        self.oldest = None;
        for (&arrival, &sequence) in &self.running {
            if let Some(lease) = lease(cache, sequence)? {
                self.oldest = Some((arrival, lease));
                break;
            }
        }
        Ok(())
    }

    /// Returns whether this request holds the lease.
    pub fn is_oldest(&self, arrival: usize) -> bool {
        self.oldest.as_ref().is_some_and(|&(oldest, _)| oldest == arrival)
    }
}

fn lease(cache: &PagedKvCache, sequence: SeqId) -> Result<Option<Lease>, PagedKvError> {
    match cache.lease(&[sequence]) {
        Ok(lease) => Ok(Some(lease)),
        Err(PagedKvError::SequenceNotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
