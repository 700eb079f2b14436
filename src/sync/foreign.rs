//! How is code called that is not the library's? Wakers and event sinks, through this one door.
//!
//! A panic of such code is caught here, after the panic hook has reported it. It costs the call that
//! panicked, and unwinds through nothing of the library.
//!
//! Invariant: the caller holds no claim and no lock; [`later`](super::later) sees to that.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
#[cfg(feature = "async")]
use std::task::Waker;

/// Calls foreign code. Returns false if it panicked.
pub(crate) fn call(foreign: impl FnOnce()) -> bool {
    // A model's panic is what the model has found.
    if cfg!(any(paged_kv_loom, paged_kv_shuttle)) {
        foreign();
        return true;
    }
    // Nothing of the library is borrowed mutably by the call.
    let Err(payload) = catch_unwind(AssertUnwindSafe(foreign)) else {
        return true;
    };
    // A payload is foreign too: its drop may panic, and so may the drop of that payload.
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

    /// A payload whose drop panics, `.0` times over.
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
