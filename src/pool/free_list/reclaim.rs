//! Reclaim by the free list: a thread takes idle blocks of its home shard while these are about as old as the
//! oldest of other shards.
//!
//! A block that went idle at its home was last used there: its word, its key and its index entries are in that
//! core's cache. A thread compares its home with other shards: the one from which it last took blocks, and the next
//! [`LOOKED_AT`] in turn. It does so once in [`MOST_CREDIT`] blocks, and more often where a shard's share is below
//! 4,096 blocks. Another shard comes first only if its first block is older by more than a [`TOLERANCE`]th. So the
//! order is that of the last uses: exact where one thread uses the pool, and else mostly to within that share of the
//! idle blocks. `tests/coherence/hit_rates.rs` counts the hits that this costs.
//!
//! Contents of lower levels go before all of these but the home's spare copies, and those of higher levels after all
//! ([`by_level`](super::by_level)).
//!
//! Free blocks of other shards are taken before contents end, but each shard is looked at in its turn only, once in
//! so many blocks.

use std::iter;

use super::choice::NEVER;
use super::home_shard::{BATCH, Claim, Shard};
use super::{FreeList, Search};
use crate::id::BlockId;
use crate::pool::idle::hit_density::HitDensity;
use crate::pool::idle::levels::{LevelledRun, Side};
use crate::pool::idle::{AgeBound, IdleLists};
use crate::pool::word::{BlockWords, ReleasedIdle};
use crate::sync::{Ordering, thread_ordinal};

/// A shard comes before the home if its first block is older by more than the age divided by this.
const TOLERANCE: u64 = 16;

/// Shards in turn with which a thread compares its home.
const LOOKED_AT: usize = 4;

/// A thread reclaims its share of the pool, divided by this, before it looks at other shards again.
const LOOKS_A_SHARE: usize = 32;

/// The most blocks that a thread reclaims before it looks at other shards again.
const MOST_CREDIT: usize = BATCH;

/// Looks at other shards that find no block before a thread searches all of them.
const MOST_LOOKS: usize = 2;

// All accesses to a `Choice` are Relaxed: they are made under the claim only.
impl FreeList {
    /// Fills `out` up to `end` with free and idle blocks of a pool that keeps contents, beyond the home's
    /// magazine and the depot. Returns how many are reclaimed; these are the last ones.
    pub(super) fn gather_with_contents(
        &self,
        home: &mut Claim<'_>,
        end: usize,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
        search: Search,
    ) -> usize {
        if out.len() == end {
            return 0;
        }
        if self.shards.len() > 1 {
            self.steal_in_turn(home, end, out);
        }
        let free_end = out.len();
        if let Some(levels) = self.idle.levels() {
            if search == Search::Near && out.len() < end && levels.ended_by().is_some() {
                // The caller moves their contents to the default order, without this claim, and asks again.
                return 0;
            }
            home.shard.idle.reclaim_spare(end, &self.idle, words, out);
            levels.reclaim(Side::Below, end, words, out);
        }
        self.reclaim_near(home, end, words, out);
        let mut reclaimed = out.len() - free_end;
        if out.len() < end && search == Search::AllShards {
            self.steal(home, end, out);
            out[free_end..].rotate_left(reclaimed);
            let free_end = out.len() - reclaimed;
            self.reclaim_elsewhere(end, words, out);
            self.reclaim_above(end, words, out);
            reclaimed = out.len() - free_end;
        }
        reclaimed
    }

    /// Fills `out` up to `end` with free blocks of one other shard, once in so many blocks. The shards have their
    /// turns, so that contents are not reclaimed for long while blocks are free elsewhere. The first time, and in a
    /// small pool each time, these are the blocks of all shards.
    fn steal_in_turn(&self, home: &mut Claim<'_>, end: usize, out: &mut Vec<BlockId>) {
        let choice = &home.shard.choice;
        if !self.floor.has_quotas() || choice.next_free.load(Ordering::Relaxed) == NEVER {
            choice.next_free.store(0, Ordering::Relaxed);
            return self.steal(home, end, out);
        }
        let unlooked = choice.unlooked.load(Ordering::Relaxed) as usize + end - out.len();
        let is_due = unlooked >= self.credit();
        choice.unlooked.store(if is_due { 0 } else { unlooked as u32 }, Ordering::Relaxed);
        if is_due {
            let number = (choice.next_free.load(Ordering::Relaxed) + 1) % NEVER;
            choice.next_free.store(number, Ordering::Relaxed);
            self.steal_from(self.shard_of(number as usize), home, end, out);
        }
    }

    /// Returns the number of blocks after which a thread looks at other shards again.
    fn credit(&self) -> usize {
        (self.total / self.shards.len() / LOOKS_A_SHARE).clamp(1, MOST_CREDIT)
    }

    /// Reclaims blocks of the home shard and of those that it is compared with.
    fn reclaim_near(
        &self,
        home: &mut Claim<'_>,
        end: usize,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
    ) {
        if self.shards.len() > 1 {
            let mut looks = 0;
            while out.len() < end && looks < MOST_LOOKS {
                looks += 1;
                if self.reclaim_by_choice(home, end, words, out) > 0 {
                    looks = 0;
                }
            }
        }
        if out.len() < end {
            home.reclaim(end, self.any_age(), &self.idle, words, out);
        }
    }

    /// Reclaims blocks of the shard that was chosen, or is chosen now. Returns their number.
    fn reclaim_by_choice(
        &self,
        home: &mut Claim<'_>,
        end: usize,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
    ) -> usize {
        let choice = &home.shard.choice;
        if choice.credit.load(Ordering::Relaxed) == 0 {
            match self.idle.density() {
                None => self.choose(home),
                Some(density) => self.choose_by_price(home, density, words),
            }
        }
        let (start, credit) = (out.len(), choice.credit.load(Ordering::Relaxed) as usize);
        let end = end.min(start + credit);
        let mut bound = AgeBound::at_least(choice.age.load(Ordering::Relaxed), self.idle.now());
        if let Some(density) = self.idle.density() {
            bound.rival = choice.rival.read(density, density.now());
        }
        let chosen = &*self.shards[choice.shard.load(Ordering::Relaxed) as usize];
        if std::ptr::eq(chosen, home.shard) {
            home.reclaim(end, bound, &self.idle, words, out);
        } else if let Some(mut other) = chosen.try_claim() {
            other.reclaim(end, bound, &self.idle, words, out);
        }
        let left = if out.len() < end { 0 } else { credit - (end - start) };
        choice.credit.store(left as u32, Ordering::Relaxed);
        out.len() - start
    }

    /// Chooses the shard whose first block is the oldest, in favour of the home.
    #[cold]
    fn choose(&self, home: &Claim<'_>) {
        // A home to which no block came lately has an old time, by which all other blocks are new.
        home.shard.idle.read_clock(&self.idle);
        let now = home.shard.idle.now();
        let age = |shard: &Shard| shard.idle.oldest().age(now);
        let own = age(home.shard);
        let others = self.others(home.shard);
        let oldest = others.filter_map(|at| Some((age(&self.shards[at])?, at))).max();
        let (shard, bound) = match (own, oldest) {
            (_, None) => (self.number_of(home.shard), 0),
            (None, Some((_, at))) => (at, 0),
            (Some(own), Some((other, at))) if other > own + other / TOLERANCE => (at, own),
            (Some(_), Some((other, _))) => (self.number_of(home.shard), other - other / TOLERANCE),
        };
        self.note_choice(home, shard, bound);
    }

    fn note_choice(&self, home: &Claim<'_>, shard: usize, bound: u64) {
        let choice = &home.shard.choice;
        choice.shard.store(shard as u32, Ordering::Relaxed);
        choice.age.store(bound, Ordering::Relaxed);
        choice.credit.store(self.credit() as u32, Ordering::Relaxed);
        let next = choice.next.load(Ordering::Relaxed).wrapping_add(LOOKED_AT as u32);
        choice.next.store(next, Ordering::Relaxed);
    }

    /// Chooses the shard with the block that goes first in a learned order, in favour of the home. Other shards are
    /// compared by the blocks that they show.
    #[cold]
    fn choose_by_price(&self, home: &Claim<'_>, density: &HitDensity, words: &BlockWords) {
        // Spare blocks have no price: they go before all others.
        let mut with_spare = iter::once(self.number_of(home.shard)).chain(self.others(home.shard));
        if let Some(shard) = with_spare.find(|&at| self.shards[at].idle.shows_spare()) {
            home.shard.choice.rival.show(None);
            return self.note_choice(home, shard, 0);
        }
        let now = density.now();
        let own = home.shard.idle.first_by_price(density, now, &self.idle, words);
        let other_first = |at: usize| Some((self.shards[at].idle.shown_first(density, now)?, at));
        let others = self.others(home.shard).filter_map(other_first);
        let of_others =
            others.reduce(|one, next| if next.0.goes_before(one.0) { next } else { one });
        let (shard, rival) = match (own, of_others) {
            (None, Some((_, at))) => (at, None),
            (Some(own), Some((other, at))) if other.goes_far_before(own) => (at, Some(own)),
            (_, other) => (self.number_of(home.shard), other.map(|(other, _)| other)),
        };
        home.shard.choice.rival.show(rival);
        self.note_choice(home, shard, 0);
    }

    /// Returns the numbers of the shards with which the home is compared.
    fn others<'a>(&'a self, home: &'a Shard) -> impl Iterator<Item = usize> + use<'a> {
        let (choice, mask) = (&home.choice, self.shards.len() - 1);
        let last = choice.shard.load(Ordering::Relaxed) as usize;
        let next = choice.next.load(Ordering::Relaxed) as usize;
        let in_turn = (0..=mask).take(LOOKED_AT).map(move |step| next.wrapping_add(step) & mask);
        let in_turn = in_turn.filter(move |&number| number != last);
        let is_other = move |&number: &usize| !std::ptr::eq(&*self.shards[number], home);
        iter::once(last).chain(in_turn).filter(is_other)
    }

    fn number_of(&self, shard: &Shard) -> usize {
        let ordinal = thread_ordinal();
        let numbers = (0..self.shards.len()).map(|step| ordinal.wrapping_add(step));
        let mut numbers = numbers.map(|number| number & (self.shards.len() - 1));
        let number = numbers.find(|&number| std::ptr::eq(&*self.shards[number], shard));
        number.expect("a claim is of a shard of this list")
    }

    /// Returns a bound that blocks of any age meet.
    fn any_age(&self) -> AgeBound {
        AgeBound::at_least(0, self.idle.now())
    }

    /// Reclaims idle blocks of all shards and levels until `out` has `end` ids.
    pub(super) fn reclaim_from_all(
        &self,
        claims: &mut [Claim<'_>],
        end: usize,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
    ) {
        if let Some(levels) = self.idle.levels() {
            let shards = claims.iter().map(|claim| &claim.shard.idle);
            shards.for_each(|idle| idle.reclaim_spare(end, &self.idle, words, out));
            levels.reclaim(Side::Below, end, words, out);
        }
        self.reclaim_oldest(claims, end, words, out);
        self.reclaim_above(end, words, out);
    }

    /// Reclaims idle blocks of all shards until `out` has `end` ids: of the shard whose first block is the oldest, up to
    /// a batch at a time.
    fn reclaim_oldest(
        &self,
        claims: &mut [Claim<'_>],
        end: usize,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
    ) {
        let now = self.idle.now();
        while out.len() < end {
            let age = |claim: &&mut Claim<'_>| claim.shard.idle.oldest().age(now);
            let Some(oldest) = claims.iter_mut().max_by_key(age) else { return };
            if age(&&mut *oldest).is_none() {
                return;
            }
            let (end, bound) = (end.min(out.len() + BATCH), AgeBound::at_least(0, now));
            oldest.reclaim(end, bound, &self.idle, words, out);
        }
    }

    /// Puts back blocks that were too few: the free ids before `free_end`, and after it the reclaimed
    /// blocks. These were all that the thread could reach. They
    /// become the newest entries of the home; those with a level come first in its order, as before.
    pub(super) fn put_back(
        &self,
        home: &mut Claim<'_>,
        start: usize,
        free_end: usize,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
    ) {
        self.put_back_levelled(home, free_end, words, out);
        let view = words.view();
        for &id in &out[free_end..] {
            home.push_idle(view.undo_reclaim(id), &self.idle, words);
        }
        out.truncate(free_end);
        out.drain(start..).for_each(|id| home.push(id, &self.depot));
    }

    /// Ends the contents of up to `n` idle blocks, in about the reclaim order, and returns the blocks, which are free
    /// then. They stay room throughout: each is reclaimed and freed under one claim.
    pub(crate) fn forget_idle(&self, n: usize, words: &BlockWords) -> Vec<BlockId> {
        let (mut ids, end) = (Vec::new(), n.min(self.total));
        self.forget_spare(end, words, &mut ids);
        self.forget_levelled(Side::Below, end, words, &mut ids);
        while ids.len() < end {
            // The two shards whose first blocks are the oldest, as they show without a claim.
            let now = self.idle.now();
            let age = |shard: &Shard| shard.idle.oldest().age(now);
            let mut ages = self.shards.iter().filter_map(|shard| Some((age(shard)?, shard)));
            let Some(first) = ages.next() else { break };
            let ((_, oldest), second) = ages.fold((first, None), |(oldest, second), next| {
                if next.0 > oldest.0 {
                    (next, Some(oldest.0))
                } else {
                    (oldest, second.max(Some(next.0)))
                }
            });
            let bound = AgeBound::at_least(second.unwrap_or(0), now);
            let to = end.min(ids.len() + BATCH);
            self.forget_in(&mut oldest.claim(), to, bound, words, &mut ids);
        }
        self.forget_levelled(Side::Above, end, words, &mut ids);
        ids
    }

    /// Frees idle blocks of one shard, until `ids` has `end` of them or its first block is not as old as `bound`
    /// demands.
    fn forget_in(
        &self,
        shard: &mut Claim<'_>,
        end: usize,
        bound: AgeBound,
        words: &BlockWords,
        ids: &mut Vec<BlockId>,
    ) {
        let start = ids.len();
        shard.reclaim(end, bound, &self.idle, words, ids);
        self.free_reclaimed(shard, &ids[start..], words);
    }

    /// Frees blocks whose reclaim is not finished.
    pub(super) fn free_reclaimed(
        &self,
        shard: &mut Claim<'_>,
        ids: &[BlockId],
        words: &BlockWords,
    ) {
        self.idle.finish_reclaim(ids, words);
        for &id in ids {
            let is_sole = words.view().release_sole(id);
            assert!(is_sole, "a thread that reclaims a block is its only owner");
            shard.push(id, &self.depot);
        }
        shard.ledger().revived(ids.len() as u64);
    }

    /// Reclaims idle blocks from other shards until `out` has `end` ids.
    pub(super) fn reclaim_elsewhere(&self, end: usize, words: &BlockWords, out: &mut Vec<BlockId>) {
        let ordinal = thread_ordinal();
        for step in 1..=self.shards.len() {
            if out.len() == end {
                return;
            }
            if let Some(mut other) = self.shard_of(ordinal.wrapping_add(step)).try_claim_if_idle() {
                other.reclaim(end, self.any_age(), &self.idle, words, out);
            }
        }
    }
}

impl Claim<'_> {
    /// Adds an entry for a block that became idle.
    #[inline]
    pub(super) fn push_idle(&mut self, left: ReleasedIdle, lists: &IdleLists, words: &BlockWords) {
        self.shard.idle.read_clock(lists);
        match lists.levels() {
            None => self.shard.idle.push(left, lists, words),
            Some(levels) => {
                self.shard.idle.push_in_run(left, &mut LevelledRun::new(levels), lists, words);
            }
        }
        self.shard.idle.count(1, lists);
    }

    /// Moves idle blocks to the end of `out` and reclaims each; see [`IdleShard::reclaim`].
    ///
    /// [`IdleShard::reclaim`]: crate::pool::idle::IdleShard::reclaim
    pub(super) fn reclaim(
        &mut self,
        end: usize,
        bound: AgeBound,
        lists: &IdleLists,
        words: &BlockWords,
        out: &mut Vec<BlockId>,
    ) {
        self.shard.idle.reclaim(end, bound, lists, words, out);
    }
}
