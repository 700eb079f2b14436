//! Tests of needs: a waiter is woken when its need falls, even if no block is released.

use std::any::Any;

use paged_kv::{AdmitOptions, CachedSequence, Fairness, PagedKvCache, Prompt, SeqId};

use super::common::{lease_row, lease_rows};
use super::{HANG, Task, assert_all_back, cache};

const TOKENS: [u32; 9] = [7; 9];

/// Publishes the first two blocks of `TOKENS`, which sequence 1 or the handle holds. The returned value
/// is kept until the end.
type Publish = fn(&PagedKvCache, &mut CachedSequence) -> Box<dyn Any>;

const WAYS: [Publish; 8] = [
    |cache, _| Box::new(cache.commit(SeqId(1), 8).unwrap()),
    |cache, _| {
        cache.admit(SeqId(9), &[]).unwrap();
        assert_eq!(cache.commit(SeqId(9), 0), Ok(0));
        cache.free(SeqId(9)).unwrap();
        Box::new(cache.commit(SeqId(1), 8).unwrap())
    },
    |cache, _| Box::new(cache.commit(SeqId(2), &[7, 7, 7]).unwrap()),
    |cache, _| Box::new(cache.append_tokens(SeqId(2), &[7, 7, 7]).unwrap()),
    |_, handle| Box::new(handle.commit(8).unwrap()),
    |cache, _| {
        let mut step = cache.step(Default::default());
        assert_eq!(step.commit(&mut lease_row(cache, SeqId(1)), 8), Ok(2));
        Box::new(step.complete())
    },
    |cache, handle| {
        let mut step = cache.step(Default::default());
        assert_eq!(step.commit(handle, 8), Ok(2));
        Box::new(step.complete())
    },
    |cache, _| {
        let mut step = cache.step(Default::default());
        cache.truncate(SeqId(2), 5).unwrap();
        let mut rows = lease_rows(cache, &[(SeqId(2), 3)]);
        assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
        assert_eq!(step.accept(0, &mut rows[0].0, &[7, 7, 7]), Ok(2));
        Box::new(step.complete())
    },
];

/// Creates a cache of 7 blocks, of which one is free. It holds `TOKENS` three times, in sequences 1 and 2
/// and in the handle. Sequence 2 has five known tokens and eight slots, or five slots if `appends` is
/// set.
fn full(fairness: Fairness, appends: bool) -> (PagedKvCache, CachedSequence) {
    let builder = PagedKvCache::builder().num_blocks(7).block_size(4).fairness(fairness);
    let cache = builder.build().unwrap();
    cache.admit(SeqId(1), &TOKENS[..8]).unwrap();
    cache.admit(SeqId(2), &TOKENS[..5]).unwrap();
    if !appends {
        drop(cache.append(SeqId(2), 3).unwrap());
    }
    let prompt = cache.prompt(&TOKENS[..8]);
    let (handle, _) = cache.admit_sequence(&prompt, &AdmitOptions::default()).unwrap();
    assert_eq!(cache.free_block_count(), 1);
    (cache, handle)
}

fn admit(
    cache: &PagedKvCache,
    id: u64,
    tokens: &[u32],
) -> Task<impl Future<Output = paged_kv::Result<paged_kv::Admission>> + Unpin> {
    let options = AdmitOptions::default();
    Task::waiting(cache.waiting().admit(SeqId(id), &cache.prompt(tokens), &options).timeout(HANG))
}

fn end(cache: &PagedKvCache, handle: CachedSequence) {
    drop(handle);
    cache.sequence_ids().into_iter().for_each(|id| cache.free(id).unwrap());
    assert_all_back(cache);
}

#[test]
fn a_commit_that_lowers_a_waiting_prompts_need_wakes_it() {
    for (way, publish) in WAYS.into_iter().enumerate() {
        let (cache, mut handle) = full(Fairness::Fifo, way == 3);
        let mut waiter = admit(&cache, 5, &TOKENS); // three blocks, and one is left
        let _published = publish(&cache, &mut handle);
        assert_eq!(waiter.served().unwrap().cached_tokens, 8, "way {way}");
        end(&cache, handle);
    }
}

#[test]
fn a_commit_wakes_a_prompt_that_may_pass_the_first() {
    for first in [2, 3, 4] {
        let (cache, mut handle) = full(Fairness::Bypass { at_most: 1 }, false);
        let mut large = Task::waiting(cache.waiting().reserve(first).timeout(HANG));
        let mut other = admit(&cache, 4, &[8; 12]);
        let mut waiter = admit(&cache, 5, &TOKENS);
        // The waiter of the other prompt is refused again: the commit does not concern it.
        handle.commit(8).unwrap();
        while waiter.wakes() == 0 {
            assert!(other.wakes() > 0, "neither was woken");
            assert!(other.poll().is_pending());
        }
        assert_eq!(waiter.served().unwrap().cached_tokens, 8);
        assert_eq!(large.wakes(), 0);
        cache.free(SeqId(1)).unwrap();
        cache.free(SeqId(2)).unwrap();
        cache.free(SeqId(5)).unwrap();
        drop(large.served().unwrap());
        other.served().unwrap();
        end(&cache, handle);
    }
}

#[test]
fn a_commit_wakes_no_request_that_it_does_not_concern() {
    let (cache, mut handle) = full(Fairness::Fifo, false);
    let large = Task::waiting(cache.waiting().reserve(3).timeout(HANG));
    let waiter = admit(&cache, 5, &TOKENS);
    handle.commit(8).unwrap();
    assert_eq!((large.wakes(), waiter.wakes()), (0, 0), "it is not its turn");
    drop((large, waiter));
    end(&cache, handle);
}

#[test]
fn a_prompt_that_becomes_first_sees_earlier_publications() {
    let (cache, mut handle) = full(Fairness::Fifo, false);
    let large = Task::waiting(cache.waiting().reserve(3).timeout(HANG));
    let mut waiter = admit(&cache, 5, &TOKENS);
    handle.commit(8).unwrap();
    drop(large);
    assert_eq!(waiter.served().unwrap().cached_tokens, 8);
    end(&cache, handle);
}

fn admit_chunk<'a>(
    cache: &'a PagedKvCache,
    prompt: &Prompt,
) -> Task<impl Future<Output = paged_kv::Result<paged_kv::Admission>> + Unpin + use<'a>> {
    let options = AdmitOptions::default().first_chunk(4);
    Task::waiting(cache.waiting().admit(SeqId(5), prompt, &options).timeout(HANG))
}

/// The cached tokens precede a first chunk, and count as available blocks if no sequence uses them.
#[test]
fn a_reset_wakes_a_first_chunk_that_needs_less_without_hits() {
    let cache = cache(4);
    let prompt = cache.prompt(&TOKENS);
    cache.admit(SeqId(1), &TOKENS[..8]).unwrap();
    cache.commit(SeqId(1), 8).unwrap();
    cache.free(SeqId(1)).unwrap();
    drop(cache.reserve(2).unwrap()); // of the two free ones
    let room = cache.reserve(2).unwrap();
    assert_eq!(cache.prefix().probe(&cache.prompt(&TOKENS)), 8);
    let mut waiter = admit_chunk(&cache, &prompt);
    cache.prefix().reset();
    assert_eq!(waiter.served().unwrap().num_tokens, 4);
    cache.free(SeqId(5)).unwrap();
    drop(room);
    assert_all_back(&cache);
}

#[test]
fn a_reclaim_wakes_a_first_chunk_that_needs_less_without_hits() {
    // Both ways reclaim the first block.
    let ways: [fn(&PagedKvCache); 2] = [
        |cache| drop(cache.append(SeqId(2), 1).unwrap()),
        |cache| {
            let mut step = cache.step(Default::default());
            let mut rows = lease_rows(cache, &[(SeqId(2), 1)]);
            assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
            step.complete();
        },
    ];
    for reclaim in ways {
        let cache = cache(4);
        let prompt = cache.prompt(&TOKENS);
        cache.admit(SeqId(1), &TOKENS[..8]).unwrap();
        cache.commit(SeqId(1), 8).unwrap();
        cache.apply_streaming_llm(SeqId(1), 0, 4).unwrap(); // the first block is idle before the second
        cache.free(SeqId(1)).unwrap();
        cache.allocate(SeqId(2), 8).unwrap();
        assert_eq!(cache.prefix().probe(&cache.prompt(&TOKENS)), 8);
        let mut waiter = admit_chunk(&cache, &prompt);
        reclaim(&cache);
        assert_eq!(waiter.served().unwrap().num_tokens, 4);
        cache.free(SeqId(2)).unwrap();
        cache.free(SeqId(5)).unwrap();
        assert_all_back(&cache);
    }
}

/// Another request matches idle blocks of the prompt, which lowers the room and the need alike. Then one
/// block is released.
#[test]
fn a_match_of_idle_blocks_lowers_the_need_of_a_prompt_that_waits() {
    let cache = cache(5);
    cache.admit(SeqId(1), &TOKENS[..8]).unwrap();
    cache.commit(SeqId(1), 8).unwrap();
    cache.free(SeqId(1)).unwrap();
    let mut room = cache.reserve(3).unwrap();
    let mut waiter = admit(&cache, 5, &TOKENS); // one block, and two hits that are idle
    let (prompt, options) = (cache.prompt(&TOKENS), AdmitOptions::default());
    room.admit(&cache, SeqId(2), &prompt, &options).unwrap();
    assert_eq!((room.num_blocks(), cache.free_block_count()), (2, 0));
    let wakes = waiter.wakes();
    if wakes > 0 {
        assert!(waiter.poll().is_pending(), "it was woken to look");
    }
    room.shrink_to(1);
    assert_eq!(waiter.wakes(), wakes + 1, "one block is enough by now");
    assert_eq!(waiter.served().unwrap().cached_tokens, 8);
    drop(room);
    cache.free(SeqId(2)).unwrap();
    cache.free(SeqId(5)).unwrap();
    assert_all_back(&cache);
}

/// Creates sequence 1, which ends inside a block that sequence 2 shares and would have to copy it.
fn shared_tail() -> PagedKvCache {
    let cache = cache(2);
    cache.allocate(SeqId(1), 6).unwrap();
    cache.fork(SeqId(1), SeqId(2)).unwrap();
    cache
}

#[test]
fn a_sharer_that_leaves_wakes_an_append_that_then_needs_no_copy() {
    let ways: [fn(&PagedKvCache); 4] = [
        |cache| cache.free(SeqId(2)).unwrap(),
        |cache| cache.truncate(SeqId(2), 4).unwrap(),
        |cache| {
            let lease = cache.lease(&[SeqId(2)]).unwrap();
            cache.free_when_released(SeqId(2)).unwrap();
            drop(lease);
        },
        |cache| {
            let mut step = cache.step(Default::default());
            step.join(&mut lease_row(cache, SeqId(2))).unwrap();
            cache.free(SeqId(2)).unwrap();
            step.complete();
        },
    ];
    for leave in ways {
        let cache = shared_tail();
        let mut waiter = Task::waiting(cache.waiting().append(SeqId(1), 1).timeout(HANG));
        leave(&cache);
        while waiter.poll().is_pending() {
            assert!(waiter.wakes() > 0);
        }
        cache.sequence_ids().into_iter().for_each(|id| cache.free(id).unwrap());
        assert_all_back(&cache);
    }
}

#[test]
fn an_append_that_lacks_a_block_for_a_copy_only_waits_for_the_sharers() {
    let cache = cache(1);
    cache.allocate(SeqId(1), 2).unwrap();
    cache.fork(SeqId(1), SeqId(2)).unwrap();
    let mut waiter = Task::waiting(cache.waiting().append(SeqId(1), 1).timeout(HANG));
    cache.free(SeqId(2)).unwrap();
    assert!(waiter.served().unwrap().copy.is_none());
    cache.free(SeqId(1)).unwrap();
    assert_all_back(&cache);
}

/// The tail is cached, and so never written: the append needs a second block, whichever sharer leaves.
#[test]
fn an_append_that_always_has_to_copy_and_never_can_is_refused_at_once() {
    let cache = cache(1);
    cache.admit(SeqId(1), &[7; 4]).unwrap();
    cache.commit(SeqId(1), 4).unwrap();
    cache.truncate(SeqId(1), 3).unwrap();
    let refused = cache.waiting().append(SeqId(1), 1).timeout(HANG).block().unwrap_err();
    assert_eq!(refused, paged_kv::PagedKvError::OutOfMemory { requested: 1, available: 0 });
    cache.free(SeqId(1)).unwrap();
    assert_all_back(&cache);
}

#[test]
fn a_sequence_that_is_cut_inside_its_last_block_wakes_its_own_append() {
    let ways: [fn(&PagedKvCache); 2] = [
        |cache| cache.truncate(SeqId(1), 7).unwrap(),
        |cache| {
            let mut step = cache.step(Default::default());
            cache.truncate(SeqId(1), 6).unwrap();
            let mut rows = lease_rows(cache, &[(SeqId(1), 2)]);
            assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
            step.accept(0, &mut rows[0].0, &[7]).unwrap();
            step.complete();
        },
    ];
    for cut in ways {
        let cache = cache(3);
        cache.allocate(SeqId(1), 8).unwrap();
        let room = cache.reserve(1).unwrap();
        let mut waiter = Task::waiting(cache.waiting().append(SeqId(1), 1).timeout(HANG));
        cut(&cache);
        assert!(waiter.served().unwrap().new_blocks.is_empty());
        cache.free(SeqId(1)).unwrap();
        drop(room);
        assert_all_back(&cache);
    }
}

#[test]
fn an_aborted_step_wakes_the_append_of_a_row() {
    let cache = cache(4);
    cache.allocate(SeqId(1), 7).unwrap();
    let room = cache.reserve(2).unwrap();
    let mut step = cache.step(Default::default());
    let mut rows = lease_rows(&cache, &[(SeqId(1), 1)]);
    assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
    let mut waiter = Task::waiting(cache.waiting().append(SeqId(1), 1).timeout(HANG));
    step.abort(&mut rows).unwrap();
    assert!(waiter.served().unwrap().new_blocks.is_empty());
    cache.free(SeqId(1)).unwrap();
    drop(room);
    assert_all_back(&cache);
}

#[test]
fn an_append_out_of_a_reservation_wakes_one_that_waits_for_the_same_sequence() {
    let cache = cache(3);
    cache.allocate(SeqId(1), 8).unwrap();
    let mut room = cache.reserve(1).unwrap();
    let mut waiter = Task::waiting(cache.waiting().append(SeqId(1), 1).timeout(HANG));
    drop(room.append(&cache, SeqId(1), 1).unwrap());
    assert!(waiter.served().unwrap().new_blocks.is_empty());
    cache.free(SeqId(1)).unwrap();
    assert_all_back(&cache);
}

/// The second append to a sequence waits for its turn only: the first takes the block that both need.
#[test]
fn an_append_wakes_another_that_waits_for_the_same_sequence() {
    let ways: [fn(&PagedKvCache); 3] = [
        |cache| drop(cache.append(SeqId(1), 1).unwrap()),
        |cache| {
            let mut batch = paged_kv::AppendBatch::default();
            cache.append_batch(&[(SeqId(1), 1)], &mut batch).unwrap();
        },
        |cache| {
            let mut first = Task::new(cache.waiting().append(SeqId(1), 1).timeout(HANG));
            assert!(first.poll().is_ready());
        },
    ];
    for append in ways {
        let cache = cache(6);
        cache.allocate(SeqId(1), 4).unwrap();
        cache.allocate(SeqId(2), 4).unwrap();
        let mut room = cache.reserve(4).unwrap();
        let front = Task::waiting(cache.waiting().append(SeqId(2), 8).timeout(HANG));
        let mut second = Task::waiting(cache.waiting().append(SeqId(1), 1).timeout(HANG));
        room.shrink_to(3);
        append(&cache);
        drop(front);
        assert!(second.served().unwrap().new_blocks.is_empty());
        drop(room);
        cache.free(SeqId(1)).unwrap();
        cache.free(SeqId(2)).unwrap();
        assert_all_back(&cache);
    }
}

#[test]
fn a_used_copy_of_an_idle_content_wakes_a_prompt() {
    let cache = cache(5);
    cache.admit(SeqId(1), &TOKENS).unwrap();
    cache.commit(SeqId(1), 4).unwrap();
    cache.admit(SeqId(2), &TOKENS).unwrap();
    cache.commit(SeqId(1), 8).unwrap();
    cache.free(SeqId(1)).unwrap();
    let rest = cache.reserve(1).unwrap();
    // Sequence 2 uses the first block of the prompt. The second is idle, and the only available block.
    assert_eq!((cache.free_block_count(), cache.stats().blocks_idle), (1, 1));
    let (prompt, options) = (cache.prompt(&TOKENS), AdmitOptions::default());
    let mut waiting =
        Task::waiting(cache.waiting().admit(SeqId(3), &prompt, &options).timeout(HANG));
    assert_eq!(cache.commit(SeqId(2), 8), Ok(0), "it is a copy");
    assert_eq!(waiting.served().unwrap().cached_tokens, 8);
    drop(rest);
    [2, 3].iter().for_each(|&id| cache.free(SeqId(id)).unwrap());
    assert_all_back(&cache);
}
