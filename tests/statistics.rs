//! Tests of statistics: the counts at rest, the peak and its bound, and impossible states that no
//! snapshot under load may show.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use common::random::Random;
use common::{assert_empties, s, shapes};
use paged_kv::{AdmitOptions, BlockTable, CachedSequence, PagedKvCache, StepBuffers, Watermark};

/// Free blocks that one home shard may keep, and hand out without updating the peak.
const MAGAZINE: usize = 256;

/// Tests that rely on the threads' home shards run one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the work of other threads, also when the checking thread has found a fault.
struct Finish<'a>(&'a AtomicBool);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn assert_at_rest(cache: &PagedKvCache, forks: u64, evictions: u64) {
    let stats = cache.stats();
    let in_use = stats.total_allocations - stats.total_frees;
    assert_eq!(in_use, cache.used_block_count() as u64);
    assert_eq!(stats.blocks_used, cache.used_block_count());
    assert_eq!(stats.blocks_total, cache.total_blocks());
    assert_eq!(stats.blocks_used + cache.free_block_count(), cache.total_blocks());
    assert_eq!(stats.num_sequences, cache.num_sequences());
    assert_eq!(stats.num_sequences, cache.sequence_ids().len());
    assert_eq!((stats.total_forks, stats.total_evictions), (forks, evictions));
    assert!(stats.peak_blocks_used >= stats.blocks_used);
    assert!(stats.peak_blocks_used <= stats.blocks_total);
}

/// The cached copy counts as the most recently used, and is not in use because of that.
#[test]
fn a_content_that_was_computed_twice_takes_no_room() {
    let _alone = alone();
    for cache in shapes(8, 4) {
        for id in [s(1), s(2)] {
            cache.admit(id, &[7; 5]).unwrap();
        }
        cache.commit(s(1), 4).unwrap();
        cache.free(s(1)).unwrap();
        cache.allocate(s(3), 8).unwrap(); // as many are in use as ever were
        let before = cache.stats();
        assert_eq!((before.blocks_used, before.blocks_idle), (4, 1));
        assert_eq!(cache.commit(s(2), 4), Ok(0), "the content is cached");
        assert_eq!(cache.stats(), before);
        assert_empties(&cache);
    }
}

#[test]
fn counts_are_of_blocks_that_left_and_returned_to_room() {
    let _alone = alone();
    for cache in shapes(16, 4) {
        assert_eq!(cache.stats().peak_blocks_used, 0);
        cache.allocate(s(1), 10).unwrap();
        assert_eq!((cache.stats().total_allocations, cache.stats().total_frees), (3, 0));
        cache.fork(s(1), s(2)).unwrap();
        assert_eq!(cache.stats().total_allocations, 3, "a fork takes no block");
        let append = cache.append(s(2), 1).unwrap();
        assert_eq!(cache.stats().total_allocations, 4, "a copy does");
        drop(append);
        cache.free(s(1)).unwrap();
        assert_eq!(cache.stats().total_frees, 1, "only the tail was its own");
        cache.truncate(s(2), 4).unwrap();
        assert_eq!(cache.stats().total_frees, 3);
        assert_at_rest(&cache, 1, 0);
        assert_eq!(cache.evict(), Ok(s(2)));
        assert_at_rest(&cache, 1, 1);
        cache.pool().allocate(5).unwrap();
        let stats = cache.stats();
        assert_eq!((stats.total_allocations, stats.total_frees), (9, 9), "handles count too");
        assert_empties(&cache);
    }
}

#[test]
fn sequences_are_counted_however_they_come_and_go() {
    let _alone = alone();
    for cache in shapes(64, 4) {
        let assert_count = |expected: usize| {
            assert_eq!(cache.stats().num_sequences, expected);
            assert_eq!(cache.sequence_ids().len(), expected);
        };
        cache.allocate(s(1), 5).unwrap();
        cache.admit(s(2), &[7; 5]).unwrap();
        cache.fork(s(1), s(3)).unwrap();
        cache.fork_n(s(1), &[s(4), s(5)]).unwrap();
        assert_count(5);
        cache.allocate(s(1), 5).unwrap_err();
        cache.fork(s(1), s(2)).unwrap_err();
        // The second is a duplicate: the first is taken back.
        cache.fork_n(s(1), &[s(6), s(6)]).unwrap_err();
        assert_count(5);
        cache.free(s(9)).unwrap_err();
        cache.free(s(5)).unwrap();
        let lease = cache.lease(&[s(4)]).unwrap();
        cache.free(s(4)).unwrap_err();
        assert_count(4);
        cache.free_when_released(s(4)).unwrap();
        assert_count(3);
        drop(lease);
        cache.evict().unwrap();
        assert_count(2);
        assert_empties(&cache);
        assert_count(0);
    }
}

#[test]
fn open_steps_are_counted() {
    let _alone = alone();
    let cache = PagedKvCache::new(16, 4, 1, 1);
    let open = || cache.stats().steps_open;
    let step = || cache.step(StepBuffers::default());
    let (first, second) = (step(), step());
    assert_eq!(open(), 2);
    first.complete();
    assert_eq!(open(), 1);
    let _ = second.abort::<CachedSequence>(&mut []);
    assert_eq!(open(), 0);
}

#[test]
fn the_peak_of_one_shard_is_exact() {
    let _alone = alone();
    for num_blocks in [1, 16, 128, 129, 1000] {
        let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(1);
        let cache = builder.home_shards(1).build().unwrap();
        let mut random = Random::new(num_blocks as u64);
        let (mut tables, mut used, mut peak) = (Vec::<BlockTable>::new(), 0, 0);
        for _ in 0..2_000 {
            if random.below(5) < 2 && !tables.is_empty() {
                let table = tables.swap_remove(random.below(tables.len()));
                used -= table.len();
            } else {
                let n = random.below(num_blocks / 3 + 2);
                match cache.pool().allocate(n) {
                    Ok(table) => tables.push(table),
                    Err(_) => continue,
                }
                used += n;
                peak = peak.max(used);
            }
            if random.below(4) == 0 {
                assert_eq!(cache.stats().peak_blocks_used, peak);
                assert_eq!(cache.stats().blocks_used, used);
            }
        }
        assert_eq!(cache.stats().peak_blocks_used, peak);
        drop(tables);
        assert_empties(&cache);
    }
}

/// Lets `shards` threads, each with a home shard of its own, fill the homes with blocks that the first
/// thread took. Then they take them all at the same time.
fn peak_after_a_rush_to_home(shards: usize, keep: usize) -> (usize, usize) {
    let total = 1024 * shards;
    let builder = PagedKvCache::builder().num_blocks(total).block_size(1);
    let cache = builder.home_shards(shards).build().unwrap();
    let pool = cache.pool();
    let hand_over = Mutex::new(Vec::new());
    let start = Barrier::new(shards);
    let taken = Barrier::new(shards);
    let mut highest = 0;
    thread::scope(|scope| {
        let first = pool.allocate(keep).unwrap();
        highest = highest.max(keep);
        for _ in 1..shards {
            hand_over.lock().unwrap().push(pool.allocate(MAGAZINE).unwrap());
        }
        highest = highest.max(cache.used_block_count());
        for _ in 1..shards {
            scope.spawn(|| {
                // Fills this thread's home shard.
                drop(hand_over.lock().unwrap().pop());
                start.wait();
                let mine: Vec<_> = (0..MAGAZINE).map(|_| pool.allocate(1).unwrap()).collect();
                taken.wait();
                taken.wait();
                drop(mine);
            });
        }
        while cache.used_block_count() > keep {
            thread::yield_now();
        }
        // As many blocks as before are in use again, and then the blocks of the home shards on top of
        // them.
        let again = pool.allocate(MAGAZINE * (shards - 1)).unwrap();
        start.wait();
        taken.wait();
        highest = highest.max(cache.used_block_count());
        drop((first, again));
        taken.wait();
    });
    let peak = cache.stats().peak_blocks_used;
    assert_empties(&cache);
    (peak, highest)
}

#[test]
fn the_peak_of_several_shards_is_low_by_at_most_a_magazine_a_shard() {
    let _alone = alone();
    for shards in [2, 4, 8] {
        for keep in [0, 1, MAGAZINE] {
            let (peak, highest) = peak_after_a_rush_to_home(shards, keep);
            assert!(peak <= 1024 * shards, "{peak} is above the total");
            assert!(peak <= highest, "{peak} were never used: {highest} at most");
            assert!(
                highest - peak <= shards * MAGAZINE,
                "{shards} shards: the peak says {peak}, {highest} were in use"
            );
        }
    }
}

#[test]
fn no_snapshot_under_load_shows_an_impossible_state() {
    let _alone = alone();
    for (num_blocks, home_shards) in [(64, 4), (64, 1), (4096, 4)] {
        let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(1);
        let cache = builder.home_shards(home_shards).build().unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for worker in 0..3_u64 {
                let (cache, done) = (&cache, &done);
                scope.spawn(move || {
                    let mut random = Random::new(worker);
                    let id = |random: &mut Random| s(random.below(6) as u64);
                    while !done.load(Ordering::Relaxed) {
                        let (id, other) = (id(&mut random), id(&mut random));
                        match random.below(6) {
                            0 | 1 => drop(cache.allocate(id, random.below(40))),
                            2 => drop(cache.append(id, random.below(9))),
                            3 => drop(cache.fork(id, other)),
                            4 => drop(cache.evict()),
                            _ => drop(cache.free(id)),
                        }
                    }
                });
            }
            let _finish = Finish(&done);
            let end = Instant::now() + Duration::from_millis(500);
            let mut last = cache.stats();
            while Instant::now() < end {
                let stats = cache.stats();
                assert!(stats.total_frees <= stats.total_allocations, "{stats:?}");
                assert!(stats.blocks_used <= num_blocks, "{stats:?}");
                assert!(stats.peak_blocks_used <= num_blocks, "{stats:?}");
                assert!(
                    stats.peak_blocks_used >= last.peak_blocks_used,
                    "{stats:?} after {last:?}"
                );
                assert!(stats.total_evictions >= last.total_evictions, "{stats:?} after {last:?}");
                assert!(stats.total_forks >= last.total_forks, "{stats:?} after {last:?}");
                assert!(cache.used_block_count() <= num_blocks);
                assert!(cache.free_block_count() <= num_blocks);
                assert!((0.0..=1.0).contains(&cache.utilization()));
                last = stats;
            }
        });
        let stats = cache.stats();
        assert_at_rest(&cache, stats.total_forks, stats.total_evictions);
        assert_empties(&cache);
    }
}

#[test]
fn counts_that_change_all_the_time_are_never_read_torn() {
    let _alone = alone();
    // With more shards a reader takes longer to pass through them.
    for home_shards in [1, 16, 256] {
        let builder = PagedKvCache::builder().num_blocks(4096).block_size(1);
        let cache = builder.home_shards(home_shards).build().unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        drop(cache.pool().allocate(1).unwrap());
                    }
                });
            }
            let _finish = Finish(&done);
            let end = Instant::now() + Duration::from_millis(400);
            while Instant::now() < end {
                let stats = cache.stats();
                assert!(stats.total_frees <= stats.total_allocations, "{stats:?}");
                assert!(stats.blocks_used <= 4096, "{stats:?}");
                assert!(cache.used_block_count() <= 4096);
            }
        });
        assert_at_rest(&cache, 0, 0);
        assert_empties(&cache);
    }
}

#[test]
fn of_racing_allocations_of_one_id_only_the_winner_counts() {
    const ROUNDS: u64 = 200;
    // Large enough for the calls of both threads to overlap.
    const BLOCKS: usize = 20_000;
    let _alone = alone();
    let cache = PagedKvCache::new(3 * BLOCKS, 1, 1, 1);
    let barrier = Barrier::new(2);
    let wins = AtomicU64::new(0);
    // Checked at the end: a thread that stopped early would leave the other at the barrier.
    let counts = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for is_judge in [true, false] {
            let (cache, barrier, wins, counts) = (&cache, &barrier, &wins, &counts);
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    barrier.wait();
                    let allocated = cache.allocate(s(7), BLOCKS);
                    wins.fetch_add(u64::from(allocated.is_ok()), Ordering::Relaxed);
                    barrier.wait();
                    if is_judge {
                        let stats = cache.stats();
                        counts.lock().unwrap().push((stats.total_allocations, stats.total_frees));
                        _ = cache.free(s(7));
                    }
                }
            });
        }
    });
    assert_eq!(wins.into_inner(), ROUNDS);
    let counts = counts.into_inner().unwrap();
    for (round, &(allocations, frees)) in counts.iter().enumerate() {
        let before = (round * BLOCKS) as u64;
        assert_eq!((allocations, frees), (before + BLOCKS as u64, before), "round {round}");
    }
    assert_empties(&cache);
}

/// A third sequence uses the blocks that both admissions match, so these blocks neither take nor give
/// back room.
#[test]
fn of_racing_admissions_of_one_id_only_the_winner_counts() {
    const ROUNDS: u64 = 200;
    const BLOCKS: u32 = 4_000;
    let _alone = alone();
    let cache = PagedKvCache::new(4 * BLOCKS as usize, 1, 1, 1);
    let prompt: Vec<u32> = (0..BLOCKS).collect();
    cache.admit(s(1), &prompt[..BLOCKS as usize / 2]).unwrap();
    let cached = cache.commit(s(1), BLOCKS as usize / 2).unwrap() as u64;
    let (prompt, barrier) = (cache.prompt(&prompt), Barrier::new(2));
    let late = AtomicU64::new(0);
    thread::scope(|scope| {
        for is_judge in [true, false] {
            let (cache, prompt, barrier, late) = (&cache, &prompt, &barrier, &late);
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    barrier.wait();
                    let admitted = cache.admit_with(s(7), prompt, &AdmitOptions::default());
                    late.fetch_add(u64::from(admitted.is_err()), Ordering::Relaxed);
                    barrier.wait();
                    if is_judge {
                        _ = cache.free(s(7));
                    }
                }
            });
        }
    });
    assert_eq!(late.into_inner(), ROUNDS);
    let stats = cache.stats();
    let new = ROUNDS * (u64::from(BLOCKS) - cached);
    assert_eq!((stats.total_allocations, stats.total_frees), (cached + new, new));
    assert_empties(&cache);
}

/// Lets four threads request 20 blocks each of 64, of which new sequences leave 10. Most calls are
/// refused, some of them after a lost race for the last blocks.
fn granted_and_counted(take: impl Fn(&PagedKvCache, u64) -> bool + Sync) -> (u64, u64) {
    let cache = PagedKvCache::builder()
        .num_blocks(64)
        .block_size(4)
        .watermark(Watermark::Blocks(10))
        .build();
    let cache = cache.expect("it is valid");
    let granted = std::thread::scope(|scope| {
        let worker = |thread| {
            let (cache, take) = (&cache, &take);
            scope.spawn(move || (0..50_000).filter(|_| take(cache, thread)).count() as u64)
        };
        let workers: Vec<_> = (0..4).map(worker).collect();
        workers.into_iter().map(|worker| worker.join().expect("no panic")).sum::<u64>()
    });
    let stats = cache.stats();
    assert_eq!((stats.blocks_used, stats.total_frees), (0, stats.total_allocations));
    (granted * 20, stats.total_allocations)
}

#[test]
fn reservations_refused_after_a_lost_race_are_not_counted() {
    let (granted, counted) = granted_and_counted(|cache, _| cache.reserve(20).is_ok());
    assert_eq!(granted, counted);
}

#[test]
fn allocations_refused_after_a_lost_race_are_not_counted() {
    let (granted, counted) = granted_and_counted(|cache, _| cache.allocate_sequence(80).is_ok());
    assert_eq!(granted, counted);
    let by_id = |cache: &PagedKvCache, thread| {
        let granted = cache.allocate(s(thread), 80).is_ok();
        granted.then(|| cache.free(s(thread)).expect("it is there")).is_some()
    };
    let (granted, counted) = granted_and_counted(by_id);
    assert_eq!(granted, counted);
}

#[test]
fn admissions_refused_after_a_lost_race_are_not_counted() {
    let admit = |cache: &PagedKvCache, thread| {
        let granted = cache.admit(s(thread), &[thread as u32; 80]).is_ok();
        granted.then(|| cache.free(s(thread)).expect("it is there")).is_some()
    };
    let (granted, counted) = granted_and_counted(admit);
    assert_eq!(granted, counted);
}
