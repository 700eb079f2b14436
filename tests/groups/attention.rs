//! The definition of attention by positions: which positions a token attends to, and the blocks that follow.
//!
//! Nothing here is optimized, and nothing is taken from the library: each function tests every position.

use std::ops::Range;

use paged_kv::LayerGroup;

/// Returns true if the token at position `at` attends to the earlier position `position`. For a state, the
/// position whose block holds the state after all tokens before `at`.
pub fn attends(kind: LayerGroup, at: usize, position: usize) -> bool {
    assert!(position < at, "a token attends to earlier positions");
    match kind {
        LayerGroup::Full { .. } => true,
        LayerGroup::SlidingWindow { window, .. } => at - position < window,
        LayerGroup::Chunked { chunk, .. } => position / chunk == at / chunk,
        LayerGroup::SinkWindow { sink, window, .. } => position < sink || at - position < window,
        LayerGroup::State { .. } => position + 1 == at,
        _ => unreachable!("a kind that this test does not know"),
    }
}

pub fn positions(kind: LayerGroup, block: usize) -> Range<usize> {
    block * kind.block_size()..(block + 1) * kind.block_size()
}

/// Returns true if a token at position `length` attends to a position of a block before it.
pub fn is_needed(kind: LayerGroup, length: usize, block: usize) -> bool {
    positions(kind, block).any(|position| position < length && attends(kind, length, position))
}

/// Returns true if no token from position `length` on attends to a position of the block, or writes one.
pub fn is_past(kind: LayerGroup, length: usize, block: usize) -> bool {
    positions(kind, block).all(|position| position < length && !attends(kind, length, position))
}

/// Returns true if a sequence that is cut to `length` tokens attends to the block, or writes to it next.
pub fn is_needed_after_cut(kind: LayerGroup, length: usize, block: usize) -> bool {
    let range = positions(kind, block);
    is_needed(kind, length, block) || range.contains(&length) && range.start < length
}

/// Returns the blocks that a hit of `length` tokens needs.
pub fn needed(kind: LayerGroup, length: usize) -> Vec<usize> {
    assert!(length.is_multiple_of(kind.block_size()), "a hit ends at a block");
    (0..length / kind.block_size()).filter(|&block| is_needed(kind, length, block)).collect()
}

pub fn least_common_multiple(kinds: &[LayerGroup]) -> usize {
    let is_multiple =
        |tokens: &usize| kinds.iter().all(|kind| tokens.is_multiple_of(kind.block_size()));
    (1..).find(is_multiple).expect("the product is one")
}

#[test]
fn a_window_of_8_needs_7_tokens_before_the_next() {
    let kind = crate::sliding(4, 8);
    assert_eq!(needed(kind, 20), [3, 4]);
    assert_eq!(needed(kind, 8), [0, 1]);
    assert_eq!((0..5).filter(|&block| is_past(kind, 18, block)).count(), 2);
}

#[test]
fn a_chunk_needs_nothing_at_its_beginning() {
    let kind = crate::chunked(4, 8);
    assert_eq!(needed(kind, 16), [0; 0]);
    assert_eq!(needed(kind, 20), [4]);
}

#[test]
fn a_state_needs_the_block_that_ends_there() {
    assert_eq!(needed(crate::state(4), 12), [2]);
    assert_eq!(needed(crate::state(4), 0), [0; 0]);
}

#[test]
fn a_sink_is_needed_at_every_length() {
    assert_eq!(needed(crate::sink_window(4, 5, 4), 24), [0, 1, 5]);
}
