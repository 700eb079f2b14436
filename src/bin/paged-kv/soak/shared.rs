//! `Ground`: the state that all workers share: the cache, the cells of its blocks, and the counts.
//!
//! It also decides which refusals are allowed: those that a race or a shortage explains. Any other refusal is
//! a finding.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use paged_kv::{BlockId, PagedKvCache, PagedKvError};

use super::shadow_blocks::Cells;

pub struct Ground {
    pub cache: PagedKvCache,
    pub cells: Cells,
    /// Families of scripts to choose from: enough that their blocks are several times the pool.
    pub families: usize,
    pub tally: Tally,
    resets_begun: AtomicU64,
    resets_done: AtomicU64,
}

/// Counts of the run. The worker that makes a call counts it.
#[derive(Debug, Default)]
pub struct Tally {
    pub operations: AtomicU64,
    pub refusals: AtomicU64,
    pub admissions: AtomicU64,
    pub hit_blocks: AtomicU64,
}

pub fn count(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

/// Payload of an injected panic.
pub struct OnPurpose;

impl Ground {
    pub fn new(cache: PagedKvCache) -> Self {
        // One more: `total_blocks` does not count a null block, if the cache has one.
        let cells = Cells::new(cache.total_blocks() + 1);
        let families = (cache.total_blocks() / 16).max(4);
        let (resets_begun, resets_done) = Default::default();
        Self { cache, cells, families, tally: Tally::default(), resets_begun, resets_done }
    }

    /// Resets the prefix cache: contents of earlier admissions may not match any more.
    pub fn reset(&self) {
        self.resets_begun.fetch_add(1, Ordering::SeqCst);
        self.cache.prefix().reset();
        self.resets_done.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns the number of completed resets. A later admission is of no earlier generation.
    pub fn resets_done(&self) -> u64 {
        self.resets_done.load(Ordering::SeqCst)
    }

    /// Returns the number of resets that have begun. An earlier admission is of no later generation.
    pub fn resets_begun(&self) -> u64 {
        self.resets_begun.load(Ordering::SeqCst)
    }

    /// Returns the value, or `None` if the call was refused. A refusal that is not allowed is a finding.
    pub fn fair<T>(&self, result: Result<T, PagedKvError>) -> Option<T> {
        count(&self.tally.operations, 1);
        let refusal = match result {
            Ok(value) => return Some(value),
            Err(refusal) => refusal,
        };
        count(&self.tally.refusals, 1);
        self.expect(is_fair(&refusal), || format!("a refusal that nothing explains: {refusal}"));
        None
    }

    /// Returns the value of a call that must be granted. A refusal is a finding.
    pub fn granted<T>(&self, result: Result<T, PagedKvError>) -> Option<T> {
        count(&self.tally.operations, 1);
        result.inspect_err(|refusal| self.find(format_args!("refused: {refusal}"))).ok()
    }

    /// Checks that a block that the caller writes has no other owner.
    pub fn expect_sole(&self, id: BlockId) {
        let owners = self.cache.pool().owners(id);
        self.expect(owners == Ok(1), || format!("{id} is written and has owners: {owners:?}"));
    }

    pub fn expect(&self, holds: bool, finding: impl FnOnce() -> String) {
        self.cells.findings.expect(holds, finding);
    }

    pub fn find(&self, finding: fmt::Arguments<'_>) {
        self.cells.findings.add(finding.to_string());
    }
}

fn is_fair(refusal: &PagedKvError) -> bool {
    match refusal {
        PagedKvError::OutOfMemory { requested, available } => requested > available,
        PagedKvError::SequenceNotFound(_)
        | PagedKvError::SequenceExists(_)
        | PagedKvError::SequenceLeased(_)
        | PagedKvError::TruncateBeyondEnd { .. }
        | PagedKvError::TokensTrimmed { .. }
        | PagedKvError::NothingToEvict => true,
        _ => false,
    }
}
