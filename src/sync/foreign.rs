//! Calls of foreign code: wakers and event sinks are called only through this module.
//!
//! A panic of such code is caught here, after the panic hook has reported it. It ends the call that panicked,
//! and unwinds through no frame of the library.
//!
//! Invariant: the caller holds no claim and no lock; [`later`](super::later) ensures that.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
#[cfg(feature = "async")]
use std::task::Waker;

/// Calls foreign code. Returns false if it panicked.
pub(crate) fn call(foreign: impl FnOnce()) -> bool {
    // In a model, a panic is the result of the model, so it is not caught.
    if cfg!(any(paged_kv_loom, paged_kv_shuttle)) {
        foreign();
        return true;
    }
    // The call borrows nothing of the library mutably.
    let Err(payload) = catch_unwind(AssertUnwindSafe(foreign)) else {
        return true;
    };
    // A payload is foreign too: its drop may panic, and so may the drop of that second payload.
    if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        mem::forget(second);
    }
    false
}

/// Wakes a task. Returns false if the waker panicked.
#[cfg(feature = "async")]
pub(crate) fn wake(waker: Waker) -> bool {
    call(|| waker.wake())
}

/// Drops a foreign value, if there is one.
pub(crate) fn discard<T>(value: Option<T>) {
    if let Some(value) = value {
        call(|| drop(value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::panic_any;

    /// A payload whose drop panics, with `.0` payloads nested in it.
    struct Nested(u32);

    impl Drop for Nested {
        fn drop(&mut self) {
            if self.0 > 0 {
                panic_any(Nested(self.0 - 1));
            }
        }
    }

    #[test]
    fn no_panic_comes_through_the_door() {
        assert!(call(|| ()));
        assert!(!call(|| panic!("on purpose")));
        for depth in 0..4 {
            assert!(!call(|| panic_any(Nested(depth))));
            discard(Some(Nested(depth)));
        }
    }

    #[test]
    fn a_panic_is_caught_also_while_the_thread_unwinds() {
        struct Calls<'a>(&'a mut bool);
        impl Drop for Calls<'_> {
            fn drop(&mut self) {
                *self.0 = !call(|| panic!("on purpose, while another unwinds"));
            }
        }
        let mut caught = false;
        let unwound = catch_unwind(AssertUnwindSafe(|| {
            let _calls = Calls(&mut caught);
            panic!("on purpose");
        }));
        assert!(unwound.is_err() && caught);
    }
}
