//! The instructions of each operation: `cargo bench --features events --bench instructions [-- --write]`.
//!
//! Valgrind counts them, so that a busy machine gives the same figures. The bench runs itself under
//! callgrind, each operation `TIMES` and twice `TIMES` times after the same set-up. The difference divided
//! by `TIMES` is one operation with its share of the loop. Other threads, which publish events, are counted
//! separately. `--write` writes the tables to `benches/INSTRUCTIONS.md`.

#[path = "rig/phases.rs"]
mod phases;
#[path = "rig/retention.rs"]
mod retention;

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::ops::Sub;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;

#[cfg(feature = "events")]
use paged_kv::event::{EventPublisher, PublisherOptions};
use paged_kv::export::{Gaps, TableShape, block_tables};
use paged_kv::{
    AdmitOptions, BlockId, BlockPool, EventSink, HashAlgorithm, KvEvent, PagedKvCache, SeqId,
    Sequence, Watermark,
};

use phases::Contents;
use retention::Feature;

/// A multiple of the blocks that move to and from the depot in one batch. So the second `TIMES` operations
/// move as many batches as the first.
const TIMES: u64 = 1024;

/// A block size that no loop here fills.
const ENDLESS: usize = 1 << 20;

/// Makes the C library copy long ranges by vector instructions, as it copies short ones. Above a few
/// kilobytes it would use `rep movsb`, which callgrind, unlike the processor, counts as one instruction per
/// byte.
const COPY_BY_VECTORS: &str = "glibc.cpu.x86_rep_movsb_threshold=1073741824";

/// The most instructions of a fork of 8,192 blocks, as a multiple of a fork of 64 blocks.
const GROWTH_MAX: f64 = 40.0;

type Operation = fn(times: u64);

const OPERATIONS: &[(&str, Operation)] = &[
    ("an empty loop", |times| repeat(times, || ())),
    ("allocate and release 1", |times| allocate_and_release(times, 1)),
    ("allocate and release 8", |times| allocate_and_release(times, 8)),
    ("allocate and release 64", |times| allocate_and_release(times, 64)),
    ("allocate and release 512", |times| allocate_and_release(times, 512)),
    ("grow a table by 1 and truncate", |times| grow_and_truncate(times, 1)),
    ("grow a table by 64 and truncate", |times| grow_and_truncate(times, 64)),
    ("the memory of 64 ids, malloc and free", memory_of_ids),
    ("append inside a block, by handle", append_by_handle),
    ("append inside a block, by id", append_by_id),
    ("append into a new block, by handle", |times| append_blocks(times, 1)),
    ("append 2 new blocks and truncate them, by handle", append_and_truncate),
    ("fork and release 64", |times| fork_and_release(times, 64)),
    ("fork and release 512", |times| fork_and_release(times, 512)),
    ("fork and release 8192", |times| fork_and_release(times, 8192)),
    ("export a block table row of 512, by handle", |times| export(times, 512)),
    ("admit, publish and release 32 new blocks", |times| admit_new(times, Listener::Nobody)),
    ("the same, with a listener that ignores it", |times| admit_new(times, Listener::Deaf)),
    #[cfg(feature = "events")]
    ("the same, with a publisher", |times| admit_new(times, Listener::Publisher)),
    ("admit and release 32 blocks that hit", |times| admit_hits(times, Listener::Nobody)),
    ("the same, with a listener that ignores it", |times| admit_hits(times, Listener::Deaf)),
    #[cfg(feature = "events")]
    ("the same, with a publisher", |times| admit_hits(times, Listener::Publisher)),
    ("pin 32 cached blocks and end the pin", pin_and_end),
    ("admit and release 4,096 tokens that hit", |times| groups::admit(times, 1)),
    ("the same, with 3 groups", |times| groups::admit(times, 3)),
    ("a decode step of 256 rows", |times| groups::step(times, 1)),
    ("the same, with 3 groups", |times| groups::step(times, 3)),
];

/// The event sink of a cache.
#[derive(Clone, Copy)]
enum Listener {
    Nobody,
    Deaf,
    /// Batches are made, numbered, encoded and kept. There is no subscriber.
    #[cfg(feature = "events")]
    Publisher,
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [work, times] = args.as_slice() {
        perform(work, times.parse().expect("a number of times"));
        return ExitCode::SUCCESS;
    }
    let counts: Option<Vec<Counts>> = (0..OPERATIONS.len()).map(of_one).collect();
    let rows: Option<Vec<String>> =
        Feature::ALL.iter().map(|&feature| phases_row(feature)).collect();
    let (Some(counts), Some(rows)) = (counts, rows) else {
        eprintln!("this needs valgrind, whose callgrind counts the instructions");
        return ExitCode::FAILURE;
    };
    let (table, phases_table) = (table(&counts), phases::HEAD.to_owned() + &rows.concat());
    print!("{table}\n{phases_table}");
    if args.iter().any(|arg| arg == "--write") {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/INSTRUCTIONS.md");
        fs::write(path, document(&table, &phases_table))
            .expect("the folder of the benches can be written");
    }
    let growth =
        of_name("fork and release 8192", &counts) / of_name("fork and release 64", &counts);
    println!("\nfork of 8192 blocks: {growth:.1} forks of 64 (at most {GROWTH_MAX})");
    if growth <= GROWTH_MAX { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Performs the work that [`callgrind`] was asked for.
fn perform(work: &str, times: u64) {
    let at = |number: &str| number.parse::<usize>().expect("a number of the table");
    match work.split_once(' ') {
        Some(("hit", feature)) => phases::serve(Feature::ALL[at(feature)], Contents::Hit, times),
        Some(("new", feature)) => phases::serve(Feature::ALL[at(feature)], Contents::New, times),
        _ => OPERATIONS[at(work)].1(times),
    }
}

/// Instructions of the thread that performs the operations, and of all other threads together.
#[derive(Clone, Copy, Default)]
struct Counts {
    own: f64,
    others: f64,
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, less: Self) -> Self {
        Self { own: self.own - less.own, others: self.others - less.others }
    }
}

/// Returns the instructions of one operation, or `None` without valgrind.
fn of_one(operation: usize) -> Option<Counts> {
    let counted = |times| {
        let files = callgrind(&operation.to_string(), times)?;
        let mut threads = files.iter().map(|file| total(file));
        Some(Counts { own: threads.next()?, others: threads.sum() })
    };
    let [once, twice] = [TIMES, 2 * TIMES].map(counted);
    let Counts { own, others } = twice? - once?;
    Some(Counts { own: own / TIMES as f64, others: others / TIMES as f64 })
}

/// Returns the row of a feature in the table of phases, or `None` without valgrind.
fn phases_row(feature: Feature) -> Option<String> {
    let number = Feature::ALL.iter().position(|one| *one == feature)?;
    let mut row = format!("| {} |", feature.name());
    for (contents, phases) in [("hit", &phases::HIT_PHASES[..]), ("new", &phases::NEW_PHASES[..])] {
        let counted = |times| {
            let files = callgrind(&format!("{contents} {number}"), times)?;
            let noted = noted(files.first()?);
            Some(phases.iter().map(|phase| phases::inclusive(&noted, phase)).collect::<Vec<f64>>())
        };
        let [once, twice] = [TIMES, 2 * TIMES].map(counted);
        for (once, twice) in once?.into_iter().zip(twice?) {
            write!(row, " {:.0} |", (twice - once) / TIMES as f64).expect("a string takes all");
        }
    }
    Some(row + "\n")
}

/// Counts the instructions of this whole program when it performs a work `times` times. Returns the file of each thread,
/// or `None` without valgrind.
fn callgrind(work: &str, times: u64) -> Option<Vec<PathBuf>> {
    let program = env::current_exe().expect("the program knows where it is");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("instructions");
    // Remove the files of an earlier run.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder for what is counted");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--separate-threads=yes", "--compress-strings=no"])
        .arg(format!("--callgrind-out-file={}", folder.join("counts").display()))
        .arg(program)
        .args([work.to_owned(), times.to_string()])
        // The environment is on the stack: its size would move the stack.
        .env_clear()
        .env("PATH", env::var_os("PATH")?)
        .env("GLIBC_TUNABLES", COPY_BY_VECTORS)
        .output()
        .ok()?;
    let report = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{work}: {report}");
    let files = (1..).map(|thread| folder.join(format!("counts-{thread:02}")));
    Some(files.take_while(|file| file.exists()).collect())
}

fn noted(file: &Path) -> String {
    fs::read_to_string(file).expect("callgrind notes each thread in a file")
}

/// Returns the instructions of a thread, from callgrind's file.
fn total(file: &Path) -> f64 {
    let noted = noted(file);
    let total = noted.lines().find_map(|line| line.strip_prefix("totals: "));
    total.and_then(|total| total.trim().parse().ok()).expect("how many instructions it saw")
}

fn of_name(name: &str, counts: &[Counts]) -> f64 {
    let index = OPERATIONS.iter().position(|(of, _)| *of == name);
    counts[index.expect("an operation of the table")].own
}

fn table(counts: &[Counts]) -> String {
    let mut table = "| operation | instructions | of other threads |\n|---|---:|---:|\n".to_owned();
    for ((name, _), Counts { own, others }) in OPERATIONS.iter().zip(counts) {
        // Fewer instructions come from a timer that fired once more or less, not from the operation.
        let others = if others.abs() < 50.0 { String::new() } else { format!("{others:.0}") };
        writeln!(table, "| {name} | {own:.1} | {others} |").expect("a string takes all");
    }
    table
}

fn document(table: &str, phases_table: &str) -> String {
    format!(
        "# Instructions an operation\n\n\
         Written by `cargo bench --features events --bench instructions -- --write`: x86-64\n\
         instructions as valgrind's callgrind counts them, on one thread, with a warm home shard. The difference\n\
         between {TIMES} and twice as many operations, divided: set-up and program start cancel.\n\
         What other threads do for it is counted by itself: a publisher's thread writes the events.\n\
         What the loop and the memory allocator take is included. Of one machine, compiler and C\n\
         library; on those, the same each time.\n\n\
         Copies are made by vector instructions (`{COPY_BY_VECTORS}`),\n\
         because callgrind counts the other way, `rep movsb`, as an instruction a byte: fork and\n\
         release of 8192 would be 33,441 then, 50 times that of 64 instead of 6.\n\n{table}\n\
         ## Retention\n\n\
         The phases of a request of 32 blocks and a token, in a cache of 4,096 blocks of 16 tokens that is full of\n\
         idle blocks: of prompts that hit in 32 blocks, and of new ones, each of whose blocks reclaims one. Without\n\
         the hash functions. Prices of `HitDensity` are learned once in a quarter of the pool's blocks asked for: its\n\
         part in an admission is that of 32 in 1,024 blocks here, and less in larger pools.\n\n{phases_table}"
    )
}

#[inline(always)]
fn repeat<R>(times: u64, mut operation: impl FnMut() -> R) {
    for _ in 0..times {
        black_box(operation());
    }
}

/// Creates a pool of many home shards, of which this thread's shard is filled.
fn warm_pool() -> BlockPool {
    let pool = BlockPool::new(1 << 15);
    for n in [512, 64, 8, 1] {
        drop(pool.allocate(n).unwrap());
    }
    pool
}

/// Creates a cache that is full of idle blocks, so that each new block reclaims one.
fn cache_of_contents(listener: Listener) -> PagedKvCache {
    struct Deaf;

    impl EventSink for Deaf {
        fn on_event(&self, event: &KvEvent<'_>) {
            black_box(event);
        }
    }

    let builder = PagedKvCache::builder().num_blocks(1 << 12).block_size(16);
    let builder = builder.hash_algorithm(HashAlgorithm::Xxh3 { seed: 1 });
    let builder = match listener {
        Listener::Nobody => builder,
        Listener::Deaf => builder.event_sink(Arc::new(Deaf)),
        #[cfg(feature = "events")]
        Listener::Publisher => {
            let options = PublisherOptions::default().endpoint("tcp://127.0.0.1:0");
            let publisher = EventPublisher::bind(&options).expect("a port is free");
            builder.event_sink(Arc::new(publisher))
        }
    };
    let cache = builder.build().unwrap();
    (0..1 << 8).for_each(|prompt| admit(&cache, 1_000_000 + prompt));
    cache
}

/// Admits, computes and drops a prompt of 32 blocks and a token.
fn admit(cache: &PagedKvCache, prompt: u32) {
    let tokens: [u32; 32 * 16 + 1] = std::array::from_fn(|at| prompt << 10 | at as u32);
    let prompt = cache.prompt(black_box(&tokens));
    let admitted = cache.admit_sequence(&prompt, &AdmitOptions::default());
    admitted.unwrap().0.commit(tokens.len()).unwrap();
}

fn admit_new(times: u64, listener: Listener) {
    let cache = cache_of_contents(listener);
    let mut prompt = 0;
    repeat(times, || {
        prompt += 1;
        admit(&cache, prompt);
    });
}

fn admit_hits(times: u64, listener: Listener) {
    let cache = cache_of_contents(listener);
    repeat(times, || admit(&cache, 1));
}

fn pin_and_end(times: u64) {
    let builder = PagedKvCache::builder().num_blocks(1 << 12).block_size(16);
    let cache = builder.pin_budget(Watermark::Share(1.0)).build().unwrap();
    let prompt = cache.prompt(&std::array::from_fn::<u32, { 32 * 16 }, _>(|at| at as u32));
    let (mut sequence, _) = cache.admit_sequence(&prompt, &AdmitOptions::default()).unwrap();
    sequence.commit(prompt.num_tokens()).unwrap();
    drop(sequence);
    repeat(times, || drop(retention::pin(&cache, black_box(&prompt))));
}

/// Allocates a sequence of `blocks` full blocks and a partly filled one.
fn sequence(pool: &BlockPool, blocks: usize) -> Sequence {
    pool.allocate_sequence(blocks * 16 + 1, 16).unwrap()
}

fn allocate_and_release(times: u64, n: usize) {
    let pool = warm_pool();
    repeat(times, || pool.allocate(black_box(n)).unwrap());
}

/// Grows and truncates a table, without the memory of a new table.
fn grow_and_truncate(times: u64, n: usize) {
    let pool = warm_pool();
    let mut table = pool.allocate(n).unwrap();
    repeat(times, || {
        table.truncate(0).unwrap();
        table.grow(black_box(n)).unwrap()
    });
}

/// Allocates and frees the memory of 64 ids, which `allocate` needs in addition to the blocks.
fn memory_of_ids(times: u64) {
    repeat(times, || Vec::<BlockId>::with_capacity(black_box(64)));
}

fn append_by_handle(times: u64) {
    let pool = warm_pool();
    let mut sequence = pool.allocate_sequence(1, ENDLESS).unwrap();
    repeat(times, || sequence.append(black_box(1)).unwrap());
}

fn append_by_id(times: u64) {
    let cache = PagedKvCache::builder()
        .num_blocks(1 << 10)
        .block_size(ENDLESS)
        .prefix_reuse(false)
        .build()
        .unwrap();
    cache.allocate(SeqId(1), 1).unwrap();
    repeat(times, || cache.append(black_box(SeqId(1)), black_box(1)).unwrap());
}

fn append_blocks(times: u64, block_size: usize) {
    let pool = warm_pool();
    // The vector of its ids has the memory that all appends together need.
    let mut sequence = pool.allocate_sequence(4 * TIMES as usize, block_size).unwrap();
    sequence.truncate(0).unwrap();
    repeat(times, || sequence.append(black_box(1)).unwrap());
}

fn append_and_truncate(times: u64) {
    let pool = warm_pool();
    let mut sequence = sequence(&pool, 64);
    let end = sequence.num_tokens();
    repeat(times, || {
        drop(sequence.append(black_box(32)).unwrap());
        sequence.truncate(black_box(end)).unwrap();
    });
}

fn fork_and_release(times: u64, blocks: usize) {
    let pool = warm_pool();
    let mut sequence = sequence(&pool, blocks);
    repeat(times, || sequence.fork().unwrap());
}

fn export(times: u64, blocks: usize) {
    let pool = warm_pool();
    let sequence = pool.allocate_sequence(blocks * 16, 16).unwrap();
    let mut row = vec![0_i32; blocks];
    let shape = TableShape { stride: blocks, pad: -1, gaps: Gaps::Show };
    repeat(times, || block_tables([&sequence], black_box(&mut row), shape).unwrap());
}

/// The cost of groups of layers: full attention alone, and with two windows of 1,024 tokens.
mod groups {
    use paged_kv::{AdmitOptions, CachedSequence, LayerGroup, PagedKvCache, StepBuffers};

    use super::repeat;

    fn cache(groups: usize) -> PagedKvCache {
        let window = LayerGroup::SlidingWindow { block_size: 16, window: 1_024 };
        let kinds = [LayerGroup::Full { block_size: 16 }, window, window];
        let builder = PagedKvCache::builder().num_blocks(1 << 17).home_shards(1);
        match groups {
            1 => builder.build().unwrap(),
            _ => builder.groups(&kinds[..groups]).build().unwrap(),
        }
    }

    /// Admits a prompt of which all but the last token hits.
    pub fn admit(times: u64, groups: usize) {
        let (cache, options) = (cache(groups), AdmitOptions::default());
        let tokens: Vec<u32> = (0..4_097).collect();
        let prompt = cache.prompt(&tokens);
        let (mut first, _) = cache.admit_sequence(&prompt, &options).unwrap();
        first.commit(4_097).unwrap();
        drop(first);
        repeat(times, || cache.admit_sequence(&prompt, &options).unwrap());
    }

    /// One token for each of 256 sequences: growth, table and slots of each group, commit.
    pub fn step(times: u64, groups: usize) {
        use paged_kv::GroupId;
        use paged_kv::export::{Gaps, TableShape};

        let cache = cache(groups);
        let mut rows: Vec<(CachedSequence, usize)> = (0..256)
            .map(|row| {
                let prompt = cache.prompt(&[row; 600]);
                (cache.admit_sequence(&prompt, &AdmitOptions::default()).unwrap().0, 1)
            })
            .collect();
        let (mut tables, mut slots) = (vec![0_i32; 256 * 192], [0_i64; 256]);
        let mut buffers = StepBuffers::default();
        repeat(times, || {
            let mut step = cache.step(std::mem::take(&mut buffers));
            assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 256);
            let shape = TableShape { stride: 192, pad: -1, gaps: Gaps::Show };
            for group in (0..groups as u8).map(GroupId) {
                step.block_tables(&rows, &mut tables, shape.group(group)).unwrap();
                step.slots(&rows, Gaps::Show.of_group(group), &mut slots).unwrap();
            }
            for (row, _) in &mut rows {
                step.commit(row, &[7]).unwrap();
            }
            buffers = step.complete().buffers;
        });
    }
}
