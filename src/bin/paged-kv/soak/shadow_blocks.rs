//! `Cells`: three cells per block, which stand in for its keys and values.
//!
//! - `writers` has the tag of the one holder that may write the block. The holder enters it when it becomes
//!   the only owner, and clears it before it releases the block or publishes it.
//! - `contents` has the content written last. It stays when the block is idle, as keys and values do.
//! - `weights` has the number of updates of the weights before that content was computed.
//!
//! All accesses are relaxed: the cache must order the writes of one holder before the reads of the next.

use std::sync::atomic::{AtomicU64, Ordering};

use paged_kv::BlockId;

use super::findings::Findings;

const NOBODY: u64 = 0;

/// The bit that distinguishes tags from the contents of scripts.
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

    /// Returns a tag that was never returned before.
    pub fn tag(&self) -> u64 {
        self.next_tag.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes the holder of `tag` the only writer of the block. A block that has a writer is a finding.
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

    /// Writes `content` into a block of which the caller is the only writer.
    pub fn write(&self, id: BlockId, content: u64) {
        self.contents[id.0 as usize].store(content, Ordering::Relaxed);
    }

    /// Enters the block, writes `content` and leaves it. The weights were updated `updates` times at most.
    pub fn write_as_sole(&self, id: BlockId, content: u64, updates: u64) {
        let tag = self.tag();
        self.enter(id, tag);
        self.write(id, content);
        self.weights[id.0 as usize].store(updates, Ordering::Relaxed);
        self.leave(id, tag);
    }

    /// Checks that the block holds `content`.
    pub fn check(&self, id: BlockId, content: u64) {
        let holds = self.contents[id.0 as usize].load(Ordering::Relaxed);
        self.findings.expect(holds == content, || {
            format!("{id} should hold {content:#x} and holds {holds:#x}")
        });
    }

    /// Checks a block that was matched after `updates` updates of the weights. Its content must not be of
    /// earlier weights.
    pub fn check_match(&self, id: BlockId, content: u64, updates: u64) {
        self.check(id, content);
        let computed = self.weights[id.0 as usize].load(Ordering::Relaxed);
        self.findings.expect(computed >= updates, || {
            format!("{id} was matched after {updates} resets and computed after {computed} at most")
        });
    }

    /// Returns how many blocks have a writer; at the end of a run none may have one.
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
