//! `Row`: a sequence in a batch or a step, owned by its handle or reached through a [`LeaseRow`].
//!
//! All rows of a call are of one type. Rows of leases are locked together for the time of the call; handles
//! need no lock. [`visit_all`] hides the difference.

pub(crate) mod batch;
pub(crate) mod lease_row;
pub(crate) mod locked;
use self::lease_row::LeaseRow;
use self::locked::{LockMemory, with_locked_rows};
use super::reuse::cached_sequence::{CachedSequence, Parts};
use crate::error::Result;
use crate::id::Identity;
use crate::sequence::Sequence;
use crate::sync::Later;

/// A sequence that can be a row of a batch ([`append_batch`](crate::append_batch())) or of a
/// [`Step`](crate::Step): a [`Sequence`] or a [`CachedSequence`], owned or borrowed, or a [`LeaseRow`].
///
/// ```
/// let cache = paged_kv::PagedKvCache::new(4, 4, 1, 1);
/// let mut sequence = cache.allocate_sequence(4)?;
/// let mut step = cache.step(Default::default());
/// assert_eq!(step.grow(&mut [(&mut sequence, 1)])?.grown_rows, 1);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
pub trait Row: RowAccess {}

/// A row for reading.
pub enum Held<'a> {
    Handle(&'a Sequence),
    Leased(&'a LeaseRow),
}

/// A row for a change.
pub enum Access<'a> {
    Handle(Parts<'a>),
    Leased(&'a LeaseRow),
}

/// Access to a row. It cannot be named outside this crate, so no other code changes one half of a row without
/// the other.
pub trait RowAccess {
    fn held(&self) -> Held<'_>;
    fn access(&mut self) -> Access<'_>;
}

/// A row that is not locked by another thread for the time of a call.
pub(super) trait GrowingRow {
    /// True if the row's lock is held for the time of the call.
    const IS_LOCKED: bool;

    fn parts(&mut self) -> Parts<'_>;
    fn num_new_tokens(&self) -> usize;

    /// Returns the identity of its sequence, if that is one of the map.
    fn identity(&self) -> Option<Identity>;
}

/// A change of all rows of a call.
pub(super) trait Visit {
    type Output;
    fn visit<G: GrowingRow>(self, rows: &mut [G]) -> Result<Self::Output>;
}

/// Lets `visit` change all rows. Rows of leases are locked for the call. The first `uses(output)` of them count
/// as used.
///
/// # Errors
/// Those of `visit`, `SequenceNotFound` for a row whose sequence is gone, and `InvalidConfig` for two rows of
/// one sequence.
pub(super) fn visit_all<R: Row, V: Visit>(
    rows: &mut [(R, usize)],
    memory: &mut LockMemory,
    visit: V,
    uses: impl FnOnce(&V::Output) -> usize,
) -> Result<V::Output> {
    let leased = |row: &(R, usize)| matches!(row.0.held(), Held::Leased(_));
    if !rows.first().is_some_and(leased) {
        return visit.visit(rows);
    }
    let leased = rows.iter().map(|(row, num_new_tokens)| (leased_row(row), *num_new_tokens));
    with_locked_rows(leased, memory, |rows| {
        let output = visit.visit(rows)?;
        rows.iter_mut().take(uses(&output)).for_each(|row| row.note_use());
        Ok(output)
    })
}

/// Changes one row. A row of a lease is locked for the change, and waiters learn of the change.
pub(super) fn update<R: Row, T>(
    row: &mut R,
    change: impl FnOnce(Parts<'_>, Option<Identity>) -> Result<T>,
) -> Result<T> {
    match row.access() {
        Access::Handle(parts) => change(parts, None),
        Access::Leased(row) => {
            let _later = Later::begin();
            row.update(|tracked| {
                let identity = (row.id(), tracked.epoch);
                change(tracked.parts(), Some(identity))
            })?
        }
    }
}

/// Changes one row as [`update`] does. A change of a row of a lease counts as a use of its sequence, unless it
/// is refused.
pub(super) fn update_and_use<R: Row, T>(
    row: &mut R,
    change: impl FnOnce(Parts<'_>) -> Result<T>,
) -> Result<T> {
    match row.access() {
        Access::Handle(parts) => change(parts),
        Access::Leased(row) => {
            let _later = Later::begin();
            row.update(|tracked| {
                let changed = change(tracked.parts())?;
                tracked.note_use_now();
                Ok(changed)
            })?
        }
    }
}

/// Reads one row. A row of a lease is locked for the read.
pub(super) fn look<R: Row, T>(
    row: &R,
    read: impl FnOnce(&Sequence, Option<Identity>) -> Result<T>,
) -> Result<T> {
    match row.held() {
        Held::Handle(sequence) => read(sequence, None),
        Held::Leased(row) => {
            row.look(|tracked| read(tracked.sequence(), Some((row.id(), tracked.epoch))))
        }
    }
}

fn leased_row<R: Row>(row: &R) -> &LeaseRow {
    match row.held() {
        Held::Leased(row) => row,
        Held::Handle(_) => unreachable!("all rows of a call are of one type"),
    }
}

impl<R: Row> GrowingRow for (R, usize) {
    const IS_LOCKED: bool = false;

    fn parts(&mut self) -> Parts<'_> {
        match self.0.access() {
            Access::Handle(parts) => parts,
            Access::Leased(_) => unreachable!("rows of leases are visited behind their locks"),
        }
    }

    fn num_new_tokens(&self) -> usize {
        self.1
    }

    fn identity(&self) -> Option<Identity> {
        None
    }
}

impl Row for Sequence {}
impl Row for CachedSequence {}
impl Row for LeaseRow {}
impl<R: Row> Row for &mut R {}

impl RowAccess for Sequence {
    fn held(&self) -> Held<'_> {
        Held::Handle(self)
    }

    fn access(&mut self) -> Access<'_> {
        Access::Handle((self, None))
    }
}

impl RowAccess for CachedSequence {
    fn held(&self) -> Held<'_> {
        Held::Handle(self)
    }

    fn access(&mut self) -> Access<'_> {
        let (sequence, hashed) = self.parts_mut();
        Access::Handle((sequence, Some(hashed)))
    }
}

impl RowAccess for LeaseRow {
    fn held(&self) -> Held<'_> {
        Held::Leased(self)
    }

    fn access(&mut self) -> Access<'_> {
        Access::Leased(self)
    }
}

impl<R: Row> RowAccess for &mut R {
    fn held(&self) -> Held<'_> {
        (**self).held()
    }

    fn access(&mut self) -> Access<'_> {
        (**self).access()
    }
}
