//! `StoreTicket`: copies of contents from the device to a tier, which the caller makes and then reports.

use super::contents::TierContents;
use super::{CopyOutcome, TicketNumber, TierId, TierSlot, TierState};
use crate::error::{PagedKvError, Result};
use crate::id::BlockId;
use crate::pool::content_key::ContentKey;
use crate::prefix::{BlockHash, Generation};
use crate::sync::PlainArc;
use crate::table::BlockTable;

/// One content to copy from a block of the device to a slot of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Store {
    /// The block to copy from.
    pub src: BlockId,
    /// The slot to copy to.
    pub dst: TierSlot,
    /// The hash of the content.
    pub hash: BlockHash,
}

/// Copies from the device to a tier, which the caller makes and then reports with [`complete`](Self::complete).
///
/// The ticket owns the blocks and the slots, so that neither gets another content before it is settled. A ticket that is
/// dropped counts as failed: none of its contents is in the tier.
///
/// ```
/// use paged_kv::{CopyOutcome, PagedKvCache, SeqId, Tier, TierId};
///
/// let cache = PagedKvCache::builder().num_blocks(4).block_size(4).tier(Tier::host(8)).build()?;
/// let prompt = cache.prompt(&[7; 9]);
/// cache.admit(SeqId(1), &[7; 9])?;
/// cache.commit(SeqId(1), 9)?;
/// let ticket = cache.tiers().store(TierId(0), prompt.hashes())?.expect("two contents");
/// assert_eq!(ticket.stores().len(), 2);
/// // .. copy each of them ..
/// assert_eq!(ticket.complete(&[CopyOutcome::Done, CopyOutcome::Done])?, 2);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[must_use = "a ticket that is dropped counts as failed"]
pub struct StoreTicket {
    state: PlainArc<TierState>,
    number: TicketNumber,
    tier: TierId,
    stores: Vec<Store>,
    keys: Vec<ContentKey>,
    generation: Generation,
    /// One owner of each source.
    sources: BlockTable,
    /// The slots, which the ticket alone owns.
    targets: BlockTable,
}

/// The contents of a ticket to be: sources that the caller owns.
pub(crate) struct ToStore {
    pub(crate) hashes: Vec<BlockHash>,
    pub(crate) keys: Vec<ContentKey>,
    pub(crate) sources: BlockTable,
}

impl StoreTicket {
    /// Creates a ticket for contents that it has claimed. `None` if the tier has no room for them.
    pub(crate) fn new(
        state: &PlainArc<TierState>,
        number: TicketNumber,
        tier: TierId,
        generation: Generation,
        contents: ToStore,
    ) -> Option<Self> {
        let ToStore { hashes, keys, sources } = contents;
        let of_tier = state.tier(tier).expect("the caller has checked the tier");
        let leave = || keys.iter().for_each(|&key| state.in_flight.leave(key, number));
        let Some(targets) = of_tier.take(hashes.len()) else {
            of_tier.counts.dropped.add(hashes.len() as u64);
            leave();
            return None;
        };
        let pairs = sources.as_slice().iter().zip(targets.as_slice()).zip(&hashes);
        let stores = pairs.map(|((&src, slot), &hash)| Store {
            src,
            dst: TierSlot { tier, slot: slot.0 },
            hash,
        });
        let (stores, state) = (stores.collect(), PlainArc::clone(state));
        Some(Self { state, number, tier, stores, keys, generation, sources, targets })
    }

    /// Returns the copies to make, in any order.
    pub fn stores(&self) -> &[Store] {
        &self.stores
    }

    /// Returns the number of the ticket, by which [`Tiers::quiesced`](crate::Tiers::quiesced) ends its quarantine.
    pub fn number(&self) -> TicketNumber {
        self.number
    }

    /// Reports the outcome of each copy, in the order of [`stores`](Self::stores). The contents that are done can be
    /// loaded from the tier when this returns, unless the cache was reset since the ticket was made. The slots of failed
    /// copies stay in quarantine. Returns the number of contents that are done.
    ///
    /// # Errors
    /// [`BufferSize`](PagedKvError::BufferSize) if there is not one outcome a copy; all count as failed then.
    pub fn complete(self, outcomes: &[CopyOutcome]) -> Result<usize> {
        let (required, actual) = (self.stores.len(), outcomes.len());
        if required != actual {
            return Err(PagedKvError::BufferSize { buffer: "outcomes", required, actual });
        }
        Ok(self.settle(outcomes))
    }

    fn settle(mut self, outcomes: &[CopyOutcome]) -> usize {
        self.settle_all(outcomes)
    }

    /// Publishes the contents that are done; gives the claims and the sources back; keeps the slots of the others.
    fn settle_all(&mut self, outcomes: &[CopyOutcome]) -> usize {
        let tier = self.contents();
        let is_done = |at: &usize| outcomes.get(*at) == Some(&CopyOutcome::Done);
        let done: Vec<usize> = (0..self.stores.len()).filter(is_done).collect();
        let slot = |at: &usize| self.targets.as_slice()[*at];
        let ids: Vec<BlockId> = done.iter().map(slot).collect();
        let hashes: Vec<BlockHash> = done.iter().map(|&at| self.stores[at].hash).collect();
        tier.publish(&ids, &hashes, self.generation);
        tier.counts.stored.add(done.len() as u64);
        tier.counts.failed.add((self.stores.len() - done.len()) as u64);
        // After the publication: a thread that misses the content among these finds it in the tier.
        self.keys.drain(..).for_each(|key| self.state.in_flight.leave(key, self.number));
        let targets = std::mem::replace(&mut self.targets, self.sources.new_sibling());
        let (of_done, of_failed) = split(targets, |at| is_done(&at));
        drop(of_done);
        self.state.quarantine.keep(self.number, of_failed);
        self.stores.clear();
        done.len()
    }

    fn contents(&self) -> &TierContents {
        self.state.tier(self.tier).expect("the tier of a ticket is there")
    }
}

/// Splits the blocks of a table, which it owns by their words, into those for which `is_first` returns true of their
/// places, and the others. Both keep the order: of blocks that are released together, the last is given up first.
pub(crate) fn split(
    table: BlockTable,
    is_first: impl Fn(usize) -> bool,
) -> (BlockTable, BlockTable) {
    let (mut first, mut second) = (table.new_sibling(), table.new_sibling());
    // Blocks leave a table at its end.
    let mut reversed = table.new_sibling();
    let mut table = table;
    for _ in 0..table.len() {
        reversed.grow_from(&mut table, 1);
    }
    for at in 0..reversed.len() {
        let to = if is_first(at) { &mut first } else { &mut second };
        to.grow_from(&mut reversed, 1);
    }
    (first, second)
}

impl Drop for StoreTicket {
    fn drop(&mut self) {
        if !self.stores.is_empty() {
            self.settle_all(&[]);
        }
    }
}

impl std::fmt::Debug for StoreTicket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreTicket")
            .field("number", &self.number)
            .field("stores", &self.stores)
            .finish_non_exhaustive()
    }
}
