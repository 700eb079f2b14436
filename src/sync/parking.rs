//! `block_on_until` and `Alarm`: a thread sleeps until a future is done, and a task wakes at a deadline.
//!
//! The thread parks. One thread of the process keeps all deadlines and wakes the tasks; the first alarm starts
//! it.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

use super::{foreign, later};

/// Polls a future on this thread until it is done. Returns `None` once the deadline has passed.
pub(crate) fn block_on_until<F: Future>(future: F, deadline: Option<Instant>) -> Option<F::Output> {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let (mut future, mut context) = (pin!(future), Context::from_waker(&waker));
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        // Inside a caller's closure: a thread that this one waits for may wait for one of its wake-ups.
        later::perform_now();
        let Some(deadline) = deadline else {
            thread::park();
            continue;
        };
        match deadline.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => thread::park_timeout(left),
            _ => return None,
        }
    }
}

/// Unparks a thread. If the thread is not parked for this future, it keeps a token. Then a park of its own
/// returns early, as any park may.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.unpark();
    }
}

/// Wakes a task at a given time, unless it is dropped before.
pub(crate) struct Alarm {
    key: Key,
}

/// The time, and a number that separates alarms of the same time.
type Key = (Instant, u64);

#[derive(Default)]
struct Alarms {
    set: Mutex<Set>,
    earlier: Condvar,
}

#[derive(Default)]
struct Set {
    wakers: BTreeMap<Key, Waker>,
    numbers: u64,
}

impl Alarm {
    pub(crate) fn set(at: Instant, waker: Waker) -> Self {
        let alarms = alarms();
        let mut set = alarms.lock();
        let key = (at, set.numbers);
        set.numbers += 1;
        set.wakers.insert(key, waker);
        let is_first = set.wakers.first_key_value().is_some_and(|(first, _)| *first == key);
        drop(set);
        if is_first {
            alarms.earlier.notify_one();
        }
        Self { key }
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        let waker = alarms().lock().wakers.remove(&self.key);
        foreign::discard(waker);
    }
}

impl Alarms {
    fn lock(&self) -> MutexGuard<'_, Set> {
        // No code panics under the lock.
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self) {
        let mut set = self.lock();
        loop {
            let Some((&(at, number), _)) = set.wakers.first_key_value() else {
                set = self.earlier.wait(set).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            match at.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => {
                    let woken = self.earlier.wait_timeout(set, left);
                    set = woken.unwrap_or_else(PoisonError::into_inner).0;
                }
                _ => {
                    let waker = set.wakers.remove(&(at, number));
                    drop(set);
                    // A waker that panics loses its own wake-up only: this thread serves all tasks.
                    waker.map(foreign::wake);
                    set = self.lock();
                }
            }
        }
    }
}

fn alarms() -> &'static Alarms {
    static ALARMS: OnceLock<&'static Alarms> = OnceLock::new();
    ALARMS.get_or_init(|| {
        let alarms: &'static Alarms = Box::leak(Box::default());
        let keeper = thread::Builder::new().name("paged-kv deadlines".to_owned());
        keeper.spawn(|| alarms.keep()).expect("a thread can be started");
        alarms
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_thread_sleeps_until_the_deadline_and_no_longer() {
        let start = Instant::now();
        let late =
            block_on_until(std::future::pending::<()>(), Some(start + Duration::from_millis(20)));
        assert_eq!(late, None);
        assert!(start.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn alarms_ring_in_order_and_those_dropped_do_not() {
        let (sender, rung) = std::sync::mpsc::channel();
        struct Ring(std::sync::mpsc::Sender<u32>, u32);
        impl Wake for Ring {
            fn wake(self: Arc<Self>) {
                self.0.send(self.1).unwrap();
            }
        }
        let now = Instant::now();
        let alarm = |millis: u32| {
            let waker = Waker::from(Arc::new(Ring(sender.clone(), millis)));
            Alarm::set(now + Duration::from_millis(millis.into()), waker)
        };
        let (_late, never, _early) = (alarm(40), alarm(30), alarm(20));
        drop(never);
        assert_eq!((rung.recv(), rung.recv()), (Ok(20), Ok(40)));
    }

    #[test]
    fn an_alarm_whose_waker_panics_leaves_the_others_set() {
        struct Panics;
        impl Wake for Panics {
            fn wake(self: Arc<Self>) {
                panic!("on purpose");
            }
        }
        let (sender, rung) = std::sync::mpsc::channel();
        struct Ring(std::sync::mpsc::Sender<()>);
        impl Wake for Ring {
            fn wake(self: Arc<Self>) {
                self.0.send(()).unwrap();
            }
        }
        let now = Instant::now();
        let _broken = Alarm::set(now, Waker::from(Arc::new(Panics)));
        let later = now + Duration::from_millis(20);
        let _good = Alarm::set(later, Waker::from(Arc::new(Ring(sender))));
        assert_eq!(rung.recv_timeout(Duration::from_secs(30)), Ok(()));
    }
}
