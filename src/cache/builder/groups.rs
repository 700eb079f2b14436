//! The groups of layers of a cache, as the builder takes them.

use super::PagedKvCacheBuilder;
use crate::error::Result;
use crate::groups::{GroupLayout, GroupRetention, LayerGroup};

/// The groups, and the options that only groups have.
#[derive(Clone, Debug, Default)]
pub(super) struct Groups {
    kinds: Vec<LayerGroup>,
    max_rewind: usize,
    retention: GroupRetention,
}

impl PagedKvCacheBuilder {
    /// Sets the groups of layers, at most 31. All take their blocks from the one pool; blocks have equal bytes
    /// ([`block_bytes`](Self::block_bytes)). The block sizes of the groups replace [`block_size`](Self::block_size):
    /// the cache's is that of group 0. Prompts are hashed in units of their greatest common divisor, and hits are
    /// multiples of their least common multiple. By default there is one group, of full attention.
    ///
    /// ```
    /// use paged_kv::{LayerGroup, PagedKvCache, SeqId};
    ///
    /// let groups = [
    ///     LayerGroup::Full { block_size: 16 },
    ///     LayerGroup::SlidingWindow { block_size: 16, window: 1_024 },
    /// ];
    /// let cache = PagedKvCache::builder().num_blocks(64).groups(&groups).build()?;
    /// cache.allocate(SeqId(1), 33)?;
    /// assert_eq!(cache.used_block_count(), 6);
    /// assert!(PagedKvCache::builder().num_blocks(64).groups(&[]).build().is_ok());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn groups(self, groups: &[LayerGroup]) -> Self {
        Self { groups: Groups { kinds: groups.into(), ..self.groups }, ..self }
    }

    /// Sets by how many tokens a sequence can always be truncated: windows keep this many tokens more. A growth
    /// releases the blocks that a window has left at the length before the growth, so the drafts of one step can be rejected
    /// with the default, 0. With k steps open at a time, k - 1 times the tokens of a step are needed. Used with
    /// [`groups`](Self::groups) only.
    ///
    /// ```
    /// use paged_kv::{LayerGroup, PagedKvCache};
    ///
    /// let groups = [LayerGroup::SlidingWindow { block_size: 4, window: 4 }];
    /// let builder = PagedKvCache::builder().num_blocks(8).groups(&groups);
    /// for (max_rewind, allowed) in [(0, false), (8, true)] {
    ///     let cache = builder.clone().max_rewind(max_rewind).build()?;
    ///     let mut sequence = cache.allocate_sequence(12)?;
    ///     sequence.append(1)?;
    ///     assert_eq!(sequence.truncate(5).is_ok(), allowed);
    /// }
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn max_rewind(self, num_tokens: usize) -> Self {
        Self { groups: Groups { max_rewind: num_tokens, ..self.groups }, ..self }
    }

    /// Sets the contents of windows and chunks that are published. By default all that a hit can need. Used with
    /// [`groups`](Self::groups) only.
    ///
    /// ```
    /// use paged_kv::{GroupRetention, LayerGroup, PagedKvCache, SeqId};
    ///
    /// let groups = [LayerGroup::SlidingWindow { block_size: 4, window: 8 }];
    /// let builder = PagedKvCache::builder().num_blocks(16).groups(&groups);
    /// for (retention, hit) in [(GroupRetention::Dense, 16), (GroupRetention::PromptEnd, 0)] {
    ///     let cache = builder.clone().group_retention(retention).build()?;
    ///     cache.admit(SeqId(1), &[7; 41])?;
    ///     cache.commit(SeqId(1), 41)?;
    ///     assert_eq!(cache.prefix().probe(&cache.prompt(&[7; 17])), hit);
    /// }
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn group_retention(self, retention: GroupRetention) -> Self {
        Self { groups: Groups { retention, ..self.groups }, ..self }
    }

    /// Returns the block size of group 0.
    pub(super) fn first_block_size(&self) -> usize {
        self.groups.kinds.first().map_or(self.block_size, |group| group.block_size())
    }

    pub(super) fn largest_block_size(&self) -> usize {
        let sizes = self.groups.kinds.iter().map(|group| group.block_size());
        sizes.max().unwrap_or(self.block_size)
    }

    pub(super) fn checked_layout(&self) -> Result<Option<GroupLayout>> {
        let Groups { kinds, max_rewind, retention } = &self.groups;
        if kinds.is_empty() {
            return Ok(None);
        }
        GroupLayout::new(kinds, *max_rewind, *retention).map(Some)
    }
}
