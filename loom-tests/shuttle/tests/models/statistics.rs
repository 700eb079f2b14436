//! Models of statistics: no snapshot reports an impossible state, neither while other threads work nor at
//! rest.

use paged_kv::{CacheStats, PagedKvCache, SeqId};
use shuttle::thread::scope;

use crate::explore::explore;
use crate::{A, B, C, assert_all_free_at_end, cache};

const PROMPT: [u32; 5] = [7, 7, 7, 7, 7];

/// Asserts the relations that hold in every snapshot.
#[track_caller]
fn assert_possible(stats: &CacheStats) {
    assert!(stats.total_frees <= stats.total_allocations, "{stats:?}");
    assert!(stats.blocks_used <= stats.blocks_total, "{stats:?}");
    assert!(stats.peak_blocks_used <= stats.blocks_total, "{stats:?}");
    assert!(stats.blocks_idle <= stats.blocks_total, "{stats:?}");
    assert!(stats.prompt_tokens_hit <= stats.prompt_tokens, "{stats:?}");
    assert!(stats.prompt_tokens_too_short <= stats.prompt_tokens, "{stats:?}");
}

/// Asserts that the counters which only grow have not fallen between a snapshot and a later one.
#[track_caller]
fn assert_grown(before: &CacheStats, after: &CacheStats) {
    let counts = |stats: &CacheStats| {
        [
            stats.total_allocations,
            stats.total_frees,
            stats.total_evictions,
            stats.total_forks,
            stats.peak_blocks_used as u64,
            stats.prompt_tokens,
            stats.prompt_tokens_hit,
            stats.prompt_tokens_too_short,
            stats.blocks_reclaimed,
        ]
    };
    let shrunk = counts(before).iter().zip(counts(after)).any(|(&before, after)| after < before);
    assert!(!shrunk, "{before:?}, later {after:?}");
}

fn watch(cache: &PagedKvCache) {
    let mut before = cache.stats();
    assert_possible(&before);
    for _ in 0..3 {
        let now = cache.stats();
        assert_possible(&now);
        assert_grown(&before, &now);
        before = now;
    }
}

/// Asserts that at rest every figure follows from the operations that were made.
#[track_caller]
fn assert_exact(cache: &PagedKvCache) {
    let stats = cache.stats();
    let used = (stats.total_allocations - stats.total_frees) as usize;
    assert_eq!(stats.blocks_used, used, "{stats:?}");
    assert_eq!(cache.used_block_count(), used);
    assert_eq!(cache.free_block_count(), cache.total_blocks() - used);
    assert_eq!(stats.num_sequences, cache.sequence_ids().len());
    assert!(stats.blocks_idle + used <= stats.blocks_total, "{stats:?}");
    assert_eq!(stats, cache.stats(), "looking changes nothing");
}

#[test]
fn snapshots_beside_allocations_and_evictions_are_possible_and_grow() {
    explore(|| {
        let cache = cache(5);
        scope(|scope| {
            scope.spawn(|| {
                let _ = cache.allocate(A, 3);
                let _ = cache.fork(A, B);
                let _ = cache.append(B, 1);
                let _ = cache.free(A);
            });
            scope.spawn(|| {
                let _ = cache.allocate(C, 5);
                let _ = cache.evict();
            });
            watch(&cache);
        });
        assert_exact(&cache);
        assert_all_free_at_end(&cache);
    });
}

#[test]
fn snapshots_beside_admissions_and_reclaims_are_possible_and_grow() {
    explore(|| {
        let cache = cache(5);
        let serve = |id: SeqId| {
            if cache.admit(id, &PROMPT).is_ok() {
                let _ = cache.commit(id, 5);
                let _ = cache.free(id);
            }
        };
        scope(|scope| {
            scope.spawn(|| serve(A));
            scope.spawn(|| {
                serve(B);
                drop(cache.allocate_sequence(8));
                let _ = cache.admit(C, &PROMPT[..2]);
            });
            watch(&cache);
        });
        assert_exact(&cache);
        assert_all_free_at_end(&cache);
    });
}

/// An allocation that loses a race for its id appears in no statistic afterwards.
#[test]
fn an_allocation_that_loses_its_id_leaves_no_trace() {
    explore(|| {
        let cache = cache(6);
        scope(|scope| {
            let contest = || usize::from(cache.allocate(A, 4).is_ok());
            let other = scope.spawn(contest);
            let admitted = scope.spawn(|| usize::from(cache.admit(A, &PROMPT[..4]).is_ok()));
            let stats = cache.stats();
            assert!(stats.total_frees <= stats.total_allocations, "{stats:?}");
            let won = contest();
            let others = other.join().expect("it ended") + admitted.join().expect("it ended");
            assert_eq!(won + others, 1);
        });
        let stats = cache.stats();
        assert_eq!((stats.total_allocations, stats.total_frees), (2, 0), "{stats:?}");
        assert_exact(&cache);
        assert_all_free_at_end(&cache);
    });
}
