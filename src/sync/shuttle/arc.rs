//! `Arc`: the standard library's, with a point where other threads may run before each read and change of its
//! count.
//!
//! shuttle does not schedule at reference counts. In this crate they matter: a table releases its blocks when
//! its run's count shows that it was the last. A slot moves back into the map when it has one holder.

use std::ops::Deref;

use super::let_others_run;

/// An `Arc` whose count the scheduler sees.
pub(crate) struct Arc<T> {
    /// Declared before `arc`, so that other threads may run before the count decreases.
    hold: Hold,
    arc: std::sync::Arc<T>,
}

/// Lets other threads run when a reference ends.
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

/// Returns the contents if this was the last holder, as the shipped build does.
pub(crate) fn into_last<T>(arc: Arc<T>) -> Option<T> {
    let Arc { arc, hold } = arc;
    drop(hold);
    std::sync::Arc::into_inner(arc)
}
