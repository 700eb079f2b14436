//! The interface for model checking: parts of the crate that models use and callers cannot reach.
//!
//! It exists in a build for loom only. Models of the cache use the public interface. Models of the layers below
//! would explore too much there, so they use this module. It adds nothing to an operation of the library.

use std::time::Duration;

use crate::error::Result;
use crate::id::BlockId;
pub use crate::pool::LearnedCounts;
use crate::pool::content_key::ContentKey;
use crate::pool::free_list::Matching;
use crate::pool::in_flight::InFlightStep;
use crate::pool::{
    BlockPool, HitDensity, Level, LevelNote, Observers, PoolHandle, PromptUses, ReclaimPolicy,
    ReleasedPrompt, Retention, ReuseHint,
};
use crate::prefix::{BlockHash, Generation, PublishRequest, PublishedBlocks};
pub use crate::sync::loom::{ArrayQueue, place_thread};
use crate::table::BlockTable;
use crate::tier::in_flight::{Claimed, InFlight};
use crate::tier::sources::UnusedBlocks;

/// A pool whose blocks can be matched by hashes.
pub struct ReusePool {
    /// The blocks of the pool.
    pub pool: BlockPool,
    published: PublishedBlocks,
}

/// A table, and the generation under which it may publish.
pub struct Admitted {
    /// The blocks, matched ones first.
    pub table: BlockTable,
    /// Number of matched blocks.
    pub hits: usize,
    generation: Generation,
}

impl ReusePool {
    /// Creates a pool whose blocks are all free.
    ///
    /// # Panics
    /// Those of [`BlockPool::new`].
    pub fn new(num_blocks: usize, shards: usize) -> Self {
        Self::with_policy(num_blocks, shards, ReclaimPolicy::default())
    }

    /// Creates a pool as [`new`](Self::new) does, with an order in which contents are reclaimed.
    ///
    /// # Panics
    /// Those of [`new`](Self::new).
    pub fn with_policy(num_blocks: usize, shards: usize, policy: ReclaimPolicy) -> Self {
        Self::that_keeps(num_blocks, shards, Retention::Contents(policy))
    }

    /// Creates a pool as [`new`](Self::new) does, whose contents can have levels.
    ///
    /// # Panics
    /// Those of [`new`](Self::new).
    pub fn with_levels(num_blocks: usize, shards: usize, policy: ReclaimPolicy) -> Self {
        Self::that_keeps(num_blocks, shards, Retention::Levels(policy))
    }

    fn that_keeps(num_blocks: usize, shards: usize, keep: Retention) -> Self {
        let pool = BlockPool::build(num_blocks, shards, keep, false, Observers::default(), None);
        let pool = pool.unwrap_or_else(|refusal| panic!("{refusal}"));
        Self {
            pool,
            published: PublishedBlocks::new(num_blocks, None, None).expect("there is memory"),
        }
    }

    /// Matches the blocks of `hashes` that are cached, and allocates the missing ones.
    ///
    /// # Errors
    /// Those of [`BlockPool::allocate`].
    pub fn admit(&self, hashes: &[u128]) -> Result<Admitted> {
        let hashes: Vec<_> = hashes.iter().copied().map(BlockHash::from_u128).collect();
        let generation = self.published.generation();
        let mut ids = Vec::new();
        self.published.acquire(self.pool.blocks(), &hashes, generation, &mut ids);
        if !ids.is_empty() {
            self.pool.blocks().announce_contents();
        }
        let hits = ids.len();
        let mut table = self.pool.table_of(ids);
        table.grow(hashes.len() - hits)?;
        Ok(Admitted { table, hits, generation })
    }

    /// Counts the uses of contents by a prompt for a learned order, without its admission.
    pub fn count_prompt(&self, hashes: &[u128]) {
        let hashes: Vec<_> = hashes.iter().copied().map(BlockHash::from_u128).collect();
        let (blocks, asked) = (self.pool.blocks(), (&hashes[..], hashes.len()));
        self.published.count_uses(blocks, asked, &[], self.published.generation());
    }

    /// Notes the release of the blocks for a learned order, and releases them.
    pub fn release_noted(&self, Admitted { table, .. }: Admitted) {
        let (parts, uses) = ([(0, table.as_slice())], PromptUses::default());
        let hint = ReuseHint::Unknown;
        let (num_tokens, mark) = (table.len(), self.density().next_mark());
        let of = ReleasedPrompt { uses: &uses, hint, num_tokens, mark, before: None };
        self.pool.blocks().note_release(parts.into_iter(), &of);
    }

    /// Returns the counts of a learned order.
    pub fn learned(&self) -> LearnedCounts {
        self.density().counts()
    }

    /// Returns the time of a learned order.
    pub fn time(&self) -> u32 {
        self.density().time()
    }

    fn density(&self) -> &HitDensity {
        self.pool.blocks().density().expect("a pool with a learned order")
    }

    /// Publishes block `index` of `admitted` under `hash`.
    pub fn publish(&self, admitted: &Admitted, index: usize, hash: u128) -> usize {
        let (before, rest) = admitted.table.as_slice().split_at(index);
        let offer = PublishRequest {
            ids: &rest[..1],
            before: before.last().copied(),
            private_from: admitted.table.shared_len().saturating_sub(index),
            generation: admitted.generation,
        };
        let hash_of = |_| BlockHash::from_u128(hash);
        let context = || unreachable!("no event sink is told");
        self.published.publish(self.pool.blocks(), &offer, hash_of, context)
    }

    /// Creates a second owner of all its blocks.
    ///
    /// # Errors
    /// Those of [`BlockTable::fork`].
    pub fn fork(&self, admitted: &mut Admitted) -> Result<Admitted> {
        let table = admitted.table.fork(admitted.table.len())?;
        Ok(Admitted { table, hits: admitted.hits, generation: admitted.generation })
    }

    /// Returns how many of `hashes` are cached.
    pub fn probe(&self, hashes: &[u128]) -> usize {
        let hashes: Vec<_> = hashes.iter().copied().map(BlockHash::from_u128).collect();
        self.published.probe(self.pool.blocks(), &hashes).cached
    }

    /// Returns true if the block itself is cached under `hash`, as a probe checks it after it found an entry.
    pub fn is_cached_as(&self, id: BlockId, hash: u128) -> bool {
        let name = self.published.generation().key_of(BlockHash::from_u128(hash));
        self.pool.blocks().is_cached_as(id, name)
    }

    /// Returns the number of blocks that can be found under `hash`.
    pub fn copies(&self, hash: u128) -> usize {
        self.published.copies(self.pool.blocks(), BlockHash::from_u128(hash))
    }

    /// Makes everything published so far unmatchable.
    pub fn reset(&self) {
        self.published.reset(self.pool.blocks());
    }

    /// Makes one block unmatchable, in use or idle. Returns true if it was cached.
    pub fn uncache(&self, id: BlockId) -> bool {
        let acquire = |matching: &mut Matching<'_>, id| matching.acquire_any(id);
        self.pool.blocks().uncache(&[id], acquire) == 1
    }

    /// Frees up to `n` idle blocks, whose contents end. Returns their number.
    pub fn forget(&self, n: usize) -> usize {
        self.pool.blocks().uncache_idle(n)
    }

    /// Gives the content of `hash` a level, which ends immediately after each release if it `ends`. Returns the number of
    /// blocks.
    pub fn set_level(&self, hash: u128, level: Level, ends: bool) -> usize {
        let note = LevelNote::new(level, ends.then_some(Duration::from_nanos(1)));
        let (generation, hashes) = (self.published.generation(), [BlockHash::from_u128(hash)]);
        self.published.set_levels(self.pool.blocks(), &hashes, generation, note)
    }

    /// Makes the content of `hash` unmatchable wherever it is cached. Returns the number of blocks.
    pub fn forget_content(&self, hash: u128) -> usize {
        let generation = self.published.generation();
        self.published.forget(self.pool.blocks(), &[BlockHash::from_u128(hash)], generation)
    }
}

/// Idle blocks that a copy holds ahead of their reclaim. They come back as old as they were when it is dropped.
pub struct HeldBlocks {
    held: UnusedBlocks,
    ids: Vec<BlockId>,
}

impl HeldBlocks {
    /// Returns the blocks, the oldest first.
    pub fn ids(&self) -> &[BlockId] {
        let _ = &self.held;
        &self.ids
    }
}

impl ReusePool {
    /// Holds up to `n` of the oldest idle blocks that have a content of `hashes`.
    pub fn hold_oldest(&self, n: usize, hashes: &[u128]) -> HeldBlocks {
        let generation = self.published.generation();
        let key = |&hash: &u128| generation.key_of(BlockHash::from_u128(hash));
        let (mut held, mut ids) = (UnusedBlocks::new(self.pool.handle()), Vec::new());
        for aged in self.pool.blocks().list_oldest(n) {
            if hashes.iter().map(key).any(|key| held.acquire(aged, key)) {
                ids.push(aged.id);
            }
        }
        HeldBlocks { held, ids }
    }
}

/// A step that is open until it is dropped.
pub struct OpenStep {
    pool: PoolHandle,
    in_flight: InFlightStep,
}

impl OpenStep {
    /// Opens a new step.
    pub fn new(pool: &BlockPool) -> Self {
        let pool = pool.handle();
        let in_flight = pool.open_step();
        Self { pool, in_flight }
    }

    /// Joins a table to the step.
    pub fn join(&self, table: &mut BlockTable) {
        table.join_step(self.in_flight);
    }
}

impl Drop for OpenStep {
    fn drop(&mut self) {
        self.pool.close_step(self.in_flight);
    }
}

/// The rights to copy contents, which have one home place together.
pub struct CopyRights(InFlight);

/// The right to copy a content.
pub struct CopyRight(Claimed);

impl CopyRights {
    /// Creates rights of which none is claimed.
    ///
    /// # Panics
    /// None.
    #[expect(clippy::new_without_default, reason = "it allocates")]
    pub fn new() -> Self {
        Self(InFlight::new(0).expect("there is memory"))
    }

    /// Claims a content by its key.
    pub fn claim(&self, key: u128) -> Option<CopyRight> {
        self.0.claim(ContentKey::new(key)).map(CopyRight)
    }

    /// Gives a right back.
    pub fn leave(&self, CopyRight(claimed): CopyRight) {
        self.0.leave(claimed);
    }
}
