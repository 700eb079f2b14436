//! How does the model checker reach those who wait? A future that takes blocks of a pool, in a build
//! with `--cfg paged_kv_loom` only.
//!
//! It adds nothing to the operations of [`Turn`]; the futures of the cache do the same.

use std::pin::Pin;
use std::task::{Context, Poll};

use super::{Class, Short, Turn};
use crate::id::BlockId;
use crate::pool::{BlockPool, PoolHandle};

/// Waits for so many blocks.
pub struct RoomWait {
    turn: Turn,
    num_blocks: usize,
}

/// Blocks that were waited for, until they are dropped.
pub struct Granted {
    ids: Vec<BlockId>,
    pool: PoolHandle,
}

impl RoomWait {
    /// Of this pool.
    pub fn new(pool: &BlockPool, num_blocks: usize) -> Self {
        Self { turn: Turn::new(pool.handle()), num_blocks }
    }
}

impl Future for RoomWait {
    type Output = Granted;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Granted> {
        let Self { turn, num_blocks } = self.get_mut();
        let pool = turn.pool().clone();
        let take = |_| {
            let mut ids = Vec::new();
            match pool.take(*num_blocks, &mut ids) {
                Ok(_) => Ok(Ok(Granted { ids, pool: pool.clone() })),
                Err(_) => Err(Short::of_blocks(*num_blocks)),
            }
        };
        turn.poll(context, take)
            .map(|granted| granted.unwrap_or_else(|_| unreachable!("it holds nothing")))
    }
}

impl Granted {
    /// Which they are.
    pub fn as_slice(&self) -> &[BlockId] {
        &self.ids
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        self.pool.give(&self.ids);
    }
}

/// Those who wait for room in the pool.
pub fn num_waiting(pool: &BlockPool) -> usize {
    pool.blocks().waiters().len(Class::New)
}
