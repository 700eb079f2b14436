//! `Arc`: the standard library's, whose reference counts are counted by the type of the contents.
//!
//! The type decides and not the caller, because a drop has no known caller.

use std::any::type_name;
use std::ops::Deref;
use std::panic::Location;

use super::coherence::{Access, Site, access_at, forget_range, place_range};
use super::{Place, count_shared, count_store, shipped};

/// Bytes of the two counts in front of the contents.
const COUNTS: usize = 2 * size_of::<usize>();

/// An `Arc` whose clones and drops are counted.
pub(crate) struct Arc<T> {
    /// `None` only while it is dropped.
    arc: Option<shipped::Arc<T>>,
}

/// Returns the name of a type, without its path.
fn name_of<T>() -> &'static str {
    let name = type_name::<T>().trim_end_matches('>');
    name.rsplit("::").next().unwrap_or(name)
}

/// Returns the place of the reference count of a `T`.
fn place_of<T>() -> Place {
    const PLACE_OF: [(&str, Place); 8] = [
        ("SharedRun", Place::Run),
        ("Stripe", Place::Stripe),
        ("GroupLayout", Place::Stripe),
        ("SharedEntry", Place::Sequence),
        ("RecencyClock", Place::Clock),
        ("Blocks", Place::Rare),
        ("PublishedBlocks", Place::Stripe),
        ("Hashed", Place::Sequence),
    ];
    let name = name_of::<T>();
    match PLACE_OF.iter().find(|(last, _)| name == *last) {
        Some(&(_, place)) => place,
        None => panic!("an Arc of {name} has no place in the census"),
    }
}

/// Returns the address of the counts, which are in front of the contents.
fn counts_of<T>(arc: &shipped::Arc<T>) -> usize {
    shipped::Arc::as_ptr(arc).addr() - offset_of_contents::<T>()
}

fn offset_of_contents<T>() -> usize {
    COUNTS.max(align_of::<T>())
}

/// Counts the end of a reference to the counts at an address.
fn count_end<T>(counts: usize, is_last: bool) {
    let place = place_of::<T>();
    count_shared(place, 1);
    access_at(counts, Access::Write, Site { file: name_of::<T>(), line: 0 }, place);
    if is_last {
        forget_range(counts);
    }
}

impl<T> Arc<T> {
    #[track_caller]
    pub(crate) fn new(value: T) -> Self {
        let arc = Self::of(shipped::Arc::new(value));
        place_range(counts_of(arc.shipped()), offset_of_contents::<T>() + size_of::<T>());
        arc.access(Access::Write, Location::caller());
        arc
    }

    fn of(arc: shipped::Arc<T>) -> Self {
        Self { arc: Some(arc) }
    }

    fn shipped(&self) -> &shipped::Arc<T> {
        self.arc.as_ref().expect("only a drop takes it")
    }

    /// Notes an access to the reference counts.
    fn access(&self, access: Access, caller: &'static Location<'static>) {
        access_at(counts_of(self.shipped()), access, Site::of(caller), place_of::<T>());
    }

    /// Counts an exchange of the weak count, and the store that ends it if there is no other holder.
    #[track_caller]
    pub(crate) fn get_mut(this: &mut Self) -> Option<&mut T> {
        count_shared(place_of::<T>(), 1);
        count_store(place_of::<T>());
        this.access(Access::Write, Location::caller());
        shipped::Arc::get_mut(this.arc.as_mut().expect("only a drop takes it"))
    }

    pub(crate) fn ptr_eq(left: &Self, right: &Self) -> bool {
        shipped::Arc::ptr_eq(left.shipped(), right.shipped())
    }

    #[track_caller]
    pub(crate) fn strong_count(this: &Self) -> usize {
        this.access(Access::Read, Location::caller());
        shipped::Arc::strong_count(this.shipped())
    }

    pub(crate) fn as_ptr(this: &Self) -> *const T {
        shipped::Arc::as_ptr(this.shipped())
    }
}

impl<T> Clone for Arc<T> {
    #[track_caller]
    fn clone(&self) -> Self {
        count_shared(place_of::<T>(), 1);
        self.access(Access::Write, Location::caller());
        Self::of(self.shipped().clone())
    }
}

impl<T> Drop for Arc<T> {
    fn drop(&mut self) {
        if let Some(arc) = self.arc.take() {
            let (counts, is_last) = (counts_of(&arc), shipped::Arc::strong_count(&arc) == 1);
            drop(arc);
            count_end::<T>(counts, is_last);
        }
    }
}

impl<T> Deref for Arc<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.shipped()
    }
}

/// Returns the contents if this was the last holder, as the shipped build does. Counts the end of one
/// reference.
pub(crate) fn into_last<T>(mut this: Arc<T>) -> Option<T> {
    let arc = this.arc.take()?;
    let (counts, is_last) = (counts_of(&arc), shipped::Arc::strong_count(&arc) == 1);
    count_end::<T>(counts, is_last);
    shipped::into_last(arc)
}
