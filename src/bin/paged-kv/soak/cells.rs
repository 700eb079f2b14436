//! Who writes block n, and what does it hold?
//!
//! Three cells a block stand in for its keys and values. `writers` has the tag of the one holder that
//! may write the block: entered when it gets the block for itself, cleared before it lets the
//! block go or shares it under a name. `contents` has what was written last, and stays when the
//! block is idle, as keys and values do; `weights` how many times they had been updated. The accesses are relaxed: that one holder's writes are
//! seen by the next is for the cache to order.

use std::sync::atomic::{AtomicU64, Ordering};

use paged_kv::BlockId;

use super::findings::Findings;

const NOBODY: u64 = 0;

/// Tags are told from the contents of scripts by this bit.
const TAG: u64 = 1 << 63;

pub struct Cells {
    writers: Box<[AtomicU64]>,
    contents: Box<[AtomicU64]>,
    weights: Box<[AtomicU64]>,
    next_tag: AtomicU64,
    pub findings: Findings,
}

impl Cells {
    pub fn new(num_blocks: usize) -> Self {
        let cells = || (0..num_blocks).map(|_| AtomicU64::new(NOBODY)).collect();
        Self {
            writers: cells(),
            contents: cells(),
            weights: cells(),
            next_tag: AtomicU64::new(TAG | 1),
            findings: Findings::default(),
        }
    }

    /// A tag never given before.
    pub fn tag(&self) -> u64 {
        self.next_tag.fetch_add(1, Ordering::Relaxed)
    }

    /// From now on the holder of `tag` may write the block, and nobody else.
    pub fn enter(&self, id: BlockId, tag: u64) {
        let before = self.writers[id.0 as usize].swap(tag, Ordering::Relaxed);
        self.findings.expect(before == NOBODY, || {
            format!("{id} was given to {tag:#x} while {before:#x} held it")
        });
    }

    pub fn leave(&self, id: BlockId, tag: u64) {
        let before = self.writers[id.0 as usize].swap(NOBODY, Ordering::Relaxed);
        self.findings
            .expect(before == tag, || format!("{id} was {tag:#x}'s, and {before:#x} held it too"));
    }

    /// Computes `content` into a block that the caller has for itself.
    pub fn write(&self, id: BlockId, content: u64) {
        self.contents[id.0 as usize].store(content, Ordering::Relaxed);
    }

    /// [`write`](Self::write) by a holder that has the block only for so long to itself, with weights
    /// that were updated `updates` times at most.
    pub fn write_as_sole(&self, id: BlockId, content: u64, updates: u64) {
        let tag = self.tag();
        self.enter(id, tag);
        self.write(id, content);
        self.weights[id.0 as usize].store(updates, Ordering::Relaxed);
        self.leave(id, tag);
    }

    /// Whoever holds the block finds what was written into it.
    pub fn check(&self, id: BlockId, content: u64) {
        let holds = self.contents[id.0 as usize].load(Ordering::Relaxed);
        self.findings.expect(holds == content, || {
            format!("{id} should hold {content:#x} and holds {holds:#x}")
        });
    }

    /// [`check`](Self::check) by one that matched the block after so many updates of the weights.
    pub fn check_match(&self, id: BlockId, content: u64, updates: u64) {
        self.check(id, content);
        let computed = self.weights[id.0 as usize].load(Ordering::Relaxed);
        self.findings.expect(computed >= updates, || {
            format!("{id} was matched after {updates} resets and computed after {computed} at most")
        });
    }

    /// The blocks that somebody may still write, when nobody should.
    pub fn entered(&self) -> usize {
        self.writers.iter().filter(|cell| cell.load(Ordering::Relaxed) != NOBODY).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writer_is_found() {
        let cells = Cells::new(2);
        let (one, other) = (cells.tag(), cells.tag());
        cells.enter(BlockId(1), one);
        assert_eq!((cells.findings.count(), cells.entered()), (0, 1));
        cells.enter(BlockId(1), other);
        assert_eq!(cells.findings.count(), 1);
        cells.leave(BlockId(1), one);
        assert_eq!((cells.findings.count(), cells.entered()), (2, 0));
    }

    #[test]
    fn a_changed_content_is_found() {
        let cells = Cells::new(2);
        cells.write_as_sole(BlockId(0), 7, 2);
        cells.check(BlockId(0), 7);
        assert_eq!(cells.findings.count(), 0);
        cells.check(BlockId(0), 8);
        assert_eq!(cells.findings.count(), 1);
    }

    #[test]
    fn a_match_of_old_weights_is_found() {
        let cells = Cells::new(2);
        cells.write_as_sole(BlockId(0), 7, 2);
        cells.check_match(BlockId(0), 7, 2);
        assert_eq!(cells.findings.count(), 0);
        cells.check_match(BlockId(0), 7, 3);
        assert_eq!(cells.findings.count(), 1);
    }
}
