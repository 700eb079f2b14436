//! Tests of operations: the effect and the refusals of each, one test for each sentence of the design.

mod common;

use common::{assert_empties, s, shapes, shapes_with};
use paged_kv::{
    Append, BlockId, BlockPool, EvictionStrategy, PagedKvCache, PagedKvError, SeqId, Sequence,
};

use PagedKvError::{
    BlockNotFound, InvalidConfig, OutOfMemory, SequenceExists, SequenceNotFound, TooManyTokens,
};

fn blocks(cache: &PagedKvCache, id: SeqId) -> Vec<BlockId> {
    cache.get_sequence(id).expect("the sequence is there").block_ids
}

#[test]
fn a_cache_is_shared_between_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    fn sent<T: Send + 'static>() {}
    shared::<PagedKvCache>();
    shared::<BlockPool>();
    sent::<Sequence>();
    sent::<Append>();
    sent::<paged_kv::Lease>();
    sent::<paged_kv::BlockTable>();
}

#[test]
fn allocating_no_tokens_makes_an_empty_sequence() {
    for cache in shapes(4, 4) {
        cache.allocate(s(1), 0).unwrap();
        let info = cache.get_sequence(s(1)).unwrap();
        assert_eq!((info.num_tokens, info.num_blocks(), info.access_count), (0, 0, 1));
        assert_eq!(cache.used_block_count(), 0);
        assert_eq!(cache.num_sequences(), 1);
        assert_eq!(cache.append(s(1), 1).unwrap().new_blocks, 0..1);
        assert_eq!(cache.with_sequence(s(1), |sequence| sequence.num_tokens()), Some(1));
        assert_empties(&cache);
    }
}

#[test]
fn appending_nothing_succeeds_and_counts_as_a_use() {
    for num_tokens in 0..=8 {
        for cache in shapes(2, 4) {
            cache.allocate(s(1), num_tokens).unwrap();
            cache.allocate(s(2), 0).unwrap();
            cache.fork(s(1), s(3)).unwrap();
            let before = cache.get_sequence(s(1)).unwrap();
            let append = cache.append(s(1), 0).unwrap();
            assert_eq!(append.new_blocks, before.num_blocks()..before.num_blocks());
            assert!(append.copy.is_none(), "nothing is written, so nothing is copied");
            let after = cache.get_sequence(s(1)).unwrap();
            assert_eq!(after.access_count, before.access_count + 1);
            assert_eq!((after.num_tokens, after.block_ids), (num_tokens, before.block_ids));
            assert_empties(&cache);
        }
    }
}

#[test]
fn append_takes_blocks_only_past_the_last_one() {
    for block_size in 1..=4 {
        for old in 0..=9 {
            for new in 0..=9 {
                let cache = &shapes(20, block_size)[(old + new) % 3];
                cache.allocate(s(1), old).unwrap();
                let before = blocks(cache, s(1));
                let append = cache.append(s(1), new).unwrap();
                let after = blocks(cache, s(1));
                assert_eq!(before.len(), old.div_ceil(block_size));
                assert_eq!(after.len(), (old + new).div_ceil(block_size));
                assert_eq!(append.new_blocks, before.len()..after.len());
                assert!(append.copy.is_none(), "nobody shares");
                assert_eq!(after[..before.len()], before);
                assert_eq!(cache.used_block_count(), after.len());
                assert_empties(cache);
            }
        }
    }
}

/// Appends, and checks that the writes go to blocks that no other sequence has. There is a copy only
/// where another sequence has the block. This holds however the sequence came to share its blocks.
fn append_and_check(cache: &PagedKvCache, id: SeqId, num_new_tokens: usize) -> Append {
    let others: Vec<BlockId> = cache
        .sequence_ids()
        .into_iter()
        .filter(|&other| other != id)
        .flat_map(|other| blocks(cache, other))
        .collect();
    let (size, old) = (cache.block_size(), cache.get_sequence(id).unwrap());
    let append = cache.append(id, num_new_tokens).unwrap();
    let (first, last) = (old.num_tokens / size, old.num_tokens + num_new_tokens);
    let written = |logical| cache.with_sequence(id, |sequence| sequence.block_at(logical)).unwrap();
    for logical in first..last.div_ceil(size) {
        let block = written(logical).expect("a written block is resident");
        let wrote = num_new_tokens > 0;
        assert!(!wrote || !others.contains(&block), "{block} is written and shared");
        assert!(!wrote || cache.pool().owners(block) == Ok(1), "{block} is written and not sole");
    }
    let tail_shared = num_new_tokens > 0
        && old.num_tokens % size > 0
        && others.contains(old.block_ids.last().unwrap());
    assert_eq!(append.copy.is_some(), tail_shared, "{num_new_tokens} more than {old:?}");
    if let Some(copy) = &append.copy {
        assert_eq!(Some(copy.src), old.block_ids.last().copied());
        assert_eq!(Some(copy.dst), written(first));
        assert!(!append.new_blocks.contains(&(old.num_blocks() - 1)), "a copy is not a new block");
    }
    let new_blocks = last.div_ceil(size) - old.num_tokens.div_ceil(size);
    assert_eq!(append.new_blocks, old.num_blocks()..old.num_blocks() + new_blocks);
    append
}

#[test]
fn append_after_fork_never_writes_into_a_shared_block() {
    for block_size in 1..=4 {
        for old in 0..=9 {
            for new in 0..=5 {
                let cache = &shapes(40, block_size)[(old + new) % 3];
                cache.allocate(s(1), old).unwrap();
                cache.fork(s(1), s(2)).unwrap();
                cache.fork(s(2), s(3)).unwrap();
                assert_eq!(cache.used_block_count(), old.div_ceil(block_size), "a fork is free");
                for id in [s(2), s(1), s(3)] {
                    let before = blocks(cache, s(1));
                    drop(append_and_check(cache, id, new));
                    if id != s(1) {
                        assert_eq!(blocks(cache, s(1)), before, "the source keeps its blocks");
                    }
                }
                cache.validate().unwrap();
                assert_empties(cache);
            }
        }
    }
}

#[test]
fn append_after_fork_and_truncate_never_writes_into_a_shared_block() {
    for block_size in 1..=4 {
        for old in 1..=9 {
            for end in 0..=old {
                for keep_fork in [true, false] {
                    let cache = &shapes(40, block_size)[(old + end) % 3];
                    cache.allocate(s(1), old).unwrap();
                    cache.fork(s(1), s(2)).unwrap();
                    cache.truncate(s(1), end).unwrap();
                    if !keep_fork {
                        cache.free(s(2)).unwrap();
                    }
                    drop(append_and_check(cache, s(1), 1));
                    drop(append_and_check(cache, s(1), block_size));
                    cache.validate().unwrap();
                    assert_empties(cache);
                }
            }
        }
    }
}

#[test]
fn fork_after_truncate_into_a_shared_block_shares_until_first_append() {
    for end in 1..=8 {
        for cache in shapes(40, 4) {
            cache.allocate(s(1), 8).unwrap();
            cache.fork(s(1), s(2)).unwrap();
            cache.truncate(s(2), end).unwrap();
            cache.fork(s(2), s(3)).unwrap();
            assert_eq!(blocks(&cache, s(2)), blocks(&cache, s(3)));
            assert_eq!(cache.used_block_count(), 2);
            for id in [s(3), s(2), s(1)] {
                drop(append_and_check(&cache, id, 3));
            }
            cache.validate().unwrap();
            assert_empties(&cache);
        }
    }
}

#[test]
fn room_for_the_copy_is_asked_for_with_the_rest() {
    for new in 1..=9_usize {
        let requested = 1 + (new.saturating_sub(2)).div_ceil(4);
        for free in 0..=requested {
            for cache in shapes(2 + free, 4) {
                cache.allocate(s(1), 6).unwrap();
                cache.fork(s(1), s(2)).unwrap();
                let result = cache.append(s(2), new).map(drop);
                if free < requested {
                    assert_eq!(result, Err(OutOfMemory { requested, available: free }));
                    assert_eq!(blocks(&cache, s(2)), blocks(&cache, s(1)));
                } else {
                    assert_eq!(result, Ok(()));
                    assert_eq!(cache.free_block_count(), 0);
                }
                assert_empties(&cache);
            }
        }
    }
}

#[test]
fn the_last_sharer_does_not_copy() {
    for cache in shapes(8, 4) {
        cache.allocate(s(1), 6).unwrap();
        cache.fork(s(1), s(2)).unwrap();
        cache.fork(s(1), s(3)).unwrap();
        assert!(cache.append(s(1), 1).unwrap().copy.is_some());
        assert!(cache.append(s(2), 1).unwrap().copy.is_some());
        let tail = blocks(&cache, s(3))[1];
        assert!(cache.append(s(3), 1).unwrap().copy.is_none(), "nobody else has it now");
        assert_eq!(blocks(&cache, s(3))[1], tail);
        assert_eq!(cache.used_block_count(), 4);
        assert_empties(&cache);
    }
}

#[test]
fn the_last_sharer_does_not_copy_even_in_a_full_pool() {
    for cache in shapes(2, 4) {
        cache.allocate(s(1), 6).unwrap();
        cache.fork(s(1), s(2)).unwrap();
        let refused = cache.append(s(2), 1).map(drop);
        assert_eq!(refused, Err(OutOfMemory { requested: 1, available: 0 }));
        cache.free(s(1)).unwrap();
        assert!(cache.append(s(2), 2).unwrap().copy.is_none());
        assert_empties(&cache);
    }
}

#[test]
fn a_sharer_copies_while_an_append_still_holds_the_source() {
    for cache in shapes(8, 4) {
        cache.allocate(s(1), 6).unwrap();
        cache.fork(s(1), s(2)).unwrap();
        let first = cache.append(s(1), 1).unwrap();
        let source = first.copy.as_ref().expect("the tail was shared").src;
        assert_eq!(cache.pool().owners(source), Ok(2), "the fork, and the append");
        let second = cache.append(s(2), 1).unwrap();
        assert_eq!(second.copy.as_ref().expect("the append still reads the source").src, source);
        assert_eq!(cache.pool().owners(source), Ok(2), "the two appends");
        assert_eq!(cache.used_block_count(), 4);
        drop(first);
        assert_eq!(cache.used_block_count(), 4, "the second append still reads it");
        drop(second);
        assert_eq!(cache.used_block_count(), 3);
        assert_eq!(cache.pool().owners(source), Ok(0));
        assert_empties(&cache);
    }
}

#[test]
fn a_copys_source_outlives_its_sequences() {
    for cache in shapes(3, 4) {
        cache.allocate(s(1), 3).unwrap();
        cache.fork(s(1), s(2)).unwrap();
        let append = cache.append(s(2), 1).unwrap();
        cache.free(s(1)).unwrap();
        cache.free(s(2)).unwrap();
        assert_eq!(cache.used_block_count(), 1, "the source of a copy that is still to be made");
        let refused = cache.allocate(s(3), 12);
        assert_eq!(refused, Err(OutOfMemory { requested: 3, available: 2 }));
        drop(append);
        cache.allocate(s(3), 12).unwrap();
        assert_empties(&cache);
    }
}

#[test]
fn a_tail_that_is_retained_by_id_is_copied() {
    for warm_up in [0, 1, 2] {
        for cache in shapes(8, 8) {
            cache.allocate(s(1), 1).unwrap();
            (0..warm_up).for_each(|_| drop(cache.append(s(1), 1).unwrap()));
            let tail = blocks(&cache, s(1))[0];
            cache.pool().retain(tail).unwrap();
            let append = cache.append(s(1), 1).unwrap();
            assert_eq!(append.copy.as_ref().map(|copy| copy.src), Some(tail), "it has two owners");
            assert_ne!(blocks(&cache, s(1)), [tail]);
            drop(append);
            assert_eq!(cache.pool().owners(tail), Ok(1));
            assert!(cache.append(s(1), 1).unwrap().copy.is_none());
            cache.pool().release(tail).unwrap();
            assert_empties(&cache);
        }
    }
}

#[test]
fn out_of_memory_states_the_requested_and_available_blocks() {
    for cache in shapes(10, 4) {
        cache.allocate(s(1), 13).unwrap();
        let refused = |requested| OutOfMemory { requested, available: 6 };
        assert_eq!(cache.allocate(s(2), 25), Err(refused(7)));
        assert_eq!(cache.append(s(1), 28).unwrap_err(), refused(7));
        assert_eq!(cache.allocate_sequence(29).unwrap_err(), refused(8));
        assert_eq!(cache.pool().allocate(7).unwrap_err(), refused(7));
        let huge = usize::MAX / 2;
        assert_eq!(cache.allocate(s(2), huge), Err(refused(huge.div_ceil(4))));
        let mut table = cache.pool().allocate(1).unwrap();
        let refusal = table.grow(6).unwrap_err();
        assert_eq!(refusal, OutOfMemory { requested: 6, available: 5 });
        assert_eq!(refusal.to_string(), "out of memory: 6 blocks requested, 5 available");
        assert_eq!(table.grow(5).unwrap(), 1..6);
        assert_eq!(cache.free_block_count(), 0);
        drop(table);
        assert_empties(&cache);
    }
}

#[test]
fn truncate_drops_whole_blocks_past_the_end() {
    for block_size in 1..=4 {
        for old in 0..=9 {
            for end in 0..=old {
                for cache in shapes(12, block_size) {
                    cache.allocate(s(1), old).unwrap();
                    let before = blocks(&cache, s(1));
                    cache.truncate(s(1), end).unwrap();
                    let info = cache.get_sequence(s(1)).unwrap();
                    assert_eq!(info.num_tokens, end);
                    assert_eq!(info.block_ids, before[..end.div_ceil(block_size)]);
                    assert_eq!(cache.used_block_count(), info.num_blocks());
                    let requested = end + 1;
                    let refused = PagedKvError::TruncateBeyondEnd { requested, num_tokens: end };
                    assert_eq!(cache.truncate(s(1), requested), Err(refused));
                    assert_empties(&cache);
                }
            }
        }
    }
}

#[test]
fn lengths_that_overflow_are_refused() {
    for cache in shapes(4, 4) {
        let refused = Err(TooManyTokens { num_tokens: 0, additional: usize::MAX });
        assert_eq!(cache.allocate(s(1), usize::MAX), refused);
        assert_eq!(cache.get_sequence(s(1)), None);
        cache.allocate(s(1), 5).unwrap();
        for additional in [usize::MAX, usize::MAX - 4, usize::MAX - 5, usize::MAX - 8] {
            let refused = cache.append(s(1), additional).unwrap_err();
            assert_eq!(refused, TooManyTokens { num_tokens: 5, additional });
        }
        let requested = (usize::MAX - 16 - 3).div_ceil(4);
        let refused = cache.append(s(1), usize::MAX - 16).unwrap_err();
        assert_eq!(refused, OutOfMemory { requested, available: 2 });
        assert_empties(&cache);
    }
}

#[test]
fn an_id_can_be_used_again_after_free() {
    for cache in shapes(4, 4) {
        for round in 0..20 {
            cache.allocate(s(7), 16).unwrap();
            assert_eq!(cache.get_sequence(s(7)).unwrap().access_count, 1, "round {round}");
            cache.set_priority(s(7), 5).unwrap();
            cache.free(s(7)).unwrap();
            assert_eq!(cache.free(s(7)), Err(SequenceNotFound(s(7))));
        }
        cache.allocate(s(7), 1).unwrap();
        assert_eq!(cache.get_sequence(s(7)).unwrap().priority, 0);
        assert_empties(&cache);
    }
}

#[test]
fn an_unknown_id_is_refused_by_name() {
    for cache in shapes(4, 4) {
        cache.allocate(s(1), 4).unwrap();
        let id = SeqId(u64::MAX);
        let unknown = SequenceNotFound(id);
        assert_eq!(unknown.to_string(), format!("sequence S{} not found", u64::MAX));
        assert_eq!(cache.append(id, 0).map(drop), Err(unknown.clone()));
        assert_eq!(cache.free(id), Err(unknown.clone()));
        assert_eq!(cache.free_when_released(id), Err(unknown.clone()));
        assert_eq!(cache.fork(id, s(2)), Err(unknown.clone()));
        assert_eq!(cache.fork(id, id), Err(unknown.clone()));
        assert_eq!(cache.truncate(id, 0), Err(unknown.clone()));
        assert_eq!(cache.apply_streaming_llm(id, 0, 0), Err(unknown.clone()));
        assert_eq!(cache.touch(id), Err(unknown.clone()));
        assert_eq!(cache.set_priority(id, 1), Err(unknown.clone()));
        assert_eq!(cache.lease(&[s(1), id]).map(drop), Err(unknown.clone()));
        assert_eq!(
            cache.append_batch(&[(s(1), 0), (id, 0)], &mut Default::default()),
            Err(unknown)
        );
        assert_eq!(cache.get_sequence(id), None);
        assert_eq!(cache.with_sequence(id, |_| ()), None);
        assert_eq!(cache.sequence_ids(), [s(1)]);
        assert_empties(&cache);
    }
}

#[test]
fn an_id_in_use_is_refused_by_name() {
    for cache in shapes(4, 4) {
        cache.allocate(s(1), 4).unwrap();
        cache.allocate(s(2), 4).unwrap();
        assert_eq!(cache.allocate(s(1), 1000), Err(SequenceExists(s(1))));
        assert_eq!(cache.fork(s(1), s(2)), Err(SequenceExists(s(2))));
        assert_eq!(cache.fork(s(1), s(1)), Err(SequenceExists(s(1))));
        assert_eq!(cache.fork(s(9), s(2)), Err(SequenceExists(s(2))), "though there is no source");
        assert_eq!(SequenceExists(s(1)).to_string(), "sequence S1 exists already");
        assert_eq!(cache.stats().total_forks, 0);
        assert_empties(&cache);
    }
}

#[test]
fn a_block_of_another_pool_or_a_free_one_is_refused() {
    for cache in shapes(4, 4) {
        let pool = cache.pool();
        let table = pool.allocate(1).unwrap();
        let id = table.as_slice()[0];
        pool.retain(id).unwrap();
        pool.release(id).unwrap();
        drop(table);
        for id in [id, BlockId(5), BlockId(u32::MAX)] {
            assert_eq!(pool.retain(id), Err(PagedKvError::BlockNotFound(id)));
            assert_eq!(pool.release(id), Err(PagedKvError::BlockNotFound(id)));
        }
        assert_eq!(pool.owners(BlockId(5)), Err(PagedKvError::BlockNotFound(BlockId(5))));
        let text = PagedKvError::BlockNotFound(id).to_string();
        assert!(text.contains(&id.to_string()), "{text}");
        assert_empties(&cache);
    }
}

#[test]
fn the_builder_refuses_by_parameter() {
    let good = || PagedKvCache::builder().num_blocks(4);
    good().build().unwrap();
    let most = u32::MAX as usize - 1;
    for (parameter, builder) in [
        ("num_blocks", PagedKvCache::builder()),
        ("num_blocks", good().num_blocks(0)),
        ("num_blocks", good().num_blocks(most + 1)),
        ("num_blocks", good().num_blocks(1).null_block(true)),
        ("block_size", good().block_size(0)),
        ("num_heads", good().num_heads(0)),
        ("head_dim", good().head_dim(0)),
        ("block_bytes", good().block_bytes(0)),
        ("block_bytes", good().block_bytes(usize::MAX)),
        ("block_bytes", good().num_heads(usize::MAX)),
        ("home_shards", good().home_shards(0)),
        ("home_shards", good().home_shards(1025)),
        ("eviction_threshold", good().with_eviction_threshold(f64::NAN)),
        ("eviction_threshold", good().with_eviction_threshold(-0.1)),
        ("eviction_threshold", good().with_eviction_threshold(1.1)),
        (
            "eviction_strategy",
            good().with_eviction_strategy(EvictionStrategy::Priority { levels: 0 }),
        ),
    ] {
        let refusal = builder.build().map(drop).unwrap_err();
        assert!(refusal.to_string().contains(parameter), "{refusal}");
        let PagedKvError::InvalidConfig { parameter: named, .. } = refusal else {
            panic!("{parameter}: {refusal}");
        };
        assert_eq!(named, parameter);
    }
}

#[test]
fn new_panics_and_names_the_parameter() {
    let sizes = [("num_blocks", 0), ("block_size", 1), ("num_heads", 2), ("head_dim", 3)];
    let mut cases: Vec<(&str, [usize; 4])> = Vec::new();
    for (name, at) in sizes {
        let mut arguments = [1; 4];
        arguments[at] = 0;
        cases.push((name, arguments));
    }
    cases.push(("num_blocks", [u32::MAX as usize, 1, 1, 1]));
    for (name, [num_blocks, block_size, num_heads, head_dim]) in cases {
        let panic = std::panic::catch_unwind(|| {
            PagedKvCache::new(num_blocks, block_size, num_heads, head_dim);
        });
        let payload = panic.expect_err("a size that makes no sense");
        let text = payload.downcast_ref::<String>().expect("a formatted message");
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn the_null_block_is_never_handed_out() {
    for home_shards in [1, 4] {
        let builder = PagedKvCache::builder().num_blocks(300).block_size(1);
        let cache = builder.null_block(true).home_shards(home_shards).build().unwrap();
        assert_eq!(cache.total_blocks(), 299);
        cache.allocate(s(1), 299).unwrap();
        assert!(!blocks(&cache, s(1)).contains(&BlockId(0)));
        let refused = cache.append(s(1), 1).unwrap_err();
        assert_eq!(refused, OutOfMemory { requested: 1, available: 0 });
        for refused in [cache.pool().retain(BlockId(0)), cache.pool().release(BlockId(0))] {
            assert_eq!(refused, Err(PagedKvError::BlockNotFound(BlockId(0))));
        }
        assert_empties(&cache);
    }
}

#[test]
fn ids_strategies_and_caches_display_their_values() {
    assert_eq!((BlockId(7).to_string(), SeqId(7).to_string()), ("B7".into(), "S7".into()));
    for (strategy, text) in [
        (EvictionStrategy::LRU, "LRU"),
        (EvictionStrategy::LFU, "LFU"),
        (EvictionStrategy::LongestFirst, "LongestFirst"),
        (EvictionStrategy::Priority { levels: 3 }, "Priority(levels=3)"),
        (
            EvictionStrategy::StreamingLLM { sink_tokens: 4, window_tokens: 512 },
            "StreamingLLM(sink=4, window=512)",
        ),
    ] {
        assert_eq!(strategy.to_string(), text);
        for cache in shapes_with(10, 4, |builder| builder.with_eviction_strategy(strategy)) {
            assert_eq!(cache.eviction_strategy(), strategy);
            cache.allocate(s(1), 9).unwrap();
            assert!(cache.to_string().contains("3/10"), "{cache}");
            assert!(cache.to_string().contains(text), "{cache}");
            assert!(cache.stats().to_string().contains("3/10"), "{}", cache.stats());
            assert_empties(&cache);
        }
    }
    assert_eq!(EvictionStrategy::default(), EvictionStrategy::LRU);
}

#[test]
fn memory_is_counted_in_blocks_of_keys_and_values() {
    let cache = PagedKvCache::new(10, 16, 8, 128);
    assert_eq!(cache.block_memory_bytes(), 2 * 16 * 8 * 128 * 2);
    assert_eq!(cache.total_memory_bytes(), 10 * cache.block_memory_bytes());
    assert_eq!(cache.used_memory_bytes(), 0);
    cache.allocate(s(1), 33).unwrap();
    assert_eq!(cache.used_memory_bytes(), 3 * cache.block_memory_bytes());
    assert_eq!(cache.utilization(), 0.3);
    let (used, free) = (cache.used_block_count(), cache.free_block_count());
    assert_eq!((used, free, cache.total_blocks(), cache.block_size()), (3, 7, 10, 16));
    let builder = PagedKvCache::builder().num_blocks(10).num_heads(8).head_dim(128);
    assert_eq!(builder.clone().build().unwrap().block_memory_bytes(), 2 * 16 * 8 * 128 * 2);
    assert_eq!(builder.block_bytes(77).build().unwrap().total_memory_bytes(), 770);
    assert_empties(&cache);
}

#[test]
fn a_null_blocks_bytes_are_not_counted_as_cache() {
    let builder = PagedKvCache::builder().num_blocks(10).block_bytes(3).null_block(true);
    let cache = builder.build().unwrap();
    assert_eq!(cache.total_memory_bytes(), 27);
    cache.allocate(s(1), 9 * 16).unwrap();
    assert_eq!((cache.used_memory_bytes(), cache.utilization()), (27, 1.0));
    assert_empties(&cache);
}

#[test]
fn a_read_without_a_copy_agrees_with_the_snapshot() {
    for cache in shapes(8, 4) {
        cache.allocate(s(1), 10).unwrap();
        let info = cache.get_sequence(s(1)).unwrap();
        let size = cache.block_size() as u64;
        let seen = cache.with_sequence(s(1), |sequence| {
            assert_eq!(sequence.block_ids(), info.block_ids);
            assert_eq!((sequence.num_tokens(), sequence.num_blocks()), (10, 3));
            assert_eq!(sequence.slot(10), None);
            (0..10).map(|position| sequence.slot(position).unwrap()).collect::<Vec<_>>()
        });
        let slot = |t: u64| u64::from(info.block_ids[(t / size) as usize].0) * size + t % size;
        assert_eq!(seen, Some((0..10).map(slot).collect()));
        assert_eq!(cache.get_sequence(s(1)).unwrap(), info, "reading is not a use");
        assert_empties(&cache);
    }
}

#[test]
fn the_callers_code_may_call_the_cache_while_it_reads() {
    for cache in shapes(8, 4) {
        cache.allocate(s(1), 10).unwrap();
        let read = cache.with_sequence(s(1), |sequence| {
            cache.allocate(s(2), 4).unwrap();
            assert_eq!(cache.num_sequences(), 2);
            assert_eq!(cache.get_sequence(s(1)).unwrap().num_blocks(), sequence.num_blocks());
            cache.with_sequence(s(1), |again| again.num_tokens())
        });
        assert_eq!(read, Some(Some(10)));
        assert_empties(&cache);
    }
}

#[test]
fn handles_have_every_operation_and_outlive_the_cache() {
    for cache in shapes(8, 4) {
        let mut sequence = cache.allocate_sequence(6).unwrap();
        let mut fork = sequence.fork().unwrap();
        assert_eq!(cache.num_sequences(), 0, "the map does not know handles");
        assert_eq!(cache.stats().total_forks, 1);
        cache.validate().unwrap();
        drop(cache);
        assert!(fork.append(1).unwrap().copy.is_some());
        assert!(sequence.append(1).unwrap().copy.is_none());
        assert_eq!(sequence.block_ids()[0], fork.block_ids()[0]);
        let refused = sequence.append(100).unwrap_err();
        assert_eq!(refused, OutOfMemory { requested: 25, available: 5 });
        assert_eq!(
            sequence.truncate(8).unwrap_err().to_string(),
            "cannot truncate to 8 tokens: the sequence has 7"
        );
        drop(fork);
        assert_eq!(sequence.append(100).unwrap_err(), OutOfMemory { requested: 25, available: 6 });
    }
}

#[test]
fn a_clamped_threshold_is_one_that_can_be_met() {
    for (threshold, at_three_of_four, at_full) in [
        (0.0, true, true),
        (-3.0, true, true),
        (1.0, false, true),
        (7.0, false, true),
        (0.75, true, true),
    ] {
        let cache = PagedKvCache::new(4, 4, 1, 1).with_eviction_threshold(threshold);
        cache.allocate(s(1), 12).unwrap();
        assert_eq!(cache.needs_eviction(), at_three_of_four, "{threshold}");
        cache.append(s(1), 1).map(drop).unwrap();
        assert_eq!(cache.needs_eviction(), at_full, "{threshold}");
        assert_empties(&cache);
    }
}

#[test]
fn a_release_by_id_undoes_only_a_retain_by_id() {
    let pool = BlockPool::new(4);
    let table = pool.allocate(1).unwrap();
    let id = table.as_slice()[0];
    assert_eq!(pool.release(id), Err(BlockNotFound(id)), "the table owns it");
    pool.retain(id).unwrap();
    pool.release(id).unwrap();
    assert_eq!(pool.release(id), Err(BlockNotFound(id)));
    assert_eq!(pool.owners(id), Ok(1));
    drop(table);
    assert_eq!(pool.free_block_count(), 4);
    pool.validate().unwrap();
}

#[test]
fn a_block_size_whose_slots_overflow_is_refused() {
    let huge = PagedKvCache::builder().num_blocks(8).block_bytes(1).block_size(1 << 62);
    assert!(matches!(huge.build(), Err(InvalidConfig { parameter: "block_size", .. })));
}

/// Readers alternate with a thread that waits to change the sequence.
#[test]
fn readers_one_after_another_do_not_keep_an_append_out() {
    let cache = PagedKvCache::new(16, 4, 1, 1);
    cache.allocate(s(1), 4).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let reading = || !done.load(std::sync::atomic::Ordering::Relaxed);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while reading() {
                    let nap = std::time::Duration::from_millis(2);
                    cache.with_sequence(s(1), |_| std::thread::sleep(nap)).unwrap();
                }
            });
        }
        // A reader that was always inside would make this hang, not only delay it.
        drop(cache.append(s(1), 1).unwrap());
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}
