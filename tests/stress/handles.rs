//! Handles and tables that many threads create, grow, fork, cut and pass to each other.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use paged_kv::{BlockId, PagedKvCache, PagedKvError, Sequence};

use crate::common::assert_empties;
use crate::common::random::Random;
use crate::owners::Owners;
use crate::{cache, caches, for_a_while, threads, watched};

/// A sequence and its forks, held together: each of their blocks has the family's tag.
struct Family {
    tag: u64,
    members: Vec<Sequence>,
}

impl Family {
    fn holders(&self) -> BTreeMap<BlockId, usize> {
        let mut holders = BTreeMap::new();
        for &id in self.members.iter().flat_map(Sequence::block_ids) {
            *holders.entry(id).or_default() += 1;
        }
        holders
    }

    /// Clears the tags of those of `ids` that no other member has.
    fn leave(&self, ids: &[BlockId], owners: &Owners) {
        let holders = self.holders();
        for id in ids.iter().filter(|id| holders[id] == 1) {
            owners.leave(*id, self.tag);
        }
    }

    fn drop_member(&mut self, at: usize, owners: &Owners) {
        self.leave(self.members[at].block_ids(), owners);
        drop(self.members.swap_remove(at));
    }

    fn append(&mut self, at: usize, num_new_tokens: usize, owners: &Owners) {
        let member = &mut self.members[at];
        let Ok(append) = member.append(num_new_tokens) else {
            return;
        };
        let new = &member.block_ids()[append.new_blocks.clone()];
        new.iter().chain(append.copy.as_ref().map(|copy| &copy.dst)).for_each(|&id| {
            owners.enter(id, self.tag);
        });
        if let Some(copy) = &append.copy {
            owners.check(copy.src, self.tag);
        }
    }

    fn truncate(&mut self, at: usize, end: usize, owners: &Owners) {
        let member = &self.members[at];
        let end = end.min(member.num_tokens());
        let last = end.checked_sub(1).map(|last| last / member.block_size());
        if last.is_some_and(|last| member.block_at(last).is_none()) {
            return;
        }
        let kept =
            (0..last.map_or(0, |last| last + 1)).filter_map(|at| member.block_at(at)).count();
        self.leave(&member.block_ids()[kept..], owners);
        self.members[at].truncate(end).expect("the last block is there");
    }

    fn trim(&mut self, at: usize, sink: usize, window: usize, owners: &Owners) {
        let member = &self.members[at];
        let size = member.block_size();
        let dropped: Vec<BlockId> = (0..member.num_tokens() / size)
            .filter(|at| at * size >= sink && (at + 1) * size + window <= member.num_tokens())
            .filter_map(|at| member.block_at(at))
            .collect();
        self.leave(&dropped, owners);
        let given_up = self.members[at].apply_streaming_llm(sink, window).unwrap();
        assert_eq!(given_up, dropped.len() * size);
    }

    fn step(&mut self, random: &mut Random, owners: &Owners) {
        let at = random.below(self.members.len());
        match random.below(6) {
            0 if self.members.len() < 4 => {
                let fork = self.members[at].fork().expect("few owners");
                self.members.push(fork);
            }
            1 if self.members.len() > 1 => self.drop_member(at, owners),
            2 => self.truncate(at, random.below(40), owners),
            3 => self.trim(at, random.below(9), random.below(17), owners),
            _ => self.append(at, random.below(14), owners),
        }
        for member in &self.members {
            member.block_ids().iter().for_each(|&id| owners.check(id, self.tag));
        }
    }

    fn end(mut self, owners: &Owners) {
        while !self.members.is_empty() {
            self.drop_member(0, owners);
        }
    }
}

fn new_family(cache: &PagedKvCache, num_tokens: usize, owners: &Owners) -> Option<Family> {
    let sequence = cache.allocate_sequence(num_tokens).ok()?;
    let tag = owners.tag();
    sequence.block_ids().iter().for_each(|&id| owners.enter(id, tag));
    Some(Family { tag, members: vec![sequence] })
}

#[test]
fn no_block_is_ever_in_two_owners_hands() {
    watched(|| {
        for cache in caches() {
            let owners = Owners::new(cache.total_blocks());
            // One thread may fill a place and another may empty it.
            let places: Vec<Mutex<Option<Family>>> =
                (0..threads() + 3).map(|_| Mutex::new(None)).collect();
            for_a_while(2, |random, _| {
                let place = &places[random.below(places.len())];
                let taken = place.lock().unwrap().take();
                let family = taken.or_else(|| new_family(&cache, random.below(50), &owners));
                let Some(mut family) = family else { return };
                for _ in 0..random.below(6) {
                    family.step(random, &owners);
                }
                if random.below(4) == 0 {
                    family.end(&owners);
                } else if let Some(other) = place.lock().unwrap().replace(family) {
                    other.end(&owners);
                }
            });
            let left = places.into_iter().filter_map(|place| place.into_inner().unwrap());
            left.for_each(|family| family.end(&owners));
            owners.assert_empty();
            assert_empties(&cache);
        }
    });
}

#[test]
fn a_thread_within_its_fair_share_is_never_refused() {
    watched(|| {
        for (num_blocks, home_shards) in [(64, 4), (1024, 4), (128, 1)] {
            let cache = cache(num_blocks, home_shards);
            let share = num_blocks / threads();
            let owners = Owners::new(num_blocks);
            let rounds = AtomicUsize::new(0);
            for_a_while(3, |random, _| {
                let mut tables = Vec::new();
                let mut room = share;
                while room > 0 {
                    let n = random.below(room) + 1;
                    let table = cache.pool().allocate(n);
                    let table = table.expect("the others hold no more than their shares");
                    room -= n;
                    let tag = owners.tag();
                    table.as_slice().iter().for_each(|&id| owners.enter(id, tag));
                    tables.push((table, tag));
                    if random.below(3) == 0 {
                        let (table, tag) = tables.swap_remove(random.below(tables.len()));
                        room += table.len();
                        table.as_slice().iter().for_each(|&id| owners.leave(id, tag));
                    }
                    if random.below(50) == 0 {
                        break;
                    }
                }
                for (table, tag) in &tables {
                    table.as_slice().iter().for_each(|&id| owners.leave(id, *tag));
                }
                rounds.fetch_add(1, Ordering::Relaxed);
            });
            assert!(rounds.into_inner() > 0);
            assert_empties(&cache);
        }
    });
}

#[test]
fn of_racing_releases_of_one_owner_all_but_one_are_refused() {
    watched(|| {
        let cache = cache(64, 4);
        let pool = cache.pool();
        for round in 0..200 {
            let table = pool.allocate(3).unwrap();
            let id = table.as_slice()[round % 3];
            let retained = 1 + round % 2;
            (0..retained).for_each(|_| pool.retain(id).unwrap());
            drop(table);
            let released: usize = thread::scope(|scope| {
                let release = || match pool.release(id) {
                    Ok(()) => 1,
                    Err(refusal) => {
                        assert_eq!(refusal, PagedKvError::BlockNotFound(id));
                        0
                    }
                };
                let racers: Vec<_> = (0..4).map(|_| scope.spawn(release)).collect();
                racers.into_iter().map(|racer| racer.join().unwrap()).sum()
            });
            assert_eq!(released, retained);
            assert_eq!(pool.used_block_count(), 0);
        }
        assert_empties(&cache);
    });
}
