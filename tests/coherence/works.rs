//! The works of `benches/ratios.rs`, an operation at a time.

use paged_kv::{BlockPool, BlockTable, PagedKvCache, census};

use crate::rig::pools::{Forks, KEPT};
use crate::rig::requests::{BLOCK_SIZE, ByHandle, ById, Dice, Growth, Requests, Steps};
use crate::turns::{Counted, Turn, count, of_threads};

const POOL_BLOCKS: usize = 65_536;

/// Creates a pool with the home shards of a machine with 16 cores, so that all machines count the same.
fn new_pool(num_blocks: usize) -> BlockPool {
    let shards = 1 << (num_blocks / 512).clamp(1, 64).ilog2();
    BlockPool::with_home_shards(num_blocks, shards).expect("a pool of that size")
}

/// Each thread keeps batches of 8 blocks. An operation releases one and allocates it again.
pub fn blocks(threads: usize) -> Counted {
    census::begin();
    let pool = new_pool(POOL_BLOCKS);
    let turns = of_threads(threads, |_| {
        let batch = |_| pool.allocate(8).expect("the pool has room for every batch");
        let mut batches: Vec<BlockTable> = (0..KEPT).map(batch).collect();
        let mut next = 0;
        Box::new(move || {
            let batch = &mut batches[next];
            batch.truncate(0).expect("no block stays");
            batch.grow(8).expect("the pool has room for every batch");
            next = (next + 1) % KEPT;
            1
        })
    });
    count(turns, 64, 256)
}

/// Each thread forks an own table of 512 blocks and drops the fork.
pub fn forks(threads: usize) -> Counted {
    census::begin();
    let pool = new_pool(POOL_BLOCKS);
    let turns = of_threads(threads, |_| {
        let mut forks = Forks::new(&pool, 512);
        Box::new(move || {
            forks.turn();
            1
        })
    });
    count(turns, 64, 256)
}

/// Appends before the counts, and those that are counted: each row grows by as many tokens as a block has.
const APPENDS: u64 = (Growth::<ByHandle<'_>>::ROWS * BLOCK_SIZE) as u64;

fn growing<'a>(requests: impl Requests + 'a) -> Turn<'a> {
    let mut growth = Growth::new(requests, Growth::<ByHandle<'_>>::ROWS);
    Box::new(move || {
        growth.append();
        1
    })
}

fn growth_blocks(threads: usize) -> usize {
    threads * Growth::<ByHandle<'_>>::MOST_BLOCKS
}

pub fn appends_by_handle(threads: usize) -> Counted {
    census::begin();
    let pool = new_pool(growth_blocks(threads));
    let rows = Growth::<ByHandle<'_>>::ROWS;
    let turns = of_threads(threads, |_| growing(ByHandle::new(&pool, rows)));
    count(turns, APPENDS / 4, APPENDS / 4)
}

pub fn appends_by_id(threads: usize) -> Counted {
    census::begin();
    let builder = PagedKvCache::builder().num_blocks(growth_blocks(threads));
    let builder = builder.block_size(BLOCK_SIZE).prefix_reuse(false).home_shards(64);
    let cache = builder.build().expect("the parameters make sense");
    let rows = Growth::<ByHandle<'_>>::ROWS;
    let turns = of_threads(threads, |thread| growing(ById::new(&cache, rows, thread)));
    count(turns, APPENDS / 4, APPENDS / 4)
}

/// Takes all blocks, and releases them in an arbitrary order on all threads.
fn mix(pool: &BlockPool, threads: usize) {
    let block = |_| pool.allocate(1).expect("the pool is empty");
    let mut blocks: Vec<BlockTable> = (0..pool.total_blocks()).map(block).collect();
    let mut dice = Dice::new(threads as u64);
    while !blocks.is_empty() {
        census::run_as(blocks.len() % threads);
        blocks.swap_remove(dice.below(blocks.len()));
    }
}

/// The operations of `Steps`: each row is appended to; then some rows finish, and forks or new requests
/// take their places. The ids of free blocks are mixed, as they are after some thousand steps: each step moves
/// about a batch through the depot.
pub fn steps(threads: usize) -> Counted {
    const ROWS: usize = Steps::<ByHandle<'_>>::ROWS;
    const LONGEST: usize = Steps::<ByHandle<'_>>::LONGEST_PROMPT;
    /// Rows that forks take, and rows that new requests take.
    const CHANGES: usize = 5;
    census::begin();
    let pool = new_pool(threads * Steps::<ByHandle<'_>>::MOST_BLOCKS);
    mix(&pool, threads);
    let turns = of_threads(threads, |thread| {
        let (mut requests, mut dice) = (ByHandle::new(&pool, ROWS), Dice::new(thread as u64));
        for row in 0..ROWS {
            requests.admit(row, 1 + dice.below(LONGEST));
        }
        // Threads are at different operations of a step.
        let mut next = 0;
        let mut wait = 17 * thread;
        Box::new(move || {
            if wait > 0 {
                wait -= 1;
                return 0;
            }
            match next {
                row if row < ROWS => requests.append(row),
                change if change < ROWS + CHANGES => {
                    let from = dice.below(ROWS);
                    let to = (from + 1 + dice.below(ROWS - 1)) % ROWS;
                    requests.finish(to);
                    requests.fork(from, to);
                }
                _ => {
                    let row = dice.below(ROWS);
                    requests.finish(row);
                    requests.admit(row, 1 + dice.below(LONGEST));
                }
            }
            next = (next + 1) % (ROWS + 2 * CHANGES);
            u64::from(next == 0)
        })
    });
    count(turns, 30, 20)
}
