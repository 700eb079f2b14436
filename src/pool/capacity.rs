//! Is there room, and how much was ever used? A ledger per home shard, and what their sums prove.
//!
//! A [`Ledger`] counts the blocks that left room and those that came back through one shard. Both
//! counts only grow, and only the holder of the shard's claim writes them: a plain store, no
//! line that all threads write. Moves between shards and the depot touch no ledger, so blocks in
//! transit are never missing from the sum.
//!
//! **A refusal needs two passes and no lock.** Read every `taken`, then every `given`. Let t be
//! a moment between the passes. Each `taken` read is at most its value at t and each `given`
//! read at least, so `total - (taken - given)` is at least the room at t. If that is less than
//! asked, there was less room than asked at t. Reading in the other order bounds the blocks in
//! use from above, which is what a statistic wants.
//!
//! A block that becomes idle can be taken again before the claim ends under which it did, and so
//! before it is counted as given: it would count as used twice. So each ledger says how many such
//! blocks are on their way at most, and a refusal takes them for room.
//!
//! A ledger does not know which blocks it counts.

use crate::sync::{AtomicU64, AtomicUsize, Ordering};

/// What left room and came back through one shard. Written by the holder of its claim only.
///
/// A block that becomes idle has come back to room; one that is matched while idle, or reclaimed, has
/// left it again.
pub(crate) struct Ledger {
    taken: AtomicU64,
    given: AtomicU64,
    giving: AtomicU64,
    idled: AtomicU64,
    revived: AtomicU64,
    reclaimed: AtomicU64,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        let [taken, given, giving, idled, revived, reclaimed] =
            std::array::from_fn(|_| AtomicU64::new(0));
        Self { taken, given, giving, idled, revived, reclaimed }
    }

    /// The counts, for the holder of the claim.
    #[inline]
    pub(crate) fn read(&self) -> Totals {
        // Relaxed: the claim orders its holders, and nobody else writes.
        Totals {
            taken: self.taken.load(Ordering::Relaxed),
            given: self.given.load(Ordering::Relaxed),
        }
    }

    /// Counts blocks that left room, for the holder of the claim.
    #[inline]
    pub(crate) fn took(&self, blocks: u64) {
        let taken = self.taken.load(Ordering::Relaxed) + blocks;
        // Release: pairs with the Acquire loads in `sum`; a refusal that counts this taking counts
        // the givings that came before it. Loom: a_batch_is_in_one_hand_when_it_is_stolen.
        self.taken.store(taken, Ordering::Release);
    }

    /// Counts blocks that came back to room, for the holder of the claim, once they are there.
    #[inline]
    pub(crate) fn gave(&self, blocks: u64) {
        let given = self.given.load(Ordering::Relaxed) + blocks;
        // Release: pairs with the Acquire loads in `sum`; a statistic that counts this giving counts
        // the taking that came before it. Loom: a_block_is_not_counted_as_given_before_it_was_taken.
        self.given.store(given, Ordering::Release);
    }

    /// Says, for the holder of the claim, that so many blocks at most are about to become idle and
    /// are not counted as given yet: others may take them before they are. 0 once they are counted.
    pub(crate) fn giving(&self, blocks: u64) {
        // Release: pairs with the Acquire loads in `sum`; who finds none on their way finds them
        // among the given.
        self.giving.store(blocks, Ordering::Release);
    }
}

impl Ledger {
    /// Counts blocks among the given that are idle, for the holder of the claim.
    pub(crate) fn idled(&self, blocks: u64) {
        add(&self.idled, blocks);
    }

    /// Counts blocks among the taken that were idle and are matched, for the holder of the claim.
    pub(crate) fn revived(&self, blocks: u64) {
        add(&self.revived, blocks);
    }

    /// Counts blocks among the taken whose contents were given up, for the holder of the claim.
    pub(crate) fn reclaimed(&self, blocks: u64) {
        add(&self.reclaimed, blocks);
    }
}

/// Adds to a statistic that one thread at a time writes.
fn add(count: &AtomicU64, blocks: u64) {
    // Relaxed: a statistic; the claim orders its writers.
    count.store(count.load(Ordering::Relaxed) + blocks, Ordering::Relaxed);
}

/// What became of cached blocks that nobody used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct IdleTotals {
    /// Idle now.
    pub(crate) idle: usize,
    /// Ever reclaimed.
    pub(crate) reclaimed: u64,
}

/// Under load counts of moments near the call.
pub(crate) fn idle_totals<'a>(
    total: usize,
    ledgers: impl Iterator<Item = &'a Ledger> + Clone,
) -> IdleTotals {
    let reclaimed = sum(ledgers.clone(), |ledger| &ledger.reclaimed);
    let gone = reclaimed + sum(ledgers.clone(), |ledger| &ledger.revived);
    let idled = sum(ledgers, |ledger| &ledger.idled);
    IdleTotals { idle: (idled.saturating_sub(gone) as usize).min(total), reclaimed }
}

/// Blocks that ever left room, and blocks that ever came back.
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

/// An upper bound of the room at some moment during the call: what a refusal may rest on.
pub(crate) fn room_at_most<'a>(
    total: usize,
    ledgers: impl Iterator<Item = &'a Ledger> + Clone,
) -> usize {
    let taken = sum(ledgers.clone(), |ledger| &ledger.taken);
    // In this order: who clears it has counted the blocks before.
    let giving = sum(ledgers.clone(), |ledger| &ledger.giving);
    let given = giving + sum(ledgers, |ledger| &ledger.given);
    // Another thread's taking may be unseen though its giving back is seen: then more is given
    // than taken, and the bound is the total.
    total - (taken.saturating_sub(given) as usize).min(total)
}

/// The sums such that `given <= taken`, of one moment if the ledgers hold still for two passes.
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

/// The most blocks in use that anyone has noted.
pub(crate) struct Peak(AtomicUsize);

impl Peak {
    pub(crate) fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    #[inline]
    pub(crate) fn note(&self, used: usize) {
        // Relaxed: a statistic. The load keeps the line shared while the peak stands.
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
            let ledger = Ledger::new();
            ledger.took(taken);
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
    fn what_is_taken_and_given_adds_up() {
        let ledger = Ledger::new();
        [2, 3].into_iter().for_each(|blocks| ledger.took(blocks));
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
        let ledgers = [Ledger::new(), Ledger::new()];
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
    fn the_peak_only_rises() {
        let peak = Peak::new();
        for used in [3, 9, 4] {
            peak.note(used);
        }
        assert_eq!(peak.get(), 9);
    }
}
