//! `Append` and `BlockCopy`: the result of an append, with the new blocks and the copy that the caller has to
//! make.

use std::fmt;
use std::ops::Range;

use crate::id::BlockId;
use crate::table::BlockPin;

/// The result of an append: the change of a block table.
///
/// Dropping it releases the source of the copy, so keep it until the copy is made.
///
/// ```
/// use paged_kv::{PagedKvCache, PagedKvError};
///
/// let cache = PagedKvCache::new(8, 4, 1, 1);
/// let mut sequence = cache.allocate_sequence(6)?; // one full block, one half full
/// let mut fork = sequence.fork()?;
/// let append = fork.append(3)?; // writes into the shared half-full block, and one new block
/// assert_eq!(append.new_blocks, 2..3);
/// let copy = append.copy.as_ref().expect("the half-full block was shared");
/// assert_eq!(copy.src, sequence.block_ids()[1]);
/// assert_eq!(copy.dst, fork.block_ids()[1]);
/// # Ok::<(), PagedKvError>(())
/// ```
#[derive(Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[must_use = "a copy-on-write has to be carried out, and its source is let go when this is dropped"]
pub struct Append {
    /// The blocks that the append added: a range of the sequence's resident blocks. The destination of a copy
    /// is not among them, because it replaced the source.
    pub new_blocks: Range<usize>,
    /// The copy to make before the new tokens are written, if the last block was shared.
    pub copy: Option<BlockCopy>,
}

/// A copy of one block's keys and values that copy-on-write asks the caller to make.
///
/// The source stays alive, and counts as owned by the sequence that copies, until this is dropped. If another
/// sharer appends before that, it copies too.
///
/// ```
/// let pool = paged_kv::BlockPool::new(4);
/// let mut sequence = pool.allocate_sequence(2, 4)?;
/// let mut fork = sequence.fork()?;
/// let copy = fork.append(1)?.copy.expect("the block was shared");
/// drop(sequence);
/// assert_eq!(pool.owners(copy.src)?, 1); // the copy keeps it
/// drop(copy);
/// assert_eq!(pool.used_block_count(), 1);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
// `repr(C)` here and in `BlockPin` keeps the pointer last, so that the word for "no copy" is moved by itself.
// In the compiler's own order it would be moved together with words that were not just written. The failed
// store forwarding would then stall every append (8.4 ns instead of 3 ns).
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[must_use = "the copy has to be made before this is dropped"]
#[repr(C)]
pub struct BlockCopy {
    /// The block to copy from.
    pub src: BlockId,
    /// The block to copy to, now in the place of `src`.
    pub dst: BlockId,
    #[cfg_attr(feature = "serde", serde(skip))]
    _source: BlockPin,
}

impl BlockCopy {
    pub(super) fn new(source: BlockPin, dst: BlockId) -> Self {
        Self { src: source.id(), dst, _source: source }
    }

    /// Returns the source, the destination, and the owner of the source.
    pub(super) fn into_parts(self) -> (BlockId, BlockId, BlockPin) {
        (self.src, self.dst, self._source)
    }
}

impl fmt::Debug for BlockCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockCopy").field("src", &self.src).field("dst", &self.dst).finish()
    }
}
