//! `LoadTicket`: copies of contents from tiers to the blocks of a new sequence.
//!
//! The ticket has the sequence until it is settled. So a load that has not finished, or has failed, can never be read as
//! data: there is no sequence to read.

mod grouped;
mod pinned;

pub(in crate::cache) use self::grouped::lookup_groups;
use self::pinned::{NotPinned, Pinned, pin};
use super::overwriting::{Overwriting, OverwritingAccess, OverwrittenBy};
use super::{LoadLimit, TierAdmission};
use crate::cache::PagedKvCache;
use crate::cache::admission::Admission;
use crate::cache::admission::options::AdmitOptions;
use crate::cache::admission::prompt::Prompt;
use crate::cache::reuse::cached_sequence::CachedSequence;
use crate::error::{PagedKvError, Result};
use crate::id::{BlockId, GroupId};
use crate::pool::PoolHandle;
use crate::pool::watermark::Admit;
use crate::prefix::overwrites::list_overwritten;
use crate::prefix::{BlockHash, Generation, Overwritten};
use crate::sequence::Sequence;
use crate::sync::PlainArc;
use crate::table::BlockTable;
use crate::tier::in_flight::Claimed;
use crate::tier::sources::forget_lost;
use crate::tier::store::runs_of;
use crate::tier::{CopyOutcome, Place, TicketNumber, TierId, TierSlot, TierState};

/// One content to copy from a slot of a tier to a block of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Load {
    /// The slot to copy from.
    pub src: TierSlot,
    /// The block to copy to.
    pub dst: BlockId,
    /// The hash of the content.
    pub hash: BlockHash,
    /// The group of layers of the content.
    pub group: GroupId,
}

/// Copies from tiers to the device, which the caller makes and then reports with [`complete`](Self::complete). It has the
/// admitted sequence until then.
///
/// The ticket owns the slots and the blocks, so that neither gets another content before it is settled. If it is dropped,
/// all copies count as failed and the sequence is freed; the blocks stay in quarantine until
/// [`Tiers::quiesced`](crate::Tiers::quiesced).
#[must_use = "a ticket that is dropped counts as failed"]
pub struct LoadTicket {
    state: PlainArc<TierState>,
    number: TicketNumber,
    loads: Vec<Load>,
    keys: Vec<Claimed>,
    /// The slots, pinned, a table for each tier.
    pins: Vec<(TierId, BlockTable)>,
    /// The pool of the blocks that are written. The sequence owns them.
    device: PoolHandle,
    sequence: Option<CachedSequence>,
    admission: Admission,
    block_size: usize,
    /// Tokens that were on the device.
    hits: usize,
    /// The contents that the sequence's new blocks had, in the generation in which it was admitted.
    overwritten: Vec<Overwritten>,
    generation: Generation,
}

impl Overwriting for LoadTicket {}

impl OverwritingAccess for LoadTicket {
    fn contents(&self) -> OverwrittenBy<'_> {
        let (contents, pool) = (&*self.overwritten, &self.device);
        OverwrittenBy { contents, generation: self.generation, pool }
    }
}

/// The sequence of a settled ticket.
#[derive(Debug)]
#[non_exhaustive]
pub struct Loaded {
    /// The sequence. It ends before the first block whose copy failed: append the rest of the prompt then, as after a
    /// [first chunk](AdmitOptions::first_chunk), and commit it by its number of tokens.
    pub sequence: CachedSequence,
    /// The admission: `cached_tokens` counts hits on the device and blocks that were loaded, up to the first failure.
    pub admission: Admission,
    /// Tokens that were loaded.
    pub loaded_tokens: usize,
    /// Copies that were not done.
    pub failed_blocks: usize,
}

/// How often an admission looks up the prompt, while other tickets load its contents.
const ROUNDS: usize = 4;

impl LoadTicket {
    pub(super) fn admit(
        cache: &PagedKvCache,
        state: &PlainArc<TierState>,
        prompt: &Prompt,
        options: &AdmitOptions,
        limit: LoadLimit,
    ) -> Result<TierAdmission> {
        cache.check_prompt(prompt)?;
        if options.retained().is_some() {
            cache.checked_levels()?;
        }
        if let Some(layout) = cache.layout() {
            return Self::admit_groups(cache, state, layout, (prompt, options), limit);
        }
        let number = state.next_ticket();
        let most = options.most_hits(prompt, cache.block_size);
        let (mut hits, mut pinned) = (0, None);
        let mut of_device = cache.published().generation();
        for _ in 0..ROUNDS {
            of_device = cache.published().generation();
            hits = cache.prefix().probe_hits(prompt, most);
            if state.quarantine.is_full() {
                break;
            }
            let rest = &prompt.hashes()[hits..most];
            pinned = match pin(state, number, rest, of_device, limit) {
                Ok(pinned) => Some(pinned).filter(|pinned| !pinned.slots.is_empty()),
                Err(NotPinned::Pending) => return Ok(TierAdmission::Pending),
                Err(NotPinned::Outdated) => {
                    pinned = None;
                    continue;
                }
            };
            // Looked up again: another ticket may have loaded the first of them before the claim.
            if pinned.is_none() || cache.prefix().probe_hits(prompt, most) <= hits {
                break;
            }
            pinned = None;
        }
        let Some(pinned) = pinned else {
            let (sequence, admission) = cache.admit_sequence(prompt, options)?;
            return Ok(TierAdmission::Ready(sequence, admission));
        };
        let loaded_tokens = pinned.slots.len() * cache.block_size;
        let options = options.clone().max_cached_tokens(hits * cache.block_size);
        let options = options.at_least_first_chunk(loaded_tokens);
        let mut overwritten = Vec::new();
        let admitted =
            cache.match_and_allocate_by(prompt, &options, Admit::Now, |sequence, num_tokens| {
                grow_over(cache, sequence, num_tokens, |cached| {
                    let overwrites = cache.published().overwrites().map(|overwrites| &**overwrites);
                    let pool = cache.pool.blocks();
                    list_overwritten(cached, overwrites, &[of_device], pool, &mut overwritten);
                })
            })?;
        let (mut sequence, admission) = admitted;
        cache.note_prompt(prompt, &options, &admission);
        let was_reset = sequence.parts_mut().1.generation() != of_device;
        if was_reset || admission.cached_tokens != hits * cache.block_size {
            // A reset came after the slots were pinned: the sequence must not get contents from before it. Or the
            // device has lost a hit since it was looked up: the loaded blocks would follow a gap.
            return Ok(TierAdmission::Ready(sequence, admission));
        }
        let mut ticket = Self::new(cache, state, pinned, prompt, hits, (sequence, admission));
        (ticket.overwritten, ticket.generation) = (overwritten, of_device);
        Ok(TierAdmission::Loading(ticket))
    }

    fn new(
        cache: &PagedKvCache,
        state: &PlainArc<TierState>,
        mut pinned: Pinned<'_>,
        prompt: &Prompt,
        hits: usize,
        (sequence, admission): (CachedSequence, Admission),
    ) -> Self {
        let end = hits + pinned.slots.len();
        let blocks = &sequence.block_ids()[hits..end];
        let hashes = &prompt.hashes()[hits..end];
        let loads = pinned.slots.iter().zip(blocks).zip(hashes);
        let loads =
            loads.map(|((&src, &dst), &hash)| Load { src, dst, hash, group: GroupId(0) }).collect();
        Self {
            state: PlainArc::clone(state),
            number: pinned.number,
            loads,
            keys: std::mem::take(&mut pinned.keys),
            pins: std::mem::take(&mut pinned.pins),
            device: cache.pool.handle(),
            sequence: Some(sequence),
            admission,
            block_size: cache.block_size,
            hits: hits * cache.block_size,
            overwritten: Vec::new(),
            generation: cache.published().generation(),
        }
    }

    /// Returns the copies to make, in any order.
    ///
    /// ```
    /// use paged_kv::{AdmitOptions, LoadLimit, LoadTicket, TierAdmission};
    ///
    /// fn copies(admitted: &TierAdmission) -> usize {
    ///     match admitted {
    ///         TierAdmission::Loading(ticket) => ticket.loads().len(),
    ///         _ => 0,
    ///     }
    /// }
    /// ```
    pub fn loads(&self) -> &[Load] {
        &self.loads
    }

    /// Returns the copies as runs: the first of each, and the number of neighbouring slots that go to neighbouring blocks.
    ///
    /// ```
    /// fn calls_of_the_copy_engine(ticket: &paged_kv::LoadTicket) -> usize {
    ///     ticket.runs().len()
    /// }
    /// ```
    pub fn runs(&self) -> Vec<(Load, usize)> {
        let dst = |load: &Load, n| Place::Device(load.dst).plus(n);
        runs_of(&self.loads, |load, n| load.src.plus(n), dst)
    }

    /// Returns the number of the ticket, by which [`Tiers::quiesced`](crate::Tiers::quiesced) ends its quarantine.
    ///
    /// ```
    /// fn cancelled(cache: &paged_kv::PagedKvCache, ticket: paged_kv::LoadTicket) {
    ///     let number = ticket.number();
    ///     drop(ticket);
    ///     // .. when the mover is quiet ..
    ///     cache.tiers().quiesced(number);
    /// }
    /// ```
    pub fn number(&self) -> TicketNumber {
        self.number
    }

    #[cfg(feature = "tier-store")]
    pub(crate) fn quarantine(&self) -> (PlainArc<TierState>, TicketNumber) {
        (PlainArc::clone(&self.state), self.number)
    }

    /// Returns the contents that the copies are about to overwrite: new blocks of the sequence, which were cached until
    /// now. [`Tiers::store_overwritten`](crate::Tiers::store_overwritten) makes a ticket for them.
    ///
    /// ```
    /// fn lost(ticket: &paged_kv::LoadTicket) -> usize {
    ///     ticket.overwritten().len()
    /// }
    /// ```
    pub fn overwritten(&self) -> &[Overwritten] {
        &self.overwritten
    }

    /// Reports the outcome of each copy, in the order of [`loads`](Self::loads), and returns the sequence. The blocks
    /// before the first failure can be matched on the device from now on, unless the cache was reset since. The
    /// sequence ends there if a copy failed; blocks of failed copies stay in quarantine.
    ///
    /// With groups of layers a load is of use as a whole only: if a copy is not done, the sequence is freed.
    ///
    /// # Errors
    /// [`BufferSize`](PagedKvError::BufferSize) if there is not one outcome a copy; all count as failed then, and the
    /// sequence is freed. [`LoadFailed`](PagedKvError::LoadFailed) with groups, as above.
    ///
    /// ```
    /// use paged_kv::{CopyOutcome, LoadTicket, Loaded};
    ///
    /// fn copied(ticket: LoadTicket) -> paged_kv::Result<Loaded> {
    ///     let outcomes = vec![CopyOutcome::Done; ticket.loads().len()];
    ///     ticket.complete(&outcomes)
    /// }
    /// ```
    pub fn complete(mut self, outcomes: &[CopyOutcome]) -> Result<Loaded> {
        let (required, actual) = (self.loads.len(), outcomes.len());
        if required != actual {
            return Err(PagedKvError::BufferSize { buffer: "outcomes", required, actual });
        }
        let good = outcomes.iter().take_while(|&&outcome| outcome == CopyOutcome::Done).count();
        let failed = outcomes.iter().filter(|&&outcome| outcome != CopyOutcome::Done).count();
        self.keep_failed(outcomes);
        let mut sequence = self.sequence.take().expect("a ticket has its sequence until now");
        if sequence.layout().is_some() {
            return self.complete_groups(sequence, outcomes);
        }
        let computed = self.hits + good * self.block_size;
        if let Err(refusal) =
            cut_to_loaded(&mut sequence, computed, good < required, self.block_size)
        {
            self.settle(outcomes, |_| false);
            return Err(refusal);
        }
        let mut admission = self.admission.clone();
        admission.cached_tokens = computed;
        admission.longest_group_hit = computed;
        admission.num_tokens = sequence.num_tokens();
        self.loads[..good]
            .iter()
            .for_each(|load| self.state.count_tokens(load.src.tier, self.block_size));
        self.settle(outcomes, |at| at < good);
        let loaded_tokens = good * self.block_size;
        Ok(Loaded { sequence, admission, loaded_tokens, failed_blocks: failed })
    }

    /// Gives claims and pins back. `is_used` returns true for copies that were
    /// published.
    fn settle(&mut self, outcomes: &[CopyOutcome], is_used: impl Fn(usize) -> bool) {
        let outcome = |at: usize| outcomes.get(at).copied().unwrap_or(CopyOutcome::Failed);
        let slots = self.loads.iter().map(|load| Place::Tier(load.src)).enumerate();
        let lost = slots.filter(|&(at, _)| outcome(at) == CopyOutcome::Lost).map(|(_, slot)| slot);
        forget_lost(lost, &self.state);
        // After the publication: a thread that misses the content among these finds it on the device.
        self.keys.drain(..).for_each(|claimed| self.state.loading.leave(claimed));
        for (tier, id) in self.state.tiers.iter().zip(0..) {
            let of_tier = |load: &Load| load.src.tier == TierId(id);
            let copies = self.loads.iter().enumerate();
            let loaded = copies.filter(|(at, load)| of_tier(load) && is_used(*at));
            let slots: Vec<BlockId> = loaded.map(|(_, load)| BlockId(load.src.slot)).collect();
            tier.counts.loaded.add(slots.len() as u64);
            if tier.is_exclusive() {
                tier.forget(&slots);
            }
            let copies = self.loads.iter().enumerate();
            let failed = copies.filter(|&(at, load)| {
                of_tier(load) && matches!(outcome(at), CopyOutcome::Failed | CopyOutcome::Lost)
            });
            let failed = failed.count();
            tier.counts.failed.add(failed as u64);
        }
        self.pins.clear();
        self.loads.clear();
    }

    /// Puts the blocks of failed copies in quarantine, which so has an owner of each when the sequence leaves them.
    fn keep_failed(&self, outcomes: &[CopyOutcome]) {
        let outcome = |at: usize| outcomes.get(at).copied().unwrap_or(CopyOutcome::Failed);
        let copies = self.loads.iter().enumerate();
        let failed = copies.filter(|&(at, _)| outcome(at) == CopyOutcome::Failed);
        let failed: Vec<BlockId> = failed.map(|(_, load)| load.dst).collect();
        if !failed.is_empty() {
            let held = self.device.hold_again(&failed, self.device.clone());
            let held = held.expect("a block that is written has one owner");
            self.state.quarantine.keep(self.number, held);
        }
    }
}

impl Drop for LoadTicket {
    fn drop(&mut self) {
        if !self.loads.is_empty() {
            self.keep_failed(&[]);
            self.settle(&[], |_| false);
        }
    }
}

impl std::fmt::Debug for LoadTicket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoadTicket")
            .field("number", &self.number)
            .field("loads", &self.loads)
            .finish_non_exhaustive()
    }
}

/// Publishes the loaded blocks of a sequence, and lets it end behind them if others failed.
fn cut_to_loaded(
    sequence: &mut CachedSequence,
    computed: usize,
    ends_there: bool,
    block_size: usize,
) -> Result<()> {
    sequence.commit(computed)?;
    if ends_there {
        let (sequence, hashed) = sequence.parts_mut();
        sequence.truncate(computed)?;
        // The prompt's tokens stay known: they are computed instead.
        hashed.forget_generated(computed, block_size);
    }
    Ok(())
}

/// Grows a sequence. `list` takes the new blocks that were cached until now.
fn grow_over(
    cache: &PagedKvCache,
    sequence: &mut Sequence,
    num_tokens: usize,
    list: impl FnOnce(&[BlockId]),
) -> Result<()> {
    sequence.release_windows();
    let plan = sequence.plan_append(num_tokens)?;
    let mut stock = BlockTable::new(cache.pool.handle());
    let cached = if plan.blocks() == 0 { 0 } else { stock.grow_reporting(plan.blocks())? };
    list(&stock.as_slice()[stock.len() - cached..]);
    let append = sequence.append_from(plan, &mut stock);
    assert!(append.copy.is_none(), "hits are full blocks, which no append copies");
    Ok(())
}
