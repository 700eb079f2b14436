//! `OneCache`: checks that all rows of an export are of one cache, whose blocks the kernel reads.

use crate::error::{PagedKvError, Result};
use crate::sequence::Sequence;

/// The pool of the first row, after there was one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OneCache(Option<usize>);

impl OneCache {
    /// Refuses a row of another pool than the rows before it.
    pub(super) fn check(&mut self, sequence: &Sequence) -> Result<()> {
        let pool = sequence.table().pool().address();
        match self.0.replace(pool) {
            Some(first) if first != pool => {
                self.0 = Some(first);
                Err(PagedKvError::WrongCache { value: "row" })
            }
            _ => Ok(()),
        }
    }

    /// Refuses these rows if not all are of one pool.
    pub(super) fn check_all<'s>(
        mut self,
        sequences: impl Iterator<Item = &'s Sequence>,
    ) -> Result<()> {
        let mut sequences = sequences;
        sequences.try_for_each(|sequence| self.check(sequence))
    }
}
