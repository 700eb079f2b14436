//! Tests of requests that take no block: they succeed, however little room there is and whichever
//! requests wait.

use paged_kv::{AdmitOptions, PagedKvCache, Prompt, SeqId, Watermark};

use super::{HANG, Task, assert_all_back};

/// Makes requests that take no block, by every public way.
fn take_nothing(cache: &PagedKvCache) {
    let (options, empty) = (AdmitOptions::default(), cache.prompt(&[]));
    let now = std::time::Duration::ZERO;
    cache.allocate(SeqId(10), 0).unwrap();
    cache.waiting().allocate(SeqId(11), 0).timeout(now).block().unwrap();
    cache.admit(SeqId(12), &[]).unwrap();
    cache.admit_with(SeqId(13), &empty, &options).unwrap();
    cache.waiting().admit(SeqId(14), &empty, &options).timeout(now).block().unwrap();
    cache.admit_with(SeqId(15), &Prompt::from_hashes(&[], 0), &AdmitOptions::default()).unwrap();
    assert_eq!(cache.allocate_sequence(0).unwrap().num_tokens(), 0);
    assert_eq!(cache.admit_sequence(&empty, &options).unwrap().1.num_tokens, 0);
    assert_eq!(cache.reserve(0).unwrap().num_blocks(), 0);
    assert_eq!(cache.waiting().reserve(0).timeout(now).block().unwrap().num_blocks(), 0);
    for id in 10..16 {
        drop(cache.append(SeqId(id), 0).unwrap());
        cache.waiting().append(SeqId(id), 0).timeout(now).block().map(drop).unwrap();
        cache.fork(SeqId(id), SeqId(id + 10)).unwrap();
        [id, id + 10].into_iter().for_each(|id| cache.free(SeqId(id)).unwrap());
    }
    assert!(Task::new(cache.waiting().reserve(0).timeout(HANG)).poll().is_ready());
    assert!(Task::new(cache.waiting().allocate(SeqId(10), 0).timeout(HANG)).poll().is_ready());
    let admit = cache.waiting().admit(SeqId(11), &empty, &options).timeout(HANG);
    assert!(Task::new(admit).poll().is_ready());
    [10, 11].into_iter().for_each(|id| cache.free(SeqId(id)).unwrap());
}

/// Admits prompts whose hits are all in use, which take no block either.
fn share(cache: &PagedKvCache) {
    let options = AdmitOptions::default().first_chunk(0);
    let prompt = cache.prompt(&[7; 9]);
    let admitted = cache.admit_with(SeqId(10), &prompt, &options).unwrap();
    assert_eq!((admitted.cached_tokens, admitted.num_tokens), (8, 8));
    let admit = cache.waiting().admit(SeqId(11), &prompt, &options).timeout(HANG);
    assert!(Task::new(admit).poll().is_ready());
    let (handle, _) = cache.admit_sequence(&prompt, &options).unwrap();
    assert_eq!(handle.num_blocks(), 2);
    [10, 11].into_iter().for_each(|id| cache.free(SeqId(id)).unwrap());
}

#[test]
fn a_request_without_blocks_is_admitted_despite_watermark_and_waiters() {
    let builder =
        PagedKvCache::builder().num_blocks(4).block_size(4).watermark(Watermark::Blocks(2));
    let cache = builder.build().unwrap();
    cache.admit(SeqId(1), &[7; 8]).unwrap();
    cache.commit(SeqId(1), 8).unwrap();
    drop(cache.append(SeqId(1), 4).unwrap()); // below the watermark now
    assert_eq!(cache.free_block_count(), 1);
    take_nothing(&cache);
    share(&cache);
    let mut waiter = Task::waiting(cache.waiting().reserve(2).timeout(HANG));
    take_nothing(&cache);
    share(&cache);
    drop(cache.append(SeqId(1), 4).unwrap());
    assert_eq!(cache.free_block_count(), 0);
    take_nothing(&cache);
    share(&cache);
    assert_eq!(waiter.wakes(), 0);
    cache.free(SeqId(1)).unwrap();
    drop(waiter.served().unwrap());
    assert_all_back(&cache);
}

#[test]
fn a_request_that_takes_a_block_is_refused_below_the_watermark() {
    let builder =
        PagedKvCache::builder().num_blocks(4).block_size(4).watermark(Watermark::Blocks(2));
    let cache = builder.build().unwrap();
    cache.admit(SeqId(1), &[7; 8]).unwrap();
    cache.commit(SeqId(1), 8).unwrap();
    let options = AdmitOptions::default().first_chunk(0);
    let prompt = cache.prompt(&[7; 9]);
    cache.free(SeqId(1)).unwrap();
    cache.allocate_sequence(0).unwrap();
    let room = cache.reserve(1).unwrap();
    let refused = cache.admit_with(SeqId(2), &prompt, &options).unwrap_err();
    assert!(matches!(refused, paged_kv::PagedKvError::OutOfMemory { requested: 2, .. }));
    drop(room);
    assert_all_back(&cache);
}
