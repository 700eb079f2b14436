//! `Joined`: the sequences by id that take part in a step, each told from others of its id.
//!
//! Invariant: an operation of a step on an id reaches the sequence that joined the step under that id,
//! and no other. An id that never joined joins at its first operation.

use super::{GrownRow, Identity, Step};
use crate::error::{PagedKvError, Result};
use crate::id::{AdmissionEpoch, SeqId};
use crate::sync::Mutex;

/// The sequences by id that joined a step without growing in it.
pub(super) struct Joined {
    /// A lock, because a sequence by id joins a shared step. Waited for by threads that do so only.
    without_growing: Mutex<Vec<Identity>>,
    /// The number of the row that is probably asked for next.
    next_row: usize,
}

impl Joined {
    pub(super) fn new() -> Self {
        Self { without_growing: Mutex::new(Vec::new()), next_row: 0 }
    }

    /// Notes that a sequence takes part.
    pub(super) fn note(&self, identity: Identity) {
        let mut joined = self.without_growing.lock();
        if !joined.contains(&identity) {
            joined.push(identity);
        }
    }
}

impl Step {
    /// True if this sequence takes part in the step, false if it may join.
    ///
    /// # Errors
    /// [`SequenceNotFound`](PagedKvError::SequenceNotFound) when another one joined under its id.
    pub(super) fn has_joined(&mut self, identity: Identity) -> Result<bool> {
        let rows = &self.buffers.rows;
        let is_of = |row: &GrownRow| row.identity == Some(identity);
        // Mostly: rows are committed in the order of their numbers.
        let is_next = rows.get(self.joined.next_row).is_some_and(is_of);
        let row = if is_next { Some(self.joined.next_row) } else { rows.iter().position(is_of) };
        if let Some(row) = row {
            self.joined.next_row = row + 1;
            return Ok(true);
        }
        let others = self.joined.without_growing.lock();
        if others.contains(&identity) {
            return Ok(true);
        }
        let mut all = rows.iter().filter_map(|row| row.identity).chain(others.iter().copied());
        match all.any(|(id, _)| id == identity.0) {
            true => Err(PagedKvError::SequenceNotFound(identity.0)),
            false => Ok(false),
        }
    }

    /// Which sequence of `id` grew as row `row` of this step.
    ///
    /// # Errors
    /// [`InvalidConfig`](PagedKvError::InvalidConfig) when there is no such row, or it is another id's.
    pub(super) fn epoch_of_row(&self, row: usize, id: SeqId) -> Result<AdmissionEpoch> {
        let reason = match self.buffers.rows.get(row).map(|row| row.identity) {
            Some(Some((of_row, epoch))) if of_row == id => return Ok(epoch),
            Some(Some((of_row, _))) => format!("row {row} of the step is {of_row}, not {id}"),
            Some(None) => format!("row {row} of the step is held by its handle, not by {id}"),
            None => format!("{row} of {}", self.buffers.rows.len()),
        };
        Err(PagedKvError::InvalidConfig { parameter: "row", reason })
    }
}
