//! [`BlockWords`]: the words of all blocks of a pool. [`WordsView`] commits the transitions of
//! [`BlockState`], each with the memory ordering that it needs.
//!
//! The callers decide which transition is due.

use super::{BlockState, IdleBlock, Released, ReleasedIdle, SPARE, Unheld, WasIdle};
use crate::array::array_of;
use crate::error::Result;
use crate::id::BlockId;
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Ordering, prefetch};

/// The word and the key of a block that can have one. A cache line holds two.
#[repr(align(32))]
pub(crate) struct KeyedBlock {
    pub(super) word: AtomicU32,
    /// How often the block was given a key, and the mark of its last key.
    pub(in crate::pool) key_version: AtomicU32,
    /// The key, its lower half first.
    pub(in crate::pool) key: [AtomicU64; 2],
    /// The block whose content came next when the content of this one was last published.
    pub(in crate::pool) follower: AtomicU32,
    /// The last release of the block, where the reclaim order needs it.
    pub(in crate::pool) note: AtomicU32,
}

impl KeyedBlock {
    fn new() -> Self {
        let [word, key_version, follower, note] = std::array::from_fn(|_| AtomicU32::new(0));
        let key = std::array::from_fn(|_| AtomicU64::new(0));
        Self { word, key_version, key, follower, note }
    }
}

/// The words of all blocks of a pool.
pub(crate) struct BlockWords {
    /// Words of blocks without keys: 4 bytes a block.
    bare: Box<[AtomicU32]>,
    /// Words and keys of blocks that can have keys: 32 bytes a block. One of the two arrays is empty.
    pub(in crate::pool) keyed: Box<[KeyedBlock]>,
    /// True once a caller has counted an owner by id. Owners may then appear that no other owner added.
    counted_by_id: AtomicBool,
}

impl BlockWords {
    /// Creates the words of `num_blocks` blocks without keys.
    pub(crate) fn new(num_blocks: usize) -> Result<Self> {
        Ok(Self {
            bare: array_of(num_blocks, || AtomicU32::new(0))?,
            keyed: Box::new([]),
            counted_by_id: AtomicBool::new(false),
        })
    }

    /// Creates the words of `num_blocks` blocks that can have keys.
    pub(crate) fn with_keys(num_blocks: usize) -> Result<Self> {
        let keyed = array_of(num_blocks, KeyedBlock::new)?;
        Ok(Self { keyed, ..Self::new(0)? })
    }

    /// Returns true if blocks can have keys.
    pub(crate) fn have_keys(&self) -> bool {
        !self.keyed.is_empty()
    }

    /// Announces owners that no other owner added, before they appear.
    pub(crate) fn expect_counts_by_id(&self) {
        // Relaxed: an operation that this call does not happen before may also run before it.
        self.counted_by_id.store(true, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn is_counted_by_id(&self) -> bool {
        // Relaxed: pairs with nothing; see `expect_counts_by_id`.
        self.counted_by_id.load(Ordering::Relaxed)
    }

    /// Returns the words for a loop over many blocks. Their address is then kept in registers, and not
    /// read again after each written word.
    #[inline]
    pub(crate) fn view(&self) -> WordsView<'_> {
        if self.have_keys() { WordsView::Keyed(&self.keyed) } else { WordsView::Bare(&self.bare) }
    }

    #[inline]
    pub(crate) fn state(&self, id: BlockId) -> BlockState {
        self.view().state(id)
    }

    /// Adds an owner. Refuses, with the state that it found, a block without an owner and a full count.
    pub(crate) fn retain(&self, id: BlockId) -> Result<(), BlockState> {
        // Relaxed: the caller may use the block already, so nothing is handed over here.
        self.view().attempt(id, Ordering::Relaxed, BlockState::retain).map(|_| ())
    }
}

/// A borrowed view of the words of all blocks.
#[derive(Clone, Copy)]
pub(crate) enum WordsView<'a> {
    Bare(&'a [AtomicU32]),
    Keyed(&'a [KeyedBlock]),
}

impl<'a> WordsView<'a> {
    #[inline]
    fn word(&self, id: BlockId) -> &'a AtomicU32 {
        match self {
            Self::Bare(words) => &words[id.index()],
            Self::Keyed(blocks) => &blocks[id.index()].word,
        }
    }

    /// Prefetches the words of `ids`. Call it before many words are written one after the other.
    #[inline]
    pub(crate) fn prefetch(&self, ids: impl Iterator<Item = BlockId>) {
        // Relaxed: the loaded values are not used.
        prefetch(ids.map(|id| u64::from(self.word(id).load(Ordering::Relaxed))));
    }

    #[inline]
    pub(crate) fn state(&self, id: BlockId) -> BlockState {
        // Acquire: pairs with the release half of the exchange in `release_shared`. A thread that sees
        // itself as the only owner left sees all that the other owners did with the block.
        // Loom: a_sole_owner_sees_the_others_leave.
        BlockState(self.word(id).load(Ordering::Acquire))
    }

    /// Calls `read` with the state of each block, in the order of the ids. The states are of different moments.
    pub(crate) fn read_all(&self, mut read: impl FnMut(BlockState)) {
        // Relaxed: the states are shown only, and nothing of the blocks is used.
        let mut read = |word: &AtomicU32| read(BlockState(word.load(Ordering::Relaxed)));
        match self {
            Self::Bare(words) => words.iter().for_each(&mut read),
            Self::Keyed(blocks) => blocks.iter().for_each(|block| read(&block.word)),
        }
    }

    /// Gives a free block one owner, for a caller that took `id` off the free list. No other thread
    /// accesses the block then.
    #[inline]
    pub(crate) fn occupy(&self, id: BlockId) {
        let word = self.word(id);
        // Relaxed: the block was freed under a claim, and its hand-over to the caller's claim orders
        // both accesses.
        if BlockState(word.load(Ordering::Relaxed)) != BlockState::FREE {
            free_but_owned(id);
        }
        word.store(BlockState::SOLE.0, Ordering::Relaxed);
    }

    /// Frees a block if the caller is its only owner and it is not cached. Otherwise returns false and
    /// changes nothing.
    ///
    /// No other thread changes the word of a sole owner's block, because only an owner can add an
    /// owner. So a plain store suffices. Only counting by id can break that rule, if a caller wrongly
    /// takes the block for owned. After the first count by id, every release is a
    /// [`release_shared`](Self::release_shared).
    #[inline]
    pub(crate) fn release_sole(&self, id: BlockId) -> bool {
        let word = self.word(id);
        // Acquire: as in `state`.
        let sole = BlockState(word.load(Ordering::Acquire)) == BlockState::SOLE;
        if sole {
            // Relaxed: the caller's claim publishes the store together with the block.
            word.store(BlockState::FREE.0, Ordering::Relaxed);
        }
        sole
    }

    /// Removes an owner, while other threads may own the block, match it by its key or count it by id.
    pub(crate) fn release_shared(&self, id: BlockId) -> Released {
        // AcqRel: release, so that the last owner sees all that this one did with the block; acquire,
        // because this one may be the last.
        // Loom: last_release_sees_every_owner.
        let state = self.transition(id, Ordering::AcqRel, BlockState::release);
        match state.expect("a block is released once by each of its owners") {
            BlockState::FREE => Released::Free,
            idle if idle.is_idle() => Released::Idle(ReleasedIdle::new(id, idle)),
            _ => Released::Owned,
        }
    }

    /// Adds an owner to a cached block, for the holder of a claim. The caller must compare the key
    /// *after* this call, because a block keeps its key while it is cached and has an owner. Returns
    /// `None` if the block is not cached (any more) or has a full count, else whether it was idle. With
    /// `hot` the content counts as asked for again.
    #[inline]
    pub(in crate::pool) fn acquire(&self, id: BlockId, hot: bool) -> Option<WasIdle> {
        // Acquire: pairs with `end_key_change`, for the key and for the contents that it keys.
        // Loom: a_match_sees_the_writes_of_the_publisher.
        let state = self.transition(id, Ordering::Acquire, |state| state.acquire(hot))?;
        Some(WasIdle(state.owners() == 1))
    }

    /// Adds an owner to a cached block as [`acquire`](Self::acquire) does, for a caller that does not use its content. An
    /// idle block keeps its place among the idle blocks.
    pub(in crate::pool) fn hold(&self, id: BlockId) -> Option<WasIdle> {
        // Acquire: as in `acquire`. Loom: a_held_block_that_was_published_again_shows_its_writes.
        let state = self.transition(id, Ordering::Acquire, BlockState::hold)?;
        Some(WasIdle(state.owners() == 1))
    }

    /// Removes an owner that [`hold`](Self::hold) added.
    pub(in crate::pool) fn release_held(&self, id: BlockId) -> Unheld {
        let epoch = self.state(id).epoch();
        // Release: the block's next owner, which acquires it, writes it after this owner's reads. Not Acquire: the block
        // does not become free here.
        // Loom: a_held_block_that_is_matched_before_its_count_causes_no_refusal.
        match self.transition(id, Ordering::Release, BlockState::release_held) {
            None => Unheld::Used(self.release_shared(id)),
            Some(owned) if !owned.is_idle() => Unheld::Used(Released::Owned),
            // A held block begins no other epoch before this release.
            Some(idle) if idle.epoch() == epoch => Unheld::InPlace,
            Some(idle) => Unheld::Passed(ReleasedIdle::new(id, idle)),
        }
    }

    /// Treats an idle block as just released: it begins its next epoch. For the holder of a claim,
    /// which pushes the block's new entry.
    pub(in crate::pool) fn renew_idle(&self, id: BlockId) -> Option<ReleasedIdle> {
        // Relaxed: nothing is handed over. A thread that reclaims the block sees its users' writes
        // through the word.
        let idle = self.transition(id, Ordering::Relaxed, BlockState::renew_idle)?;
        Some(ReleasedIdle::new(id, idle))
    }

    /// Makes an idle block a spare one that was just released, for the holder of a claim, which pushes its new entry.
    #[cold]
    pub(in crate::pool) fn renew_as_spare(&self, id: BlockId) -> Option<ReleasedIdle> {
        // Relaxed: as in `renew_idle`.
        let idle = self.transition(id, Ordering::Relaxed, BlockState::renew_as_spare)?;
        Some(ReleasedIdle::new(id, idle))
    }

    /// Makes the caller the only owner of a block that is idle since the epoch of `idle`. The caller
    /// then finishes the reclaim or undoes it. Returns false if the block was used since, or is held. The entry of `idle`
    /// is gone then.
    #[inline(always)]
    pub(in crate::pool) fn reclaim(&self, idle: IdleBlock) -> bool {
        // Acquire: pairs with the release half of the exchange in `release_shared`; the next owner sees
        // all that the earlier owners did.
        // Loom: a_reclaimed_block_is_in_one_hand.
        let step = |state: BlockState| state.reclaim(idle.epoch).or_else(|| state.pass(idle.epoch));
        let state = self.transition(idle.id, Ordering::Acquire, step);
        state.is_some_and(|state| !state.is_cached())
    }

    /// Makes a block idle again, after the caller has just reclaimed it.
    pub(in crate::pool) fn undo_reclaim(&self, id: BlockId) -> ReleasedIdle {
        let word = self.word(id);
        // Relaxed: no other thread changes the word.
        let idle = BlockState(word.load(Ordering::Relaxed)).undo_reclaim();
        // Release: as in `release_shared`; another thread may acquire the block immediately.
        word.store(idle.0, Ordering::Release);
        ReleasedIdle::new(id, idle)
    }

    /// Discards the contents of a block that the caller has just reclaimed. Returns true if the block
    /// was spare.
    #[inline]
    pub(in crate::pool) fn finish_reclaim(&self, id: BlockId) -> bool {
        let word = self.word(id);
        // Relaxed: as in `undo_reclaim`; the block's next owner gets it through the caller.
        let seen = word.load(Ordering::Relaxed);
        if BlockState(seen) != BlockState::SOLE {
            word.store(BlockState::SOLE.0, Ordering::Relaxed);
        }
        seen & SPARE != 0
    }

    /// Returns true if the block is idle since the epoch of `idle`.
    pub(in crate::pool) fn is_idle_since(&self, idle: IdleBlock) -> bool {
        let state = self.state(idle.id);
        state.is_idle() && state.epoch() == idle.epoch
    }

    /// Returns true if an entry may be of use: its block is idle since then, or held.
    pub(in crate::pool) fn keeps_entry(&self, idle: IdleBlock) -> bool {
        self.state(idle.id).keeps_entry(idle.epoch)
    }

    /// Gives one of the owners the right to write the block's key, until
    /// [`end_key_change`](Self::end_key_change). Returns false if the block is cached, or another owner is
    /// writing its key.
    pub(in crate::pool) fn begin_key_change(&self, id: BlockId) -> bool {
        // Relaxed: the key's two halves are stored with Release after it; see `KeyedView::key`.
        self.transition(id, Ordering::Relaxed, BlockState::begin_key_change).is_some()
    }

    /// Makes the block matchable. With `hot` its content counts as asked for again; with `spare`
    /// another block is cached under the key.
    pub(in crate::pool) fn end_key_change(&self, id: BlockId, hot: bool, spare: bool) {
        // Release: pairs with `acquire` and `state`. Loom: a_match_sees_the_writes_of_the_publisher.
        let step = |state: BlockState| state.end_key_change(hot, spare);
        let state = self.transition(id, Ordering::Release, step);
        assert!(state.is_some(), "a key is ended by who began it");
    }

    /// Makes the block unmatchable if it is cached, for one of its owners. Returns true if it was cached.
    pub(in crate::pool) fn try_end_caching(&self, id: BlockId) -> bool {
        // Relaxed: nothing is handed over; a thread that has matched the block is an owner already.
        self.transition(id, Ordering::Relaxed, BlockState::end_caching).is_some()
    }

    /// Commits `step` and returns the new state, or `None` where `step` refuses.
    #[inline]
    #[cfg_attr(paged_kv_loom, track_caller)] // each caller's ordering is weakened by itself
    fn transition(
        &self,
        id: BlockId,
        order: Ordering,
        step: impl Fn(BlockState) -> Option<BlockState>,
    ) -> Option<BlockState> {
        self.attempt(id, order, step).ok()
    }

    /// Commits `step` and returns the new state, or else the state that `step` refused.
    #[inline]
    #[cfg_attr(paged_kv_loom, track_caller)] // as in `transition`
    fn attempt(
        &self,
        id: BlockId,
        order: Ordering,
        step: impl Fn(BlockState) -> Option<BlockState>,
    ) -> Result<BlockState, BlockState> {
        let word = self.word(id);
        // Relaxed: a guess only; the exchange checks it.
        let mut seen = word.load(Ordering::Relaxed);
        loop {
            let next = step(BlockState(seen)).ok_or(BlockState(seen))?;
            match word.compare_exchange_weak(seen, next.0, order, Ordering::Relaxed) {
                Ok(_) => return Ok(next),
                Err(now) => seen = now,
            }
        }
    }
}

/// Not inlined, and by value: a message that borrows `id` would make the caller's loop store each id to
/// memory.
#[cold]
#[inline(never)]
fn free_but_owned(id: BlockId) -> ! {
    panic!("a block in the free list has no owner, {id} has");
}
