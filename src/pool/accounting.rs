//! `Ledger`: the counts of one home shard, and the proofs that sums over all ledgers give. *Room* is
//! the number of blocks that an allocation can take: free and idle ones.
//!
//! A [`Ledger`] counts the blocks that left room and those that came back through one shard. Both
//! counts only grow. Only the holder of the shard's claim writes them, with a plain store, so no cache
//! line is written by all threads. Moves between shards and the depot touch no ledger, so blocks in
//! transit are never missing from the sum.
//!
//! **A refusal needs three passes and no lock.** The thread reads every `taken`, then every `giving`,
//! then every `given`. Let t be a moment between the first and the second pass. Each `taken` read is at
//! most its value at t, and each `given` read is at least its value at t. So `total - (taken - given)` is at
//! least the room at t. If that is less than requested, there was less room than requested at t. Reading in
//! the other order bounds the blocks in use from above, as a statistic needs it.
//!
//! Only idle blocks need `giving`. A freed block stays hidden under the claim until it is counted; an
//! idle block can be matched immediately. So it can be taken before it is counted as given, and would
//! count as used twice. Each ledger therefore announces the most blocks that can be in this state
//! (`giving`), and a refusal counts them as room.
//!
//! **A bound without a sum.** Each ledger also has a limit that its balance, the blocks taken and not given
//! through it, does not exceed: the holder of the claim raises the limit first. So the sum of all limits bounds
//! the blocks in use. `free_list::room` keeps that sum up to date.
//!
//! A ledger holds counts only, and no ids.

use crate::sync::{AtomicU64, AtomicUsize, Ordering};

/// The numbers of blocks that left room and came back through one shard. Only the holder of the shard's
/// claim writes them.
///
/// A block that becomes idle has come back to room. An idle block that is matched or reclaimed has left
/// room again.
pub(crate) struct Ledger {
    taken: AtomicU64,
    given: AtomicU64,
    giving: AtomicU64,
    idled: AtomicU64,
    revived: AtomicU64,
    reclaimed: AtomicU64,
    /// The most blocks that were taken and not given through this shard, rounded up: an `i64`, because more can
    /// be given than taken.
    limit: AtomicU64,
}

/// The number of blocks by which a shard raises its limit beyond its balance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quota(i64);

impl Quota {
    /// No limit. The sum of all limits says nothing then.
    pub(crate) const UNLIMITED: Self = Self(i64::MAX / 2);
    /// A smaller quota would be used up too often.
    const LEAST: usize = if cfg!(any(paged_kv_loom, paged_kv_shuttle)) { 1 } else { 8 };
    /// As many blocks as a magazine holds at most.
    const MOST: usize = 1024;

    /// Returns the quota of each of `shards` shards of a pool: all together at most an eighth of its blocks. A
    /// pool of one shard, or of few blocks, has none.
    pub(crate) fn of_shards(total: usize, shards: usize) -> Self {
        match total / shards / 8 {
            blocks if shards > 1 && blocks >= Self::LEAST => Self(blocks.min(Self::MOST) as i64),
            _ => Self::UNLIMITED,
        }
    }

    /// Returns the blocks of all quotas, if there are any.
    pub(crate) fn all(self, shards: usize) -> Option<usize> {
        (self != Self::UNLIMITED).then(|| self.0 as usize * shards)
    }
}

impl Ledger {
    pub(crate) fn new(quota: Quota) -> Self {
        let [taken, given, giving, idled, revived, reclaimed] =
            std::array::from_fn(|_| AtomicU64::new(0));
        let limit = AtomicU64::new(quota.0 as u64);
        Self { taken, given, giving, idled, revived, reclaimed, limit }
    }

    #[inline]
    fn limit(&self) -> i64 {
        self.limit.load(Ordering::Relaxed) as i64
    }

    /// Sets the limit to a quota above the balance, for the holder of the claim. Returns the change.
    pub(crate) fn set_limit(&self, quota: Quota) -> i64 {
        let Totals { taken, given } = self.read();
        let (old, new) = (self.limit(), balance(taken, given) + quota.0);
        self.limit.store(new as u64, Ordering::Relaxed);
        new - old
    }

    /// Returns the counts, for the holder of the claim.
    #[inline]
    pub(crate) fn read(&self) -> Totals {
        // Relaxed: the claim orders its holders, and no other thread writes.
        Totals {
            taken: self.taken.load(Ordering::Relaxed),
            given: self.given.load(Ordering::Relaxed),
        }
    }

    /// Counts blocks that left room, for the holder of the claim. Returns true if the balance exceeds the limit.
    #[inline]
    #[must_use]
    pub(crate) fn took(&self, blocks: u64) -> bool {
        let taken = self.taken.load(Ordering::Relaxed) + blocks;
        // Release: pairs with the Acquire loads in `sum`; a refusal that counts this taking also counts
        // the givings before it.
        // Loom: a_batch_is_in_one_hand_when_it_is_stolen.
        self.taken.store(taken, Ordering::Release);
        balance(taken, self.given.load(Ordering::Relaxed)) > self.limit()
    }

    /// Counts blocks that came back to room, for the holder of the claim, after they are there.
    #[inline]
    pub(crate) fn gave(&self, blocks: u64) {
        let given = self.given.load(Ordering::Relaxed) + blocks;
        // Release: pairs with the Acquire loads in `sum`; a statistic that counts this giving also
        // counts the taking before it.
        // Loom: a_block_is_not_counted_as_given_before_it_was_taken.
        self.given.store(given, Ordering::Release);
    }

    /// Announces, for the holder of the claim, that at most `blocks` blocks are about to become idle
    /// and are not counted as given yet. Other threads may take them before they are counted. The
    /// holder sets 0 after it has counted them.
    pub(crate) fn giving(&self, blocks: u64) {
        // Release: pairs with the Acquire loads in `sum`; a thread that reads 0 here finds the blocks
        // among the given.
        self.giving.store(blocks, Ordering::Release);
    }
}

impl Ledger {
    /// Counts those of the given blocks that are idle, for the holder of the claim.
    pub(crate) fn idled(&self, blocks: u64) {
        add(&self.idled, blocks);
    }

    /// Counts those of the taken blocks that were idle and are matched, for the holder of the claim.
    pub(crate) fn revived(&self, blocks: u64) {
        add(&self.revived, blocks);
    }

    /// Counts those of the taken blocks whose contents were reclaimed, for the holder of the claim.
    pub(crate) fn reclaimed(&self, blocks: u64) {
        add(&self.reclaimed, blocks);
    }
}

/// Returns the blocks taken and not given through a shard; more may have been given than were taken.
#[inline]
fn balance(taken: u64, given: u64) -> i64 {
    taken.wrapping_sub(given) as i64
}

/// Adds to a statistic that one thread at a time writes.
fn add(count: &AtomicU64, blocks: u64) {
    // Relaxed: a statistic; the claim orders its writers.
    count.store(count.load(Ordering::Relaxed) + blocks, Ordering::Relaxed);
}

/// Statistics of cached blocks without owners.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct IdleTotals {
    /// Blocks that are idle now.
    pub(crate) idle: usize,
    /// Blocks reclaimed since the pool was built.
    pub(crate) reclaimed: u64,
}

/// Returns the idle and the reclaimed blocks. Under load, each count is of a moment near the call.
pub(crate) fn idle_totals<'a>(
    total: usize,
    ledgers: impl Iterator<Item = &'a Ledger> + Clone,
) -> IdleTotals {
    let reclaimed = sum(ledgers.clone(), |ledger| &ledger.reclaimed);
    let gone = reclaimed + sum(ledgers.clone(), |ledger| &ledger.revived);
    let idled = sum(ledgers, |ledger| &ledger.idled);
    IdleTotals { idle: (idled.saturating_sub(gone) as usize).min(total), reclaimed }
}

/// Blocks that left room and blocks that came back, since the pool was built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) taken: u64,
    pub(crate) given: u64,
}

impl Totals {
    pub(crate) fn used(self) -> usize {
        (self.taken - self.given) as usize
    }
}

/// Returns an upper bound of the room at some moment during the call. A refusal may rest on it.
pub(crate) fn room_at_most<'a>(
    total: usize,
    ledgers: impl Iterator<Item = &'a Ledger> + Clone,
) -> usize {
    let taken = sum(ledgers.clone(), |ledger| &ledger.taken);
    // In this order: a thread that clears `giving` has counted the blocks before.
    let giving = sum(ledgers.clone(), |ledger| &ledger.giving);
    let given = giving + sum(ledgers, |ledger| &ledger.given);
    // The count of a taking may be unseen although its giving back is seen. Then more is given than
    // taken, and the bound is the total.
    total - (taken.saturating_sub(given) as usize).min(total)
}

/// Returns the sums, with `given <= taken`. They are of one moment if no ledger changes during two
/// passes.
pub(crate) fn totals<'a>(ledgers: impl Iterator<Item = &'a Ledger> + Clone) -> Totals {
    const PASSES: usize = 8;
    let mut given = sum(ledgers.clone(), |ledger| &ledger.given);
    let mut taken = sum(ledgers.clone(), |ledger| &ledger.taken);
    for _ in 0..PASSES {
        let given_again = sum(ledgers.clone(), |ledger| &ledger.given);
        let taken_again = sum(ledgers.clone(), |ledger| &ledger.taken);
        if (taken_again, given_again) == (taken, given) {
            break;
        }
        (taken, given) = (taken_again, given_again);
    }
    Totals { taken, given }
}

fn sum<'a>(
    ledgers: impl Iterator<Item = &'a Ledger>,
    count: impl Fn(&Ledger) -> &AtomicU64,
) -> u64 {
    ledgers.map(|ledger| count(ledger).load(Ordering::Acquire)).sum()
}

/// The highest number of blocks in use that a thread has noted.
pub(crate) struct Peak(AtomicUsize);

impl Peak {
    pub(crate) fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    #[inline]
    pub(crate) fn note(&self, used: usize) {
        // Relaxed: a statistic. The load keeps the cache line shared while the peak does not rise.
        if used > self.0.load(Ordering::Relaxed) {
            self.0.fetch_max(used, Ordering::Relaxed);
        }
    }

    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledgers(counts: &[(u64, u64)]) -> Vec<Ledger> {
        let ledger = |&(taken, given): &(u64, u64)| {
            let ledger = Ledger::new(Quota::UNLIMITED);
            let _ = ledger.took(taken);
            ledger.gave(given);
            ledger
        };
        counts.iter().map(ledger).collect()
    }

    #[test]
    fn blocks_taken_through_one_shard_and_given_through_another_cancel() {
        let ledgers = ledgers(&[(10, 0), (0, 7)]);
        assert_eq!(totals(ledgers.iter()).used(), 3);
        assert_eq!(room_at_most(16, ledgers.iter()), 13);
    }

    #[test]
    fn blocks_taken_and_given_add_up() {
        let ledger = Ledger::new(Quota::UNLIMITED);
        [2, 3].into_iter().for_each(|blocks| assert!(!ledger.took(blocks)));
        [1, 1].into_iter().for_each(|blocks| ledger.gave(blocks));
        assert_eq!(ledger.read(), Totals { taken: 5, given: 2 });
        assert_eq!(ledger.read().used(), 3);
    }

    #[test]
    fn blocks_on_their_way_back_are_room() {
        let ledgers = ledgers(&[(10, 1), (2, 0)]);
        ledgers[0].giving(3);
        assert_eq!(room_at_most(16, ledgers.iter()), 8);
        ledgers[0].giving(0);
        assert_eq!(room_at_most(16, ledgers.iter()), 5);
    }

    #[test]
    fn idle_are_those_that_became_so_and_were_neither_matched_nor_reclaimed() {
        let ledgers = [Ledger::new(Quota::UNLIMITED), Ledger::new(Quota::UNLIMITED)];
        [4, 5].into_iter().for_each(|blocks| ledgers[0].idled(blocks));
        ledgers[1].revived(2);
        ledgers[1].reclaimed(3);
        ledgers[0].reclaimed(1);
        let totals = |total| idle_totals(total, ledgers.iter());
        assert_eq!(totals(16), IdleTotals { idle: 3, reclaimed: 4 });
        assert_eq!(totals(2), IdleTotals { idle: 2, reclaimed: 4 }, "never more than there are");
        ledgers[1].revived(9);
        assert_eq!(totals(16), IdleTotals { idle: 0, reclaimed: 4 }, "never fewer than none");
    }

    #[test]
    fn the_bound_never_exceeds_the_total_nor_falls_below_zero() {
        assert_eq!(room_at_most(16, ledgers(&[(0, 5)]).iter()), 16);
        assert_eq!(room_at_most(16, ledgers(&[(40, 5)]).iter()), 0);
    }

    #[test]
    fn a_limit_is_raised_when_the_balance_exceeds_it() {
        let quota = Quota::of_shards(1 << 16, 16);
        assert_eq!(quota, Quota(512));
        let ledger = Ledger::new(quota);
        assert!(!ledger.took(512));
        ledger.gave(100);
        assert!(!ledger.took(100));
        assert!(ledger.took(1));
        assert_eq!(ledger.set_limit(quota), 513);
        assert!(!ledger.took(512));
        ledger.gave(2_000);
        assert_eq!(ledger.set_limit(quota), -1_488, "more was given than taken");
        assert!(ledger.took(513));
    }

    #[test]
    fn few_blocks_or_one_shard_have_no_quota() {
        for (total, shards) in [(1 << 20, 1), (63 * 8, 8), (0, 4)] {
            assert_eq!(Quota::of_shards(total, shards), Quota::UNLIMITED);
            assert!(!Ledger::new(Quota::of_shards(total, shards)).took(total as u64));
        }
        assert_eq!(Quota::of_shards(64 * 8, 8).all(8), Some(64));
    }

    #[test]
    fn the_peak_only_rises() {
        let peak = Peak::new();
        for used in [3, 9, 4] {
            peak.note(used);
        }
        assert_eq!(peak.get(), 9);
    }
}
