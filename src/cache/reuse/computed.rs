//! `Computed`: the tokens whose keys and values are computed, as a commit reports them.

use crate::prefix::BlockHash;

/// Tokens of a sequence whose keys and values are computed: the argument of a commit.
///
/// ```
/// use paged_kv::{Computed, PagedKvCache, SeqId};
///
/// let cache = PagedKvCache::new(4, 4, 1, 1);
/// cache.admit(SeqId(1), &[1, 2, 3])?;
/// assert_eq!(cache.commit(SeqId(1), 3)?, 0); // as `Computed::Tokens(3)`
/// let _ = cache.append(SeqId(1), 1)?;
/// assert_eq!(cache.commit(SeqId(1), &[4])?, 1); // as `Computed::Named(&[4])`
/// assert_eq!(Computed::from(3), Computed::Tokens(3));
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Computed<'a> {
    /// The first tokens of the sequence, by number. Their values are known: a prompt's, and those that were
    /// named.
    Tokens(usize),
    /// All known tokens, and these after them, which were generated or accepted. They have slots. Of a sequence
    /// that was admitted by hashes, only their number counts, and they must fill no block whose hash is unknown.
    /// A sequence that was admitted by neither ignores them, and publishes no block.
    Named(&'a [u32]),
    /// The hashes of the next full blocks, after the last block whose hash is known. Only for a sequence whose
    /// blocks the caller hashes, admitted by [`Prompt::from_hashes`](crate::Prompt::from_hashes): the blocks up
    /// to the last of these hashes have slots and are computed. After a step that failed, the hashes stay known
    /// as long as their blocks have slots: commit these blocks by their number of tokens then.
    Hashed(&'a [BlockHash]),
}

impl From<usize> for Computed<'_> {
    fn from(num_tokens: usize) -> Self {
        Self::Tokens(num_tokens)
    }
}

impl<'a> From<&'a [u32]> for Computed<'a> {
    fn from(tokens: &'a [u32]) -> Self {
        Self::Named(tokens)
    }
}

impl<'a, const N: usize> From<&'a [u32; N]> for Computed<'a> {
    fn from(tokens: &'a [u32; N]) -> Self {
        Self::Named(tokens)
    }
}

impl<'a> From<&'a Vec<u32>> for Computed<'a> {
    fn from(tokens: &'a Vec<u32>) -> Self {
        Self::Named(tokens)
    }
}

/// Of hashes a slice, not an array: so the type of an empty array of tokens follows from its use.
impl<'a> From<&'a [BlockHash]> for Computed<'a> {
    fn from(hashes: &'a [BlockHash]) -> Self {
        Self::Hashed(hashes)
    }
}

impl<'a> From<&'a Vec<BlockHash>> for Computed<'a> {
    fn from(hashes: &'a Vec<BlockHash>) -> Self {
        Self::Hashed(hashes)
    }
}
