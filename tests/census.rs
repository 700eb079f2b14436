//! Budgets of shared writes: each operation's writes to memory that other threads write too are counted,
//! printed and held to a budget.
//!
//! `RUSTFLAGS="--cfg paged_kv_census" cargo test --release --test census -- --nocapture` runs them.
//!
//! A row shows the operation, its shared writes (read-modify-writes, see `Writes::shared`), and its
//! stores to the thread's own memory. That is a magazine, a ledger, or the words of blocks that it alone
//! owns.
//!
//! A home shard, a stripe and a statistic's cell belong to one thread if there are no more threads than
//! of them. They are counted all the same. All threads share the depot, the pool's peak, the clock and
//! the mutexes.
#![cfg(paged_kv_census)]

use paged_kv::census::{Place, Writes, take};
use paged_kv::export::{Gaps, TableShape};
use paged_kv::{AdmitOptions, AppendBatch, BlockPool, PagedKvCache, SeqId, Sequence, StepBuffers};

const BLOCK_SIZE: usize = 16;
const LENGTHS: [usize; 3] = [64, 512, 8192];

/// Blocks that move between a home shard and the depot in one batch.
const BATCH: u64 = 128;

/// The writes of an operation, by place.
#[derive(Debug)]
struct Census(Vec<(Place, Writes)>);

/// Runs an operation, prints its row, and returns its census and its outcome.
fn census<R>(name: &str, operation: impl FnOnce() -> R) -> (Census, R) {
    take();
    let outcome = operation();
    let census = Census(take());
    println!("| {name} | {} | {} |", census.list(|w| w.shared), census.list(|w| w.stores));
    (census, outcome)
}

impl Census {
    fn list(&self, count: impl Fn(Writes) -> u64) -> String {
        let counts = self.0.iter().map(|&(place, writes)| (place, count(writes)));
        let shown = counts.filter(|&(_, count)| count > 0);
        let shown: Vec<String> = shown.map(|(place, n)| format!("{place:?} {n}")).collect();
        if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
    }

    fn shared(&self, place: Place) -> u64 {
        self.0.iter().find(|(of, _)| *of == place).map_or(0, |(_, writes)| writes.shared)
    }

    fn shared_in_all(&self) -> u64 {
        self.0.iter().map(|(_, writes)| writes.shared).sum()
    }

    /// Asserts that exactly these shared writes were made, except those of the clock: one in 64 stamps.
    fn assert_shared(&self, expected: &[(Place, u64)]) {
        let clock = self.shared(Place::Clock);
        assert!(clock <= 1, "a stamp in 64 raises the floor: {self:?}");
        for &(place, times) in expected {
            assert_eq!(self.shared(place), times, "{place:?} in {self:?}");
        }
        let sum: u64 = expected.iter().map(|(_, times)| times).sum();
        assert_eq!(self.shared_in_all() - clock, sum, "nothing but {expected:?} in {self:?}");
    }
}

/// Creates a pool of many shards, and fills the calling thread's home shard.
fn warm_pool() -> BlockPool {
    let pool = BlockPool::new(1 << 16);
    warm(&pool);
    pool
}

fn warm(pool: &BlockPool) {
    drop(pool.allocate(64).unwrap());
    drop(pool.allocate(1).unwrap());
}

/// Creates a sequence of `blocks` full blocks and a partly filled one.
fn sequence(pool: &BlockPool, blocks: usize) -> Sequence {
    let sequence = pool.allocate_sequence(blocks * BLOCK_SIZE + 1, BLOCK_SIZE).unwrap();
    warm(pool);
    sequence
}

/// Creates a cache of many home shards with sequence 1, of 64 full blocks and a partly filled one.
fn warm_cache() -> PagedKvCache {
    let cache = PagedKvCache::new(1 << 16, BLOCK_SIZE, 1, 1);
    cache.allocate(SeqId(1), 64 * BLOCK_SIZE + 1).unwrap();
    warm(cache.pool());
    cache
}

#[test]
fn allocating_and_releasing_write_two_shared_lines_whatever_the_number() {
    let pool = warm_pool();
    for n in 1..=64 {
        let (allocation, table) = census(&format!("allocate {n}"), || pool.allocate(n).unwrap());
        let (release, ()) = census(&format!("release {n}"), || drop(table));
        for census in [allocation, release] {
            census.assert_shared(&[(Place::HomeShard, 1), (Place::Stripe, 1)]);
        }
    }
}

#[test]
fn many_blocks_cost_one_queue_operation_a_batch() {
    let pool = warm_pool();
    let n = LENGTHS[2];
    let (allocation, table) = census(&format!("allocate {n}"), || pool.allocate(n).unwrap());
    let (release, ()) = census(&format!("release {n}"), || drop(table));
    let batches = n as u64 / BATCH;
    for census in [allocation, release] {
        assert!(census.shared(Place::Depot) <= batches + 1, "{census:?}");
        assert!(census.shared(Place::HomeShard) <= batches + 1, "{census:?}");
        assert_eq!(census.shared(Place::BlockWord), 0, "{census:?}");
        assert_eq!(census.shared(Place::Rare), 0, "{census:?}");
    }
}

#[test]
fn appending_inside_a_block_writes_nothing_that_is_shared() {
    let pool = warm_pool();
    let mut sequence = sequence(&pool, 64);
    let (append, _) = census("append inside a block", || sequence.append(1).unwrap());
    assert!(append.0.is_empty(), "not even a store: {append:?}");
    drop(sequence.fork().unwrap());
    let (append, _) = census("append inside a block, once forked", || sequence.append(1).unwrap());
    assert!(append.0.is_empty(), "{append:?}");
}

#[test]
fn appending_a_block_and_cutting_it_off_write_the_home_shard_once() {
    let pool = warm_pool();
    let mut sequence = sequence(&pool, 64);
    let end = sequence.num_tokens();
    let (append, _) = census("append into a new block", || sequence.append(BLOCK_SIZE).unwrap());
    append.assert_shared(&[(Place::HomeShard, 1)]);
    let (cut, _) = census("truncate by a block", || sequence.truncate(end).unwrap());
    cut.assert_shared(&[(Place::HomeShard, 1)]);
}

#[test]
fn forking_counts_two_owners_whatever_the_length() {
    let pool = warm_pool();
    for blocks in LENGTHS {
        let mut sequence = sequence(&pool, blocks);
        let first = format!("fork {blocks}, the first");
        let (first, fork) = census(&first, || sequence.fork().unwrap());
        // In the stripe: the reference of the run itself and that of the fork.
        first.assert_shared(&[
            (Place::Run, 1),
            (Place::BlockWord, 1),
            (Place::Stripe, 2),
            (Place::Statistic, 1),
        ]);
        drop(fork);
        let (again, fork) = census(&format!("fork {blocks}"), || sequence.fork().unwrap());
        again.assert_shared(&[
            (Place::Run, 1),
            (Place::BlockWord, 1),
            (Place::Stripe, 1),
            (Place::Statistic, 1),
        ]);
        let (release, ()) = census(&format!("release a fork of {blocks}"), || drop(fork));
        release.assert_shared(&[
            (Place::Run, 1),
            (Place::BlockWord, 1),
            (Place::HomeShard, 1),
            (Place::Stripe, 1),
        ]);
    }
}

#[test]
fn forking_full_blocks_counts_one_owner() {
    let pool = warm_pool();
    for blocks in LENGTHS {
        let mut sequence = pool.allocate_sequence(blocks * BLOCK_SIZE, BLOCK_SIZE).unwrap();
        drop(sequence.fork().unwrap());
        let name = format!("fork {blocks} full blocks");
        let (fork, forked) = census(&name, || sequence.fork().unwrap());
        fork.assert_shared(&[(Place::Run, 1), (Place::Stripe, 1), (Place::Statistic, 1)]);
        let name = format!("release a fork of {blocks} full blocks");
        let (release, ()) = census(&name, || drop(forked));
        release.assert_shared(&[(Place::Run, 1), (Place::Stripe, 1)]);
    }
}

#[test]
fn copying_on_write_writes_for_two_blocks() {
    let pool = warm_pool();
    let mut sequence = sequence(&pool, 64);
    let mut fork = sequence.fork().unwrap();
    let (append, copy) = census("append with a copy", || fork.append(1).unwrap());
    append.assert_shared(&[(Place::HomeShard, 1), (Place::Stripe, 1)]);
    let (done, ()) = census("let go of the copy's source", || drop(copy));
    done.assert_shared(&[(Place::HomeShard, 1), (Place::BlockWord, 1), (Place::Stripe, 1)]);
}

#[test]
fn by_id_each_guard_touches_the_map_once() {
    let cache = warm_cache();
    let (id, fork) = (SeqId(2), SeqId(3));
    let (census_of, _) = census("by id: allocate 3", || cache.allocate(id, 40).unwrap());
    census_of.assert_shared(&[(Place::MapShard, 2), (Place::HomeShard, 1), (Place::Stripe, 1)]);
    let (census_of, _) = census("by id: append inside a block", || cache.append(id, 1).unwrap());
    census_of.assert_shared(&[(Place::MapShard, 1)]);
    let (census_of, _) =
        census("by id: append into a new block", || cache.append(id, BLOCK_SIZE).unwrap());
    census_of.assert_shared(&[(Place::MapShard, 1), (Place::HomeShard, 1)]);
    let (census_of, _) = census("by id: truncate by a block", || cache.truncate(id, 40).unwrap());
    census_of.assert_shared(&[(Place::MapShard, 1), (Place::HomeShard, 1)]);
    let (census_of, _) = census("by id: touch", || cache.touch(id).unwrap());
    census_of.assert_shared(&[(Place::MapShard, 1)]);
    cache.fork(SeqId(1), SeqId(9)).unwrap();
    cache.free(SeqId(9)).unwrap();
    let (census_of, _) = census("by id: fork 64", || cache.fork(SeqId(1), fork).unwrap());
    census_of.assert_shared(&[
        (Place::MapShard, 2),
        (Place::Run, 1),
        (Place::BlockWord, 1),
        (Place::Stripe, 1),
        (Place::Statistic, 1),
    ]);
    let (census_of, append) =
        census("by id: append that copies", || cache.append(fork, 1).unwrap());
    assert!(append.copy.is_some(), "the last block is shared");
    census_of.assert_shared(&[(Place::MapShard, 2), (Place::HomeShard, 1), (Place::Stripe, 1)]);
    drop(append);
    let (census_of, _) = census("by id: free a fork of 64", || cache.free(fork).unwrap());
    census_of.assert_shared(&[
        (Place::MapShard, 1),
        (Place::Run, 1),
        (Place::HomeShard, 1),
        (Place::Stripe, 1),
    ]);
    let (census_of, _) = census("by id: free 3", || cache.free(id).unwrap());
    census_of.assert_shared(&[(Place::MapShard, 1), (Place::HomeShard, 1), (Place::Stripe, 1)]);
}

#[test]
fn the_statistics_write_nothing_that_is_shared_and_take_no_map_shard() {
    let cache = warm_cache();
    let (census_of, stats) = census("statistics", || cache.stats());
    assert_eq!(stats.num_sequences, 1);
    // The peak rises to the number of blocks in use that the ledgers show.
    assert!(census_of.shared(Place::Ledger) <= 1, "{census_of:?}");
    census_of.assert_shared(&[(Place::Ledger, census_of.shared(Place::Ledger))]);
}

#[test]
fn one_use_in_64_writes_the_clock() {
    let cache = warm_cache();
    let (uses, ()) = census("by id: 6400 touches", || {
        (0..6400).for_each(|_| cache.touch(SeqId(1)).unwrap());
    });
    assert_eq!((uses.shared(Place::MapShard), uses.shared(Place::Clock)), (6400, 100));
    assert_eq!(uses.shared_in_all(), 6500);
}

#[test]
fn exporting_touches_the_map_once_a_row_and_under_a_lease_not_at_all() {
    let cache = warm_cache();
    cache.allocate(SeqId(2), 1).unwrap();
    let mut table = [0_i32; 2 * 128];
    let shape = TableShape { stride: 128, pad: -1, gaps: Gaps::Show };
    let (start, lease) = census("lease 2 rows", || cache.lease(&[SeqId(1), SeqId(2)]).unwrap());
    assert_eq!(start.shared(Place::MapShard), 2);
    let (export, ()) = census("leased: block table of 2 rows", || {
        lease.block_tables(&mut table, shape).unwrap();
    });
    // Each sequence's lock is taken and released.
    export.assert_shared(&[(Place::Sequence, 4)]);
}

#[test]
fn a_lease_keeps_a_batch_off_the_map() {
    const ROWS: usize = 4;
    let cache = warm_cache();
    let ids: Vec<SeqId> = (10..10 + ROWS as u64).map(SeqId).collect();
    ids.iter().for_each(|&id| cache.allocate(id, 1).unwrap());
    let (start, lease) = census("lease 4", || cache.lease(&ids).unwrap());
    assert_eq!(start.shared(Place::MapShard), ROWS as u64);
    let mut batch = AppendBatch::default();
    lease.append_batch(&[1; ROWS], &mut batch).unwrap();
    let (append, ()) = census("leased: append to 4 inside their blocks", || {
        lease.append_batch(&[1; ROWS], &mut batch).unwrap();
    });
    // Each sequence's lock is taken and released.
    append.assert_shared(&[(Place::Sequence, 2 * ROWS as u64)]);
    let (end, ()) = census("end a lease of 4", || drop(lease));
    // Each sequence's count of leases and its reference.
    end.assert_shared(&[(Place::Sequence, 2 * ROWS as u64)]);
    assert_eq!(end.shared(Place::Clock), 0, "a lease does not hold the clock");
}

#[test]
fn a_step_of_which_nothing_is_let_go_writes_four_times_however_many_rows_it_has() {
    let cache = warm_cache();
    let mut buffers = StepBuffers::default();
    let (open, step) = census("open a step", || cache.step(std::mem::take(&mut buffers)));
    let (end, _) = census("complete it", || buffers = step.complete().buffers);
    for census in [open, end] {
        census.assert_shared(&[(Place::Step, 1), (Place::Stripe, 1)]);
    }
    let prompt = cache.prompt(&[7; 20]);
    let admit = |_| (cache.admit_sequence(&prompt, &AdmitOptions::default()).unwrap().0, 1);
    let mut rows: Vec<_> = (0..256).map(admit).collect();
    let mut step = || {
        let mut step = cache.step(std::mem::take(&mut buffers));
        assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 256);
        for (row, (sequence, _)) in rows.iter_mut().enumerate() {
            step.accept(row, sequence, &[8]).unwrap();
        }
        buffers = step.complete().buffers;
    };
    // The first step publishes the prompts' block, and gives the batch its reference to the pool.
    step();
    let (census, ()) = census("a step of 256 rows inside their blocks", step);
    census.assert_shared(&[(Place::Step, 2), (Place::Stripe, 2)]);
}

#[test]
fn a_probe_writes_nothing_and_a_match_one_word_a_block() {
    const BLOCKS: usize = 512;
    let cache = PagedKvCache::new(1 << 16, BLOCK_SIZE, 1, 1);
    let prompt = cache.prompt(&vec![7; BLOCKS * BLOCK_SIZE + 1]);
    let options = AdmitOptions::default();
    let (mut first, _) = cache.admit_sequence(&prompt, &options).unwrap();
    let (published, outcome) = census("commit 512 blocks", || first.commit(prompt.num_tokens()));
    assert_eq!(outcome, Ok(BLOCKS));
    // Each block fills a slot of the index. Its word is exchanged, as other threads may count the block
    // by id.
    published.assert_shared(&[(Place::Index, BLOCKS as u64), (Place::BlockWord, BLOCKS as u64)]);
    let (probe, cached) = census("probe 512 blocks", || cache.prefix().probe(&prompt));
    assert_eq!(cached, BLOCKS * BLOCK_SIZE);
    probe.assert_shared(&[]);
    let name = "match 512 blocks that others match too";
    let (matched, second) = census(name, || cache.admit_sequence(&prompt, &options).unwrap());
    assert_eq!(matched.shared(Place::BlockWord), BLOCKS as u64, "{matched:?}");
    let claims = (BLOCKS as u64).div_ceil(BATCH) + 1;
    assert!(matched.shared(Place::HomeShard) <= claims, "{matched:?}");
    let (release, ()) = census("release 512 matched blocks", || drop(second));
    assert_eq!(release.shared(Place::BlockWord), BLOCKS as u64, "{release:?}");
}
