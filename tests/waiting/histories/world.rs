//! `World`: the state of a history: a cache, all values taken from it, and the tasks that wait.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use paged_kv::{
    Append, CachedSequence, EvictionStrategy, Fairness, Lease, LeaseRow, PagedKvCache,
    PagedKvError, ReclaimPolicy, Reservation, SeqId, Sequence, Step, Watermark,
};

use super::super::Wakes;
use super::super::common::random::Random;

/// The value that a task got, kept until it is dropped.
pub enum Outcome {
    Nothing,
    Room(Reservation),
    Grown(Append),
}

pub type Waiting<'a> = Pin<Box<dyn Future<Output = Result<Outcome, PagedKvError>> + Send + 'a>>;

/// The request that a task waits with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Reserve {
        blocks: usize,
    },
    Allocate {
        id: u64,
        tokens: usize,
    },
    Admit {
        id: u64,
        prompt: usize,
        chunk: Option<usize>,
    },
    /// An append to a sequence, with the number of its admission.
    Append {
        id: u64,
        admission: usize,
        tokens: usize,
    },
}

pub struct Task<'a> {
    pub kind: Kind,
    pub future: Waiting<'a>,
    pub wakes: Arc<Wakes>,
    /// Wake-ups after which it was polled.
    pub seen: usize,
    /// New requests that came later and were served before it.
    pub passed: u32,
}

/// Number of ids of a thread.
pub const IDS: u64 = 5;

pub struct World<'a> {
    pub tasks: Vec<Task<'a>>,
    pub handles: Vec<Sequence>,
    pub named: Vec<CachedSequence>,
    pub rooms: Vec<Reservation>,
    pub appends: Vec<Append>,
    pub leases: Vec<Lease>,
    pub steps: Vec<(Step, Vec<(LeaseRow, usize)>)>,
    /// The first id of the thread.
    pub base: u64,
    /// True if no other thread uses the cache.
    pub is_alone: bool,
    /// The number of each id's last admission, if its sequence is in the map.
    pub admissions: [Option<usize>; IDS as usize],
    pub num_admissions: usize,
    /// True if sequences that were freed while leased may still hold blocks.
    pub freed_leased: bool,
    pub cache: &'a PagedKvCache,
    pub shape: Shape,
    pub random: Random,
    pub log: Vec<String>,
}

/// Returns the tokens of a prompt; all prompts begin alike.
pub fn prompt(which: usize) -> Vec<u32> {
    let (len, from) = [(9, 9), (13, 9), (9, 4), (6, 6)][which % 4];
    (0..len).map(|at| if at < from { 7 } else { 100 + which as u32 }).collect()
}

/// The parameters by which a cache serves its waiters.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub fairness: Fairness,
    pub watermark: usize,
}

/// Creates a cache of few blocks, of a random shape.
pub fn cache(random: &mut Random) -> (PagedKvCache, Shape) {
    let blocks = 1 + random.below(12);
    let fairness = match random.below(5) {
        0 | 1 => Fairness::Fifo,
        n => Fairness::Bypass { at_most: [0, 1, 3][n - 2] },
    };
    let watermark = if random.below(2) == 0 { 0 } else { random.below(blocks) };
    let strategy = match random.below(4) {
        0 => EvictionStrategy::LRU,
        1 => EvictionStrategy::LFU,
        2 => EvictionStrategy::LongestFirst,
        _ => EvictionStrategy::StreamingLLM { sink_tokens: 0, window_tokens: 4 },
    };
    let policy =
        [ReclaimPolicy::Lru, ReclaimPolicy::TwoQueue, ReclaimPolicy::HitDensity][random.below(3)];
    let shards = 1 + random.below(2);
    let builder = PagedKvCache::builder().num_blocks(blocks).block_size(4).home_shards(shards);
    let builder = builder.with_eviction_strategy(strategy).reclaim_policy(policy);
    let cache = builder.fairness(fairness).watermark(Watermark::Blocks(watermark)).build().unwrap();
    (cache, Shape { fairness, watermark })
}

impl<'a> World<'a> {
    pub fn new(cache: &'a PagedKvCache, shape: Shape, random: Random) -> Self {
        Self {
            tasks: Vec::new(),
            handles: Vec::new(),
            named: Vec::new(),
            rooms: Vec::new(),
            appends: Vec::new(),
            leases: Vec::new(),
            steps: Vec::new(),
            base: 0,
            is_alone: true,
            admissions: [None; IDS as usize],
            num_admissions: 0,
            freed_leased: false,
            cache,
            shape,
            random,
            log: Vec::new(),
        }
    }

    /// Notes that a sequence was admitted under an id.
    pub fn admitted(&mut self, id: u64) {
        self.num_admissions += 1;
        self.admissions[(id - self.base) as usize] = Some(self.num_admissions);
    }

    /// Returns the number of an id's last admission, if its sequence is in the map.
    pub fn admission(&self, id: u64) -> Option<usize> {
        self.admissions[(id - self.base) as usize]
    }

    /// Notes which sequences have gone.
    pub fn note_gone(&mut self) {
        for id in 0..IDS {
            if self.cache.with_sequence(SeqId(self.base + id), |_| ()).is_none() {
                self.admissions[id as usize] = None;
            }
        }
    }

    /// Writes the state of the cache to the log.
    pub fn note_state(&mut self) {
        let waiting: Vec<_> = self.tasks.iter().map(|task| task.kind).collect();
        let mut sequences: Vec<_> = self.cache.sequence_ids();
        sequences.sort_unstable();
        let tables = sequences.into_iter().map(|id| {
            let info = self.cache.get_sequence(id).unwrap();
            let ids: Vec<u32> = info.block_ids.iter().map(|id| id.0).collect();
            format!("{id} {} {ids:?}", info.num_tokens)
        });
        let tables: Vec<String> = tables.collect();
        let (room, steps) = (self.cache.free_block_count(), self.steps.len());
        let outside = self.handles.len() + self.named.len() + self.rooms.len();
        self.log.push(format!(
            "    room {room}, {}, {steps} steps, {outside} handles and rooms; {waiting:?}",
            tables.join(", ")
        ));
    }

    /// Adds a waiting task, and polls it once.
    pub fn wait(&mut self, kind: Kind, future: Waiting<'a>) {
        let task = Task { kind, future, wakes: Arc::default(), seen: 0, passed: 0 };
        self.tasks.push(task);
        self.poll(self.tasks.len() - 1, true);
    }

    /// Polls all woken tasks, until none is woken. True if there were any.
    pub fn run_woken(&mut self) -> bool {
        for polled in 0..1_000 {
            let woken = |task: &Task<'_>| task.wakes.0.load(Ordering::SeqCst) > task.seen;
            let woken: Vec<usize> =
                (0..self.tasks.len()).filter(|&at| woken(&self.tasks[at])).collect();
            if woken.is_empty() {
                return polled > 0;
            }
            let at = woken[self.random.below(woken.len())];
            self.poll(at, false);
        }
        panic!("tasks wake each other without end");
    }

    /// Polls a task, and drops it if it is done. Returns its result then.
    pub fn poll(&mut self, at: usize, is_first: bool) -> Option<Result<(), PagedKvError>> {
        let task = &mut self.tasks[at];
        let room = self.cache.free_block_count();
        task.seen = task.wakes.0.load(Ordering::SeqCst);
        let waker = Waker::from(Arc::clone(&task.wakes));
        let polled = task.future.as_mut().poll(&mut Context::from_waker(&waker));
        let Poll::Ready(result) = polled else {
            return None;
        };
        let task = self.tasks.remove(at);
        let told = result.as_ref().map(drop).map_err(PagedKvError::clone);
        self.log.push(format!("    {:?}: {told:?}", task.kind));
        // A request that takes no block is served immediately and passes no waiter.
        let waited = !is_first || self.cache.free_block_count() < room;
        self.check_result(&task, &told, at, is_first, waited);
        match (task.kind, result) {
            (Kind::Allocate { id, .. } | Kind::Admit { id, .. }, Ok(_)) => self.admitted(id),
            (_, Ok(Outcome::Room(room))) => self.rooms.push(room),
            (_, Ok(Outcome::Grown(append))) => self.appends.push(append),
            _ => {}
        }
        Some(told)
    }

    /// Drops all values, and asserts that nothing is left.
    pub fn end(&mut self) {
        self.drop_all();
        for id in self.cache.sequence_ids() {
            self.cache.free(id).unwrap();
        }
        super::super::assert_all_back(self.cache);
    }

    /// Drops all values that were taken from the cache.
    pub fn drop_all(&mut self) {
        self.tasks.clear();
        self.steps.clear();
        self.leases.clear();
        self.handles.clear();
        self.named.clear();
        self.rooms.clear();
        self.appends.clear();
    }
}
