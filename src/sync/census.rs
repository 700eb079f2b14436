//! The types of [`sync`](super) that count, for each thread and [`Place`], the writes to shared memory.
//!
//! With [`begin`] they also count the transfers of cache lines between logical threads: see [`coherence`].
//!
//! An atomic belongs to the place of the file that accesses it, an `Arc` to that of its contents, a lock to that
//! of its kind. Not counted as writes are:
//!
//! - loads;
//! - the ordinal that a thread takes once;
//! - the weak count and the memory of an `Arc` that its last holder, which is alone with it, ends;
//! - the steps inside one operation of `crossbeam` or `dashmap`, which counts as a whole (see
//!   [`Writes::shared`]).

mod arc;
mod atomic;
mod coherence;
mod local;
mod lock;
mod map;
mod queue;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::panic::Location;
use std::path::Path;

use foldhash::fast::FixedState;

pub(crate) use self::arc::{Arc, into_last};
pub(crate) use self::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize};
use self::coherence::logical_thread;
pub(crate) use self::coherence::place_array;
pub use self::coherence::{MOST_THREADS, Site, Transfers, begin, end, run_as, take_transfers};
pub(crate) use self::local::{Local, OfThreads, thread_local};
pub(crate) use self::lock::{Mutex, RwLock, read_past_writers};
pub(crate) use self::map::DashMap;
pub(crate) use self::queue::ArrayQueue;
use super::shipped;
pub(crate) use super::shipped::{
    Backoff, CachePadded, Entry, MutexGuard, OnceLock, Ordering, RwLockReadGuard, RwLockWriteGuard,
    fence, prefetch,
};

/// The part of the crate to which a write belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A home shard: its claim, and under the claim its magazine and the number of its blocks.
    HomeShard,
    /// The ledgers of the home shards (stores, under the claim) and the pool's peak.
    Ledger,
    /// The queue of batches that refills home shards and takes their surplus.
    Depot,
    /// The words of blocks, and their counts by id.
    BlockWord,
    /// The words of the prefix index.
    Index,
    /// The words of open steps.
    Step,
    /// The reference count of a run of blocks.
    Run,
    /// The reference count of a stripe of the pool.
    Stripe,
    /// A count of forks in a stripe, or a cell of another statistic.
    Statistic,
    /// The locks of the map's shards.
    MapShard,
    /// The lock of a sequence that is stored beside the map, its leases and its reference count.
    Sequence,
    /// The floor and the reference count of the clock that stamps uses.
    Clock,
    /// The queues of idle blocks whose contents have a level, and the notes of these levels.
    Levels,
    /// The mutexes of threads that search all shards or all sequences, and the reference count of the blocks,
    /// which only the stripes hold.
    Rare,
}

const PLACES: [Place; 14] = [
    Place::HomeShard,
    Place::Ledger,
    Place::Depot,
    Place::BlockWord,
    Place::Index,
    Place::Step,
    Place::Run,
    Place::Stripe,
    Place::Statistic,
    Place::MapShard,
    Place::Sequence,
    Place::Clock,
    Place::Levels,
    Place::Rare,
];

/// The writes of one thread in one place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// Atomic read-modify-writes, failed exchanges too. A mutex or a lock counts two: taking and releasing it.
    /// In [`Place::MapShard`] a guard counts one (its lock is taken and released inside `dashmap`). In
    /// [`Place::Depot`] an operation of the queue counts one (inside, an exchange of the queue's end and a
    /// store to the cell).
    pub shared: u64,
    /// Atomic stores, which are plain stores to the processor: to data that only this thread writes.
    pub stores: u64,
}

std::thread_local! {
    static WRITES: [Cell<Writes>; PLACES.len()] =
        const { [const { Cell::new(Writes { shared: 0, stores: 0 }) }; PLACES.len()] };
    /// The places of files, by the address of the file's name.
    static PLACES_OF_FILES: RefCell<HashMap<usize, Place, FixedState>> = RefCell::default();
}

/// Returns the logical thread, or the ordinal of the thread if none was chosen.
pub(crate) fn thread_ordinal() -> usize {
    logical_thread().unwrap_or_else(shipped::thread_ordinal)
}

/// Takes the writes of the calling thread since its last call, by place. Leaves out places without writes.
pub fn take() -> Vec<(Place, Writes)> {
    let taken = WRITES.with(|writes| PLACES.map(|place| (place, writes[place as usize].take())));
    taken.into_iter().filter(|(_, writes)| *writes != Writes::default()).collect()
}

fn count_shared(place: Place, times: u64) {
    change(place, |writes| writes.shared += times);
}

fn count_store(place: Place) {
    change(place, |writes| writes.stores += 1);
}

fn change(place: Place, change: impl FnOnce(&mut Writes)) {
    WRITES.with(|writes| {
        let mut now = writes[place as usize].get();
        change(&mut now);
        writes[place as usize].set(now);
    });
}

/// Returns the place of the atomics of the caller's file.
fn place_of_caller(caller: &'static Location<'static>) -> Place {
    let file = caller.file();
    PLACES_OF_FILES.with_borrow_mut(|places| {
        *places.entry(file.as_ptr().addr()).or_insert_with(|| place_of(file))
    })
}

/// Returns the place of the atomics of a file.
fn place_of(file: &str) -> Place {
    const PLACE_OF: &[(&str, Place)] = &[
        ("pool/idle.rs", Place::HomeShard),
        ("idle/list.rs", Place::HomeShard),
        ("idle/kept_slot.rs", Place::HomeShard),
        ("idle/slab.rs", Place::HomeShard),
        ("idle/first.rs", Place::HomeShard),
        ("idle/ghosts.rs", Place::HomeShard),
        ("idle/hit_density.rs", Place::HomeShard),
        ("hit_density/prompt_look.rs", Place::HomeShard),
        ("idle/levels.rs", Place::Levels),
        ("levels/deadlines.rs", Place::Levels),
        ("levels/queues.rs", Place::Levels),
        ("levels/run.rs", Place::Levels),
        ("idle/noted_ghosts.rs", Place::HomeShard),
        ("idle/ranked.rs", Place::HomeShard),
        ("pool/owner_counts.rs", Place::BlockWord),
        ("pool/in_flight.rs", Place::Step),
        ("in_flight/slots.rs", Place::Step),
        ("pool/content_key.rs", Place::BlockWord),
        ("prefix/index.rs", Place::Index),
        ("prefix/registry.rs", Place::Rare),
        ("prefix/generation.rs", Place::Rare),
        ("pool/free_list/home_shard.rs", Place::HomeShard),
        ("pool/free_list.rs", Place::HomeShard),
        ("free_list/give.rs", Place::HomeShard),
        ("free_list/reclaim.rs", Place::HomeShard),
        ("free_list/room.rs", Place::Ledger),
        ("pool/accounting.rs", Place::Ledger),
        ("pool/cached.rs", Place::Rare),
        ("pool/pins.rs", Place::Rare),
        ("pool/wait_queue.rs", Place::Rare),
        ("pool/word.rs", Place::BlockWord),
        ("word/block_words.rs", Place::BlockWord),
        ("pool/mod.rs", Place::Statistic),
        ("src/counter.rs", Place::Statistic),
        ("cache/sequence_counts.rs", Place::Statistic),
        ("lease_count.rs", Place::Sequence),
        ("sequence/uses.rs", Place::Sequence),
        ("cache/entry.rs", Place::Sequence),
        ("cache/eviction/evicted_ids.rs", Place::Rare),
        ("cache/eviction.rs", Place::Rare),
        ("eviction/removal.rs", Place::Rare),
        ("prefix/event_order.rs", Place::Rare),
        ("prefix/event_order/claimed_sink.rs", Place::Rare),
        ("src/clock.rs", Place::Clock),
    ];
    match PLACE_OF.iter().find(|(end, _)| Path::new(file).ends_with(end)) {
        Some(&(_, place)) => place,
        None => panic!("{file}: the atomics of this file have no place in the census"),
    }
}
