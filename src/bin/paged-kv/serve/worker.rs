//! `Worker`: one thread that serves requests by continuous batching, and the proof that every run ends.
//!
//! A worker repeats three acts. It admits prompts up to its limit, appends one token to each request it
//! holds, and frees the complete requests. A prompt is admitted only if it leaves a share of the growth free:
//! of the blocks that the running requests and itself will still take for their output. Growth that was read
//! before another prompt was admitted may be too small, and the share may be less than 1, so an append may
//! find no room all the same. It makes room by evicting. A request
//! belongs to one worker or to the queue, never to both. A worker that evicts another worker's sequence
//! does not inform it. The other worker finds out at its next use, and puts the request back into the
//! queue.
//!
//! # Why every run ends
//! The pool can hold any single request that is served, with its growth: larger requests were rejected. When
//! nothing else runs or tries, the growth is its own, so it is admitted. Then:
//! 1. The oldest running request holds a lease ([`Seniority`]), so it is never evicted nor put
//!    back. The lease passes to another request only when its holder ends, or to an older request. There
//!    are finitely many older requests, so some holder keeps the lease to its end.
//! 2. Only one worker at a time makes room (`shortage`), and it shuts the gate first
//!    ([`Admission`]): until a request ends, no prompt is admitted while other requests run. So each
//!    eviction leaves fewer sequences. After finitely many evictions the append has its block, or no
//!    sequence is left to evict.
//! 3. If no sequence is left to evict, the worker puts its youngest request back, unless that is the oldest
//!    of all: again one fewer. If it is the oldest, all blocks that it lacks are held by calls in progress
//!    of other workers. These calls return without waiting, and leave their blocks free or evictable. So the
//!    oldest request gets every block up to its need, and ends.
//! 4. A worker that holds requests never waits for the queue. A worker that holds none waits only
//!    while other requests run or try ([`Admission`]). So between two ends at least one worker is active.
//!
//! [`Admission`]: crate::serve::admission::Admission
//! [`Seniority`]: crate::serve::oldest_first::Seniority

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use paged_kv::{AdmitOptions, EvictionStrategy, PagedKvCache, PagedKvError, Prompt, SeqId};

use super::admission::{Admission, Ticket};
use super::meter::Meter;
use crate::progress::Progress;
use crate::trace::request::Request;

/// The state that all workers of a run share.
pub struct Service<'a> {
    pub cache: &'a PagedKvCache,
    pub requests: &'a [Request],
    pub admission: Admission<'a>,
    pub progress: &'a Progress,
    /// Requests that a worker may hold at the same time.
    pub live: NonZeroUsize,
    /// Share of the growth that an admission leaves free.
    pub leave_free: f64,
    /// Blocks that the requests that run or try will still take for their output. A worker updates it once
    /// a step, and before a request leaves. So it is 0 when nothing runs or tries.
    pub growth: AtomicUsize,
    /// Utilization down to which the cache evicts when it has no room.
    pub threshold: f64,
    /// Tokens of a content, if prompts share their common contents.
    pub id_tokens: Option<usize>,
    /// Whether prompts are admitted by tokens or by hashes only.
    pub as_tokens: bool,
    /// Held by the one worker that makes room.
    pub shortage: Mutex<()>,
}

/// A request in the cache.
struct Live {
    arrival: usize,
    sequence: SeqId,
    remaining_tokens: usize,
    /// Leading tokens that hit when the prompt was admitted.
    cached_tokens: usize,
    /// Leading tokens that an earlier admission had, computed or cached.
    computed_before: usize,
    /// Ended or back in the queue; removed at the end of the step.
    gone: bool,
}

/// The result of an append.
enum Appended {
    Written,
    /// Its sequence was evicted before, by this worker or another.
    Evicted,
    /// Put back by this worker, because no sequence could be evicted.
    PutBack,
}

/// One thread that serves, and the requests that it holds.
pub struct Worker<'a> {
    service: &'a Service<'a>,
    live: Vec<Live>,
    /// Steps since the worker last admitted a prompt.
    steps: usize,
    /// Blocks that appends began since the worker last updated [`Service::growth`].
    begun_blocks: usize,
    meter: Meter,
}

impl<'a> Worker<'a> {
    pub fn new(service: &'a Service<'a>) -> Self {
        Self { service, live: Vec::new(), steps: 0, begun_blocks: 0, meter: Meter::new() }
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

    /// Admits prompts while there are places and room. Returns false when no request is left to serve.
    fn fill(&mut self) -> Result<bool, PagedKvError> {
        while self.live.len() < self.service.live.get() {
            let admission = &self.service.admission;
            let ticket = if self.live.is_empty() {
                let begin = Instant::now();
                let next = admission.wait_next();
                self.meter.waiting_time += begin.elapsed();
                match next {
                    Some(ticket) => ticket,
                    None => return Ok(false),
                }
            } else {
                match admission.try_next(self.steps) {
                    Some(ticket) => ticket,
                    None => break,
                }
            };
            self.admit(ticket)?;
        }
        Ok(true)
    }

    fn admit(&mut self, ticket: Ticket) -> Result<(), PagedKvError> {
        let Service { cache, requests, admission, growth, .. } = self.service;
        let Ticket { arrival, sequence, computed_tokens, .. } = ticket;
        let request = &requests[arrival];
        // Relaxed: only an undisturbed ticket needs the exact growth. The lock of the admission, which issued
        // it, orders all subtractions of other workers before it.
        let own_growth = request.blocks_to_come(request.prompt_tokens(), cache.block_size());
        let total_growth = growth.fetch_add(own_growth, Ordering::Relaxed) + own_growth;
        let cached_tokens = match self.bring_in(sequence, request, total_growth) {
            Ok(cached_tokens) => cached_tokens,
            Err(PagedKvError::OutOfMemory { .. }) => {
                growth.fetch_sub(own_growth, Ordering::Relaxed);
                return admission.refused(ticket);
            }
            Err(error) => return Err(error),
        };
        if let EvictionStrategy::Priority { levels } = cache.eviction_strategy() {
            let priority = u32::try_from(arrival % levels).unwrap_or(u32::MAX);
            unless_evicted(cache.set_priority(sequence, priority))?;
        }
        admission.admitted(ticket)?;
        self.meter.admissions += 1;
        self.steps = 0;
        let remaining_tokens = request.output_tokens();
        let computed_before = computed_tokens;
        let live = Live {
            arrival,
            sequence,
            remaining_tokens,
            cached_tokens,
            computed_before,
            gone: false,
        };
        self.live.push(live);
        Ok(())
    }

    /// Admits the prompt by its contents, which count as computed immediately, or by its length if prompts do
    /// not share contents. It must leave its share of the growth free. Returns how many tokens hit.
    fn bring_in(
        &mut self,
        sequence: SeqId,
        request: &Request,
        growth: usize,
    ) -> Result<usize, PagedKvError> {
        let Service { cache, leave_free, id_tokens, as_tokens, .. } = *self.service;
        let block_size = cache.block_size();
        let prompt_tokens = request.prompt_tokens();
        let prompt = match id_tokens {
            None => Prompt::from_hashes(&[], prompt_tokens),
            Some(id_tokens) if as_tokens => cache.prompt(&request.tokens(id_tokens)),
            Some(id_tokens) => {
                Prompt::from_hashes(&request.hashes(block_size, id_tokens), prompt_tokens)
            }
        };
        let reserve = (growth as f64 * leave_free).ceil() as usize;
        // An empty prompt takes no block, so no admission refuses it.
        let available = cache.free_block_count();
        if prompt_tokens == 0 && reserve > available {
            return Err(PagedKvError::OutOfMemory { requested: reserve, available });
        }
        let options = AdmitOptions::default().leave_free(reserve);
        let admission = self.meter.time(|| cache.admit_with(sequence, &prompt, &options))?;
        let Some(id_tokens) = id_tokens else { return Ok(0) };
        let named_blocks = request.named_blocks(block_size, id_tokens);
        self.meter.prompt_blocks += named_blocks as u64;
        self.meter.hit_blocks += (admission.cached_tokens / block_size) as u64;
        // Blocks without a content are not published, so no other request shares them.
        let named_tokens = named_blocks * block_size;
        let commit = || cache.commit(sequence, named_tokens).map(drop);
        unless_evicted(self.meter.time(commit))?;
        Ok(admission.cached_tokens)
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
        Ok(())
    }

    /// Returns how many tokens of a request are written, as far as the worker has noted it.
    fn written_tokens(&self, at: usize) -> usize {
        let Live { arrival, remaining_tokens, .. } = self.live[at];
        let request = &self.service.requests[arrival];
        request.prompt_tokens() + request.output_tokens() - remaining_tokens
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
        let Live { arrival, cached_tokens, computed_before, .. } = self.live[at];
        let request = &self.service.requests[arrival];
        let written = self.written_tokens(at);
        let again = computed_before.min(written).saturating_sub(cached_tokens);
        self.meter.computed_tokens += (written - cached_tokens) as u64;
        self.meter.recomputed_tokens += again as u64;
        self.report_growth(request.blocks_to_come(written, self.service.cache.block_size()));
        self.live[at].gone = true;
        computed_before.max(written)
    }

    fn advance(&mut self, at: usize) -> Result<(), PagedKvError> {
        if self.live[at].remaining_tokens > 0 {
            match self.append(at)? {
                Appended::Written => self.live[at].remaining_tokens -= 1,
                Appended::PutBack => return Ok(()),
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
        let sequence = self.live[at].sequence;
        match self.meter.time(|| self.service.cache.append(sequence, 1)) {
            Ok(append) => {
                debug_assert!(append.copy.is_none(), "nothing is forked, so nothing is copied");
                let begins_block =
                    self.written_tokens(at).is_multiple_of(self.service.cache.block_size());
                self.begun_blocks += usize::from(begins_block);
                Ok(Appended::Written)
            }
            Err(PagedKvError::SequenceNotFound(_)) => Ok(Appended::Evicted),
            Err(error) => Err(error),
        }
    }

    /// Evicts until the append succeeds, or until its own request is evicted or put back.
    #[cold]
    fn append_making_room(&mut self, at: usize) -> Result<Appended, PagedKvError> {
        // A panic of another holder does no harm: the lock guards no data.
        let _alone = self.service.shortage.lock().unwrap_or_else(PoisonError::into_inner);
        self.service.admission.shut();
        let mut to_threshold = true;
        loop {
            match self.try_append(at) {
                Err(PagedKvError::OutOfMemory { .. }) => {}
                appended => return appended,
            }
            if to_threshold {
                self.evict_to_threshold()?;
                to_threshold = false;
            } else {
                self.evict_one()?;
            }
            if self.live[at].gone {
                return Ok(Appended::PutBack);
            }
        }
    }

    /// Evicts down to the threshold by the strategy; `StreamingLLM` trims before it evicts. It may free
    /// nothing, if the utilization is already below the threshold.
    fn evict_to_threshold(&mut self) -> Result<(), PagedKvError> {
        let Service { cache, threshold, .. } = *self.service;
        match self.meter.time(|| cache.evict_to_threshold(threshold)) {
            Ok(evicted) => self.meter.evicted_sequences += evicted.len() as u64,
            Err(PagedKvError::NothingToEvict) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn evict_one(&mut self) -> Result<(), PagedKvError> {
        match self.meter.time(|| self.service.cache.evict()) {
            Ok(_) => {
                self.meter.evicted_sequences += 1;
                Ok(())
            }
            Err(PagedKvError::NothingToEvict) => self.put_youngest_back(),
            Err(error) => Err(error),
        }
    }

    fn put_youngest_back(&mut self) -> Result<(), PagedKvError> {
        let Service { cache, admission, .. } = self.service;
        let held = (0..self.live.len()).filter(|&at| !self.live[at].gone);
        let at = held.max_by_key(|&at| self.live[at].arrival).expect("the one in need is held");
        let Live { arrival, sequence, .. } = self.live[at];
        if !admission.yielding(arrival)? {
            // The oldest request of all, and the only one of this worker. The blocks that it lacks are held
            // by calls in progress of other workers: let these finish. See point 3 at the head of this file.
            thread::yield_now();
            return Ok(());
        }
        unless_evicted(self.meter.time(|| cache.free(sequence)))?;
        let computed_tokens = self.depart(at);
        admission.put_back(arrival, computed_tokens)?;
        self.meter.put_back_requests += 1;
        Ok(())
    }

    /// Frees a request that has all its output. If it was evicted just before, it still counts as complete.
    fn end(&mut self, at: usize) -> Result<(), PagedKvError> {
        let Service { cache, admission, requests, progress, .. } = self.service;
        let Live { arrival, sequence, .. } = self.live[at];
        admission.ending(arrival)?;
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
