//! `Hold`: how an engine holds a sequence: by its handle, or by its id in the cache's map.

use std::collections::BTreeSet;

use paged_kv::{
    Admission, AdmitOptions, CachedSequence, Lease, LeaseRow, PagedKvCache, PagedKvError, Prompt,
    Result, Row, SeqId, Worker,
};

/// The ids of one engine: a range, whose ids are used again as soon as their sequences have ended.
#[derive(Debug)]
pub struct Ids {
    worker: u32,
    used: BTreeSet<u64>,
    /// Every `lease_in`-th sequence is leased for its whole life; 0 for none.
    lease_in: u64,
    taken: u64,
}

impl Ids {
    /// Ids that no other worker has.
    pub fn of_worker(worker: u32, lease_in: u64) -> Self {
        Self { worker, used: BTreeSet::new(), lease_in, taken: 0 }
    }

    fn take(&mut self) -> SeqId {
        let first = u64::from(self.worker) << 32;
        let id = (first..).find(|id| !self.used.contains(id)).expect("ids do not end");
        self.used.insert(id);
        self.taken += 1;
        SeqId(id)
    }

    fn give(&mut self, id: SeqId) {
        assert!(self.used.remove(&id.0), "an id is given back once");
    }

    fn leases_this(&self) -> bool {
        self.lease_in > 0 && self.taken.is_multiple_of(self.lease_in)
    }
}

/// A sequence that an engine holds.
pub trait Hold: Sized {
    /// Its form in a step.
    type Row: Row;

    /// Admits a prompt.
    fn admit(
        ids: &mut Ids,
        cache: &PagedKvCache,
        prompt: &Prompt,
        options: &AdmitOptions,
    ) -> Result<(Self, Admission)>;

    /// Returns the row of a step.
    fn row(&mut self) -> &mut Self::Row;

    /// Returns the id, if the sequence has one.
    fn id(&self) -> Option<SeqId>;

    /// Forks the sequence `n` times, or not at all.
    fn fork_n(&mut self, ids: &mut Ids, cache: &PagedKvCache, n: usize) -> Result<Vec<Self>>;

    /// Releases the blocks before the last `window` tokens. Returns the number of their tokens.
    fn trim(&mut self, cache: &PagedKvCache, window: usize) -> Result<usize>;

    /// Ends the sequence.
    fn end(self, ids: &mut Ids, cache: &PagedKvCache);

    /// Evicts some sequence, of any engine, if that is possible. Returns true if it did.
    fn evict(ids: &Ids, cache: &PagedKvCache) -> bool;

    /// Returns a row that names the sequence also after its end, if there is such a row.
    fn name(&self) -> Option<LeaseRow>;
}

/// A sequence that is held by its handle.
pub type ByHandle = CachedSequence;

impl Hold for ByHandle {
    type Row = CachedSequence;

    fn admit(
        _: &mut Ids,
        cache: &PagedKvCache,
        prompt: &Prompt,
        options: &AdmitOptions,
    ) -> Result<(Self, Admission)> {
        cache.admit_sequence(prompt, options)
    }

    fn row(&mut self) -> &mut CachedSequence {
        self
    }

    fn id(&self) -> Option<SeqId> {
        None
    }

    fn fork_n(&mut self, _: &mut Ids, _: &PagedKvCache, n: usize) -> Result<Vec<Self>> {
        CachedSequence::fork_n(self, n)
    }

    fn trim(&mut self, _: &PagedKvCache, window: usize) -> Result<usize> {
        self.apply_streaming_llm(0, window)
    }

    fn end(self, _: &mut Ids, _: &PagedKvCache) {}

    fn evict(_: &Ids, _: &PagedKvCache) -> bool {
        false
    }

    fn name(&self) -> Option<LeaseRow> {
        None
    }
}

/// A sequence in the cache's map. Unless it is leased, any thread may evict it.
pub struct ById {
    row: LeaseRow,
    /// Held only to be dropped with the sequence.
    _lease: Option<Lease>,
}

impl ById {
    /// Takes the row of a sequence that is in the map, and a lease if it is its turn.
    fn hold(ids: &mut Ids, cache: &PagedKvCache, id: SeqId) -> Result<Self> {
        let lease = cache.lease(&[id]).inspect_err(|_| Self::forget(ids, cache, id))?;
        let row = lease.rows().next().expect("one sequence is leased");
        let lease = Some(lease).filter(|_| ids.leases_this());
        Ok(Self { row, _lease: lease })
    }

    fn forget(ids: &mut Ids, cache: &PagedKvCache, id: SeqId) {
        // The sequence may have been evicted.
        let freed = cache.free_when_released(id);
        assert!(freed.is_ok() || freed.is_err_and(|error| gone(&error) == Some(id)));
        ids.give(id);
    }
}

impl Hold for ById {
    type Row = LeaseRow;

    fn admit(
        ids: &mut Ids,
        cache: &PagedKvCache,
        prompt: &Prompt,
        options: &AdmitOptions,
    ) -> Result<(Self, Admission)> {
        let id = ids.take();
        let options = match ids.taken.is_multiple_of(2) {
            true => options.clone().worker(Worker(ids.worker)),
            false => options.clone(),
        };
        let admitted = cache.admit_with(id, prompt, &options);
        let admission = admitted.inspect_err(|_| ids.give(id))?;
        Ok((Self::hold(ids, cache, id)?, admission))
    }

    fn row(&mut self) -> &mut LeaseRow {
        &mut self.row
    }

    fn id(&self) -> Option<SeqId> {
        Some(self.row.id())
    }

    fn fork_n(&mut self, ids: &mut Ids, cache: &PagedKvCache, n: usize) -> Result<Vec<Self>> {
        let forks: Vec<SeqId> = (0..n).map(|_| ids.take()).collect();
        if let Err(refusal) = cache.fork_n(self.row.id(), &forks) {
            forks.iter().for_each(|&id| ids.give(id));
            return Err(refusal);
        }
        // A fork may be evicted before it is held: then all of them end.
        let mut held = Vec::new();
        for (at, &id) in forks.iter().enumerate() {
            match Self::hold(ids, cache, id) {
                Ok(fork) => held.push(fork),
                Err(refusal) => {
                    forks[at + 1..].iter().for_each(|&id| Self::forget(ids, cache, id));
                    held.into_iter().for_each(|fork| fork.end(ids, cache));
                    return Err(refusal);
                }
            }
        }
        Ok(held)
    }

    fn trim(&mut self, cache: &PagedKvCache, window: usize) -> Result<usize> {
        match cache.apply_streaming_llm(self.row.id(), 0, window) {
            Err(PagedKvError::SequenceLeased(_)) => Ok(0),
            trimmed => trimmed,
        }
    }

    fn end(self, ids: &mut Ids, cache: &PagedKvCache) {
        Self::forget(ids, cache, self.row.id());
    }

    fn evict(ids: &Ids, cache: &PagedKvCache) -> bool {
        match ids.taken % 2 {
            0 => cache.evict().is_ok(),
            _ => cache.evict_for(Worker(ids.worker), 1, &mut Vec::new()).is_ok(),
        }
    }

    fn name(&self) -> Option<LeaseRow> {
        Some(self.row.clone())
    }
}

/// Returns the id of a sequence that has been freed or evicted, if that is the reason of a refusal.
pub fn gone(refusal: &PagedKvError) -> Option<SeqId> {
    match *refusal {
        PagedKvError::SequenceNotFound(id) | PagedKvError::SequenceEvicted(id) => Some(id),
        _ => None,
    }
}
