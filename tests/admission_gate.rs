//! Tests of the gate of an admission: the blocks that it requires, and those that it leaves.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use common::{assert_empties, s, shapes, shapes_with};
use paged_kv::{AdmitOptions, PagedKvCache, PagedKvError, Prompt, Watermark};

fn leave(num_blocks: usize) -> AdmitOptions {
    AdmitOptions::default().leave_free(num_blocks)
}

#[test]
fn an_admission_leaves_the_larger_of_its_own_and_the_caches_number_of_blocks() {
    for (watermark, own, left) in [(0, 3, 3), (3, 0, 3), (2, 5, 5), (5, 2, 5)] {
        for cache in shapes_with(16, 4, |builder| builder.watermark(Watermark::Blocks(watermark))) {
            let prompt = |blocks: usize| cache.prompt(&vec![7; 4 * blocks]);
            let refused = cache.admit_with(s(1), &prompt(17 - left), &leave(own)).unwrap_err();
            let short = PagedKvError::OutOfMemory { requested: 17 - left, available: 16 - left };
            assert_eq!(refused, short);
            assert!(cache.admit_sequence(&prompt(17 - left), &leave(own)).is_err());
            assert_eq!((cache.used_block_count(), cache.stats().total_allocations), (0, 0));
            cache.admit_with(s(1), &prompt(16 - left), &leave(own)).unwrap();
            assert_eq!(cache.free_block_count(), left);
            assert_empties(&cache);
        }
    }
}

#[test]
fn a_prompt_of_shared_blocks_needs_no_room() {
    for cache in shapes(16, 4) {
        cache.admit(s(1), &[7; 8]).unwrap();
        cache.commit(s(1), 8).unwrap();
        let options = leave(usize::MAX).allow_full_hit();
        let prompt = cache.prompt(&[7; 8]);
        assert_eq!(cache.required_blocks(&prompt, &options), Ok(0));
        assert_eq!(cache.admit_with(s(2), &prompt, &options).unwrap().cached_tokens, 8);
        let longer = cache.prompt(&[7; 9]);
        assert_eq!(cache.required_blocks(&longer, &options), Ok(1));
        let refused = cache.admit_with(s(3), &longer, &options).unwrap_err();
        assert_eq!(refused, PagedKvError::OutOfMemory { requested: 1, available: 0 });
        assert_empties(&cache);
    }
}

#[test]
fn the_required_blocks_count_idle_hits_and_new_blocks() {
    for cache in shapes(16, 4) {
        cache.admit(s(1), &[7; 12]).unwrap();
        cache.commit(s(1), 12).unwrap();
        let prompt = cache.prompt(&[[7; 12], [8; 12]].concat());
        let required = |options: AdmitOptions| cache.required_blocks(&prompt, &options).unwrap();
        assert_eq!(required(AdmitOptions::default()), 3);
        assert_eq!(required(AdmitOptions::default().first_chunk(2)), 1);
        assert_eq!(required(AdmitOptions::default().max_cached_tokens(4)), 5);
        cache.free(s(1)).unwrap();
        assert_eq!(required(AdmitOptions::default()), 6);
        assert_eq!(required(AdmitOptions::default().first_chunk(0)), 3);
        assert_empties(&cache);
    }
}

#[test]
fn a_prompt_of_another_cache_has_no_need() {
    let [one, other] = [4, 8].map(|block_size| PagedKvCache::new(8, block_size, 1, 1));
    let refused = one.required_blocks(&other.prompt(&[7; 9]), &AdmitOptions::default());
    assert!(matches!(refused, Err(PagedKvError::PromptMismatch { .. })));
    let too_many = Prompt::from_hashes(one.prompt(&[7; 9]).hashes(), 3);
    let refused = one.required_blocks(&too_many, &AdmitOptions::default());
    assert!(matches!(refused, Err(PagedKvError::InvalidConfig { parameter: "hashes", .. })));
    let endless = Prompt::from_hashes(&[], usize::MAX);
    assert_eq!(one.required_blocks(&endless, &leave(usize::MAX)), Ok(usize::MAX.div_ceil(4)));
    assert!(one.admit_with(s(1), &endless, &leave(usize::MAX)).is_err());
}

#[test]
fn threads_that_admit_together_never_leave_fewer_blocks() {
    for _ in 0..20 {
        let cache =
            PagedKvCache::builder().num_blocks(40).block_size(4).home_shards(4).build().unwrap();
        let admitted = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..4_u32 {
                let (cache, admitted) = (&cache, &admitted);
                scope.spawn(move || {
                    for round in 0..50 {
                        let prompt = cache.prompt(&[1000 * thread + round; 9]);
                        if let Ok((sequence, _)) = cache.admit_sequence(&prompt, &leave(8)) {
                            admitted.fetch_add(1, Ordering::Relaxed);
                            assert!(cache.free_block_count() <= 37);
                            std::mem::forget(sequence); // it runs on
                        }
                    }
                });
            }
        });
        // 32 blocks may be taken, 3 a request.
        assert_eq!((admitted.into_inner(), cache.free_block_count()), (10, 10));
    }
}

#[cfg(feature = "async")]
#[test]
fn a_waiting_admission_waits_until_it_leaves_its_blocks() {
    let cache = PagedKvCache::new(8, 4, 1, 1);
    let never = cache.waiting().admit(s(1), &cache.prompt(&[7; 9]), &leave(6)).block().unwrap_err();
    assert_eq!(never, PagedKvError::OutOfMemory { requested: 3, available: 2 });
    cache.allocate(s(1), 4).unwrap();
    cache.allocate(s(2), 4).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let prompt = cache.prompt(&[7; 9]);
            cache
                .waiting()
                .admit(s(3), &prompt, &leave(5))
                .block()
                .map(|admission| admission.num_tokens)
        });
        while cache.waiting().is_empty() {
            std::thread::yield_now();
        }
        cache.free(s(1)).unwrap();
        assert_eq!(cache.waiting().len(), 1, "five would not be left");
        cache.free(s(2)).unwrap();
        assert_eq!(waiter.join().unwrap(), Ok(9));
    });
    assert_eq!(cache.free_block_count(), 5);
}
