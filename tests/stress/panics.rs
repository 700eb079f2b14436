//! Tests of threads that panic: they leave nothing behind, and lock no other thread out.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;

use paged_kv::{AppendBatch, PagedKvCache, SeqId, append_batch};

use crate::common::assert_empties;
use crate::{cache, caches, for_a_while, watched};

/// Panics without a message on standard error.
fn panic_quietly() -> ! {
    resume_unwind(Box::new("on purpose"))
}

fn assert_panics(body: impl FnOnce()) {
    let panic: Box<dyn Any + Send> = catch_unwind(AssertUnwindSafe(body)).expect_err("it panics");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"), "another panic than meant");
}

/// Creates everything that a thread can hold, and drops it by a panic.
fn panic_with_hands_full(cache: &PagedKvCache, id: SeqId) {
    let Ok(table) = cache.pool().allocate(3) else { return };
    let Ok(mut sequence) = cache.allocate_sequence(6) else { return };
    let Ok(fork) = sequence.fork() else { return };
    let append = sequence.append(1);
    let mut rows = [(fork, 4)];
    let mut batch = AppendBatch::default();
    let grown = append_batch(&mut rows, &mut batch);
    let allocated = cache.allocate(id, 6);
    let lease = cache.lease(&[id]);
    let _held = (table, sequence, append, rows, batch, grown, allocated, lease);
    panic_quietly();
}

#[test]
fn a_thread_that_panics_mid_use_leaks_nothing() {
    watched(|| {
        for cache in caches() {
            for round in 0..50 {
                thread::scope(|scope| {
                    let worker = scope.spawn(|| {
                        panic_with_hands_full(&cache, SeqId(round));
                        unreachable!("there was room");
                    });
                    let panic = worker.join().expect_err("it panics");
                    assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));
                });
                // The lease is gone: only the sequence of the map is left.
                assert_eq!(cache.used_block_count(), 2);
                cache.free(SeqId(round)).unwrap();
                cache.validate().unwrap();
            }
            assert_empties(&cache);
        }
    });
}

#[test]
fn threads_that_panic_beside_others_leak_nothing() {
    watched(|| {
        for cache in caches() {
            for_a_while(2, |random, number| {
                let id = SeqId(number as u64);
                if random.below(3) == 0 {
                    let full = AssertUnwindSafe(|| panic_with_hands_full(&cache, id));
                    if let Err(panic) = catch_unwind(full) {
                        assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));
                    }
                }
                _ = cache.allocate(id, random.below(40));
                _ = cache.append(id, random.below(5));
                _ = cache.free(id);
            });
            assert_empties(&cache);
        }
    });
}

#[test]
fn a_reader_that_panics_leaves_its_sequence_unlocked() {
    watched(|| {
        let cache = cache(64, 4);
        cache.allocate(SeqId(1), 6).unwrap();
        for _ in 0..100 {
            assert_panics(|| {
                cache.with_sequence(SeqId(1), |_| panic_quietly());
            });
            assert_eq!(cache.get_sequence(SeqId(1)).unwrap().num_tokens, 6);
            assert_eq!(cache.append(SeqId(1), 4).unwrap().new_blocks.len(), 1);
            cache.truncate(SeqId(1), 6).unwrap();
            cache.fork(SeqId(1), SeqId(2)).unwrap();
            cache.free(SeqId(2)).unwrap();
            let lease = cache.lease(&[SeqId(1)]).unwrap();
            assert_panics(|| {
                cache.with_sequence(SeqId(1), |_| panic_quietly());
            });
            drop(lease);
            cache.validate().unwrap();
        }
        assert_empties(&cache);
    });
}
