//! `Snapshot`: all visible state of a cache, to compare before and after a call.

use std::collections::BTreeMap;
use std::ops::Range;

use paged_kv::{BlockId, CacheStats, PagedKvCache, SeqId, SequenceInfo};

#[derive(Debug, PartialEq)]
pub struct Snapshot {
    sequences: BTreeMap<SeqId, (SequenceInfo, Vec<Range<usize>>)>,
    stats: CacheStats,
    free_blocks: usize,
    used_blocks: usize,
    owners: Vec<Option<u32>>,
    eviction_target: Option<SeqId>,
    needs_eviction: bool,
    text: String,
}

impl Snapshot {
    pub fn of(cache: &PagedKvCache) -> Self {
        let sequence = |id| {
            let info = cache.get_sequence(id).expect("a listed id is there");
            let gaps = cache.with_sequence(id, |sequence| sequence.gaps().to_vec());
            (id, (info, gaps.expect("a listed id is there")))
        };
        let owners = |id| cache.pool().owners(BlockId(id)).ok();
        Self {
            sequences: cache.sequence_ids().into_iter().map(sequence).collect(),
            stats: cache.stats(),
            free_blocks: cache.free_block_count(),
            used_blocks: cache.used_block_count(),
            // One more than the total: the null block is not counted in it.
            owners: (0..cache.total_blocks() as u32 + 2).map(owners).collect(),
            eviction_target: cache.select_eviction_target(),
            needs_eviction: cache.needs_eviction(),
            text: cache.to_string(),
        }
    }
}
