//! `Trip`: a trap in foreign code, which runs an action of the test at the n-th call of a kind.

use std::sync::{Arc, Mutex};

/// The calls that the library makes of foreign code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `Wake::wake`.
    Wake,
    /// The drop of a waker's data.
    WakerDrop,
    /// `EventSink::on_event`, before the listener has noted the event.
    EventBefore,
    /// `EventSink::on_event`, after the listener has noted the event.
    EventAfter,
}

impl Call {
    pub const ALL: [Self; 4] = [Self::Wake, Self::WakerDrop, Self::EventBefore, Self::EventAfter];
}

type Action = Arc<dyn Fn() + Send + Sync>;

#[derive(Default)]
pub struct Trip(Mutex<Option<Armed>>);

struct Armed {
    call: Call,
    /// Calls of the kind until the action, its own call included.
    left: usize,
    action: Action,
}

impl Trip {
    /// Arms the trap: `action` runs at the `n`-th call from now on.
    pub fn arm(&self, call: Call, n: usize, action: Action) {
        *self.0.lock().unwrap() = Some(Armed { call, left: n, action });
    }

    /// Disarms the trap. True if it was armed and its action has not run.
    pub fn disarm(&self) -> bool {
        self.0.lock().unwrap().take().is_some()
    }

    /// Notes a call of foreign code, and runs the action if it is due.
    pub fn on(&self, call: Call) {
        let due = {
            let mut armed = self.0.lock().unwrap();
            let Some(wire) = armed.as_mut().filter(|wire| wire.call == call) else { return };
            wire.left -= 1;
            if wire.left > 0 {
                return;
            }
            armed.take()
        };
        // The action runs outside the lock, because it may call this function again.
        due.into_iter().for_each(|wire| (wire.action)());
    }
}
