//! `pin`: the contents of a prompt that a load ticket pins in tiers and claims, so that no other ticket copies them.

use super::super::LoadLimit;
use crate::id::BlockId;
use crate::prefix::{BlockHash, Generation};
use crate::table::BlockTable;
use crate::tier::in_flight::Claimed;
use crate::tier::{TicketNumber, TierId, TierSlot, TierState};

/// Contents that a ticket to be has pinned and claimed.
pub(super) struct Pinned<'a> {
    state: &'a TierState,
    pub(super) number: TicketNumber,
    pub(super) keys: Vec<Claimed>,
    pub(super) slots: Vec<TierSlot>,
    pub(super) pins: Vec<(TierId, BlockTable)>,
}

impl Drop for Pinned<'_> {
    fn drop(&mut self) {
        self.keys.drain(..).for_each(|claimed| self.state.loading.leave(claimed));
    }
}

/// The reason that nothing is pinned.
pub(super) enum NotPinned {
    /// Another ticket copies a content that was looked for.
    Pending,
    /// A tier has forgotten a content after it was pinned.
    Outdated,
}

/// Pins and claims the contents of `hashes`, from the first on, as far as tiers have them ready and the limit allows.
///
/// # Errors
/// `Pending` if the first content that is not pinned is being copied; `Outdated`. Nothing is held then.
pub(super) fn pin<'a>(
    state: &'a TierState,
    number: TicketNumber,
    hashes: &[BlockHash],
    of_device: Generation,
    limit: LoadLimit,
) -> std::result::Result<Pinned<'a>, NotPinned> {
    let mut pinned =
        Pinned { state, number, keys: Vec::new(), slots: Vec::new(), pins: Vec::new() };
    let mut allowed = limit.allows(count_ready(state, hashes));
    if allowed == 0 {
        // A content that is loaded now is on the device soon, and one that is stored now in a tier.
        let is_pending = hashes.first().is_some_and(|&hash| {
            limit != LoadLimit::none() && state.copies(of_device.key_of(hash))
        });
        if is_pending {
            return Err(NotPinned::Pending);
        }
        // Counted again: a store may have published the content after the first count, and left before the look-up.
        allowed = limit.allows(count_ready(state, hashes));
        if allowed == 0 {
            return Ok(pinned);
        }
    }
    let mut left = &hashes[..allowed.min(hashes.len())];
    while !left.is_empty() {
        let before = left.len();
        for (tier, id) in state.tiers.iter().zip(0..) {
            let Some(generation) = tier.generation_like(of_device) else { continue };
            let mut ids = Vec::new();
            tier.pin(left, generation, &mut ids);
            let tier_id = TierId(id);
            pinned.slots.extend(ids.iter().map(|slot| TierSlot { tier: tier_id, slot: slot.0 }));
            left = &left[ids.len()..];
            if !ids.is_empty() {
                pinned.pins.push((tier_id, tier.table_of(ids)));
            }
        }
        if left.len() == before {
            break;
        }
    }
    pinned.keys.reserve(pinned.slots.len());
    for (at, &hash) in hashes[..pinned.slots.len()].iter().enumerate() {
        let key = of_device.key_of(hash);
        // A prompt of hashes may name a content twice, which is claimed once and copied to both blocks.
        match state.loading.claim(key) {
            Some(claimed) => pinned.keys.push(claimed),
            None if pinned.keys.iter().any(|claimed| claimed.is_of(key)) => {}
            None => return Err(NotPinned::Pending),
        }
        if !is_ready_in(state, pinned.slots[at], hash, of_device) {
            return Err(NotPinned::Outdated);
        }
    }
    Ok(pinned)
}

/// Returns true if a pinned slot is ready with a content still, for the ticket that has claimed the content. The ticket
/// before may have found the slot lost.
fn is_ready_in(state: &TierState, slot: TierSlot, hash: BlockHash, of_device: Generation) -> bool {
    let tier = &state.tiers[usize::from(slot.tier.0)];
    let generation = tier.generation_like(of_device);
    generation.is_some_and(|generation| tier.holds(BlockId(slot.slot), hash, generation))
}

/// Returns how many contents, from the first on, are ready in some tier.
fn count_ready(state: &TierState, hashes: &[BlockHash]) -> usize {
    let (mut ready, mut grows) = (0, true);
    while grows && ready < hashes.len() {
        let before = ready;
        for tier in &state.tiers {
            ready += tier.probe(&hashes[ready..]);
        }
        grows = ready > before;
    }
    ready
}
