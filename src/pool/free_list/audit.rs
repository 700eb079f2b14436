//! Audit of the free list: checks, with all shards claimed, that every block is where its word says.
//!
//! The result is exact while other threads run, because a block becomes free, or stops being free, only
//! under a claim. Every thread that needs a claim waits for the audit. It is for tests and audits, not for
//! a hot path.

use super::{Claim, FreeList};
use crate::array::array_of;
use crate::error::PagedKvError;
use crate::id::BlockId;
use crate::pool::accounting::totals;
use crate::pool::word::{BlockState, BlockWords, IdleBlock};
use crate::sync::Ordering;

impl FreeList {
    /// Checks the free list against the blocks' words. Returns the first fault found as `Inconsistent`.
    pub(crate) fn audit(&self, first: u32, words: &BlockWords) -> crate::error::Result<()> {
        let seen = || array_of(self.total, || false);
        let census = Census { first, free: seen()?, idle: seen()?, words };
        self.compare(census).map_err(PagedKvError::Inconsistent)
    }

    fn compare(&self, mut census: Census<'_>) -> Result<(), String> {
        let _sole_collector = self.shortage.lock();
        let claims: Vec<Claim<'_>> = self.shards.iter().map(|shard| shard.claim()).collect();
        for claim in &claims {
            for slot in &claim.shard.ids[..claim.len()] {
                census.note(BlockId(slot.load(Ordering::Relaxed)))?;
            }
            claim.shard.idle.inspect(&self.idle, census.words, |entry| census.note_idle(entry));
        }
        if let Some(levels) = self.levels() {
            let ids = census.first..census.first + self.total as u32;
            levels.audit(ids, census.words)?;
            levels.inspect(census.words, |entry| census.note_idle(entry));
        }
        // All shards are claimed, so no other thread uses the depot: popping and pushing every batch once
        // keeps its order.
        for _ in 0..self.depot.len() {
            let batch = self.depot.pop().expect("only a claim's holder takes from the depot");
            let noted = batch.0.iter().try_for_each(|&id| census.note(id));
            let pushed = self.depot.push(batch);
            assert!(pushed.is_ok(), "the depot has room for what came out of it");
            noted?;
        }
        let (num_free, num_idle) = census.finish()?;
        let (used, idle) = (totals(self.ledgers()).used(), self.idle_totals().idle);
        if used + num_free + num_idle == self.total && idle == num_idle {
            return Ok(());
        }
        let total = self.total;
        Err(format!(
            "the ledgers say {used} of {total} blocks are used and {idle} are idle; \
             {num_free} are free and {num_idle} idle"
        ))
    }
}

/// The free and idle ids seen so far.
struct Census<'a> {
    first: u32,
    free: Box<[bool]>,
    idle: Box<[bool]>,
    words: &'a BlockWords,
}

impl Census<'_> {
    fn note(&mut self, id: BlockId) -> Result<(), String> {
        let index = id.0.wrapping_sub(self.first) as usize;
        let Some(seen) = self.free.get_mut(index) else {
            return Err(format!("{id} is in the free list, but not of this pool"));
        };
        if std::mem::replace(seen, true) {
            return Err(format!("{id} is in the free list twice"));
        }
        if self.words.state(id) != BlockState::FREE {
            return Err(format!("{id} is in the free list and has an owner"));
        }
        Ok(())
    }

    /// Notes the block of an entry as idle. Ignores a stale entry, whose block has changed since.
    fn note_idle(&mut self, entry: IdleBlock) {
        if self.words.view().is_idle_since(entry) {
            self.idle[(entry.id.0 - self.first) as usize] = true;
        }
    }

    /// Returns the numbers of free and of idle blocks. Fails if a block without an owner is in no list.
    fn finish(self) -> Result<(usize, usize), String> {
        for (id, (&free, &idle)) in
            (self.first..).map(BlockId).zip(self.free.iter().zip(&self.idle))
        {
            let state = self.words.state(id);
            if !free && state == BlockState::FREE {
                return Err(format!("{id} has no owner and is not in the free list"));
            }
            if !idle && state.is_idle() {
                return Err(format!("{id} is idle and nothing leads to it"));
            }
        }
        let count = |seen: &[bool]| seen.iter().filter(|&&seen| seen).count();
        Ok((count(&self.free), count(&self.idle)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BATCH, ContentKey, FreeBatch, Retention};
    use super::*;
    use crate::pool::content_key::NewKey;
    use crate::pool::idle::policy::ReclaimPolicy;

    /// The first id, as in a pool whose block 0 is the null block.
    const FIRST: u32 = 1;

    /// Creates a list of blocks 1 to 3 in its only shard, block 1 on top.
    fn three_blocks() -> (FreeList, BlockWords) {
        (FreeList::new(FIRST, 3, 1, Retention::Nothing).unwrap(), BlockWords::new(4).unwrap())
    }

    /// Creates such a list that holds `ids` instead.
    fn that_holds(ids: &[u32]) -> (FreeList, BlockWords) {
        let (list, words) = three_blocks();
        let mut home = list.shards[0].claim();
        home.set_len(0);
        ids.iter().for_each(|&id| home.push(BlockId(id), &list.depot));
        drop(home);
        (list, words)
    }

    fn finding(list: &FreeList, words: &BlockWords) -> String {
        match list.audit(FIRST, words) {
            Err(PagedKvError::Inconsistent(fault)) => fault,
            other => panic!("something is wrong, and it says {other:?}"),
        }
    }

    fn with_contents(total: usize, shards: usize) -> (FreeList, BlockWords) {
        let keep = Retention::Contents(ReclaimPolicy::Lru);
        (
            FreeList::new(FIRST, total, shards, keep).unwrap(),
            BlockWords::with_keys(total + 1).unwrap(),
        )
    }

    fn take(list: &FreeList, n: usize, words: &BlockWords) -> Vec<BlockId> {
        let mut ids = Vec::new();
        list.take(n, words, &mut ids).expect("there is room");
        ids
    }

    /// Takes `n` blocks and makes them idle, the last block first.
    fn make_idle(list: &FreeList, n: usize, words: &BlockWords) {
        let ids = take(list, n, words);
        for &id in &ids {
            let key = ContentKey::new(u128::from(id.0));
            assert!(
                words.set_key(id, NewKey::only(key), true, |_| {}),
                "a private block has no key"
            );
        }
        list.give(&ids, words);
    }

    #[test]
    fn a_list_in_order_has_nothing_wrong_with_it() {
        let (list, words) = three_blocks();
        assert_eq!(list.audit(FIRST, &words), Ok(()));
        let ids = take(&list, 2, &words);
        assert_eq!(list.audit(FIRST, &words), Ok(()));
        list.give(&ids, &words);
        assert_eq!(list.audit(FIRST, &words), Ok(()));
    }

    #[test]
    fn an_id_that_is_there_twice_is_found() {
        let (list, words) = that_holds(&[1, 2, 1]);
        assert_eq!(finding(&list, &words), "B1 is in the free list twice");
    }

    #[test]
    fn an_id_of_another_pool_is_found() {
        for foreign in [0, 4] {
            let (list, words) = that_holds(&[3, foreign, 1]);
            let finding = finding(&list, &words);
            assert_eq!(finding, format!("B{foreign} is in the free list, but not of this pool"));
        }
    }

    #[test]
    fn a_free_block_with_an_owner_is_found() {
        let (list, words) = three_blocks();
        words.view().occupy(BlockId(2));
        assert_eq!(finding(&list, &words), "B2 is in the free list and has an owner");
    }

    #[test]
    fn a_block_that_nothing_leads_to_is_found() {
        let (list, words) = that_holds(&[3, 2]);
        assert_eq!(finding(&list, &words), "B1 has no owner and is not in the free list");
        let (list, words) = with_contents(3, 1);
        let id = take(&list, 1, &words)[0];
        assert!(words.set_key(id, NewKey::only(ContentKey::new(1)), true, |_| {}));
        words.view().release_shared(id);
        assert_eq!(finding(&list, &words), "B1 is idle and nothing leads to it");
    }

    #[test]
    fn ledgers_that_say_otherwise_are_found() {
        let (list, words) = three_blocks();
        let _ = list.shards[0].ledger().took(1);
        let expected =
            "the ledgers say 1 of 3 blocks are used and 0 are idle; 3 are free and 0 idle";
        assert_eq!(finding(&list, &words), expected);
        let (list, words) = three_blocks();
        list.shards[0].ledger().idled(1);
        let expected =
            "the ledgers say 0 of 3 blocks are used and 1 are idle; 3 are free and 0 idle";
        assert_eq!(finding(&list, &words), expected);
    }

    #[test]
    fn used_free_and_idle_blocks_make_the_pool() {
        let (list, words) = with_contents(6, 1);
        make_idle(&list, 2, &words);
        let used = take(&list, 3, &words);
        assert_eq!(list.audit(FIRST, &words), Ok(()));
        // The last free block is taken, and the oldest idle block is reclaimed.
        take(&list, 2, &words);
        assert_eq!((used.len(), list.audit(FIRST, &words)), (3, Ok(())));
    }

    #[test]
    fn a_look_at_the_depot_finds_faults_and_leaves_it_as_it_was() {
        const TOTAL: usize = 4 * BATCH;
        let fresh = || {
            (
                FreeList::new(FIRST, TOTAL, 2, Retention::Nothing).unwrap(),
                BlockWords::new(TOTAL + 1).unwrap(),
            )
        };
        let (list, words) = fresh();
        let in_depot = list.depot.len();
        assert!(in_depot >= 2, "more than the home shard holds");
        assert_eq!(list.audit(FIRST, &words), Ok(()));
        assert_eq!(list.depot.len(), in_depot);
        let (never_looked_at, other_words) = fresh();
        let ids = take(&list, TOTAL, &words);
        assert_eq!(ids, take(&never_looked_at, TOTAL, &other_words));

        let (list, words) = fresh();
        let batch = list.depot.pop().expect("a batch");
        let owned = batch.0[7];
        assert!(list.depot.push(FreeBatch(batch.0)).is_ok());
        words.view().occupy(owned);
        let expected = format!("{owned} is in the free list and has an owner");
        assert_eq!((finding(&list, &words), list.depot.len()), (expected, in_depot));
    }

    #[test]
    fn a_look_at_the_idle_blocks_leaves_their_order_as_it_was() {
        const TOTAL: usize = 3 * BATCH + 7;
        let order = |looks: usize| {
            let (list, words) = with_contents(TOTAL, 2);
            make_idle(&list, TOTAL, &words);
            (0..looks).for_each(|_| assert_eq!(list.audit(FIRST, &words), Ok(())));
            let mut order = take(&list, BATCH + 1, &words);
            // The shard's `oldest` list has entries now.
            (0..looks).for_each(|_| assert_eq!(list.audit(FIRST, &words), Ok(())));
            order.extend(take(&list, TOTAL - BATCH - 1, &words));
            order
        };
        let undisturbed = order(0);
        assert_eq!(undisturbed.len(), TOTAL);
        assert_eq!(order(2), undisturbed);
    }
}
