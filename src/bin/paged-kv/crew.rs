//! `Gate` and `start`: threads that begin to work when all of them have been started, or not at all.
//!
//! A machine may refuse a thread. Without the gate, the threads started before it would already serve.
//! Threads are started one by one. Each is started after a check that there is room for it, and after
//! the thread before it has its memory. An allocator may reserve much more for a thread than it uses.

use std::hint::black_box;
use std::io;
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope, ScopedJoinHandle};

use anyhow::{Error, Result, anyhow};

use crate::machine::{STACK_BYTES, THREAD_BYTES, has_room};

/// Bytes that are kept for the report of a refusal.
const BALLAST_BYTES: usize = 4 << 20;

/// A thread of a crew. It returns `None` if the gate was closed.
pub type Member<'scope, T> = ScopedJoinHandle<'scope, Option<T>>;

/// The point at which the threads of a crew wait until all have started.
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    arrived: usize,
    is_open: Option<bool>,
    ballast: Vec<u8>,
}

impl Gate {
    /// Creates a gate that is neither open nor closed yet.
    ///
    /// # Errors
    /// There is no memory for the report of a refusal.
    pub fn new() -> Result<Arc<Self>> {
        let mut ballast = Vec::new();
        ballast.try_reserve_exact(BALLAST_BYTES)?;
        let state = Mutex::new(State { arrived: 0, is_open: None, ballast });
        Ok(Arc::new(Self { state, changed: Condvar::new() }))
    }

    /// Lets the threads work.
    pub fn open(&self) {
        self.decide(true);
    }

    /// Lets the threads end without work.
    pub fn close(&self) {
        self.decide(false);
    }

    fn decide(&self, is_open: bool) {
        let mut state = self.lock();
        state.is_open = Some(is_open);
        state.ballast = Vec::new();
        self.changed.notify_all();
    }

    /// Starts a thread, which works when the gate opens. Returns when the thread is at the gate.
    ///
    /// # Errors
    /// The machine refuses the thread.
    pub fn spawn<'scope, T: Send + 'scope>(
        self: &Arc<Self>,
        scope: &'scope Scope<'scope, '_>,
        work: impl FnOnce() -> T + Send + 'scope,
    ) -> io::Result<Member<'scope, T>> {
        if !has_room(STACK_BYTES + THREAD_BYTES) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let gate = Arc::clone(self);
        let before = self.lock().arrived;
        let builder = Builder::new().stack_size(STACK_BYTES);
        let member = builder.spawn_scoped(scope, move || gate.pass().then(work))?;
        drop(self.wait_while(|state| state.arrived == before));
        Ok(member)
    }

    /// Waits until the gate is open or closed. Returns whether it is open.
    fn pass(&self) -> bool {
        // From here on the allocator has made its reservation for this thread.
        drop(black_box(Vec::<u8>::with_capacity(1)));
        self.lock().arrived += 1;
        self.changed.notify_all();
        self.wait_while(|state| state.is_open.is_none()).is_open == Some(true)
    }

    fn wait_while(&self, condition: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let waited = self.changed.wait_while(self.lock(), |state| condition(state));
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts `count` threads, each of which does `work`.
///
/// # Errors
/// The machine refuses a thread, or the memory that all of them use. Then no thread works, and all end.
pub fn start<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    count: NonZeroUsize,
    work: impl Fn() -> T + Copy + Send + 'scope,
) -> Result<Vec<Member<'scope, T>>> {
    let gate = Gate::new()?;
    let mut crew = Vec::new();
    let refused = loop {
        if crew.len() == count.get() {
            let bytes = count.get().saturating_mul(THREAD_BYTES);
            break (!has_room(bytes)).then(|| io::ErrorKind::OutOfMemory.into());
        }
        match gate.spawn(scope, work) {
            Ok(member) => crew.push(member),
            Err(error) => break Some(error),
        }
    };
    if let Some(error) = refused {
        gate.close();
        return Err(refusal(count.get(), crew.len(), &error));
    }
    gate.open();
    Ok(crew)
}

/// Returns the error of a crew of which only some threads could be started.
pub fn refusal(count: usize, started: usize, error: &io::Error) -> Error {
    anyhow!("{count} threads cannot be had: {error} after {started}")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn every_member_works_once() {
        let worked = AtomicUsize::new(0);
        let count = NonZeroUsize::new(8).unwrap();
        let returned: Vec<_> = thread::scope(|scope| {
            let crew = start(scope, count, || worked.fetch_add(1, Ordering::Relaxed)).unwrap();
            crew.into_iter().map(|member| member.join().unwrap()).collect()
        });
        assert_eq!(worked.into_inner(), 8);
        assert!(returned.iter().all(Option::is_some));
    }

    #[test]
    fn no_member_works_if_the_gate_is_closed() {
        let worked = AtomicUsize::new(0);
        thread::scope(|scope| {
            let gate = Gate::new().unwrap();
            let work = || worked.fetch_add(1, Ordering::Relaxed);
            let crew = [gate.spawn(scope, work).unwrap(), gate.spawn(scope, work).unwrap()];
            gate.close();
            crew.into_iter().for_each(|member| assert_eq!(member.join().unwrap(), None));
        });
        assert_eq!(worked.into_inner(), 0);
    }
}
