//! Commits by id: report the tokens of a sequence whose keys and values are computed, so that they can be
//! matched.
//!
//! A commit runs under the sequence's own lock, because publishing goes through the index.

use super::computed::Computed;
use super::hashed_tokens::{refuse_beyond_end, refuse_uncomputable};
use crate::cache::PagedKvCache;
use crate::cache::admission::reservation::Reservation;
use crate::cache::entry::TrackedSequence;
use crate::error::{PagedKvError, Result};
use crate::id::SeqId;
use crate::sequence::Append;
use crate::sync::Later;

impl PagedKvCache {
    /// Reports that the keys and values of the first tokens of a sequence are computed, by their number or
    /// by the tokens that come next; see [`CachedSequence::commit`](crate::CachedSequence::commit).
    /// Publishes no block of a sequence that was not admitted by its tokens or hashes. Takes one shard lock.
    ///
    /// The id is looked up at the call. To commit the tokens of one admission, even if its id has been
    /// freed or reused since, commit its [`LeaseRow`](crate::LeaseRow) in a step.
    ///
    /// # Errors
    /// [`SequenceNotFound`](crate::PagedKvError::SequenceNotFound),
    /// [`CommitBeyondEnd`](crate::PagedKvError::CommitBeyondEnd);
    /// [`HashesUnknown`](crate::PagedKvError::HashesUnknown) for tokens that fill a block of which only the caller
    /// knows the hash, and [`InvalidConfig`](crate::PagedKvError::InvalidConfig) for hashes of a sequence that the
    /// cache hashes.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.admit(SeqId(1), &[7; 10])?;
    /// assert_eq!(cache.prefix().probe(&cache.prompt(&[7; 10])), 0); // nothing is published before
    /// assert_eq!(cache.commit(SeqId(1), 10)?, 2);
    /// assert_eq!(cache.prefix().probe(&cache.prompt(&[7; 10])), 8);
    /// assert!(cache.commit(SeqId(1), 11).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn commit<'a>(&self, id: SeqId, computed: impl Into<Computed<'a>>) -> Result<usize> {
        let computed = computed.into();
        let _later = Later::begin();
        self.update_if(id, |_| false, |tracked| tracked.commit(computed))?
    }

    /// Does [`append`](Self::append) and [`commit`](Self::commit) in one call, for tokens that are known
    /// and computed.
    ///
    /// # Errors
    /// As [`append`](Self::append) and [`commit`](Self::commit), and
    /// [`UnnamedTokens`](PagedKvError::UnnamedTokens) if tokens before these have slots and no names; nothing has
    /// changed.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.admit(SeqId(1), &[1, 2, 3])?;
    /// assert_eq!(cache.append_tokens(SeqId(1), &[4, 5])?.new_blocks, 1..2);
    /// assert_eq!(cache.prefix().probe(&cache.prompt(&[1, 2, 3, 4, 5])), 4);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn append_tokens(&self, id: SeqId, tokens: &[u32]) -> Result<Append> {
        let append = |tracked: &mut TrackedSequence, stock: Option<&mut Reservation>| {
            tracked.refuse_unnamed_gap(tokens.len())?;
            let append = match stock {
                None => tracked.sequence_mut().append(tokens.len())?,
                Some(stock) => stock.grow(tracked.sequence_mut(), tokens.len())?,
            };
            tracked.commit(Computed::Named(tokens))?;
            tracked.note_use(self.stamp());
            Ok(append)
        };
        if self.pool.blocks().reports_overwrites() {
            return self.grow_outside_locks(|stock| {
                self.update_if(id, |_| false, |tracked| append(tracked, Some(stock)))?
            });
        }
        let _later = Later::begin();
        self.update_if(id, |_| false, |tracked| append(tracked, None))?
    }
}

impl TrackedSequence {
    fn commit(&mut self, computed: Computed<'_>) -> Result<usize> {
        let (sequence, hashed) = self.named();
        match hashed {
            Some(hashed) => hashed.commit_computed(sequence, computed),
            None => refuse_uncomputable(sequence, computed).map(|()| 0),
        }
    }

    /// Refuses tokens that would not directly follow the named ones. That is so if slots after the named
    /// tokens have unknown tokens, or if the prompt's own tokens come first. Refuses also tokens that would
    /// fill a block whose hash only the caller knows.
    fn refuse_unnamed_gap(&mut self, num_new_tokens: usize) -> Result<()> {
        let (sequence, hashed) = self.named();
        let Some(hashed) = hashed else {
            return Ok(());
        };
        refuse_beyond_end(sequence, hashed.num_named())?;
        let (named, num_tokens) = (hashed.num_named(), sequence.num_tokens());
        if num_new_tokens == 0 && hashed.names_up_to().is_none() {
            return Ok(());
        }
        let end = num_tokens.saturating_add(num_new_tokens);
        hashed.refuse_unnameable(end, sequence.hash_unit())?;
        match named < num_tokens {
            true => Err(PagedKvError::UnnamedTokens { named, num_tokens }),
            false => Ok(()),
        }
    }
}
