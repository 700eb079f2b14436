//! Is every block accounted for? A comparison of the sequences with the blocks' words.
//!
//! What a sequence owns is compared under its own lock, exactly. What all sequences own together
//! is compared only if two looks at everything agree: under load the answer is `Busy`, never a
//! false fault. Handles and counts by id may own blocks that the map does not know; so may
//! nobody own fewer than the map shows.

use std::collections::{HashMap, HashSet};

use super::PagedKvCache;
use super::slot::Slot;
use crate::error::{PagedKvError, Result};
use crate::id::{BlockId, SeqId};
use crate::sequence::Sequence;
use crate::sync::Arc;

/// All that can be seen from the map.
#[derive(Default, PartialEq)]
struct Picture {
    /// Length and number of blocks of each sequence.
    sequences: HashMap<SeqId, (usize, usize)>,
    /// Owners of each block, as far as the map shows them.
    owners: HashMap<BlockId, u32>,
    runs: HashSet<usize>,
    words: HashMap<BlockId, u32>,
}

impl PagedKvCache {
    /// Checks that every sequence, every block's word and the free list agree. Exact when nothing
    /// else runs. `O(blocks)`, and threads that need blocks wait for part of it.
    ///
    /// # Errors
    /// [`Inconsistent`](PagedKvError::Inconsistent) with the first fault found;
    /// [`Busy`](PagedKvError::Busy) when other threads were changing what it compares.
    ///
    /// ```
    /// use paged_kv::{PagedKvCache, SeqId};
    ///
    /// let cache = PagedKvCache::new(8, 4, 1, 1);
    /// cache.allocate(SeqId(1), 6)?;
    /// cache.fork(SeqId(1), SeqId(2))?;
    /// cache.validate()?;
    /// # Ok::<(), paged_kv::PagedKvError>(())
    /// ```
    pub fn validate(&self) -> Result<()> {
        self.pool.validate()?;
        let first = self.picture()?;
        if self.picture()? != first {
            return Err(PagedKvError::Busy);
        }
        for (id, &seen) in &first.owners {
            let owners = first.words[id];
            if owners < seen {
                return inconsistent(format!("{id} has {owners} owners, sequences show {seen}"));
            }
        }
        Ok(())
    }

    fn picture(&self) -> Result<Picture> {
        let mut picture = Picture::default();
        let mut in_use = Vec::new();
        for entry in &self.sequences {
            match entry.value() {
                Slot::Owned(live) => self.add(&mut picture, *entry.key(), &live.sequence)?,
                Slot::Shared(shared) => in_use.push((*entry.key(), Arc::clone(shared))),
            }
        }
        for (id, shared) in in_use {
            if let Some(live) = &*shared.live.read_recursive() {
                self.add(&mut picture, id, &live.sequence)?;
            }
        }
        for &id in picture.owners.keys() {
            picture.words.insert(id, self.pool.owners(id)?);
        }
        Ok(picture)
    }

    fn add(&self, picture: &mut Picture, id: SeqId, sequence: &Sequence) -> Result<()> {
        let given_up: usize = sequence.gaps().iter().map(|gap| gap.len()).sum();
        let (resident, logical) = (sequence.num_blocks(), sequence.num_logical_blocks());
        if resident + given_up != logical {
            return inconsistent(format!(
                "{id} has {resident} blocks and {given_up} in gaps, its tokens need {logical}"
            ));
        }
        for &block in sequence.block_ids() {
            if self.pool.owners(block)? == 0 {
                return inconsistent(format!("{id} uses {block}, which nobody owns"));
            }
        }
        picture.sequences.insert(id, (sequence.num_tokens(), resident));
        for &block in sequence.table().private() {
            *picture.owners.entry(block).or_default() += 1;
        }
        let mut run = sequence.table().newest_run();
        while let Some(held) = run
            && picture.runs.insert(Arc::as_ptr(held) as usize)
        {
            for &block in held.ids() {
                *picture.owners.entry(block).or_default() += 1;
            }
            run = held.parent();
        }
        Ok(())
    }
}

fn inconsistent(fault: String) -> Result<()> {
    Err(PagedKvError::Inconsistent(fault))
}
