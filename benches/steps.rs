//! The cost of a decode step of 256 rows: `cargo bench --bench steps`
//!
//! A step grows each row by a token, writes the block tables and the slots, accepts and completes. It runs
//! by these designs:
//!
//! - by handles,
//! - by ids, with one call per row and a lease for the exports,
//! - under one lock, with one call per row and with one call for all rows. It holds no blocks for a device
//!   and publishes no contents.
//!
//! Each is compared with the least work of a step, which is to write the tables and slots alone. Slices
//! alternate within milliseconds, and the ratios printed are medians of the ratios within a round. Tables
//! have three widths, and their rows range from one block to a full row. Then follows an empty step.

mod baseline;

use std::hint::black_box;
use std::time::Instant;

use paged_kv::export::{Gaps, TableShape, block_tables, slot_mapping};
use paged_kv::{AdmitOptions, CachedSequence, PagedKvCache, Row, SeqId, Sequence, StepBuffers};

use baseline::one_lock_cache::OneLockCache;

const ROWS: usize = 256;
const BLOCK_SIZE: usize = 16;
const STRIDES: [usize; 3] = [128, 512, 2048];

/// Steps of a slice. After it, all rows are truncated to their first length.
const STEPS: usize = 32;
const ROUNDS: usize = 201;

/// Returns the tokens of a row at first. Rows range from one block to a row of the table, and a sixteenth of
/// the rows need a block at each step.
fn tokens(stride: usize, row: usize) -> usize {
    (1 + row * (stride - 4) / ROWS) * BLOCK_SIZE - row % BLOCK_SIZE
}

/// Returns a different prompt for each row: publishing contents that are published already is less work.
fn prompt(stride: usize, row: usize) -> Vec<u32> {
    (0..tokens(stride, row) as u32).map(|at| at + row as u32 * 100_000).collect()
}

/// The cells that a step writes.
struct Cells {
    shape: TableShape<i32>,
    table: Vec<i32>,
    slots: Vec<i64>,
    /// The token accepted for each row. It differs in each slice, or contents would be published again.
    token: u32,
}

impl Cells {
    fn new(stride: usize) -> Self {
        let shape = TableShape { stride, pad: -1, gaps: Gaps::Show };
        Self { shape, table: vec![0; ROWS * stride], slots: vec![0; ROWS], token: 0 }
    }

    /// Returns the tokens of row `row` at first.
    fn tokens(&self, row: usize) -> usize {
        tokens(self.shape.stride, row)
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
        let Cells { shape, table, slots, .. } = &mut self.cells;
        block_tables(&self.rows, table, *shape).expect("the table fits");
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
    cut: fn(&PagedKvCache, &mut R, usize),
}

impl<R: Row> Design for Handles<'_, R> {
    fn step(&mut self) {
        let Cells { shape, table, slots, token } = &mut self.cells;
        let mut step = self.cache.step(std::mem::take(&mut self.buffers));
        let grown = step.grow(&mut self.rows).expect("rows of one cache");
        assert_eq!(grown.grown_rows, ROWS, "there is room for all");
        step.block_tables(&self.rows, table, *shape).expect("the table fits");
        step.slots(&self.rows, Gaps::Show, slots).expect("a slot a row");
        for (row, (sequence, _)) in self.rows.iter_mut().enumerate() {
            step.accept(row, sequence, &[*token]).expect("the row grew by one");
        }
        self.buffers = step.complete().buffers;
    }

    fn cut(&mut self) {
        self.cells.token += 1;
        for (row, (sequence, _)) in self.rows.iter_mut().enumerate() {
            (self.cut)(self.cache, sequence, self.cells.tokens(row));
        }
    }
}

/// Appends by id with one call per row, then one export of a lease. No blocks are held for a device.
struct Ids<'a> {
    cache: &'a PagedKvCache,
    cells: Cells,
    positions: Vec<usize>,
}

impl Design for Ids<'_> {
    fn step(&mut self) {
        let Cells { shape, table, slots, token } = &mut self.cells;
        let ids: Vec<SeqId> = (0..self.positions.len() as u64).map(SeqId).collect();
        for &id in &ids {
            drop(self.cache.append(id, 1).expect("there is room for all"));
        }
        let lease = self.cache.lease(&ids).expect("all are there");
        lease.block_tables(table, *shape).expect("the table fits");
        let last = vec![1; ids.len()];
        lease.last_slots(&last, Gaps::Show, slots).expect("a slot a row");
        drop(lease);
        for (&id, position) in ids.iter().zip(&mut self.positions) {
            self.cache.commit(id, &[*token]).expect("there is a slot for it");
            *position += 1;
        }
    }

    fn cut(&mut self) {
        self.cells.token += 1;
        for (row, position) in self.positions.iter_mut().enumerate() {
            *position = self.cells.tokens(row);
            self.cache.truncate(SeqId(row as u64), *position).expect("it was that long");
        }
    }
}

/// The cache under one lock. It holds no blocks for a device and publishes no contents.
struct OneLock {
    cache: OneLockCache,
    cells: Cells,
    ids: Vec<u64>,
    /// Whether one call appends to all rows and one finds their slots; otherwise there is one call per row.
    at_once: bool,
}

impl Design for OneLock {
    fn step(&mut self) {
        let Cells { shape, table, slots, .. } = &mut self.cells;
        if self.at_once {
            self.cache.append_all(&self.ids).expect("there is room for all");
        } else {
            for &id in &self.ids {
                self.cache.append(id, 1).expect("there is room for all");
            }
        }
        self.cache.export(&self.ids, table, shape.stride, -1).expect("the table fits");
        if self.at_once {
            self.cache.last_slots(&self.ids, slots).expect("a slot a row");
        } else {
            for (id, slot) in self.ids.chunks(1).zip(slots.chunks_mut(1)) {
                self.cache.last_slots(id, slot).expect("one slot");
            }
        }
    }

    fn cut(&mut self) {
        for (row, &id) in self.ids.iter().enumerate() {
            self.cache.truncate(id, self.cells.tokens(row)).expect("it was that long");
        }
    }
}

fn main() {
    println!("a step of {ROWS} rows, one thread, medians of {} rounds, us", ROUNDS - 1);
    println!("and ratios, in brackets what was set out to be reached");
    STRIDES.into_iter().for_each(report);
    println!("an empty step, opened and completed: {:.1} ns", empty_step());
}

fn cache(num_blocks: usize) -> PagedKvCache {
    let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(BLOCK_SIZE);
    builder.build().expect("the parameters make sense")
}

fn report(stride: usize) {
    let num_blocks = ROWS * stride;
    let [named_cache, plain_cache, cache_by_id, still] = [(); 4].map(|()| cache(num_blocks));
    let cells = || Cells::new(stride);
    let plain = |cache: &PagedKvCache, row| {
        cache.allocate_sequence(tokens(stride, row)).expect("there is room")
    };
    let named = |row: usize| {
        let prompt = named_cache.prompt(&prompt(stride, row));
        let admitted = named_cache.admit_sequence(&prompt, &AdmitOptions::default());
        let (mut sequence, _) = admitted.expect("there is room");
        sequence.commit(prompt.num_tokens()).expect("it has that many");
        sequence
    };
    for row in 0..ROWS {
        let (id, prompt) = (SeqId(row as u64), prompt(stride, row));
        cache_by_id.admit(id, &prompt).expect("there is room");
        cache_by_id.commit(id, prompt.len()).expect("it has that many");
    }
    let one_lock = |at_once| {
        let cache = OneLockCache::new(num_blocks, BLOCK_SIZE);
        let ids: Vec<u64> = (0..ROWS as u64).collect();
        for (row, &id) in ids.iter().enumerate() {
            cache.allocate(id, tokens(stride, row)).expect("there is room");
        }
        OneLock { cache, cells: cells(), ids, at_once }
    };
    let mut alone =
        Alone { cells: cells(), rows: (0..ROWS).map(|row| plain(&still, row)).collect() };
    let mut by_handle = Handles {
        cache: &plain_cache,
        cells: cells(),
        rows: (0..ROWS).map(|row| (plain(&plain_cache, row), 1)).collect(),
        buffers: StepBuffers::default(),
        cut: |_, row: &mut Sequence, len| row.truncate(len).expect("it was that long"),
    };
    let mut by_name = Handles {
        cache: &named_cache,
        cells: cells(),
        rows: (0..ROWS).map(|row| (named(row), 1)).collect(),
        buffers: StepBuffers::default(),
        cut: |_, row: &mut CachedSequence, len| row.truncate(len).expect("it was that long"),
    };
    let positions = (0..ROWS).map(|row| tokens(stride, row)).collect();
    let mut by_id = Ids { cache: &cache_by_id, cells: cells(), positions };
    let (mut lock, mut lock_at_once) = (one_lock(false), one_lock(true));
    let mut times: [Vec<f64>; 6] = Default::default();
    for round in 0..ROUNDS {
        let designs: [&mut dyn Design; 6] =
            [&mut alone, &mut by_handle, &mut by_name, &mut by_id, &mut lock, &mut lock_at_once];
        for (design, times) in designs.into_iter().zip(&mut times) {
            let time = slice(design);
            // The first round warms up.
            if round > 0 {
                times.push(time);
            }
        }
    }
    let [alone, by_handle, by_name, by_id, lock, lock_at_once] = &times;
    println!("tables of {ROWS} x {stride}");
    println!("  tables and slots alone          {:8.2}", median(alone));
    println!("  by ids, a call a row            {:8.2}", median(by_id));
    println!("  one lock, a call a row          {:8.2}", median(lock));
    println!("  one lock, a call for all        {:8.2}", median(lock_at_once));
    for (name, ours) in [("by handles            ", by_handle), ("by handles, with names", by_name)]
    {
        println!(
            "  {name}          {:8.2}   / alone {:.2} (1.5)   ids / it {:.2} (3)   lock / it {:.2} (1), \
             at once {:.2}",
            median(ours),
            over(ours, alone),
            over(by_id, ours),
            over(lock, ours),
            over(lock_at_once, ours),
        );
    }
}

/// Returns the microseconds of a step, over a slice of steps.
fn slice(design: &mut dyn Design) -> f64 {
    let start = Instant::now();
    (0..STEPS).for_each(|_| design.step());
    let time = start.elapsed();
    design.cut();
    time.as_secs_f64() * 1e6 / STEPS as f64
}

fn empty_step() -> f64 {
    const TIMES: usize = 100_000;
    let (cache, mut buffers) = (cache(1024), StepBuffers::default());
    let run = |_| {
        let start = Instant::now();
        for _ in 0..TIMES {
            let step = black_box(cache.step(std::mem::take(&mut buffers)));
            buffers = step.complete().buffers;
        }
        start.elapsed().as_secs_f64() * 1e9 / TIMES as f64
    };
    median(&(0..15).map(run).collect::<Vec<_>>())
}

/// Returns the median of the ratios within each round.
fn over(times: &[f64], least: &[f64]) -> f64 {
    median(&times.iter().zip(least).map(|(time, least)| time / least).collect::<Vec<_>>())
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
