//! `Trail`: finds the blocks of a chain of hashes. It reads a hint in each block for the next one, then the
//! index.
//!
//! It writes nothing and owns nothing. A caller that wants a block acquires it afterwards and compares its
//! key.

use super::Generation;
use crate::id::BlockId;
use crate::pool::content_key::{ContentKey, KeyedView};
use crate::pool::word::BlockState;
use crate::prefix::BlockHash;
use crate::prefix::index::IndexView;

/// Finds the blocks of a chain of keys: each by the hint of the one before it, or else by the index.
///
/// Blocks that were computed in one batch mostly have consecutive ids, ascending or descending. While they
/// do, no hint must be read to know the next block, so the loads overlap.
pub(super) struct Trail<'a> {
    index: IndexView<'a>,
    keyed: KeyedView<'a>,
    generation: Generation,
    /// False: use only the index.
    follows: bool,
    last: Option<BlockId>,
}

impl<'a> Trail<'a> {
    pub(super) fn new(
        index: IndexView<'a>,
        keyed: KeyedView<'a>,
        generation: Generation,
        follows: bool,
    ) -> Self {
        Self { index, keyed, generation, follows, last: None }
    }

    /// Passes the blocks of `hashes` to `found`, one after the other, until one is not there. A block is
    /// there if `fits` returns its state.
    #[inline]
    pub(super) fn follow(
        &mut self,
        hashes: &[BlockHash],
        fits: impl Fn(BlockId, ContentKey) -> Option<BlockState> + Copy,
        mut found: impl FnMut(BlockId, BlockState),
    ) {
        let Self { index, keyed, generation, follows, .. } = *self;
        let mut hashes = hashes.iter();
        while let Some(&hash) = hashes.next() {
            let key = generation.key_of(hash);
            let is_there = move |id| fits(id, key).is_some();
            let last = self.last.filter(|_| follows);
            let follower = last.map(|last| keyed.follower(last)).filter(|&id| is_there(id));
            let id = follower.or_else(|| index.find(index.place(key), is_there));
            let Some(mut id) = id else { return };
            found(id, keyed.words().state(id));
            let step = last.map_or(0, |last| id.0.wrapping_sub(last.0));
            if step == 1 || step == u32::MAX {
                let mut rest = hashes.as_slice();
                while let [hash, others @ ..] = rest
                    && let next = BlockId(id.0.wrapping_add(step))
                    && keyed.has(next)
                    && let Some(state) = fits(next, generation.key_of(*hash))
                {
                    found(next, state);
                    (id, rest) = (next, others);
                }
                hashes = rest.iter();
            }
            self.last = Some(id);
        }
    }
}
