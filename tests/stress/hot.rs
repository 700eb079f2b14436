//! One sequence that all threads fork, grow, cut, trim and free.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use paged_kv::{BlockId, PagedKvCache, PagedKvError, SeqId};

use crate::common::assert_empties;
use crate::common::random::Random;
use crate::owners::Owners;
use crate::{cache, for_a_while, seconds, watched};

const HOT: SeqId = SeqId(u64::MAX);

/// True for a refusal that a race explains; every other refusal is a fault.
fn is_fair(refusal: &PagedKvError) -> bool {
    matches!(
        refusal,
        PagedKvError::OutOfMemory { .. }
            | PagedKvError::SequenceNotFound(_)
            | PagedKvError::SequenceExists(_)
            | PagedKvError::SequenceLeased(_)
            | PagedKvError::TruncateBeyondEnd { .. }
            | PagedKvError::TokensTrimmed { .. }
            | PagedKvError::NothingToEvict
    )
}

fn fair<T>(result: Result<T, PagedKvError>) -> Option<T> {
    result.inspect_err(|refusal| assert!(is_fair(refusal), "{refusal}")).ok()
}

fn race_for_the_hot_one(cache: &PagedKvCache, random: &mut Random) {
    match random.below(12) {
        0 => _ = fair(cache.free(HOT)),
        1 => _ = fair(cache.free_when_released(HOT)),
        2 | 3 => _ = fair(cache.truncate(HOT, random.below(40))),
        4 => _ = fair(cache.apply_streaming_llm(HOT, random.below(9), random.below(20))),
        5 | 6 => _ = fair(cache.append(HOT, random.below(9))),
        7 => _ = fair(cache.lease(&[HOT])).map(|lease| fair(cache.append(HOT, lease.len()))),
        8 => _ = fair(cache.evict()),
        _ => _ = fair(cache.allocate(HOT, random.below(60))),
    }
}

/// Forks the hot sequence, writes into the fork, and checks that no other thread has the written slots.
fn fork_and_write(cache: &PagedKvCache, id: SeqId, random: &mut Random, owners: &Owners) {
    // The fork is leased immediately, or an evictor could take it while it is being written.
    let Some(()) = fair(cache.fork(HOT, id)) else { return };
    let Some(lease) = fair(cache.lease(&[id])) else { return };
    let (tag, mut written) = (owners.tag(), Vec::<BlockId>::new());
    for _ in 0..random.below(4) {
        let before = cache.get_sequence(id).expect("a leased sequence stays");
        let n = random.below(7);
        let Some(append) = fair(cache.append(id, n)) else { break };
        let first = before.num_tokens / cache.block_size();
        let end = (before.num_tokens + n).div_ceil(cache.block_size());
        let blocks = (first..end).map(|logical| {
            let block = cache.with_sequence(id, |sequence| sequence.block_at(logical));
            block.expect("a leased sequence stays").expect("what was written is resident")
        });
        for block in blocks.filter(|_| n > 0) {
            if !written.contains(&block) {
                owners.enter(block, tag);
                written.push(block);
            }
            assert_eq!(cache.pool().owners(block), Ok(1), "{block} was written and is shared");
        }
        drop(append);
    }
    written.into_iter().for_each(|block| owners.leave(block, tag));
    drop(lease);
    _ = fair(cache.free(id));
}

#[test]
fn forks_of_a_hot_sequence_never_write_another_owners_blocks() {
    watched(|| {
        for (num_blocks, home_shards) in [(64, 4), (64, 1), (2048, 4)] {
            let cache = cache(num_blocks, home_shards);
            let owners = Owners::new(num_blocks);
            let next_id = AtomicU64::new(0);
            for_a_while(3, |random, number| match number % 3 {
                0 => race_for_the_hot_one(&cache, random),
                _ => {
                    let id = SeqId(next_id.fetch_add(1, Ordering::Relaxed));
                    fork_and_write(&cache, id, random, &owners);
                }
            });
            owners.assert_empty();
            cache.validate().unwrap();
            assert_empties(&cache);
        }
    });
}

#[test]
fn sequences_that_all_threads_change_leave_nothing_behind() {
    watched(|| {
        for (num_blocks, home_shards) in [(64, 4), (2048, 4)] {
            let cache = cache(num_blocks, home_shards);
            for_a_while(2, |random, _| {
                let (id, other) = (SeqId(random.below(5) as u64), SeqId(random.below(5) as u64));
                match random.below(12) {
                    0 | 1 => _ = fair(cache.allocate(id, random.below(60))),
                    2 | 3 => _ = fair(cache.append(id, random.below(9))),
                    4 | 5 => _ = fair(cache.fork(id, other)),
                    6 => _ = fair(cache.truncate(id, random.below(40))),
                    7 => _ = fair(cache.apply_streaming_llm(id, random.below(9), random.below(20))),
                    8 => _ = fair(cache.free(id)),
                    9 => _ = fair(cache.evict()),
                    10 => {
                        _ = fair(cache.lease(&[id]))
                            .map(|lease| fair(cache.append(id, lease.len())))
                    }
                    _ => {
                        if let Some(info) = cache.get_sequence(id) {
                            assert!(info.num_blocks() <= info.num_tokens.div_ceil(4), "{info:?}");
                        }
                    }
                }
            });
            cache.validate().unwrap();
            assert_empties(&cache);
        }
    });
}

#[test]
fn an_audit_under_load_is_busy_at_worst() {
    watched(|| {
        // With few forkers two passes of the auditor can be torn in the same way.
        for (num_tokens, forkers) in [(3, 1), (8, 1), (3, 2), (3, 4)] {
            let cache = cache(64, 4);
            cache.allocate(HOT, num_tokens).unwrap();
            let done = AtomicBool::new(false);
            let fault = std::thread::scope(|scope| {
                for forker in 0..forkers {
                    let (cache, done, id) = (&cache, &done, SeqId(forker));
                    scope.spawn(move || {
                        while !done.load(Ordering::Relaxed) {
                            cache.fork(HOT, id).unwrap();
                            cache.free(id).unwrap();
                        }
                    });
                }
                let end = Instant::now() + Duration::from_secs(seconds()) / 4;
                let mut found = Ok(());
                while Instant::now() < end && matches!(found, Ok(()) | Err(PagedKvError::Busy)) {
                    found = cache.validate();
                }
                done.store(true, Ordering::Relaxed);
                found
            });
            assert!(matches!(fault, Ok(()) | Err(PagedKvError::Busy)), "{fault:?}");
            assert_empties(&cache);
        }
    });
}

/// Creates two sequences that share all their blocks.
fn twins() -> (PagedKvCache, SeqId, SeqId) {
    let (cache, x, y) = (cache(64, 1), SeqId(1), SeqId(2));
    cache.allocate(x, 8).unwrap();
    cache.fork(x, y).unwrap();
    (cache, x, y)
}

/// A batch waits for the reader of one row, and the reader reads the other row.
#[test]
fn a_reader_that_looks_further_and_a_batch_do_not_wait_for_each_other() {
    watched(|| {
        let (cache, x, y) = twins();
        for_a_while(2, |_, thread| {
            if thread % 2 == 0 {
                cache.with_sequence(x, |_| cache.get_sequence(y)).unwrap().unwrap();
            } else {
                let mut batch = paged_kv::AppendBatch::default();
                cache.lease(&[y, x]).unwrap().append_batch(&[0, 0], &mut batch).unwrap();
            }
        });
        assert_empties(&cache);
    });
}

/// A thread that assesses victims waits for a writer, which waits for a reader that assesses victims.
#[test]
fn a_reader_that_chooses_a_victim_causes_no_deadlock() {
    watched(|| {
        let (cache, _, y) = twins();
        for_a_while(2, |_, thread| match thread % 3 {
            0 => _ = cache.with_sequence(y, |_| cache.select_eviction_target()).unwrap(),
            1 => cache.touch(y).unwrap(),
            _ => _ = cache.select_eviction_target(),
        });
        assert_empties(&cache);
    });
}
