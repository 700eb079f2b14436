//! What of a sequence is computed, and may be matched? Commits by id.
//!
//! Under the sequence's own lock, because publishing goes through the index.

use super::PagedKvCache;
use super::naming::refuse_beyond_end;
use super::slot::Live;
use crate::error::{PagedKvError, Result};
use crate::id::{AdmissionEpoch, SeqId};
use crate::sequence::Append;
use crate::sync::Later;

impl PagedKvCache {
    /// Says that the keys and values of the first `num_tokens` tokens of a sequence are computed;
    /// see [`CachedSequence::commit`](crate::CachedSequence::commit). Publishes nothing of a sequence that was not admitted by its
    /// tokens. Takes one shard lock.
    ///
    /// # Errors
    /// [`SequenceNotFound`](crate::PagedKvError::SequenceNotFound),
    /// [`CommitBeyondEnd`](crate::PagedKvError::CommitBeyondEnd).
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.admit(SeqId(1), &[7; 10])?;
    /// assert_eq!(cache.probe(&[7; 10]), 0); // nothing is published before
    /// assert_eq!(cache.commit(SeqId(1), 10)?, 2);
    /// assert_eq!(cache.probe(&[7; 10]), 8);
    /// assert!(cache.commit(SeqId(1), 11).is_err());
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn commit(&self, id: SeqId, num_tokens: usize) -> Result<usize> {
        let _later = Later::begin();
        self.update_if(id, |_| false, |live| live.commit(num_tokens))?
    }

    /// [`commit`](Self::commit), if `id` still is the sequence of that admission. Else nothing is
    /// published: it was freed or evicted, and the id may have been admitted again.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// let late = cache.admit(SeqId(1), &[7; 10])?.epoch;
    /// cache.evict()?;
    /// cache.admit(SeqId(1), &[8; 10])?;
    /// assert_eq!(cache.commit_of(SeqId(1), late, 10)?, 0);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn commit_of(&self, id: SeqId, epoch: AdmissionEpoch, num_tokens: usize) -> Result<usize> {
        let commit = |live: &mut Live| {
            if live.epoch == epoch { live.commit(num_tokens) } else { Ok(0) }
        };
        let _later = Later::begin();
        self.update_if(id, |_| false, commit)?
    }

    /// Names the next tokens of a sequence, which are accepted and computed; see
    /// [`CachedSequence::commit_tokens`](crate::CachedSequence::commit_tokens). Takes one shard lock.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.admit(SeqId(1), &[1, 2, 3])?;
    /// let _ = cache.append(SeqId(1), 1)?;
    /// assert_eq!(cache.commit_tokens(SeqId(1), &[4])?, 1);
    /// assert_eq!(cache.probe(&[1, 2, 3, 4, 5]), 4);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn commit_tokens(&self, id: SeqId, tokens: &[u32]) -> Result<usize> {
        let _later = Later::begin();
        self.update_if(id, |_| false, |live| live.commit_tokens(tokens))?
    }

    /// [`append`](Self::append) and [`commit_tokens`](Self::commit_tokens) in one, for tokens that
    /// are known and computed.
    ///
    /// # Errors
    /// As [`append`](Self::append) and [`commit_tokens`](Self::commit_tokens); nothing has changed.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(4, 4, 1, 1);
    /// cache.admit(SeqId(1), &[1, 2, 3])?;
    /// assert_eq!(cache.append_tokens(SeqId(1), &[4, 5])?.new_blocks, 1..2);
    /// assert_eq!(cache.probe(&[1, 2, 3, 4, 5]), 4);
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn append_tokens(&self, id: SeqId, tokens: &[u32]) -> Result<Append> {
        let append = |live: &mut Live| {
            live.refuse_unnamed_gap()?;
            let append = live.sequence_mut().append(tokens.len())?;
            live.commit_tokens(tokens)?;
            live.note_use(self.clock.stamp());
            Ok(append)
        };
        let _later = Later::begin();
        self.update_if(id, |_| false, append)?
    }
}

impl Live {
    fn commit(&mut self, num_tokens: usize) -> Result<usize> {
        let (sequence, naming) = self.named();
        refuse_beyond_end(sequence, num_tokens)?;
        Ok(naming.map_or(0, |naming| naming.commit(sequence, num_tokens)))
    }

    fn commit_tokens(&mut self, tokens: &[u32]) -> Result<usize> {
        let (sequence, naming) = self.named();
        naming.map_or(Ok(0), |naming| naming.commit_tokens(sequence, tokens))
    }

    /// Refuses tokens that would not come right behind the named ones: there are slots behind those
    /// whose tokens are not known, or the prompt's own tokens come first.
    fn refuse_unnamed_gap(&mut self) -> Result<()> {
        let (sequence, naming) = self.named();
        let Some(naming) = naming else {
            return Ok(());
        };
        refuse_beyond_end(sequence, naming.num_named())?;
        let num_tokens = sequence.num_tokens();
        match naming.names_up_to() {
            Some(named) if named < num_tokens => {
                Err(PagedKvError::UnnamedTokens { named, num_tokens })
            }
            _ => Ok(()),
        }
    }
}
