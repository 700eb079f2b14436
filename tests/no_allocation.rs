//! Tests of memory use: a warmed-up batch makes no call to the memory allocator, and a cache without an
//! event sink keeps no tokens.

use allocation_counter::measure;
use paged_kv::export::{Gaps, TableShape};
use paged_kv::{
    AdmitOptions, AppendBatch, CachedSequence, EventSink, KvEvent, LeaseRow, PagedKvCache,
    ReclaimPolicy, Row, SeqId, Sequence, StepBuffers, append_batch,
};

const ROWS: usize = 16;
const STEPS: usize = 200;

fn cache(home_shards: usize) -> PagedKvCache {
    let builder = PagedKvCache::builder().num_blocks(4096).block_size(4);
    builder.home_shards(home_shards).build().unwrap()
}

/// Grows all rows in a step.
fn grow<R: Row>(cache: &PagedKvCache, rows: &mut [(R, usize)], buffers: &mut StepBuffers) {
    let mut step = cache.step(std::mem::take(buffers));
    assert_eq!(step.grow(rows).unwrap().grown_rows, ROWS);
    *buffers = step.complete().buffers;
}

#[test]
fn a_leased_batch_grows_and_is_exported_without_allocating() {
    for home_shards in [1, 4] {
        let cache = cache(home_shards);
        let ids: Vec<SeqId> = (0..ROWS as u64).map(SeqId).collect();
        ids.iter().for_each(|&id| cache.allocate(id, 5).unwrap());
        let lease = cache.lease(&ids).unwrap();
        let mut rows: Vec<(LeaseRow, usize)> = lease.rows().map(|row| (row, 1)).collect();
        let (mut batch, mut buffers) = (AppendBatch::default(), StepBuffers::default());
        let one_each = [1; ROWS];
        let mut table = [0_i32; ROWS * 64];
        let mut slots = [0_i64; ROWS];
        let shape = TableShape { stride: 64, pad: -1, gaps: Gaps::Show };
        let mut steps = |rows: &mut [(LeaseRow, usize)]| {
            for step in 0..STEPS {
                match step % 3 {
                    0 => lease.append_batch(&one_each, &mut batch).unwrap(),
                    1 => append_batch(rows, &mut batch).unwrap(),
                    _ => grow(&cache, rows, &mut buffers),
                }
                lease.block_tables(&mut table, shape).unwrap();
                lease.last_slots(&one_each, Gaps::Show, &mut slots).unwrap();
            }
        };
        steps(&mut rows);
        ids.iter().for_each(|&id| cache.truncate(id, 5).unwrap());
        let info = measure(|| steps(&mut rows));
        assert_eq!(info.count_total, 0, "{home_shards} home shards: {info:?}");
        drop(lease);
        assert_eq!(cache.used_block_count(), ROWS * (5 + STEPS).div_ceil(4));
        cache.validate().unwrap();
    }
}

#[test]
fn a_batch_of_handles_grows_without_allocating() {
    for home_shards in [1, 4] {
        let cache = cache(home_shards);
        let mut rows: Vec<(Sequence, usize)> =
            (0..ROWS).map(|_| (cache.allocate_sequence(5).unwrap(), 1)).collect();
        let (mut batch, mut buffers) = (AppendBatch::default(), StepBuffers::default());
        let mut steps = |rows: &mut [(Sequence, usize)]| {
            for step in 0..STEPS {
                if step % 2 == 0 {
                    append_batch(rows, &mut batch).unwrap();
                } else {
                    grow(&cache, rows, &mut buffers);
                }
            }
        };
        steps(&mut rows);
        rows.iter_mut().for_each(|row| row.0.truncate(5).unwrap());
        let info = measure(|| steps(&mut rows));
        assert_eq!(info.count_total, 0, "{home_shards} home shards: {info:?}");
        drop(rows);
        assert_eq!(cache.used_block_count(), 0);
        cache.validate().unwrap();
    }
}

#[test]
fn a_decode_step_of_256_rows_allocates_nothing() {
    const ROWS: usize = 256;
    let builder = PagedKvCache::builder().num_blocks(1 << 15).block_size(4);
    let cache = builder.home_shards(4).build().unwrap();
    let admitted = |row: usize| {
        let prompt = cache.prompt(&[row as u32; 6]);
        cache.admit_sequence(&prompt, &AdmitOptions::default()).unwrap().0
    };
    let mut rows: Vec<(CachedSequence, usize)> = (0..ROWS).map(|row| (admitted(row), 3)).collect();
    let (mut table, mut slots) = (vec![0_i32; ROWS * 64], vec![0_i64; 3 * ROWS]);
    let shape = TableShape { stride: 64, pad: -1, gaps: Gaps::Show };
    let mut buffers = [StepBuffers::default(), StepBuffers::default()];
    let mut steps = |rows: &mut [(CachedSequence, usize)], num_steps: usize| {
        for number in 0..num_steps {
            let buffers = &mut buffers[number % 2];
            let mut step = cache.step(std::mem::take(buffers));
            assert_eq!(step.grow(rows).unwrap().grown_rows, ROWS);
            step.block_tables(rows, &mut table, shape).unwrap();
            assert_eq!(step.slots(rows, Gaps::Show, &mut slots).unwrap(), 3 * ROWS);
            for (row, (sequence, _)) in rows.iter_mut().enumerate() {
                // At first all rows fill their blocks in the same step: no later step publishes more.
                let accepted = if number < 8 { 3 } else { 1 + (row + number) % 3 };
                let tokens = [row as u32, number as u32, 7];
                step.accept(row, sequence, &tokens[..accepted]).unwrap();
            }
            *buffers = step.complete().buffers;
        }
    };
    steps(&mut rows, 80);
    rows.iter_mut().for_each(|row| row.0.truncate(6).unwrap());
    steps(&mut rows, 3);
    let info = measure(|| steps(&mut rows, 75));
    assert_eq!(info.count_total, 0, "{info:?}");
    assert!(rows.iter().all(|row| row.0.num_tokens() > 100), "they grew");
    drop(rows);
    assert_eq!(cache.used_block_count(), 0);
    cache.validate().unwrap();
}

#[test]
fn a_single_append_within_a_grown_table_allocates_nothing() {
    let cache = cache(1);
    cache.allocate(SeqId(1), 1).unwrap();
    cache.append(SeqId(1), 4 * 100).map(drop).unwrap();
    cache.truncate(SeqId(1), 1).unwrap();
    let info = measure(|| {
        for _ in 0..400 {
            drop(cache.append(SeqId(1), 1).unwrap());
        }
        cache.touch(SeqId(1)).unwrap();
    });
    assert_eq!(info.count_total, 0, "{info:?}");
    cache.validate().unwrap();
}

#[test]
fn the_counter_counts() {
    let info = measure(|| drop(std::hint::black_box(vec![1_u8; 10])));
    assert_eq!(info.count_total, 1);
}

/// Returns the bytes per block of everything that a cache consists of.
fn bytes_a_block(builder: paged_kv::PagedKvCacheBuilder) -> f64 {
    const BLOCKS: usize = 1 << 20;
    let mut cache = None;
    let info = measure(|| cache = Some(builder.num_blocks(BLOCKS).build().unwrap()));
    info.bytes_current as f64 / BLOCKS as f64
}

#[test]
fn a_block_takes_96_bytes_with_prefix_reuse_and_32_without() {
    let with = bytes_a_block(PagedKvCache::builder());
    let two_queue = bytes_a_block(PagedKvCache::builder().reclaim_policy(ReclaimPolicy::TwoQueue));
    let learning = bytes_a_block(PagedKvCache::builder().reclaim_policy(ReclaimPolicy::HitDensity));
    let levels = bytes_a_block(PagedKvCache::builder().retention_levels(true)) - with;
    let without = bytes_a_block(PagedKvCache::builder().prefix_reuse(false));
    println!(
        "{with:.1} bytes a block with prefix reuse, {two_queue:.1} of two queues, {learning:.1} of a learned order, \
         {without:.1} without; {levels:.1} more with levels"
    );
    assert!(learning <= 104.0, "{learning:.4}");
    // Some 30 KiB do not grow with the pool.
    assert!(two_queue <= 96.0 + 32.0 / 1024.0, "{two_queue:.4}");
    assert!(with <= 96.0, "{with:.1}");
    assert!(levels <= 40.0, "{levels:.1}");
    assert!(without <= 32.0, "{without:.1}");
    assert!(with >= 80.0 && without >= 12.0, "the builder refuses what cannot have so much");
}

/// The tokens of every block, and its parent and children, are kept only with an event sink.
#[test]
fn tokens_are_kept_only_with_an_event_sink() {
    struct Deaf;

    impl EventSink for Deaf {
        fn on_event(&self, _: &KvEvent<'_>) {}
    }

    const BLOCK_SIZE: usize = 1024;
    let held = |listens: bool| {
        let mut kept = None;
        let info = measure(|| {
            let builder = PagedKvCache::builder().num_blocks(64).block_size(BLOCK_SIZE);
            let builder =
                if listens { builder.event_sink(std::sync::Arc::new(Deaf)) } else { builder };
            let cache = builder.build().unwrap();
            let tokens: Vec<u32> = (0..64 * BLOCK_SIZE as u32).collect();
            for id in (0..10).map(SeqId) {
                cache.admit(id, &tokens).unwrap();
                cache.commit(id, tokens.len()).unwrap();
                cache.free(id).unwrap();
            }
            kept = Some(cache);
        });
        drop(kept);
        info.bytes_current
    };
    let (quiet, heard) = (held(false), held(true));
    let of_tokens = (64 * BLOCK_SIZE * size_of::<u32>()) as i64;
    assert!(quiet < of_tokens, "{quiet} bytes are held where nobody listens");
    assert!(heard >= quiet + of_tokens, "{heard} bytes are held where somebody does");
}
