//! [`Tiers`]: the operations of one cache on the tiers below the device.
//!
//! It is a view that borrows the cache and holds nothing.

pub(crate) mod load;
pub(crate) mod namespace;
pub(crate) mod overwriting;
pub(crate) mod restore;
pub(crate) mod storing;

use std::ops::Range;

use self::load::LoadTicket;
use super::PagedKvCache;
use super::admission::Admission;
use super::admission::options::AdmitOptions;
use super::admission::prompt::Prompt;
use super::reuse::cached_sequence::CachedSequence;
use crate::error::{PagedKvError, Result};
use crate::id::SeqId;
use crate::sync::PlainArc;
use crate::tier::{TicketNumber, TierState};

/// The operations of one cache on the tiers below the device. [`PagedKvCache::tiers`] creates it.
///
/// ```
/// use paged_kv::{AdmitOptions, CopyOutcome, LoadLimit, PagedKvCache, Tier, TierAdmission, TierId};
///
/// let cache = PagedKvCache::builder().num_blocks(4).block_size(4).tier(Tier::host(8)).build()?;
/// let (prompt, options) = (cache.prompt(&[7; 9]), AdmitOptions::default());
/// let (mut first, _) = cache.admit_sequence(&prompt, &options)?;
/// first.commit(9)?;
/// let ticket = cache.tiers().store(TierId(0), prompt.hashes())?.expect("two contents");
/// ticket.complete(&[CopyOutcome::Done; 2])?; // after the copies
/// drop(first);
/// cache.prefix().forget(4); // the device gives the contents up
///
/// let admitted = cache.tiers().admit(&prompt, &options, LoadLimit::default())?;
/// let TierAdmission::Loading(ticket) = admitted else { panic!("it is in the tier") };
/// assert_eq!(ticket.loads().len(), 2);
/// let loaded = ticket.complete(&[CopyOutcome::Done; 2])?; // after the copies
/// assert_eq!(loaded.admission.cached_tokens, 8);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Copy)]
pub struct Tiers<'a> {
    cache: &'a PagedKvCache,
}

/// The most that an admission loads from tiers.
///
/// ```
/// use paged_kv::LoadLimit;
///
/// // 1 GB/s into blocks of 2 MB, and 10,000 tokens/s computed, in blocks of 16: loading is three times slower.
/// assert_eq!(LoadLimit::if_faster(500.0, 10_000.0, 16), LoadLimit::none());
/// assert_eq!(LoadLimit::if_faster(2_000.0, 10_000.0, 16), LoadLimit::default());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadLimit {
    least: usize,
    most: usize,
}

impl Default for LoadLimit {
    /// Loads every content that is ready.
    fn default() -> Self {
        Self { least: 1, most: usize::MAX }
    }
}

impl LoadLimit {
    /// Loads nothing.
    ///
    /// ```
    /// assert_eq!(paged_kv::LoadLimit::none(), paged_kv::LoadLimit::blocks(1..0));
    /// ```
    pub fn none() -> Self {
        Self { least: 1, most: 0 }
    }

    /// Loads at most `range.end` blocks, and none if fewer than `range.start` are ready: a transfer of a few blocks may
    /// cost more than computing them.
    ///
    /// ```
    /// assert_ne!(paged_kv::LoadLimit::blocks(4..64), paged_kv::LoadLimit::default());
    /// ```
    pub fn blocks(range: Range<usize>) -> Self {
        Self { least: range.start.max(1), most: range.end }
    }

    /// Loads every content that is ready if loading blocks is faster than computing their tokens, and nothing otherwise.
    ///
    /// ```
    /// use paged_kv::LoadLimit;
    ///
    /// assert_eq!(LoadLimit::if_faster(1_000.0, 8_000.0, 16), LoadLimit::default());
    /// ```
    pub fn if_faster(blocks_per_second: f64, tokens_per_second: f64, block_size: usize) -> Self {
        match blocks_per_second * block_size as f64 > tokens_per_second {
            true => Self::default(),
            false => Self::none(),
        }
    }

    fn allows(self, blocks: usize) -> usize {
        if blocks < self.least { 0 } else { blocks.min(self.most) }
    }
}

/// The outcome of an admission through tiers.
#[derive(Debug)]
#[non_exhaustive]
pub enum TierAdmission {
    /// No content is loaded: as [`PagedKvCache::admit_sequence`].
    Ready(CachedSequence, Admission),
    /// Contents are to be loaded. The ticket has the sequence until it is settled.
    Loading(LoadTicket),
    /// Another ticket loads a content of this prompt, or copies one from a place that has lost it since. Nothing is held:
    /// admit again when that ticket is settled, in the next step of the scheduler for example. A copy that a mover has
    /// staged, and writes to a slow medium, keeps no request waiting.
    Pending,
}

/// # Tiers
impl PagedKvCache {
    /// Returns the view on the tiers below the device.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, Tier};
    ///
    /// let cache = PagedKvCache::builder().num_blocks(8).tier(Tier::host(16)).build()?;
    /// assert_eq!(cache.tiers().lookup(&cache.prompt(&[7; 40])), vec![0, 0]); // device, host
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn tiers(&self) -> Tiers<'_> {
        Tiers { cache: self }
    }
}

impl<'a> Tiers<'a> {
    fn state(self) -> Result<&'a PlainArc<TierState>> {
        self.cache.tiers.as_ref().ok_or_else(|| {
            let reason = "the cache has no tier".to_owned();
            PagedKvError::InvalidConfig { parameter: "tier", reason }
        })
    }

    /// Returns how many tokens of a prompt, from the first on, are on the device, and then for each tier how many of the
    /// following ones it has ready, each from where the one before ends. Holds and writes nothing. With groups of layers:
    /// how far the joint hit reaches on the device, and how much farther with each further tier.
    ///
    /// ```
    /// use paged_kv::{CopyOutcome, PagedKvCache, SeqId, Tier, TierId};
    ///
    /// let cache = PagedKvCache::builder().num_blocks(8).block_size(4).tier(Tier::host(8)).build()?;
    /// let prompt = cache.prompt(&[7; 9]);
    /// cache.admit(SeqId(1), &[7; 9])?;
    /// cache.commit(SeqId(1), 9)?;
    /// let ticket = cache.tiers().store(TierId(0), prompt.hashes())?.unwrap();
    /// ticket.complete(&[CopyOutcome::Done; 2])?;
    /// assert_eq!(cache.tiers().lookup(&prompt), vec![8, 0]);
    /// cache.free(SeqId(1))?;
    /// cache.prefix().forget(8);
    /// assert_eq!(cache.tiers().lookup(&prompt), vec![0, 8]);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn lookup(self, prompt: &Prompt) -> Vec<usize> {
        let cache = self.cache;
        let on_device = cache.prefix().probe(prompt);
        if let (Some(layout), Some(state)) = (cache.layout(), &cache.tiers) {
            return load::lookup_groups(cache, state, layout, prompt, on_device);
        }
        let most = AdmitOptions::default().most_hits(prompt, cache.block_size);
        let mut rest = &prompt.hashes()[(on_device / cache.block_size).min(most)..most];
        let mut found = vec![on_device];
        for tier in cache.tiers.iter().flat_map(|state| state.tiers.iter()) {
            let ready = tier.probe(rest);
            found.push(ready * cache.block_size);
            rest = &rest[ready..];
        }
        found
    }

    /// Admits a prompt as [`PagedKvCache::admit_sequence`] does, and lets the contents that are ready in tiers be loaded,
    /// as far as `limit` allows. [`PagedKvCache::admit_sequence`] itself loads nothing.
    ///
    /// # Errors
    /// As [`PagedKvCache::admit_sequence`]; [`InvalidConfig`](PagedKvError::InvalidConfig) for a cache without tiers.
    /// Nothing has changed then.
    ///
    /// ```
    /// use paged_kv::{AdmitOptions, LoadLimit, PagedKvCache, Tier, TierAdmission};
    ///
    /// let cache = PagedKvCache::builder().num_blocks(8).tier(Tier::host(16)).build()?;
    /// let prompt = cache.prompt(&[7; 40]);
    /// let admitted = cache.tiers().admit(&prompt, &AdmitOptions::default(), LoadLimit::default())?;
    /// assert!(matches!(admitted, TierAdmission::Ready(..))); // no content is in the tier
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn admit(
        self,
        prompt: &Prompt,
        options: &AdmitOptions,
        limit: LoadLimit,
    ) -> Result<TierAdmission> {
        let state = self.state()?;
        let admitted = LoadTicket::admit(self.cache, state, prompt, options, limit)?;
        if matches!(admitted, TierAdmission::Pending) {
            state.pending.add(1);
        }
        Ok(admitted)
    }

    /// Puts an admitted sequence in the map, under an id.
    ///
    /// # Errors
    /// [`SequenceExists`](PagedKvError::SequenceExists); the sequence is freed then.
    ///
    /// ```
    /// use paged_kv::{AdmitOptions, LoadLimit, PagedKvCache, SeqId, Tier, TierAdmission};
    ///
    /// let cache = PagedKvCache::builder().num_blocks(8).tier(Tier::host(16)).build()?;
    /// let (prompt, options) = (cache.prompt(&[7; 40]), AdmitOptions::default());
    /// match cache.tiers().admit(&prompt, &options, LoadLimit::default())? {
    ///     TierAdmission::Ready(sequence, admission) => {
    ///         cache.tiers().insert(SeqId(1), sequence, &admission, &options)?;
    ///     }
    ///     _ => unreachable!("no content is in the tier"),
    /// }
    /// assert_eq!(cache.num_sequences(), 1);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn insert(
        self,
        id: SeqId,
        sequence: CachedSequence,
        admission: &Admission,
        options: &AdmitOptions,
    ) -> Result<()> {
        let cache = self.cache;
        cache.refuse_known(id)?;
        let (tracked, _) = cache.admitted((sequence, admission.clone()), options);
        cache.insert(id, tracked)
    }

    /// Gives back the blocks and slots that the failed copies of a ticket may have written until now. The mover calls it
    /// when none of these copies writes any more. Returns how many there were.
    ///
    /// ```
    /// use paged_kv::{CopyOutcome, PagedKvCache, SeqId, Tier, TierId};
    ///
    /// let cache = PagedKvCache::builder().num_blocks(4).block_size(4).tier(Tier::host(8)).build()?;
    /// let prompt = cache.prompt(&[7; 5]);
    /// cache.admit(SeqId(1), &[7; 5])?;
    /// cache.commit(SeqId(1), 5)?;
    /// let ticket = cache.tiers().store(TierId(0), prompt.hashes())?.unwrap();
    /// let number = ticket.number();
    /// ticket.complete(&[CopyOutcome::Failed])?;
    /// assert_eq!(cache.stats().tiers[0].slots_quarantined, 1);
    /// assert_eq!(cache.tiers().quiesced(number), 1);
    /// assert_eq!(cache.tiers().quiesced(number), 0);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn quiesced(self, ticket: TicketNumber) -> usize {
        self.cache.tiers.as_ref().map_or(0, |state| state.quarantine.release(ticket))
    }
}
