//! Tests of trims: a trim keeps every sink token and every window token. All small sizes are compared
//! with the set of blocks that should be left.

mod common;

use common::{assert_empties, s, shapes};
use paged_kv::{BlockId, BlockPool, PagedKvCache, PagedKvError, Sequence};

/// The expected state of a sequence: a block, or nothing, for each logical block.
#[derive(Clone)]
struct Model {
    block_size: usize,
    num_tokens: usize,
    blocks: Vec<Option<BlockId>>,
}

impl Model {
    fn of(sequence: &Sequence) -> Self {
        let blocks = sequence.block_ids().iter().copied().map(Some).collect();
        Self { block_size: sequence.block_size(), num_tokens: sequence.num_tokens(), blocks }
    }

    /// Drops the full blocks that hold neither a sink nor a window token; returns their number of tokens.
    fn trim(&mut self, sink: usize, window: usize) -> usize {
        let mut given_up = 0;
        for logical in 0..self.blocks.len() {
            let tokens = logical * self.block_size..(logical + 1) * self.block_size;
            let is_full = tokens.end <= self.num_tokens;
            let has_sink = tokens.clone().any(|token| token < sink);
            let has_window = tokens.clone().any(|token| token + window >= self.num_tokens);
            if is_full && !has_sink && !has_window && self.blocks[logical].take().is_some() {
                given_up += self.block_size;
            }
        }
        given_up
    }

    /// Cuts the sequence; `None` if the new last block is partly filled and gone.
    fn truncate(&mut self, end: usize) -> Option<()> {
        let ends_inside = !end.is_multiple_of(self.block_size);
        if ends_inside && self.blocks[end / self.block_size].is_none() {
            return None;
        }
        self.blocks.truncate(end.div_ceil(self.block_size));
        self.num_tokens = end;
        Some(())
    }

    fn check(&self, sequence: &Sequence) {
        let resident: Vec<BlockId> = self.blocks.iter().flatten().copied().collect();
        assert_eq!(sequence.block_ids(), resident);
        assert_eq!(sequence.num_tokens(), self.num_tokens);
        assert_eq!(sequence.num_logical_blocks(), self.blocks.len());
        let gaps = sequence.gaps();
        for (logical, &block) in self.blocks.iter().enumerate() {
            assert_eq!(sequence.block_at(logical), block);
            assert_eq!(gaps.iter().any(|gap| gap.contains(&logical)), block.is_none());
        }
        assert_eq!(sequence.block_at(self.blocks.len()), None);
        assert!(gaps.iter().all(|gap| gap.start < gap.end && gap.end <= self.blocks.len()));
        assert!(gaps.windows(2).all(|pair| pair[0].end < pair[1].start), "{gaps:?}");
        let size = self.block_size;
        for position in 0..self.num_tokens {
            let slot = |block: BlockId| u64::from(block.0) * size as u64 + (position % size) as u64;
            assert_eq!(sequence.slot(position), self.blocks[position / size].map(slot));
        }
        assert_eq!(sequence.slot(self.num_tokens), None);
    }
}

fn for_all_sizes(num_tokens: std::ops::RangeInclusive<usize>, check: impl Fn(usize, usize)) {
    for tokens in num_tokens {
        for block_size in 1..=5 {
            check(tokens, block_size);
        }
    }
}

#[test]
fn a_trim_drops_exactly_the_whole_blocks_without_sink_or_window_tokens() {
    for_all_sizes(0..=20, |num_tokens, block_size| {
        let pool = BlockPool::new(32);
        for sink in 0..=num_tokens + 2 {
            for window in 0..=num_tokens + 2 {
                let mut sequence = pool.allocate_sequence(num_tokens, block_size).unwrap();
                let mut model = Model::of(&sequence);
                let given_up = sequence.apply_streaming_llm(sink, window).unwrap();
                assert_eq!(given_up, model.trim(sink, window), "sink {sink}, window {window}");
                assert_eq!(given_up % block_size, 0);
                model.check(&sequence);
                assert_eq!(pool.used_block_count(), sequence.num_blocks());
                assert_eq!(
                    sequence.apply_streaming_llm(sink, window).unwrap(),
                    0,
                    "the second time"
                );
            }
        }
        assert_eq!(pool.used_block_count(), 0);
        pool.validate().unwrap();
    });
}

#[test]
fn the_values_may_be_as_large_as_they_like() {
    for_all_sizes(0..=9, |num_tokens, block_size| {
        let pool = BlockPool::new(32);
        let mut sequence = pool.allocate_sequence(num_tokens, block_size).unwrap();
        for (sink, window) in [(usize::MAX, 0), (0, usize::MAX), (usize::MAX, usize::MAX)] {
            assert_eq!(sequence.apply_streaming_llm(sink, window).unwrap(), 0);
        }
        assert_eq!(sequence.num_blocks(), num_tokens.div_ceil(block_size));
        pool.validate().unwrap();
    });
}

#[test]
fn repeated_trims_appends_and_truncations_keep_the_right_tokens() {
    for_all_sizes(0..=13, |num_tokens, block_size| {
        let pool = BlockPool::new(64);
        for (sink, window) in pairs(num_tokens) {
            for (later_sink, later_window) in pairs(num_tokens) {
                let mut sequence = pool.allocate_sequence(num_tokens, block_size).unwrap();
                let mut model = Model::of(&sequence);
                assert_eq!(
                    sequence.apply_streaming_llm(sink, window).unwrap(),
                    model.trim(sink, window)
                );
                append(&mut sequence, &mut model, later_sink % 4);
                let given_up = sequence.apply_streaming_llm(later_sink, later_window).unwrap();
                assert_eq!(given_up, model.trim(later_sink, later_window));
                append(&mut sequence, &mut model, later_window % 3);
                model.check(&sequence);
                let end = sink.min(model.num_tokens);
                truncate(&mut sequence, &mut model, end);
                append(&mut sequence, &mut model, 1);
                assert_eq!(pool.used_block_count(), sequence.num_blocks());
            }
        }
        assert_eq!(pool.used_block_count(), 0);
        pool.validate().unwrap();
    });
}

fn pairs(num_tokens: usize) -> impl Iterator<Item = (usize, usize)> {
    let ends = move || (0..=num_tokens + 2).step_by(2);
    ends().flat_map(move |sink| ends().map(move |window| (sink, window)))
}

/// Appends, and checks that the tokens go to the slots after the last token.
fn append(sequence: &mut Sequence, model: &mut Model, num_new_tokens: usize) {
    let appended = sequence.append(num_new_tokens).unwrap();
    assert!(appended.copy.is_none(), "nobody shares");
    let new_blocks = &sequence.block_ids()[appended.new_blocks.clone()];
    model.num_tokens += num_new_tokens;
    model.blocks.extend(new_blocks.iter().copied().map(Some));
    model.check(sequence);
}

fn truncate(sequence: &mut Sequence, model: &mut Model, end: usize) {
    let (before, refused) = (model.clone(), PagedKvError::TokensTrimmed { position: end });
    match model.truncate(end) {
        Some(()) => assert_eq!(sequence.truncate(end), Ok(())),
        None => assert_eq!(sequence.truncate(end), Err(refused)),
    }
    if model.num_tokens == before.num_tokens {
        assert_eq!(model.blocks, before.blocks);
    }
    model.check(sequence);
}

#[test]
fn truncating_into_a_trimmed_block_is_refused_and_to_its_edges_is_not() {
    for_all_sizes(0..=16, |num_tokens, block_size| {
        let pool = BlockPool::new(64);
        for (sink, window) in pairs(num_tokens) {
            for end in 0..=num_tokens {
                let mut sequence = pool.allocate_sequence(num_tokens, block_size).unwrap();
                let mut model = Model::of(&sequence);
                assert_eq!(
                    sequence.apply_streaming_llm(sink, window).unwrap(),
                    model.trim(sink, window)
                );
                truncate(&mut sequence, &mut model, end);
                append(&mut sequence, &mut model, block_size + 1);
                assert_eq!(sequence.apply_streaming_llm(1, 1).unwrap(), model.trim(1, 1));
                model.check(&sequence);
                let refused = sequence.truncate(model.num_tokens + 1);
                assert!(matches!(refused, Err(PagedKvError::TruncateBeyondEnd { .. })));
            }
        }
        assert_eq!(pool.used_block_count(), 0);
        pool.validate().unwrap();
    });
}

#[test]
fn a_trim_counts_the_same_on_shared_blocks() {
    for_all_sizes(0..=12, |num_tokens, block_size| {
        let pool = BlockPool::new(64);
        for (sink, window) in pairs(num_tokens) {
            let mut sequence = pool.allocate_sequence(num_tokens, block_size).unwrap();
            let kept = Model::of(&sequence);
            let mut fork = sequence.fork().unwrap();
            let mut trimmed = Model::of(&fork);
            let given_up = fork.apply_streaming_llm(sink, window).unwrap();
            assert_eq!(given_up, trimmed.trim(sink, window));
            kept.check(&sequence);
            trimmed.check(&fork);
            assert_eq!(pool.used_block_count(), sequence.num_blocks(), "the other uses them all");
            let mut second = fork.fork().unwrap();
            trimmed.check(&second);
            drop(fork);
            drop(sequence);
            assert_eq!(pool.used_block_count(), second.num_blocks());
            assert!(second.append(2 * block_size).unwrap().copy.is_none(), "nobody else is left");
        }
        assert_eq!(pool.used_block_count(), 0);
        pool.validate().unwrap();
    });
}

#[test]
fn an_append_to_a_shared_tail_behind_a_gap_copies_it() {
    for cache in shapes(32, 4) {
        cache.allocate(s(1), 18).unwrap();
        assert_eq!(cache.apply_streaming_llm(s(1), 1, 1), Ok(12));
        cache.fork(s(1), s(2)).unwrap();
        let append = cache.append(s(2), 4).unwrap();
        let copy = append.copy.as_ref().expect("the tail is shared");
        let (source, fork) = (cache.get_sequence(s(1)).unwrap(), cache.get_sequence(s(2)).unwrap());
        assert_eq!((source.num_blocks(), fork.num_blocks()), (2, 3));
        assert_eq!((copy.src, copy.dst), (source.block_ids[1], fork.block_ids[1]));
        assert_eq!(append.new_blocks, 2..3);
        drop(append);
        assert_empties(&cache);
    }
}

#[test]
fn the_cache_trims_as_the_handle_does() {
    for_all_sizes(0..=12, |num_tokens, block_size| {
        let cache = PagedKvCache::new(64, block_size, 1, 1);
        for (sink, window) in pairs(num_tokens) {
            let mut handle = cache.allocate_sequence(num_tokens).unwrap();
            cache.allocate(s(1), num_tokens).unwrap();
            let given_up = cache.apply_streaming_llm(s(1), sink, window).unwrap();
            assert_eq!(given_up, handle.apply_streaming_llm(sink, window).unwrap());
            cache.with_sequence(s(1), |sequence| {
                assert_eq!(sequence.gaps(), handle.gaps());
                assert_eq!(sequence.num_blocks(), handle.num_blocks());
            });
            drop(handle);
            cache.free(s(1)).unwrap();
        }
        assert_empties(&cache);
    });
}
