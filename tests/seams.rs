//! Tests of faults that a reading of the interface found: refused calls, uses, watermarks and claims.

mod common;

use common::{lease_row, lease_rows, s};
use paged_kv::{
    AdmitOptions, AppendBatch, BlockHash, BlockPool, PagedKvCache, PagedKvError, Prompt,
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
fn tokens_named_after_a_prompt_of_hashes_need_the_hashes_of_the_blocks_that_they_fill() {
    let cache = cache(8);
    let prompt = Prompt::from_hashes(&[BlockHash::from_u128(7)], 7);
    cache.admit_with(s(1), &prompt, &AdmitOptions::default()).unwrap();
    drop(cache.append(s(1), 1).unwrap());
    let unknown = PagedKvError::HashesUnknown { known: 4, requested: 8 };
    assert_eq!(cache.commit(s(1), &[9]), Err(unknown));
    assert_eq!(cache.commit(s(1), &[BlockHash::from_u128(8)][..]), Ok(2));
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

#[test]
fn random_steps_that_are_aborted_restore_every_row() {
    let mut seed = 1_u64;
    let mut random = move |n: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % n
    };
    for _ in 0..2_000 {
        let cache = cache(24);
        for id in 0..4 {
            cache.admit(s(id), &vec![random(2) as u32; 1 + random(13) as usize]).unwrap();
            if random(2) == 0 {
                let n = cache.get_sequence(s(id)).unwrap().num_tokens;
                cache.commit(s(id), n).unwrap();
            }
        }
        for id in 4..6 {
            cache.fork(s(random(4)), s(id)).unwrap();
        }
        let state = |cache: &PagedKvCache| {
            let of = |id: u64| {
                let info = cache.get_sequence(s(id)).unwrap();
                (info.num_tokens, info.block_ids, info.num_named_tokens)
            };
            ((0..6).map(of).collect::<Vec<_>>(), cache.used_block_count())
        };
        let before = state(&cache);
        let older = cache.step(Default::default());
        let mut step = cache.step(Default::default());
        let mut all = Vec::new();
        for _ in 0..1 + random(3) {
            let first = random(6);
            let wanted: Vec<_> =
                (0..1 + random(5)).map(|i| (s((first + i) % 6), random(7) as usize)).collect();
            let mut rows = lease_rows(&cache, &wanted);
            let grown = step.grow(&mut rows).unwrap();
            assert_eq!(grown.grown_rows == rows.len(), grown.missing_blocks == 0);
            rows.truncate(grown.grown_rows);
            all.extend(rows);
        }
        if random(3) == 0 && !all.is_empty() {
            let at = random(all.len() as u64) as usize;
            let n = cache.get_sequence(all[at].0.id()).unwrap().num_tokens;
            step.commit(&mut all[at].0, n).unwrap();
        }
        drop(older);
        step.abort(&mut all).unwrap();
        assert_eq!(state(&cache), before);
        cache.validate().unwrap();
        drop(all);
        common::assert_empties(&cache);
    }
}
