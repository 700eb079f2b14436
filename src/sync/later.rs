//! When is foreign code called by a thread that holds a lock? At the end of its scope, `Later`.
//!
//! ```text
//!   Later::begin ── lock ── blocks come back: postpone(wake) ── unlock ── end: the wake-ups, events
//! ```
//!
//! An operation begins a scope before it takes a lock under which a waiter may have to be woken or an
//! event to be told. Inside, what has foreign code to call is noted; the end of the outermost scope of
//! the thread performs it. A scope that nothing was noted in costs two writes of a word of the thread.
//!
//! Invariant: while a thread holds a lock of a map shard or of a sequence and may call foreign code, a
//! scope of it is open that began before. It does not know what is noted.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::ptr::addr_eq;

use super::{PlainArc, thread_local};

/// Something that has foreign code to call.
pub(crate) trait Postponed: Send + Sync {
    /// Calls it. The caller holds no lock.
    fn perform(self: PlainArc<Self>);
}

/// Ends with the scope.
#[must_use = "the scope ends when this is dropped"]
pub(crate) struct Later {
    /// It belongs to one thread.
    _of_thread: PhantomData<*const ()>,
}

/// Bit 0 of `SCOPES`: something is noted.
const NOTED: usize = 1;

/// What one open scope adds to `SCOPES`.
const ONE: usize = 2;

thread_local! {
    static SCOPES: Cell<usize> = const { Cell::new(0) };
    static POSTPONED: RefCell<Vec<PlainArc<dyn Postponed>>> = const { RefCell::new(Vec::new()) };
}

impl Later {
    #[inline]
    pub(crate) fn begin() -> Self {
        SCOPES.with(|scopes| scopes.set(scopes.get() + ONE));
        Self { _of_thread: PhantomData }
    }
}

impl Drop for Later {
    #[inline]
    fn drop(&mut self) {
        let left = SCOPES.with(|scopes| {
            scopes.set(scopes.get() - ONE);
            scopes.get()
        });
        if left == NOTED {
            perform_postponed();
        }
    }
}

/// True while a scope of this thread is open.
#[inline]
pub(crate) fn is_open() -> bool {
    SCOPES.with(Cell::get) >= ONE
}

/// Notes what the end of the thread's outermost scope is to perform. Once is enough.
pub(crate) fn postpone(postponed: PlainArc<dyn Postponed>) {
    let mut noted = Some(postponed);
    // A thread that ends has no list any more. It holds no lock either.
    _ = POSTPONED.try_with(|list| {
        let mut list = list.borrow_mut();
        let is_same = |other: &PlainArc<dyn Postponed>| {
            noted
                .as_ref()
                .is_some_and(|new| addr_eq(PlainArc::as_ptr(other), PlainArc::as_ptr(new)))
        };
        if !list.iter().any(is_same) {
            list.extend(noted.take());
            SCOPES.with(|scopes| scopes.set(scopes.get() | NOTED));
        } else {
            noted = None;
        }
    });
    if let Some(postponed) = noted {
        postponed.perform();
    }
}

/// Performs what is noted now, inside a scope: for a thread that is about to wait for other threads,
/// which may wait for what is noted.
#[cfg(feature = "async")]
pub(crate) fn perform_now() {
    if SCOPES.with(Cell::get) & NOTED != 0 {
        perform_postponed();
    }
}

/// Performs what is noted, in order.
#[cold]
fn perform_postponed() {
    let next = || {
        let next = POSTPONED.try_with(|list| {
            let mut list = list.borrow_mut();
            let next = (!list.is_empty()).then(|| list.remove(0));
            if next.is_none() {
                SCOPES.with(|scopes| scopes.set(scopes.get() & !NOTED));
            }
            next
        });
        next.ok().flatten()
    };
    while let Some(postponed) = next() {
        postponed.perform();
    }
}

#[cfg(all(test, not(any(paged_kv_loom, paged_kv_shuttle))))]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// How often it was performed.
    #[derive(Default)]
    struct Calls(AtomicUsize);

    impl Postponed for Calls {
        fn perform(self: PlainArc<Self>) {
            assert!(!is_open());
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Calls {
        fn count(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn the_outermost_scope_performs_once_what_was_noted_inside() {
        let (one, other) = (PlainArc::new(Calls::default()), PlainArc::new(Calls::default()));
        assert!(!is_open());
        let outer = Later::begin();
        let inner = Later::begin();
        postpone(one.clone());
        postpone(other.clone());
        postpone(one.clone());
        drop(inner);
        assert!(is_open());
        assert_eq!((one.count(), other.count()), (0, 0));
        drop(outer);
        assert_eq!((one.count(), other.count()), (1, 1));
        drop(Later::begin());
        assert_eq!(one.count(), 1);
    }

    #[test]
    fn a_scope_that_ends_by_a_panic_performs_what_was_noted() {
        let calls = PlainArc::new(Calls::default());
        let noted = calls.clone();
        let unwound = std::panic::catch_unwind(move || {
            let _later = Later::begin();
            postpone(noted);
            panic!("on purpose");
        });
        assert!(unwound.is_err());
        assert_eq!(calls.count(), 1);
        assert!(!is_open());
    }

    #[test]
    fn what_is_performed_may_open_scopes_of_its_own() {
        struct Opens(PlainArc<Calls>);
        impl Postponed for Opens {
            fn perform(self: PlainArc<Self>) {
                let _later = Later::begin();
                postpone(self.0.clone());
            }
        }
        let calls = PlainArc::new(Calls::default());
        let later = Later::begin();
        postpone(PlainArc::new(Opens(calls.clone())));
        drop(later);
        assert_eq!(calls.count(), 1);
        drop(Later::begin());
        assert_eq!(calls.count(), 1);
    }
}
