//! How a worker makes room for a running request that cannot grow: it preempts or evicts requests.
//!
//! A preempted request publishes its full blocks and is freed. It comes back later, and the blocks still cached
//! then are hits. An evicted one only finds those blocks again that were published before.

use std::sync::PoisonError;
use std::thread;

use paged_kv::PagedKvError;

use super::{Appended, Live, Worker, unless_evicted};
use crate::serve::Victims;
use crate::serve::prompts::Part;

impl Worker<'_> {
    /// Makes room until the append succeeds, or until its own request is evicted or preempted.
    #[cold]
    pub(super) fn append_making_room(&mut self, at: usize) -> Result<Appended, PagedKvError> {
        // A panic of another holder does no harm: the lock guards no data.
        let _alone = self.service.shortage.lock().unwrap_or_else(PoisonError::into_inner);
        self.service.admission.shut();
        let mut to_threshold = self.service.plan.victims != Victims::Youngest;
        loop {
            match self.try_append(at) {
                Err(PagedKvError::OutOfMemory { .. }) => {}
                appended => return appended,
            }
            if to_threshold {
                self.evict_to_threshold()?;
                to_threshold = false;
            } else if self.service.plan.victims != Victims::Youngest || !self.preempt_youngest()? {
                self.evict_one()?;
            }
            if self.live[at].gone {
                return Ok(Appended::Preempted);
            }
        }
    }

    /// Evicts down to the threshold by the strategy; `StreamingLLM` trims before it evicts. It may free
    /// nothing, if the utilization is already below the threshold.
    fn evict_to_threshold(&mut self) -> Result<(), PagedKvError> {
        let (cache, threshold) = (self.service.cache, self.service.plan.threshold);
        match self.meter.time(|| cache.evict_to_threshold(threshold)) {
            Ok(evicted) => self.meter.evicted_sequences += evicted.len() as u64,
            Err(PagedKvError::NothingToEvict) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn evict_one(&mut self) -> Result<(), PagedKvError> {
        match self.meter.time(|| self.service.cache.evict()) {
            Ok(_) => self.meter.evicted_sequences += 1,
            Err(PagedKvError::NothingToEvict) => {
                if !self.preempt_youngest()? {
                    // The oldest request of all, and the only one of this worker. The blocks that it lacks
                    // are held by calls in progress of other workers: let these finish. See point 3 in
                    // `worker`.
                    thread::yield_now();
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Preempts the youngest request of this worker: publishes its blocks, frees it, and returns it to the
    /// queue. Returns false if it is the oldest of all, which must stay.
    fn preempt_youngest(&mut self) -> Result<bool, PagedKvError> {
        let held = (0..self.live.len()).filter(|&at| !self.live[at].gone);
        let at = held.max_by_key(|&at| self.live[at].arrival).expect("the one in need is held");
        let Live { arrival, sequence, .. } = self.live[at];
        let admission = &self.service.admission;
        if !admission.yielding(arrival)? {
            return Ok(false);
        }
        let (cache, prompts) = (self.service.cache, self.service.plan.prompts);
        let (part, written) = (self.part(at), self.written_tokens(at));
        let publish = || prompts.publish(cache, sequence, part, written);
        unless_evicted(self.meter.time(publish))?;
        if self.service.plan.offload.is_some() {
            let whole = prompts.prompt(cache, Part { had_tokens: written, ..part });
            self.store_computed(whole.hashes())?;
        }
        let freed = self.meter.time(|| cache.free(sequence));
        // A sequence that is gone was evicted, and counts as that.
        self.meter.preemptions += u64::from(freed.is_ok());
        unless_evicted(freed)?;
        let computed_tokens = self.depart(at);
        admission.put_back(arrival, computed_tokens)?;
        Ok(true)
    }
}
