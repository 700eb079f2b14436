//! `validate`: compares the sequences of the map with the blocks' words.
//!
//! The blocks that one sequence owns are compared under its own lock, exactly. The blocks that all
//! sequences own are compared with the words between two passes over the map. If both passes saw the same
//! versions, every sequence held its blocks throughout. The words must then show at least as many owners.
//! Otherwise the result is `Busy`, never a false fault. (At least, because handles and counts by id own
//! blocks that are not in the map.)

use std::collections::{HashMap, HashSet};

use crate::cache::PagedKvCache;
use crate::cache::entry::{MapEntry, TrackedSequence, Version};
use crate::error::{PagedKvError, Result};
use crate::id::{BlockId, SeqId};
use crate::pool::BlockPool;
use crate::sequence::Sequence;
use crate::sync::Arc;

/// The state that one pass over the map sees.
#[derive(Default, PartialEq)]
struct Picture {
    sequences: HashMap<SeqId, Version>,
    /// Owners of each block, as far as the map shows them.
    owners: HashMap<BlockId, u32>,
    runs: HashSet<usize>,
}

/// # Figures: consistency check
impl PagedKvCache {
    /// Checks that every sequence, every pin, every block's word and the free list agree. Exact when no other
    /// operation runs. `O(blocks)`; threads that need blocks wait for part of it.
    ///
    /// # Errors
    /// [`Inconsistent`](PagedKvError::Inconsistent) with the first fault found;
    /// [`Busy`](PagedKvError::Busy) if other threads changed the state that it compares.
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
        self.pool.blocks().fault_of_pins().map_or(Ok(()), inconsistent)?;
        for tier in self.tiers.iter().flat_map(|state| state.tiers.iter()) {
            tier.validate()?;
        }
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
                MapEntry::Owned(tracked) => self.add(&mut picture, *entry.key(), tracked)?,
                MapEntry::Shared(shared) => in_use.push((*entry.key(), Arc::clone(shared))),
            }
        }
        for (id, shared) in in_use {
            if let Some(tracked) = &*shared.read() {
                self.add(&mut picture, id, tracked)?;
            }
        }
        Ok(picture)
    }

    fn add(&self, picture: &mut Picture, id: SeqId, tracked: &TrackedSequence) -> Result<()> {
        let sequence = tracked.sequence();
        for table in sequence.group_tables() {
            self.check_table(id, sequence.num_tokens(), table)?;
        }
        picture.sequences.insert(id, tracked.version());
        for table in sequence.tables() {
            for &block in table.private() {
                *picture.owners.entry(block).or_default() += 1;
            }
            let mut run = table.newest_run();
            while let Some(held) = run
                && picture.runs.insert(Arc::as_ptr(held) as usize)
            {
                for &block in held.ids() {
                    *picture.owners.entry(block).or_default() += 1;
                }
                run = held.parent();
            }
        }
        Ok(())
    }

    /// Checks the table of one group of a sequence of `num_tokens` tokens.
    fn check_table(&self, id: SeqId, num_tokens: usize, table: &Sequence) -> Result<()> {
        let given_up: usize = table.gaps().iter().map(|gap| gap.len()).sum();
        let (resident, logical) = (table.num_blocks(), table.num_logical_blocks());
        if resident + given_up != logical {
            return inconsistent(format!(
                "{id} has {resident} blocks and {given_up} in gaps, its tokens need {logical}"
            ));
        }
        if table.num_tokens() != num_tokens {
            let of_group = table.num_tokens();
            return inconsistent(format!("{id} has {num_tokens} tokens, a group {of_group}"));
        }
        for &block in table.block_ids() {
            if self.pool.owners(block)? == 0 {
                return inconsistent(format!("{id} uses {block}, which nobody owns"));
            }
        }
        Ok(())
    }
}

impl Picture {
    /// Returns the fault of a block whose word shows fewer owners than the picture, if there is one.
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

#[cfg(test)]
mod tests {
    use super::*;

    const A: SeqId = SeqId(1);
    const B: SeqId = SeqId(2);

    /// Creates a cache with sequence 1: two full blocks and a partly filled one.
    fn cache() -> PagedKvCache {
        let cache = PagedKvCache::new(8, 4, 1, 1);
        cache.allocate(A, 9).unwrap();
        cache
    }

    fn blocks_of(cache: &PagedKvCache, id: SeqId) -> Vec<BlockId> {
        cache.get_sequence(id).unwrap().block_ids
    }

    #[track_caller]
    fn assert_found(cache: &PagedKvCache, fault: String) {
        assert_eq!(cache.validate(), Err(PagedKvError::Inconsistent(fault)));
    }

    /// Removes an owner of a block although no owner released it, and restores it after `fault` was found.
    #[track_caller]
    fn assert_found_without_an_owner_of(cache: &PagedKvCache, block: BlockId, fault: String) {
        cache.pool.blocks().give(&[block]);
        assert_found(cache, fault);
        if cache.pool.owners(block) == Ok(0) {
            assert_eq!(
                cache.pool.allocate(1).unwrap().take_ids(),
                Ok(vec![block]),
                "the last one given"
            );
        } else {
            cache.pool.blocks().retain(block).unwrap();
        }
    }

    #[test]
    fn shared_blocks_are_counted_once_per_run_and_tail() {
        let cache = cache();
        cache.fork(A, B).unwrap();
        cache.fork(A, SeqId(3)).unwrap();
        assert!(cache.append(B, 8).unwrap().copy.is_some(), "the last block is shared");
        cache.fork(B, SeqId(4)).unwrap();
        assert_eq!(cache.validate(), Ok(()));
        let picture = cache.picture().unwrap();
        let owners = |id: SeqId, at: usize| picture.owners[&blocks_of(&cache, id)[at]];
        assert_eq!((picture.sequences.len(), picture.runs.len()), (4, 2));
        assert_eq!((owners(A, 0), owners(A, 1), owners(A, 2)), (1, 1, 2));
        // The longer sequences: the second run's own two blocks, and their last block.
        assert_eq!((owners(B, 2), owners(B, 3), owners(B, 4)), (1, 1, 2));
    }

    #[test]
    fn the_audit_finds_a_used_block_without_an_owner() {
        let cache = cache();
        let block = blocks_of(&cache, A)[1];
        let fault = format!("S1 uses {block}, which nobody owns");
        assert_found_without_an_owner_of(&cache, block, fault);
    }

    #[test]
    fn a_tail_with_an_owner_too_few_is_found() {
        let cache = cache();
        cache.fork(A, B).unwrap();
        let tail = blocks_of(&cache, A)[2];
        let fault = format!("{tail} has 1 owners, sequences show 2");
        assert_found_without_an_owner_of(&cache, tail, fault);
    }

    #[test]
    fn a_block_of_a_run_with_an_owner_too_few_is_found() {
        let cache = cache();
        cache.fork(A, B).unwrap();
        // The run that it shares is cut: the rest gets the sequence as a further owner.
        cache.truncate(B, 4).unwrap();
        let first = blocks_of(&cache, A)[0];
        assert_eq!(cache.pool.owners(first), Ok(2));
        let fault = format!("{first} has 1 owners, sequences show 2");
        assert_found_without_an_owner_of(&cache, first, fault);
    }

    #[test]
    fn a_block_of_an_earlier_run_with_an_owner_too_few_is_found() {
        let cache = cache();
        cache.fork(A, B).unwrap();
        cache.truncate(B, 4).unwrap();
        let _ = cache.append(A, 8).unwrap();
        cache.fork(A, SeqId(3)).unwrap();
        let first = blocks_of(&cache, A)[0];
        assert_eq!(cache.validate(), Ok(()));
        let fault = format!("{first} has 1 owners, sequences show 2");
        assert_found_without_an_owner_of(&cache, first, fault);
    }

    #[test]
    fn owners_that_the_map_does_not_know_are_no_fault() {
        let cache = cache();
        cache.pool().retain(blocks_of(&cache, A)[0]).unwrap();
        assert_eq!(cache.validate(), Ok(()));
    }

    #[test]
    fn a_pinned_block_without_an_owner_is_found() {
        let cache = PagedKvCache::new(8, 4, 1, 1);
        let prompt = cache.prompt(&[7; 4]);
        cache.admit(A, &[7; 4]).unwrap();
        cache.commit(A, 4).unwrap();
        let [block] = blocks_of(&cache, A)[..] else { panic!("one block") };
        cache.free(A).unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(3_600);
        let pin = cache.retention().pin(&prompt, until).unwrap();
        assert_eq!(cache.validate(), Ok(()));
        cache.pool.blocks().give(&[block]);
        assert_found(&cache, format!("{block} has 0 owners and 1 pins"));
        let (published, mut ids) = (cache.published(), Vec::new());
        let generation = published.generation();
        published.acquire(cache.pool.blocks(), prompt.hashes(), generation, &mut ids);
        assert_eq!((ids, cache.validate()), (vec![block], Ok(())));
        drop(pin);
        assert_eq!((cache.used_block_count(), cache.validate()), (0, Ok(())));
    }

    #[test]
    fn a_sequence_with_fewer_blocks_than_its_tokens_need_is_found() {
        let cache = cache();
        let _ = cache.append(A, 12).unwrap();
        cache.apply_streaming_llm(A, 4, 4).unwrap();
        assert_eq!(cache.validate(), Ok(()));
        // Also for a sequence with a lock of its own.
        let lease = cache.lease(&[A]).unwrap();
        assert_eq!(cache.validate(), Ok(()));
        cache.update(A, |tracked| tracked.sequence_mut().lose_last_block()).unwrap();
        let fault = "S1 has 2 blocks and 3 in gaps, its tokens need 6".to_owned();
        assert_found(&cache, fault);
        drop(lease);
    }
}
