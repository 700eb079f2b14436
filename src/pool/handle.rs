//! How does a table hold on to its pool? By one of several counted references.

use super::Blocks;
use crate::clock::RecencyClock;
use crate::sync::{Arc, AtomicU64, CachePadded, Ordering};

/// One of several counted references to a pool.
///
/// A single `Arc` cloned into every table would be a line that every allocation and release of
/// every thread writes; a stripe is mostly its own thread's.
#[derive(Clone)]
pub(crate) struct PoolHandle(Arc<CachePadded<Stripe>>);

struct Stripe {
    blocks: Arc<Blocks>,
    forks: AtomicU64,
}

impl PoolHandle {
    /// The first reference of a new stripe.
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

    /// A number that no other living pool has.
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
