//! `with_locked_rows`: locks the sequences of all rows of a batch for the time of one change.
//!
//! A thread waits for one row at a time and holds no other row while it waits. So batches with the same
//! rows in another order do not deadlock.

use super::GrowingRow;
use super::lease_row::LeaseRow;
use crate::cache::entry::TrackedSequence;
use crate::cache::reuse::cached_sequence::Parts;
use crate::error::{PagedKvError, Result};
use crate::id::Identity;
use crate::sync::{Later, RwLockWriteGuard};

/// Memory for the rows of a call, empty between calls. Its elements have the rows' layout, and may be sent
/// to other threads, which lock guards may not.
#[derive(Debug, Default)]
pub(in crate::cache) struct LockMemory(Vec<[usize; 3]>);

/// A row of a batch with its sequence's lock held.
pub(in crate::cache) struct LockedRow<'a> {
    tracked: Option<RwLockWriteGuard<'a, Option<TrackedSequence>>>,
    row: &'a LeaseRow,
    num_new_tokens: usize,
}

/// Locks every row for the time of `change`. The waiters learn of the change afterwards.
pub(in crate::cache) fn with_locked_rows<'a, T>(
    rows: impl Iterator<Item = (&'a LeaseRow, usize)>,
    memory: &mut LockMemory,
    change: impl FnOnce(&mut [LockedRow<'a>]) -> Result<T>,
) -> Result<T> {
    let _later = Later::begin();
    let mut locked: Vec<LockedRow<'a>> = emptied(std::mem::take(&mut memory.0));
    let unlocked = |(row, num_new_tokens)| LockedRow { tracked: None, row, num_new_tokens };
    locked.extend(rows.map(unlocked));
    let changed = lock_all(&mut locked).and_then(|()| change(&mut locked));
    let tracked = locked.first().and_then(LockedRow::sequence_that_is_there);
    let pool = tracked.map(|tracked| tracked.sequence().table().pool());
    let waited_for = pool.filter(|pool| pool.is_waited_for()).cloned();
    locked.iter_mut().for_each(|row| row.tracked = None);
    if let Some(pool) = waited_for {
        locked.iter().for_each(|locked| pool.announce_change_of(locked.row.id()));
    }
    memory.0 = emptied(locked);
    changed
}

fn lock_all(rows: &mut [LockedRow<'_>]) -> Result<()> {
    let mut awaited = 0;
    while awaited < rows.len() {
        rows[awaited].tracked = Some(rows[awaited].row.entry().write());
        for at in (0..rows.len()).filter(|&at| at != awaited) {
            rows[at].tracked = rows[at].row.entry().try_write();
            if rows[at].tracked.is_none() {
                refuse_repetition(rows, at)?;
                break;
            }
        }
        match rows.iter().position(|row| row.tracked.is_none()) {
            None => break,
            Some(busy) => awaited = busy,
        }
        rows.iter_mut().for_each(|row| row.tracked = None);
    }
    let gone = rows.iter().find(|row| row.sequence_that_is_there().is_none());
    gone.map_or(Ok(()), |gone| Err(gone.row.refusal_of_gone()))
}

/// Refuses row `at` if its lock is busy because another locked row is the same sequence.
fn refuse_repetition(rows: &[LockedRow<'_>], at: usize) -> Result<()> {
    let row = rows[at].row;
    match rows.iter().any(|other| other.tracked.is_some() && other.row.is_same_sequence(row)) {
        true => Err(refusal_of_repetition(row)),
        false => Ok(()),
    }
}

/// Returns the refusal of a sequence that is listed twice.
pub(in crate::cache) fn refusal_of_repetition(row: &LeaseRow) -> PagedKvError {
    let reason = format!("{} is listed twice", row.id());
    PagedKvError::InvalidConfig { parameter: "ids", reason }
}

/// Returns the memory of `elements` as an empty vector of elements of the same layout. Collecting in place
/// keeps the allocation; `tests/no_allocation.rs` checks that.
fn emptied<T, U>(mut elements: Vec<T>) -> Vec<U> {
    elements.clear();
    elements.into_iter().map(|_| unreachable!("the vector was cleared")).collect()
}

const LOCKED: &str = "a locked row has its sequence";

impl LockedRow<'_> {
    fn sequence_that_is_there(&self) -> Option<&TrackedSequence> {
        self.tracked.as_ref().and_then(|guard| guard.as_ref())
    }

    fn tracked(&mut self) -> &mut TrackedSequence {
        self.tracked.as_mut().and_then(|guard| guard.as_mut()).expect(LOCKED)
    }

    /// Counts a use of the sequence.
    pub(in crate::cache) fn note_use(&mut self) {
        self.tracked().note_use_now();
    }
}

impl GrowingRow for LockedRow<'_> {
    const IS_LOCKED: bool = true;

    fn parts(&mut self) -> Parts<'_> {
        self.tracked().parts()
    }

    fn num_new_tokens(&self) -> usize {
        self.num_new_tokens
    }

    fn identity(&self) -> Option<Identity> {
        let tracked = self.sequence_that_is_there().expect(LOCKED);
        Some((self.row.id(), tracked.epoch))
    }
}
