//! The transfers of a cache with three groups of layers beside one: admissions of a prompt of 4,096 tokens that all
//! threads share, and decode steps of 256 rows.

use paged_kv::census;
use paged_kv::{AdmitOptions, CachedSequence, LayerGroup, PagedKvCache, StepBuffers};

use crate::turns::{Counted, Turn, count, of_threads};

/// The most that three groups may cost of one.
const MOST: f64 = 3.0;
const THREADS: usize = 16;
const BLOCK_SIZE: usize = 16;
const PROMPT: u32 = 4_097;
const ROWS: usize = 256;
/// Tokens of a row before the first step: longer than the window.
const ROW_TOKENS: usize = 1_100;

fn cache(groups: usize, num_blocks: usize) -> PagedKvCache {
    census::begin();
    let window = LayerGroup::SlidingWindow { block_size: BLOCK_SIZE, window: 1_024 };
    let kinds = [LayerGroup::Full { block_size: BLOCK_SIZE }, window, window];
    let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(BLOCK_SIZE);
    let builder = builder.home_shards(THREADS);
    match groups {
        1 => builder.build().expect("the parameters make sense"),
        _ => builder.groups(&kinds[..groups]).build().expect("the parameters make sense"),
    }
}

/// Each thread admits the prompt and frees it, in turn.
fn admissions(groups: usize) -> Counted {
    let cache = cache(groups, 4_096);
    let prompt = cache.prompt(&(0..PROMPT).collect::<Vec<u32>>());
    let options = AdmitOptions::default();
    let (mut first, _) = cache.admit_sequence(&prompt, &options).expect("there is room");
    first.commit(PROMPT as usize).expect("the prompt has its slots");
    drop(first);
    let turns = of_threads(THREADS, |_| {
        let (cache, prompt, options) = (&cache, &prompt, &options);
        let mut live: Option<CachedSequence> = None;
        let turn: Turn<'_> = Box::new(move || match live.take() {
            Some(_) => 1,
            None => {
                let admitted = cache.admit_sequence(prompt, options).expect("there is room");
                live = Some(admitted.0);
                0
            }
        });
        turn
    });
    count(turns, 2, 8)
}

/// Each thread decodes a token for each of its own rows: growth and commit.
fn steps(groups: usize) -> Counted {
    let blocks = THREADS * ROWS * (ROW_TOKENS + 64).div_ceil(BLOCK_SIZE);
    let cache = cache(groups, groups * blocks);
    let turns = of_threads(THREADS, |thread| {
        let cache = &cache;
        let row = |row| {
            let prompt = cache.prompt(&[(thread * ROWS + row) as u32; ROW_TOKENS]);
            let admitted = cache.admit_sequence(&prompt, &AdmitOptions::default());
            (admitted.expect("there is room").0, 1)
        };
        let mut rows: Vec<(CachedSequence, usize)> = (0..ROWS).map(row).collect();
        let mut buffers = StepBuffers::default();
        let turn: Turn<'_> = Box::new(move || {
            let mut step = cache.step(std::mem::take(&mut buffers));
            assert_eq!(step.grow(&mut rows).expect("rows of the cache").grown_rows, ROWS);
            for (row, _) in &mut rows {
                step.commit(row, &[7]).expect("the token has its slot");
            }
            buffers = step.complete().buffers;
            1
        });
        turn
    });
    count(turns, 16, 32)
}

#[test]
fn three_groups_cost_at_most_three_times_one() {
    println!("\n| work at {THREADS} threads | one group | three groups | factor |");
    println!("|---|---|---|---|");
    for (name, work) in [
        ("admission of 4,096 tokens that hit", admissions as fn(usize) -> Counted),
        ("decode step of 256 rows", steps),
    ] {
        let [one, three] = [1, 3].map(|groups| work(groups).a_unit(|_| true));
        let factor = three / one;
        println!("| {name} | {one:.0} | {three:.0} | {factor:.2} |");
        assert!(factor <= MOST, "{name}: {one} and {three} transfers");
    }
}
