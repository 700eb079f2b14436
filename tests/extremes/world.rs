//! `World`: a small cache with a part of each kind in it, for calls with extreme lengths.

use paged_kv::{
    AdmitOptions, BlockHash, CachedSequence, EvictionStrategy, PagedKvCache, Prompt, Reservation,
    SeqId, Sequence, Watermark,
};

use crate::common::s;
use crate::common::snapshot::Snapshot;

/// Blocks of each world's cache.
pub const BLOCKS: usize = 14;

/// The shape of a world.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub block_size: usize,
    pub home_shards: usize,
    pub watermark: usize,
    pub prefix_reuse: bool,
    pub strategy: EvictionStrategy,
}

pub struct World {
    pub cache: PagedKvCache,
    pub handle: Sequence,
    pub cached: CachedSequence,
    pub room: Reservation,
}

/// Sequences of the world: allocated, forked, admitted by hashes, and without tokens.
pub const HERE: [SeqId; 4] = [s(1), s(2), s(3), s(4)];

pub fn shapes() -> Vec<Shape> {
    let strategy = EvictionStrategy::LRU;
    let of = |block_size| {
        let plain =
            Shape { block_size, home_shards: 1, watermark: 0, prefix_reuse: true, strategy };
        [plain, Shape { home_shards: 2, watermark: 1, prefix_reuse: false, ..plain }]
    };
    [1, 4, 1 << 20, 1 << 60].into_iter().flat_map(of).collect()
}

/// Returns the hashes of `n` full blocks.
pub fn hashes(n: usize) -> Vec<BlockHash> {
    (1..=n as u128).map(|hash| BlockHash::from_u128(hash << 64 | hash)).collect()
}

impl World {
    pub fn new(shape: Shape) -> Self {
        let builder = PagedKvCache::builder().num_blocks(BLOCKS).block_size(shape.block_size);
        let builder = builder.block_bytes(1).home_shards(shape.home_shards);
        let builder = builder.watermark(Watermark::Blocks(shape.watermark));
        let builder = builder.with_eviction_strategy(shape.strategy);
        let builder = builder.prefix_reuse(shape.prefix_reuse);
        let cache = builder.build().expect("the parameters make sense");
        cache.allocate(s(1), 3).expect("there is room");
        cache.fork(s(1), s(2)).expect("it can be forked");
        let prompt = Prompt::from_hashes(&hashes(2), 2 * shape.block_size + 1);
        cache.admit_with(s(3), &prompt, &AdmitOptions::default()).expect("there is room");
        cache.commit(s(3), 2 * shape.block_size).expect("it has so many");
        cache.allocate(s(4), 0).expect("it needs no room");
        let handle = cache.allocate_sequence(3).expect("there is room");
        let (cached, _) =
            cache.admit_sequence(&prompt, &AdmitOptions::default()).expect("there is room");
        let room = cache.reserve(1).expect("there is room");
        Self { cache, handle, cached, room }
    }

    /// Returns all visible state of the world.
    pub fn picture(&self) -> (Snapshot, String) {
        let of_handle = |handle: &Sequence| {
            format!("{} {:?} {:?}", handle.num_tokens(), handle.block_ids(), handle.gaps())
        };
        let handles = [of_handle(&self.handle), of_handle(&self.cached)].concat();
        (Snapshot::of(&self.cache), format!("{handles} {}", self.room.num_blocks()))
    }

    /// Drops all parts and asserts that nothing is left.
    #[track_caller]
    pub fn end(self) {
        let Self { cache, handle, cached, room } = self;
        drop((handle, cached, room));
        cache.sequence_ids().into_iter().for_each(|id| cache.free(id).expect("it is not leased"));
        assert_eq!(cache.used_block_count(), 0);
        cache.validate().expect("an empty cache is consistent");
    }
}
