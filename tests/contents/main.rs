//! Tests of cached contents: each is found, reported and kept apart as specified. They cover copies of
//! one content, generations, contents known by hash only, and sinks.

#[path = "../common/mod.rs"]
mod common;

mod copies;
mod generations;
mod histories;
mod mirror;
mod owners;
mod reference;
mod sinks;
mod tokenless;

use std::sync::Arc;

use mirror::Mirror;
use paged_kv::{PagedKvCache, ReclaimPolicy};

const BLOCK_SIZE: usize = 4;

/// The orders by the times of the last uses.
const BY_LAST_USE: &[ReclaimPolicy] = &[ReclaimPolicy::Lru, ReclaimPolicy::TwoQueue];

/// Creates caches over one and several home shards, under each reclaim policy, with a sink and without. Those with a
/// learned order have levels, too.
fn caches(num_blocks: usize) -> Vec<(PagedKvCache, Option<Arc<Mirror>>)> {
    let mut caches = caches_of(num_blocks, BY_LAST_USE);
    caches.extend(caches_of(num_blocks, &[ReclaimPolicy::HitDensity]));
    caches
}

/// Creates the caches of these policies.
fn caches_of(
    num_blocks: usize,
    policies: &[ReclaimPolicy],
) -> Vec<(PagedKvCache, Option<Arc<Mirror>>)> {
    let mut caches = Vec::new();
    for home_shards in [1, 4] {
        for &policy in policies {
            for has_sink in [false, true] {
                let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(BLOCK_SIZE);
                let builder = builder.home_shards(home_shards).reclaim_policy(policy);
                let builder = builder.retention_levels(policy == ReclaimPolicy::HitDensity);
                let mirror = has_sink.then(Arc::<Mirror>::default);
                let builder = match &mirror {
                    Some(mirror) => builder.event_sink(mirror.clone()),
                    None => builder,
                };
                caches.push((builder.build().expect("the parameters make sense"), mirror));
            }
        }
    }
    caches
}

/// Returns a prompt of one token, repeated.
fn prompt(token: u32, blocks: usize) -> Vec<u32> {
    vec![token; blocks * BLOCK_SIZE + 1]
}
