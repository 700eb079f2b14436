//! Is every block accounted for? A comparison of the sequences with the blocks' words.
//!
//! What a sequence owns is compared under its own lock, exactly. What all sequences own together
//! is compared with the words as they were between two looks at everything. If both looks saw the
//! same versions, every sequence seen held its blocks all the while, and the words must show at
//! least as many owners; else the answer is `Busy`, never a false fault. (At least: handles and
//! counts by id own blocks that the map does not know.)

use std::collections::{HashMap, HashSet};

use super::PagedKvCache;
use super::slot::{Live, Slot, Version};
use crate::error::{PagedKvError, Result};
use crate::id::{BlockId, SeqId};
use crate::pool::BlockPool;
use crate::sync::Arc;

/// All that can be seen from the map.
#[derive(Default, PartialEq)]
struct Picture {
    sequences: HashMap<SeqId, Version>,
    /// Owners of each block, as far as the map shows them.
    owners: HashMap<BlockId, u32>,
    runs: HashSet<usize>,
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
        let before = self.picture()?;
        let fault = before.fault(&self.pool)?;
        if self.picture()? != before {
            return Err(PagedKvError::Busy);
        }
        fault.map_or(Ok(()), inconsistent)
    }

    fn picture(&self) -> Result<Picture> {
        let mut picture = Picture::default();
        let mut in_use = Vec::new();
        for entry in &self.sequences {
            match entry.value() {
                Slot::Owned(live) => self.add(&mut picture, *entry.key(), live)?,
                Slot::Shared(shared) => in_use.push((*entry.key(), Arc::clone(shared))),
            }
        }
        for (id, shared) in in_use {
            if let Some(live) = &*shared.read() {
                self.add(&mut picture, id, live)?;
            }
        }
        Ok(picture)
    }

    fn add(&self, picture: &mut Picture, id: SeqId, live: &Live) -> Result<()> {
        let sequence = live.sequence();
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
        picture.sequences.insert(id, live.version());
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

impl Picture {
    /// A block whose word shows fewer owners than the picture, if there is one.
    fn fault(&self, pool: &BlockPool) -> Result<Option<String>> {
        for (&id, &seen) in &self.owners {
            let owners = pool.owners(id)?;
            if owners < seen {
                return Ok(Some(format!("{id} has {owners} owners, sequences show {seen}")));
            }
        }
        Ok(None)
    }
}

fn inconsistent(fault: String) -> Result<()> {
    Err(PagedKvError::Inconsistent(fault))
}
