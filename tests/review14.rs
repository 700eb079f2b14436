//! Tests of faults that a reading of the interface found: refused calls, uses, watermarks and claims.

mod common;

use common::{lease_row, lease_rows, s};
use paged_kv::{
    AdmitOptions, AppendBatch, BlockHash, BlockPool, PagedKvCache, PagedKvError, Prompt, Watermark,
};

fn cache(num_blocks: usize) -> PagedKvCache {
    PagedKvCache::new(num_blocks, 4, 1, 1)
}

#[test]
fn a_row_whose_commit_is_refused_has_not_joined_the_step() {
    let cache = cache(8);
    let (mut sequence, _) =
        cache.admit_sequence(&cache.prompt(&[7; 8]), &AdmitOptions::default()).unwrap();
    let mut step = cache.step(Default::default());
    assert!(step.commit(&mut sequence, 9).is_err());
    assert!(step.commit(&mut sequence, &[1]).is_err());
    drop(sequence);
    assert_eq!(cache.free_block_count(), 8, "no step holds blocks of a refused row");
    step.complete();
}

#[test]
fn an_append_to_a_leased_row_from_a_reservation_counts_as_a_use() {
    let cache = cache(8);
    cache.allocate(s(1), 4).unwrap();
    cache.allocate(s(2), 4).unwrap();
    let mut room = cache.reserve(1).unwrap();
    let before = cache.get_sequence(s(1)).unwrap().access_count;
    drop(room.append_to(&mut lease_row(&cache, s(1)), 1).unwrap());
    assert_eq!(cache.get_sequence(s(1)).unwrap().access_count, before + 1);
    assert_eq!(cache.select_eviction_target(), Some(s(2)));
}

/// Returns a cache of 8 blocks, of which a reservation holds 5 and 2 are idle with the prompt's contents.
fn with_idle_hits(watermark: usize) -> (PagedKvCache, Prompt, paged_kv::Reservation) {
    let builder = PagedKvCache::builder().num_blocks(8).block_size(4);
    let cache = builder.watermark(Watermark::Blocks(watermark)).build().unwrap();
    let prompt = cache.prompt(&[7; 9]);
    cache.admit(s(9), &[7; 9]).unwrap();
    assert_eq!(cache.commit(s(9), 9), Ok(2));
    cache.free(s(9)).unwrap();
    let room = cache.reserve(8 - 2 - watermark.saturating_sub(2)).unwrap();
    assert_eq!(cache.prefix().probe(&prompt), 8);
    (cache, prompt, room)
}

#[test]
fn an_admission_from_a_reservation_leaves_the_watermark() {
    let (cache, prompt, mut room) = with_idle_hits(2);
    assert_eq!(cache.free_block_count(), 2);
    let admitted = room.admit(&cache, s(1), &prompt, &AdmitOptions::default());
    assert!(cache.free_block_count() >= 2, "{} are left: {admitted:?}", cache.free_block_count());
}

#[test]
fn a_refused_batch_by_id_leaves_no_appends_of_an_earlier_one() {
    let cache = cache(8);
    cache.allocate(s(1), 4).unwrap();
    let mut batch = AppendBatch::default();
    cache.append_batch(&[(s(1), 1)], &mut batch).unwrap();
    assert!(cache.append_batch(&[(s(2), 1)], &mut batch).is_err());
    assert!(batch.as_slice().is_empty(), "{batch:?}");
    cache.append_batch(&[(s(1), 1)], &mut batch).unwrap();
    assert!(cache.lease(&[s(1)]).unwrap().append_batch(&[1, 1], &mut batch).is_err());
    assert!(batch.as_slice().is_empty(), "{batch:?}");
}

#[test]
fn a_refused_truncation_of_a_table_names_its_parameter() {
    let pool = BlockPool::new(4);
    let mut table = pool.allocate(2).unwrap();
    let refused = table.truncate(3).unwrap_err();
    assert!(matches!(refused, PagedKvError::InvalidConfig { parameter: "len", .. }), "{refused}");
}

#[test]
fn an_abort_after_a_trim_is_refused_or_restores_the_blocks() {
    let cache = cache(16);
    let mut rows = [(cache.allocate_sequence(30).unwrap(), 1)];
    let before = rows[0].0.block_ids().to_vec();
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
    assert_eq!(rows[0].0.apply_streaming_llm(4, 4), Ok(20));
    if let Err(refused) = step.abort(&mut rows) {
        assert!(matches!(refused.error, PagedKvError::InvalidConfig { .. }));
        return;
    }
    assert_eq!(rows[0].0.block_ids(), before);
}

#[test]
fn a_step_with_handles_and_leased_rows_can_be_aborted() {
    let cache = cache(16);
    cache.allocate(s(1), 4).unwrap();
    let mut handles = [(cache.allocate_sequence(4).unwrap(), 1)];
    let mut leased = lease_rows(&cache, &[(s(1), 1)]);
    let mut step = cache.step(Default::default());
    assert_eq!(step.grow(&mut handles).unwrap().grown_rows, 1);
    let grown = step.grow(&mut leased);
    if grown.is_ok() {
        let step = step.abort(&mut handles).map_err(|refused| refused.step);
        let aborted = step.map(drop).or_else(|step| step.abort(&mut leased).map(drop));
        assert!(aborted.is_ok(), "neither kind of rows can be given back");
    }
}

#[test]
fn tokens_named_after_a_prompt_of_hashes_publish_no_block() {
    let cache = cache(8);
    let prompt = Prompt::from_hashes(&[BlockHash::from_u128(7)], 7);
    cache.admit_with(s(1), &prompt, &AdmitOptions::default()).unwrap();
    drop(cache.append(s(1), 1).unwrap());
    assert_eq!(cache.commit(s(1), &[9]), Ok(0), "`Computed::Named` says that they are ignored");
}

#[test]
fn a_cache_without_reuse_serves_every_step() {
    for with_failure in [false, true] {
        let builder = PagedKvCache::builder().num_blocks(16).block_size(4);
        let cache = builder.prefix_reuse(false).build().unwrap();
        let (mut sequence, _) =
            cache.admit_sequence(&cache.prompt(&[7; 9]), &AdmitOptions::default()).unwrap();
        let mut step = cache.step(Default::default());
        step.commit(&mut sequence, 9).unwrap();
        let mut rows = [(sequence, 5)];
        assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
        step.accept(0, &mut rows[0].0, &[1, 2, 3]).unwrap();
        assert!(step.overwritten().is_empty());
        if with_failure {
            drop(step);
        } else {
            assert_eq!(step.complete().published, 0);
        }
        let mut step = cache.step(Default::default());
        step.commit(&mut rows[0].0, 12).unwrap();
        rows[0].0.commit(12).unwrap();
        rows[0].0.truncate(3).unwrap();
        drop(step);
        let mut forks = rows[0].0.fork_n(3).unwrap();
        forks.iter_mut().for_each(|fork| drop(fork.append(1).unwrap()));
        cache.prefix().reset();
        drop((rows, forks));
        assert_eq!(cache.used_block_count(), 0);
        cache.validate().unwrap();
    }
}

#[test]
fn values_of_the_interface_go_from_thread_to_thread() {
    fn is_send_and_sync<T: Send + Sync + 'static>() {}
    is_send_and_sync::<paged_kv::Step>();
    is_send_and_sync::<paged_kv::StepBuffers>();
    is_send_and_sync::<paged_kv::CachedSequence>();
    is_send_and_sync::<paged_kv::Reservation>();
    is_send_and_sync::<Prompt>();
    is_send_and_sync::<paged_kv::AbortRefused>();
    is_send_and_sync::<paged_kv::LeaseRow>();
    is_send_and_sync::<paged_kv::PagedKvCacheBuilder>();
}

#[cfg(feature = "async")]
mod waiting {
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Wake, Waker};

    use super::*;

    struct Nothing;

    impl Wake for Nothing {
        fn wake(self: Arc<Self>) {}
    }

    fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
        Pin::new(future).poll(&mut Context::from_waker(&Waker::from(Arc::new(Nothing))))
    }

    #[test]
    fn an_admission_from_a_reservation_takes_no_blocks_before_a_waiter() {
        let (cache, prompt, mut room) = with_idle_hits(0);
        let mut waiter = cache.waiting().reserve(3);
        assert!(poll(&mut waiter).is_pending());
        let free = cache.free_block_count();
        let admitted = room.admit(&cache, s(1), &prompt, &AdmitOptions::default());
        assert_eq!(cache.free_block_count(), free, "{admitted:?}");
    }
}
