//! Tests of workers: a worker evicts its own sequences only, and is informed of those that were evicted.
//! Several forks are made all or none.

mod common;

use common::{lease_rows, s};
use paged_kv::{
    AdmitOptions, AppendBatch, Evicted, EvictionStrategy, PagedKvCache, PagedKvError, Result,
    Worker,
};

fn cache(num_blocks: usize) -> PagedKvCache {
    PagedKvCache::new(num_blocks, 4, 1, 1)
}

/// Creates a sequence of `num_blocks` blocks.
fn allocate(cache: &PagedKvCache, id: u64, num_blocks: usize, worker: Option<u32>) -> Result<()> {
    cache.allocate(s(id), 4 * num_blocks)?;
    worker.map_or(Ok(()), |worker| cache.set_worker(s(id), Worker(worker)))
}

#[test]
fn a_worker_evicts_its_own_in_the_strategys_order_until_there_is_enough() -> Result<()> {
    let cache = cache(32).with_eviction_strategy(EvictionStrategy::LongestFirst);
    for (id, blocks, worker) in [(1, 2, 1), (2, 9, 2), (3, 4, 1), (4, 3, 1)] {
        allocate(&cache, id, blocks, Some(worker))?;
    }
    allocate(&cache, 5, 10, None)?;
    let mut out = Vec::new();
    assert_eq!(cache.evict_for(Worker(1), 5, &mut out)?, 7);
    let evicted = |id, blocks| Evicted { seq_id: s(id), blocks };
    assert_eq!(out, [evicted(3, 4), evicted(4, 3)]);
    assert_eq!(cache.evict_for(Worker(1), 5, &mut out)?, 2, "all there is, though less than asked");
    assert_eq!(out[2], evicted(1, 2));
    let nothing = cache.evict_for(Worker(1), 5, &mut out);
    assert_eq!(nothing, Err(PagedKvError::NothingToEvict));
    assert_eq!(cache.evict_for(Worker(1), 0, &mut out), Ok(0));
    assert_eq!((cache.num_sequences(), cache.used_block_count()), (2, 19));
    assert_eq!(cache.stats().total_evictions, 3);
    cache.validate()
}

#[test]
fn blocks_other_sequences_use_are_not_counted_as_freed() -> Result<()> {
    let cache = cache(32);
    allocate(&cache, 1, 4, Some(1))?;
    cache.fork(s(1), s(2))?; // has the same worker
    drop(cache.append(s(2), 8)?);
    let mut out = Vec::new();
    assert_eq!(cache.evict_for(Worker(1), 6, &mut out)?, 6);
    let mut freed: Vec<usize> = out.iter().map(|evicted| evicted.blocks).collect();
    freed.sort_unstable();
    assert_eq!(freed, [0, 6], "the first left its blocks to the second");
    allocate(&cache, 3, 4, Some(1))?;
    cache.fork(s(3), s(4))?;
    cache.set_worker(s(4), Worker(2))?;
    let shared = cache.evict_for(Worker(1), 1, &mut out);
    assert_eq!(shared, Err(PagedKvError::NothingToEvict), "it would free nothing");
    cache.free(s(3))?;
    assert_eq!(cache.evict_for(Worker(2), 1, &mut out)?, 4);
    assert_eq!(cache.used_block_count(), 0);
    Ok(())
}

#[test]
fn leased_ones_stay() -> Result<()> {
    let cache = cache(8);
    allocate(&cache, 1, 2, Some(1))?;
    let lease = cache.lease(&[s(1)])?;
    let refused = cache.evict_for(Worker(1), 1, &mut Vec::new());
    assert_eq!(refused, Err(PagedKvError::NothingToEvict));
    drop(lease);
    assert_eq!(cache.evict_for(Worker(1), 1, &mut Vec::new()), Ok(2));
    Ok(())
}

#[test]
fn a_worker_learns_of_an_eviction_by_whatever_it_does_next() -> Result<()> {
    let evictions: [fn(&PagedKvCache); 3] = [
        |cache| assert_eq!(cache.evict(), Ok(s(1))),
        |cache| assert_eq!(cache.evict_to_threshold(0.0).unwrap(), [s(1)]),
        |cache| assert_eq!(cache.evict_for(Worker(1), 1, &mut Vec::new()), Ok(2)),
    ];
    for evict in evictions {
        let cache = cache(8);
        cache.admit_with(
            s(1),
            &cache.prompt(&[7; 8]),
            &AdmitOptions::default().worker(Worker(1)),
        )?;
        assert_eq!(cache.get_sequence(s(1)).unwrap().worker, Some(Worker(1)));
        let mut rows = lease_rows(&cache, &[(s(1), 1)]);
        evict(&cache);
        let told = PagedKvError::SequenceEvicted(s(1));
        let mut step = cache.step(Default::default());
        assert_eq!(cache.append(s(1), 1).err(), Some(told.clone()));
        assert_eq!(cache.truncate(s(1), 1), Err(told.clone()));
        assert_eq!(cache.touch(s(1)), Err(told.clone()));
        assert_eq!(cache.commit(s(1), 1), Err(told.clone()));
        assert_eq!(cache.fork(s(1), s(2)), Err(told.clone()));
        assert_eq!(cache.lease(&[s(1)]).err(), Some(told.clone()));
        assert_eq!(cache.apply_streaming_llm(s(1), 1, 1), Err(told.clone()));
        let batch = cache.append_batch(&[(s(1), 1)], &mut AppendBatch::default());
        assert_eq!(batch, Err(told.clone()));
        let gone = PagedKvError::SequenceNotFound(s(1));
        assert_eq!(step.grow(&mut rows).err(), Some(gone.clone()), "a row knows no more");
        assert_eq!(step.join(&mut rows[0].0), Err(gone));
        assert_eq!(cache.get_sequence(s(1)), None);
        assert_eq!((cache.num_sequences(), cache.sequence_ids()), (0, vec![]));
        assert_eq!(cache.free(s(1)), Err(told));
        assert_eq!(cache.free(s(1)), Err(PagedKvError::SequenceNotFound(s(1))));
        cache.validate()?;
    }
    Ok(())
}

#[test]
fn a_new_sequence_under_an_id_clears_the_eviction_record() -> Result<()> {
    let cache = cache(8);
    allocate(&cache, 1, 2, Some(1))?;
    cache.evict()?;
    allocate(&cache, 1, 1, None)?;
    assert_eq!(cache.touch(s(1)), Ok(()));
    cache.evict()?;
    let gone = cache.touch(s(1));
    assert_eq!(gone, Err(PagedKvError::SequenceNotFound(s(1))), "it had no worker");
    allocate(&cache, 2, 1, Some(1))?;
    cache.free(s(2))?;
    assert_eq!(cache.touch(s(2)), Err(PagedKvError::SequenceNotFound(s(2))), "it was not evicted");
    Ok(())
}

#[test]
fn evicted_ids_are_remembered_until_freed_and_then_take_no_place() -> Result<()> {
    let cache = cache(8);
    for id in 0..4 {
        allocate(&cache, id, 1, Some(1))?;
    }
    allocate(&cache, 9, 1, None)?;
    assert_eq!(cache.evict_to_threshold(0.0)?.len(), 5);
    let ids = |cache: &PagedKvCache| {
        let stats = cache.stats();
        (stats.evicted_ids, stats.evicted_ids_forgotten)
    };
    assert_eq!(ids(&cache), (4, 0), "the one without a worker is not remembered");
    assert_eq!(cache.free(s(2)), Err(PagedKvError::SequenceEvicted(s(2))));
    assert_eq!(ids(&cache), (3, 0));
    allocate(&cache, 3, 1, None)?;
    assert_eq!(ids(&cache), (2, 0), "something new is under the id");
    assert_eq!(cache.free_when_released(s(0)), Err(PagedKvError::SequenceEvicted(s(0))));
    assert_eq!(ids(&cache), (1, 0));
    Ok(())
}

/// Evicted ids that no owner asks for do not fill the memory.
#[test]
fn the_oldest_evicted_ids_are_forgotten_beyond_a_bound() -> Result<()> {
    const MOST: u64 = 65_536;
    const BATCH: u64 = 4_096;
    let cache = cache(BATCH as usize);
    for first in (0..MOST + BATCH).step_by(BATCH as usize) {
        for id in first..first + BATCH {
            allocate(&cache, id, 1, Some(1))?;
        }
        assert_eq!(cache.evict_to_threshold(0.0)?.len() as u64, BATCH);
    }
    let stats = cache.stats();
    assert_eq!((stats.evicted_ids as u64, stats.evicted_ids_forgotten), (MOST, BATCH));
    let missing = |id| cache.touch(s(id)).unwrap_err();
    assert_eq!(missing(BATCH - 1), PagedKvError::SequenceNotFound(s(BATCH - 1)));
    assert_eq!(missing(BATCH), PagedKvError::SequenceEvicted(s(BATCH)));
    assert_eq!(cache.free(s(0)), Err(PagedKvError::SequenceNotFound(s(0))));
    Ok(())
}

#[test]
fn several_forks_come_all_or_none() -> Result<()> {
    let cache = cache(8);
    allocate(&cache, 1, 1, Some(1))?;
    drop(cache.append(s(1), 1)?);
    allocate(&cache, 9, 1, None)?;
    let before = cache.stats();
    for dsts in [[s(2), s(9)], [s(2), s(2)]] {
        let refused = cache.fork_n(s(1), &dsts);
        assert_eq!(refused, Err(PagedKvError::SequenceExists(dsts[1])));
        assert_eq!((cache.num_sequences(), cache.stats()), (2, before.clone()));
    }
    assert!(cache.fork_n(s(3), &[s(4)]).is_err());
    cache.fork_n(s(1), &[s(2), s(3), s(4)])?;
    assert_eq!(cache.stats().total_forks, before.total_forks + 3);
    assert_eq!(cache.get_sequence(s(4)).unwrap().worker, Some(Worker(1)));
    assert_eq!(cache.used_block_count(), 3);
    cache.validate()
}

#[test]
fn forks_with_room_never_want_for_their_copies() -> Result<()> {
    let cache = cache(6);
    allocate(&cache, 1, 1, None)?;
    drop(cache.append(s(1), 1)?);
    let copies = |n| cache.with_sequence(s(1), |sequence| sequence.copies_of_forks(n)).unwrap();
    let refused = cache.reserve(copies(5)).unwrap_err();
    assert_eq!(refused, PagedKvError::OutOfMemory { requested: 5, available: 4 });
    assert_eq!((cache.num_sequences(), cache.used_block_count()), (1, 2));
    let mut room = cache.reserve(copies(3))?;
    cache.fork_n(s(1), &[2, 3, 4].map(s))?;
    allocate(&cache, 9, 1, None)?; // takes the last block
    for id in 2..5 {
        assert!(room.append(&cache, s(id), 1)?.copy.is_some());
    }
    assert_eq!(room.num_blocks(), 0);
    assert!(cache.append(s(1), 1)?.copy.is_none(), "the last of the sharers");
    Ok(())
}

#[test]
fn forks_of_a_handle_are_counted_and_named() -> Result<()> {
    let cache = cache(8);
    let prompt = cache.prompt(&[7; 6]);
    let (mut sequence, _) = cache.admit_sequence(&prompt, &AdmitOptions::default())?;
    let mut room = cache.reserve(sequence.copies_of_forks(2))?;
    let mut forks = sequence.fork_n(2)?;
    assert_eq!(cache.stats().total_forks, 2);
    for fork in &mut forks {
        assert!(room.append_to(fork, 2)?.copy.is_some());
        fork.commit(&[8, 8])?;
    }
    assert_eq!(cache.prefix().probe(&cache.prompt(&[7, 7, 7, 7, 7, 7, 8, 8, 9])), 8);
    let other = PagedKvCache::new(4, 4, 1, 1);
    let refused = room.append_to(&mut other.allocate_sequence(1)?, 1);
    assert!(matches!(refused, Err(PagedKvError::WrongCache { .. })));
    drop((sequence, forks, room));
    assert_eq!(cache.used_block_count(), 0);
    cache.validate()
}
