//! Who else holds it, at this moment? The standard library's `Arc`, with a place where others may
//! run before each look at its count and each change of it.
//!
//! shuttle takes reference counts for something between threads that needs no schedule. Here it
//! does: a table gives its blocks back when its run's count says that it was the last, and a slot
//! moves back into the map when it is found alone.

use std::ops::Deref;

use super::let_others_run;

/// An `Arc` whose count the scheduler sees.
pub(crate) struct Arc<T> {
    /// Before `arc`, so that others may run before the count goes down.
    hold: Hold,
    arc: std::sync::Arc<T>,
}

/// Lets others run when a reference ends.
struct Hold;

impl Drop for Hold {
    fn drop(&mut self) {
        let_others_run();
    }
}

impl<T> Arc<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { hold: Hold, arc: std::sync::Arc::new(value) }
    }

    pub(crate) fn get_mut(this: &mut Self) -> Option<&mut T> {
        let_others_run();
        std::sync::Arc::get_mut(&mut this.arc)
    }

    pub(crate) fn ptr_eq(left: &Self, right: &Self) -> bool {
        std::sync::Arc::ptr_eq(&left.arc, &right.arc)
    }

    pub(crate) fn strong_count(this: &Self) -> usize {
        let_others_run();
        std::sync::Arc::strong_count(&this.arc)
    }

    pub(crate) fn as_ptr(this: &Self) -> *const T {
        std::sync::Arc::as_ptr(&this.arc)
    }
}

impl<T> Clone for Arc<T> {
    fn clone(&self) -> Self {
        let_others_run();
        Self { hold: Hold, arc: self.arc.clone() }
    }
}

impl<T> Deref for Arc<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.arc
    }
}

/// As in the build that ships.
pub(crate) fn into_last<T>(arc: Arc<T>) -> Option<T> {
    let Arc { arc, hold } = arc;
    drop(hold);
    std::sync::Arc::into_inner(arc)
}
