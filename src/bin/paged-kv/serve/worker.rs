//! `Worker`: one thread that serves requests by continuous batching, and the proof that every run ends.
//!
//! A worker repeats three acts. It admits prompts up to its limit, appends one token to each request it
//! holds, and frees the complete requests. A prompt is admitted only if it leaves a share of the growth free:
//! of the blocks that the running requests and itself will still take for their output. Growth that was read
//! before another prompt was admitted may be too small, and the share may be less than 1, so an append may
//! find no room all the same. Then the worker preempts the youngest request that it holds, or evicts by the
//! strategy ([`Victims`]). A request belongs to one worker or to the queue, never to both. A worker that evicts
//! another worker's sequence does not inform it. The other worker finds out at its next use, and puts the
//! request back into the queue. A request that comes back has the tokens generated so far in its prompt.
//!
//! # Why every run ends
//! The pool can hold any single request that is served, with its growth: larger requests were rejected. When
//! nothing else runs or tries, the growth is its own, so it is admitted. Then:
//! 1. The oldest running request holds a lease ([`Seniority`]), so it is never evicted nor
//!    preempted. The lease passes to another request only when its holder ends, or to an older request. There
//!    are finitely many older requests, so some holder keeps the lease to its end.
//! 2. Only one worker at a time makes room (`shortage`), and it shuts the gate first
//!    ([`Admission`]): until a request ends, no prompt is admitted while other requests run. So each
//!    preemption or eviction leaves fewer sequences, and workers cannot preempt each other's requests
//!    forever. The request in need may be the youngest itself.
//! 3. A worker that holds only the oldest request of all evicts by the strategy. If no sequence is left to
//!    evict, all blocks that it lacks are held by calls in progress of other workers. These calls return
//!    without waiting, and leave their blocks free or evictable. So the oldest request gets every block up
//!    to its need, and ends.
//! 4. A worker that holds requests never waits for the queue. A worker that holds none waits only
//!    while other requests run or try ([`Admission`]). So between two ends at least one worker is active.
//!
//! [`Admission`]: crate::serve::admission::Admission
//! [`Seniority`]: crate::serve::oldest_first::Seniority
//! [`Victims`]: crate::serve::Victims

pub mod offload;
mod prefill;
mod shortage;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use paged_kv::{EvictionStrategy, PagedKvCache, PagedKvError, SeqId};

use super::admission::{Admission, Ticket};
use super::meter::Meter;
use super::needs::Needs;
use super::prompts::Part;
use super::{Plan, fits};
use crate::progress::Progress;
use crate::trace::request::Request;

/// The state that all workers of a run share.
pub struct Service<'a> {
    pub cache: &'a PagedKvCache,
    pub requests: &'a [Request],
    pub needs: &'a Needs,
    pub admission: Admission<'a>,
    pub progress: &'a Progress,
    pub plan: Plan,
    /// Blocks that the requests that run or try will still take for their output. A worker updates it once
    /// a step, and before a request leaves. So it is 0 when nothing runs or tries.
    pub growth: AtomicUsize,
    /// Held by the one worker that makes room.
    pub shortage: Mutex<()>,
}

impl<'a> Service<'a> {
    /// Creates the service of all requests that the pool can hold.
    pub fn new(
        cache: &'a PagedKvCache,
        requests: &'a [Request],
        needs: &'a Needs,
        plan: Plan,
        progress: &'a Progress,
    ) -> Self {
        let arrivals =
            (0..requests.len()).filter(|&arrival| fits(cache, needs, &requests[arrival]));
        Self {
            cache,
            requests,
            needs,
            admission: Admission::new(cache, arrivals),
            progress,
            plan,
            growth: AtomicUsize::new(0),
            shortage: Mutex::new(()),
        }
    }
}

/// A request in the cache.
struct Live {
    arrival: usize,
    sequence: SeqId,
    remaining_tokens: usize,
    /// Leading tokens that hit when the request was admitted.
    cached_tokens: usize,
    /// Leading tokens that the request had before, computed or cached: its prompt begins with them.
    had_tokens: usize,
    /// Ended or back in the queue; removed at the end of the step.
    gone: bool,
}

/// A prompt that was admitted.
struct Admitted {
    /// Leading tokens that hit.
    cached_tokens: usize,
    /// Leading tokens that are written: all of the prompt, unless the sequence was evicted before.
    written: usize,
}

/// The result of an append.
enum Appended {
    Written,
    /// Its sequence was evicted before, by this worker or another.
    Evicted,
    /// Its request was preempted by this worker.
    Preempted,
}

/// One thread that serves, and the requests that it holds.
pub struct Worker<'a> {
    service: &'a Service<'a>,
    live: Vec<Live>,
    /// Steps since the worker last admitted a prompt.
    steps: usize,
    /// Blocks that appends began since the worker last updated [`Service::growth`].
    begun_blocks: usize,
    /// Blocks were taken or released since a cleaner last stored contents.
    has_changed: bool,
    meter: Meter,
}

impl<'a> Worker<'a> {
    pub fn new(service: &'a Service<'a>) -> Self {
        let meter = Meter::new();
        Self { service, live: Vec::new(), steps: 0, begun_blocks: 0, has_changed: false, meter }
    }

    /// Serves until every request has ended, and returns the meter.
    ///
    /// # Errors
    /// An error that the cache may not return for these calls: the cache broke a promise.
    pub fn run(mut self) -> Result<Meter, PagedKvError> {
        let _presence = Presence(&self.service.admission);
        while self.fill()? {
            self.step()?;
        }
        Ok(self.meter)
    }

    /// Admits prompts while there are places and room; waits for one if the worker holds no request. Returns
    /// false when no request is left to serve.
    fn fill(&mut self) -> Result<bool, PagedKvError> {
        while self.live.is_empty() {
            let begin = Instant::now();
            let next = self.service.admission.wait_next();
            self.meter.waiting_time += begin.elapsed();
            match next {
                Some(ticket) => self.admit(ticket)?,
                None => return Ok(false),
            }
        }
        self.fill_places()?;
        Ok(true)
    }

    /// Admits prompts while there are places and room.
    fn fill_places(&mut self) -> Result<(), PagedKvError> {
        while self.live.len() < self.service.plan.live.get() {
            match self.service.admission.try_next(self.steps) {
                Some(ticket) => self.admit(ticket)?,
                None => break,
            }
        }
        Ok(())
    }

    fn admit(&mut self, ticket: Ticket) -> Result<(), PagedKvError> {
        let Service { cache, requests, needs, admission, growth, .. } = self.service;
        let Ticket { arrival, sequence, computed_tokens, .. } = ticket;
        let request = &requests[arrival];
        let part = Part { request, arrival, had_tokens: computed_tokens };
        // Relaxed: only an undisturbed ticket needs the exact growth. The lock of the admission, which issued
        // it, orders all subtractions of other workers before it.
        let own_growth = needs.to_come(request, part.prompt_tokens());
        let total_growth = growth.fetch_add(own_growth, Ordering::Relaxed) + own_growth;
        let Admitted { cached_tokens, written } = match self.bring_in(sequence, part, total_growth)
        {
            Ok(admitted) => admitted,
            Err(PagedKvError::OutOfMemory { .. }) => {
                growth.fetch_sub(own_growth, Ordering::Relaxed);
                return admission.refused(ticket);
            }
            Err(error) => return Err(error),
        };
        let of_the_rest = needs.to_come(request, written) - own_growth;
        if of_the_rest > 0 {
            growth.fetch_add(of_the_rest, Ordering::Relaxed);
        }
        if let EvictionStrategy::Priority { levels } = cache.eviction_strategy() {
            let priority = u32::try_from(arrival % levels).unwrap_or(u32::MAX);
            unless_evicted(cache.set_priority(sequence, priority))?;
        }
        admission.admitted(ticket)?;
        self.meter.admissions += 1;
        self.meter.kept_tokens += cached_tokens.min(part.had_tokens) as u64;
        self.steps = 0;
        let all_tokens = request.prompt_tokens() + request.output_tokens();
        self.live.push(Live {
            arrival,
            sequence,
            remaining_tokens: all_tokens - written,
            cached_tokens,
            had_tokens: part.had_tokens,
            gone: false,
        });
        Ok(())
    }

    /// Appends one token to each request held.
    fn step(&mut self) -> Result<(), PagedKvError> {
        for at in 0..self.live.len() {
            if !self.live[at].gone {
                self.advance(at)?;
            }
        }
        self.live.retain(|live| !live.gone);
        self.steps += 1;
        self.report_growth(0);
        self.clean()
    }

    /// Returns how many tokens of a request are written, as far as the worker has noted it.
    fn written_tokens(&self, at: usize) -> usize {
        let Live { arrival, remaining_tokens, .. } = self.live[at];
        let request = &self.service.requests[arrival];
        request.prompt_tokens() + request.output_tokens() - remaining_tokens
    }

    /// Returns a request that the worker holds, as it was admitted.
    fn part(&self, at: usize) -> Part<'a> {
        let Live { arrival, had_tokens, .. } = self.live[at];
        Part { request: &self.service.requests[arrival], arrival, had_tokens }
    }

    /// Takes the blocks that appends began, and `no_longer` more, from the blocks still to come.
    fn report_growth(&mut self, no_longer: usize) {
        let taken = std::mem::take(&mut self.begun_blocks) + no_longer;
        if taken > 0 {
            self.service.growth.fetch_sub(taken, Ordering::Relaxed);
        }
    }

    /// Counts the tokens that a request computed since its admission, when it leaves. Returns how many of its
    /// leading tokens were ever computed.
    fn depart(&mut self, at: usize) -> usize {
        let Live { arrival, cached_tokens, had_tokens, .. } = self.live[at];
        let request = &self.service.requests[arrival];
        let written = self.written_tokens(at);
        let again = had_tokens.min(written).saturating_sub(cached_tokens);
        self.meter.computed_tokens += (written - cached_tokens) as u64;
        self.meter.recomputed_tokens += again as u64;
        self.report_growth(self.service.needs.to_come(request, written));
        self.live[at].gone = true;
        self.has_changed = true;
        had_tokens.max(written)
    }

    fn advance(&mut self, at: usize) -> Result<(), PagedKvError> {
        if self.live[at].remaining_tokens > 0 {
            match self.append(at)? {
                Appended::Written => self.live[at].remaining_tokens -= 1,
                Appended::Preempted => return Ok(()),
                Appended::Evicted => {
                    let computed_tokens = self.depart(at);
                    let admission = &self.service.admission;
                    return admission.put_back(self.live[at].arrival, computed_tokens);
                }
            }
        }
        if self.live[at].remaining_tokens == 0 { self.end(at) } else { Ok(()) }
    }

    fn append(&mut self, at: usize) -> Result<Appended, PagedKvError> {
        match self.try_append(at) {
            Err(PagedKvError::OutOfMemory { .. }) => self.append_making_room(at),
            appended => appended,
        }
    }

    fn try_append(&mut self, at: usize) -> Result<Appended, PagedKvError> {
        let written = self.written_tokens(at);
        match self.grow(self.live[at].sequence, written..written + 1) {
            Ok(()) => {
                self.begun_blocks += self.service.needs.begun(written);
                Ok(Appended::Written)
            }
            Err(PagedKvError::SequenceNotFound(_)) => Ok(Appended::Evicted),
            Err(error) => Err(error),
        }
    }

    /// Frees a request that has all its output. If it was evicted just before, it still counts as complete.
    fn end(&mut self, at: usize) -> Result<(), PagedKvError> {
        let Service { cache, admission, requests, progress, .. } = self.service;
        let Live { arrival, sequence, .. } = self.live[at];
        admission.ending(arrival)?;
        if self.service.plan.gives_hints {
            unless_evicted(cache.set_reuse_hint(sequence, requests[arrival].hint()))?;
        }
        unless_evicted(self.meter.time(|| cache.free(sequence)))?;
        self.depart(at);
        admission.ended();
        self.meter.completed += 1;
        self.meter.prompt_tokens += requests[arrival].prompt_tokens() as u64;
        self.meter.output_tokens += requests[arrival].output_tokens() as u64;
        progress.advance(1);
        Ok(())
    }
}

/// Accepts that the sequence was gone: if it was evicted, its blocks are released already.
fn unless_evicted(result: Result<(), PagedKvError>) -> Result<(), PagedKvError> {
    match result {
        Err(PagedKvError::SequenceNotFound(_)) => Ok(()),
        result => result,
    }
}

/// Stops the admission when its worker leaves. After an error or a panic the worker's requests never end,
/// so no other worker may wait for them. After the last request, no worker waits.
struct Presence<'a>(&'a Admission<'a>);

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

#[cfg(test)]
mod tests;
