//! `Arc`: the standard library's, whose reference counts are counted by the type of the contents.
//!
//! The type decides and not the caller, because a drop has no known caller.

use std::any::type_name;
use std::marker::PhantomData;
use std::ops::Deref;

use super::{Place, count_shared, count_store, shipped};

/// An `Arc` whose clones and drops are counted.
pub(crate) struct Arc<T> {
    arc: shipped::Arc<T>,
    /// Declared after `arc`, so that the contents end first.
    hold: Hold<T>,
}

/// Counts the end of one reference.
struct Hold<T>(PhantomData<fn() -> T>);

impl<T> Drop for Hold<T> {
    fn drop(&mut self) {
        count_shared(place_of::<T>(), 1);
    }
}

/// Returns the place of the reference count of a `T`.
fn place_of<T>() -> Place {
    const PLACE_OF: [(&str, Place); 7] = [
        ("SharedRun", Place::Run),
        ("Stripe", Place::Stripe),
        ("SharedEntry", Place::Sequence),
        ("RecencyClock", Place::Clock),
        ("Blocks", Place::Rare),
        ("PublishedBlocks", Place::Stripe),
        ("Hashed", Place::Sequence),
    ];
    let name = type_name::<T>().trim_end_matches('>');
    match PLACE_OF.iter().find(|(last, _)| name.rsplit("::").next() == Some(last)) {
        Some(&(_, place)) => place,
        None => panic!("an Arc of {name} has no place in the census"),
    }
}

impl<T> Arc<T> {
    pub(crate) fn new(value: T) -> Self {
        Self::of(shipped::Arc::new(value))
    }

    fn of(arc: shipped::Arc<T>) -> Self {
        Self { arc, hold: Hold(PhantomData) }
    }

    /// Counts an exchange of the weak count, and the store that ends it if there is no other holder.
    pub(crate) fn get_mut(this: &mut Self) -> Option<&mut T> {
        count_shared(place_of::<T>(), 1);
        count_store(place_of::<T>());
        shipped::Arc::get_mut(&mut this.arc)
    }

    pub(crate) fn ptr_eq(left: &Self, right: &Self) -> bool {
        shipped::Arc::ptr_eq(&left.arc, &right.arc)
    }

    pub(crate) fn strong_count(this: &Self) -> usize {
        shipped::Arc::strong_count(&this.arc)
    }

    pub(crate) fn as_ptr(this: &Self) -> *const T {
        shipped::Arc::as_ptr(&this.arc)
    }
}

impl<T> Clone for Arc<T> {
    fn clone(&self) -> Self {
        count_shared(place_of::<T>(), 1);
        Self::of(self.arc.clone())
    }
}

impl<T> Deref for Arc<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.arc
    }
}

/// Returns the contents if this was the last holder, as the shipped build does. Counts the end of one
/// reference.
pub(crate) fn into_last<T>(arc: Arc<T>) -> Option<T> {
    let Arc { arc, hold } = arc;
    drop(hold);
    shipped::into_last(arc)
}
