//! Extreme values for every constructor and builder setter that takes a number.

use std::sync::Arc;

use paged_kv::{
    BlockHasher, BlockPool, EventSink, EvictionStrategy, ExtraKeys, KvEvent, PagedKvCache,
    PagedKvCacheBuilder, PagedKvError, Prompt, Watermark,
};

use crate::common::{ALGORITHMS, s};
use crate::{LENGTHS, SHARES, in_little_memory};

struct Deaf;

impl EventSink for Deaf {
    fn on_event(&self, _: &KvEvent<'_>) {}
}

fn builder() -> PagedKvCacheBuilder {
    PagedKvCache::builder().num_blocks(8).block_size(4)
}

/// Builds a cache in little memory. It works if it is built; values without meaning are refused with an
/// error.
#[track_caller]
fn built(said: &str, builder: PagedKvCacheBuilder) -> Option<PagedKvCache> {
    match in_little_memory(said, || builder.build()) {
        Err(PagedKvError::InvalidConfig { .. } | PagedKvError::OutOfHostMemory { .. }) => None,
        Err(other) => panic!("{said}: {other}"),
        Ok(cache) => {
            use_it(said, &cache);
            Some(cache)
        }
    }
}

#[track_caller]
fn use_it(said: &str, cache: &PagedKvCache) {
    let total = cache.total_blocks();
    let slots = total.saturating_mul(cache.block_size());
    for num_tokens in [0, 1, 2, 5, slots / 2, slots - 1, slots] {
        let allocated = cache.allocate(s(1), num_tokens);
        assert!(allocated.is_ok() || cache.stats().blocks_used == 0, "{said}: {num_tokens}");
        let _ = cache.append(s(1), 1);
        let _ = cache.append(s(1), cache.block_size());
        let _ = cache.fork(s(1), s(2));
        let _ = cache.append(s(2), 1);
        let _ = cache.apply_streaming_llm(s(1), 1, 1);
        let _ = cache.truncate(s(1), num_tokens / 2);
        let _ = (cache.needs_eviction(), cache.evict_to_threshold(0.1), cache.stats());
        let _ = (cache.total_memory_bytes(), cache.used_memory_bytes(), cache.utilization());
        cache.validate().unwrap_or_else(|fault| panic!("{said}: {fault}"));
        cache.sequence_ids().into_iter().for_each(|id| cache.free(id).expect("it is there"));
        assert_eq!(cache.used_block_count(), 0, "{said}");
    }
    let tokens: Vec<u32> = (0..9).collect();
    let admitted = cache.admit(s(1), &tokens);
    assert!(admitted.is_ok() || total * cache.block_size() < 9 || total < 8, "{said}");
    if admitted.is_ok() {
        assert_eq!(cache.commit(s(1), 9).map(|_| ()), Ok(()), "{said}");
        cache.prefix().announce_all();
        cache.free(s(1)).expect("it was admitted");
    }
    cache.validate().expect(said);
}

#[test]
fn block_sizes_of_any_length_are_built_or_refused() {
    for block_size in LENGTHS {
        for num_blocks in [1, 2, 8, 16] {
            for heard in [false, true] {
                let said = format!("{num_blocks} of {block_size} tokens, heard: {heard}");
                let builder = builder().num_blocks(num_blocks).block_size(block_size);
                let builder = builder.block_bytes(1);
                let builder = if heard { builder.event_sink(Arc::new(Deaf)) } else { builder };
                let cache = built(&said, builder.clone());
                let slots = (num_blocks as u128 + 1) * block_size as u128;
                assert_eq!(cache.is_some(), (1..=1 << 64).contains(&slots) && slots < 1 << 64);
                built(&said, builder.prefix_reuse(false));
            }
        }
    }
}

#[test]
fn heads_bytes_and_shards_of_any_length_are_built_or_refused() {
    for n in LENGTHS {
        let of = |name: &str| format!("{name} {n}");
        built(&of("num_heads"), builder().num_heads(n));
        built(&of("head_dim"), builder().head_dim(n));
        built(&of("all"), builder().num_heads(n).head_dim(n).block_size(n.max(1)));
        built(&of("block_bytes"), builder().block_bytes(n));
        built(&of("home_shards"), builder().home_shards(n.min(1 << 40)).null_block(true));
        let watermark = built(&of("watermark"), builder().watermark(Watermark::Blocks(n)));
        assert_eq!(watermark.is_some(), n < 8, "{n}");
        for strategy in [
            EvictionStrategy::Priority { levels: n },
            EvictionStrategy::StreamingLLM { sink_tokens: n, window_tokens: n },
        ] {
            built(&strategy.to_string(), builder().with_eviction_strategy(strategy));
            use_it("set later", &PagedKvCache::new(8, 4, 1, 1).with_eviction_strategy(strategy));
        }
    }
    for share in SHARES {
        let said = format!("{share}");
        built(&said, builder().watermark(Watermark::Share(share)));
        built(&said, builder().with_eviction_threshold(share));
        use_it(&said, &PagedKvCache::new(8, 4, 1, 1).with_eviction_threshold(share));
    }
}

#[test]
fn more_blocks_than_ids_are_refused_with_the_requested_number() {
    for n in LENGTHS.into_iter().filter(|&n| n == 0 || n >= u32::MAX as usize) {
        for builder in [builder(), builder().prefix_reuse(false), builder().null_block(true)] {
            let refused = in_little_memory("num_blocks", || builder.num_blocks(n).build());
            let PagedKvError::InvalidConfig { parameter, reason } = refused.unwrap_err() else {
                panic!("{n} blocks are too many");
            };
            assert_eq!((parameter, reason.contains(&n.to_string())), ("num_blocks", true));
        }
        for build in [
            |n| _ = BlockPool::new(n.wrapping_sub(1).max(u32::MAX as usize)),
            |n| _ = BlockPool::with_home_shards(n.wrapping_sub(1).max(1 << 32), 4).unwrap(),
            |n| _ = BlockPool::with_home_shards(4, n.max(1_025)).unwrap(),
            |n| _ = PagedKvCache::new(n, 4, 1, 1),
            |n| _ = PagedKvCache::new(4, n.max(1 << 62), 1, 1),
        ] as [fn(usize); 5]
        {
            let panicked = std::panic::catch_unwind(|| build(n)).unwrap_err();
            let said = panicked.downcast_ref::<String>().expect("a message");
            assert!(
                said.contains(&n.to_string()) || said.to_lowercase().contains("invalid"),
                "{said}"
            );
        }
    }
}

#[test]
fn prompts_and_hashers_of_any_length_take_little_memory() {
    let hashes = crate::world::hashes(3);
    for n in LENGTHS {
        let said = n.to_string();
        in_little_memory(&said, || {
            let prompt = Prompt::from_hashes(&hashes, n);
            assert_eq!((prompt.num_tokens(), prompt.hashes().len()), (n, 3));
            let media = ExtraKeys::default().media("a", n..usize::MAX).media("b", 9..n);
            let media = media.media("c", n..0).media("d", 0..n).media("e", n..n);
            for &algorithm in ALGORITHMS {
                let mut out = Vec::new();
                let mut hasher = BlockHasher::new(algorithm, n.max(1), media.clone());
                (0..20).for_each(|_| hasher.extend(&[7; 9], &mut out));
                assert_eq!((out.len(), hasher.num_tokens()), (180 / n.max(1), 180));
            }
        });
    }
}
