//! Tests of overwritten contents: the observer learns of every content that an allocation ends, before the
//! operation returns and with no lock held; and a panic of it leaves everything as it was.

mod common;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use common::random::Random;
use common::{lease_rows, s};
use paged_kv::{
    AdmitOptions, AppendBatch, BlockHash, BlockId, CachedSequence, Overwritten, PagedKvCache,
    Prompt, SeqId, append_batch,
};

const BLOCK_SIZE: usize = 4;

/// Contents that were reported since the last look.
type Reported = Arc<Mutex<Vec<Overwritten>>>;

fn observed(num_blocks: usize, shards: usize) -> (PagedKvCache, Reported) {
    let reported = Reported::default();
    let seen = Arc::clone(&reported);
    let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(BLOCK_SIZE);
    let builder = builder.home_shards(shards);
    let builder = builder.overwrite_observer(move |lost| {
        assert!(!lost.is_empty());
        seen.lock().unwrap().extend_from_slice(lost);
    });
    (builder.build().unwrap(), reported)
}

fn take(reported: &Reported) -> Vec<Overwritten> {
    std::mem::take(&mut *reported.lock().unwrap())
}

/// The contents that can be matched, by block: an engine's own mirror of the cache.
#[derive(Default)]
struct Mirror {
    contents: HashMap<BlockId, (BlockHash, Option<BlockHash>)>,
    prompts: Vec<Prompt>,
}

impl Mirror {
    /// Notes the blocks of a committed sequence.
    fn note(&mut self, prompt: &Prompt, ids: &[BlockId]) {
        for (at, (&id, &hash)) in ids.iter().zip(prompt.hashes()).enumerate() {
            self.contents.insert(id, (hash, at.checked_sub(1).map(|at| prompt.hashes()[at])));
        }
        self.prompts.push(prompt.clone());
    }

    /// Removes the reported contents, which must be the mirrored ones.
    fn lose(&mut self, lost: &[Overwritten]) {
        for lost in lost {
            let (hash, parent) = self.contents.remove(&lost.block).expect("it was cached");
            assert_eq!((lost.hash, lost.parent), (hash, parent));
        }
    }

    /// Asserts that every prompt finds no more than the mirror has, and no less: nothing was lost silently.
    fn assert_agrees(&self, cache: &PagedKvCache) {
        for prompt in &self.prompts {
            let is_there =
                |hash: &&BlockHash| self.contents.values().any(|(held, _)| held == *hash);
            let held = prompt.hashes().iter().take_while(is_there).count();
            let most = prompt.num_tokens().saturating_sub(1) / BLOCK_SIZE;
            assert_eq!(cache.prefix().probe(prompt), held.min(most) * BLOCK_SIZE);
        }
    }
}

/// Serves prompts by every way to take blocks, and compares the reports with a mirror after each operation.
#[test]
fn every_lost_content_is_reported_before_the_operation_returns() {
    let mut steps_lost = 0;
    for (seed, shards) in (0..12).map(|seed| (seed, 1 + seed as usize % 4)) {
        let (cache, reported) = observed(24, shards);
        let (mut mirror, mut random) = (Mirror::default(), Random::new(seed));
        let mut handles: Vec<CachedSequence> = Vec::new();
        let mut ids: Vec<SeqId> = Vec::new();
        for round in 0..400_u32 {
            let id = s(u64::from(round));
            let tokens: Vec<u32> =
                (0..random.below(14) as u32).map(|at| 1000 * (round % 40) + at).collect();
            let prompt = cache.prompt(&tokens);
            match random.below(11) {
                0 | 1 => {
                    if cache.admit_with(id, &prompt, &AdmitOptions::default()).is_ok() {
                        cache.commit(id, tokens.len()).unwrap();
                        mirror.lose(&take(&reported));
                        mirror.note(&prompt, &cache.get_sequence(id).unwrap().block_ids);
                        ids.push(id);
                    }
                }
                2 | 3 => {
                    if let Ok((mut sequence, _)) =
                        cache.admit_sequence(&prompt, &AdmitOptions::default())
                    {
                        sequence.commit(tokens.len()).unwrap();
                        mirror.lose(&take(&reported));
                        mirror.note(&prompt, sequence.block_ids());
                        handles.push(sequence);
                    }
                }
                4 => drop(cache.allocate_sequence(random.below(30))),
                5 => drop(cache.reserve(random.below(6))),
                6 if !ids.is_empty() => {
                    let id = ids[random.below(ids.len())];
                    drop(cache.append(id, random.below(9)));
                }
                7 if ids.len() > 1 => {
                    let rows = [(ids[0], random.below(6)), (ids[1], random.below(6))];
                    let mut batch = AppendBatch::default();
                    let _ = match random.below(2) {
                        0 => cache.append_batch(&rows, &mut batch),
                        _ => append_batch(&mut lease_rows(&cache, &rows), &mut batch),
                    };
                }
                8 if !handles.is_empty() => {
                    let at = random.below(handles.len());
                    drop(handles[at].append(random.below(9)));
                }
                9 if !ids.is_empty() => {
                    let mut rows = lease_rows(&cache, &[(ids[0], random.below(9))]);
                    let before = reported.lock().unwrap().len();
                    let mut step = cache.step(Default::default());
                    let _ = step.grow(&mut rows).unwrap();
                    assert_eq!(reported.lock().unwrap().len(), before, "a step collects them");
                    mirror.lose(step.overwritten());
                    steps_lost += step.overwritten().len();
                    step.complete();
                }
                _ => {
                    if ids.len() > 2 {
                        cache.free(ids.swap_remove(random.below(ids.len()))).unwrap();
                    }
                    if handles.len() > 2 {
                        handles.swap_remove(random.below(handles.len()));
                    }
                }
            }
            mirror.lose(&take(&reported));
            mirror.assert_agrees(&cache);
        }
        cache.validate().unwrap();
    }
    assert!(steps_lost > 0, "steps reclaimed contents, too");
}

/// Returns a cache whose blocks are all cached and idle, but those of sequence 1 (of 4 tokens), and whose
/// observer runs `observe` with the cache.
fn full(
    observe: impl Fn(&PagedKvCache, &[Overwritten]) + Send + Sync + 'static,
) -> Arc<PagedKvCache> {
    let this: Arc<OnceLock<Weak<PagedKvCache>>> = Arc::default();
    let seen = Arc::clone(&this);
    let builder = PagedKvCache::builder().num_blocks(16).block_size(BLOCK_SIZE).home_shards(2);
    let builder = builder.overwrite_observer(move |lost| {
        let cache = seen.get().and_then(Weak::upgrade).expect("the cache is in use");
        observe(&cache, lost);
    });
    let cache = Arc::new(builder.build().unwrap());
    this.set(Arc::downgrade(&cache)).unwrap();
    cache.admit(s(1), &[1, 2, 3, 4]).unwrap();
    cache.admit(s(9), &(100..160).collect::<Vec<u32>>()).unwrap();
    cache.commit(s(9), 60).unwrap();
    cache.free(s(9)).unwrap();
    cache
}

/// Every way to take a block, as a function that ends with all blocks given back but those of sequence 1.
type Way = (&'static str, fn(&PagedKvCache));

const WAYS: [Way; 13] = [
    ("allocate", |cache| {
        cache.allocate(s(2), 5).unwrap();
        cache.free(s(2)).unwrap();
    }),
    ("allocate_sequence", |cache| drop(cache.allocate_sequence(5).unwrap())),
    ("admit", |cache| {
        cache.admit(s(2), &[9; 9]).unwrap();
        cache.free(s(2)).unwrap();
    }),
    ("admit with hits", |cache| {
        let tokens: Vec<u32> = (100..108).chain([7; 9]).collect();
        assert_eq!(cache.admit(s(2), &tokens).unwrap().cached_tokens, 8);
        cache.free(s(2)).unwrap();
    }),
    ("admit_sequence", |cache| {
        drop(cache.admit_sequence(&cache.prompt(&[9; 9]), &AdmitOptions::default()).unwrap());
    }),
    ("reserve", |cache| drop(cache.reserve(3).unwrap())),
    ("append", |cache| {
        drop(cache.append(s(1), 5).unwrap());
        cache.truncate(s(1), 4).unwrap();
    }),
    ("append to a leased sequence", |cache| {
        let lease = cache.lease(&[s(1)]).unwrap();
        drop(cache.append(s(1), 5).unwrap());
        drop(lease);
        cache.truncate(s(1), 4).unwrap();
    }),
    ("append_tokens", |cache| {
        cache.commit(s(1), 4).unwrap();
        drop(cache.append_tokens(s(1), &[5, 6]).unwrap());
        cache.truncate(s(1), 4).unwrap();
    }),
    ("append_batch", |cache| {
        cache.append_batch(&[(s(1), 5)], &mut AppendBatch::default()).unwrap();
        cache.truncate(s(1), 4).unwrap();
    }),
    ("append_batch of leased rows", |cache| {
        append_batch(&mut lease_rows(cache, &[(s(1), 5)]), &mut AppendBatch::default()).unwrap();
        cache.truncate(s(1), 4).unwrap();
    }),
    ("append by handle", |cache| {
        let mut sequence = cache.allocate_sequence(0).unwrap();
        drop(sequence.append(5).unwrap());
    }),
    ("copy on write", |cache| {
        cache.fork(s(1), s(2)).unwrap();
        cache.truncate(s(2), 3).unwrap();
        assert!(cache.append(s(2), 1).unwrap().copy.is_some());
        cache.free(s(2)).unwrap();
    }),
];

#[test]
fn an_observer_may_call_the_cache_because_no_lock_is_held() {
    for (name, way) in WAYS {
        let calls = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&calls);
        let cache = full(move |cache, lost| {
            // Another thread would hang too if a lock were held.
            std::thread::scope(|scope| {
                let thread = scope.spawn(|| {
                    for id in cache.sequence_ids() {
                        let _ = cache.with_sequence(id, |sequence| sequence.num_tokens());
                        cache.touch(id).unwrap();
                    }
                    drop(cache.append(s(1), 0).unwrap());
                    cache.stats();
                    cache.validate().unwrap();
                });
                thread.join().unwrap();
            });
            seen.fetch_add(lost.len(), Ordering::Relaxed);
        });
        way(&cache);
        assert!(calls.load(Ordering::Relaxed) > 0, "{name}");
        assert_eq!(cache.used_block_count(), 1, "{name}");
    }
}

#[test]
fn a_panic_of_the_observer_gives_every_block_back() {
    for (name, way) in WAYS {
        let is_quiet = Arc::new(AtomicUsize::new(0));
        let quiet = Arc::clone(&is_quiet);
        let cache = full(move |_, _| {
            if quiet.load(Ordering::Relaxed) == 0 {
                std::panic::panic_any("on purpose");
            }
        });
        let (before, info) = (cache.stats(), cache.get_sequence(s(1)).unwrap());
        let result = catch_unwind(AssertUnwindSafe(|| way(&cache)));
        assert_eq!(result.unwrap_err().downcast_ref::<&str>(), Some(&"on purpose"), "{name}");
        if name == "copy on write" {
            cache.free(s(2)).unwrap();
        }
        let (after, later) = (cache.stats(), cache.get_sequence(s(1)).unwrap());
        assert_eq!(
            (later.num_tokens, later.block_ids),
            (info.num_tokens, info.block_ids),
            "{name}"
        );
        assert_eq!(cache.used_block_count(), 1, "{name}");
        assert_eq!(after.total_allocations, before.total_allocations, "{name}");
        cache.validate().unwrap();
        // The same operation succeeds afterwards.
        is_quiet.store(1, Ordering::Relaxed);
        way(&cache);
        assert_eq!(cache.used_block_count(), 1, "{name}");
    }
}

#[test]
fn contents_from_before_a_reset_are_not_reported() {
    let (cache, reported) = observed(4, 1);
    cache.admit(s(1), &[7; 12]).unwrap();
    cache.commit(s(1), 12).unwrap();
    cache.free(s(1)).unwrap();
    cache.prefix().reset();
    drop(cache.allocate_sequence(16).unwrap());
    assert!(reported.lock().unwrap().is_empty());
    cache.admit(s(1), &[7; 12]).unwrap();
    cache.commit(s(1), 12).unwrap();
    cache.free(s(1)).unwrap();
    drop(cache.allocate_sequence(16).unwrap());
    assert_eq!(reported.lock().unwrap().len(), 3);
}

#[cfg(feature = "async")]
#[test]
fn a_waiting_append_reports_outside_of_the_locks() {
    let cache = full(|cache, _| {
        assert!(cache.get_sequence(s(1)).is_some());
    });
    drop(cache.waiting().append(s(1), 5).block().unwrap());
    let rest = cache.allocate_sequence(4 * cache.free_block_count()).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| cache.waiting().append(s(1), 9).block().map(drop));
        while cache.waiting().is_empty() {
            std::thread::yield_now();
        }
        drop(rest);
        waiter.join().unwrap().unwrap();
    });
    assert_eq!(cache.get_sequence(s(1)).unwrap().num_tokens, 18);
}
