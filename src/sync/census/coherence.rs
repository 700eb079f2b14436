//! The model of cache lines: which logical threads have each line of 64 bytes, and the transfers that follow.
//!
//! The caller runs the operations of several logical threads in turn on one thread of the system, and calls
//! [`run_as`] between them. The order is fixed, so each run gives the same counts on every machine. An access
//! costs one transfer in two cases:
//!
//! - a read of a line that this logical thread does not have and another one does;
//! - a write of a line that another logical thread has.
//!
//! The first access to a line is free. A read of a line and a later write of it are two accesses.
//!
//! Lines are numbered from the start of their array or `Arc`, as if each began on a line of its own. Other
//! memory is numbered by its address. A new `Arc` has new lines: each thread's allocator mostly reuses its own
//! memory. Three types are modelled from outside:
//!
//! - an `ArrayQueue` has a line for each end, and one for each slot, although a batch fills about ten;
//! - a `DashMap` has a line for each shard's lock, and one for each key;
//! - a lock is one write of its line.
//!
//! Not modelled are plain fields: one that shares a line with an atomic that another thread writes costs
//! transfers that are missing here. The same is true of memory outside the types of [`sync`](crate::sync), and
//! of all that happens only while two threads work at the same moment: retries, waits and failed claims.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::panic::Location;

use foldhash::fast::FixedState;

use super::{Place, place_of};

/// The most logical threads.
pub const MOST_THREADS: usize = 64;

/// Bytes of a line, as a power of two.
const LINE: u32 = 6;

/// Arrays begin at a multiple of this many lines.
const ALIGNED: usize = 2;

/// Ranges of at least this many bytes are searched first.
const LARGE: usize = 1 << 16;

/// Recently accessed addresses whose lines are remembered.
const RECENT: usize = 1 << 12;

/// The code that makes an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    /// The file, or the type of a dropped `Arc`.
    pub file: &'static str,
    /// The line in the file; 0 for a dropped `Arc`.
    pub line: u32,
}

/// The line transfers of one site in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfers {
    /// The part of the crate whose memory is accessed.
    pub place: Place,
    /// The code that accesses it.
    pub site: Site,
    /// The number of transfers.
    pub count: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// Addresses from `start` to `end`, whose lines are numbered from `first` on.
#[derive(Clone, Copy)]
struct Range {
    start: usize,
    end: usize,
    first: usize,
}

/// The address of a file's name, the line, and the place. The place of an atomic follows from its file.
type SiteKey = (usize, u32, Option<Place>);

#[derive(Default)]
struct Model {
    /// The logical threads that have each line, one bit each. 0 for a line that was never accessed.
    sharers: Vec<u64>,
    ranges: BTreeMap<usize, Range>,
    large: Vec<Range>,
    /// Addresses and their lines. An entry of another version of the ranges is stale.
    recent: Vec<Recent>,
    version: u64,
    /// The lines outside of all ranges: by address, or by key.
    single: HashMap<u64, usize, FixedState>,
    transfers: HashMap<SiteKey, (Site, u64), FixedState>,
}

/// The line of an address, while the ranges have this version.
#[derive(Clone, Copy, Default)]
struct Recent {
    address: usize,
    line: usize,
    version: u64,
}

std::thread_local! {
    static THREAD: Cell<Option<usize>> = const { Cell::new(None) };
    static MODEL: RefCell<Option<Model>> = const { RefCell::new(None) };
}

/// Makes the calling thread act as logical thread `thread`, with that ordinal and thread-local state.
///
/// # Panics
/// If `thread` is not below [`MOST_THREADS`].
pub fn run_as(thread: usize) {
    assert!(thread < MOST_THREADS, "a line has one bit for each logical thread");
    THREAD.set(Some(thread));
}

/// Returns the logical thread, if one was chosen.
pub(super) fn logical_thread() -> Option<usize> {
    THREAD.get()
}

/// Begins a new model for the calling thread, as logical thread 0. Call it before the cache is built.
pub fn begin() {
    run_as(0);
    let recent = vec![Recent::default(); RECENT];
    MODEL.set(Some(Model { recent, version: 1, ..Model::default() }));
}

/// Ends the model of the calling thread.
pub fn end() {
    MODEL.set(None);
}

/// Takes the transfers of all logical threads since the last call, the most frequent first.
pub fn take_transfers() -> Vec<Transfers> {
    let taken = with(|model| std::mem::take(&mut model.transfers)).unwrap_or_default();
    let mut sums: BTreeMap<(Site, usize), Transfers> = BTreeMap::new();
    for ((_, _, place), (site, count)) in taken {
        let place = place.unwrap_or_else(|| place_of(site.file));
        let sum = sums.entry((site, place as usize)).or_insert(Transfers { place, site, count: 0 });
        sum.count += count;
    }
    let mut transfers: Vec<Transfers> = sums.into_values().collect();
    transfers.sort_by_key(|transfers| std::cmp::Reverse(transfers.count));
    transfers
}

fn with<R>(change: impl FnOnce(&mut Model) -> R) -> Option<R> {
    // A thread that ends has no model any more.
    MODEL.try_with(|model| model.borrow_mut().as_mut().map(change)).ok().flatten()
}

/// Notes an access to the line of `value` from an atomic's caller.
pub(super) fn access<T>(value: &T, access: Access, caller: &'static Location<'static>) {
    let address = std::ptr::from_ref(value).addr();
    with(|model| {
        let line = model.line_at(address);
        model.access(line, access, Site::of(caller), None);
    });
}

/// Notes an access to the line of an address.
pub(super) fn access_at(address: usize, access: Access, site: Site, place: Place) {
    with(|model| {
        let line = model.line_at(address);
        model.access(line, access, site, Some(place));
    });
}

/// Notes an access to one of the lines that [`new_lines`] returned.
pub(super) fn access_line(line: usize, access: Access, site: Site, place: Place) {
    with(|model| model.access(line, access, site, Some(place)));
}

/// Notes an access to the line of a key.
pub(super) fn access_key(key: u64, access: Access, site: Site, place: Place) {
    with(|model| {
        // The highest bit separates keys from addresses.
        let line = model.single_line(key | 1 << 63);
        model.access(line, access, site, Some(place));
    });
}

/// Returns the first of `len` new lines, if there is a model.
pub(super) fn new_lines(len: usize) -> Option<usize> {
    with(|model| model.new_lines(len))
}

/// Numbers the lines of an array from its start.
pub(crate) fn place_array<T>(array: &[T]) {
    place_range(array.as_ptr().addr(), size_of_val(array));
}

/// Numbers the lines of `len` bytes from `start` on.
pub(super) fn place_range(start: usize, len: usize) {
    with(|model| model.place_range(start, start + len));
}

/// Forgets the range that begins at `start`, whose memory is freed.
pub(super) fn forget_range(start: usize) {
    with(|model| model.forget(start));
}

impl Site {
    pub(super) fn of(caller: &'static Location<'static>) -> Self {
        Self { file: caller.file(), line: caller.line() }
    }
}

impl std::fmt::Display for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            0 => write!(f, "drop of an Arc of {}", self.file),
            line => write!(f, "{}:{line}", self.file.trim_start_matches("src/")),
        }
    }
}

impl Model {
    fn access(&mut self, line: usize, access: Access, site: Site, place: Option<Place>) {
        let own = 1 << THREAD.get().unwrap_or(0);
        let sharers = &mut self.sharers[line];
        let is_transfer = match access {
            Access::Read => *sharers != 0 && *sharers & own == 0,
            Access::Write => *sharers & !own != 0,
        };
        match access {
            Access::Read => *sharers |= own,
            Access::Write => *sharers = own,
        }
        if is_transfer {
            let key = (site.file.as_ptr().addr(), site.line, place);
            self.transfers.entry(key).or_insert((site, 0)).1 += 1;
        }
    }

    fn new_lines(&mut self, len: usize) -> usize {
        let first = self.sharers.len().next_multiple_of(ALIGNED);
        self.sharers.resize(first + len, 0);
        first
    }

    fn line_at(&mut self, address: usize) -> usize {
        if let Some(range) = self.large.iter().find(|range| range.has(address)) {
            return range.line_at(address);
        }
        let recent = self.recent[(address >> 2) % RECENT];
        if recent.address == address && recent.version == self.version {
            return recent.line;
        }
        let line = match self.ranges.range(..=address).next_back() {
            Some((_, range)) if range.has(address) => range.line_at(address),
            _ => self.single_line((address >> LINE) as u64),
        };
        self.recent[(address >> 2) % RECENT] = Recent { address, line, version: self.version };
        line
    }

    fn single_line(&mut self, key: u64) -> usize {
        if let Some(&line) = self.single.get(&key) {
            return line;
        }
        let line = self.new_lines(1);
        self.single.insert(key, line);
        line
    }

    fn place_range(&mut self, start: usize, end: usize) {
        let overlapped = |range: &Range| range.end > start && range.start < end;
        let stale = self.ranges.range(..end).rev().take_while(|(_, range)| overlapped(range));
        let stale: Vec<usize> = stale.map(|(&start, _)| start).collect();
        stale.into_iter().for_each(|start| self.forget(start));
        let first = self.new_lines((end - start).div_ceil(1 << LINE));
        let range = Range { start, end, first };
        self.ranges.insert(start, range);
        if end - start >= LARGE {
            self.large.push(range);
        }
        self.version += 1;
    }

    fn forget(&mut self, start: usize) {
        if self.ranges.remove(&start).is_some() {
            self.large.retain(|range| range.start != start);
            self.version += 1;
        }
    }
}

impl Range {
    fn has(&self, address: usize) -> bool {
        (self.start..self.end).contains(&address)
    }

    fn line_at(&self, address: usize) -> usize {
        self.first + ((address - self.start) >> LINE)
    }
}
