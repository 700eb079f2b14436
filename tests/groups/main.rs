//! Tests of groups of layers on one pool, from outside the library: worked examples of vLLM, a sequential
//! reference under random operations, and the rules of windows, states and trims one by one.
//!
//! `PAGED_KV_GROUPS_OPERATIONS` (12,000) sets the operations of the random tests, and
//! `PAGED_KV_GROUPS_SEED` the first seed.

#[path = "../common/mod.rs"]
mod common;

mod a2;
mod attention;
mod copies;
mod gemma;
mod held;
mod operations;
mod random;
mod reference;
mod reserves;
mod states;
mod streaming;
mod truncation;
mod windows;
mod world;

use paged_kv::{
    AdmitOptions, BlockId, CachedSequence, GroupId, LayerGroup, PagedKvCache, Sequence,
};

type Table = Vec<Option<BlockId>>;

const fn full(block_size: usize) -> LayerGroup {
    LayerGroup::Full { block_size }
}

const fn sliding(block_size: usize, window: usize) -> LayerGroup {
    LayerGroup::SlidingWindow { block_size, window }
}

const fn chunked(block_size: usize, chunk: usize) -> LayerGroup {
    LayerGroup::Chunked { block_size, chunk }
}

const fn state(block_size: usize) -> LayerGroup {
    LayerGroup::State { block_size }
}

const fn sink_window(block_size: usize, sink: usize, window: usize) -> LayerGroup {
    LayerGroup::SinkWindow { block_size, sink, window }
}

fn cache_of(num_blocks: usize, groups: &[LayerGroup]) -> PagedKvCache {
    let builder = PagedKvCache::builder().num_blocks(num_blocks).groups(groups);
    builder.build().expect("the groups make sense")
}

/// Returns the same tokens for the same name; prompts of two names share none.
fn tokens(name: u32, length: usize) -> Vec<u32> {
    (0..length as u32).map(|at| name * 100_000 + at).collect()
}

/// Returns the logical blocks of a group.
fn table(sequence: &Sequence, group: usize) -> Table {
    sequence.blocks_in(GroupId(group as u8)).collect()
}

/// Returns the logical blocks of a group that have no block.
fn missing(sequence: &Sequence, group: usize) -> Vec<usize> {
    let table = table(sequence, group);
    (0..table.len()).filter(|&block| table[block].is_none()).collect()
}

/// Returns a logical block of a group.
#[track_caller]
fn block(sequence: &Sequence, group: usize, logical: usize) -> BlockId {
    table(sequence, group)[logical].expect("the block is resident")
}

/// Admits a prompt and commits all of it.
#[track_caller]
fn computed(cache: &PagedKvCache, prompt: &[u32]) -> CachedSequence {
    let mut sequence = admitted(cache, prompt);
    sequence.commit(prompt.len()).expect("it has slots");
    sequence
}

#[track_caller]
fn admitted(cache: &PagedKvCache, prompt: &[u32]) -> CachedSequence {
    let prompt = cache.prompt(prompt);
    cache.admit_sequence(&prompt, &AdmitOptions::default()).expect("there is room").0
}

fn probe(cache: &PagedKvCache, prompt: &[u32]) -> usize {
    cache.prefix().probe(&cache.prompt(prompt))
}

/// Returns the hit of a prompt, and the longest hit of one group. No sequence stays.
#[track_caller]
fn hits(cache: &PagedKvCache, prompt: &[u32]) -> (usize, usize) {
    let prompt = cache.prompt(prompt);
    let options = AdmitOptions::default().first_chunk(0);
    let (_, admission) = cache.admit_sequence(&prompt, &options).expect("it needs no new block");
    assert_eq!(cache.prefix().probe(&prompt), admission.cached_tokens);
    (admission.cached_tokens, admission.longest_group_hit)
}

/// Checks that nothing is left after all sequences were dropped.
#[track_caller]
fn assert_at_rest(cache: &PagedKvCache) {
    assert_eq!(cache.used_block_count(), 0, "blocks leaked");
    cache.validate().expect("a cache at rest is consistent");
}
