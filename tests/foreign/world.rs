//! `World`: a cache in the middle of its work. It has sequences by id and by handle, forks, published and
//! idle contents, a reservation, a step, waiters, and a listener that records events.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use paged_kv::{
    AdmitOptions, Append, AppendBatch, BlockHash, BlockTable, CachedSequence, EventSink, KvEvent,
    Lease, LeaseRow, PagedKvCache, Reservation, SeqId, Sequence, Step,
};

use crate::BLOCK_SIZE;
use crate::common::lease_rows;
use crate::trip::{Call, Trip};

/// Blocks of the cache: the blocks that the world uses, and two idle ones.
pub const NUM_BLOCKS: usize = 24;

/// Blocks that a waiter needs: one more than are available.
const NEED: usize = 3;

/// A listener with a trap.
pub struct Listener {
    pub trip: Arc<Trip>,
    pub heard: Mutex<Heard>,
}

#[derive(Default)]
pub struct Heard {
    /// The tokens of each content.
    contents: HashMap<BlockHash, Vec<u32>>,
    parents: HashMap<BlockHash, BlockHash>,
    pub cleared: usize,
    /// Events that were out of order.
    pub faults: Vec<String>,
}

impl EventSink for Listener {
    fn on_event(&self, event: &KvEvent<'_>) {
        self.trip.on(Call::EventBefore);
        self.heard.lock().unwrap().hear(event);
        self.trip.on(Call::EventAfter);
    }
}

impl Heard {
    fn hear(&mut self, event: &KvEvent<'_>) {
        match *event {
            KvEvent::BlockStored { hashes, mut parent, tokens, block_size, .. } => {
                for (at, &hash) in hashes.iter().enumerate() {
                    if parent.is_some_and(|parent| !self.contents.contains_key(&parent)) {
                        self.faults.push(format!("{hash} came before its parent"));
                    }
                    let tokens = tokens.chunks(block_size).nth(at).unwrap_or_default().to_vec();
                    if self.contents.insert(hash, tokens).is_some() {
                        self.faults.push(format!("{hash} was announced already"));
                    }
                    parent.into_iter().for_each(|parent| _ = self.parents.insert(hash, parent));
                    parent = Some(hash);
                }
            }
            KvEvent::BlockRemoved { hashes, .. } => {
                for hash in hashes {
                    if self.contents.remove(hash).is_none() {
                        self.faults.push(format!("{hash} was not announced"));
                    }
                    self.parents.remove(hash);
                    if self.parents.values().any(|parent| parent == hash) {
                        self.faults.push(format!("{hash} went before its children"));
                    }
                }
            }
            _ => {
                self.contents.clear();
                self.parents.clear();
                self.cleared += 1;
            }
        }
    }
}

/// Creates a cache whose listener and wakers use `trip`.
pub fn cache_of(num_blocks: usize, trip: &Arc<Trip>) -> (PagedKvCache, Arc<Listener>) {
    let listener = Arc::new(Listener { trip: trip.clone(), heard: Mutex::default() });
    let builder = PagedKvCache::builder().num_blocks(num_blocks).block_size(BLOCK_SIZE);
    (builder.event_sink(listener.clone()).build().unwrap(), listener)
}

/// Returns tokens that no other number's tokens begin with.
pub fn tokens(number: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|at| number * 1000 + at).collect()
}

/// Asserts that the listener holds exactly the contents that probes find, and that no event was out of
/// order.
#[track_caller]
pub fn assert_heard(cache: &PagedKvCache, listener: &Listener) {
    let heard = listener.heard.lock().unwrap();
    assert_eq!(heard.faults, [] as [String; 0]);
    let mut reachable = HashSet::new();
    for number in 0..10 {
        let tokens = tokens(number, 12 * BLOCK_SIZE + 1);
        let prompt = cache.prompt(&tokens);
        let hits = cache.prefix().probe(&prompt) / BLOCK_SIZE;
        let is_held = |hash: &&BlockHash| heard.contents.contains_key(*hash);
        let held = prompt.hashes().iter().take_while(is_held).count();
        assert_eq!(held, hits, "of prompt {number} the listener holds what hits");
        for (hash, want) in prompt.hashes()[..hits].iter().zip(tokens.chunks(BLOCK_SIZE)) {
            assert_eq!(heard.contents[hash], want, "with its tokens");
            reachable.insert(*hash);
        }
    }
    assert_eq!(heard.contents.len(), reachable.len(), "and the listener holds nothing else");
}

/// A waker that counts its wake-ups, and passes them to the trap.
pub struct Bell {
    trip: Arc<Trip>,
    rung: Arc<AtomicUsize>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rung.fetch_add(1, Ordering::SeqCst);
        self.trip.on(Call::Wake);
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        // A second panic while the thread unwinds would abort the process.
        if !std::thread::panicking() {
            self.trip.on(Call::WakerDrop);
        }
    }
}

/// A future that is polled by hand, with a new waker each time.
pub struct Task<'c> {
    future: Pin<Box<dyn Future<Output = bool> + 'c>>,
    trip: Arc<Trip>,
    pub rung: Arc<AtomicUsize>,
}

impl<'c> Task<'c> {
    pub fn new<T>(
        trip: &Arc<Trip>,
        future: impl Future<Output = paged_kv::Result<T>> + 'c,
    ) -> Self {
        let future = Box::pin(async { future.await.is_ok() });
        Self { future, trip: trip.clone(), rung: Arc::default() }
    }

    /// Polls the future; once it is ready, true if it was served.
    pub fn poll(&mut self) -> Poll<bool> {
        let bell = Bell { trip: self.trip.clone(), rung: self.rung.clone() };
        let waker = Waker::from(Arc::new(bell));
        let polled = self.future.as_mut().poll(&mut Context::from_waker(&waker));
        // A panic in this drop is the executor's.
        _ = catch_unwind(AssertUnwindSafe(|| drop(waker)));
        polled
    }

    pub fn rung(&self) -> usize {
        self.rung.load(Ordering::SeqCst)
    }
}

/// The values that an operation may use up.
pub struct World<'c> {
    pub cache: &'c PagedKvCache,
    pub trip: Arc<Trip>,
    pub handle: Option<CachedSequence>,
    pub plain: Option<Sequence>,
    pub table: Option<BlockTable>,
    pub reservation: Option<Reservation>,
    pub step: Option<Step>,
    /// The rows of the step.
    pub rows: Vec<(LeaseRow, usize)>,
    pub lease: Option<Lease>,
    pub copy: Option<Append>,
    pub batch: AppendBatch,
    /// The first task uses the trap, the others only count.
    pub waiting: Vec<Task<'c>>,
}

impl<'c> World<'c> {
    /// Creates the handles and these sequences:
    ///
    /// - 1, of four blocks, two of them published, and its fork 2.
    /// - 3, of two blocks, and 4, whose prompt is not committed.
    /// - 5, in an open step, and 6, leased.
    pub fn new(cache: &'c PagedKvCache, trip: &Arc<Trip>) -> Self {
        let options = AdmitOptions::default();
        let serve = |number, len, committed| {
            let prompt = cache.prompt(&tokens(number, len));
            let (mut sequence, _) = cache.admit_sequence(&prompt, &options).unwrap();
            sequence.commit(committed).unwrap();
            sequence
        };
        drop(serve(0, 9, 9)); // two idle blocks
        cache.admit(SeqId(1), &tokens(1, 14)).unwrap();
        cache.commit(SeqId(1), 8).unwrap();
        cache.fork(SeqId(1), SeqId(2)).unwrap();
        cache.allocate(SeqId(3), 8).unwrap();
        cache.admit(SeqId(4), &tokens(4, 9)).unwrap();
        cache.allocate(SeqId(5), 5).unwrap();
        cache.allocate(SeqId(6), 4).unwrap();
        let mut step = cache.step(Default::default());
        let mut rows = lease_rows(cache, &[(SeqId(5), 4)]);
        assert_eq!(step.grow(&mut rows).unwrap().grown_rows, 1);
        let mut source = cache.allocate_sequence(6).unwrap();
        let mut plain = source.fork().unwrap();
        let copy = plain.append(1).unwrap();
        drop(source); // the copied block belongs to the copy alone
        let handle = serve(7, 9, 4);
        let world = Self {
            cache,
            trip: trip.clone(),
            handle: Some(handle),
            plain: Some(plain),
            table: Some(cache.pool().allocate(1).unwrap()),
            reservation: Some(cache.reserve(2).unwrap()),
            step: Some(step),
            rows,
            lease: Some(cache.lease(&[SeqId(6)]).unwrap()),
            copy: Some(copy),
            batch: AppendBatch::default(),
            waiting: Vec::new(),
        };
        let idle = cache.stats().blocks_idle;
        assert_eq!((cache.used_block_count(), idle), (NUM_BLOCKS - 2, 2));
        world
    }

    /// Adds two waiters: `first`, and one after it that needs as many blocks.
    pub fn with_waiters(mut self, first: First) -> Self {
        let cache = self.cache;
        let task = match first {
            First::Reserves => Task::new(&self.trip, cache.waiting().reserve(NEED)),
            First::Grows => {
                Task::new(&self.trip, cache.waiting().append(SeqId(3), NEED * BLOCK_SIZE))
            }
        };
        let second = Task::new(&Arc::default(), cache.waiting().reserve(NEED));
        self.waiting.extend([task, second]);
        for task in &mut self.waiting {
            assert!(task.poll().is_pending(), "there is no room for it");
        }
        self
    }

    /// Drops all handles, waiters last, frees all sequences, and asserts that nothing is left.
    #[track_caller]
    pub fn end(mut self) {
        let Self { cache, .. } = self;
        self.batch.clear();
        drop((self.handle, self.plain, self.table, self.reservation, self.copy));
        drop((self.step, self.lease, self.waiting));
        for id in cache.sequence_ids() {
            cache.free(id).unwrap();
        }
        assert_eq!((cache.used_block_count(), cache.waiting().len()), (0, 0));
        let stats = cache.stats();
        assert_eq!(stats.total_allocations, stats.total_frees);
        cache.validate().unwrap();
    }
}

/// The request of the first waiter.
#[derive(Clone, Copy, Debug)]
pub enum First {
    Reserves,
    Grows,
}
