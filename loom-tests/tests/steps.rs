//! Models of steps: a block stays in place until the steps that read it have ended, and is then given
//! back.

mod common;

use std::sync::Arc;

use common::{Kv, Told, explore, race, spawn_at};
use paged_kv::loom_api::OpenStep;
use paged_kv::{AdmitOptions, BlockHash, BlockPool, BlockTable, PagedKvCache, Prompt};

fn pool(num_blocks: usize, shards: usize) -> (Arc<BlockPool>, Arc<Kv>) {
    (
        Arc::new(BlockPool::with_home_shards(num_blocks, shards).unwrap()),
        Arc::new(Kv::new(num_blocks)),
    )
}

/// Creates a cache of blocks of `block_size` tokens over one home shard.
fn cache(num_blocks: usize, block_size: usize) -> PagedKvCache {
    let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(block_size);
    builder.home_shards(1).build().expect("a cache of that shape")
}

/// Reads the blocks of a step as its kernel does, and then ends the step.
fn run(step: OpenStep, kv: &Kv, ids: &[paged_kv::BlockId], value: u64) {
    for &id in ids {
        assert_eq!(kv.read(id), value, "{id} was reused inside a step");
    }
    drop(step);
}

/// Takes up to `most` free blocks, one by one, and uses each as its next owner. Returns how many there
/// were.
fn reuse(pool: &BlockPool, kv: &Kv, most: usize) -> usize {
    let tables: Vec<BlockTable> = (0..most).map_while(|_| pool.allocate(1).ok()).collect();
    tables.iter().for_each(|table| kv.use_alone(table.as_slice(), 9));
    tables.len()
}

fn assert_all_free(pool: &BlockPool) {
    assert_eq!(pool.used_block_count(), 0);
    pool.validate().expect("words and ledgers agree");
}

/// Allocates a table of `n` blocks and writes `value` into each.
fn written(pool: &BlockPool, kv: &Kv, n: usize, value: u64) -> BlockTable {
    let table = pool.allocate(n).unwrap();
    table.as_slice().iter().for_each(|&id| kv.write(id, value));
    table
}

#[test]
fn a_block_released_in_a_step_is_not_reused_before_its_end() {
    explore(|| {
        let (pool, kv) = pool(1, 1);
        let mut table = written(&pool, &kv, 1, 1);
        let step = OpenStep::new(&pool);
        step.join(&mut table);
        let ids = table.as_slice().to_vec();
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        race(
            || run(step, &kv, &ids, 1),
            move || {
                drop(table);
                reuse(&their_pool, &their_kv, 1);
            },
        );
        assert_all_free(&pool);
    });
}

#[test]
fn a_thread_that_finds_a_step_over_sees_its_accesses() {
    explore(|| {
        let (pool, kv) = pool(1, 1);
        let mut table = written(&pool, &kv, 1, 1);
        let step = OpenStep::new(&pool);
        step.join(&mut table);
        let ids = table.as_slice().to_vec();
        let (device_pool, device_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        race(
            || {
                // The drop itself gives the block back, if the step has ended by now.
                drop(table);
                reuse(&pool, &kv, 1);
            },
            move || {
                run(step, &device_kv, &ids, 1);
                // The next step in the same slot passes on this step's accesses.
                drop(OpenStep::new(&device_pool));
            },
        );
        assert_all_free(&pool);
    });
}

#[test]
fn two_open_steps_end_in_any_order() {
    explore(|| {
        let (pool, kv) = pool(2, 1);
        let mut table = written(&pool, &kv, 1, 1);
        let ids = table.as_slice().to_vec();
        let older = OpenStep::new(&pool);
        older.join(&mut table);
        let newer = OpenStep::new(&pool);
        newer.join(&mut table);
        drop(table);
        let (first_kv, second_kv) = (Arc::clone(&kv), Arc::clone(&kv));
        let (first_ids, second_ids) = (ids.clone(), ids);
        race(
            || {
                let older = move || run(older, &first_kv, &first_ids, 1);
                race(|| reuse(&pool, &kv, 2), older);
            },
            move || run(newer, &second_kv, &second_ids, 1),
        );
        assert_all_free(&pool);
    });
}

#[test]
fn a_newer_step_that_a_table_had_no_part_in_holds_nothing_of_it() {
    explore(|| {
        let (pool, kv) = pool(1, 1);
        let mut table = written(&pool, &kv, 1, 1);
        let older = OpenStep::new(&pool);
        older.join(&mut table);
        let newer = OpenStep::new(&pool);
        let their_pool = Arc::clone(&pool);
        race(|| drop(table), move || drop((older, their_pool)));
        assert_eq!(reuse(&pool, &kv, 1), 1, "only the older step was waited for");
        drop(newer);
        assert_all_free(&pool);
    });
}

#[test]
fn a_fork_outside_the_step_leaves_the_steps_blocks_held() {
    explore(|| {
        let (pool, kv) = pool(2, 1);
        let mut table = written(&pool, &kv, 2, 1);
        let fork = table.fork(1).unwrap();
        let step = OpenStep::new(&pool);
        step.join(&mut table);
        let ids = table.as_slice().to_vec();
        // The table is dropped first and held by the step. Its fork, which is not part of the step,
        // leaves last.
        drop(table);
        let (their_pool, their_kv) = (Arc::clone(&pool), Arc::clone(&kv));
        race(
            || run(step, &kv, &ids, 1),
            move || {
                drop(fork);
                reuse(&their_pool, &their_kv, 2);
            },
        );
        assert_all_free(&pool);
    });
}

/// The step also holds another table, so it ends on another path.
#[test]
fn a_thread_that_finds_a_holding_step_over_sees_its_accesses() {
    explore(|| {
        let (pool, kv) = pool(2, 1);
        let (mut table, mut held) = (written(&pool, &kv, 1, 1), written(&pool, &kv, 1, 1));
        let step = OpenStep::new(&pool);
        step.join(&mut table);
        step.join(&mut held);
        let ids = [table.as_slice()[0], held.as_slice()[0]];
        drop(held);
        let device_kv = Arc::clone(&kv);
        race(
            || {
                drop(table);
                reuse(&pool, &kv, 1);
            },
            move || run(step, &device_kv, &ids, 1),
        );
        assert_all_free(&pool);
    });
}

/// Another thread opens the slot's next step, which has ended too when the table reads the slot. The end
/// of that step implies the end of the step before.
#[test]
fn the_end_of_a_slots_next_step_shows_earlier_accesses() {
    explore(|| {
        let (pool, kv) = pool(2, 1);
        let (mut table, mut other) = (written(&pool, &kv, 1, 1), written(&pool, &kv, 1, 1));
        let step = OpenStep::new(&pool);
        step.join(&mut table);
        let ids = table.as_slice().to_vec();
        let (first, second) = (Told::new(), Told::new());
        let (device_kv, over) = (Arc::clone(&kv), first.clone());
        let device = spawn_at(0, move || {
            run(step, &device_kv, &ids, 1);
            over.tell();
        });
        let (their_pool, over) = (Arc::clone(&pool), second.clone());
        let next = spawn_at(2, move || {
            if first.is_told() {
                let step = OpenStep::new(&their_pool);
                step.join(&mut other);
                drop(other); // held, so that the step ends by a store
                drop(step);
                over.tell();
            }
        });
        let is_told = second.is_told();
        drop(table);
        if is_told {
            reuse(&pool, &kv, 2);
        }
        device.join().unwrap();
        next.join().unwrap();
        assert_all_free(&pool);
    });
}

/// Both threads add slots, or one of them finds the slots that the other has added.
#[test]
fn more_steps_than_the_first_slots_are_open_at_once() {
    explore(|| {
        let (pool, kv) = pool(1, 1);
        let first = [OpenStep::new(&pool), OpenStep::new(&pool)];
        let mut table = written(&pool, &kv, 1, 1);
        let their_pool = Arc::clone(&pool);
        let (step, other) = race(
            || {
                let step = OpenStep::new(&pool);
                step.join(&mut table);
                step
            },
            move || OpenStep::new(&their_pool),
        );
        other.join(&mut table);
        let ids = table.as_slice().to_vec();
        drop(first);
        drop(table);
        let (device_kv, their_ids) = (Arc::clone(&kv), ids.clone());
        race(|| run(step, &kv, &ids, 1), move || run(other, &device_kv, &their_ids, 1));
        assert_eq!(reuse(&pool, &kv, 1), 1);
        assert_all_free(&pool);
    });
}

/// Two threads open steps that do not see each other, and that may have the same number.
#[test]
fn a_block_stays_for_both_of_two_steps_that_were_opened_at_once() {
    explore(|| {
        let (pool, kv) = pool(1, 1);
        let mut table = written(&pool, &kv, 1, 1);
        let their_pool = Arc::clone(&pool);
        let (here, there) = race(|| OpenStep::new(&pool), move || OpenStep::new(&their_pool));
        here.join(&mut table);
        there.join(&mut table);
        let ids = table.as_slice().to_vec();
        drop(table);
        let (device_kv, their_ids) = (Arc::clone(&kv), ids.clone());
        race(
            || {
                run(here, &kv, &ids, 1);
                reuse(&pool, &kv, 1);
            },
            move || run(there, &device_kv, &their_ids, 1),
        );
        assert_all_free(&pool);
    });
}

/// The block is held, on its way back, or back: the cache counts it as a block that no eviction could
/// free. It may also be on its way to an older step.
#[test]
fn a_block_returned_by_a_step_never_counts_as_used() {
    for has_older in [false, true] {
        explore(move || {
            let cache = Arc::new(cache(1, 1).with_eviction_threshold(0.5));
            let mut sequence = cache.allocate_sequence(1).unwrap();
            let older = has_older.then(|| cache.step(Default::default()));
            let mut step = cache.step(Default::default());
            step.join(&mut sequence).unwrap();
            drop(sequence);
            race(|| assert!(!cache.needs_eviction(), "it is coming back"), move || drop(step));
            drop(older);
            assert_all_free(cache.pool());
        });
    }
}

#[test]
fn an_aborted_copy_keeps_its_source_while_a_sharer_forks_and_leaves() {
    explore(|| {
        let (cache, kv) = (cache(2, 2), Arc::new(Kv::new(2)));
        let mut sequence = cache.allocate_sequence(1).unwrap();
        let src = sequence.block_ids()[0];
        kv.write(src, 1);
        let mut sharer = sequence.fork().unwrap();
        let mut step = cache.step(Default::default());
        let mut rows = [(sequence, 1)];
        assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
        assert_ne!(rows[0].0.block_ids(), [src], "it was copied");
        let their_kv = Arc::clone(&kv);
        race(
            || {
                step.abort(&mut rows).unwrap();
                assert_eq!(kv.read(src), 1, "it is as it was");
            },
            move || {
                let mut fork = sharer.fork().unwrap();
                drop(sharer);
                // The last owner of a block writes it in place.
                if fork.append(1).is_ok_and(|append| append.copy.is_none()) {
                    their_kv.write(src, 2);
                }
            },
        );
        let [(mut sequence, _)] = rows;
        assert_eq!((sequence.block_ids(), sequence.num_tokens()), (&[src][..], 1));
        let append = sequence.append(1).unwrap();
        assert!(append.copy.is_none(), "the sharers are gone, and the step holds nothing any more");
        drop((append, sequence));
        assert_all_free(cache.pool());
    });
}

/// One step publishes the blocks that were committed through it, another is dropped.
#[test]
fn no_request_matches_the_contents_of_an_aborted_step() {
    for completes in [false, true] {
        explore(move || {
            let (cache, kv) = (Arc::new(cache(2, 1)), Arc::new(Kv::new(2)));
            let content = BlockHash::from_u128(0xA << 100 | 0xA);
            let prompt = Prompt::from_hashes(&[content], 1);
            let (mut sequence, _) =
                cache.admit_sequence(&prompt, &AdmitOptions::default()).unwrap();
            kv.write(sequence.block_ids()[0], 1);
            let mut step = cache.step(Default::default());
            step.join(&mut sequence).unwrap();
            assert_eq!(step.commit(&mut sequence, 1), Ok(1));
            drop(sequence); // the request was cancelled
            let (theirs, their_kv) = (Arc::clone(&cache), Arc::clone(&kv));
            race(
                || {
                    if completes {
                        step.complete();
                    } else {
                        drop(step);
                    }
                },
                move || {
                    let prompt = Prompt::from_hashes(&[content], 2);
                    // Admits the cached blocks, and takes no further block.
                    let options = AdmitOptions::default().first_chunk(0);
                    let (matched, admission) = theirs.admit_sequence(&prompt, &options).unwrap();
                    if admission.cached_tokens > 0 {
                        assert!(completes, "it was never published");
                        assert_eq!(their_kv.read(matched.block_ids()[0]), 1);
                    } else {
                        let other = theirs.pool().allocate(1).unwrap();
                        their_kv.use_alone(other.as_slice(), 2);
                    }
                },
            );
            let prompt = Prompt::from_hashes(&[content], 2);
            assert_eq!(cache.prefix().probe(&prompt), usize::from(completes));
            assert_all_free(cache.pool());
        });
    }
}
