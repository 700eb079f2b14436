//! `Worker`: a scheduler worker. Each step makes room for one token per sequence, computes under a lease, and
//! sends a token to each client.
//!
//! Between steps another worker may evict a sequence of this worker, or it is freed because its client left.
//! Within a step the lease keeps its blocks. A sequence that is gone is admitted again if its client still
//! waits.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use paged_kv::{Append, Lease, PagedKvError, SeqId};
use tokio::sync::mpsc;

use super::job::{Event, Sample};
use super::{Model, Shared, intake};

/// A message to a worker.
pub enum Admitted {
    /// A sequence that is in the cache, with its first `computed` positions computed.
    Sample { id: SeqId, sample: Sample, computed: usize },
    /// There will be no more sequences.
    Stop,
}

/// A scheduler worker.
pub struct Worker<M> {
    shared: Arc<Shared<M>>,
    admitted: mpsc::UnboundedReceiver<Admitted>,
    running: Vec<Running>,
    stopping: bool,
}

struct Running {
    id: SeqId,
    sample: Sample,
    /// Positions whose keys and values are computed.
    computed: usize,
    /// The append for the next position, with the copy to make first.
    append: Option<Append>,
    /// The cache knows its tokens up to `computed`, not only those of its admission.
    is_named: bool,
}

impl<M: Model> Worker<M> {
    pub fn new(shared: Arc<Shared<M>>, admitted: mpsc::UnboundedReceiver<Admitted>) -> Self {
        Self { shared, admitted, running: Vec::new(), stopping: false }
    }

    pub async fn run(mut self) {
        while self.receive().await {
            self.make_room();
            if let Some(lease) = self.lease() {
                let positions =
                    self.running.iter().map(|run| run.sample.tokens.len() - run.computed);
                let time = self.shared.model.step_time(positions.sum());
                if !time.is_zero() {
                    tokio::time::sleep(time).await;
                }
                self.step();
                drop(lease);
            }
            self.end_finished();
            tokio::task::yield_now().await;
        }
    }

    /// Takes over the admitted sequences; waits for one if none is running. Returns false at the end.
    async fn receive(&mut self) -> bool {
        if self.running.is_empty() && !self.stopping {
            match self.admitted.recv().await {
                Some(admitted) => self.take_in(admitted),
                None => return false,
            }
        }
        while let Ok(admitted) = self.admitted.try_recv() {
            self.take_in(admitted);
        }
        !(self.stopping && self.running.is_empty())
    }

    fn take_in(&mut self, admitted: Admitted) {
        match admitted {
            Admitted::Sample { id, sample, computed } => {
                self.running.push(Running { id, sample, computed, append: None, is_named: false });
            }
            Admitted::Stop => self.stopping = true,
        }
    }

    /// Appends a slot for the last token of each sequence, by eviction if necessary.
    fn make_room(&mut self) {
        let mut running = std::mem::take(&mut self.running);
        for mut run in running.drain(..) {
            match self.grow(&run) {
                Ok(append) => {
                    run.append = append;
                    self.running.push(run);
                }
                Err(_) => self.lose(run),
            }
        }
    }

    fn grow(&self, run: &Running) -> Result<Option<Append>, PagedKvError> {
        let cache = &self.shared.cache;
        let slots = cache.with_sequence(run.id, |sequence| sequence.num_tokens());
        let slots = slots.ok_or(PagedKvError::SequenceNotFound(run.id))?;
        if slots == run.sample.tokens.len() {
            return Ok(None);
        }
        loop {
            match cache.append(run.id, 1) {
                Err(PagedKvError::OutOfMemory { .. }) => {
                    // This sequence itself may be evicted: the next attempt then does not find it.
                    if cache.evict().is_err() {
                        let _ = cache.free(run.id);
                        return Err(PagedKvError::NothingToEvict);
                    }
                }
                appended => return appended.map(Some),
            }
        }
    }

    /// Leases all running sequences. Sequences that are gone leave the worker.
    fn lease(&mut self) -> Option<Lease> {
        loop {
            if self.running.is_empty() {
                return None;
            }
            let ids: Vec<SeqId> = self.running.iter().map(|run| run.id).collect();
            match self.shared.cache.lease(&ids) {
                Ok(lease) => return Some(lease),
                Err(_) => {
                    let cache = &self.shared.cache;
                    let is_there = |run: &Running| cache.with_sequence(run.id, |_| ()).is_some();
                    let (stay, gone): (Vec<_>, Vec<_>) =
                        std::mem::take(&mut self.running).into_iter().partition(is_there);
                    self.running = stay;
                    gone.into_iter().for_each(|run| self.lose(run));
                }
            }
        }
    }

    /// Handles a sample whose sequence is gone. If its client has not left, the sequence was evicted, and the
    /// sample is admitted again.
    fn lose(&self, run: Running) {
        run.sample.job.went_out(run.id);
        if !run.sample.job.is_abandoned() {
            self.shared.metrics.resumptions.inc();
            intake::admit(Arc::clone(&self.shared), run.sample);
        }
    }

    /// Computes the missing positions of each sequence, and emits a token for each.
    fn step(&mut self) {
        let mut forks = Vec::new();
        for run in &mut self.running {
            if let Some(copy) = run.append.take().and_then(|append| append.copy) {
                self.shared.tensor.copy_block(copy.src, copy.dst);
            }
            // Freed during the step: the lease keeps its blocks, but its id is no longer found.
            let Some(state) = compute(&self.shared, run) else { continue };
            let is_whole = std::mem::take(&mut run.sample.is_whole_job);
            let mut others = if is_whole { fork(&self.shared, run) } else { Vec::new() };
            emit(&self.shared, run, state);
            others.iter_mut().for_each(|other| emit(&self.shared, other, state));
            forks.append(&mut others);
        }
        self.running.extend(forks);
    }

    /// Frees the sequences that are finished or abandoned by their clients.
    fn end_finished(&mut self) {
        let shared = &self.shared;
        self.running.retain(|run| {
            let ends = run.sample.is_finished() || run.sample.job.is_abandoned();
            if ends {
                run.sample.job.went_out(run.id);
                // It may have been evicted, now that it is not leased.
                let _ = shared.cache.free(run.id);
                let finished = Event::Finished { sample: run.sample.index };
                let _ = run.sample.job.events.send(finished);
            }
            !ends
        });
    }
}

/// Computes the keys and values of the missing positions. Returns the state after the last token, or
/// `None` if the sequence is gone.
fn compute<M: Model>(shared: &Shared<M>, run: &mut Running) -> Option<u64> {
    let (model, tensor, tokens) = (&shared.model, &shared.tensor, &run.sample.tokens);
    let state = shared.cache.with_sequence(run.id, |sequence| {
        let slot = |position| tensor.slot(sequence.block_ids(), position);
        let before = |position| slot(position).load(Ordering::Relaxed);
        let mut state = run.computed.checked_sub(1).map_or(0, before);
        for (position, &token) in tokens.iter().enumerate().skip(run.computed) {
            state = model.extend(state, token);
            slot(position).store(state, Ordering::Relaxed);
        }
        state
    })?;
    // Full blocks may be matched from now on. It is no fault if the sequence was just freed.
    let _ = if std::mem::replace(&mut run.is_named, true) {
        shared.cache.commit(run.id, &tokens[run.computed..])
    } else {
        shared.cache.commit(run.id, tokens.len())
    };
    run.computed = tokens.len();
    Some(state)
}

/// Forks the other samples of a request whose prompt is computed.
fn fork<M: Model>(shared: &Arc<Shared<M>>, run: &Running) -> Vec<Running> {
    let mut forks = Vec::new();
    for index in 1..run.sample.job.samples {
        let (id, sample) = (shared.next_id(), run.sample.fork(index));
        match shared.cache.fork(run.id, id) {
            Ok(()) => {
                sample.job.came_in(id);
                forks.push(Running {
                    id,
                    sample,
                    computed: run.computed,
                    append: None,
                    is_named: true,
                });
            }
            // Its client left during the step.
            Err(_) if sample.job.is_abandoned() => {}
            Err(_) => intake::admit(Arc::clone(shared), sample),
        }
    }
    forks
}

/// Samples the next token and sends it to the client.
fn emit<M: Model>(shared: &Shared<M>, run: &mut Running, state: u64) {
    let sample = &mut run.sample;
    let token = shared.model.sample(state, sample.index);
    sample.tokens.push(token);
    shared.metrics.tokens.inc();
    let _ = sample.job.events.send(Event::Token { sample: sample.index, token });
}
