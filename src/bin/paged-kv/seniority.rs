//! Which request cannot be evicted?
//!
//! The oldest one admitted: of all requests that run, the one that arrived first holds the only
//! lease. It passes on when that request leaves, and to an older request when one is admitted
//! again; so it never passes to a younger one while its holder runs. Why one lease is enough is
//! told in `worker`; how requests are served is not known here.

use std::collections::BTreeMap;

use paged_kv::{Lease, PagedKvCache, PagedKvError, SeqId};

/// The requests that run, by their place in the order of arrival.
#[derive(Default)]
pub struct Seniority {
    running: BTreeMap<usize, SeqId>,
    oldest: Option<(usize, Lease)>,
}

impl Seniority {
    /// Counts a request in, and gives it the lease if no older one has it.
    ///
    /// # Errors
    /// What the cache says to the lease, other than that the sequence was evicted since: then its
    /// worker has not noticed yet, and will count it out.
    pub fn enter(
        &mut self,
        cache: &PagedKvCache,
        arrival: usize,
        sequence: SeqId,
    ) -> Result<(), PagedKvError> {
        self.running.insert(arrival, sequence);
        if self.oldest.as_ref().is_none_or(|&(oldest, _)| arrival < oldest) {
            // The new lease is taken before the old one is dropped: never is there none.
            if let Some(lease) = lease(cache, sequence)? {
                self.oldest = Some((arrival, lease));
            }
        }
        Ok(())
    }

    /// Counts a request out, and passes its lease, if it held it, to the oldest that is left.
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
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

    /// Whether this request holds the lease.
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
