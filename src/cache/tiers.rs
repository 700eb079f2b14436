//! [`Tiers`]: the operations of one cache on the tiers below the device.
//!
//! It is a view that borrows the cache and holds nothing.

pub(crate) mod load;

use std::ops::Range;

use self::load::{Load, LoadTicket};
use super::PagedKvCache;
use super::admission::Admission;
use super::admission::options::AdmitOptions;
use super::admission::prompt::Prompt;
use super::reuse::cached_sequence::CachedSequence;
use super::step::Step;
use crate::error::{PagedKvError, Result};
use crate::id::{BlockId, SeqId};
use crate::prefix::{BlockHash, Generation, Overwritten};
use crate::sync::PlainArc;
use crate::table::BlockTable;
use crate::tier::store::{StoreTicket, ToStore};
use crate::tier::{TicketNumber, TierId, TierState};

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
    /// Another ticket loads a content of this prompt, or stores one that the device has lost. Nothing is held: admit
    /// again when that ticket is settled, in the next step of the scheduler for example.
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
    /// following ones it has ready, each from where the one before ends. Holds and writes nothing.
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
        LoadTicket::admit(self.cache, self.state()?, prompt, options, limit)
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

    /// Returns a ticket to store contents that are cached on the device in a tier, or `None` if none of them is to be
    /// stored: the tier has them, another ticket stores them, the device has them no more, or the tier has no room for
    /// all of them. The ticket is for all that are left, never for a part of these.
    ///
    /// # Errors
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) for a tier that the cache does not have.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, Tier, TierId};
    ///
    /// let cache = PagedKvCache::builder().num_blocks(8).tier(Tier::host(16)).build()?;
    /// let prompt = cache.prompt(&[7; 40]);
    /// assert!(cache.tiers().store(TierId(0), prompt.hashes())?.is_none()); // none is cached
    /// assert!(cache.tiers().store(TierId(1), prompt.hashes()).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn store(self, tier: TierId, hashes: &[BlockHash]) -> Result<Option<StoreTicket>> {
        let state = self.state()?;
        state.tier(tier)?;
        let generation = self.cache.published().generation();
        Ok(self.store_from(state, tier, generation, hashes, |at, ids| {
            self.cache.acquire_one(hashes[at], generation, ids)
        }))
    }

    /// Returns a ticket to store the contents that a step is about to overwrite; see [`Step::overwritten`]. Make the
    /// copies before the kernels of the step are launched, and settle the ticket before the step ends. `None` as
    /// [`store`](Self::store) says.
    ///
    /// # Errors
    /// As [`store`](Self::store).
    ///
    /// ```
    /// use paged_kv::{CopyOutcome, PagedKvCache, SeqId, Tier, TierId};
    ///
    /// let cache = PagedKvCache::builder().num_blocks(2).block_size(4).tier(Tier::host(8)).build()?;
    /// let prompt = cache.prompt(&[7; 9]);
    /// cache.admit(SeqId(1), &[7; 5])?;
    /// cache.commit(SeqId(1), 5)?;
    /// cache.free(SeqId(1))?;
    /// let mut rows = [(cache.allocate_sequence(0)?, 8)];
    /// let mut step = cache.step(Default::default());
    /// assert_eq!(step.grow(&mut rows)?.grown_rows, 1); // over the cached block
    /// let ticket = cache.tiers().store_overwritten(TierId(0), &step)?.expect("one content");
    /// assert_eq!(ticket.complete(&[CopyOutcome::Done])?, 1); // after the copy
    /// assert_eq!(cache.tiers().lookup(&prompt), vec![0, 4]);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn store_overwritten(self, tier: TierId, step: &Step) -> Result<Option<StoreTicket>> {
        let state = self.state()?;
        state.tier(tier)?;
        step.refuse_other(self.cache)?;
        // From the content that was used last, as from the head of a chain: the tier then gives up the others first.
        let lost: Vec<Overwritten> = step.overwritten().iter().rev().copied().collect();
        let hashes: Vec<BlockHash> = lost.iter().map(|lost| lost.hash).collect();
        let pool = self.cache.pool.blocks();
        // The contents are of the generation in which the step began.
        Ok(self.store_from(state, tier, step.generation(), &hashes, |at, ids| {
            // The row owns the block; the ticket does too until the copy is made.
            let is_held = pool.retain(lost[at].block).is_ok();
            ids.extend(is_held.then_some(lost[at].block));
            is_held
        }))
    }

    /// Claims the contents that are to be stored, and acquires their sources by `acquire`.
    fn store_from(
        self,
        state: &PlainArc<TierState>,
        tier: TierId,
        of_device: Generation,
        hashes: &[BlockHash],
        acquire: impl Fn(usize, &mut Vec<BlockId>) -> bool,
    ) -> Option<StoreTicket> {
        let of_tier = state.tier(tier).ok()?;
        let generation = of_tier.generation_like(of_device)?;
        if state.quarantine.is_full() {
            return None;
        }
        let number = state.next_ticket();
        let (mut stored, mut keys, mut ids) = (Vec::new(), Vec::new(), Vec::new());
        // This call pins the contents that the tier has, so that the tier gives none of them up for the others.
        let mut kept = Vec::new();
        let mut has = |hash: BlockHash| {
            let len = kept.len();
            of_tier.pin(&[hash], generation, &mut kept);
            kept.len() > len
        };
        for (at, &hash) in hashes.iter().enumerate() {
            let key = of_device.key_of(hash);
            if has(hash) || !state.in_flight.claim(key, number) {
                continue;
            }
            // Looked up again: the copy of another ticket may have been published before the claim.
            if has(hash) || !acquire(at, &mut ids) {
                state.in_flight.leave(key, number);
                continue;
            }
            stored.push(hash);
            keys.push(key);
        }
        let _kept = of_tier.table_of(kept);
        let sources = BlockTable::of_owned(ids, self.cache.pool.handle());
        if stored.is_empty() {
            return None;
        }
        let contents = ToStore { hashes: stored, keys, sources };
        StoreTicket::new(state, number, tier, generation, contents)
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
    /// assert_eq!(cache.stats().tiers[0].quarantined, 1);
    /// assert_eq!(cache.tiers().quiesced(number), 1);
    /// assert_eq!(cache.tiers().quiesced(number), 0);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn quiesced(self, ticket: TicketNumber) -> usize {
        self.cache.tiers.as_ref().map_or(0, |state| state.quarantine.release(ticket))
    }
}

/// Returns the loads of a ticket as runs of neighbouring blocks and slots.
pub(in crate::cache) fn runs_of(loads: &[Load]) -> Vec<(Load, usize)> {
    let mut runs: Vec<(Load, usize)> = Vec::new();
    for &load in loads {
        match runs.last_mut() {
            Some((first, len))
                if first.src.tier == load.src.tier
                    && first.src.slot + *len as u32 == load.src.slot
                    && first.dst.0 + *len as u32 == load.dst.0 =>
            {
                *len += 1;
            }
            _ => runs.push((load, 1)),
        }
    }
    runs
}
