//! Eviction: removes whole sequences, selected by the strategy, when blocks are short.
//!
//! Blocks that will be free when the open steps end count as freed: no further eviction would free them
//! sooner. A victim leaves the map only if it is the sequence that was chosen, and no lease holds it
//! at that moment.

mod candidates;
pub(crate) mod deadlock;
pub(crate) mod evicted_ids;
pub(crate) mod freeable;
mod pressure;
mod removal;
pub(crate) mod strategy;
#[cfg(test)]
mod tests;

use self::pressure::Pressure;
use self::removal::evictions_of_this_thread;
use self::strategy::{EvictionKey, EvictionStrategy};
use super::PagedKvCache;
use super::entry::TrackedSequence;
use crate::error::{PagedKvError, Result};
use crate::id::{SeqId, Worker};
use crate::sequence::Sequence;
use crate::sync::{Backoff, Ordering};

/// Searches for a victim before `NothingToEvict`, while other threads evict sequences or take the chosen
/// one.
const PATIENCE: usize = 10_000;

/// A sequence that [`PagedKvCache::evict_for`] evicted.
///
/// ```
/// use paged_kv::{Evicted, SeqId};
///
/// assert_ne!(Evicted { seq_id: SeqId(1), blocks: 2 }, Evicted { seq_id: SeqId(1), blocks: 3 });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evicted {
    /// The sequence that was evicted.
    pub seq_id: SeqId,
    /// Blocks that the eviction freed: those with no other owner. Blocks that open steps hold count too;
    /// they are free when the steps end.
    pub blocks: usize,
}

/// # Eviction
impl PagedKvCache {
    /// Returns true if utilization is at or above the eviction threshold. Ends pins after their deadlines first. Blocks that will be free when the
    /// open steps end do not count. So a caller that evicts until it is false evicts no more than it has
    /// to. Costs a few loads, unless steps hold blocks that would make a difference. Then it costs as an
    /// [`evict_to_threshold`](Self::evict_to_threshold) that evicts no sequence.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 16, 1, 1).with_eviction_threshold(0.5);
    /// assert!(!cache.needs_eviction());
    /// cache.allocate(SeqId(1), 32)?;
    /// assert!(cache.needs_eviction());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn needs_eviction(&self) -> bool {
        self.utilization() >= self.eviction_threshold
            && Pressure::new(self, self.eviction_threshold).is_at_or_above()
    }

    /// Returns the sequence that [`evict`](Self::evict) would take now. `O(sequences)`; also `O(blocks)` if
    /// the first candidate would free no block by itself.
    ///
    /// Skips leased sequences. Skips a sequence none of whose blocks would be free even if every unleased
    /// sequence were evicted, because leased sequences or handles use these blocks too.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 16, 1, 1);
    /// assert_eq!(cache.select_eviction_target(), None);
    /// cache.allocate(SeqId(1), 16)?;
    /// assert_eq!(cache.select_eviction_target(), Some(SeqId(1)));
    /// let _lease = cache.lease(&[SeqId(1)])?;
    /// assert_eq!(cache.select_eviction_target(), None);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn select_eviction_target(&self) -> Option<SeqId> {
        self.select_victim().map(|key| key.seq_id)
    }

    fn select_victim(&self) -> Option<EvictionKey> {
        let mut first: Option<EvictionKey> = None;
        self.for_each_unleased(|id, tracked| {
            if let Some(key) = self.eviction_key(id, tracked) {
                first = Some(first.map_or(key, |first| first.min(key)));
            }
        });
        let first = first?;
        if self.frees_a_block(&first) {
            return Some(first);
        }
        let freeable = self.freeable(|_| true);
        let mut keys = self.eviction_keys(|_| true);
        keys.sort_unstable();
        keys.into_iter().find(|key| freeable.is_worth_evicting(key.seq_id, key.epoch))
    }

    /// Removes one whole sequence, selected by the strategy, and returns its id. Costs as
    /// [`select_eviction_target`](Self::select_eviction_target).
    ///
    /// Blocks that an open step may touch are free when the step ends. So a caller that evicts repeatedly
    /// checks [`needs_eviction`](Self::needs_eviction), which counts them as freed, and not
    /// [`utilization`](Self::utilization).
    ///
    /// # Errors
    /// [`NothingToEvict`](PagedKvError::NothingToEvict) when
    /// [`select_eviction_target`](Self::select_eviction_target) finds none.
    ///
    /// ```
    /// use paged_kv::{EvictionStrategy, PagedKvCache, PagedKvError, SeqId};
    ///
    /// let strategy = EvictionStrategy::LongestFirst;
    /// let cache = PagedKvCache::new(8, 16, 1, 1).with_eviction_strategy(strategy);
    /// cache.allocate(SeqId(1), 16)?;
    /// cache.allocate(SeqId(2), 48)?;
    /// assert_eq!(cache.evict(), Ok(SeqId(2)));
    /// assert_eq!(cache.evict(), Ok(SeqId(1)));
    /// assert_eq!(cache.evict(), Err(PagedKvError::NothingToEvict));
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn evict(&self) -> Result<SeqId> {
        let mut backoff = Backoff::new();
        for _ in 0..PATIENCE {
            // Acquire: pairs with the additions in `removal`; this thread sees the blocks that those
            // evictions released.
            // Loom: of_two_evictions_of_sharers_by_content_each_finds_one.
            let over = self.evictions_over.load(Ordering::Acquire);
            let Some(victim) = self.select_victim() else {
                // Relaxed: this thread missed an evicted sequence under the lock of its map shard, which
                // orders the count.
                if self.evictions_begun.load(Ordering::Relaxed) <= over + evictions_of_this_thread()
                {
                    break;
                }
                // A concurrent eviction has not released its shared blocks yet: retry.
                backoff.wait();
                continue;
            };
            // The victim may have been freed or leased since it was chosen: then choose again.
            if self.evict_one(&victim, None, |_| ()).is_some() {
                return Ok(victim.seq_id);
            }
        }
        Err(PagedKvError::NothingToEvict)
    }

    /// Evicts until utilization is at most `threshold`, or will be when the open steps have ended. Returns
    /// the evicted ids, in order. Takes one pass, or two if it has to evict far more sequences than the
    /// excess blocks suggest: `O(sequences + evicted * log(sequences))`, and time in proportion to the
    /// blocks that open steps hold.
    ///
    /// The steps' blocks are in use until then: [`utilization`](Self::utilization) counts them.
    ///
    /// Under [`EvictionStrategy::StreamingLLM`] sequences are trimmed first, least recently used first.
    /// Whole sequences are evicted only if that was not enough.
    ///
    /// # Errors
    /// [`NothingToEvict`](PagedKvError::NothingToEvict) if utilization is above the threshold and will be
    /// when the open steps end, and nothing could be evicted or trimmed;
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) if `threshold` is not a number.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(10, 16, 1, 1);
    /// for id in 0..10 {
    ///     cache.allocate(SeqId(id), 16)?;
    /// }
    /// assert_eq!(cache.evict_to_threshold(0.8)?, [SeqId(0), SeqId(1)]);
    /// assert_eq!(cache.evict_to_threshold(0.8)?, []);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn evict_to_threshold(&self, threshold: f64) -> Result<Vec<SeqId>> {
        if threshold.is_nan() {
            let reason = "not a number".to_owned();
            return Err(PagedKvError::InvalidConfig { parameter: "threshold", reason });
        }
        let mut evicted = Vec::new();
        let mut pressure = Pressure::new(self, threshold);
        if self.utilization() <= threshold || !pressure.is_above() {
            return Ok(evicted);
        }
        let trimmed = self.trim_to_threshold(&mut pressure);
        let mut order = self.in_order_of_eviction(pressure.excess(), |_| true);
        let mut freeable = None;
        while pressure.is_above() {
            let Some(key) = order.next() else {
                let nothing = evicted.is_empty() && !trimmed;
                return if nothing { Err(PagedKvError::NothingToEvict) } else { Ok(evicted) };
            };
            let id = key.seq_id;
            let all = || self.freeable(|_| true);
            let worth = self.frees_a_block(&key)
                || freeable.get_or_insert_with(all).is_worth_evicting(id, key.epoch);
            if worth && self.evict_one(&key, None, |_| ()).is_some() {
                evicted.push(id);
            }
        }
        Ok(evicted)
    }

    /// Evicts sequences of `worker`, in the strategy's order, until that has freed `need` blocks or no
    /// sequence of the worker could free any. Appends to `out` the evicted sequences and the blocks that
    /// each freed. Returns the sum of these blocks. (Blocks that only open steps hold count as freed: they
    /// are free when the steps end.) A sequence that was given to another worker since it was chosen stays.
    /// Costs as [`evict_to_threshold`](Self::evict_to_threshold).
    ///
    /// # Errors
    /// [`NothingToEvict`](PagedKvError::NothingToEvict) if no sequence was evicted.
    ///
    /// ```
    /// use paged_kv::{Evicted, Worker, PagedKvCache, PagedKvError, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 16, 1, 1);
    /// for id in 0..4 {
    ///     cache.allocate(SeqId(id), 32)?;
    ///     cache.set_worker(SeqId(id), Worker(id as u32 % 2))?;
    /// }
    /// let mut out = Vec::new();
    /// assert_eq!(cache.evict_for(Worker(1), 1, &mut out)?, 2);
    /// assert_eq!(out, [Evicted { seq_id: SeqId(1), blocks: 2 }]);
    /// assert_eq!(cache.touch(SeqId(1)), Err(PagedKvError::SequenceEvicted(SeqId(1))));
    /// assert_eq!(cache.evict_for(Worker(2), 1, &mut out), Err(PagedKvError::NothingToEvict));
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn evict_for(&self, worker: Worker, need: usize, out: &mut Vec<Evicted>) -> Result<usize> {
        let is_of_worker = |tracked: &TrackedSequence| tracked.worker == Some(worker);
        let mut order = self.in_order_of_eviction(need, is_of_worker);
        let (mut freeable, mut evicted, mut freed) = (None, false, 0);
        while freed < need
            && let Some(key) = order.next()
        {
            let id = key.seq_id;
            let all = || self.freeable(is_of_worker);
            let worth = self.frees_a_block(&key)
                || freeable.get_or_insert_with(all).is_worth_evicting(id, key.epoch);
            let count = |tracked: &TrackedSequence| tracked.sequence().num_blocks_given_up();
            if worth && let Some(blocks) = self.evict_one(&key, Some(worker), count) {
                out.push(Evicted { seq_id: id, blocks });
                (evicted, freed) = (true, freed + blocks);
            }
        }
        if evicted || need == 0 { Ok(freed) } else { Err(PagedKvError::NothingToEvict) }
    }

    /// Trims sequences by the strategy, in the order of eviction. Returns true if that released any tokens.
    fn trim_to_threshold(&self, pressure: &mut Pressure<'_>) -> bool {
        let EvictionStrategy::StreamingLLM { sink_tokens, window_tokens } = self.eviction_strategy
        else {
            return false;
        };
        let mut order = self.eviction_keys(|_| true);
        order.sort_unstable();
        let mut trimmed = false;
        for key in order {
            trimmed |= self.trim_one(&key, sink_tokens, window_tokens);
            if !pressure.is_above() {
                break;
            }
        }
        trimmed
    }

    /// Trims the sequence that was chosen, and no other. Returns true if that released any tokens.
    fn trim_one(&self, key: &EvictionKey, sink_tokens: usize, window_tokens: usize) -> bool {
        let trim =
            |sequence: &mut Sequence| sequence.apply_streaming_llm(sink_tokens, window_tokens);
        let given_up = self.trim_unleased(key.seq_id, Some(key.epoch), trim);
        given_up.and_then(|tokens| tokens).is_ok_and(|tokens| tokens > 0)
    }
}
