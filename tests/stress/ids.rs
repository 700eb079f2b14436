//! Sequences that many threads create, lease, grow, free and evict by id.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use paged_kv::{AppendBatch, BlockId, Lease, PagedKvCache, PagedKvError, SeqId, Worker};

use crate::common::assert_empties;
use crate::common::random::Random;
use crate::owners::Owners;
use crate::{cache, caches, for_a_while, threads, watched};

/// A leased sequence whose blocks have a tag.
struct Held {
    id: SeqId,
    lease: Lease,
    tag: u64,
    blocks: Vec<BlockId>,
}

fn hold(cache: &PagedKvCache, id: SeqId, num_tokens: usize, owners: &Owners) -> Option<Held> {
    match cache.allocate(id, num_tokens) {
        Ok(()) => {}
        Err(PagedKvError::OutOfMemory { .. }) => return None,
        Err(refusal) => panic!("{refusal}"),
    }
    // Another thread may evict it before it is leased.
    let lease = cache.lease(&[id]).ok()?;
    let (tag, blocks) = (owners.tag(), cache.get_sequence(id)?.block_ids);
    blocks.iter().for_each(|&block| owners.enter(block, tag));
    Some(Held { id, lease, tag, blocks })
}

impl Held {
    fn append(&mut self, cache: &PagedKvCache, random: &mut Random, owners: &Owners) {
        let n = random.below(9);
        let grown = if random.below(2) == 0 {
            cache.append(self.id, n).map(drop)
        } else {
            self.lease.append_batch(&[n], &mut AppendBatch::default())
        };
        assert!(matches!(grown, Ok(()) | Err(PagedKvError::OutOfMemory { .. })), "{grown:?}");
        let now = cache.get_sequence(self.id).expect("a leased sequence stays").block_ids;
        assert_eq!(now[..self.blocks.len()], self.blocks);
        now[self.blocks.len()..].iter().for_each(|&block| owners.enter(block, self.tag));
        self.blocks = now;
    }

    fn truncate(&mut self, cache: &PagedKvCache, random: &mut Random, owners: &Owners) {
        let info = cache.get_sequence(self.id).expect("a leased sequence stays");
        let end = random.below(info.num_tokens + 1);
        let kept = end.div_ceil(cache.block_size());
        self.blocks.drain(kept..).for_each(|block| owners.leave(block, self.tag));
        cache.truncate(self.id, end).expect("not trimmed");
    }

    fn end(self, cache: &PagedKvCache, random: &mut Random, owners: &Owners) {
        assert_eq!(cache.free(self.id), Err(PagedKvError::SequenceLeased(self.id)));
        self.blocks.iter().for_each(|&block| owners.check(block, self.tag));
        self.blocks.into_iter().for_each(|block| owners.leave(block, self.tag));
        match random.below(3) {
            0 => cache.free_when_released(self.id).expect("a leased sequence stays"),
            1 => {
                drop(self.lease);
                // The free is refused if another thread has evicted it.
                _ = cache.free(self.id);
            }
            // The sequence is left for an evictor.
            _ => {}
        }
    }
}

#[test]
fn no_block_is_ever_in_two_sequences_hands_and_no_leased_one_is_evicted() {
    watched(|| {
        for cache in caches() {
            let owners = Owners::new(cache.total_blocks());
            let next_id = AtomicU64::new(0);
            let places: Vec<Mutex<Option<Held>>> =
                (0..threads() + 3).map(|_| Mutex::new(None)).collect();
            for_a_while(2, |random, number| {
                if number == 0 {
                    _ = cache.evict();
                    _ = cache.evict_to_threshold(random.below(10) as f64 / 10.0);
                    return;
                }
                let place = &places[random.below(places.len())];
                let taken = place.lock().unwrap().take();
                let held = taken.or_else(|| {
                    let id = SeqId(next_id.fetch_add(1, Ordering::Relaxed));
                    hold(&cache, id, random.below(50), &owners)
                });
                let Some(mut held) = held else {
                    _ = cache.evict();
                    return;
                };
                for _ in 0..random.below(6) {
                    match random.below(4) {
                        0 => held.truncate(&cache, random, &owners),
                        _ => held.append(&cache, random, &owners),
                    }
                }
                if random.below(4) == 0 {
                    held.end(&cache, random, &owners);
                } else if let Some(other) = place.lock().unwrap().replace(held) {
                    other.end(&cache, random, &owners);
                }
            });
            let left = places.into_iter().filter_map(|place| place.into_inner().unwrap());
            left.for_each(|held| held.end(&cache, &mut Random::new(0), &owners));
            owners.assert_empty();
            assert_empties(&cache);
        }
    });
}

/// Each id is allocated again and again, first without a worker, then for the second worker, and last for
/// the first. Only then may an eviction for the first worker take it.
#[test]
fn an_eviction_for_one_worker_never_takes_a_sequence_of_another() {
    const IDS: usize = 4;
    watched(|| {
        // More blocks than the ids need: an eviction under way still has blocks of the earlier sequence.
        let cache = cache(1024, 4);
        let places: Vec<Mutex<()>> = (0..IDS).map(|_| Mutex::new(())).collect();
        let evicted = AtomicU64::new(0);
        for_a_while(1, |random, number| {
            if number % 2 == 0 {
                let mut out = Vec::new();
                _ = cache.evict_for(Worker(1), 1 + random.below(IDS), &mut out);
                evicted.fetch_add(out.len() as u64, Ordering::Relaxed);
                return;
            }
            let at = random.below(IDS);
            let (id, _place) = (SeqId(at as u64), places[at].lock().unwrap());
            if random.below(2) == 0 {
                _ = cache.free(id);
            }
            match cache.allocate(id, 4) {
                Ok(()) | Err(PagedKvError::SequenceExists(_)) => {}
                Err(refusal) => panic!("{refusal}: each id has its block"),
            }
            // Until this call the sequence may still belong to the first worker, and be evicted.
            if cache.set_worker(id, Worker(2)).is_err() {
                return;
            }
            if random.below(2) == 0 {
                drop(cache.lease(&[id]).expect("it is nobody's to evict"));
            }
            cache.touch(id).expect("an eviction for another worker took it");
            let worker = cache.get_sequence(id).expect("it is nobody's to evict").worker;
            assert_eq!(worker, Some(Worker(2)));
            cache.set_worker(id, Worker(1)).expect("it is nobody's to evict");
        });
        assert!(evicted.into_inner() > 0, "nothing was ever evicted");
        assert_empties(&cache);
    });
}

#[test]
fn batches_over_the_same_sequences_in_opposite_orders_do_not_wait_for_each_other_forever() {
    watched(|| {
        let cache = cache(4096, 4);
        let ids: Vec<SeqId> = (0..8).map(SeqId).collect();
        ids.iter().for_each(|&id| cache.allocate(id, 3).unwrap());
        let appended = AtomicU64::new(0);
        for_a_while(2, |random, number| {
            let mut mine = ids.clone();
            mine.rotate_left(random.below(8));
            mine.truncate(2 + random.below(7));
            if number % 2 == 0 {
                mine.reverse();
            }
            let lease = cache.lease(&mine).unwrap();
            let mut batch = AppendBatch::default();
            for _ in 0..4 {
                match lease.append_batch(&vec![1; mine.len()], &mut batch) {
                    Ok(()) => _ = appended.fetch_add(mine.len() as u64, Ordering::Relaxed),
                    Err(PagedKvError::OutOfMemory { .. }) => {
                        mine.iter().for_each(|&id| cache.truncate(id, 0).unwrap());
                    }
                    Err(refusal) => panic!("{refusal}"),
                }
                cache.append(mine[0], 1).map(drop).unwrap_or(());
            }
        });
        assert!(appended.into_inner() > 0);
        assert!(ids.iter().all(|&id| cache.get_sequence(id).unwrap().leases == 0));
        assert_empties(&cache);
    });
}

#[test]
fn every_token_of_racing_appends_is_counted_once() {
    watched(|| {
        let cache = cache(1 << 16, 4);
        let ids = [SeqId(1), SeqId(2)];
        ids.iter().for_each(|&id| cache.allocate(id, 0).unwrap());
        let appended = [AtomicU64::new(0), AtomicU64::new(0)];
        for_a_while(4, |random, number| {
            let n = random.below(3);
            let count = |row: usize| _ = appended[row].fetch_add(n as u64, Ordering::Relaxed);
            if number % 2 == 0 {
                let rows = [(ids[1], n), (ids[0], n)];
                match cache.append_batch(&rows, &mut AppendBatch::default()) {
                    Ok(()) => (0..2).for_each(count),
                    Err(PagedKvError::OutOfMemory { .. }) => {}
                    Err(refusal) => panic!("{refusal}"),
                }
            } else {
                let row = random.below(2);
                match cache.append(ids[row], n) {
                    Ok(_) => count(row),
                    Err(PagedKvError::OutOfMemory { .. }) => {}
                    Err(refusal) => panic!("{refusal}"),
                }
            }
        });
        for (id, appended) in ids.iter().zip(appended) {
            let info = cache.get_sequence(*id).unwrap();
            assert_eq!(info.num_tokens as u64, appended.into_inner());
            assert_eq!(info.num_blocks(), info.num_tokens.div_ceil(4));
        }
        assert_empties(&cache);
    });
}
