//! `Sequence`: a block table seen as tokens. It finds a token's slot, and decides whether a block must be
//! copied.
//!
//! ```text
//!   tokens   0 1 2 3 │ 4 5 6 7 │ 8 9 . .        block_size 4, num_tokens 10, tail_room 2
//!   logical     0    │    1    │    2
//!   table      B4    │  (gap)  │   B9           a trim gave up logical block 1
//! ```
//!
//! Invariants: resident blocks and gaps together are `ceil(num_tokens / block_size)` logical
//! blocks; a partly filled last block is resident and private to the table (though others may
//! own it too); it is written only when this sequence is its only owner.

mod append;
mod append_result;
mod gaps;
mod groups;
mod in_step;
pub(crate) mod retain;
mod shared_tails;
mod uses;

use std::ops::Range;

pub(crate) use self::append::AppendPlan;
pub use self::append_result::{Append, BlockCopy};
use self::gaps::TrimmedBlocks;
pub use self::groups::GroupCopy;
use self::groups::SequenceGroups;
pub(crate) use self::shared_tails::SharedTails;
pub(crate) use self::uses::SequenceUses;
use crate::error::{PagedKvError, Result};
use crate::id::BlockId;
use crate::pool::BlockPool;
use crate::pool::watermark::NewBlocks;
use crate::sync::PlainArc;
use crate::table::BlockTable;

/// One request's KV cache as an owned handle: no id, no map, no lock.
///
/// [`PagedKvCache::allocate_sequence`](crate::PagedKvCache::allocate_sequence) and
/// [`BlockPool::allocate_sequence`] create it. Dropping it frees its blocks, from any thread.
///
/// ```
/// use paged_kv::{BlockPool, PagedKvError};
///
/// let pool = BlockPool::new(4);
/// let mut sequence = pool.allocate_sequence(30, 16)?;
/// assert_eq!(sequence.num_blocks(), 2);
/// let append = sequence.append(4)?;
/// assert_eq!(append.new_blocks, 2..3);
/// assert!(matches!(
///     sequence.append(1_000),
///     Err(PagedKvError::OutOfMemory { requested: 62, available: 1 }),
/// ));
/// assert_eq!(sequence.num_tokens(), 34);
/// # Ok::<(), PagedKvError>(())
/// ```
#[derive(Debug)]
pub struct Sequence {
    table: BlockTable,
    num_tokens: usize,
    /// Slots of the last block that no token has yet, below `block_size`.
    tail_room: usize,
    block_size: usize,
    /// True when the last block is known to have no other owner. Only a fork of this sequence, or counting by
    /// id, adds one. Spares an append the read of the block's word.
    tail_is_sole: bool,
    gaps: TrimmedBlocks,
    /// The tables of other groups, in a cache with groups. Then this table is group 0's.
    groups: Option<Box<SequenceGroups>>,
    /// The facts for the reclaim order, where it learns or the caller gave levels.
    uses: Option<PlainArc<SequenceUses>>,
}

impl BlockPool {
    /// Allocates a sequence of `num_tokens` tokens in blocks of `block_size` tokens.
    ///
    /// # Errors
    /// [`OutOfMemory`](PagedKvError::OutOfMemory),
    /// [`TooManyTokens`](PagedKvError::TooManyTokens), and
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) for a block of 0 tokens, or of so many that slots
    /// overflow a `u64`.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(4);
    /// assert_eq!(pool.allocate_sequence(33, 16)?.num_blocks(), 3);
    /// assert!(pool.allocate_sequence(65, 16).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn allocate_sequence(&self, num_tokens: usize, block_size: usize) -> Result<Sequence> {
        if block_size == 0 {
            let reason = "0, a block has room for at least one token".to_owned();
            return Err(PagedKvError::InvalidConfig { parameter: "block_size", reason });
        }
        if (self.total_blocks() as u64 + 1).checked_mul(block_size as u64).is_none() {
            let reason = format!("{block_size}: slots overflow 64 bits");
            return Err(PagedKvError::InvalidConfig { parameter: "block_size", reason });
        }
        if num_tokens.checked_add(block_size).is_none() {
            return Err(PagedKvError::TooManyTokens { num_tokens: 0, additional: num_tokens });
        }
        let num_blocks = num_tokens.div_ceil(block_size);
        let mut table = self.allocate(num_blocks)?;
        table.reserve_for_growth();
        let tail_room = num_blocks * block_size - num_tokens;
        let (gaps, groups, uses) = (TrimmedBlocks::default(), None, None);
        let tail_is_sole = true;
        Ok(Sequence { table, num_tokens, tail_room, block_size, tail_is_sole, gaps, groups, uses })
    }
}

impl NewBlocks for Sequence {
    fn num_blocks_freed(&self) -> usize {
        self.tables().map(BlockTable::num_blocks_freed).sum()
    }

    fn forget_uses(&mut self) {
        self.uses = None;
    }
}

impl BlockPool {
    /// Creates a sequence of full blocks that the caller owns by their words.
    pub(crate) fn sequence_of(&self, ids: Vec<BlockId>, block_size: usize) -> Sequence {
        let num_tokens = ids.len() * block_size;
        let mut sequence = Sequence::empty(self.table_of(ids), block_size);
        sequence.num_tokens = num_tokens;
        sequence
    }
}

impl Sequence {
    /// Creates a sequence without tokens, whose blocks will be in `table`. The cache has no groups.
    pub(crate) fn empty(table: BlockTable, block_size: usize) -> Self {
        let (gaps, groups, uses) = (TrimmedBlocks::default(), None, None);
        let (num_tokens, tail_room, tail_is_sole) = (0, 0, false);
        Self { table, num_tokens, tail_room, block_size, tail_is_sole, gaps, groups, uses }
    }

    /// Returns the logical length in tokens, trimmed ones included.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(8);
    /// let sequence = pool.allocate_sequence(6, 4)?;
    /// assert_eq!(sequence.num_tokens(), 6);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    #[inline]
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Returns the number of tokens in a block.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(8);
    /// let sequence = pool.allocate_sequence(6, 4)?;
    /// assert_eq!(sequence.block_size(), 4);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    #[inline]
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Returns the resident blocks, in order.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(8);
    /// let sequence = pool.allocate_sequence(6, 4)?;
    /// assert_eq!(sequence.block_ids().len(), 2);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    #[inline]
    pub fn block_ids(&self) -> &[BlockId] {
        self.table.as_slice()
    }

    /// Returns the number of resident blocks.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(8);
    /// let mut sequence = pool.allocate_sequence(32, 4)?;
    /// sequence.apply_streaming_llm(4, 8);
    /// assert_eq!(sequence.num_blocks(), 3);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    #[inline]
    pub fn num_blocks(&self) -> usize {
        self.table.len()
    }

    /// Returns the number of logical blocks: `ceil(num_tokens / block_size)`, trimmed ones included.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(8);
    /// let mut sequence = pool.allocate_sequence(32, 4)?;
    /// sequence.apply_streaming_llm(4, 8);
    /// assert_eq!(sequence.num_logical_blocks(), 8);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    #[inline]
    pub fn num_logical_blocks(&self) -> usize {
        (self.num_tokens + self.tail_room) / self.block_size
    }

    /// Returns the ranges of logical blocks that were trimmed: sorted, disjoint, not touching.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(8);
    /// let mut sequence = pool.allocate_sequence(32, 4)?;
    /// sequence.apply_streaming_llm(4, 8);
    /// assert_eq!(sequence.gaps(), [1..6]);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    #[inline]
    pub fn gaps(&self) -> &[Range<usize>] {
        self.gaps.as_slice()
    }

    /// Returns the block of a logical block index; `None` after the end and where it was trimmed.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(8);
    /// let mut sequence = pool.allocate_sequence(32, 4)?;
    /// sequence.apply_streaming_llm(4, 8);
    /// assert_eq!(sequence.block_at(6), Some(sequence.block_ids()[1]));
    /// assert_eq!((sequence.block_at(1), sequence.block_at(8)), (None, None));
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn block_at(&self, logical_block: usize) -> Option<BlockId> {
        if logical_block >= self.num_logical_blocks() {
            return None;
        }
        self.gaps.resident(logical_block).map(|index| self.block_ids()[index])
    }

    /// Returns the slot (`block_id * block_size + offset`) of a token position; `None` after the end and
    /// where its block was trimmed.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(8);
    /// let sequence = pool.allocate_sequence(6, 4)?;
    /// let block = u64::from(sequence.block_ids()[1].0);
    /// assert_eq!(sequence.slot(5), Some(block * 4 + 1));
    /// assert_eq!(sequence.slot(6), None);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn slot(&self, position: usize) -> Option<u64> {
        if position >= self.num_tokens {
            return None;
        }
        let block = self.block_at(position / self.block_size)?;
        let offset = position % self.block_size;
        Some(u64::from(block.0) * self.block_size as u64 + offset as u64)
    }

    /// Creates a second sequence of the same tokens and blocks, the partly filled one too.
    ///
    /// Costs at most two counts of blocks whatever the length (a run's and the tail's), and `O(blocks)`
    /// copied ids.
    ///
    /// # Errors
    /// [`TooManyOwners`](PagedKvError::TooManyOwners) when a partly filled block has 2^20 - 1 owners.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(8);
    /// let mut sequence = pool.allocate_sequence(6, 4)?;
    /// let fork = sequence.fork()?;
    /// assert_eq!(fork.block_ids(), sequence.block_ids());
    /// assert_eq!(pool.used_block_count(), 2);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn fork(&mut self) -> Result<Sequence> {
        let fork = self.fork_uncounted()?;
        self.table.pool().count_fork();
        Ok(fork)
    }

    /// Forks without counting the fork, for a caller that may have to undo it.
    pub(crate) fn fork_uncounted(&mut self) -> Result<Sequence> {
        if self.groups.is_some() {
            return self.fork_groups();
        }
        self.fork_alone()
    }

    /// Does as [`fork_uncounted`](Self::fork_uncounted) without the other groups.
    #[inline]
    fn fork_alone(&mut self) -> Result<Sequence> {
        let full_blocks = self.num_blocks() - usize::from(self.tail_room > 0);
        let table = self.table.fork(full_blocks)?;
        self.tail_is_sole = false;
        let (gaps, uses) = (self.gaps.clone(), self.uses_of_fork());
        Ok(Sequence { table, gaps, groups: None, uses, ..*self })
    }

    /// Drops the tokens from `num_tokens` on, and the whole blocks after the new end. Speculative decoding
    /// drops rejected tokens by it. Costs `O(blocks dropped)`. Where the cut falls into a run that others
    /// share, each block kept of that run costs one count.
    ///
    /// # Errors
    /// [`TruncateBeyondEnd`](PagedKvError::TruncateBeyondEnd) if `num_tokens` is above the length,
    /// [`TokensTrimmed`](PagedKvError::TokensTrimmed) if the new end is inside a trimmed block, and
    /// [`TooManyOwners`](PagedKvError::TooManyOwners) if a block of such a run has 2^20 - 1 owners.
    ///
    /// ```
    /// use paged_kv::PagedKvError;
    ///
    /// let pool = paged_kv::BlockPool::new(8);
    /// let mut sequence = pool.allocate_sequence(14, 4)?;
    /// sequence.truncate(5)?;
    /// assert_eq!((sequence.num_tokens(), sequence.num_blocks()), (5, 2));
    /// let refused = sequence.truncate(6).unwrap_err();
    /// assert_eq!(refused, PagedKvError::TruncateBeyondEnd { requested: 6, num_tokens: 5 });
    /// # Ok::<(), PagedKvError>(())
    /// ```
    pub fn truncate(&mut self, num_tokens: usize) -> Result<()> {
        if num_tokens > self.num_tokens {
            let (requested, num_tokens) = (num_tokens, self.num_tokens);
            return Err(PagedKvError::TruncateBeyondEnd { requested, num_tokens });
        }
        if num_tokens == self.num_tokens {
            return Ok(());
        }
        if self.groups.is_some() {
            return self.truncate_groups(num_tokens, false);
        }
        let (keep, num_blocks) = self.blocks_kept(num_tokens)?;
        let logical_blocks = num_tokens.div_ceil(self.block_size);
        let tail_room = logical_blocks * self.block_size - num_tokens;
        // A full last block may have been published since, and then it must not be written again.
        let is_same_tail = num_blocks == self.num_blocks() && self.tail_room > 0;
        // From the block on that an append would write or copy.
        self.note_levels(|| num_tokens / self.block_size..self.num_logical_blocks());
        self.table.cut(keep, num_blocks..self.table.len())?;
        self.gaps.truncate(logical_blocks);
        self.num_tokens = num_tokens;
        self.tail_room = tail_room;
        self.tail_is_sole &= is_same_tail;
        Ok(())
    }

    /// Returns the error that [`truncate`](Self::truncate) would return now, for at most as many tokens as
    /// there are.
    pub(crate) fn check_truncate(&self, num_tokens: usize) -> Result<()> {
        match self.groups {
            None => self.check_own_truncate(num_tokens),
            Some(_) => self.check_truncate_groups(num_tokens, true),
        }
    }

    fn check_own_truncate(&self, num_tokens: usize) -> Result<()> {
        let (keep, num_blocks) = self.blocks_kept(num_tokens)?;
        self.table.check_cut(keep, num_blocks..self.table.len())
    }

    /// Returns two numbers of resident blocks: those that stay but need not be private, and all that stay.
    fn blocks_kept(&self, num_tokens: usize) -> Result<(usize, usize)> {
        let logical_blocks = num_tokens.div_ceil(self.block_size);
        let is_partly_filled = !num_tokens.is_multiple_of(self.block_size);
        if is_partly_filled && self.gaps.resident(logical_blocks - 1).is_none() {
            return Err(PagedKvError::TokensTrimmed { position: num_tokens });
        }
        // A last block that was full when it was shared, and is partly filled from now on, has to be private.
        let num_blocks = self.gaps.resident_before(logical_blocks);
        Ok((num_blocks - usize::from(is_partly_filled), num_blocks))
    }

    /// Keeps every block that holds some of the first `sink_tokens` or the last `window_tokens` tokens, and
    /// releases the whole blocks between. Returns the released number of tokens (a multiple of the block
    /// size). A block that others own too stays theirs. A partly filled last block is never released. Costs
    /// `O(blocks)`.
    ///
    /// The logical length stays, and so do positions. Later calls may use other values.
    ///
    /// # Errors
    /// [`TooManyOwners`](PagedKvError::TooManyOwners) if a block that stays, of a run that other sequences
    /// share, has 2^20 - 1 owners; nothing has changed.
    ///
    /// Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", ICLR 2024.
    ///
    /// ```
    /// let pool = paged_kv::BlockPool::new(8);
    /// let mut sequence = pool.allocate_sequence(30, 4)?;
    /// assert_eq!(sequence.apply_streaming_llm(3, 6)?, 20); // blocks 1..6 of 0..8
    /// assert_eq!(sequence.num_tokens(), 30);
    /// assert_eq!(sequence.num_blocks(), 3);
    /// assert_eq!(sequence.apply_streaming_llm(3, 6)?, 0);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn apply_streaming_llm(
        &mut self,
        sink_tokens: usize,
        window_tokens: usize,
    ) -> Result<usize> {
        if self.groups.is_some() {
            return self.trim_groups(sink_tokens, window_tokens);
        }
        let sink_end = sink_tokens.min(self.num_tokens).div_ceil(self.block_size);
        let window_start = self.num_tokens.saturating_sub(window_tokens) / self.block_size;
        if sink_end >= window_start {
            return Ok(0);
        }
        self.note_levels(|| sink_end..window_start);
        let resident = self.gaps.resident_before(sink_end)..self.gaps.resident_before(window_start);
        let given_up = resident.len();
        self.table.remove(resident)?;
        self.gaps.insert(sink_end..window_start);
        Ok(given_up * self.block_size)
    }

    /// Returns the last block, if it is resident, and the number of tokens in it.
    #[inline]
    pub(crate) fn tail(&self) -> Option<(BlockId, usize)> {
        // A full last block can have been trimmed.
        let is_resident = self.tail_room > 0 || self.gaps.as_slice().is_empty();
        let last = self.block_ids().last().filter(|_| is_resident);
        last.map(|&last| (last, self.block_size - self.tail_room))
    }

    /// Returns the number of blocks before the first gap.
    pub(crate) fn whole_blocks(&self) -> usize {
        self.gaps.as_slice().first().map_or(self.num_blocks(), |gap| gap.start)
    }

    /// Returns the largest block id of the pool, which bounds every block that this sequence may ever own.
    pub(crate) fn largest_id_of_pool(&self) -> u32 {
        self.table.pool().largest_id()
    }

    pub(crate) fn table(&self) -> &BlockTable {
        &self.table
    }
}

#[cfg(test)]
impl Sequence {
    /// Breaks the invariant, for a test of the audit.
    pub(crate) fn lose_last_block(&mut self) {
        self.table.truncate(self.table.len() - 1).expect("the table has that many");
    }
}
