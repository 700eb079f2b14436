//! `Shard` and `Claim`: the magazine of free ids of one home shard, and the right to change it.
//!
//! Invariant: only the holder of the claim accesses the ids, their number and the ledger. One exchange takes
//! the claim and one store releases it, also when its holder panics.
//!
//! Claim, number and ledger share one cache line: an allocation or a release within the magazine touches no
//! other line of the shard, except those of the ids.

use super::choice::Choice;
use crate::array::array_of;
use crate::error::Result;
use crate::id::BlockId;
use crate::pool::accounting::{Ledger, Quota};
use crate::pool::idle::IdleShard;
use crate::pool::idle::policy::Retention;
use crate::pool::word::BlockWords;
use crate::sync::{ArrayQueue, AtomicBool, AtomicU32, Backoff, Ordering};

/// Blocks that move between a shard and the depot in one queue operation, and the most that are released
/// under one claim.
pub(super) use crate::pool::idle::BATCH;

/// The least number of free ids for which a magazine of several shards has room: two batches. So a thread that
/// crosses the border between two batches back and forth does not move a batch each time.
pub(in crate::pool) const MAGAZINE: usize = 2 * BATCH;

/// The most free ids in a magazine of a large pool: a thread that releases and allocates 512 blocks at a time
/// leaves the depot alone.
const LARGE_MAGAZINE: usize = 8 * BATCH;

/// The magazines of all shards hold at most the blocks of the pool divided by this, if that makes them no smaller
/// than [`MAGAZINE`].
const SHARE_OF_MAGAZINES: usize = 2;

/// The same where contents are kept: a free block in a magazine caches nothing.
const SHARE_BESIDE_CONTENTS: usize = 4;

/// Returns the number of free ids for which each of `shards` shards has room. A single shard holds all blocks,
/// and a batch that is being released, and needs no depot.
pub(super) fn room_for_ids(total: usize, shards: usize, keep: Retention) -> usize {
    if shards == 1 {
        return total + BATCH;
    }
    let share = match keep {
        Retention::Nothing => SHARE_OF_MAGAZINES,
        Retention::Contents(_) | Retention::Levels(_) => SHARE_BESIDE_CONTENTS,
    };
    let batches = total / (share * shards) / BATCH;
    (batches * BATCH).clamp(MAGAZINE, LARGE_MAGAZINE)
}

/// A batch of free ids in the depot.
pub(super) struct FreeBatch(pub(super) [BlockId; BATCH]);

/// The loose free ids of one shard, and the counts of the blocks taken and given through it.
pub(super) struct Shard {
    hot: HotLine,
    /// The magazine, a stack: the first `len` are free ids.
    pub(super) ids: Box<[AtomicU32]>,
    pub(super) choice: Choice,
    pub(super) idle: IdleShard,
}

/// The fields that every use of a shard reads or writes, on a cache line of their own.
#[repr(C, align(64))]
struct HotLine {
    claimed: AtomicBool,
    len: AtomicU32,
    ledger: Ledger,
}

const _: () = assert!(cfg!(any(paged_kv_loom, paged_kv_shuttle)) || size_of::<HotLine>() == 64);

impl Shard {
    /// Creates a shard with room for `loose` ids, whose number of used blocks may rise by `quota` unnoticed.
    pub(super) fn new(loose: usize, quota: Quota, keep: Retention) -> Result<Self> {
        let ledger = Ledger::new(quota);
        Ok(Self {
            hot: HotLine { claimed: AtomicBool::new(false), len: AtomicU32::new(0), ledger },
            ids: array_of(loose, || AtomicU32::new(0))?,
            choice: Choice::new(),
            idle: IdleShard::new(keep),
        })
    }

    #[inline]
    pub(super) fn ledger(&self) -> &Ledger {
        &self.hot.ledger
    }

    /// Returns true if the shard had free ids when read without a claim.
    pub(super) fn seems_to_have_free(&self) -> bool {
        // Relaxed: a guess. The claim's holder reads the number again; a thread that must be sure claims all
        // shards.
        self.hot.len.load(Ordering::Relaxed) > 0
    }

    /// Waits for a claim on this very shard. Only a holder of `shortage` may wait so while it holds other
    /// claims.
    pub(super) fn claim(&self) -> Claim<'_> {
        let mut backoff = Backoff::new();
        loop {
            if let Some(claim) = self.try_claim() {
                return claim;
            }
            backoff.wait();
        }
    }

    /// Claims the shard unless it is claimed, or seemed to have no free ids.
    pub(super) fn try_claim_unless_empty(&self) -> Option<Claim<'_>> {
        if self.seems_to_have_free() { self.try_claim() } else { None }
    }

    /// Claims the shard unless it is claimed, or seemed to have no idle blocks.
    pub(super) fn try_claim_if_idle(&self) -> Option<Claim<'_>> {
        if self.idle.seems_empty() { None } else { self.try_claim() }
    }

    #[inline]
    pub(super) fn try_claim(&self) -> Option<Claim<'_>> {
        // Acquire: pairs with the store in `Claim::drop`; the next holder sees the ids, their words, and
        // through them all that earlier owners did with the blocks.
        // Loom: a_blocks_next_owner_sees_its_last.
        let claim =
            self.hot.claimed.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        claim.is_ok().then(|| Claim { shard: self })
    }
}

#[cfg(feature = "async")]
impl super::FreeList {
    /// Claims and unlocks each shard in turn. This thread then sees every change made under an earlier
    /// claim. A thread that claims a shard later sees this thread's earlier changes.
    pub(crate) fn meet_all_claims(&self) {
        self.shards.iter().for_each(|shard| drop(shard.claim()));
    }
}

/// The right to change a shard, and with it ids in the depot. Ends when dropped, also by a panic.
pub(super) struct Claim<'a> {
    pub(super) shard: &'a Shard,
}

// All accesses to `len` and `ids` are Relaxed: they are made only under the claim, and its hand-over orders
// them.
impl Claim<'_> {
    #[inline]
    pub(super) fn ledger(&self) -> &Ledger {
        self.shard.ledger()
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.shard.hot.len.load(Ordering::Relaxed) as usize
    }

    #[inline]
    pub(super) fn set_len(&mut self, len: usize) {
        self.shard.hot.len.store(len as u32, Ordering::Relaxed);
    }

    /// Moves `n` ids to `out` and gives each block its one owner. The magazine holds at least `n`. The caller counts
    /// them.
    #[inline]
    pub(super) fn pop_owned(&mut self, n: usize, words: &BlockWords, out: &mut Vec<BlockId>) {
        let len = self.len();
        self.set_len(len - n);
        let words = words.view();
        out.extend(self.shard.ids[len - n..len].iter().rev().map(|slot| {
            let id = BlockId(slot.load(Ordering::Relaxed));
            words.occupy(id);
            id
        }));
    }

    /// Moves up to `n` ids to `out`.
    pub(super) fn pop(&mut self, n: usize, out: &mut Vec<BlockId>) {
        let len = self.len();
        let rest = len.saturating_sub(n);
        let slots = self.shard.ids[rest..len].iter().rev();
        out.extend(slots.map(|slot| BlockId(slot.load(Ordering::Relaxed))));
        self.set_len(rest);
    }

    pub(super) fn pop_one(&mut self) -> BlockId {
        let len = self.len() - 1;
        self.set_len(len);
        BlockId(self.shard.ids[len].load(Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn push(&mut self, id: BlockId, depot: &ArrayQueue<FreeBatch>) {
        let len = self.make_room(1, depot);
        self.shard.ids[len].store(id.0, Ordering::Relaxed);
        self.set_len(len + 1);
    }

    /// Makes room for `n` more ids, at most a batch, and returns the number of ids.
    #[inline]
    pub(super) fn make_room(&mut self, n: usize, depot: &ArrayQueue<FreeBatch>) -> usize {
        let len = self.len();
        if len + n <= self.shard.ids.len() { len } else { self.spill(len, depot) }
    }

    /// Moves all full batches to the depot, where every thread finds them.
    pub(super) fn spill_all(&mut self, depot: &ArrayQueue<FreeBatch>) {
        while self.len() >= BATCH {
            self.spill(self.len(), depot);
        }
    }

    /// Moves a batch of ids, the uppermost of `len`, to the depot and returns how many are left.
    #[cold]
    fn spill(&mut self, len: usize, depot: &ArrayQueue<FreeBatch>) -> usize {
        let rest = len - BATCH;
        let slots = &self.shard.ids[rest..];
        let id = |at: usize| BlockId(slots[at].load(Ordering::Relaxed));
        let pushed = depot.push(FreeBatch(std::array::from_fn(id)));
        assert!(pushed.is_ok(), "the depot has room for every block of the pool");
        self.set_len(rest);
        rest
    }
}

impl Drop for Claim<'_> {
    #[inline]
    fn drop(&mut self) {
        // Release: pairs with the exchange in `Shard::try_claim`.
        self.shard.hot.claimed.store(false, Ordering::Release);
    }
}
