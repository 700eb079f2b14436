//! Which prompt may try to enter the cache, and when?
//!
//! The one that arrived first, of those that wait: evicted requests come back to their old place
//! and so to the front. How many may try at once is the gate's to say:
//!
//! | gate | a prompt may try | becomes |
//! |---|---|---|
//! | `Open` | any time | `Single` when one is refused |
//! | `Single` | while no other tries | `Open` when it is admitted, `Shut` when it is refused |
//! | `Shut` | when nothing runs | `Single` when a request ends, or when nothing runs |
//!
//! A worker in need of blocks shuts the gate before it evicts, so that what it frees is not taken
//! by a prompt, and least of all by the request just evicted. Between two ends of requests, then,
//! nothing but the oldest waiting prompt in an otherwise empty cache comes in.
//!
//! Invariant: a prompt waits only while another request runs or tries, and whatever ends that
//! (an end, a return to the queue, a refusal) looks again whether one may try and wakes a worker.
//! A request counts as running until its blocks are back. Who evicts whom is not known here.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use paged_kv::{PagedKvCache, PagedKvError, SeqId};

use crate::seniority::Seniority;

/// How long a worker that took a prompt leaves further ones to idle workers, in steps. To wake up
/// takes longer than a step: without a head start, who holds requests would take all the others.
const HEAD_START_STEPS: usize = 100;

/// How many prompts may try at once: see the table at the head of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Open,
    Single,
    Shut,
}

/// Leave for one prompt to try; ends with [`Admission::admitted`] or [`Admission::refused`].
#[must_use]
pub struct Ticket {
    /// Place in the order of arrival.
    pub arrival: usize,
    /// A sequence id that no admission had before: whoever still holds an older one of this
    /// request finds it gone.
    pub sequence: SeqId,
    gate: Gate,
    ended: u64,
    /// Nothing else ran or tried: the cache is empty, and the prompt fits.
    undisturbed: bool,
}

struct State {
    waiting: BinaryHeap<Reverse<usize>>,
    gate: Gate,
    trying: usize,
    running: usize,
    unfinished: usize,
    /// Requests ended so far.
    ended: u64,
    tickets: u64,
    stopped: bool,
    seniority: Seniority,
}

/// The queue that all workers share.
pub struct Admission<'a> {
    cache: &'a PagedKvCache,
    state: Mutex<State>,
    changed: Condvar,
    /// Hints for workers that hold requests: a copy of [`State::may_try`], and how many workers
    /// wait for a prompt. Both are written under the lock.
    inviting: AtomicBool,
    idle_workers: AtomicUsize,
}

impl<'a> Admission<'a> {
    /// A queue of the requests at these places in the order of arrival.
    pub fn new(cache: &'a PagedKvCache, arrivals: impl Iterator<Item = usize>) -> Self {
        let waiting: BinaryHeap<_> = arrivals.map(Reverse).collect();
        let state = State {
            unfinished: waiting.len(),
            waiting,
            gate: Gate::Open,
            trying: 0,
            running: 0,
            ended: 0,
            tickets: 0,
            stopped: false,
            seniority: Seniority::default(),
        };
        let inviting = AtomicBool::new(state.may_try());
        Self {
            cache,
            state: Mutex::new(state),
            changed: Condvar::new(),
            inviting,
            idle_workers: AtomicUsize::new(0),
        }
    }

    /// A prompt for a worker that holds other requests, if one may try now. So many steps after
    /// its last one, the worker may have to leave it to an idle one.
    pub fn try_next(&self, steps_since: usize) -> Option<Ticket> {
        // Relaxed: hints. Who misses a prompt by them looks again at its next step.
        let idle = self.idle_workers.load(Ordering::Relaxed) > 0;
        if !self.inviting.load(Ordering::Relaxed) || idle && steps_since < HEAD_START_STEPS {
            return None;
        }
        let mut state = self.lock();
        let ticket = state.may_try().then(|| state.issue())?;
        self.settle(&state);
        Some(ticket)
    }

    /// A prompt for a worker that holds nothing: waits for one, and returns `None` when there
    /// will be none.
    pub fn wait_next(&self) -> Option<Ticket> {
        let mut state = self.lock();
        while !state.is_over() {
            if state.may_try() {
                let ticket = state.issue();
                self.settle(&state);
                return Some(ticket);
            }
            self.idle_workers.fetch_add(1, Ordering::Relaxed);
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            self.idle_workers.fetch_sub(1, Ordering::Relaxed);
        }
        self.changed.notify_all();
        None
    }

    /// The prompt is in the cache: its request runs.
    ///
    /// # Errors
    /// The cache refused the lease of the oldest request.
    pub fn admitted(&self, ticket: Ticket) -> Result<(), PagedKvError> {
        let mut state = self.lock();
        state.trying -= 1;
        state.running += 1;
        if state.gate == Gate::Single {
            state.gate = Gate::Open;
        }
        let result = state.seniority.enter(self.cache, ticket.arrival, ticket.sequence);
        self.settle(&state);
        result
    }

    /// There was no room for the prompt: it waits again.
    ///
    /// # Errors
    /// There must have been room, for nothing else was in the cache: its accounts are wrong.
    pub fn refused(&self, ticket: Ticket) -> Result<(), PagedKvError> {
        if ticket.undisturbed {
            let fault = format!("no room for request {} in an empty cache", ticket.arrival);
            return Err(PagedKvError::Inconsistent(fault));
        }
        let mut state = self.lock();
        state.trying -= 1;
        state.waiting.push(Reverse(ticket.arrival));
        state.gate = match (ticket.gate, state.gate) {
            (Gate::Open, Gate::Open) => Gate::Single,
            // A request that ended meanwhile may have made the room: try again.
            (Gate::Single, Gate::Single) if ticket.ended == state.ended => Gate::Shut,
            (_, gate) => gate,
        };
        self.settle(&state);
        Ok(())
    }

    /// A request has all its output and is about to be freed: its lease passes on.
    ///
    /// # Errors
    /// The cache refused the lease of the oldest request.
    pub fn ending(&self, arrival: usize) -> Result<(), PagedKvError> {
        self.lock().seniority.leave(self.cache, arrival)
    }

    /// A request announced by [`ending`](Self::ending) is freed.
    pub fn ended(&self) {
        let mut state = self.lock();
        state.running -= 1;
        state.unfinished -= 1;
        state.ended += 1;
        if state.gate == Gate::Shut {
            state.gate = Gate::Single;
        }
        self.settle(&state);
    }

    /// A worker is about to put this request back: false if it must not, being the oldest.
    ///
    /// # Errors
    /// The cache refused the lease of the oldest request.
    pub fn yielding(&self, arrival: usize) -> Result<bool, PagedKvError> {
        let mut state = self.lock();
        if state.seniority.is_oldest(arrival) {
            return Ok(false);
        }
        state.seniority.leave(self.cache, arrival)?;
        Ok(true)
    }

    /// A request that was evicted, or freed after [`yielding`](Self::yielding), waits again to be
    /// served from its prompt.
    ///
    /// # Errors
    /// The cache refused the lease of the oldest request.
    pub fn put_back(&self, arrival: usize) -> Result<(), PagedKvError> {
        let mut state = self.lock();
        state.running -= 1;
        state.waiting.push(Reverse(arrival));
        let result = state.seniority.leave(self.cache, arrival);
        self.settle(&state);
        result
    }

    /// Keeps prompts out until a request ends or nothing runs: a running one needs the room.
    pub fn shut(&self) {
        let mut state = self.lock();
        state.gate = Gate::Shut;
        self.settle(&state);
    }

    /// No prompt is given out any more: a worker is gone with requests that will never end.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Follows every change of the state: says whether a prompt may try, and to whom.
    ///
    /// One worker is woken, not all: if it leaves a prompt that may try too, taking its own is a
    /// change like any other and wakes the next.
    fn settle(&self, state: &State) {
        let may_try = state.may_try();
        self.inviting.store(may_try, Ordering::Relaxed);
        if may_try || state.is_over() {
            self.changed.notify_one();
        }
    }

    /// A panic under this lock leaves counts that may be wrong; then [`stop`](Self::stop) ends
    /// the run, for which the counts do not matter.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn may_try(&self) -> bool {
        !self.stopped
            && !self.waiting.is_empty()
            && match self.gate {
                Gate::Open => true,
                Gate::Single => self.trying == 0,
                Gate::Shut => self.trying == 0 && self.running == 0,
            }
    }

    fn is_over(&self) -> bool {
        self.unfinished == 0 || self.stopped
    }

    /// Only when [`may_try`](Self::may_try).
    fn issue(&mut self) -> Ticket {
        let Reverse(arrival) = self.waiting.pop().expect("a prompt that may try is waiting");
        let undisturbed = self.trying == 0 && self.running == 0 && self.gate != Gate::Open;
        if self.gate == Gate::Shut {
            self.gate = Gate::Single;
        }
        self.trying += 1;
        self.tickets += 1;
        let sequence = SeqId(self.tickets);
        Ticket { arrival, sequence, gate: self.gate, ended: self.ended, undisturbed }
    }
}

#[cfg(test)]
mod tests;
