//! The parts that the test files share: caches of several shapes, snapshots of all visible state, and
//! seeded random numbers.
#![allow(dead_code)] // each test file uses its part

pub mod random;
pub mod snapshot;

use paged_kv::{HashAlgorithm, LeaseRow, PagedKvCache, PagedKvCacheBuilder, Result, SeqId};

/// Every algorithm that this build has, the keyed one under two keys.
pub const ALGORITHMS: &[HashAlgorithm] = &[
    HashAlgorithm::Xxh3 { seed: 0 },
    HashAlgorithm::Xxh3 { seed: 1 },
    #[cfg(feature = "vllm-hashes")]
    HashAlgorithm::Sha256Cbor,
    #[cfg(feature = "vllm-hashes")]
    HashAlgorithm::XxhashCbor,
];

/// Creates the same cache of `num_blocks` usable blocks, over one and several home shards and with and
/// without a null block.
pub fn shapes(num_blocks: usize, block_size: usize) -> Vec<PagedKvCache> {
    shapes_with(num_blocks, block_size, |builder| builder)
}

/// Creates the caches of [`shapes`], each finished by `set`.
pub fn shapes_with(
    num_blocks: usize,
    block_size: usize,
    set: impl Fn(PagedKvCacheBuilder) -> PagedKvCacheBuilder,
) -> Vec<PagedKvCache> {
    let builder = || set(PagedKvCache::builder().block_size(block_size));
    [
        builder().num_blocks(num_blocks).home_shards(1),
        builder().num_blocks(num_blocks).home_shards(4),
        builder().num_blocks(num_blocks + 1).null_block(true),
    ]
    .map(|builder| builder.build().expect("the parameters make sense"))
    .into()
}

/// Returns a [`SeqId`]; a short name.
pub const fn s(id: u64) -> SeqId {
    SeqId(id)
}

/// Returns rows of these sequences, each with its number of new tokens. No lease stays.
#[track_caller]
pub fn lease_rows(cache: &PagedKvCache, rows: &[(SeqId, usize)]) -> Vec<(LeaseRow, usize)> {
    let ids: Vec<SeqId> = rows.iter().map(|(id, _)| *id).collect();
    let lease = cache.lease(&ids).expect("the sequences are there");
    lease.rows().zip(rows.iter().map(|(_, num_new_tokens)| *num_new_tokens)).collect()
}

/// Returns the row of one sequence. No lease stays.
#[track_caller]
pub fn lease_row(cache: &PagedKvCache, id: SeqId) -> LeaseRow {
    lease_rows(cache, &[(id, 0)]).remove(0).0
}

/// Returns the row of a sequence that may be gone. No lease stays.
pub fn row_if_there(cache: &PagedKvCache, id: SeqId) -> Result<LeaseRow> {
    Ok(cache.lease(&[id])?.rows().next().expect("one is leased"))
}

/// Frees every sequence and checks that nothing is left.
pub fn assert_empties(cache: &PagedKvCache) {
    for id in cache.sequence_ids() {
        cache.free(id).expect("a sequence that is there and not leased");
    }
    assert_eq!(cache.used_block_count(), 0, "blocks leaked");
    let stats = cache.stats();
    assert_eq!(stats.total_allocations, stats.total_frees);
    cache.validate().expect("an empty cache is consistent");
}

/// Returns every order of `items`.
pub fn permutations<T: Clone>(items: &[T]) -> Vec<Vec<T>> {
    if items.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for first in 0..items.len() {
        let mut rest = items.to_vec();
        let item = rest.remove(first);
        for mut order in permutations(&rest) {
            order.insert(0, item.clone());
            all.push(order);
        }
    }
    all
}
