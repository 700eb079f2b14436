//! Tests of faults that a reading of publication, admission gates, the observer and the prefix view found.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use common::random::Random;
use common::{lease_rows, s};
use paged_kv::{
    AdmitOptions, AppendBatch, BlockHash, BlockHasher, BlockId, ExtraKeys, HashAlgorithm,
    Overwritten, PagedKvCache, PagedKvError, Prompt, Step, append_batch,
};

const BLOCK_SIZE: usize = 4;

fn plain(num_blocks: usize) -> PagedKvCache {
    let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(BLOCK_SIZE);
    builder.home_shards(1).build().unwrap()
}

/// Returns a cache whose observer runs `observe` with the cache.
fn observed(
    num_blocks: usize,
    observe: impl Fn(&PagedKvCache, &[Overwritten]) + Send + Sync + 'static,
) -> Arc<PagedKvCache> {
    let this: Arc<OnceLock<Weak<PagedKvCache>>> = Arc::default();
    let seen = Arc::clone(&this);
    let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(BLOCK_SIZE);
    let builder = builder.home_shards(2).overwrite_observer(move |lost| {
        let cache = seen.get().and_then(Weak::upgrade).expect("the cache is in use");
        observe(&cache, lost);
    });
    let cache = Arc::new(builder.build().unwrap());
    this.set(Arc::downgrade(&cache)).unwrap();
    cache
}

fn hashes(range: std::ops::Range<u128>) -> Vec<BlockHash> {
    range.map(BlockHash::from_u128).collect()
}

/// Leaves `num_blocks` idle cached blocks with contents of their own.
fn leave_idle(cache: &PagedKvCache, num_blocks: usize, family: u32) {
    let tokens: Vec<u32> =
        (0..(num_blocks * BLOCK_SIZE) as u32).map(|at| 10_000 * family + at).collect();
    cache.admit(s(999), &tokens).unwrap();
    cache.commit(s(999), tokens.len()).unwrap();
    cache.free(s(999)).unwrap();
}

#[test]
fn a_limit_holds_after_a_truncation() {
    let cache = plain(16);
    cache.prefix().set_max_cached(2);
    cache.admit(s(1), &[7; 16]).unwrap();
    cache.commit(s(1), 16).unwrap();
    cache.truncate(s(1), 4).unwrap();
    assert_eq!(cache.prefix().cached_blocks(), 2);
}

#[test]
fn a_limit_holds_after_a_release_by_id() {
    let cache = plain(16);
    cache.prefix().set_max_cached(1);
    let mut table = cache.pool().allocate(3).unwrap();
    cache.prefix().publish(table.as_slice(), &hashes(1..4), None).unwrap();
    for id in table.take_ids().unwrap() {
        cache.pool().release(id).unwrap();
    }
    assert_eq!(cache.prefix().cached_blocks(), 1);
}

#[test]
fn a_limit_holds_after_the_source_of_a_copy_is_released() {
    let cache = plain(16);
    cache.prefix().set_max_cached(0);
    let (mut sequence, _) =
        cache.admit_sequence(&cache.prompt(&[7; 4]), &AdmitOptions::default()).unwrap();
    sequence.commit(4).unwrap();
    sequence.truncate(3).unwrap();
    let append = sequence.append(1).unwrap();
    assert!(append.copy.is_some());
    drop(append);
    assert_eq!(cache.prefix().cached_blocks(), 0);
}

#[test]
fn tokens_after_a_gap_fill_no_block_without_a_hash() {
    let cache = plain(16);
    let prompt = Prompt::from_hashes(&hashes(1..4), 12);
    cache.admit_with(s(1), &prompt, &AdmitOptions::default()).unwrap();
    cache.commit(s(1), 12).unwrap();
    drop(cache.append(s(1), 7).unwrap());
    // Token 19 fills the block of tokens 16 to 19, whose hash is not known.
    let appended = cache.append_tokens(s(1), &[5]).map(drop);
    assert!(appended.is_err(), "named now: {}", cache.get_sequence(s(1)).unwrap().num_named_tokens);
    assert_eq!(cache.get_sequence(s(1)).unwrap().num_tokens, 19);
}

/// Retains a block until it can have no more owners.
fn fill_owners(cache: &PagedKvCache, id: BlockId) {
    cache.pool().retain(id).unwrap();
    while cache.pool().retain(id).is_ok() {}
}

#[test]
fn an_accept_that_is_refused_names_no_token_of_a_sequence_hashed_by_the_caller() {
    let cache = plain(16);
    let prompt = Prompt::from_hashes(&hashes(1..4), 12);
    let options = AdmitOptions::default().first_chunk(4);
    let (sequence, _) = cache.admit_sequence(&prompt, &options).unwrap();
    let mut rows = [(sequence, 12)];
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
    fill_owners(&cache, rows[0].0.block_ids()[1]);
    let refused = step.accept(0, &mut rows[0].0, &[7; 11]).unwrap_err();
    assert!(matches!(refused, PagedKvError::TooManyOwners(_)), "{refused:?}");
    assert_eq!(rows[0].0.num_named_tokens(), 12);
}

#[test]
fn a_commit_that_is_refused_names_no_token_of_a_sequence_hashed_by_the_caller() {
    let cache = plain(16);
    let prompt = Prompt::from_hashes(&hashes(1..3), 10);
    let (mut sequence, _) = cache.admit_sequence(&prompt, &AdmitOptions::default()).unwrap();
    drop(sequence.append(1).unwrap());
    fill_owners(&cache, sequence.block_ids()[1]);
    let mut step = cache.step(Default::default());
    let refused = step.commit(&mut sequence, 11).unwrap_err();
    assert!(matches!(refused, PagedKvError::TooManyOwners(_)), "{refused:?}");
    assert_eq!(sequence.num_named_tokens(), 10);
}

#[test]
fn a_full_block_that_hits_entirely_is_not_too_short() {
    let cache = plain(16);
    let (prompt, options) = (cache.prompt(&[7; 4]), AdmitOptions::default().allow_full_hit());
    cache.admit_with(s(1), &prompt, &options).unwrap();
    cache.commit(s(1), 4).unwrap();
    assert_eq!(cache.admit_with(s(2), &prompt, &options).unwrap().cached_tokens, 4);
    let stats = cache.stats();
    let able = stats.prompt_tokens - stats.prompt_tokens_too_short;
    assert!(stats.prompt_tokens_hit <= able, "{} of {able} hit", stats.prompt_tokens_hit);
}

#[test]
fn a_block_that_is_published_keeps_its_parent() {
    let lost = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&lost);
    let cache = observed(4, move |_, all| seen.lock().unwrap().extend_from_slice(all));
    let [parent, hash] = hashes(7..9).try_into().unwrap();
    let table = cache.pool().allocate(1).unwrap();
    assert_eq!(cache.prefix().publish(table.as_slice(), &[hash], Some(parent)), Ok(1));
    assert_eq!(cache.prefix().publish(table.as_slice(), &[hash], None), Ok(0));
    drop(table);
    drop(cache.allocate_sequence(16).unwrap());
    let lost = lost.lock().unwrap();
    assert_eq!((lost[0].hash, lost[0].parent), (hash, Some(parent)));
}

/// Returns a cache with one sequence of a block and no other free block, and the number of calls of its observer.
/// The observer forks the sequence when it is called first, so that its growth needs a copy, and panics when
/// it is called again.
fn forked_by_its_observer() -> (Arc<PagedKvCache>, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&calls);
    let cache = observed(16, move |cache, _| match seen.fetch_add(1, Ordering::Relaxed) {
        0 => cache.fork(s(1), s(2)).unwrap(),
        _ => std::panic::panic_any("on purpose"),
    });
    cache.allocate(s(1), 3).unwrap();
    leave_idle(&cache, 15, 1);
    (cache, calls)
}

#[test]
fn a_panic_in_the_second_round_of_a_batch_gives_back_the_blocks_of_the_first() {
    let (cache, calls) = forked_by_its_observer();
    let mut batch = AppendBatch::default();
    let mut rows = lease_rows(&cache, &[(s(1), 6)]);
    let allocations = cache.stats().total_allocations;
    let panicked = catch_unwind(AssertUnwindSafe(|| append_batch(&mut rows, &mut batch))).is_err();
    assert!(panicked);
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    assert_eq!(cache.used_block_count(), 1, "the batch keeps blocks");
    assert_eq!(cache.stats().total_allocations, allocations);
}

#[test]
fn a_panic_in_the_second_round_of_an_append_leaves_the_statistics() {
    let (cache, calls) = forked_by_its_observer();
    let allocations = cache.stats().total_allocations;
    assert!(catch_unwind(AssertUnwindSafe(|| cache.append(s(1), 6).map(drop))).is_err());
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    assert_eq!(cache.used_block_count(), 1);
    assert_eq!(cache.stats().total_allocations, allocations);
}

type Grow = fn(&PagedKvCache) -> Result<(), PagedKvError>;
const GROW: &[(&str, Grow)] = &[
    ("append", |cache| cache.append(s(1), 5).map(drop)),
    ("append_tokens", |cache| cache.append_tokens(s(1), &[1, 2, 3, 4, 5]).map(drop)),
    ("append_batch", |cache| cache.append_batch(&[(s(1), 5)], &mut AppendBatch::default())),
    #[cfg(feature = "async")]
    ("waiting append", |cache| cache.waiting().append(s(1), 5).block().map(drop)),
];

#[test]
fn a_growth_refused_because_the_observer_freed_the_sequence_is_not_counted() {
    // A batch by id holds a lease, so its sequence stays.
    for (name, grow) in GROW.iter().filter(|(name, _)| *name != "append_batch") {
        let cache = observed(16, |cache, _| _ = cache.free_when_released(s(1)));
        cache.admit(s(1), &[1, 2, 3, 4]).unwrap();
        cache.commit(s(1), 4).unwrap();
        leave_idle(&cache, 15, 1);
        let allocations = cache.stats().total_allocations;
        let refused = grow(&cache).unwrap_err();
        assert_eq!(refused, PagedKvError::SequenceNotFound(s(1)), "{name}");
        assert_eq!(cache.used_block_count(), 0, "{name}");
        assert_eq!(cache.stats().total_allocations, allocations, "{name}");
        cache.validate().unwrap();
    }
}

/// An observer that lets another thread go on must not hold back that thread's wake-up.
#[cfg(feature = "async")]
#[test]
fn a_waiter_is_woken_while_the_observer_runs() {
    use std::sync::mpsc;
    use std::time::Duration;

    for (name, grow) in GROW {
        let (served, was_served) = mpsc::channel();
        let was_served = Mutex::new(was_served);
        let late = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&late);
        let cache = observed(16, move |cache, _| {
            if cache.free(s(5)).is_ok() {
                let in_time = was_served.lock().unwrap().recv_timeout(Duration::from_secs(2));
                seen.fetch_or(in_time.is_err(), Ordering::Relaxed);
            }
        });
        cache.admit(s(1), &[1, 2, 3, 4]).unwrap();
        cache.commit(s(1), 4).unwrap();
        cache.allocate(s(5), 8 * BLOCK_SIZE).unwrap();
        leave_idle(&cache, 7, 1);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                cache.waiting().allocate(s(6), 12 * BLOCK_SIZE).block().unwrap();
                _ = served.send(());
            });
            while cache.waiting().is_empty() {
                std::thread::yield_now();
            }
            grow(&cache).unwrap();
        });
        assert!(!late.load(Ordering::Relaxed), "{name}");
    }
}

/// The first of two waiters panics in the observer, and is dropped: the second is served.
#[cfg(feature = "async")]
#[test]
fn a_waiter_whose_observer_panics_leaves_the_queue() {
    let panics = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&panics);
    let cache = observed(16, move |_, _| {
        if seen.swap(false, Ordering::Relaxed) {
            std::panic::panic_any("on purpose");
        }
    });
    let used = cache.allocate_sequence(16 * BLOCK_SIZE).unwrap();
    let prompt = cache.prompt(&[3; 9]);
    let admissions = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let waits = |id: u64, waiters: usize| {
            let (cache, prompt, admissions) = (&cache, &prompt, &admissions);
            let thread = scope.spawn(move || {
                let wait =
                    cache.waiting().admit(s(id), prompt, &AdmitOptions::default().leave_free(2));
                let done = catch_unwind(AssertUnwindSafe(|| wait.block()));
                admissions.fetch_add(usize::from(done.is_ok()), Ordering::Relaxed);
            });
            while cache.waiting().len() < waiters {
                std::thread::yield_now();
            }
            thread
        };
        let threads = [waits(2, 1), waits(3, 2)];
        panics.store(true, Ordering::Relaxed);
        // All blocks come back at once, cached.
        let ids = used.block_ids().to_vec();
        cache.prefix().publish(&ids, &hashes(100..116), None).unwrap();
        drop(used);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    assert_eq!(admissions.load(Ordering::Relaxed), 1);
    assert_eq!((cache.used_block_count(), cache.waiting().len()), (3, 0));
    cache.validate().unwrap();
}

/// In a small pool with copies, forgotten contents and limits, an admission takes the blocks that it requires.
#[test]
fn an_admission_takes_what_it_requires_among_copies() {
    for seed in 0..40 {
        let cache = PagedKvCache::builder().num_blocks(24).block_size(BLOCK_SIZE).home_shards(2);
        let cache = cache.build().unwrap();
        let (mut random, mut held) = (Random::new(seed), Vec::new());
        for _ in 0..300 {
            let (family, branch) = (random.below(2) as u32, random.below(4) as u32);
            let tokens: Vec<u32> = (0..random.below(22) as u32)
                .map(|at| 1000 * family + if at < 8 { 0 } else { 100 * branch + at })
                .collect();
            let prompt = cache.prompt(&tokens);
            let mut options = AdmitOptions::default();
            if random.below(2) == 0 {
                options = options.allow_full_hit();
            }
            if random.below(3) == 0 {
                options = options.first_chunk(random.below(9));
            }
            if random.below(3) == 0 {
                options = options.max_cached_tokens(random.below(12));
            }
            let leave = random.below(8);
            options = options.leave_free(leave);
            let required = cache.required_blocks(&prompt, &options).unwrap();
            let free = cache.free_block_count();
            let stats = cache.stats();
            match cache.admit_sequence(&prompt, &options) {
                Ok((mut sequence, _)) => {
                    assert_eq!(free - cache.free_block_count(), required, "seed {seed}");
                    assert!(required == 0 || cache.free_block_count() >= leave);
                    if random.below(4) > 0 {
                        let len = sequence.num_tokens();
                        sequence.commit(len).unwrap();
                    }
                    held.push(sequence);
                }
                Err(_) => {
                    assert!(required + leave > free, "seed {seed}: {required} {leave} {free}");
                    assert_eq!(cache.stats(), stats, "seed {seed}");
                }
            }
            match random.below(6) {
                0 => drop(cache.prefix().forget(random.below(5))),
                1 => drop(cache.prefix().uncache(&[BlockId(random.below(24) as u32)])),
                2 => cache.prefix().set_max_cached([3, 9, usize::MAX][random.below(3)]),
                _ => {}
            }
            while held.len() > 4 {
                held.swap_remove(random.below(held.len()));
            }
        }
        cache.validate().unwrap();
    }
}

/// Contents of their own are published by threads: each is reported once, or is still cached.
#[test]
fn threads_lose_each_content_once() {
    for seed in 0..4 {
        let reported = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&reported);
        let cache = observed(48, move |_, lost| seen.lock().unwrap().extend_from_slice(lost));
        let (next, published) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let parents = Mutex::new(std::collections::HashMap::new());
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let (cache, next, published, parents) = (&cache, &next, &published, &parents);
                let reported = &reported;
                scope.spawn(move || {
                    let mut random = Random::new(seed * 10 + thread);
                    for round in 0..600_u64 {
                        let id = s(1 + thread * 10_000 + round);
                        let first = next.fetch_add(1, Ordering::Relaxed) as u32;
                        let len = 1 + random.below(20);
                        let tokens: Vec<u32> = (0..len as u32).map(|at| first * 64 + at).collect();
                        let prompt = cache.prompt(&tokens);
                        {
                            let mut parents = parents.lock().unwrap();
                            let mut parent = None;
                            for &hash in prompt.hashes() {
                                parents.insert(hash, parent);
                                parent = Some(hash);
                            }
                        }
                        if cache.admit_with(id, &prompt, &AdmitOptions::default()).is_err() {
                            continue;
                        }
                        match random.below(3) {
                            0 => {
                                let mut rows = lease_rows(cache, &[(id, random.below(6))]);
                                let mut step = cache.step(Default::default());
                                _ = step.grow(&mut rows).unwrap();
                                reported.lock().unwrap().extend_from_slice(step.overwritten());
                                step.commit(&mut rows[0].0, len).unwrap();
                                published.fetch_add(step.complete().published, Ordering::Relaxed);
                            }
                            1 => {
                                let mut rows = lease_rows(cache, &[(id, random.below(9))]);
                                _ = append_batch(&mut rows, &mut AppendBatch::default());
                            }
                            _ => drop(cache.append(id, random.below(9))),
                        }
                        published.fetch_add(cache.commit(id, len).unwrap(), Ordering::Relaxed);
                        cache.free(id).unwrap();
                    }
                });
            }
        });
        let reported = reported.lock().unwrap();
        let parents = parents.lock().unwrap();
        for lost in reported.iter() {
            assert_eq!(parents[&lost.hash], lost.parent);
        }
        let distinct: std::collections::HashSet<_> =
            reported.iter().map(|lost| lost.hash).collect();
        assert_eq!(distinct.len(), reported.len(), "twice");
        let cached = cache.prefix().cached_blocks();
        assert_eq!(published.load(Ordering::Relaxed), reported.len() + cached);
        cache.validate().unwrap();
    }
}

/// Threads that release at the same time forget no more than the limit says.
#[test]
fn releases_beside_each_other_forget_down_to_the_limit_only() {
    let cache = PagedKvCache::builder().num_blocks(1_024).block_size(BLOCK_SIZE).home_shards(4);
    let cache = cache.build().unwrap();
    cache.prefix().set_max_cached(64);
    let low = AtomicUsize::new(usize::MAX);
    for round in 0..200_u32 {
        std::thread::scope(|scope| {
            for thread in 0..4_u32 {
                let cache = &cache;
                scope.spawn(move || {
                    for part in 0..4 {
                        let first = ((round * 4 + thread) * 4 + part) * 128;
                        let tokens: Vec<u32> = (first..first + 64).collect();
                        let (mut sequence, _) = cache
                            .admit_sequence(&cache.prompt(&tokens), &AdmitOptions::default())
                            .unwrap();
                        sequence.commit(64).unwrap();
                    }
                });
            }
        });
        low.fetch_min(cache.prefix().cached_blocks(), Ordering::Relaxed);
    }
    assert_eq!(low.into_inner(), 64);
}

/// Blocks that are forgotten are available all the time.
#[test]
fn an_allocation_beside_a_forget_is_not_refused() {
    let cache = PagedKvCache::builder().num_blocks(64).block_size(BLOCK_SIZE).home_shards(2);
    let cache = cache.build().unwrap();
    let done = AtomicBool::new(false);
    let mut refused = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                cache.prefix().forget(usize::MAX);
            }
        });
        for round in 0..3_000 {
            leave_idle(&cache, 48, 1 + round % 100);
            refused += usize::from(cache.allocate_sequence(64 * BLOCK_SIZE).is_err());
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(refused, 0);
}

/// An operation that the observer overtakes by the same operation on the same id is refused and not counted.
#[test]
fn an_admission_overtaken_by_its_observer_is_not_counted() {
    let calls = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&calls);
    let cache = observed(16, move |cache, _| {
        if seen.fetch_add(1, Ordering::Relaxed) == 0 {
            cache.admit(s(1), &[4; 5]).unwrap();
        }
    });
    leave_idle(&cache, 16, 1);
    let before = cache.stats();
    let refused = cache.admit(s(1), &[5; 13]).unwrap_err();
    assert_eq!(refused, PagedKvError::SequenceExists(s(1)));
    let after = cache.stats();
    assert_eq!(after.total_allocations, before.total_allocations + 2);
    assert_eq!((after.prompt_tokens, after.blocks_used), (before.prompt_tokens + 5, 2));
    cache.validate().unwrap();
}

const ALGORITHM: HashAlgorithm = HashAlgorithm::Xxh3 { seed: 5 };

fn hashes_of(tokens: &[u32]) -> Vec<BlockHash> {
    let mut hashes = Vec::new();
    BlockHasher::new(ALGORITHM, BLOCK_SIZE, ExtraKeys::default()).extend(tokens, &mut hashes);
    hashes
}

/// Requests with drafts, aborted, dropped and overlapping steps, and trims publish alike by tokens and by hashes.
#[test]
fn steps_with_drafts_publish_alike_by_tokens_and_by_hashes() {
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let caches = [0; 2].map(|_| {
            let builder = PagedKvCache::builder().num_blocks(256).block_size(BLOCK_SIZE);
            builder.home_shards(1).hash_algorithm(ALGORITHM).build().unwrap()
        });
        let mut tokens: Vec<u32> = (0..random.below(14) as u32).collect();
        let prompts =
            [caches[0].prompt(&tokens), Prompt::from_hashes(&hashes_of(&tokens), tokens.len())];
        let mut rows: Vec<_> = (0..2)
            .map(|at| {
                let admitted = caches[at].admit_sequence(&prompts[at], &AdmitOptions::default());
                let mut sequence = admitted.unwrap().0;
                sequence.commit(tokens.len()).unwrap();
                [(sequence, 0)]
            })
            .collect();
        let mut older: Vec<Vec<Step>> = vec![Vec::new(), Vec::new()];
        let (mut trimmed, mut probes) = (false, Vec::new());
        for _ in 0..40 {
            let num_new = random.below(7);
            let accepted: Vec<u32> =
                (0..random.below(num_new + 1)).map(|_| random.below(3) as u32).collect();
            let next = [tokens.clone(), accepted.clone()].concat();
            let (act, keep) = (random.below(8), random.below(4) == 0);
            for at in 0..2 {
                let (cache, row) = (&caches[at], &mut rows[at]);
                row[0].1 = num_new;
                let mut step = cache.step(Default::default());
                assert_eq!(step.grow(row).unwrap().grown_rows, 1);
                match act {
                    0 => drop(step.abort(row).unwrap()),
                    _ => {
                        step.accept(0, &mut row[0].0, &accepted).unwrap();
                        let (known, full) = (tokens.len() / BLOCK_SIZE, next.len() / BLOCK_SIZE);
                        if at == 1 && full > known {
                            step.commit(&mut row[0].0, &hashes_of(&next)[known..]).unwrap();
                        }
                        match act {
                            1 => {
                                drop(step);
                                row[0].0.commit(next.len()).unwrap();
                            }
                            _ if keep => older[at].push(step),
                            _ => drop(step.complete()),
                        }
                    }
                }
            }
            if act != 0 {
                tokens = next;
            }
            if random.below(6) == 0 && !trimmed {
                let len = random.below(tokens.len() + 1);
                tokens.truncate(len);
                rows.iter_mut().for_each(|row| row[0].0.truncate(len).unwrap());
            }
            if random.below(16) == 0 {
                trimmed = true;
                let trim = |row: &mut [(_, usize); 1]| {
                    let sequence: &mut paged_kv::CachedSequence = &mut row[0].0;
                    sequence.apply_streaming_llm(4, 8).unwrap()
                };
                let trims: Vec<_> = rows.iter_mut().map(trim).collect();
                assert_eq!(trims[0], trims[1]);
            }
            let fails = random.below(3) == 0;
            if older[0].len() > 2 {
                let which = random.below(3);
                for steps in &mut older {
                    let step = steps.remove(which);
                    if fails { drop(step) } else { drop(step.complete()) }
                }
            }
            assert_eq!(rows[0][0].0.num_named_tokens(), rows[1][0].0.num_named_tokens());
            probes.push(tokens.clone());
            for probe in &probes {
                let found = [
                    caches[0].prefix().probe(&caches[0].prompt(probe)),
                    caches[1].prefix().probe(&Prompt::from_hashes(&hashes_of(probe), probe.len())),
                ];
                assert_eq!(found[0], found[1], "seed {seed}");
            }
            let cached = [0, 1].map(|at| caches[at].prefix().cached_blocks());
            assert_eq!(cached[0], cached[1], "seed {seed}");
        }
        drop(older);
        drop(rows);
        caches.iter().for_each(common::assert_empties);
    }
}

/// Threads serve under a limit, beside uncached and forgotten contents, resets excepted: each content that was
/// published is reported, uncached or still cached, and waiters are served.
#[cfg(feature = "async")]
#[test]
fn contents_are_overwritten_uncached_or_cached() {
    struct Deaf;
    impl paged_kv::EventSink for Deaf {
        fn on_event(&self, _: &paged_kv::KvEvent<'_>) {}
    }
    for seed in 0..4 {
        let reported = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&reported);
        let mut builder = PagedKvCache::builder().num_blocks(32).block_size(BLOCK_SIZE);
        builder = builder.home_shards(2).overwrite_observer(move |lost| {
            seen.fetch_add(lost.len(), Ordering::Relaxed);
        });
        if seed % 2 == 0 {
            builder = builder.event_sink(Arc::new(Deaf));
        }
        let cache = builder.build().unwrap();
        let [next, published, uncached] = [0; 3].map(AtomicUsize::new);
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let (cache, next, published, uncached) = (&cache, &next, &published, &uncached);
                scope.spawn(move || {
                    let mut random = Random::new(seed * 10 + thread);
                    for round in 0..500_u64 {
                        let id = s(1 + thread * 10_000 + round);
                        let first = 64 * next.fetch_add(1, Ordering::Relaxed) as u32;
                        let len = 1 + random.below(30);
                        let tokens: Vec<u32> = (first..first + len as u32).collect();
                        let (prompt, options) = (
                            cache.prompt(&tokens),
                            AdmitOptions::default().leave_free(random.below(20)),
                        );
                        cache.waiting().admit(id, &prompt, &options).block().unwrap();
                        published.fetch_add(cache.commit(id, len).unwrap(), Ordering::Relaxed);
                        match random.below(6) {
                            0 => {
                                let ids = cache.get_sequence(id).unwrap().block_ids;
                                uncached.fetch_add(cache.prefix().uncache(&ids), Ordering::Relaxed);
                            }
                            1 => {
                                let forgotten = cache.prefix().forget(random.below(9));
                                uncached.fetch_add(forgotten, Ordering::Relaxed);
                            }
                            2 => {
                                let forgotten = cache.prefix().forget_prompt(&prompt).unwrap();
                                uncached.fetch_add(forgotten, Ordering::Relaxed);
                            }
                            3 => drop(cache.waiting().append(id, 1).block()),
                            _ => {}
                        }
                        cache.free(id).unwrap();
                    }
                });
            }
        });
        let ended = reported.load(Ordering::Relaxed) + uncached.load(Ordering::Relaxed);
        assert_eq!(published.load(Ordering::Relaxed), ended + cache.prefix().cached_blocks());
        assert!(cache.waiting().is_empty());
        common::assert_empties(&cache);
        assert_eq!(cache.free_block_count(), 32);
    }
}
