//! Models of the cache by id at a size that loom cannot explore. They have the map, leases, evictions and
//! prefix reuse, over executions of hundreds of steps. The code is the code that ships. shuttle's
//! schedules are drawn at random and repeat by their seed; see `explore`.
//!
//! Each model ends at rest, with every block accounted for. Two models record each call and its answer,
//! and check that some sequential order of the calls explains the answers.

mod by_id;
mod explore;
mod history;
mod leases;
mod linear_pool;
mod linear_sequence;
mod retention;
mod reuse;
mod statistics;
mod steps;
mod waiting;
mod workload;

use std::sync::atomic::{AtomicU64, Ordering};

use paged_kv::{BlockId, HashAlgorithm, PagedKvCache, PagedKvCacheBuilder, SeqId, Step};

const A: SeqId = SeqId(1);
const B: SeqId = SeqId(2);
const C: SeqId = SeqId(3);

/// Creates a cache of `num_blocks` blocks of two tokens over two home shards.
fn cache(num_blocks: usize) -> PagedKvCache {
    shape(num_blocks).build().expect("a cache of that shape")
}

/// Returns the builder of that cache. Its hashes are the same in every run, so a failure repeats.
fn shape(num_blocks: usize) -> PagedKvCacheBuilder {
    let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(2).home_shards(2);
    builder.hash_algorithm(HashAlgorithm::Xxh3 { seed: 0x5EED })
}

/// Joins a sequence of the map to the step; afterwards it is not leased.
fn join(cache: &PagedKvCache, id: SeqId, step: &mut Step) {
    let mut row = cache.lease(&[id]).expect("it is there").rows().next().expect("one is leased");
    step.join(&mut row).expect("it is there");
}

/// Frees all sequences that are left in the cache. Then no block is used, and all counts agree.
#[track_caller]
fn assert_all_free_at_end(cache: &PagedKvCache) {
    for id in cache.sequence_ids() {
        cache.free(id).expect("nobody leases it any more");
    }
    assert_eq!(cache.validate(), Ok(()));
    let stats = cache.stats();
    assert_eq!((stats.blocks_used, stats.num_sequences), (0, 0), "{stats:?}");
    assert_eq!(stats.total_allocations, stats.total_frees, "{stats:?}");
    assert_eq!(cache.free_block_count(), cache.total_blocks());
    assert!(stats.blocks_idle <= stats.blocks_total, "{stats:?}");
    assert!(stats.peak_blocks_used <= stats.blocks_total, "{stats:?}");
}

/// The contents of each block, as its owners see them. shuttle does not schedule these accesses: a write
/// happens where its thread is.
struct Contents(Vec<AtomicU64>);

impl Contents {
    fn new(num_blocks: usize) -> Self {
        Self((0..num_blocks).map(|_| AtomicU64::new(0)).collect())
    }

    fn write(&self, block: BlockId, content: u64) {
        self.0[block.0 as usize].store(content, Ordering::Relaxed);
    }

    fn read(&self, block: BlockId) -> u64 {
        self.0[block.0 as usize].load(Ordering::Relaxed)
    }
}
