//! How does the model checker reach what is published? A pool that keeps contents, and what is
//! published of it, in a build with `--cfg paged_kv_loom` only.
//!
//! It adds nothing to the operations of [`published`](super::published); admissions by tokens do the
//! same.

#[cfg(feature = "async")]
use std::pin::Pin;
#[cfg(feature = "async")]
use std::task::{Context, Poll};

use super::generation::Generation;
use super::hash::BlockHash;
use super::published::{Offer, PublishedBlocks, Told};
use crate::error::Result;
use crate::event::announcer::{Announcer, Taken};
use crate::event::claimed_sink::ClaimedSink;
use crate::event::kv_event::EventSink;
use crate::id::BlockId;
#[cfg(feature = "async")]
use crate::pool::waiters::{Short, Shortage, Turn};
use crate::pool::{BlockPool, Keep, PoolHandle, ReclaimPolicy, TakeObserver};
use crate::sync::PlainArc;
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

/// Waits to admit a prompt, as an admission does.
#[cfg(feature = "async")]
pub struct AdmitWait {
    pool: PlainArc<ReusePool>,
    hashes: Vec<u128>,
    turn: Turn,
}

/// A block that a step will publish, with the step as one more owner.
pub struct Queued {
    id: BlockId,
    generation: Generation,
    pool: PoolHandle,
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.pool.give(&[self.id]);
    }
}

#[cfg(feature = "async")]
impl AdmitWait {
    /// To this pool.
    pub fn new(pool: &PlainArc<ReusePool>, hashes: &[u128]) -> Self {
        let turn = Turn::new(pool.pool.handle());
        Self { pool: PlainArc::clone(pool), hashes: hashes.to_vec(), turn }
    }
}

#[cfg(feature = "async")]
impl Future for AdmitWait {
    type Output = Admitted;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Admitted> {
        let Self { pool, hashes, turn } = self.get_mut();
        let admit = |_| {
            // Of hits that no table owns the need is the same.
            let need = hashes.len() - pool.probe_in_use(hashes);
            if pool.pool.blocks().room() < need {
                return Err(Short { need, shortage: Shortage::Prompt });
            }
            pool.admit(hashes).map(Ok).map_err(|_| Short { need, shortage: Shortage::Prompt })
        };
        let admitted = turn.poll(context, admit);
        admitted.map(|admitted| admitted.unwrap_or_else(|_| unreachable!("it holds nothing")))
    }
}

impl ReusePool {
    /// As a step does that a block is committed through.
    ///
    /// # Errors
    /// If the block has too many owners.
    pub fn queue(&self, admitted: &Admitted, index: usize) -> Result<Queued> {
        let (id, pool) = (admitted.table.as_slice()[index], self.pool.handle());
        pool.retain(id)?;
        Ok(Queued { id, generation: admitted.generation, pool })
    }

    /// As the step does when it completes.
    pub fn publish_queued(&self, queued: Queued, hash: u128) -> usize {
        let (ids, generation) = (&[queued.id], queued.generation);
        let offer = Offer { ids, before: None, private_from: 1, generation };
        let hash_of = |_| BlockHash::from_u128(hash);
        let tokens = [hash as u32];
        self.published.publish(self.pool.blocks(), &offer, hash_of, || told(&tokens))
    }

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

    /// As [`new`](Self::new), with who listens; each content is the beginning of a prompt.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn with_listener(num_blocks: usize, shards: usize, sink: PlainArc<dyn EventSink>) -> Self {
        let sink = ClaimedSink::claim(sink).expect("each pool has a sink of its own");
        let announcer = Announcer::new(sink, num_blocks, 1).expect("there is memory");
        let announcer = PlainArc::new(announcer);
        let observer: Box<dyn TakeObserver> = Box::new(Taken(announcer.clone()));
        let keep = Keep::Contents(ReclaimPolicy::default());
        let pool = BlockPool::build(num_blocks, shards, keep, false, Some(observer));
        let pool = pool.unwrap_or_else(|refusal| panic!("{refusal}"));
        Self {
            pool,
            published: PublishedBlocks::new(num_blocks, Some(announcer)).expect("there is memory"),
        }
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
        self.publish_knowing(admitted, index, hash, &[hash as u32])
    }

    /// [`publish`](Self::publish), of a content whose tokens are not known.
    pub fn publish_untold(&self, admitted: &Admitted, index: usize, hash: u128) -> usize {
        self.publish_knowing(admitted, index, hash, &[])
    }

    fn publish_knowing(
        &self,
        admitted: &Admitted,
        index: usize,
        hash: u128,
        tokens: &[u32],
    ) -> usize {
        let (before, rest) = admitted.table.as_slice().split_at(index);
        let offer = Offer {
            ids: &rest[..1],
            before: before.last().copied(),
            private_from: admitted.table.shared_len().saturating_sub(index),
            generation: admitted.generation,
        };
        let hash_of = |_| BlockHash::from_u128(hash);
        self.published.publish(self.pool.blocks(), &offer, hash_of, || told(tokens))
    }

    /// As an admission does that knows the tokens of the one content that it matched.
    pub fn tell_matched(&self, admitted: &Admitted, hash: u128) {
        let matched = &admitted.table.as_slice()[..admitted.hits];
        let (tokens, hash_of) = ([hash as u32], |_| BlockHash::from_u128(hash));
        self.published.tell_matched(matched, hash_of, admitted.generation, || told(&tokens));
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

    #[cfg(feature = "async")]
    fn probe_in_use(&self, hashes: &[u128]) -> usize {
        let hashes: Vec<_> = hashes.iter().copied().map(BlockHash::from_u128).collect();
        let probed = self.published.probe(self.pool.blocks(), &hashes);
        probed.cached - probed.idle
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

/// Of a block of one token, at the beginning of a prompt.
fn told(tokens: &[u32]) -> Told<'_> {
    Told { parent: None, tokens: [tokens, &[]], block_size: 1, extra: None, index: 0 }
}
