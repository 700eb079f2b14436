//! `PagedKvError`: every refusal in the crate, each with its arithmetic.
//!
//! A refused call has changed nothing. Broken invariants of the crate itself are asserts and not errors.

use crate::id::{BlockId, GroupId, SeqId};

/// The result of a call that can be refused.
///
/// ```
/// fn room_for(pool: &paged_kv::BlockPool, n: usize) -> paged_kv::Result<()> {
///     pool.allocate(n).map(drop)
/// }
/// assert!(room_for(&paged_kv::BlockPool::new(4), 5).is_err());
/// ```
pub type Result<T, E = PagedKvError> = std::result::Result<T, E>;

/// The reason why a call was refused. The call changed nothing.
///
/// ```
/// use paged_kv::{BlockPool, PagedKvError};
///
/// let pool = BlockPool::new(4);
/// let refusal = pool.allocate(5).unwrap_err();
/// assert_eq!(refusal, PagedKvError::OutOfMemory { requested: 5, available: 4 });
/// assert_eq!(refusal.to_string(), "out of memory: 5 blocks requested, 4 available");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PagedKvError {
    /// At some moment during the call there was room for `available` blocks, fewer than requested.
    /// Blocks held by operations in flight on other threads count as used.
    #[error("out of memory: {requested} blocks requested, {available} available")]
    OutOfMemory {
        /// Blocks the call needed.
        requested: usize,
        /// Blocks there was room for.
        available: usize,
    },
    /// The memory allocator has no room for the arrays of a cache or pool of this size.
    #[error("out of host memory: {bytes} bytes requested")]
    OutOfHostMemory {
        /// Bytes of the array that was refused.
        bytes: usize,
    },
    /// No sequence of that id is in the cache.
    #[error("sequence {0} not found")]
    SequenceNotFound(SeqId),
    /// The sequence has a [`Worker`](crate::Worker) and was evicted. Operations on the id return this until the
    /// worker frees it, which returns this a last time, or until a new sequence takes the id.
    #[error("sequence {0} was evicted")]
    SequenceEvicted(SeqId),
    /// A sequence of that id is in the cache already.
    #[error("sequence {0} exists already")]
    SequenceExists(SeqId),
    /// The sequence is leased: it can be neither freed, trimmed nor evicted until the lease ends.
    #[error("sequence {0} is leased")]
    SequenceLeased(SeqId),
    /// The pool has no such block, or the block has no owner (for example after a second release).
    #[error("block {0} not found: not of this pool, free, or not counted by id")]
    BlockNotFound(BlockId),
    /// The block has as many owners as its word can count.
    #[error("block {0} has too many owners: 2^20 - 1 can be counted")]
    TooManyOwners(BlockId),
    /// No unleased sequence is left whose eviction could free a block.
    #[error("nothing to evict: no unleased sequence holds a block that evicting could free")]
    NothingToEvict,
    /// Every sequence that has blocks waits for room that only the others could free. The eviction strategy
    /// would take this sequence: its caller should free it and admit it again.
    #[error("stalled: every sequence waits for room, and sequence {0} is the one to give up")]
    Stalled(SeqId),
    /// The deadline passed before there was room.
    #[error("the deadline passed before there was room")]
    DeadlinePassed,
    /// The sequence's length would not fit in a `usize`.
    #[error("too many tokens: {num_tokens} and {additional} more overflow")]
    TooManyTokens {
        /// Tokens of the sequence before the call.
        num_tokens: usize,
        /// Tokens the call would have added.
        additional: usize,
    },
    /// A truncation to more tokens than the sequence has.
    #[error("cannot truncate to {requested} tokens: the sequence has {num_tokens}")]
    TruncateBeyondEnd {
        /// Length asked for, in tokens.
        requested: usize,
        /// Length of the sequence, in tokens.
        num_tokens: usize,
    },
    /// A commit of more tokens than the sequence has slots for.
    #[error("cannot commit {requested} tokens: the sequence has {num_tokens}")]
    CommitBeyondEnd {
        /// Length to be committed, in tokens.
        requested: usize,
        /// Length of the sequence, in tokens.
        num_tokens: usize,
    },
    /// An earlier trim released the block that holds this position, so the sequence cannot end inside it.
    #[error("position {position} is in a block that was trimmed")]
    TokensTrimmed {
        /// A token position, counted from the start of the sequence.
        position: usize,
    },
    /// A truncation to a length that needs blocks that a window has released, or a state that is gone. See
    /// [`PagedKvCacheBuilder::max_rewind`](crate::PagedKvCacheBuilder::max_rewind).
    #[error(
        "cannot truncate to {requested} tokens: {group} has released blocks, {shortest} is possible"
    )]
    WindowReleased {
        /// The group.
        group: GroupId,
        /// Length asked for, in tokens.
        requested: usize,
        /// The shortest length above 0 that the group allows, in tokens.
        shortest: usize,
    },
    /// A fork of a sequence of which copies are pending: its blocks have not been written. A step that the sequence
    /// grows in, also by 0 tokens, lists them; [`Sequence::take_copies`](crate::Sequence::take_copies) returns them.
    #[error(
        "cannot fork: {copies} copies are pending, which a step that the sequence grows in lists"
    )]
    CopiesPending {
        /// Copies that are pending.
        copies: usize,
    },
    /// A range of token positions that is reversed or ends after the sequence.
    #[error("tokens {start}..{end} are not in a sequence of {num_tokens}")]
    TokenRange {
        /// First position asked for.
        start: usize,
        /// One past the last position asked for.
        end: usize,
        /// Length of the sequence, in tokens.
        num_tokens: usize,
    },
    /// Tokens that fill blocks were committed, and the hashes of these blocks are not known: the sequence was
    /// admitted by hashes. Commit the hashes of the blocks.
    #[error("cannot commit {requested} tokens: hashes of the first {known} tokens are known")]
    HashesUnknown {
        /// Tokens at the beginning of the sequence whose blocks have known hashes.
        known: usize,
        /// Tokens to be committed, counted from the beginning.
        requested: usize,
    },
    /// Copies of a load were not done, in a cache with groups of layers. The request ended with it: admit it again. The
    /// contents that were copied are on the device now.
    #[error("{failed_blocks} of the {loads} copies of a load were not done")]
    LoadFailed {
        /// Copies that were not done.
        failed_blocks: usize,
        /// Copies of the load.
        loads: usize,
    },
    /// Tokens cannot be named: tokens before them have slots and no names.
    #[error(
        "only {named} of the {num_tokens} tokens are named: the next to be named is not the last"
    )]
    UnnamedTokens {
        /// Tokens that are named.
        named: usize,
        /// Tokens that have slots.
        num_tokens: usize,
    },
    /// A parameter is not valid.
    #[error("invalid {parameter}: {reason}")]
    InvalidConfig {
        /// Name of the parameter.
        parameter: &'static str,
        /// The rule that it breaks.
        reason: String,
    },
    /// The caller passed a value that another cache made.
    #[error("the {value} was made by another cache")]
    WrongCache {
        /// The value: a step, a row, a reservation.
        value: &'static str,
    },
    /// The prompt was hashed in another way than this cache does: its hashes would name other contents.
    #[error("the prompt is hashed by {of_prompt}, the cache hashes by {of_cache}")]
    PromptMismatch {
        /// Hashing of the prompt: algorithm and block size, and whether it uses the cache's key.
        of_prompt: String,
        /// Hashing of the cache.
        of_cache: String,
    },
    /// A caller's buffer has the wrong number of elements.
    #[error("buffer {buffer} has {actual} elements, {required} required")]
    BufferSize {
        /// Name of the buffer.
        buffer: &'static str,
        /// Elements required.
        required: usize,
        /// Elements given.
        actual: usize,
    },
    /// A row of a block table is too short for the sequence's blocks.
    #[error("row {row} has {blocks} blocks, the stride is {stride}")]
    StrideTooSmall {
        /// Number of the row in the batch.
        row: usize,
        /// Blocks that the row would have to show.
        blocks: usize,
        /// Columns of the table.
        stride: usize,
    },
    /// A block id or slot does not fit the integer type of the caller's buffer.
    #[error("{value} does not fit {target}")]
    IdTooLarge {
        /// The id or slot.
        value: u64,
        /// Name of the integer type.
        target: &'static str,
    },
    /// The check found operations in flight on other threads and cannot decide.
    #[error("busy: operations in flight on other threads")]
    Busy,
    /// The check found a broken invariant: a defect of this crate, or of a caller that released a block that it
    /// did not own.
    #[error("inconsistent: {0}")]
    Inconsistent(String),
}

impl PagedKvError {
    /// Returns the kind of this refusal, by which a caller decides. The guide's page *errors* says for each
    /// variant whether to retry.
    ///
    /// ```
    /// use paged_kv::{BlockPool, ErrorKind};
    ///
    /// assert_eq!(BlockPool::new(4).allocate(5).unwrap_err().kind(), ErrorKind::NoRoom);
    /// ```
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::OutOfMemory { .. } | Self::NothingToEvict => ErrorKind::NoRoom,
            Self::SequenceNotFound(_) | Self::BlockNotFound(_) => ErrorKind::NotFound,
            Self::SequenceExists(_) | Self::SequenceLeased(_) | Self::Busy => ErrorKind::Conflict,
            Self::TruncateBeyondEnd { .. }
            | Self::CommitBeyondEnd { .. }
            | Self::TokensTrimmed { .. }
            | Self::WindowReleased { .. }
            | Self::CopiesPending { .. }
            | Self::TokenRange { .. }
            | Self::HashesUnknown { .. }
            | Self::UnnamedTokens { .. }
            | Self::InvalidConfig { .. }
            | Self::WrongCache { .. }
            | Self::PromptMismatch { .. }
            | Self::BufferSize { .. }
            | Self::StrideTooSmall { .. } => ErrorKind::Misuse,
            Self::OutOfHostMemory { .. }
            | Self::TooManyOwners(_)
            | Self::TooManyTokens { .. }
            | Self::IdTooLarge { .. } => ErrorKind::Limit,
            Self::SequenceEvicted(_)
            | Self::LoadFailed { .. }
            | Self::Stalled(_)
            | Self::DeadlinePassed => ErrorKind::Interrupted,
            Self::Inconsistent(_) => ErrorKind::Defect,
        }
    }
}

/// The kind of a [`PagedKvError`].
///
/// ```
/// use paged_kv::{ErrorKind, PagedKvCache, SeqId};
///
/// let cache = PagedKvCache::new(4, 16, 1, 1);
/// assert_eq!(cache.free(SeqId(1)).unwrap_err().kind(), ErrorKind::NotFound);
/// assert_eq!(cache.allocate(SeqId(1), 65).unwrap_err().kind(), ErrorKind::NoRoom);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Too few blocks now. Retry after others were released, or evict.
    NoRoom,
    /// No such sequence or block.
    NotFound,
    /// Another sequence, lease or call is in the way. Retry after it ended.
    Conflict,
    /// The arguments break a rule: an error of the caller.
    Misuse,
    /// A number is beyond the limit of a counter, an integer type or the host's memory.
    Limit,
    /// The request was ended by an eviction, a deadlock or its deadline. Admit it again, or give it up.
    Interrupted,
    /// An invariant is broken. Report it, and make a new cache.
    Defect,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page's second table has a row for each variant, with its kind.
    #[test]
    fn the_guide_has_the_kind_of_every_variant() {
        let page = include_str!("guide/errors.md");
        let source = include_str!("error.rs");
        let enumeration = source.split("pub enum PagedKvError {").nth(1).expect("the enum");
        let body = enumeration.split("\n}").next().expect("its end");
        let is_variant =
            |line: &&str| line.starts_with("    ") && line.as_bytes()[4].is_ascii_uppercase();
        let name_of = |line: &str| {
            let end = line.trim().find(|c: char| !c.is_alphanumeric());
            line.trim()[..end.unwrap_or(line.trim().len())].to_owned()
        };
        let variants: Vec<String> =
            body.lines().filter(|line| line.len() > 4).filter(is_variant).map(name_of).collect();
        let rows: Vec<String> = page
            .lines()
            .filter(|line| line.starts_with("| `") && line.matches('`').count() >= 4)
            .map(|line| line.split('`').nth(1).expect("a name").to_owned())
            .filter(|name| variants.contains(name))
            .collect();
        assert!(variants.len() > 20, "{variants:?}");
        let missing: Vec<_> = variants.iter().filter(|name| !rows.contains(name)).collect();
        assert!(missing.is_empty() && rows.len() == variants.len(), "{missing:?}, {rows:?}");
        for refusal in samples() {
            let debug = format!("{refusal:?}");
            let name = debug.split([' ', '(']).next().expect("a name");
            let row = format!("| `{name}` | `{:?}` |", refusal.kind());
            assert!(page.contains(&row), "{row}");
        }
    }

    fn samples() -> Vec<PagedKvError> {
        use PagedKvError::*;
        let (requested, text) = (1, String::new);
        vec![
            OutOfMemory { requested, available: 0 },
            NothingToEvict,
            SequenceNotFound(SeqId(1)),
            BlockNotFound(BlockId(1)),
            SequenceExists(SeqId(1)),
            SequenceLeased(SeqId(1)),
            Busy,
            TruncateBeyondEnd { requested, num_tokens: 0 },
            CommitBeyondEnd { requested, num_tokens: 0 },
            TokensTrimmed { position: 0 },
            TokenRange { start: 0, end: 1, num_tokens: 0 },
            HashesUnknown { known: 0, requested: 1 },
            LoadFailed { failed_blocks: 1, loads: 2 },
            UnnamedTokens { named: 0, num_tokens: 1 },
            InvalidConfig { parameter: "", reason: text() },
            WrongCache { value: "" },
            PromptMismatch { of_prompt: text(), of_cache: text() },
            BufferSize { buffer: "", required: 1, actual: 0 },
            StrideTooSmall { row: 0, blocks: 1, stride: 0 },
            OutOfHostMemory { bytes: 1 },
            TooManyOwners(BlockId(1)),
            TooManyTokens { num_tokens: 1, additional: 1 },
            IdTooLarge { value: 1, target: "" },
            SequenceEvicted(SeqId(1)),
            Stalled(SeqId(1)),
            DeadlinePassed,
            Inconsistent(text()),
        ]
    }
}
