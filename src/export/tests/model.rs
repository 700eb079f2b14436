//! The model of the exports, which computes one cell at a time.
//!
//! The model uses [`Sequence::block_at`] only. The corpus is every small history of a sequence that trims and
//! cuts can produce.

use std::ops::Range;

use crate::cache::PagedKvCache;
use crate::export::{CsrBuffers, Gaps};
use crate::sequence::Sequence;

pub(super) const BOTH: [Gaps; 2] = [Gaps::Show, Gaps::Close];
pub(super) const PAD: i64 = -7;

/// Returns the pages of a sequence, block by block.
pub(super) fn model_pages(sequence: &Sequence, gaps: Gaps) -> Vec<i64> {
    let pages = (0..sequence.num_logical_blocks()).map(|block| sequence.block_at(block));
    let cells = pages.map(|id| id.map_or(PAD, |id| i64::from(id.0)));
    cells.filter(|&cell| gaps == Gaps::Show || cell != PAD).collect()
}

/// Returns the slots of a sequence, token by token.
pub(super) fn model_slots(sequence: &Sequence, tokens: Range<usize>, gaps: Gaps) -> Vec<i64> {
    let block_size = sequence.block_size();
    let slot = |token: usize| {
        let id = sequence.block_at(token / block_size)?;
        Some(i64::from(id.0) * block_size as i64 + (token % block_size) as i64)
    };
    let cells = tokens.map(|token| slot(token).unwrap_or(-1));
    cells.filter(|&cell| gaps == Gaps::Show || cell != -1).collect()
}

/// The history of a sequence: trimmed, extended, trimmed again, cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Life {
    pub(super) block_size: usize,
    pub(super) tokens: usize,
    pub(super) trims: [(usize, usize); 2],
    pub(super) cut: usize,
}

impl Life {
    pub(super) fn live(self) -> Sequence {
        self.live_in(&PagedKvCache::new(32, self.block_size, 1, 1))
    }

    pub(super) fn live_in(self, cache: &PagedKvCache) -> Sequence {
        // Takes a block first, so that the ids do not begin at 0.
        let _other = cache.allocate_sequence(1).expect("room for one block");
        let mut sequence = cache.allocate_sequence(self.tokens).expect("room for a few blocks");
        for (sink, window) in self.trims {
            sequence.apply_streaming_llm(sink, window).unwrap();
            drop(sequence.append(3).expect("room for three tokens"));
        }
        let kept = sequence.num_tokens() - self.cut;
        // A cut to a last, partly filled block that was trimmed is refused, and then changes nothing.
        let _ = sequence.truncate(kept);
        sequence
    }
}

/// Checks every small history, and so gaps at the front, in the middle, two of them, and at the end.
pub(super) fn for_every_small_sequence(mut check: impl FnMut(&Sequence)) {
    let (mut two_gaps, mut gap_at_the_end, mut nothing_resident) = (0, 0, 0);
    for life in every_small_life() {
        let sequence = life.live();
        let gaps = sequence.gaps();
        let end = gaps.last().map(|gap| gap.end);
        two_gaps += usize::from(gaps.len() == 2);
        gap_at_the_end += usize::from(end == Some(sequence.num_logical_blocks()));
        nothing_resident += usize::from(end.is_some() && sequence.num_blocks() == 0);
        check(&sequence);
    }
    let seen = [two_gaps, gap_at_the_end, nothing_resident];
    assert!(seen.iter().all(|&times| times > 0), "{seen:?}");
}

fn every_small_life() -> Vec<Life> {
    let sinks_and_windows = [(0, 0), (0, 2), (2, 3), (5, 1), (100, 0)];
    let mut lives = Vec::new();
    for (block_size, cut) in [1, 2, 3].iter().flat_map(|&size| [0, 1, 3, 4].map(|cut| (size, cut)))
    {
        for tokens in 0..=3 * block_size + 1 {
            for first in sinks_and_windows {
                let trims = sinks_and_windows.map(|second| [first, second]);
                lives.extend(trims.map(|trims| Life { block_size, tokens, trims, cut }));
            }
        }
    }
    lives
}

/// Returns the number of tokens with a block.
pub(super) fn resident(sequence: &Sequence) -> usize {
    model_slots(sequence, 0..sequence.num_tokens(), Gaps::Close).len()
}

/// The buffers of a CSR export, filled with 99.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Triple {
    pub(super) indptr: Vec<i64>,
    pub(super) indices: Vec<i64>,
    pub(super) last_page_len: Vec<i64>,
}

impl Triple {
    pub(super) fn new(rows: usize, pages: usize) -> Self {
        Self { indptr: vec![99; rows + 1], indices: vec![99; pages], last_page_len: vec![99; rows] }
    }

    pub(super) fn buffers(&mut self) -> CsrBuffers<'_, i64> {
        CsrBuffers {
            indptr: &mut self.indptr,
            indices: &mut self.indices,
            last_page_len: &mut self.last_page_len,
        }
    }
}
