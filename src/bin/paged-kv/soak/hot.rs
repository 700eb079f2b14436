//! `step`: operations of all threads on the same few sequences.
//!
//! Every outcome is a race, and only refusals that a race explains are allowed. A thread that forks a hot
//! sequence and writes into the fork is the only owner of the blocks that it wrote.

use paged_kv::{BlockId, SeqId};

use super::random::Random;
use super::shared::Ground;

/// Number of hot sequences, which all threads change. They have the highest ids.
const HOT: usize = 6;

pub fn step(ground: &Ground, own: SeqId, random: &mut Random) {
    if random.one_in(3) {
        fork_and_write(ground, own, random);
    } else {
        race(ground, random);
    }
}

fn race(ground: &Ground, random: &mut Random) -> Option<()> {
    let cache = &ground.cache;
    let size = cache.block_size();
    let (id, other) = (hot(random), hot(random));
    match random.below(15) {
        0 | 1 => ground.fair(cache.fork(id, other)),
        2 | 3 => ground.fair(cache.truncate(id, random.below(10 * size))),
        4 => {
            let (sink, window) = (random.below(2 * size + 1), random.below(4 * size));
            ground.fair(cache.apply_streaming_llm(id, sink, window)).map(drop)
        }
        5 | 6 => ground.fair(cache.append(id, random.below(2 * size))).map(drop),
        7 => {
            let lease = ground.fair(cache.lease(&[id]))?;
            ground.fair(cache.append(id, lease.len())).map(drop)
        }
        8 => ground.fair(cache.free(id)),
        9 => ground.fair(cache.free_when_released(id)),
        10 => ground.fair(cache.evict()).map(drop),
        11 if random.one_in(16) => ground.fair(cache.evict_to_threshold(0.7)).map(drop),
        12 if random.one_in(256) => {
            ground.reset();
            Some(())
        }
        _ => ground.fair(cache.allocate(id, random.below(16 * size))),
    }
}

/// Forks a hot sequence, writes into the fork, and checks that no other sequence owns the written blocks.
fn fork_and_write(ground: &Ground, own: SeqId, random: &mut Random) -> Option<()> {
    let cache = &ground.cache;
    ground.fair(cache.fork(hot(random), own))?;
    // Leased immediately: otherwise another thread could evict it while it is being written.
    let lease = ground.fair(cache.lease(&[own]))?;
    let (tag, mut written) = (ground.cells.tag(), Vec::new());
    for _ in 0..random.below(4) {
        let start = cache.get_sequence(own)?.num_tokens;
        let num_tokens = random.below(2 * cache.block_size());
        let Some(append) = ground.fair(cache.append(own, num_tokens)) else { break };
        for id in blocks_of(ground, own, start, start + num_tokens) {
            if !written.contains(&id) {
                ground.cells.enter(id, tag);
                ground.cells.write(id, tag);
                written.push(id);
            }
            ground.expect_sole(id);
        }
        drop(append);
    }
    for id in written {
        ground.cells.check(id, tag);
        ground.cells.leave(id, tag);
    }
    drop(lease);
    ground.fair(cache.free(own))
}

/// Returns the blocks of the tokens from `start` to `end`.
fn blocks_of(ground: &Ground, id: SeqId, start: usize, end: usize) -> Vec<BlockId> {
    if start == end {
        return Vec::new();
    }
    let size = ground.cache.block_size();
    let logical = start / size..end.div_ceil(size);
    let blocks = ground.cache.with_sequence(id, |sequence| {
        logical.clone().filter_map(|block| sequence.block_at(block)).collect::<Vec<_>>()
    });
    let blocks = blocks.unwrap_or_default();
    ground.expect(blocks.len() == logical.len(), || {
        format!("{id} is leased and was written, and has {} of {logical:?}", blocks.len())
    });
    blocks
}

fn hot(random: &mut Random) -> SeqId {
    SeqId(u64::MAX - random.below(HOT) as u64)
}
