//! Loads in a cache with groups of layers: all contents that the joint hit over the device and the tiers needs, or none.
//!
//! The sequence is made of the hits, with new blocks in the places of contents that are to be loaded. These are published
//! when the copies are done.

use super::super::{LoadLimit, TierAdmission};
use super::{Load, LoadTicket, Loaded, grow_over};
use crate::cache::PagedKvCache;
use crate::cache::admission::options::AdmitOptions;
use crate::cache::admission::prompt::Prompt;
use crate::cache::reuse::cached_sequence::CachedSequence;
use crate::error::{PagedKvError, Result};
use crate::groups::GroupLayout;
use crate::id::{BlockId, GroupId};
use crate::pool::content_key::ContentKey;
use crate::prefix::overwrites::list_overwritten;
use crate::prefix::{Below, BlockHash, Generation, GroupHits, Overwritten, TO_LOAD};
use crate::sync::{Arc, PlainArc};
use crate::table::BlockTable;
use crate::tier::in_flight::Claimed;
use crate::tier::{CopyOutcome, TicketNumber, TierId, TierSlot, TierState};

/// The contents in tiers, of which a ticket pins and claims those that a hit needs.
struct PinnedBelow<'a> {
    cache: &'a PagedKvCache,
    state: &'a TierState,
    number: TicketNumber,
    /// The tiers that are looked up, from the first on.
    num_tiers: usize,
    of_device: Generation,
    /// `None` if nothing is to be loaded.
    limit: Option<LoadLimit>,
    pinned: Vec<(GroupId, BlockHash, TierSlot)>,
    pins: Vec<Vec<BlockId>>,
    keys: Vec<Claimed>,
    /// Another ticket copies a content that was looked for.
    is_pending: bool,
    /// Another ticket has loaded a content since it was looked up.
    is_outdated: bool,
}

impl<'a> PinnedBelow<'a> {
    fn new(
        cache: &'a PagedKvCache,
        state: &'a TierState,
        num_tiers: usize,
        limit: Option<LoadLimit>,
    ) -> Self {
        Self {
            cache,
            state,
            number: state.next_ticket(),
            num_tiers,
            of_device: cache.published().generation(),
            limit,
            pinned: Vec::new(),
            pins: vec![Vec::new(); state.tiers.len()],
            keys: Vec::new(),
            is_pending: false,
            is_outdated: false,
        }
    }

    fn key_of(&self, group: GroupId, hash: BlockHash) -> ContentKey {
        self.cache.published().of_group(self.of_device, group).key_of(hash)
    }

    fn is_ready(&self, group: GroupId, hash: BlockHash) -> bool {
        let tiers = self.state.tiers.iter().take(self.num_tiers);
        let mut of_generation =
            tiers.filter_map(|tier| Some((tier, tier.generation_like(self.of_device)?)));
        of_generation.any(|(tier, generation)| tier.has(hash, tier.of_group(generation, group)))
    }

    /// Returns the tables of the pins.
    fn take_pins(&mut self) -> Vec<(TierId, BlockTable)> {
        let tiers = self.state.tiers.iter().zip(0..).zip(&mut self.pins);
        let tables = tiers.filter(|(_, ids)| !ids.is_empty());
        tables.map(|((tier, id), ids)| (TierId(id), tier.table_of(std::mem::take(ids)))).collect()
    }
}

impl Below for PinnedBelow<'_> {
    fn is_open(&self) -> bool {
        self.limit.is_some()
    }

    fn has(&mut self, group: GroupId, hash: BlockHash) -> bool {
        if self.limit.is_none() {
            return false;
        }
        if self.is_ready(group, hash) {
            return true;
        }
        if self.state.copies(self.key_of(group, hash)) {
            self.is_pending = true;
            return false;
        }
        // Looked up again: a store may have published it after the first look, and left before the second.
        self.is_ready(group, hash)
    }

    fn allows(&mut self, blocks: usize) -> bool {
        if self.limit.is_some_and(|limit| limit.allows(blocks) < blocks) {
            self.limit = None;
        }
        self.limit.is_some()
    }

    fn pin(&mut self, group: GroupId, hash: BlockHash) -> bool {
        let key = self.key_of(group, hash);
        for ((tier, id), ids) in self.state.tiers.iter().zip(0..).zip(&mut self.pins) {
            let Some(generation) = tier.generation_like(self.of_device) else { continue };
            let (len, generation) = (ids.len(), tier.of_group(generation, group));
            tier.pin(&[hash], generation, ids);
            let Some(&pinned) = ids.get(len) else { continue };
            let slot = TierSlot { tier: TierId(id), slot: pinned.0 };
            match self.state.loading.claim(key) {
                Some(claimed) => self.keys.push(claimed),
                None if self.keys.iter().any(|claimed| claimed.is_of(key)) => {}
                None => {
                    self.is_pending = true;
                    return false;
                }
            }
            // Looked up again: another ticket may have loaded it before the claim, or found the slot lost.
            let (published, of_device) = (self.cache.published(), self.of_device);
            let of_group = published.of_group(of_device, group);
            self.is_outdated |= published.has(self.cache.pool.blocks(), hash, of_group);
            self.is_outdated |= !tier.holds(pinned, hash, generation);
            self.pinned.push((group, hash, slot));
            return !self.is_outdated;
        }
        false
    }
}

impl Drop for PinnedBelow<'_> {
    fn drop(&mut self) {
        drop(self.take_pins());
        self.keys.drain(..).for_each(|claimed| self.state.loading.leave(claimed));
    }
}

/// The blocks of a hit, owned until they are put in a sequence.
struct OwnedHits {
    hits: Option<GroupHits>,
    pool: crate::pool::PoolHandle,
}

impl Drop for OwnedHits {
    fn drop(&mut self) {
        if let Some(hits) = self.hits.take() {
            let owned = hits.ids.into_iter().flatten().filter(|&id| id != TO_LOAD).collect();
            drop(BlockTable::of_owned(owned, self.pool.clone()));
        }
    }
}

/// How often an admission looks up the prompt, while other tickets load its contents.
const ROUNDS: usize = 4;

impl LoadTicket {
    #[cold]
    pub(super) fn admit_groups(
        cache: &PagedKvCache,
        state: &PlainArc<TierState>,
        layout: &Arc<GroupLayout>,
        (prompt, options): (&Prompt, &AdmitOptions),
        limit: LoadLimit,
    ) -> Result<TierAdmission> {
        for round in 0..ROUNDS {
            let limit = Some(limit).filter(|&limit| {
                limit != LoadLimit::none() && round + 1 < ROUNDS && !state.quarantine.is_full()
            });
            let mut below = PinnedBelow::new(cache, state, state.tiers.len(), limit);
            let admitted =
                Self::try_admit_groups(cache, state, layout, (prompt, options), &mut below)?;
            match admitted {
                Some(admitted) => return Ok(admitted),
                None if below.is_pending => return Ok(TierAdmission::Pending),
                None => {}
            }
        }
        unreachable!("the last round loads nothing, and so is never outdated")
    }

    /// Returns `None` if another ticket copies a content that was looked for, or has loaded it.
    fn try_admit_groups(
        cache: &PagedKvCache,
        state: &PlainArc<TierState>,
        layout: &Arc<GroupLayout>,
        (prompt, options): (&Prompt, &AdmitOptions),
        below: &mut PinnedBelow<'_>,
    ) -> Result<Option<TierAdmission>> {
        let (blocks, generation) = (cache.pool.blocks(), below.of_device);
        let hits = cache.probe_joint(layout, prompt);
        let (mut overwritten, mut loads) = (Vec::new(), Vec::new());
        let generations: Vec<Generation> =
            layout.ids().map(|group| cache.published().of_group(generation, group)).collect();
        let list = |cached: &[BlockId], out: &mut Vec<Overwritten>| {
            let overwrites = cache.published().overwrites().map(|overwrites| &**overwrites);
            list_overwritten(cached, overwrites, &generations, blocks, out);
        };
        let mut replaced = Vec::new();
        let admitted = cache.match_groups_by(
            layout,
            (prompt, options),
            generation,
            |sought| {
                let pool = cache.pool.handle();
                let found =
                    cache.published().acquire_groups_with(blocks, sought, generation, below);
                let mut owned = OwnedHits { hits: Some(found), pool: pool.clone() };
                let found = owned.hits.as_mut().expect("it was just put there");
                if below.is_pending || below.is_outdated {
                    return Err(PagedKvError::Busy);
                }
                if !found.loads.is_empty() {
                    let mut targets = BlockTable::new(pool);
                    let cached = targets.grow_reporting(found.loads.len())?;
                    list(&targets.as_slice()[targets.len() - cached..], &mut replaced);
                    loads = put_targets(found, targets, &below.pinned);
                }
                Ok(owned.hits.take().expect("only its drop takes it otherwise"))
            },
            |sequence, num_tokens| {
                grow_over(cache, sequence, num_tokens, |cached| list(cached, &mut overwritten))
            },
        );
        if below.is_pending || below.is_outdated {
            return Ok(None);
        }
        overwritten.extend(replaced);
        let (sequence, admission) = admitted?;
        let of_device = match loads.is_empty() {
            true => admission.cached_tokens,
            false => hits.min(admission.cached_tokens),
        };
        let mut on_device = admission.clone();
        on_device.longest_group_hit -= admission.cached_tokens.saturating_sub(of_device);
        on_device.cached_tokens = of_device;
        cache.note_prompt(prompt, options, &on_device);
        if loads.is_empty() {
            return Ok(Some(TierAdmission::Ready(sequence, admission)));
        }
        Ok(Some(TierAdmission::Loading(Self {
            state: PlainArc::clone(state),
            number: below.number,
            loads,
            keys: std::mem::take(&mut below.keys),
            pins: below.take_pins(),
            device: cache.pool.handle(),
            sequence: Some(sequence),
            admission,
            block_size: cache.block_size,
            hits: of_device,
            overwritten,
            generation,
        })))
    }

    /// Publishes the copies that are done. The sequence is of use only if all are.
    #[cold]
    pub(super) fn complete_groups(
        mut self,
        mut sequence: CachedSequence,
        outcomes: &[CopyOutcome],
    ) -> Result<Loaded> {
        let is_done = |at: usize| outcomes.get(at) == Some(&CopyOutcome::Done);
        let copies = self.loads.iter().enumerate().filter(|(at, _)| is_done(*at));
        let done: std::collections::HashSet<BlockId> = copies.map(|(_, load)| load.dst).collect();
        let length = self.admission.cached_tokens;
        let (of_groups, hashed) = sequence.parts_mut();
        hashed.publish_loaded(of_groups, length, |id| done.contains(&id));
        let (loads, failed_blocks) = (self.loads.len(), self.loads.len() - done.len());
        let loaded_tokens = length.saturating_sub(self.hits);
        // A token has contents in several groups, maybe of several tiers.
        let lowest = self.loads.iter().map(|load| load.src.tier).max();
        if let Some(tier) = lowest.filter(|_| failed_blocks == 0) {
            self.state.count_tokens(tier, loaded_tokens);
        }
        self.settle(outcomes, is_done);
        if failed_blocks > 0 {
            return Err(PagedKvError::LoadFailed { failed_blocks, loads });
        }
        let admission = self.admission.clone();
        Ok(Loaded { sequence, admission, loaded_tokens, failed_blocks })
    }
}

/// Returns the tokens of the joint hit on the device, and by how much each tier extends it.
pub(in crate::cache) fn lookup_groups(
    cache: &PagedKvCache,
    state: &TierState,
    layout: &GroupLayout,
    prompt: &Prompt,
    on_device: usize,
) -> Vec<usize> {
    let (blocks, options) = (cache.pool.blocks(), AdmitOptions::default());
    let mut found = vec![on_device];
    let mut before = on_device;
    for num_tiers in 1..=state.tiers.len() {
        let mut below = PinnedBelow::new(cache, state, num_tiers, Some(LoadLimit::default()));
        let sought = cache.sought(layout, prompt, &options);
        let hit = cache.published().probe_groups_with(blocks, sought, &mut below).hit;
        found.push(hit.length.saturating_sub(before));
        before = before.max(hit.length);
    }
    found
}

/// Puts blocks in the places of contents that are to be loaded. Returns the copies.
fn put_targets(
    hits: &mut GroupHits,
    targets: BlockTable,
    pinned: &[(GroupId, BlockHash, TierSlot)],
) -> Vec<Load> {
    let places = hits.ids.iter_mut().flatten().filter(|id| **id == TO_LOAD);
    let mut loads = Vec::with_capacity(targets.len());
    for ((place, dst), &(group, hash)) in places.zip(targets.into_owned_ids()).zip(&hits.loads) {
        *place = dst;
        let is_same = |pin: &&(GroupId, BlockHash, TierSlot)| (pin.0, pin.1) == (group, hash);
        let (.., src) = pinned.iter().find(is_same).expect("a load was pinned");
        loads.push(Load { src: *src, dst, hash, group });
    }
    loads
}
