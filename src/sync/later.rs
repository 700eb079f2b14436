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
//! Foreign code that is called may use the cache, which may have more foreign code to call, and so on
//! without end: a waker that polls its task serves it, and that wakes the next one. So from a few such
//! calls inside each other on, what is noted waits for the innermost of them to return.
//!
//! Invariant: while a thread holds a lock of a map shard or of a sequence and may call foreign code, a
//! scope of it is open that began before. It does not know what is noted.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
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

/// Foreign calls inside each other, from which on what else there is to call waits.
const MOST_NESTED: usize = 16;

thread_local! {
    static NESTED: Cell<usize> = const { Cell::new(0) };
    static SCOPES: Cell<usize> = const { Cell::new(0) };
    static POSTPONED: RefCell<Noted> = const { RefCell::new(Vec::new()) };
    /// For a thread that ends, whose `POSTPONED` is gone: this one is never dropped. Mostly empty, and
    /// then without memory.
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

/// True while a scope of this thread is open, or it is deep in foreign calls: then it may note, and not
/// call.
#[inline]
pub(crate) fn is_open() -> bool {
    SCOPES.with(Cell::get) >= ONE || is_deep()
}

fn is_deep() -> bool {
    NESTED.with(Cell::get) >= MOST_NESTED
}

/// One more foreign call inside the others of this thread, until it is dropped.
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

/// Calls foreign code, while no scope is open, and performs what waited for its return.
#[cfg(feature = "async")]
pub(crate) fn call_nested(foreign: impl FnOnce()) {
    let nested = Nested::begin();
    foreign();
    drop(nested);
    if SCOPES.with(Cell::get) == NOTED && !is_deep() {
        perform_postponed();
    }
}

/// Notes what is to be performed at the end of the thread's outermost scope, or by the innermost of deep
/// foreign calls. Once is enough. One of the two is there: [`is_open`] says so.
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

/// Changes what is noted, also while the thread ends: the destructors of its variables may use a cache.
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
            // Known to the thread before its list is, and so dropped after that.
            ON_EXIT.with(|on_exit| on_exit.0.replace(Some(of_thread.clone())));
            let _later = Later::begin();
            postpone(of_thread);
        });
        thread.join().expect("it does not panic");
        assert_eq!(calls.count(), 3);
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
