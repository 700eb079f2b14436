//! `JobQueue`: the jobs that wait for a thread of the mover. Loads are served before stores, because requests wait for
//! them.
//!
//! Invariant: no thread that adds a job waits.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::job::{LoadJob, StoreJob};
use crate::sync::outside::{Condvar, Mutex};

/// A job for a thread.
pub(super) enum Job {
    Load(Box<LoadJob>),
    Store(Box<StoreJob>),
}

/// Waiting jobs, at most `most` loads and as many stores.
pub(super) struct JobQueue {
    state: Mutex<QueueState>,
    /// Notified when a job was added, when there is something to retry, and at the end.
    work: Condvar,
    /// Notified when no job is left.
    idle: Condvar,
    most: usize,
}

#[derive(Default)]
struct QueueState {
    loads: VecDeque<Box<LoadJob>>,
    stores: VecDeque<Box<StoreJob>>,
    running: usize,
    end: QueueEnd,
}

/// Whether threads and callers still serve and add jobs.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum QueueEnd {
    #[default]
    Open,
    /// No job is added, and those that wait are served.
    Draining,
    /// No job is added or served.
    Closed,
}

/// The next act of a thread.
pub(super) enum NextAct<'a> {
    Serve(Job, Running<'a>),
    /// A period has passed without a job.
    Retry,
    End,
}

/// A job that a thread serves. It ends when this is dropped.
pub(super) struct Running<'a>(&'a JobQueue);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.running -= 1;
        if state.is_idle() {
            self.0.idle.notify_all();
        }
    }
}

impl QueueState {
    fn is_idle(&self) -> bool {
        self.running == 0 && self.loads.is_empty() && self.stores.is_empty()
    }
}

impl JobQueue {
    pub(super) fn new(most: usize) -> Self {
        let (work, idle) = (Condvar::new(), Condvar::new());
        Self { state: Mutex::default(), work, idle, most }
    }

    /// Returns true if a store can be added now. Another thread may add one before.
    pub(super) fn has_room_for_store(&self) -> bool {
        let state = self.state.lock();
        state.end == QueueEnd::Open && state.stores.len() < self.most
    }

    /// Adds a store, or returns it if there is no room.
    pub(super) fn push_store(&self, job: Box<StoreJob>) -> Result<(), Box<StoreJob>> {
        let mut state = self.state.lock();
        if state.end != QueueEnd::Open || state.stores.len() >= self.most {
            return Err(job);
        }
        state.stores.push_back(job);
        self.work.notify_one();
        Ok(())
    }

    /// Adds a load, or returns it if there is no room.
    pub(super) fn push_load(&self, job: Box<LoadJob>) -> Result<(), Box<LoadJob>> {
        let mut state = self.state.lock();
        if state.end != QueueEnd::Open || state.loads.len() >= self.most {
            return Err(job);
        }
        state.loads.push_back(job);
        self.work.notify_one();
        Ok(())
    }

    /// Waits for the next job; no longer than a period while `retries` returns true.
    pub(super) fn next(&self, period: Duration, retries: impl Fn() -> bool) -> NextAct<'_> {
        let mut state = self.state.lock();
        loop {
            if state.end == QueueEnd::Closed {
                return NextAct::End;
            }
            let load = state.loads.pop_front().map(Job::Load);
            let job = load.or_else(|| state.stores.pop_front().map(Job::Store));
            if let Some(job) = job {
                state.running += 1;
                return NextAct::Serve(job, Running(self));
            }
            if state.end == QueueEnd::Draining {
                return NextAct::End;
            }
            if !retries() {
                self.work.wait(&mut state);
            } else if self.work.wait_for(&mut state, period).timed_out() {
                return NextAct::Retry;
            }
        }
    }

    /// Lets a thread that waits for a job look again whether there is something to retry.
    pub(super) fn wake(&self) {
        // With the lock: a thread that has looked before waits already, so that it is notified.
        let _state = self.state.lock();
        self.work.notify_one();
    }

    /// Waits until no job waits or is served. Returns false if the time passes before.
    pub(super) fn wait_until_idle(&self, timeout: Duration) -> bool {
        let deadline = Instant::now().checked_add(timeout);
        let mut state = self.state.lock();
        while !state.is_idle() {
            match deadline {
                None => self.idle.wait(&mut state),
                Some(deadline) if self.idle.wait_until(&mut state, deadline).timed_out() => {
                    return state.is_idle();
                }
                Some(_) => {}
            }
        }
        true
    }

    /// Adds no job any more; serves those that wait.
    pub(super) fn drain(&self) {
        self.end(QueueEnd::Draining);
    }

    /// Adds and serves no job any more. Returns those that waited.
    pub(super) fn close(&self) -> Vec<Job> {
        self.end(QueueEnd::Closed);
        let mut state = self.state.lock();
        let (loads, stores) = (std::mem::take(&mut state.loads), std::mem::take(&mut state.stores));
        loads.into_iter().map(Job::Load).chain(stores.into_iter().map(Job::Store)).collect()
    }

    fn end(&self, end: QueueEnd) {
        self.state.lock().end = end;
        self.work.notify_all();
    }

    pub(super) fn is_open(&self) -> bool {
        self.state.lock().end == QueueEnd::Open
    }

    /// Returns the loads and the stores that wait, and the jobs that are served.
    pub(super) fn lens(&self) -> [usize; 3] {
        let state = self.state.lock();
        [state.loads.len(), state.stores.len(), state.running]
    }
}
