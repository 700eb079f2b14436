//! `UseCounts`: how often a tier was asked to store a content, approximately, for the threshold of uses.
//!
//! The table is direct-mapped, so that it forgets contents at random when many are counted. A wrong count costs a copy
//! that is made too early or too late.

use crate::array::array_of;
use crate::error::Result;
use crate::pool::content_key::ContentKey;
use crate::sync::{AtomicU32, Ordering};

/// Bits of a count, below the mark of its content.
const COUNT: u32 = 8;
const MOST: u32 = (1 << COUNT) - 1;

/// Counts for each slot of the tier.
const COUNTS_A_SLOT: usize = 2;

/// The counts, none where the threshold is one use.
pub(super) struct UseCounts {
    from_use: u32,
    counts: Box<[AtomicU32]>,
}

// All accesses are Relaxed: a count guards nothing.
impl UseCounts {
    pub(super) fn new(slots: usize, from_use: u8) -> Result<Self> {
        let len = if from_use > 1 { slots.saturating_mul(COUNTS_A_SLOT) } else { 0 };
        Ok(Self { from_use: u32::from(from_use), counts: array_of(len, || AtomicU32::new(0))? })
    }

    /// Counts a use of a content. Returns true if it has been used often enough to be stored.
    pub(super) fn count(&self, key: ContentKey) -> bool {
        if self.counts.is_empty() {
            return true;
        }
        let (spread, mark) = key.spread();
        let at = (u128::from(spread) * self.counts.len() as u128) >> 64;
        let (counter, mark) = (&self.counts[at as usize], mark & !MOST);
        let known = counter.load(Ordering::Relaxed);
        let before = if known & !MOST == mark { known & MOST } else { 0 };
        let uses = (before + 1).min(MOST);
        counter.store(mark | uses, Ordering::Relaxed);
        uses >= self.from_use
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_counts_by_itself_and_the_count_has_an_end() {
        let counts = UseCounts::new(64, 3).unwrap();
        let key = |n: u128| ContentKey::new(n << 64 | n);
        assert!(!counts.count(key(1)) && !counts.count(key(2)) && !counts.count(key(1)));
        assert!((0..600).all(|_| counts.count(key(1))));
        assert!(!counts.count(key(2)) && counts.count(key(2)));
    }

    #[test]
    fn one_use_needs_no_counts() {
        let counts = UseCounts::new(64, 1).unwrap();
        assert!(counts.counts.is_empty() && counts.count(ContentKey::new(7)));
    }
}
