//! Models of groups of layers: a hit has the blocks of all groups at one length, while other threads reclaim, release
//! and publish.
//!
//! Blocks have one token. Group 0 is full; group 1 has a window of two tokens, or a state. So a hit of n tokens needs n
//! blocks of group 0 and the last block of group 1.

mod common;

use std::sync::Arc;

use common::{Kv, explore, explore_large, race};
use paged_kv::{
    AdmitOptions, BlockHash, BlockId, CachedSequence, GroupId, LayerGroup, PagedKvCache, Prompt,
};

const WINDOW: LayerGroup = LayerGroup::SlidingWindow { block_size: 1, window: 2 };
const STATE: LayerGroup = LayerGroup::State { block_size: 1 };

fn cache(num_blocks: usize, second: LayerGroup) -> (Arc<PagedKvCache>, Arc<Kv>) {
    let groups = [LayerGroup::Full { block_size: 1 }, second];
    let builder = PagedKvCache::builder().num_blocks(num_blocks).home_shards(1).groups(&groups);
    (Arc::new(builder.build().expect("a cache of that shape")), Arc::new(Kv::new(num_blocks)))
}

fn prompt(len: usize) -> Prompt {
    let hashes: Vec<_> = (1..=len as u128).map(|n| BlockHash::from_u128(n << 100 | n)).collect();
    Prompt::from_hashes(&hashes, len)
}

/// Returns the content of a block: its group, its number, and the weights that computed it.
fn content(group: u8, block: usize, weights: u64) -> u64 {
    weights * 100 + block as u64 * 10 + u64::from(group) + 1
}

fn blocks(sequence: &CachedSequence, group: u8) -> Vec<(usize, BlockId)> {
    let blocks = sequence.blocks_in(GroupId(group)).enumerate();
    blocks.filter_map(|(at, id)| Some((at, id?))).collect()
}

/// Computes the blocks from `start` on.
fn compute(sequence: &CachedSequence, kv: &Kv, start: usize, weights: u64) {
    for group in 0..2 {
        for (at, id) in blocks(sequence, group).into_iter().filter(|(at, _)| *at >= start) {
            kv.write(id, content(group, at, weights));
        }
    }
}

/// Fills the cache with the contents of a prompt of `len` tokens, idle afterwards.
fn cached(cache: &PagedKvCache, kv: &Kv, len: usize) {
    let (mut sequence, _) =
        cache.admit_sequence(&prompt(len), &AdmitOptions::default()).expect("there is room");
    compute(&sequence, kv, 0, 1);
    sequence.commit(len).expect("it has slots");
}

/// Matches a prompt without taking a block, and checks the contents of all groups. Returns the hit and the weights.
fn matched(cache: &PagedKvCache, kv: &Kv, len: usize) -> (usize, Option<u64>) {
    let options = AdmitOptions::default().first_chunk(0).allow_full_hit();
    let (sequence, admission) =
        cache.admit_sequence(&prompt(len), &options).expect("it takes no block");
    let hit = admission.cached_tokens;
    let full = blocks(&sequence, 0);
    assert_eq!(full.len(), hit, "group 0 has every block of the hit");
    let sparse = blocks(&sequence, 1);
    assert_eq!(sparse.iter().map(|(at, _)| at + 1).max().unwrap_or(0), hit, "and group 1 the last");
    let read = |group: u8, (at, id): (usize, BlockId)| {
        let found = kv.read(id);
        assert_eq!(found % 100, content(group, at, 0), "{id} holds the content of its place");
        found / 100
    };
    let mut weights: Vec<u64> = full.into_iter().map(|block| read(0, block)).collect();
    weights.extend(sparse.into_iter().map(|block| read(1, block)));
    weights.dedup();
    assert!(weights.len() <= 1, "all groups have the contents of one set of weights");
    (hit, weights.first().copied())
}

/// Takes `n` blocks, whatever they held, and writes them.
fn overwrite(cache: &PagedKvCache, kv: &Kv, n: usize) {
    if let Ok(taken) = cache.pool().allocate(n) {
        kv.use_alone(taken.as_slice(), 7);
    }
}

fn assert_all_room(cache: &PagedKvCache) {
    assert_eq!(cache.used_block_count(), 0);
    assert_eq!(cache.validate(), Ok(()));
}

/// Of the idle contents, the taker reclaims the oldest: blocks of group 0 in one case, the window's in the other.
#[test]
fn a_match_beside_a_reclaim_is_of_one_length_in_all_groups() {
    for window_first in [false, true] {
        explore(move || {
            let (cache, kv) = cache(4, WINDOW);
            cached(&cache, &kv, 1);
            if window_first {
                // A use of group 0's content alone makes the window's the oldest.
                drop(cache.prefix().acquire(&prompt(1).hashes()[..1]));
            }
            let (theirs, their_kv) = (Arc::clone(&cache), Arc::clone(&kv));
            let ((hit, _), ()) =
                race(|| matched(&cache, &kv, 1), move || overwrite(&theirs, &their_kv, 3));
            assert!(hit <= 1);
            assert_all_room(&cache);
        });
    }
}

/// The match of two tokens may lose the last block of group 0 after it holds the window of that length. Then it
/// takes the shorter length, and gives the window back.
#[test]
fn a_match_that_loses_a_block_gives_back_what_the_shorter_length_does_not_need() {
    explore(|| {
        let (cache, kv) = cache(4, WINDOW);
        cached(&cache, &kv, 2);
        let (theirs, their_kv) = (Arc::clone(&cache), Arc::clone(&kv));
        race(|| matched(&cache, &kv, 2), move || overwrite(&theirs, &their_kv, 1));
        assert_all_room(&cache);
    });
}

#[test]
fn a_match_beside_a_taker_of_all_blocks_leaves_all_blocks_to_one_of_them() {
    explore(|| {
        let (cache, kv) = cache(2, WINDOW);
        cached(&cache, &kv, 1);
        let (theirs, their_kv) = (Arc::clone(&cache), Arc::clone(&kv));
        race(|| matched(&cache, &kv, 1), move || overwrite(&theirs, &their_kv, 2));
        assert_all_room(&cache);
    });
}

/// The window leaves its first block by a growth in a step, while another request matches that block.
#[test]
fn a_match_beside_the_release_of_a_window_and_the_end_of_its_step_reads_its_content() {
    explore(|| {
        let (cache, kv) = cache(5, WINDOW);
        let (mut sequence, _) =
            cache.admit_sequence(&prompt(2), &AdmitOptions::default()).expect("there is room");
        compute(&sequence, &kv, 0, 1);
        sequence.commit(2).expect("it has slots");
        let mut step = cache.step(Default::default());
        step.join(&mut sequence).expect("it is of this cache");
        let (theirs, their_kv) = (Arc::clone(&cache), Arc::clone(&kv));
        race(
            || {
                // Releases the first block of the window, which the step holds until it ends.
                let _ = sequence.append(0);
                let grown = sequence.append(1);
                step.complete();
                drop((grown, sequence));
            },
            move || {
                let (hit, _) = matched(&theirs, &their_kv, 1);
                assert!(hit <= 1);
                overwrite(&theirs, &their_kv, 1);
            },
        );
        assert_all_room(&cache);
    });
}

#[test]
fn a_state_is_matched_after_its_step_completed_or_not_at_all() {
    explore_large(|| {
        let (cache, kv) = cache(3, STATE);
        let (mut sequence, _) =
            cache.admit_sequence(&prompt(1), &AdmitOptions::default()).expect("there is room");
        let mut step = cache.step(Default::default());
        step.join(&mut sequence).expect("it is of this cache");
        assert_eq!(step.commit(&mut sequence, 1), Ok(2));
        compute(&sequence, &kv, 0, 1); // the kernels of the step
        let (theirs, their_kv) = (Arc::clone(&cache), Arc::clone(&kv));
        race(
            || {
                step.complete();
                drop(sequence);
            },
            move || matched(&theirs, &their_kv, 1),
        );
        assert_eq!(matched(&cache, &kv, 1), (1, Some(1)));
        assert_all_room(&cache);
    });
}

/// Other weights compute the same contents anew after a reset. No hit has blocks of both.
#[test]
fn a_match_beside_a_reset_has_the_contents_of_one_set_of_weights() {
    explore(|| {
        let (cache, kv) = cache(4, WINDOW);
        cached(&cache, &kv, 1);
        let (theirs, their_kv) = (Arc::clone(&cache), Arc::clone(&kv));
        race(
            || matched(&cache, &kv, 1),
            move || {
                theirs.prefix().reset();
                let admitted = theirs.admit_sequence(&prompt(1), &AdmitOptions::default());
                let (mut sequence, _) = admitted.expect("two blocks are free");
                compute(&sequence, &their_kv, 0, 2);
                sequence.commit(1).expect("it has slots");
            },
        );
        assert_all_room(&cache);
    });
}
