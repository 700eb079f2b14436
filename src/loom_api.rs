//! The door for the model checker: the parts of the crate that models reach and callers do not.
//!
//! In a build for loom only. Models of the cache use the public interface; those of the layers below it
//! would explore too much there, and come in here. Nothing here adds to an operation of the library.

use crate::error::Result;
use crate::id::BlockId;
use crate::pool::fence::Fence;
use crate::pool::{BlockPool, Keep, PoolHandle, ReclaimPolicy};
use crate::prefix::{BlockHash, Generation, Offer, PublishedBlocks};
pub use crate::sync::model::{ArrayQueue, place_thread};
use crate::table::BlockTable;

/// A pool whose blocks can be matched by hashes.
pub struct ReusePool {
    /// Its blocks.
    pub pool: BlockPool,
    published: PublishedBlocks,
}

/// A table, and under which generation it may publish.
pub struct Admitted {
    /// Matched blocks first.
    pub table: BlockTable,
    /// How many of them were matched.
    pub hits: usize,
    generation: Generation,
}

impl ReusePool {
    /// All free.
    ///
    /// # Panics
    /// As [`BlockPool::new`].
    pub fn new(num_blocks: usize, shards: usize) -> Self {
        Self::with_policy(num_blocks, shards, ReclaimPolicy::default())
    }

    /// As [`new`](Self::new), with an order in which contents are given up.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn with_policy(num_blocks: usize, shards: usize, policy: ReclaimPolicy) -> Self {
        let pool = BlockPool::build(num_blocks, shards, Keep::Contents(policy), false, None);
        let pool = pool.unwrap_or_else(|refusal| panic!("{refusal}"));
        Self { pool, published: PublishedBlocks::new(num_blocks, None).expect("there is memory") }
    }

    /// The blocks of `hashes` that are cached, and as many new ones as then are missing.
    ///
    /// # Errors
    /// As [`BlockPool::allocate`].
    pub fn admit(&self, hashes: &[u128]) -> Result<Admitted> {
        let hashes: Vec<_> = hashes.iter().copied().map(BlockHash::from_u128).collect();
        let generation = self.published.generation();
        let mut ids = Vec::new();
        self.published.acquire(self.pool.blocks(), &hashes, generation, &mut ids);
        if ids.is_empty() {
            self.pool.blocks().announce_room();
        } else {
            self.pool.blocks().announce_contents();
        }
        let hits = ids.len();
        let mut table = self.pool.table_of(ids);
        table.grow(hashes.len() - hits)?;
        Ok(Admitted { table, hits, generation })
    }

    /// Lets a block of `admitted` be matched.
    pub fn publish(&self, admitted: &Admitted, index: usize, hash: u128) -> usize {
        let (before, rest) = admitted.table.as_slice().split_at(index);
        let offer = Offer {
            ids: &rest[..1],
            before: before.last().copied(),
            private_from: admitted.table.shared_len().saturating_sub(index),
            generation: admitted.generation,
        };
        let hash_of = |_| BlockHash::from_u128(hash);
        let told = || unreachable!("no event sink is told");
        self.published.publish(self.pool.blocks(), &offer, hash_of, told)
    }

    /// A second owner of all of its blocks.
    ///
    /// # Errors
    /// As [`BlockTable::fork`].
    pub fn fork(&self, admitted: &mut Admitted) -> Result<Admitted> {
        let table = admitted.table.fork(admitted.table.len())?;
        Ok(Admitted { table, hits: admitted.hits, generation: admitted.generation })
    }

    /// How many of `hashes` are cached.
    pub fn probe(&self, hashes: &[u128]) -> usize {
        let hashes: Vec<_> = hashes.iter().copied().map(BlockHash::from_u128).collect();
        self.published.probe(self.pool.blocks(), &hashes).cached
    }

    /// True if a look at the block finds it cached under `hash`, as a probe does that comes by an entry.
    pub fn is_cached_as(&self, id: BlockId, hash: u128) -> bool {
        let name = self.published.generation().name_of(BlockHash::from_u128(hash));
        self.pool.blocks().is_cached_as(id, name)
    }

    /// Blocks that can be found under `hash`.
    pub fn copies(&self, hash: u128) -> usize {
        self.published.copies(self.pool.blocks(), BlockHash::from_u128(hash))
    }

    /// From now on nothing published before matches.
    pub fn reset(&self) {
        self.published.reset(self.pool.blocks());
    }
}

/// A step that is open until it is dropped.
pub struct OpenStep {
    pool: PoolHandle,
    fence: Fence,
}

impl OpenStep {
    /// A new one.
    pub fn new(pool: &BlockPool) -> Self {
        let pool = pool.handle();
        let fence = pool.open_step();
        Self { pool, fence }
    }

    /// Has a table take part.
    pub fn take_part(&self, table: &mut BlockTable) {
        table.take_part(self.fence);
    }
}

impl Drop for OpenStep {
    fn drop(&mut self) {
        self.pool.close_step(self.fence);
    }
}
