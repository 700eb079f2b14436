//! [`ObservedContent`]: the state of a block's content as a thread sees it that owns nothing and writes nothing.
//!
//! A sampler of metrics reads it. So the operations of the pool do no work for these metrics.

use super::Blocks;
use crate::id::BlockId;

/// A content that a block holds, at a moment during the call that returned it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ObservedContent {
    /// Differs from the version of the block's previous content.
    pub(crate) version: u32,
    /// While no table owns the block: how often it became idle with this content, modulo 256. It is 0 also
    /// after a reclaim that was undone.
    pub(crate) idle_epoch: Option<u8>,
}

impl Blocks {
    /// Returns every `one_in`-th block that can hold a content.
    pub(crate) fn sampled(&self, one_in: usize) -> impl Iterator<Item = BlockId> {
        let total = if self.keep_contents() { self.free.total() as u32 } else { 0 };
        (self.first..self.first + total).step_by(one_in).map(BlockId)
    }

    /// Returns the content of a block, `Ok(None)` if it has none, and an error if it changed during the call.
    pub(crate) fn observe_content(&self, id: BlockId) -> Result<Option<ObservedContent>, Changing> {
        let keyed = self.words.keyed();
        let version = keyed.key_version(id);
        let state = keyed.words().state(id);
        // A block gets a key only while it is not cached: an equal version is the version of this state.
        if keyed.key_version(id) != version {
            return Err(Changing);
        }
        let idle_epoch = state.is_idle().then(|| state.epoch());
        Ok(state.is_cached().then_some(ObservedContent { version, idle_epoch }))
    }
}

/// The content of a block changed while a thread read it.
#[derive(Debug)]
pub(crate) struct Changing;
