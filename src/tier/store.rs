//! `StoreTicket`: copies of contents to a tier, which the caller makes and then reports.

use super::contents::TierContents;
use super::in_flight::Claimed;
use super::sources::{Sources, forget_lost};
use super::{CopyOutcome, Place, TicketNumber, TierId, TierSlot, TierState};
use crate::error::{PagedKvError, Result};
use crate::id::{BlockId, GroupId};
use crate::prefix::{BlockHash, Generation};
use crate::sync::PlainArc;
use crate::table::BlockTable;

/// One content to copy to a slot of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Store {
    /// The block or slot to copy from.
    pub src: Place,
    /// The slot to copy to.
    pub dst: TierSlot,
    /// The hash of the content.
    pub hash: BlockHash,
    /// The group of layers of the content.
    pub group: GroupId,
}

/// Copies to a tier, from the device or another tier, which the caller makes and then reports with
/// [`complete`](Self::complete).
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
    keys: Vec<Claimed>,
    /// True once the sources were given back: the claims are among the staged ones.
    is_staged: bool,
    generation: Generation,
    /// True if the first content is to be given up first.
    is_oldest_first: bool,
    /// One owner of each source.
    sources: Sources,
    /// The slots, which the ticket alone owns.
    targets: BlockTable,
}

/// Contents that a ticket to be has claimed, each with the place to copy it from.
pub(crate) struct ToStore {
    pub(crate) contents: Vec<(BlockHash, GroupId, Place)>,
    pub(crate) keys: Vec<Claimed>,
}

impl StoreTicket {
    /// Creates a ticket for contents that it has claimed, whose places `sources` owns. `None` if the tier has no room for
    /// them.
    pub(crate) fn new(
        state: &PlainArc<TierState>,
        number: TicketNumber,
        tier: TierId,
        generation: Generation,
        ToStore { contents, keys }: ToStore,
        sources: Sources,
    ) -> Option<Self> {
        let of_tier = state.tier(tier).expect("the caller has checked the tier");
        let Some(targets) = of_tier.take(contents.len()) else {
            of_tier.counts.dropped.add(contents.len() as u64);
            keys.into_iter().for_each(|claimed| state.storing.leave(claimed));
            return None;
        };
        let pairs = contents.iter().zip(targets.as_slice());
        let stores = pairs.map(|(&(hash, group, src), slot)| Store {
            src,
            dst: TierSlot { tier, slot: slot.0 },
            hash,
            group,
        });
        let (stores, state) = (stores.collect(), PlainArc::clone(state));
        let is_oldest_first = false;
        Some(Self {
            state,
            number,
            tier,
            stores,
            keys,
            is_staged: false,
            generation,
            is_oldest_first,
            sources,
            targets,
        })
    }

    /// Lets the tier give up the first of these contents first. By default it is the last one, as of a chain.
    pub(crate) fn oldest_first(mut self) -> Self {
        self.is_oldest_first = true;
        self
    }

    /// Returns the copies to make, in any order.
    pub fn stores(&self) -> &[Store] {
        &self.stores
    }

    /// Returns the copies as runs: the first of each, and the number of neighbouring places of one group of layers that go to
    /// neighbouring slots.
    ///
    /// ```
    /// fn calls_of_the_copy_engine(ticket: &paged_kv::StoreTicket) -> usize {
    ///     ticket.runs().len()
    /// }
    /// ```
    pub fn runs(&self) -> Vec<(Store, usize)> {
        let src = |store: &Store, n| (store.group, store.src.plus(n));
        runs_of(&self.stores, src, |store, n| store.dst.plus(n))
    }

    /// Returns the number of the ticket, by which [`Tiers::quiesced`](crate::Tiers::quiesced) ends its quarantine.
    pub fn number(&self) -> TicketNumber {
        self.number
    }

    /// Returns the number of resets before the contents were computed. A tier that outlives the process keeps it with
    /// each content, because a content from before the last reset must not be found again.
    ///
    /// ```
    /// fn is_older(ticket: &paged_kv::StoreTicket, resets_of_file: u64) -> bool {
    ///     ticket.resets() < resets_of_file
    /// }
    /// ```
    pub fn resets(&self) -> u64 {
        self.generation.number()
    }

    /// Returns all that is needed to end the quarantine of this ticket after it is settled.
    #[cfg(feature = "tier-store")]
    pub(crate) fn quarantine(&self) -> (PlainArc<TierState>, TicketNumber) {
        (PlainArc::clone(&self.state), self.number)
    }

    /// Gives the sources back, from which the caller has copied. From then on no request waits for the contents, because
    /// the copies may take long.
    #[cfg(feature = "tier-store")]
    pub(crate) fn release_sources(&mut self) {
        if !self.is_staged {
            self.is_staged = true;
            let state = PlainArc::clone(&self.state);
            let staged = self.keys.drain(..).filter_map(|claimed| {
                // Claimed in the second table before it leaves the first, so that no other store begins.
                let staged = state.staged.claim(claimed.key());
                state.storing.leave(claimed);
                staged
            });
            self.keys = staged.collect();
        }
        self.sources.clear();
    }

    /// Reports the outcome of each copy, in the order of [`stores`](Self::stores). The contents that are done can be
    /// loaded from the tier when this returns, unless the cache was reset since the ticket was made. The slots of failed
    /// copies stay in quarantine. Returns the number of contents that are done.
    ///
    /// # Errors
    /// [`BufferSize`](PagedKvError::BufferSize) if there is not one outcome a copy; all count as failed then.
    pub fn complete(mut self, outcomes: &[CopyOutcome]) -> Result<usize> {
        let (required, actual) = (self.stores.len(), outcomes.len());
        if required != actual {
            return Err(PagedKvError::BufferSize { buffer: "outcomes", required, actual });
        }
        Ok(self.settle(outcomes))
    }

    /// Publishes the contents that are done; gives the claims and the sources back; keeps the slots of failed copies.
    fn settle(&mut self, outcomes: &[CopyOutcome]) -> usize {
        let outcome = |at: usize| outcomes.get(at).copied().unwrap_or(CopyOutcome::Failed);
        let count = |of| (0..self.stores.len()).filter(|&at| outcome(at) == of).count() as u64;
        let done = self.publish(|at| outcome(at) == CopyOutcome::Done);
        let counts = &self.contents().counts;
        counts.stored.add(done as u64);
        let from_tiers =
            self.stores.iter().enumerate().filter(|&(at, store)| {
                outcome(at) == CopyOutcome::Done && store.src.slot().is_some()
            });
        counts.stored_from_tiers.add(from_tiers.count() as u64);
        counts.failed.add(count(CopyOutcome::Failed) + count(CopyOutcome::Lost));
        counts.dropped.add(count(CopyOutcome::Skipped));
        let places = self.stores.iter().map(|store| store.src).enumerate();
        let lost = places.filter(|&(at, _)| outcome(at) == CopyOutcome::Lost).map(|(_, src)| src);
        forget_lost(lost, &self.state);
        // After the publication: a thread that misses the content among these finds it in the tier.
        let claims = if self.is_staged { &self.state.staged } else { &self.state.storing };
        self.keys.drain(..).for_each(|claimed| claims.leave(claimed));
        let empty = self.targets.new_sibling();
        let targets = std::mem::replace(&mut self.targets, empty);
        let is_failed = |at| outcome(at) == CopyOutcome::Failed;
        let of_others = if (0..self.stores.len()).any(is_failed) {
            let (of_failed, of_others) = split(targets, is_failed);
            self.state.quarantine.keep(self.number, of_failed);
            of_others
        } else {
            targets
        };
        if self.is_oldest_first {
            let ids = of_others.into_owned_ids().into_iter().rev().collect();
            drop(self.contents().table_of(ids));
        } else {
            drop(of_others);
        }
        self.sources.clear();
        self.stores.clear();
        done
    }

    /// Makes the contents ready whose copies are done. Returns their number.
    fn publish(&self, is_done: impl Fn(usize) -> bool) -> usize {
        let copies = || self.stores.iter().enumerate().filter(|(at, _)| is_done(*at));
        let mut groups: Vec<GroupId> = copies().map(|(_, store)| store.group).collect();
        let num_done = groups.len();
        groups.sort_unstable();
        groups.dedup();
        for group in groups {
            let of_group = copies().filter(|(_, store)| store.group == group);
            let (ids, hashes): (Vec<BlockId>, Vec<BlockHash>) =
                of_group.map(|(_, store)| (BlockId(store.dst.slot), store.hash)).unzip();
            self.contents().publish(group, &ids, &hashes, self.generation);
        }
        num_done
    }

    fn contents(&self) -> &TierContents {
        self.state.tier(self.tier).expect("the tier of a ticket is there")
    }
}

/// Returns copies as runs of neighbours: the first of each, and their number.
pub(crate) fn runs_of<C: Copy, S: PartialEq, D: PartialEq>(
    copies: &[C],
    src: impl Fn(&C, usize) -> S,
    dst: impl Fn(&C, usize) -> D,
) -> Vec<(C, usize)> {
    let mut runs: Vec<(C, usize)> = Vec::new();
    for &copy in copies {
        match runs.last_mut() {
            Some((first, len))
                if src(first, *len) == src(&copy, 0) && dst(first, *len) == dst(&copy, 0) =>
            {
                *len += 1;
            }
            _ => runs.push((copy, 1)),
        }
    }
    runs
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
            self.settle(&[]);
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
