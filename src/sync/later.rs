//! `Later`: a scope at whose end a thread calls foreign code, after it has released its locks.
//!
//! ```text
//!   Later::begin ── lock ── blocks come back: postpone(wake) ── unlock ── end: the wake-ups, events
//! ```
//!
//! An operation begins a scope before it takes a lock under which it may have to wake a waiter or emit an
//! event. Inside the scope, each object with foreign code to call is noted. The end of the thread's outermost
//! scope performs the notes. A scope without notes costs two writes of a thread-local word.
//!
//! Foreign code may use the cache, which may have more foreign code to call, without end: a waker that polls
//! its task serves it, and that wakes the next task. So from [`MOST_NESTED`] nested calls on, the notes wait
//! until the innermost of these calls returns.
//!
//! Invariant: a thread that holds a lock of a map shard or of a sequence and may call foreign code has an open
//! scope. The scope began before it took the lock.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ptr::addr_eq;

use super::{PlainArc, thread_local};

/// An object that has foreign code to call.
pub(crate) trait Postponed: Send + Sync {
    /// Calls the foreign code. The caller holds no lock.
    fn perform(self: PlainArc<Self>);
}

/// An open scope. Dropping it ends the scope.
#[must_use = "the scope ends when this is dropped"]
pub(crate) struct Later {
    /// Not `Send`: a scope belongs to one thread.
    _of_thread: PhantomData<*const ()>,
}

/// Bit 0 of `SCOPES`: an object is noted.
const NOTED: usize = 1;

/// The amount that one open scope adds to `SCOPES`.
const ONE: usize = 2;

/// Nested foreign calls from which on further notes wait.
const MOST_NESTED: usize = 16;

thread_local! {
    static NESTED: Cell<usize> = const { Cell::new(0) };
    static SCOPES: Cell<usize> = const { Cell::new(0) };
    static POSTPONED: RefCell<Noted> = const { RefCell::new(Vec::new()) };
    /// For a thread that ends, whose `POSTPONED` was dropped already: this list is never dropped. It is mostly
    /// empty, and then holds no memory.
    static AT_THE_END: ManuallyDrop<RefCell<Noted>> =
        const { ManuallyDrop::new(RefCell::new(Vec::new())) };
}

type Noted = Vec<PlainArc<dyn Postponed>>;

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
        if left == NOTED && !is_deep() {
            perform_postponed();
        }
    }
}

/// Returns true while a scope of this thread is open, or it is deep in foreign calls. The thread may then only
/// note foreign code, and not call it.
#[inline]
pub(crate) fn is_open() -> bool {
    SCOPES.with(Cell::get) >= ONE || is_deep()
}

fn is_deep() -> bool {
    NESTED.with(Cell::get) >= MOST_NESTED
}

/// One more nested foreign call of this thread, until it is dropped.
struct Nested;

impl Nested {
    fn begin() -> Self {
        NESTED.with(|nested| nested.set(nested.get() + 1));
        Self
    }
}

impl Drop for Nested {
    fn drop(&mut self) {
        NESTED.with(|nested| nested.set(nested.get() - 1));
    }
}

/// Calls foreign code while no scope is open. Performs the notes that waited for its return.
#[cfg(feature = "async")]
pub(crate) fn call_nested(foreign: impl FnOnce()) {
    let nested = Nested::begin();
    foreign();
    drop(nested);
    if SCOPES.with(Cell::get) == NOTED && !is_deep() {
        perform_postponed();
    }
}

/// Notes an object once. The end of the thread's outermost scope performs it, or the innermost of its deep
/// foreign calls. One of the two exists, because [`is_open`] is true.
pub(crate) fn postpone(postponed: PlainArc<dyn Postponed>) {
    let again = change_noted(|list| {
        let is_same = |other: &PlainArc<dyn Postponed>| {
            addr_eq(PlainArc::as_ptr(other), PlainArc::as_ptr(&postponed))
        };
        if list.iter().any(is_same) {
            return Some(postponed);
        }
        list.push(postponed);
        SCOPES.with(|scopes| scopes.set(scopes.get() | NOTED));
        None
    });
    drop(again);
}

/// Changes the notes, also while the thread ends: the destructors of its variables may use a cache.
fn change_noted<R>(change: impl FnOnce(&mut Noted) -> R) -> R {
    let mut change = Some(change);
    let mut change = |list: &mut Noted| change.take().expect("it is called once")(list);
    let changed = POSTPONED.try_with(|list| change(&mut list.borrow_mut()));
    changed.unwrap_or_else(|_| {
        AT_THE_END.with(|list| {
            let mut list = list.borrow_mut();
            let changed = change(&mut list);
            if list.is_empty() {
                *list = Vec::new();
            }
            changed
        })
    })
}

/// Performs the notes now, inside a scope. For a thread that is about to wait for other threads, which may
/// wait for these notes.
#[cfg(feature = "async")]
pub(crate) fn perform_now() {
    if SCOPES.with(Cell::get) & NOTED != 0 {
        perform_postponed();
    }
}

/// Performs the notes, in order.
#[cold]
fn perform_postponed() {
    let _nested = Nested::begin();
    let next = || {
        change_noted(|list| {
            let next = (!list.is_empty()).then(|| list.remove(0));
            if next.is_none() {
                SCOPES.with(|scopes| scopes.set(scopes.get() & !NOTED));
            }
            next
        })
    };
    while let Some(postponed) = next() {
        postponed.perform();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts its calls.
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
    fn the_outermost_scope_performs_each_postponed_call_once() {
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
    fn a_scope_that_unwinds_performs_its_postponed_work() {
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
    fn a_thread_that_ends_postpones_as_before() {
        struct OnExit(RefCell<Option<PlainArc<Calls>>>);
        impl Drop for OnExit {
            fn drop(&mut self) {
                let calls = self.0.take().expect("it is set");
                for count in 1..3 {
                    let later = Later::begin();
                    postpone(calls.clone());
                    postpone(calls.clone());
                    assert_eq!(calls.count(), count);
                    drop(later);
                    assert_eq!(calls.count(), count + 1);
                }
            }
        }
        std::thread_local! {
            static ON_EXIT: OnExit = const { OnExit(RefCell::new(None)) };
        }
        let calls = PlainArc::new(Calls::default());
        let of_thread = calls.clone();
        let thread = std::thread::spawn(move || {
            // Initialized in the thread before its list, and so dropped after it.
            ON_EXIT.with(|on_exit| on_exit.0.replace(Some(of_thread.clone())));
            let _later = Later::begin();
            postpone(of_thread);
        });
        thread.join().expect("it does not panic");
        assert_eq!(calls.count(), 3);
    }

    #[test]
    fn postponed_work_may_open_scopes_of_its_own() {
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
