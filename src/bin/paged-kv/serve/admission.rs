//! `Admission`: the queue of waiting prompts, and the gate that says when the first may try to enter.
//!
//! The waiting prompt that arrived first is the next to try. An evicted request returns to its old
//! place, and so to the front. The gate limits how many prompts may try at the same time:
//!
//! | gate | a prompt may try | becomes |
//! |---|---|---|
//! | `Open` | any time | `Single` when one is refused |
//! | `Single` | while no other tries | `Open` when it is admitted, `Shut` when it is refused |
//! | `Shut` | when nothing runs | `Single` when a request ends, or when nothing runs |
//!
//! How much room a prompt must leave when it enters is decided in `worker`; a prompt that leaves too little is
//! refused like one without room.
//!
//! A worker in need of blocks shuts the gate before it evicts. So no prompt takes the blocks that the
//! eviction frees, least of all the request just evicted. Until the next request ends, the only prompt
//! that may be admitted is the oldest waiting one, and only into an otherwise empty cache.
//!
//! Invariant: a prompt waits only while another request runs or tries. An end, a return to the queue and
//! a refusal each check again whether a prompt may try, and wake a worker if so. A request counts as
//! running until its blocks are released. Evictions are made elsewhere, in `worker`.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use paged_kv::{PagedKvCache, PagedKvError, SeqId};

use super::oldest_first::Seniority;

/// How long a worker that took a prompt leaves further ones to idle workers, in steps. A wake-up takes
/// longer than a step: without a head start, a worker that holds requests would take all other prompts.
const HEAD_START_STEPS: usize = 100;

/// How many prompts may try at the same time: see the table at the head of this file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Open,
    Single,
    Shut,
}

/// The permission of one prompt to try. It ends with [`Admission::admitted`] or [`Admission::refused`].
#[must_use]
pub struct Ticket {
    /// Place in the order of arrival.
    pub arrival: usize,
    /// A sequence id that no admission had before. An older id of the same request is no longer found.
    pub sequence: SeqId,
    /// Leading tokens that the request had, computed or cached, before it was evicted or preempted.
    pub computed_tokens: usize,
    gate: Gate,
    ended: u64,
    /// Nothing else ran or tried: the cache is empty, and the prompt fits.
    undisturbed: bool,
}

struct State {
    waiting: BinaryHeap<Reverse<usize>>,
    /// Computed tokens of the waiting requests that ran before.
    computed_tokens: HashMap<usize, usize>,
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
    /// Hints for workers that hold requests: a copy of [`State::may_try`], and how many workers wait for a
    /// prompt. Both are written under the lock.
    inviting: AtomicBool,
    idle_workers: AtomicUsize,
}

impl<'a> Admission<'a> {
    /// Creates a queue of the requests at these places in the order of arrival.
    pub fn new(cache: &'a PagedKvCache, arrivals: impl Iterator<Item = usize>) -> Self {
        let waiting: BinaryHeap<_> = arrivals.map(Reverse).collect();
        let state = State {
            unfinished: waiting.len(),
            waiting,
            computed_tokens: HashMap::new(),
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

    /// Returns a prompt for a worker that holds other requests, if one may try now. The worker admitted its
    /// last prompt `steps_since` steps ago; soon after that, idle workers take precedence.
    pub fn try_next(&self, steps_since: usize) -> Option<Ticket> {
        // Relaxed: hints. A worker that misses a prompt because of them checks again at its next step.
        let idle = self.idle_workers.load(Ordering::Relaxed) > 0;
        if !self.inviting.load(Ordering::Relaxed) || idle && steps_since < HEAD_START_STEPS {
            return None;
        }
        let mut state = self.lock();
        let ticket = state.may_try().then(|| state.issue())?;
        self.settle(&state);
        Some(ticket)
    }

    /// Waits for a prompt, for a worker that holds no request. Returns `None` when no more will come.
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

    /// Notes that the prompt is in the cache: its request runs.
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

    /// Returns a prompt for which there was no room to the queue.
    ///
    /// # Errors
    /// `Inconsistent` if the cache, which has no tiers, held nothing else. The prompt fits an empty cache, so the cache's accounts
    /// are wrong.
    pub fn refused(&self, ticket: Ticket) -> Result<(), PagedKvError> {
        // A worker whose request has ended may copy contents to a tier still, and holds their blocks for the time of it.
        let is_copied = ticket.undisturbed && !self.cache.stats().tiers.is_empty();
        if ticket.undisturbed && !is_copied {
            let fault = format!("no room for request {} in an empty cache", ticket.arrival);
            return Err(PagedKvError::Inconsistent(fault));
        }
        let mut state = self.lock();
        state.trying -= 1;
        state.wait(ticket.arrival, ticket.computed_tokens);
        state.gate = match (ticket.gate, state.gate) {
            (Gate::Open, Gate::Open) => Gate::Single,
            // A request that ended during the try may have made the room: try again.
            (Gate::Single, Gate::Single) if ticket.ended == state.ended && !is_copied => Gate::Shut,
            (_, gate) => gate,
        };
        self.settle(&state);
        Ok(())
    }

    /// Passes on the lease of a request that has all its output and is about to be freed.
    ///
    /// # Errors
    /// The cache refused the lease of the oldest request.
    pub fn ending(&self, arrival: usize) -> Result<(), PagedKvError> {
        self.lock().seniority.leave(self.cache, arrival)
    }

    /// Notes that a request announced by [`ending`](Self::ending) is freed.
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

    /// Passes on the lease of a request that a worker is about to preempt. Returns false if the request is
    /// the oldest and must stay.
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

    /// Returns a request to the queue that was evicted, or freed after [`yielding`](Self::yielding). Its
    /// first `computed_tokens` tokens were computed already: it continues after them.
    ///
    /// # Errors
    /// The cache refused the lease of the oldest request.
    pub fn put_back(&self, arrival: usize, computed_tokens: usize) -> Result<(), PagedKvError> {
        let mut state = self.lock();
        state.running -= 1;
        state.wait(arrival, computed_tokens);
        let result = state.seniority.leave(self.cache, arrival);
        self.settle(&state);
        result
    }

    /// Keeps prompts out until a request ends or nothing runs: a running request needs the room.
    pub fn shut(&self) {
        let mut state = self.lock();
        state.gate = Gate::Shut;
        self.settle(&state);
    }

    /// Issues no more prompts: a worker is gone with requests that will never end.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.changed.notify_all();
    }

    /// Updates the hint after a change of the state, and wakes an idle worker if a prompt may try.
    ///
    /// One worker is woken, not all. When it takes its prompt, that is a change too. It wakes the next worker
    /// if another prompt may try.
    fn settle(&self, state: &State) {
        let may_try = state.may_try();
        self.inviting.store(may_try, Ordering::Relaxed);
        if may_try || state.is_over() {
            self.changed.notify_one();
        }
    }

    /// Locks the state. A panic under this lock may leave wrong counts; then [`stop`](Self::stop) ends the
    /// run, for which the counts do not matter.
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

    /// Adds a request that ran or tried to the queue.
    fn wait(&mut self, arrival: usize, computed_tokens: usize) {
        self.waiting.push(Reverse(arrival));
        if computed_tokens > 0 {
            self.computed_tokens.insert(arrival, computed_tokens);
        }
    }

    /// Issues a ticket to the first waiting prompt. Call it only when [`may_try`](Self::may_try).
    fn issue(&mut self) -> Ticket {
        let Reverse(arrival) = self.waiting.pop().expect("a prompt that may try is waiting");
        let undisturbed = self.trying == 0 && self.running == 0 && self.gate != Gate::Open;
        if self.gate == Gate::Shut {
            self.gate = Gate::Single;
        }
        self.trying += 1;
        self.tickets += 1;
        let sequence = SeqId(self.tickets);
        let computed_tokens = self.computed_tokens.remove(&arrival).unwrap_or(0);
        let (gate, ended) = (self.gate, self.ended);
        Ticket { arrival, sequence, computed_tokens, gate, ended, undisturbed }
    }
}

#[cfg(test)]
mod tests;
