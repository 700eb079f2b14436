//! The work of a scheduler, the same for every design: rows of live requests that grow by one token, are
//! forked, finish and are admitted.

use paged_kv::{BlockPool, PagedKvCache, SeqId, Sequence};

use super::team::Burst;
use crate::baseline::one_lock_cache::{OneLockCache, Place};

pub const BLOCK_SIZE: usize = 16;

/// One scheduler's requests, each in a row.
pub trait Requests {
    /// Puts a new request of `num_tokens` in an empty row.
    fn admit(&mut self, row: usize, num_tokens: usize);
    fn append(&mut self, row: usize);
    /// Puts a fork of the request of row `from` in the empty row `to`.
    fn fork(&mut self, from: usize, to: usize);
    fn truncate(&mut self, row: usize, num_tokens: usize);
    /// Empties a row.
    fn finish(&mut self, row: usize);
}

/// Our pool, by handle: the scheduler owns its sequences.
pub struct ByHandle<'a> {
    pool: &'a BlockPool,
    rows: Vec<Option<Sequence>>,
}

impl<'a> ByHandle<'a> {
    pub fn new(pool: &'a BlockPool, rows: usize) -> Self {
        Self { pool, rows: (0..rows).map(|_| None).collect() }
    }

    /// Puts this request into row 0.
    pub fn with_first(mut self, sequence: Sequence) -> Self {
        self.rows[0] = Some(sequence);
        self
    }

    #[inline]
    fn row(&mut self, row: usize) -> &mut Sequence {
        self.rows[row].as_mut().expect("the row has a request")
    }
}

impl Requests for ByHandle<'_> {
    #[inline]
    fn admit(&mut self, row: usize, num_tokens: usize) {
        let sequence = self.pool.allocate_sequence(num_tokens, BLOCK_SIZE);
        self.rows[row] = Some(sequence.expect("room for every request"));
    }
    #[inline]
    fn append(&mut self, row: usize) {
        drop(self.row(row).append(1).expect("room for every request"));
    }
    #[inline]
    fn fork(&mut self, from: usize, to: usize) {
        self.rows[to] = Some(self.row(from).fork().expect("few owners"));
    }
    #[inline]
    fn truncate(&mut self, row: usize, num_tokens: usize) {
        self.row(row).truncate(num_tokens).expect("the request is longer");
    }
    #[inline]
    fn finish(&mut self, row: usize) {
        self.rows[row] = None;
    }
}

/// A cache whose sequences have ids.
pub trait Cache: Sync {
    fn allocate(&self, id: u64, num_tokens: usize);
    fn append(&self, id: u64);
    fn fork(&self, src: u64, dst: u64);
    fn truncate(&self, id: u64, num_tokens: usize);
    fn free(&self, id: u64);
}

impl Cache for PagedKvCache {
    #[inline]
    fn allocate(&self, id: u64, num_tokens: usize) {
        self.allocate(SeqId(id), num_tokens).expect("room for every request");
    }
    #[inline]
    fn append(&self, id: u64) {
        drop(self.append(SeqId(id), 1).expect("room for every request"));
    }
    #[inline]
    fn fork(&self, src: u64, dst: u64) {
        self.fork(SeqId(src), SeqId(dst)).expect("the source is there and the name is new");
    }
    #[inline]
    fn truncate(&self, id: u64, num_tokens: usize) {
        self.truncate(SeqId(id), num_tokens).expect("the request is longer");
    }
    #[inline]
    fn free(&self, id: u64) {
        self.free(SeqId(id)).expect("the request is there");
    }
}

impl Cache for OneLockCache {
    #[inline]
    fn allocate(&self, id: u64, num_tokens: usize) {
        self.allocate(id, num_tokens).expect("room for every request");
    }
    #[inline]
    fn append(&self, id: u64) {
        self.append(id, 1).expect("room for every request");
    }
    #[inline]
    fn fork(&self, src: u64, dst: u64) {
        self.fork(src, dst).expect("the source is there and the name is new");
    }
    #[inline]
    fn truncate(&self, id: u64, num_tokens: usize) {
        self.truncate(id, num_tokens).expect("the request is longer");
    }
    #[inline]
    fn free(&self, id: u64) {
        self.free(id).expect("the request is there");
    }
}

/// A scheduler that gives each request an id that was never used before.
pub struct ById<'a, C: Cache> {
    cache: &'a C,
    rows: Vec<Option<u64>>,
    next: u64,
    /// The request of another scheduler, which is not freed with this one.
    guest: Option<u64>,
}

impl<'a, C: Cache> ById<'a, C> {
    /// Creates a scheduler of thread `thread`, whose ids differ from those of other schedulers.
    pub fn new(cache: &'a C, rows: usize, thread: usize) -> Self {
        Self { cache, rows: vec![None; rows], next: (thread as u64) << 40, guest: None }
    }

    /// Puts the request of another scheduler into row 0.
    pub fn sharing(mut self, id: u64) -> Self {
        self.rows[0] = Some(id);
        self.guest = Some(id);
        self
    }

    #[inline]
    fn row(&self, row: usize) -> u64 {
        self.rows[row].expect("the row has a request")
    }

    #[inline]
    fn name(&mut self, row: usize) -> u64 {
        self.next += 1;
        self.rows[row] = Some(self.next);
        self.next
    }
}

impl<C: Cache> Requests for ById<'_, C> {
    #[inline]
    fn admit(&mut self, row: usize, num_tokens: usize) {
        let id = self.name(row);
        self.cache.allocate(id, num_tokens);
    }
    #[inline]
    fn append(&mut self, row: usize) {
        self.cache.append(self.row(row));
    }
    #[inline]
    fn fork(&mut self, from: usize, to: usize) {
        let src = self.row(from);
        let dst = self.name(to);
        self.cache.fork(src, dst);
    }
    #[inline]
    fn truncate(&mut self, row: usize, num_tokens: usize) {
        self.cache.truncate(self.row(row), num_tokens);
    }
    #[inline]
    fn finish(&mut self, row: usize) {
        self.cache.free(self.row(row));
        self.rows[row] = None;
    }
}

impl<C: Cache> Drop for ById<'_, C> {
    fn drop(&mut self) {
        let own = self.rows.iter().flatten().filter(|&&id| Some(id) != self.guest);
        own.for_each(|&id| self.cache.free(id));
    }
}

/// One lock, by place in its slab: no lookup on append and fork. It is not a target. It is shown because a
/// scheduler that holds our handles could also hold places.
pub struct ByPlace<'a> {
    cache: &'a OneLockCache,
    rows: Vec<Option<Place>>,
    ids: ById<'a, OneLockCache>,
}

impl<'a> ByPlace<'a> {
    pub fn new(cache: &'a OneLockCache, rows: usize, thread: usize) -> Self {
        Self { cache, rows: vec![None; rows], ids: ById::new(cache, rows, thread) }
    }

    #[inline]
    fn row(&self, row: usize) -> Place {
        self.rows[row].expect("the row has a request")
    }
}

impl Requests for ByPlace<'_> {
    #[inline]
    fn admit(&mut self, row: usize, num_tokens: usize) {
        let place = self.cache.allocate(self.ids.name(row), num_tokens);
        self.rows[row] = Some(place.expect("room for every request"));
    }
    #[inline]
    fn append(&mut self, row: usize) {
        self.cache.append_at(self.row(row), 1).expect("room for every request");
    }
    #[inline]
    fn fork(&mut self, from: usize, to: usize) {
        self.rows[to] = Some(self.cache.fork_at(self.row(from), self.ids.name(to)));
    }
    #[inline]
    fn truncate(&mut self, row: usize, num_tokens: usize) {
        self.ids.truncate(row, num_tokens);
    }
    #[inline]
    fn finish(&mut self, row: usize) {
        self.cache.free_at(self.row(row));
        self.ids.rows[row] = None;
    }
}

/// Appends of one token, in turn over the rows. A request that has reached `LONGEST` is truncated.
pub struct Growth<R> {
    requests: R,
    lengths: Vec<usize>,
    next: usize,
}

impl<R: Requests> Growth<R> {
    pub const ROWS: usize = 1_024;
    pub const SHORTEST: usize = 64;
    pub const LONGEST: usize = 192;
    pub const MOST_BLOCKS: usize = Self::ROWS * Self::LONGEST / BLOCK_SIZE;

    /// Creates `rows` live requests of all lengths, so that they need new blocks at different times.
    pub fn new(mut requests: R, rows: usize) -> Self {
        let spread = Self::LONGEST - Self::SHORTEST;
        let lengths: Vec<_> = (0..rows).map(|row| Self::SHORTEST + row * 37 % spread).collect();
        for (row, &length) in lengths.iter().enumerate() {
            requests.admit(row, length);
        }
        Self { requests, lengths, next: 0 }
    }

    #[inline]
    pub fn append(&mut self) {
        let row = self.next;
        self.next = if row + 1 == self.lengths.len() { 0 } else { row + 1 };
        if self.lengths[row] == Self::LONGEST {
            self.requests.truncate(row, Self::SHORTEST);
            self.lengths[row] = Self::SHORTEST;
        }
        self.requests.append(row);
        self.lengths[row] += 1;
    }
}

impl<R> Growth<R> {
    /// Returns the requests.
    pub fn requests(&mut self) -> &mut R {
        &mut self.requests
    }
}

/// Steps of a scheduler. In each step every request grows by a token. Then 2 % finish, and forks of others
/// take their rows. Another 2 % finish, and new requests take their rows.
pub struct Steps<R> {
    requests: R,
    dice: Dice,
}

impl<R: Requests> Steps<R> {
    pub const ROWS: usize = 256;
    /// 2 % of the rows.
    const CHANGES: usize = 5;
    pub const LONGEST_PROMPT: usize = 1_024;
    /// Enough blocks: on average less than two thirds are in use. Rows live for 25 steps on average.
    pub const MOST_BLOCKS: usize = Self::ROWS * (Self::LONGEST_PROMPT / BLOCK_SIZE + 8);

    pub fn new(mut requests: R, seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        for row in 0..Self::ROWS {
            requests.admit(row, 1 + dice.below(Self::LONGEST_PROMPT));
        }
        Self { requests, dice }
    }

    pub fn step(&mut self) {
        for row in 0..Self::ROWS {
            self.requests.append(row);
        }
        for _ in 0..Self::CHANGES {
            let from = self.dice.below(Self::ROWS);
            let to = (from + 1 + self.dice.below(Self::ROWS - 1)) % Self::ROWS;
            self.requests.finish(to);
            self.requests.fork(from, to);
        }
        for _ in 0..Self::CHANGES {
            let row = self.dice.below(Self::ROWS);
            self.requests.finish(row);
            self.requests.admit(row, 1 + self.dice.below(Self::LONGEST_PROMPT));
        }
    }
}

/// Pseudo-random numbers, the same for every contender.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    #[inline]
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 32) as usize * bound) >> 32
    }
}

/// Returns bursts of 256 appends.
pub fn growing<'a>(requests: impl Requests + 'a) -> Burst<'a> {
    let mut growth = Growth::new(requests, Growth::<ByHandle<'_>>::ROWS);
    Box::new(move || {
        for _ in 0..256 {
            growth.append();
        }
        256
    })
}

/// Returns bursts of one step.
pub fn stepping<'a>(requests: impl Requests + 'a, seed: u64) -> Burst<'a> {
    let mut steps = Steps::new(requests, seed);
    Box::new(move || {
        steps.step();
        1
    })
}

/// Returns bursts of 8 forks of the request in row 0; each fork is finished.
pub fn forking<'a>(mut requests: impl Requests + 'a) -> Burst<'a> {
    Box::new(move || {
        for _ in 0..8 {
            requests.fork(0, 1);
            requests.finish(1);
        }
        8
    })
}
