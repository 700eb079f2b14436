//! A wire that foreign code runs over: its n-th call of a kind does what the test wants.

use std::sync::{Arc, Mutex};

/// Where the library calls foreign code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `Wake::wake`.
    Wake,
    /// The drop of what a waker points to.
    WakerDrop,
    /// `EventSink::on_event`, before the listener has noted the event.
    EventBefore,
    /// The same, after it has.
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
    /// Calls of the kind until the action, that one included.
    left: usize,
    action: Action,
}

impl Trip {
    /// Does `action` at the `n`-th call from now on.
    pub fn arm(&self, call: Call, n: usize, action: Action) {
        *self.0.lock().unwrap() = Some(Armed { call, left: n, action });
    }

    /// True if it was armed, and the action is still to come.
    pub fn disarm(&self) -> bool {
        self.0.lock().unwrap().take().is_some()
    }

    /// A call of foreign code.
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
        // Outside the lock: the action may come here again.
        due.into_iter().for_each(|wire| (wire.action)());
    }
}
