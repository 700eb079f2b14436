//! What can be a row of a step? A sequence, with or without names, owned or borrowed.

use crate::cache::cached_sequence::CachedSequence;
use crate::cache::naming::Naming;
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

/// The halves of a row. Nobody outside can name it, so that nobody changes the one without the other.
pub trait Row {
    fn parts(&mut self) -> (&mut Sequence, Option<&mut Naming>);
}

impl StepRow for Sequence {}
impl StepRow for CachedSequence {}
impl<R: StepRow> StepRow for &mut R {}

impl Row for Sequence {
    fn parts(&mut self) -> (&mut Sequence, Option<&mut Naming>) {
        (self, None)
    }
}

impl Row for CachedSequence {
    fn parts(&mut self) -> (&mut Sequence, Option<&mut Naming>) {
        let (sequence, naming) = self.parts_mut();
        (sequence, Some(naming))
    }
}

impl<R: Row> Row for &mut R {
    fn parts(&mut self) -> (&mut Sequence, Option<&mut Naming>) {
        (**self).parts()
    }
}
