//! `LayerGroup` and `GroupLayout`: the groups of layers of one model, and the blocks that each needs at a length.
//!
//! The layers of a group attend to the same tokens, so they share one table of blocks. All groups take their blocks
//! from one pool, and all blocks have the same bytes. A *sparse* group needs only some of the blocks before a length.
//!
//! Invariant: everything here is a function of its arguments. No function knows a pool or a sequence.

pub(crate) mod joint;
pub(crate) mod planner;

use std::ops::Range;

use crate::error::{PagedKvError, Result};
use crate::id::GroupId;

/// The most groups of a cache.
pub(crate) const MOST_GROUPS: usize = 31;

/// The blocks that the layers of one group need: their kind of attention, and the tokens of a block.
///
/// [`PagedKvCacheBuilder::groups`](crate::PagedKvCacheBuilder::groups) takes one for each group. At a length of n
/// tokens, a group needs the blocks with the positions that the token at position n attends to:
///
/// | kind | positions before n |
/// |---|---|
/// | `Full` | all |
/// | `SlidingWindow` | the last `window - 1` |
/// | `Chunked` | those of the chunk that n is in |
/// | `State` | none: one block holds the state after n tokens |
/// | `SinkWindow` | the first `sink`, and the last `window - 1` |
///
/// ```
/// use paged_kv::{GroupId, LayerGroup, PagedKvCache, SeqId};
///
/// // One group of full attention, one with a window of 8 tokens; blocks of 4 tokens.
/// let groups = [
///     LayerGroup::Full { block_size: 4 },
///     LayerGroup::SlidingWindow { block_size: 4, window: 8 },
/// ];
/// let cache = PagedKvCache::builder().num_blocks(16).groups(&groups).build()?;
/// let mut sequence = cache.allocate_sequence(16)?; // 4 blocks in each group
/// sequence.append(1)?; // one more in each; the window has left two blocks
/// assert_eq!(cache.used_block_count(), 8);
/// let of_window: Vec<bool> =
///     sequence.blocks_in(GroupId(1)).map(|block| block.is_some()).collect();
/// assert_eq!(of_window, [false, false, true, true, true]);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum LayerGroup {
    /// Every token attends to all tokens before it.
    Full {
        /// Tokens of a block.
        block_size: usize,
    },
    /// A token attends to itself and to the `window - 1` tokens before it.
    SlidingWindow {
        /// Tokens of a block.
        block_size: usize,
        /// Tokens of the window.
        window: usize,
    },
    /// A token attends to the tokens before it in its chunk. Chunks begin at multiples of `chunk`.
    Chunked {
        /// Tokens of a block.
        block_size: usize,
        /// Tokens of a chunk.
        chunk: usize,
    },
    /// A recurrent state (Mamba, linear attention): one block holds the state after all tokens so far. A state can
    /// be matched where a commit ended at a multiple of `block_size`.
    State {
        /// Tokens between two states that can be matched.
        block_size: usize,
    },
    /// As `SlidingWindow`, and every token attends to the first `sink` tokens too.
    SinkWindow {
        /// Tokens of a block.
        block_size: usize,
        /// Tokens at the beginning.
        sink: usize,
        /// Tokens of the window.
        window: usize,
    },
}

/// The contents of sparse groups that are published, and so can be matched later.
///
/// A window needs its last blocks at the length of a hit. Blocks that no length needs are not worth keeping.
/// Contents of full groups, and states, are published in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum GroupRetention {
    /// Every block that a hit of any length can need. A prompt that shares any part of an earlier one hits that part.
    #[default]
    Dense,
    /// The blocks that hits at multiples of this many tokens need, and at the end of the prompt. A prompt that shares
    /// a part hits up to the last multiple.
    Every(usize),
    /// The blocks that a hit at the end of the prompt needs: for the same prompt again, and for longer ones. A prompt
    /// that shares only a part hits nothing.
    PromptEnd,
}

impl LayerGroup {
    /// Returns the tokens of a block.
    ///
    /// ```
    /// assert_eq!(paged_kv::LayerGroup::Full { block_size: 16 }.block_size(), 16);
    /// ```
    pub fn block_size(self) -> usize {
        match self {
            Self::Full { block_size }
            | Self::SlidingWindow { block_size, .. }
            | Self::Chunked { block_size, .. }
            | Self::State { block_size }
            | Self::SinkWindow { block_size, .. } => block_size,
        }
    }

    /// Returns true if the group needs all blocks before each length.
    pub(crate) fn is_full(self) -> bool {
        matches!(self, Self::Full { .. })
    }

    pub(crate) fn is_state(self) -> bool {
        matches!(self, Self::State { .. })
    }

    /// Returns true for a kind whose contents follow the beginning of the prompt. Events tell such contents as a tree.
    pub(crate) fn needs_prefix(self) -> bool {
        matches!(self, Self::Full { .. } | Self::SinkWindow { .. })
    }

    /// Returns the first position after the sink that the token at position `length` attends to. Positions before
    /// it are not needed from `length` on.
    pub(crate) fn first_needed(self, length: usize) -> usize {
        match self {
            Self::Full { .. } => 0,
            Self::SlidingWindow { window, .. } | Self::SinkWindow { window, .. } => {
                length.saturating_sub(window - 1)
            }
            Self::Chunked { chunk, .. } => length - length % chunk,
            Self::State { .. } => length.saturating_sub(1),
        }
    }

    /// Returns the blocks at the beginning that are needed at every length.
    pub(crate) fn sink_blocks(self) -> usize {
        match self {
            Self::SinkWindow { block_size, sink, .. } => sink.div_ceil(block_size),
            _ => 0,
        }
    }

    /// Returns the blocks that a sequence of `length` tokens needs: those of the sink, and the others. `length` is a
    /// multiple of the block size.
    pub(crate) fn needed_blocks(self, length: usize) -> [Range<usize>; 2] {
        let end = length / self.block_size();
        let first = (self.first_needed(length) / self.block_size()).min(end);
        let sink = self.sink_blocks().min(first);
        [0..sink, first..end]
    }

    /// Returns the shortest length at which no block before block `end` is needed, apart from those of the sink.
    pub(crate) fn length_beyond(self, end: usize) -> usize {
        let tokens = end.saturating_mul(self.block_size());
        match self {
            Self::Full { .. } | Self::State { .. } => usize::MAX,
            Self::SlidingWindow { window, .. } | Self::SinkWindow { window, .. } => {
                tokens.saturating_add(window - 1)
            }
            Self::Chunked { chunk, .. } => tokens.div_ceil(chunk).saturating_mul(chunk),
        }
    }

    /// Returns the blocks by which a growth from `start` to `length` tokens extends the table.
    pub(crate) fn new_blocks(self, start: usize, length: usize) -> usize {
        let [start, end] = [start, length].map(|tokens| tokens.div_ceil(self.block_size()));
        match self {
            Self::State { .. } => usize::from(end > start),
            _ => end - start,
        }
    }

    /// Returns the most blocks that a sequence of at most `length` tokens holds at a time, if it grows by at most
    /// `chunk` tokens at a time and its window keeps `rewind` tokens more.
    pub(crate) fn most_blocks(self, length: usize, chunk: usize, rewind: usize) -> usize {
        let block_size = self.block_size();
        let all = length.div_ceil(block_size);
        // A window begins inside a block.
        let of_tokens = |tokens: usize| tokens.min(length).div_ceil(block_size);
        let most = match self {
            Self::Full { .. } => all,
            Self::SlidingWindow { window, .. } => {
                of_tokens((window - 1).saturating_add(rewind).saturating_add(chunk))
                    .saturating_add(1)
            }
            Self::SinkWindow { window, .. } => {
                let window = (window - 1).saturating_add(rewind).saturating_add(chunk);
                self.sink_blocks().saturating_add(of_tokens(window)).saturating_add(1)
            }
            Self::Chunked { chunk: size, .. } => {
                let is_aligned = size.is_multiple_of(block_size) && rewind == 0;
                let kept = size.saturating_add(rewind).saturating_add(chunk);
                of_tokens(kept).saturating_add(usize::from(!is_aligned))
            }
            Self::State { .. } => 3,
        };
        most.min(all)
    }

    fn refusal(self) -> Option<String> {
        let (length, name) = match self {
            Self::Full { .. } | Self::State { .. } => (1, ""),
            Self::SlidingWindow { window, .. } | Self::SinkWindow { window, .. } => {
                (window, "window")
            }
            Self::Chunked { chunk, .. } => (chunk, "chunk"),
        };
        if self.block_size() == 0 {
            return Some("a block of 0 tokens".to_owned());
        }
        (length == 0).then(|| format!("a {name} of 0 tokens"))
    }
}

/// The groups of a cache, and the numbers that follow from them.
#[derive(Clone, Debug)]
pub(crate) struct GroupLayout {
    groups: Box<[LayerGroup]>,
    /// Tokens that one hash covers: the greatest common divisor of the block sizes.
    unit: usize,
    /// Hits are multiples of this many tokens: the least common multiple of the block sizes.
    alignment: usize,
    /// Tokens by which a sequence can be truncated at any time.
    max_rewind: usize,
    retention: GroupRetention,
    /// For each group: true if every block is worth keeping.
    keeps_all: Box<[bool]>,
}

impl GroupLayout {
    /// Checks the groups of a cache.
    ///
    /// # Errors
    /// `InvalidConfig`, with the group.
    pub(crate) fn new(
        groups: &[LayerGroup],
        max_rewind: usize,
        retention: GroupRetention,
    ) -> Result<Self> {
        let refuse = |reason| Err(PagedKvError::InvalidConfig { parameter: "groups", reason });
        if groups.is_empty() || groups.len() > MOST_GROUPS {
            return refuse(format!("{}, 1 to {MOST_GROUPS} are allowed", groups.len()));
        }
        for (number, group) in groups.iter().enumerate() {
            if let Some(fault) = group.refusal() {
                return refuse(format!("group {number} has {fault}"));
            }
        }
        if retention == GroupRetention::Every(0) {
            let reason = "an interval of 0 tokens".to_owned();
            return Err(PagedKvError::InvalidConfig { parameter: "group_retention", reason });
        }
        let sizes = || groups.iter().map(|group| group.block_size());
        let unit = sizes().fold(0, greatest_common_divisor);
        let alignment = sizes().try_fold(1_usize, |multiple, size| {
            (multiple / greatest_common_divisor(multiple, size)).checked_mul(size)
        });
        let Some(alignment) = alignment.filter(|&tokens| tokens <= u32::MAX as usize) else {
            return refuse("a common multiple of the block sizes is above 2^32 - 1".to_owned());
        };
        let keeps_all = groups.iter().map(|group| {
            let is_needed_at_its_end = !group.needed_blocks(group.block_size())[1].is_empty();
            let is_aligned = group.block_size() == alignment && is_needed_at_its_end;
            let is_dense = retention == GroupRetention::Dense && is_aligned;
            is_dense && !matches!(group, LayerGroup::Chunked { .. })
                || group.is_full()
                || group.is_state()
        });
        let keeps_all = keeps_all.collect();
        Ok(Self { groups: groups.into(), unit, alignment, max_rewind, retention, keeps_all })
    }

    pub(crate) fn groups(&self) -> &[LayerGroup] {
        &self.groups
    }

    pub(crate) fn len(&self) -> usize {
        self.groups.len()
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = GroupId> + use<> {
        (0..self.groups.len() as u8).map(GroupId)
    }

    pub(crate) fn unit(&self) -> usize {
        self.unit
    }

    pub(crate) fn alignment(&self) -> usize {
        self.alignment
    }

    pub(crate) fn max_rewind(&self) -> usize {
        self.max_rewind
    }

    /// Returns the longest length of a hit of at most `num_tokens` tokens.
    pub(crate) fn aligned(&self, num_tokens: usize) -> usize {
        num_tokens - num_tokens % self.alignment
    }

    /// Returns how many units of a hash a block of the group has.
    pub(crate) fn units_a_block(&self, group: GroupId) -> usize {
        self.groups[group.index()].block_size() / self.unit
    }

    /// Returns the blocks of all groups by which a growth from `start` to `length` tokens extends the tables.
    pub(crate) fn new_blocks(&self, start: usize, length: usize) -> usize {
        self.groups.iter().map(|group| group.new_blocks(start, length)).sum()
    }

    /// Returns true if a hit needs a block of a group that the retention publishes. `prompt_tokens` is the length of
    /// the prompt of the sequence.
    pub(crate) fn is_worth_keeping(
        &self,
        group: GroupId,
        block: usize,
        prompt_tokens: usize,
    ) -> bool {
        let kind = self.groups[group.index()];
        if self.keeps_all[group.index()] || block < kind.sink_blocks() {
            return true;
        }
        let needs = |length: usize| {
            let [_, needed] = kind.needed_blocks(length);
            needed.contains(&block)
        };
        let end = (block + 1) * kind.block_size();
        // Of longer lengths, each needs later blocks.
        let at_multiple_of = |tokens: usize| needs(end.div_ceil(tokens).saturating_mul(tokens));
        let at_end_of_prompt = || {
            let last = prompt_tokens.saturating_sub(1);
            needs(self.aligned(last)) || needs(self.aligned(prompt_tokens))
        };
        match self.retention {
            GroupRetention::Dense => at_multiple_of(self.alignment),
            GroupRetention::Every(tokens) => {
                let tokens = tokens.div_ceil(self.alignment).saturating_mul(self.alignment);
                at_multiple_of(tokens) || at_end_of_prompt()
            }
            GroupRetention::PromptEnd => at_end_of_prompt(),
        }
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}
