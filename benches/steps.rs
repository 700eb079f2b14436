//! What does a decode step of 256 rows cost? `cargo bench --bench steps`
//!
//! Grow each row by a token, write the block tables and the slots, settle, complete: by handles, by ids
//! with one call a row, and under one lock, which holds nothing for a device and names no contents. Each
//! beside the least there is to do, the tables and slots alone, in slices that lie milliseconds apart;
//! what is printed are medians of the ratios within a round. Then a step in which nothing is done.

mod baseline;

use std::hint::black_box;
use std::time::Instant;

use paged_kv::export::{Gaps, TableShape, block_tables, slot_mapping};
use paged_kv::{AdmitOptions, CachedSequence, PagedKvCache, SeqId, Sequence, StepBuffers, StepRow};

use baseline::one_lock_cache::OneLockCache;

const ROWS: usize = 256;
const BLOCK_SIZE: usize = 16;
const STRIDE: usize = 512;
const SHAPE: TableShape<i32> = TableShape { stride: STRIDE, pad: -1, gaps: Gaps::Show };
const NUM_BLOCKS: usize = ROWS * STRIDE;

/// Steps of a slice; then all rows are cut to where they began.
const STEPS: usize = 32;
const ROUNDS: usize = 301;

/// Tokens of a row at first: from one block to a row of the table, and a sixteenth of the rows in need of
/// a block at each step.
fn tokens(row: usize) -> usize {
    (1 + row * (STRIDE - 4) / ROWS) * BLOCK_SIZE - row % BLOCK_SIZE
}

/// The cells that a step writes.
struct Cells {
    table: Vec<i32>,
    slots: Vec<i64>,
}

impl Cells {
    fn new() -> Self {
        Self { table: vec![0; ROWS * STRIDE], slots: vec![0; ROWS] }
    }
}

/// A step, and the end of a slice.
trait Design {
    fn step(&mut self);
    fn cut(&mut self);
}

/// The tables and slots of rows that do not change.
struct Alone {
    cells: Cells,
    rows: Vec<Sequence>,
}

impl Design for Alone {
    fn step(&mut self) {
        let Cells { table, slots } = &mut self.cells;
        block_tables(&self.rows, table, SHAPE).expect("the table fits");
        let last = self.rows.iter().map(|row| (row, row.num_tokens() - 1..row.num_tokens()));
        slot_mapping(last, Gaps::Show, slots).expect("a slot a row");
    }

    fn cut(&mut self) {}
}

/// A scheduler that owns its requests.
struct Handles<'a, R> {
    cache: &'a PagedKvCache,
    cells: Cells,
    rows: Vec<(R, usize)>,
    buffers: StepBuffers,
    cut: fn(&mut R, usize),
}

impl<R: StepRow> Design for Handles<'_, R> {
    fn step(&mut self) {
        let Cells { table, slots } = &mut self.cells;
        let mut step = self.cache.step_in(&mut self.buffers);
        let grown = step.grow_batch(&mut self.rows).expect("rows of one cache");
        assert_eq!(grown.done, ROWS, "there is room for all");
        step.block_tables(&self.rows, table, SHAPE).expect("the table fits");
        step.slots(&self.rows, Gaps::Show, slots).expect("a slot a row");
        for (row, (sequence, _)) in self.rows.iter_mut().enumerate() {
            step.settle(row, sequence, &[7]).expect("the row grew by one");
        }
        step.complete_into(&mut self.buffers);
    }

    fn cut(&mut self) {
        for (row, (sequence, _)) in self.rows.iter_mut().enumerate() {
            (self.cut)(sequence, tokens(row));
        }
    }
}

/// One call a row for each part of a step. Nothing is held for a device.
struct Ids<'a> {
    cache: &'a PagedKvCache,
    cells: Cells,
    positions: Vec<usize>,
}

impl Design for Ids<'_> {
    fn step(&mut self) {
        let Cells { table, slots } = &mut self.cells;
        let rows = table.chunks_exact_mut(STRIDE).zip(slots);
        for ((row, position), (cells, slot)) in self.positions.iter_mut().enumerate().zip(rows) {
            let id = SeqId(row as u64);
            drop(self.cache.append(id, 1).expect("there is room for all"));
            self.cache.block_tables(&[id], cells, SHAPE).expect("the table fits");
            let last = *position..*position + 1;
            let slot = std::slice::from_mut(slot);
            self.cache.slot_mapping(&[(id, last)], Gaps::Show, slot).expect("one slot");
            self.cache.commit_tokens(id, &[7]).expect("there is a slot for it");
            *position += 1;
        }
    }

    fn cut(&mut self) {
        for (row, position) in self.positions.iter_mut().enumerate() {
            *position = tokens(row);
            self.cache.truncate(SeqId(row as u64), *position).expect("it was that long");
        }
    }
}

struct OneLock {
    cache: OneLockCache,
    cells: Cells,
    ids: Vec<u64>,
}

impl Design for OneLock {
    fn step(&mut self) {
        let Cells { table, slots } = &mut self.cells;
        self.cache.append_all(&self.ids).expect("there is room for all");
        self.cache.export(&self.ids, table, STRIDE, -1).expect("the table fits");
        self.cache.last_slots(&self.ids, slots).expect("a slot a row");
    }

    fn cut(&mut self) {
        for (row, &id) in self.ids.iter().enumerate() {
            self.cache.truncate(id, tokens(row)).expect("it was that long");
        }
    }
}

fn main() {
    let cache = || {
        let builder = PagedKvCache::builder().num_blocks(NUM_BLOCKS).block_size(BLOCK_SIZE);
        builder.build().expect("the parameters make sense")
    };
    let (named_cache, plain_cache, cache_by_id, still) = (cache(), cache(), cache(), cache());
    let plain = |cache: &PagedKvCache, row| cache.allocate_sequence(tokens(row)).expect("room");
    let named = |row: usize| {
        // Each of its own: publishing what another has published already is less work.
        let prompt: Vec<u32> = (0..tokens(row) as u32).map(|at| at + row as u32 * 10_000).collect();
        let prompt = named_cache.prompt(&prompt);
        named_cache.admit_sequence(&prompt, &AdmitOptions::default()).expect("room").0
    };
    for row in 0..ROWS {
        let prompt: Vec<u32> = (0..tokens(row) as u32).map(|at| at + row as u32 * 10_000).collect();
        cache_by_id.admit(SeqId(row as u64), &prompt).expect("room");
    }
    let one_lock = OneLockCache::new(NUM_BLOCKS, BLOCK_SIZE);
    let ids: Vec<u64> = (0..ROWS as u64).collect();
    ids.iter().for_each(|&id| _ = one_lock.allocate(id, tokens(id as usize)).expect("room"));
    let cells = Cells::new;
    let mut alone =
        Alone { cells: cells(), rows: (0..ROWS).map(|row| plain(&still, row)).collect() };
    let mut by_handle = Handles {
        cache: &plain_cache,
        cells: cells(),
        rows: (0..ROWS).map(|row| (plain(&plain_cache, row), 1)).collect(),
        buffers: StepBuffers::default(),
        cut: |row: &mut Sequence, len| row.truncate(len).expect("it was that long"),
    };
    let mut by_name = Handles {
        cache: &named_cache,
        cells: cells(),
        rows: (0..ROWS).map(|row| (named(row), 1)).collect(),
        buffers: StepBuffers::default(),
        cut: |row: &mut CachedSequence, len| row.truncate(len).expect("it was that long"),
    };
    let positions = (0..ROWS).map(tokens).collect();
    let mut by_id = Ids { cache: &cache_by_id, cells: cells(), positions };
    let mut lock = OneLock { cache: one_lock, cells: cells(), ids };
    let mut times: [Vec<f64>; 5] = Default::default();
    for round in 0..ROUNDS {
        let designs: [&mut dyn Design; 5] =
            [&mut alone, &mut by_handle, &mut by_name, &mut by_id, &mut lock];
        for (design, times) in designs.into_iter().zip(&mut times) {
            let time = slice(design);
            // The first warms up.
            if round > 0 {
                times.push(time);
            }
        }
    }
    let [alone, by_handle, by_name, by_id, lock] = &times;
    println!("a step of {ROWS} rows, one thread, medians of {} rounds", ROUNDS - 1);
    println!("  tables and slots alone   {:8.2} us", median(alone));
    println!("  by handles               {:8.2} us", median(by_handle));
    println!("  by handles, with names   {:8.2} us", median(by_name));
    println!("  by ids, one call a row   {:8.2} us", median(by_id));
    println!("  one lock, no fence       {:8.2} us", median(lock));
    println!("ratios, in brackets what was set out to be reached");
    println!(
        "  by handles / tables and slots alone             {:5.2} (1.5)",
        over(by_handle, alone)
    );
    println!(
        "  by handles, with names / tables and slots alone {:5.2} (1.5)",
        over(by_name, alone)
    );
    println!("  by ids / by handles, with names                 {:5.2} (3)", over(by_id, by_name));
    println!("  one lock / by handles                           {:5.2} (1)", over(lock, by_handle));
    println!("  one lock / by handles, with names               {:5.2} (1)", over(lock, by_name));
    println!("an empty step, opened and completed: {:.1} ns", empty_step(&named_cache));
}

/// Microseconds of a step, over a slice of them.
fn slice(design: &mut dyn Design) -> f64 {
    let start = Instant::now();
    (0..STEPS).for_each(|_| design.step());
    let time = start.elapsed();
    design.cut();
    time.as_secs_f64() * 1e6 / STEPS as f64
}

fn empty_step(cache: &PagedKvCache) -> f64 {
    const TIMES: usize = 100_000;
    let mut buffers = StepBuffers::default();
    let run = |_| {
        let start = Instant::now();
        for _ in 0..TIMES {
            let step = black_box(cache.step_in(&mut buffers));
            step.complete_into(&mut buffers);
        }
        start.elapsed().as_secs_f64() * 1e9 / TIMES as f64
    };
    median(&(0..15).map(run).collect::<Vec<_>>())
}

/// The median of the ratios within each round.
fn over(times: &[f64], least: &[f64]) -> f64 {
    median(&times.iter().zip(least).map(|(time, least)| time / least).collect::<Vec<_>>())
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
