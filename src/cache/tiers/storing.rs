//! Store tickets, for contents that a caller names, that a step or a load is about to overwrite, or that the next
//! allocations would.

use super::Tiers;
use super::overwriting::{Overwriting, OverwrittenBy};
use crate::cache::PagedKvCache;
use crate::error::{PagedKvError, Result};
use crate::id::{BlockId, GroupId};
use crate::pool::Blocks;
use crate::pool::content_key::ContentKey;
use crate::prefix::overwrites::last_content;
use crate::prefix::{BlockHash, Generation};
use crate::sync::PlainArc;
use crate::table::BlockTable;
use crate::tier::contents::TierContents;
use crate::tier::in_flight::Claimed;
use crate::tier::sources::{Sources, UnusedBlocks};
use crate::tier::store::{StoreTicket, ToStore};
use crate::tier::{Place, TicketNumber, TierId, TierSlot, TierState};

/// The place that [`Tiers::store_ahead`] stores contents from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreFrom {
    /// The blocks of the device.
    Device,
    /// The slots of a tier.
    Tier(TierId),
}

impl Tiers<'_> {
    /// Returns a ticket to store contents in a tier that are ready on the device or in another tier, or `None` if none of
    /// them is to be stored: the tier has them, another ticket copies them, no other place has them, they were used too
    /// [few times](crate::Tier::from_use), or the tier has no room for all of them. The ticket is for all that are left,
    /// never for a part of these. With groups of layers, the contents of all groups are meant.
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
        let generation = self.cache.published().generation();
        let Some(mut storing) = Storing::new(self.cache, self.state()?, tier, generation)? else {
            return Ok(None);
        };
        let mut found = FoundPlaces::new(self.cache, self.state()?);
        for group in storing.groups() {
            let mut wanted: Vec<(BlockHash, Claimed)> = Vec::with_capacity(hashes.len());
            for &hash in hashes {
                if storing.counts_enough(hash, group) {
                    wanted.extend(storing.claim(hash, group).map(|claimed| (hash, claimed)));
                }
            }
            storing.reserve(wanted.len());
            let hashes: Vec<BlockHash> = wanted.iter().map(|&(hash, _)| hash).collect();
            let places = found.acquire(&hashes, group, storing.of_device[group.index()], tier);
            for ((hash, claimed), place) in wanted.into_iter().zip(places) {
                storing.add(hash, group, claimed, place);
            }
        }
        Ok(storing.ticket(found.into_sources()))
    }

    /// Returns a ticket to store the contents that a step is about to overwrite (see [`Step::overwritten`](crate::Step::overwritten)), or that the
    /// copies of a [`LoadTicket`](crate::LoadTicket) are. Make the copies of this ticket before the kernels of the step are launched, or
    /// before those of the other ticket; then settle it. `None` as [`store`](Self::store) says.
    ///
    /// # Errors
    /// As [`store`](Self::store); [`WrongCache`](PagedKvError::WrongCache) for a step or a ticket of another cache.
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
    pub fn store_overwritten(
        self,
        tier: TierId,
        by: &impl Overwriting,
    ) -> Result<Option<StoreTicket>> {
        let OverwrittenBy { contents, generation, pool } = by.contents();
        if !self.cache.pool.handle().is_of_same_pool(pool) {
            return Err(PagedKvError::WrongCache { value: "overwritten contents" });
        }
        let Some(mut storing) = Storing::new(self.cache, self.state()?, tier, generation)? else {
            return Ok(None);
        };
        let mut ids = Vec::new();
        // From the content that was used last, as from the head of a chain: the tier then gives up the others first.
        for lost in contents.iter().rev() {
            storing.offer(lost.hash, lost.group, |_| {
                // A row owns the block; the ticket does too until the copy is made.
                pool.retain(lost.block).ok()?;
                ids.push(lost.block);
                Some(Place::Device(lost.block))
            });
        }
        let blocks = BlockTable::of_owned(ids, self.cache.pool.handle());
        Ok(storing.ticket(Sources::new(blocks, Vec::new())))
    }

    /// Returns a ticket to store contents ahead of need: those that the next `ahead` blocks would overwrite if they were
    /// taken now, from the device or in a tier, as many of them as the target has room for. The contents do not become
    /// younger by that. Called once a step, with as
    /// many blocks as a step takes at most, it leaves little to [`store_overwritten`](Self::store_overwritten). `None` as
    /// [`store`](Self::store) says. Costs a claim of each home shard and a look at up to `ahead` contents of each.
    ///
    /// The ticket has the blocks until it is settled. So allocations pass over them, and fail sooner if no other blocks
    /// are left.
    ///
    /// # Errors
    /// As [`store`](Self::store), for both tiers, and if they are the same.
    ///
    /// ```
    /// use paged_kv::{CopyOutcome, PagedKvCache, SeqId, StoreFrom, Tier, TierId};
    ///
    /// let cache = PagedKvCache::builder().num_blocks(4).block_size(4).tier(Tier::host(8)).build()?;
    /// cache.admit(SeqId(1), &[7; 9])?;
    /// cache.commit(SeqId(1), 9)?;
    /// cache.free(SeqId(1))?; // two cached blocks, two free ones
    /// let tiers = cache.tiers();
    /// assert!(tiers.store_ahead(StoreFrom::Device, TierId(0), 2)?.is_none());
    /// let ticket = tiers.store_ahead(StoreFrom::Device, TierId(0), 3)?.expect("one content");
    /// ticket.complete(&[CopyOutcome::Done])?;
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn store_ahead(
        self,
        from: StoreFrom,
        to: TierId,
        ahead: usize,
    ) -> Result<Option<StoreTicket>> {
        let (cache, state) = (self.cache, self.state()?);
        let of_device = cache.published().generation();
        let Some(mut storing) = Storing::new(cache, state, to, of_device)? else {
            return Ok(None);
        };
        let (pool, generations) = match from {
            StoreFrom::Tier(same) if same == to => {
                let reason = format!("{} is both the source and the target", same.0);
                return Err(PagedKvError::InvalidConfig { parameter: "tier", reason });
            }
            StoreFrom::Device => {
                let of_group = |group| cache.published().of_group(of_device, group);
                (cache.pool.handle(), storing.groups().map(of_group).collect::<Vec<_>>())
            }
            StoreFrom::Tier(above) => {
                let above = state.tier(above)?;
                let Some(of_tier) = above.generation_like(of_device) else { return Ok(None) };
                let of_group = |group| above.of_group(of_tier, group);
                (above.pool().handle(), storing.groups().map(of_group).collect())
            }
        };
        let blocks: &Blocks = &pool;
        let (mut unused, room) = (UnusedBlocks::new(pool.clone()), storing.of_tier.room());
        for aged in blocks.list_oldest(ahead.saturating_sub(blocks.num_free())) {
            let Some((group, hash)) = last_content(aged.id, &generations, blocks) else { continue };
            if storing.contents.len() == room {
                break;
            }
            if storing.has(hash, group) {
                continue;
            }
            let key = generations[group.index()].key_of(hash);
            storing.offer(hash, group, |_| {
                let place = match from {
                    StoreFrom::Device => Place::Device(aged.id),
                    StoreFrom::Tier(tier) => Place::Tier(TierSlot { tier, slot: aged.id.0 }),
                };
                unused.acquire(aged, key).then_some(place)
            });
        }
        let ticket = storing.ticket(Sources::unused(cache.pool.handle(), unused));
        Ok(ticket.map(StoreTicket::oldest_first))
    }
}

/// A ticket to be: contents that it has claimed. The claims are given back with it.
struct Storing<'a> {
    state: &'a PlainArc<TierState>,
    tier: TierId,
    of_tier: &'a TierContents,
    number: TicketNumber,
    /// The generations of the groups on the device.
    of_device: Vec<Generation>,
    /// The generation in the tier.
    generation: Generation,
    contents: Vec<(BlockHash, GroupId, Place)>,
    keys: Vec<Claimed>,
    /// Slots of contents that the tier has, pinned so that it gives none of them up for the others.
    kept: Vec<BlockId>,
}

impl<'a> Storing<'a> {
    /// Returns `None` if no ticket can be made now: a reset is under way, or too much is in quarantine.
    fn new(
        cache: &PagedKvCache,
        state: &'a PlainArc<TierState>,
        tier: TierId,
        of_device: Generation,
    ) -> Result<Option<Self>> {
        let of_tier = state.tier(tier)?;
        let Some(generation) = of_tier.generation_like(of_device) else { return Ok(None) };
        if state.quarantine.is_full() {
            return Ok(None);
        }
        let of_groups = |layout: &crate::groups::GroupLayout| {
            layout.ids().map(|group| cache.published().of_group(of_device, group)).collect()
        };
        Ok(Some(Self {
            state,
            tier,
            of_tier,
            number: state.next_ticket(),
            of_device: cache.layout().map_or_else(|| vec![of_device], |layout| of_groups(layout)),
            generation,
            contents: Vec::new(),
            keys: Vec::new(),
            kept: Vec::new(),
        }))
    }

    fn groups(&self) -> impl Iterator<Item = GroupId> + use<> {
        (0..self.of_device.len() as u8).map(GroupId)
    }

    fn key_of(&self, hash: BlockHash, group: GroupId) -> ContentKey {
        self.of_device[group.index()].key_of(hash)
    }

    /// Counts a use of a content. Returns true if that suffices to store it.
    fn counts_enough(&self, hash: BlockHash, group: GroupId) -> bool {
        self.of_tier.count_use(self.key_of(hash, group))
    }

    /// Returns true if the tier has the content. It does not become younger.
    fn has(&self, hash: BlockHash, group: GroupId) -> bool {
        self.of_tier.has(hash, self.of_tier.of_group(self.generation, group))
    }

    /// Pins the content if the tier has it.
    fn keep(&mut self, hash: BlockHash, group: GroupId) -> bool {
        // Mostly the tier has it not. To see that takes no claim.
        if !self.has(hash, group) {
            return false;
        }
        let (len, generation) = (self.kept.len(), self.of_tier.of_group(self.generation, group));
        self.of_tier.pin(&[hash], generation, &mut self.kept);
        self.kept.len() > len
    }

    /// Adds a content, unless the tier has it or another ticket copies it. `acquire` takes the generation of its group on
    /// the device, and makes the caller an owner of the place that has it.
    fn offer(
        &mut self,
        hash: BlockHash,
        group: GroupId,
        acquire: impl FnOnce(Generation) -> Option<Place>,
    ) {
        if let Some(claimed) = self.claim(hash, group) {
            let place = acquire(self.of_device[group.index()]);
            self.add(hash, group, claimed, place);
        }
    }

    /// Claims a content, unless the tier has it or another ticket copies it.
    fn claim(&mut self, hash: BlockHash, group: GroupId) -> Option<Claimed> {
        if self.keep(hash, group) {
            return None;
        }
        let key = self.key_of(hash, group);
        let claimed = self.state.storing.claim(key)?;
        // Looked up again: the copy of another ticket may have been staged or published before the claim.
        if self.state.staged.has(key) || self.keep(hash, group) {
            self.state.storing.leave(claimed);
            return None;
        }
        Some(claimed)
    }

    /// Makes room for so many contents more.
    fn reserve(&mut self, contents: usize) {
        self.contents.reserve(contents);
        self.keys.reserve(contents);
    }

    /// Adds a content that was claimed, if there is a place to copy it from.
    fn add(&mut self, hash: BlockHash, group: GroupId, claimed: Claimed, place: Option<Place>) {
        match place {
            None => self.state.storing.leave(claimed),
            Some(place) => {
                self.contents.push((hash, group, place));
                self.keys.push(claimed);
            }
        }
    }

    /// Returns the ticket, with an owner of each place.
    fn ticket(mut self, sources: Sources) -> Option<StoreTicket> {
        let contents = std::mem::take(&mut self.contents);
        if contents.is_empty() {
            return None;
        }
        let contents = ToStore { contents, keys: std::mem::take(&mut self.keys) };
        StoreTicket::new(self.state, self.number, self.tier, self.generation, contents, sources)
    }
}

impl Drop for Storing<'_> {
    fn drop(&mut self) {
        self.keys.drain(..).for_each(|claimed| self.state.storing.leave(claimed));
        drop(self.of_tier.table_of(std::mem::take(&mut self.kept)));
    }
}

/// Owners of the places where contents were found.
struct FoundPlaces<'a> {
    cache: &'a PagedKvCache,
    state: &'a TierState,
    blocks: Vec<BlockId>,
    slots: Vec<Vec<BlockId>>,
}

impl<'a> FoundPlaces<'a> {
    fn new(cache: &'a PagedKvCache, state: &'a TierState) -> Self {
        let slots = state.tiers.iter().map(|_| Vec::new()).collect();
        Self { cache, state, blocks: Vec::new(), slots }
    }

    /// Becomes an owner of each content on the device, or else in a tier other than `except`.
    fn acquire(
        &mut self,
        hashes: &[BlockHash],
        group: GroupId,
        of_device: Generation,
        except: TierId,
    ) -> Vec<Option<Place>> {
        let (published, mut found) = (self.cache.published(), Vec::with_capacity(hashes.len()));
        published.acquire_each(self.cache.pool.blocks(), hashes, of_device, &mut found);
        self.blocks.reserve(found.len());
        self.blocks.extend(found.iter().flatten());
        let place = |(&hash, block): (&BlockHash, &Option<BlockId>)| {
            block.map(Place::Device).or_else(|| self.acquire_below(hash, group, of_device, except))
        };
        hashes.iter().zip(&found).map(place).collect()
    }

    fn acquire_below(
        &mut self,
        hash: BlockHash,
        group: GroupId,
        of_device: Generation,
        except: TierId,
    ) -> Option<Place> {
        for ((tier, id), slots) in self.state.tiers.iter().zip(0..).zip(&mut self.slots) {
            let (Some(of_tier), true) = (tier.generation_like(of_device), TierId(id) != except)
            else {
                continue;
            };
            let len = slots.len();
            tier.pin(&[hash], tier.of_group(of_tier, group), slots);
            if let Some(slot) = slots.get(len) {
                return Some(Place::Tier(TierSlot { tier: TierId(id), slot: slot.0 }));
            }
        }
        None
    }

    fn into_sources(self) -> Sources {
        let blocks = BlockTable::of_owned(self.blocks, self.cache.pool.handle());
        let of_tiers = self.state.tiers.iter().zip(0..).zip(self.slots);
        let slots = of_tiers.map(|((tier, id), slots)| (TierId(id), tier.table_of(slots)));
        Sources::new(blocks, slots.collect())
    }
}
