//! The work on blocks, the same for every pool: cycle through batches, fork and release.
//!
//! Every pool fills and empties memory that the caller reuses, so that allocate and release allocate no
//! memory in any pool. A fork is a second list of the same blocks. Our pool makes a table and pays for its
//! memory; the others copy into an existing list.

use paged_kv::{BlockPool, BlockTable};

use super::team::Burst;
use crate::baseline::one_lock_pool::OneLockPool;
use crate::baseline::queue_pool::QueuePool;

/// The batches that a thread keeps.
pub const KEPT: usize = 16;

/// A pool, as the work uses it.
pub trait Pool: Sync {
    type Batch: Send;
    type Fork: Default + Send;

    fn batch(&self) -> Self::Batch;
    fn allocate(&self, n: usize, batch: &mut Self::Batch);
    fn release(&self, batch: &mut Self::Batch);
    fn fork(&self, batch: &mut Self::Batch, fork: &mut Self::Fork);
    fn release_fork(&self, fork: &mut Self::Fork);
}

impl Pool for BlockPool {
    type Batch = BlockTable;
    type Fork = Option<BlockTable>;

    fn batch(&self) -> BlockTable {
        self.allocate(0).expect("an empty table needs no room")
    }
    #[inline]
    fn allocate(&self, n: usize, batch: &mut BlockTable) {
        batch.grow(n).expect("the pool has room for every batch");
    }
    #[inline]
    fn release(&self, batch: &mut BlockTable) {
        batch.truncate(0).expect("no block stays");
    }
    #[inline]
    fn fork(&self, batch: &mut BlockTable, fork: &mut Option<BlockTable>) {
        *fork = Some(batch.fork(batch.len()).expect("far fewer owners than a count can hold"));
    }
    #[inline]
    fn release_fork(&self, fork: &mut Option<BlockTable>) {
        *fork = None;
    }
}

macro_rules! pool_of_lists {
    ($pool:ty) => {
        impl Pool for $pool {
            type Batch = Vec<u32>;
            type Fork = Vec<u32>;

            fn batch(&self) -> Vec<u32> {
                Vec::new()
            }
            #[inline]
            fn allocate(&self, n: usize, batch: &mut Vec<u32>) {
                assert!(<$pool>::allocate(self, n, batch), "the pool has room for every batch");
            }
            #[inline]
            fn release(&self, batch: &mut Vec<u32>) {
                <$pool>::release(self, batch);
                batch.clear();
            }
            #[inline]
            fn fork(&self, batch: &mut Vec<u32>, fork: &mut Vec<u32>) {
                self.retain(batch);
                fork.extend_from_slice(batch);
            }
            #[inline]
            fn release_fork(&self, fork: &mut Vec<u32>) {
                <$pool>::release(self, fork);
                fork.clear();
            }
        }
    };
}

pool_of_lists!(OneLockPool);
pool_of_lists!(QueuePool);

/// A thread's batches, which it releases and allocates again in turn.
pub struct Cycle<'a, P: Pool> {
    pool: &'a P,
    batches: Vec<P::Batch>,
    n: usize,
}

impl<'a, P: Pool> Cycle<'a, P> {
    pub fn new(pool: &'a P, n: usize) -> Self {
        let mut batches: Vec<_> = (0..KEPT).map(|_| pool.batch()).collect();
        batches.iter_mut().for_each(|batch| pool.allocate(n, batch));
        Self { pool, batches, n }
    }

    /// Releases and allocates each batch once: [`KEPT`] operations.
    #[inline]
    pub fn turn(&mut self) {
        for batch in &mut self.batches {
            self.pool.release(batch);
            self.pool.allocate(self.n, batch);
        }
    }
}

impl<P: Pool> Drop for Cycle<'_, P> {
    fn drop(&mut self) {
        self.batches.iter_mut().for_each(|batch| self.pool.release(batch));
    }
}

/// A batch that a thread forks repeatedly; it releases each fork.
pub struct Forks<'a, P: Pool> {
    pool: &'a P,
    source: P::Batch,
    fork: P::Fork,
}

impl<'a, P: Pool> Forks<'a, P> {
    pub fn new(pool: &'a P, n: usize) -> Self {
        let mut source = pool.batch();
        pool.allocate(n, &mut source);
        Self { pool, source, fork: P::Fork::default() }
    }

    #[inline]
    pub fn turn(&mut self) {
        self.pool.fork(&mut self.source, &mut self.fork);
        self.pool.release_fork(&mut self.fork);
    }
}

impl<P: Pool> Drop for Forks<'_, P> {
    fn drop(&mut self) {
        self.pool.release(&mut self.source);
    }
}

/// Returns bursts of about four thousand blocks, or 256 operations if those are fewer blocks.
pub fn cycling<'a, P: Pool>(pool: &'a P, n: usize) -> Burst<'a> {
    let mut cycle = Cycle::new(pool, n);
    let turns = (256 / n).clamp(1, 16);
    Box::new(move || {
        for _ in 0..turns {
            cycle.turn();
        }
        (turns * KEPT) as u64
    })
}

pub fn forking<'a, P: Pool>(pool: &'a P, n: usize) -> Burst<'a> {
    let mut forks = Forks::new(pool, n);
    let turns = (4_096 / n).clamp(1, 64);
    Box::new(move || {
        for _ in 0..turns {
            forks.turn();
        }
        turns as u64
    })
}
