//! What can be a row of a step? A sequence, with or without names, owned or borrowed, or by id.

use crate::cache::cached_sequence::CachedSequence;
use crate::cache::naming::Naming;
use crate::id::{AdmissionEpoch, SeqId};
use crate::sequence::Sequence;

/// A sequence that can take part in a [`Step`](crate::Step): a [`Sequence`] or a [`CachedSequence`],
/// owned or borrowed.
///
/// ```
/// let cache = paged_kv::PagedKvCache::new(4, 4, 1, 1);
/// let mut sequence = cache.allocate_sequence(4)?;
/// let mut step = cache.step();
/// assert_eq!(step.grow_batch(&mut [(&mut sequence, 1)])?.done, 1);
/// # Ok::<(), paged_kv::PagedKvError>(())
/// ```
pub trait StepRow: Row {}

/// A sequence by id, told from every other that was or will be under the id.
pub(in crate::cache) type Identity = (SeqId, AdmissionEpoch);

/// The halves of a row.
pub(in crate::cache) type Parts<'a> = (&'a mut Sequence, Option<&'a mut Naming>);

/// A row. Nobody outside can name it, so that nobody changes the one half without the other.
pub trait Row {
    fn held(&self) -> &Sequence;
    fn parts(&mut self) -> (&mut Sequence, Option<&mut Naming>);
}

/// A row that grows in a step.
pub(in crate::cache) trait GrowingRow {
    fn parts(&mut self) -> Parts<'_>;
    fn num_new_tokens(&self) -> usize;

    /// Its id, and which sequence of that id it is, if it has one.
    fn identity(&self) -> Option<Identity>;
}

impl<R: StepRow> GrowingRow for (R, usize) {
    fn parts(&mut self) -> Parts<'_> {
        self.0.parts()
    }

    fn num_new_tokens(&self) -> usize {
        self.1
    }

    fn identity(&self) -> Option<Identity> {
        None
    }
}

impl StepRow for Sequence {}
impl StepRow for CachedSequence {}
impl<R: StepRow> StepRow for &mut R {}

impl Row for Sequence {
    fn held(&self) -> &Sequence {
        self
    }

    fn parts(&mut self) -> (&mut Sequence, Option<&mut Naming>) {
        (self, None)
    }
}

impl Row for CachedSequence {
    fn held(&self) -> &Sequence {
        self
    }

    fn parts(&mut self) -> (&mut Sequence, Option<&mut Naming>) {
        let (sequence, naming) = self.parts_mut();
        (sequence, Some(naming))
    }
}

impl<R: Row> Row for &mut R {
    fn held(&self) -> &Sequence {
        (**self).held()
    }

    fn parts(&mut self) -> (&mut Sequence, Option<&mut Naming>) {
        (**self).parts()
    }
}
