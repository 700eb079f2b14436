//! Tests with few threads, at a size that miri can run. Under miri each seed is another schedule, and a
//! load may return an older value, as on weakly ordered machines.
//!
//! Each block has a cell that its owners write and read Relaxed. Only the pool's own hand-over orders
//! these accesses, so a content that arrives too late is detected.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use paged_kv::{AdmitOptions, BlockId, BlockPool, PagedKvCache, PagedKvError};

use common::{assert_empties, s};

const NOBODY: u64 = 0;

/// The contents of each block.
struct Cells(Vec<AtomicU64>);

impl Cells {
    fn new(num_blocks: usize) -> Self {
        Self((0..num_blocks).map(|_| AtomicU64::new(NOBODY)).collect())
    }

    fn write(&self, id: BlockId, content: u64) {
        self.0[id.0 as usize].store(content, Ordering::Relaxed);
    }

    fn read(&self, id: BlockId) -> u64 {
        self.0[id.0 as usize].load(Ordering::Relaxed)
    }
}

/// Runs `work` on three threads, with their numbers.
fn on_three(work: impl Fn(u64) + Sync) {
    thread::scope(|scope| {
        for number in 1..=3 {
            let work = &work;
            scope.spawn(move || work(number));
        }
    });
}

#[test]
fn a_block_is_in_one_hand() {
    let (pool, cells) = (BlockPool::with_home_shards(4, 2).unwrap(), Cells::new(4));
    on_three(|number| {
        for round in 0..6 {
            let n = 1 + (round + number) as usize % 2;
            let table = match pool.allocate(n) {
                Ok(table) => table,
                Err(PagedKvError::OutOfMemory { requested, available }) => {
                    assert!(requested == n && available < n);
                    continue;
                }
                Err(refusal) => panic!("{refusal}"),
            };
            for &id in table.as_slice() {
                assert_eq!(cells.read(id), NOBODY, "{id} has another owner, or its last is unseen");
                cells.write(id, number);
            }
            for &id in table.as_slice() {
                assert_eq!(cells.read(id), number, "{id} was given to another");
                cells.write(id, NOBODY);
            }
        }
    });
    assert_eq!(pool.used_block_count(), 0);
    pool.validate().unwrap();
}

#[test]
fn of_sharers_the_last_frees_the_block_and_its_next_owner_has_seen_them_all() {
    let (pool, cells) = (BlockPool::with_home_shards(3, 2).unwrap(), Cells::new(3));
    for round in 1..=3 {
        let mut table = pool.allocate(2).unwrap();
        table.as_slice().iter().for_each(|&id| cells.write(id, round));
        let forks: Vec<_> = (0..3).map(|_| table.fork(1).unwrap()).collect();
        drop(table);
        thread::scope(|scope| {
            for mut fork in forks {
                let (pool, cells) = (&pool, &cells);
                scope.spawn(move || {
                    assert!(fork.as_slice().iter().all(|&id| cells.read(id) == round));
                    fork.truncate(1).unwrap();
                    drop(fork);
                    if let Ok(next) = pool.allocate(3) {
                        next.as_slice().iter().for_each(|&id| cells.write(id, 100 + round));
                    }
                });
            }
        });
        assert_eq!(pool.used_block_count(), 0);
    }
    pool.validate().unwrap();
}

#[test]
fn sequences_by_id_are_forked_leased_and_evicted_by_all() {
    let builder = PagedKvCache::builder().num_blocks(12).block_size(2).home_shards(2);
    let cache = builder.build().unwrap();
    on_three(|number| {
        for round in 0..3 {
            let (own, others) = (s(10 * number), s(10 * (number % 3 + 1)));
            if cache.allocate(own, 3).is_ok() {
                drop(cache.append(own, 1));
            }
            if cache.fork(others, s(10 * number + 1)).is_ok() {
                drop(cache.append(s(10 * number + 1), 2));
            }
            if let Ok(lease) = cache.lease(&[own]) {
                assert_eq!(cache.free(own), Err(PagedKvError::SequenceLeased(own)));
                drop(lease);
            }
            match round % 2 {
                0 => drop(cache.evict()),
                _ => drop(cache.truncate(own, 1)),
            }
            for id in [own, s(10 * number + 1)] {
                match cache.free(id) {
                    Ok(()) | Err(PagedKvError::SequenceNotFound(_)) => {}
                    // Another thread may have forked this thread's sequence; a fork takes no lease.
                    Err(refusal) => panic!("{refusal}"),
                }
            }
        }
    });
    assert_empties(&cache);
}

#[test]
fn a_matched_block_holds_the_values_of_its_tokens() {
    let builder = PagedKvCache::builder().num_blocks(6).block_size(2).home_shards(2);
    let (cache, cells) = (builder.build().unwrap(), Cells::new(6));
    on_three(|number| {
        for round in 0..4 {
            let family = 1 + (number + round) % 3;
            let prompt = cache.prompt(&[family as u32; 5]);
            let (mut sequence, admission) =
                match cache.admit_sequence(&prompt, &AdmitOptions::default()) {
                    Ok(admitted) => admitted,
                    Err(PagedKvError::OutOfMemory { .. }) => continue,
                    Err(refusal) => panic!("{refusal}"),
                };
            for (at, &id) in sequence.block_ids()[..2].iter().enumerate() {
                if at < admission.cached_tokens / 2 {
                    assert_eq!(cells.read(id), family, "{id} holds something else");
                } else {
                    cells.write(id, family);
                }
            }
            sequence.commit(5).unwrap();
            for &id in &sequence.block_ids()[..2] {
                assert_eq!(cells.read(id), family, "{id} was reused under its owner");
            }
        }
    });
    assert_empties(&cache);
}
