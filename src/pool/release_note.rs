//! `ReleaseNote`: 32 bits beside the key of a block, by which the reclaim order ranks it once it is idle.
//!
//! ```text
//!   bits   0 .. 12   stamp     time of the last release, in steps of a 32nd of the pool
//!         12 .. 17   class     as which the block was released
//!         17 .. 19   uses      requests that had the content, at most 3; 0 for a block that was never released
//!         19         counted   the first use after the release is counted
//!         20 .. 26   tag       the low bits of the number of the release
//!         26         last      the last cached block of the release
//!         27         renewed   the stamp is later than the release
//! ```
//!
//! Notes are read and written without a claim. An order of reclaim depends on them, and nothing else does.

const CLASS: u32 = 12;
const USES: u32 = 17;
const COUNTED: u32 = 1 << 19;
const TAG: u32 = 20;
const LAST: u32 = 1 << 26;
const RENEWED: u32 = 1 << 27;
const STAMP_MASK: u32 = (1 << CLASS) - 1;
const CLASS_MASK: u32 = (1 << (USES - CLASS)) - 1;
const TAG_MASK: u32 = (1 << 6) - 1;

/// The steps by which the clock of a thread may be behind a stamp that another thread wrote.
const AHEAD: u32 = 8;

/// The most uses that a note counts.
pub(in crate::pool) const MOST_USES: u32 = 3;

/// The last release of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReleaseNote(u32);

/// The release that wrote a note: its time, and the low bits of its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReleaseMark(u32);

impl ReleaseMark {
    pub(crate) fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    pub(crate) fn bits(self) -> u32 {
        self.0
    }

    pub(in crate::pool) fn new(stamp: u32, number: u32) -> Self {
        Self((stamp & STAMP_MASK) | (number & TAG_MASK) << TAG)
    }
}

impl ReleaseNote {
    /// The note of a block that no sequence has released since it was published.
    pub(crate) const NONE: Self = Self(0);

    pub(crate) fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    pub(crate) fn bits(self) -> u32 {
        self.0
    }

    /// Creates the note of a block that is released in `class` by its `uses`th request, from 1 on.
    pub(in crate::pool) fn new(mark: ReleaseMark, class: usize, uses: u32) -> Self {
        Self(mark.0 | (class as u32 & CLASS_MASK) << CLASS | uses.clamp(1, MOST_USES) << USES)
    }

    /// Returns false for a block that no sequence has released since it was published.
    pub(in crate::pool) fn is_released(self) -> bool {
        self.uses() > 0
    }

    pub(crate) fn class(self) -> usize {
        (self.0 >> CLASS & CLASS_MASK) as usize
    }

    pub(in crate::pool) fn uses(self) -> u32 {
        self.0 >> USES & MOST_USES
    }

    /// Returns the steps of time from the release to `now`, as far as the stamp tells: 0 for a release that is a little
    /// after `now`.
    pub(in crate::pool) fn age(self, now: u32) -> u32 {
        let since = now.wrapping_add(AHEAD).wrapping_sub(self.0) & STAMP_MASK;
        since.saturating_sub(AHEAD)
    }

    /// Returns the note of a block that counts as released at `stamp`, though the sequence released it before.
    pub(in crate::pool) fn renewed(self, stamp: u32) -> Self {
        Self(self.0 & !STAMP_MASK | stamp & STAMP_MASK | RENEWED)
    }

    /// Returns true if the same release left both blocks, as far as the notes tell. The stamps of renewed notes tell nothing.
    pub(in crate::pool) fn is_of_same_release(self, other: Self) -> bool {
        let ignored = if (self.0 | other.0) & RENEWED == 0 { 0 } else { STAMP_MASK };
        (self.mark().0 | ignored) == (other.mark().0 | ignored)
    }

    pub(in crate::pool) fn mark(self) -> ReleaseMark {
        ReleaseMark(self.0 & (STAMP_MASK | TAG_MASK << TAG))
    }

    /// Returns true for the last cached block of its release.
    pub(in crate::pool) fn is_last(self) -> bool {
        self.0 & LAST != 0
    }

    /// Returns the note of the last cached block of a release.
    pub(in crate::pool) fn last(self) -> Self {
        Self(self.0 | LAST)
    }

    /// Returns the note of a block after which another one was cached.
    pub(in crate::pool) fn not_last(self) -> Self {
        Self(self.0 & !LAST)
    }

    pub(in crate::pool) fn is_counted(self) -> bool {
        self.0 & COUNTED != 0
    }

    /// Returns the note after the first use is counted.
    pub(in crate::pool) fn counted(self) -> Self {
        Self(self.0 | COUNTED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_that_another_thread_made_a_step_later_is_new() {
        for stamp in [0, 5, 4_095, 4_096] {
            let note = ReleaseNote::new(ReleaseMark::new(stamp, 0), 3, 1);
            let age = |after: i32| note.age(stamp.wrapping_add_signed(after));
            assert_eq!((age(-8), age(-1), age(0), age(1), age(4_087)), (0, 0, 0, 1, 4_087));
        }
    }

    #[test]
    fn a_note_gives_back_each_part() {
        for (stamp, class, uses, number) in [(0, 0, 1, 0), (4_095, 17, 3, 63), (7, 31, 2, 64)] {
            let mark = ReleaseMark::new(stamp, number);
            let note = ReleaseNote::new(mark, class, uses);
            assert_eq!((note.class(), note.uses(), note.mark()), (class, uses, mark));
            assert_eq!((note.age(stamp), note.age(stamp + 5)), (0, 5));
            let renewed = note.renewed(stamp + 3);
            assert_eq!((renewed.age(stamp + 4), renewed.class(), renewed.uses()), (1, class, uses));
            assert!(renewed.is_of_same_release(note) && note.is_of_same_release(renewed));
            let next = ReleaseNote::new(ReleaseMark::new(stamp, number + 1), class, uses);
            assert!(!next.is_of_same_release(note) && !next.is_of_same_release(renewed));
            assert!(note.last().not_last() == note);
            assert!(note.is_released() && !note.is_counted() && !note.is_last());
            assert!(note.last().is_last() && note.last().mark() == mark);
            let counted = note.counted();
            assert!(counted.is_counted() && counted.mark() == mark && counted.class() == class);
            assert_eq!(ReleaseNote::from_bits(counted.bits()), counted);
        }
        assert!(!ReleaseNote::NONE.is_released());
        assert_eq!(ReleaseNote::new(ReleaseMark::new(4_096, 0), 0, 9).uses(), 3);
    }
}
