//! `QueuePool`: the obvious lock-free pool, with the free ids in one `ArrayQueue`.
//!
//! Each block costs one queue operation and one atomic count. The ids can also be in several queues, one of
//! which is the home of a thread.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crossbeam::queue::ArrayQueue;

/// A pool of blocks for many threads.
pub struct QueuePool {
    /// Their number is a power of two.
    queues: Box<[ArrayQueue<u32>]>,
    owners: Box<[AtomicU32]>,
}

impl QueuePool {
    /// Creates a pool over `queues` queues, a power of two.
    pub fn new(num_blocks: usize, queues: usize) -> Self {
        assert!(queues.is_power_of_two(), "a thread's queue is found with a mask");
        // Each queue can hold all blocks: a thread releases all blocks to its home queue.
        let pool = Self {
            queues: (0..queues).map(|_| ArrayQueue::new(num_blocks)).collect(),
            owners: (0..num_blocks).map(|_| AtomicU32::new(0)).collect(),
        };
        for id in 0..num_blocks as u32 {
            let pushed = pool.queues[id as usize % queues].push(id);
            assert!(pushed.is_ok(), "each queue has room for every block");
        }
        pool
    }

    pub fn free_blocks(&self) -> usize {
        self.queues.iter().map(ArrayQueue::len).sum()
    }

    /// Appends `n` blocks to `out`, or releases the blocks that it took and returns false.
    pub fn allocate(&self, n: usize, out: &mut Vec<u32>) -> bool {
        let start = out.len();
        let home = home();
        for _ in 0..n {
            let Some(id) = self.pop(home) else {
                self.release(&out[start..]);
                out.truncate(start);
                return false;
            };
            self.owners[id as usize].store(1, Ordering::Relaxed);
            out.push(id);
        }
        true
    }

    pub fn retain(&self, ids: &[u32]) {
        for &id in ids {
            self.owners[id as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn release(&self, ids: &[u32]) {
        let home = home() & (self.queues.len() - 1);
        for &id in ids {
            // AcqRel: the thread that releases last, and so the next owner, sees the writes of all owners.
            if self.owners[id as usize].fetch_sub(1, Ordering::AcqRel) == 1 {
                let pushed = self.queues[home].push(id);
                assert!(pushed.is_ok(), "each queue has room for every block");
            }
        }
    }

    /// Takes a block from the home queue, or from the next queue that has one.
    fn pop(&self, home: usize) -> Option<u32> {
        let mask = self.queues.len() - 1;
        (0..=mask).find_map(|step| self.queues[home.wrapping_add(step) & mask].pop())
    }
}

/// Returns the calling thread's number.
fn home() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static HOME: Cell<Option<usize>> = const { Cell::new(None) });
    HOME.get().unwrap_or_else(|| {
        let home = NEXT.fetch_add(1, Ordering::Relaxed);
        HOME.set(Some(home));
        home
    })
}
