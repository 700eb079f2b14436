//! `PoolHandle`: the counted reference by which a table keeps its pool alive. A pool has several.

use super::Blocks;
use crate::clock::RecencyClock;
use crate::sync::{Arc, AtomicU64, CachePadded, Ordering};

/// One of several counted references to a pool.
///
/// With a single `Arc` for all tables, every allocation and release of every thread would write one
/// cache line. The count of a stripe is mostly written by one thread.
#[derive(Clone)]
pub(crate) struct PoolHandle(Arc<CachePadded<Stripe>>);

struct Stripe {
    blocks: Arc<Blocks>,
    forks: AtomicU64,
}

impl PoolHandle {
    /// Creates a stripe and returns its first reference.
    pub(super) fn new(blocks: Arc<Blocks>) -> Self {
        Self(Arc::new(CachePadded::new(Stripe { blocks, forks: AtomicU64::new(0) })))
    }

    pub(super) fn forks(&self) -> u64 {
        // Relaxed: a statistic.
        self.0.forks.load(Ordering::Relaxed)
    }

    pub(crate) fn is_of_same_pool(&self, other: &PoolHandle) -> bool {
        Arc::ptr_eq(&self.0.blocks, &other.0.blocks)
    }

    /// Returns a number that no other pool has during the life of this one.
    pub(crate) fn address(&self) -> usize {
        &*self.0.blocks as *const Blocks as usize
    }

    pub(crate) fn count_fork(&self) {
        // Relaxed: a statistic.
        self.0.forks.fetch_add(1, Ordering::Relaxed);
    }
}

impl Blocks {
    #[inline]
    pub(crate) fn clock(&self) -> &RecencyClock {
        &self.clock
    }
}

impl std::ops::Deref for PoolHandle {
    type Target = Blocks;

    #[inline]
    fn deref(&self) -> &Blocks {
        &self.0.blocks
    }
}
