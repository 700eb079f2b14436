//! `Batches`: groups events into numbered batches. An event is copied immediately and encoded later.
//!
//! `push` copies each event into the open batch. A batch is sealed when it is large enough or old enough. It
//! then has a number and is in the ring; readers ask for it by number.
//!
//! ```text
//!   push ──> open ──seal──> ring: noted ──its first reader──> written ──> readers
//!             ▲                             │
//!             └─────────── memory ──────────┘
//! ```
//!
//! The first reader of a batch encodes it, under no lock that `push` takes: emitting an event only copies it.
//! If readers fall behind, the thread that seals a batch encodes it (backpressure). Beyond that the ring drops
//! its oldest batch, and readers see a gap in the numbers.
//!
//! The first number of a publisher comes from the clock, so that after a restart it is greater than any
//! before. The first batch clears the consumer's view of the cache.

use std::mem;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::notes::Notes;
use super::ring::{Found, Ring};
use super::wire::WireFormat;
use crate::prefix::kv_event::KvEvent;
use crate::sync::outside::{Mutex, Notify};

/// The open batch is sealed above `1 / PART` of the ring's bytes.
const PART: usize = 8;

/// A batch as it is sent.
pub(super) struct EncodedBatch {
    pub(super) sequence: u64,
    pub(super) payload: Bytes,
}

/// The answer to a reader that asks for the next batch.
pub(super) enum Next {
    Batch(EncodedBatch),
    /// There is none yet. An open batch is sealed at `due`.
    Nothing {
        due: Option<Instant>,
    },
    /// There will be no further batch.
    End,
}

/// Bounds of the batches and of the ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Blocks from which a batch is sealed.
    pub(super) batch_blocks: usize,
    /// Age from which a batch is sealed.
    pub(super) batch_age: Duration,
    pub(super) ring_batches: usize,
    pub(super) ring_bytes: usize,
}

/// The batches of a publisher.
pub(super) struct Batches {
    format: WireFormat,
    bounds: Bounds,
    state: Mutex<Collecting>,
    /// Buffer in which one reader at a time encodes a batch. A reader locks it before `state`.
    page: Mutex<Vec<u8>>,
    /// Notified when a batch is begun and when one is sealed, and at the end.
    changed: Notify,
}

struct Collecting {
    open: Notes,
    open_since: Instant,
    ring: Ring,
    /// Buffer in which the sealing thread encodes a batch while readers are behind.
    page: Vec<u8>,
    closed: bool,
    blocks: u64,
    unwritten: u64,
}

/// Counts since the publisher was made.
#[derive(Clone, Copy)]
pub(super) struct BatchTotals {
    pub(super) next_sequence: u64,
    pub(super) blocks: u64,
    /// Blocks that no consumer could use.
    pub(super) unwritten: u64,
    /// Batches that the ring dropped before they were published.
    pub(super) lost: u64,
}

impl Batches {
    /// Creates the batches of a publisher. The first one clears the consumer's view.
    pub(super) fn new(format: WireFormat, bounds: Bounds) -> Self {
        let state = Collecting {
            open: Notes::default(),
            open_since: Instant::now(),
            ring: Ring::new(bounds.ring_batches, bounds.ring_bytes, first_sequence()),
            page: Vec::new(),
            closed: false,
            blocks: 0,
            unwritten: 0,
        };
        let (state, page) = (Mutex::new(state), Mutex::default());
        let batches = Self { format, bounds, state, page, changed: Notify::new() };
        batches.push(&KvEvent::AllBlocksCleared);
        batches.flush();
        batches
    }

    /// Copies an event into the open batch, if it is of a published group and medium; ignores it after [`close`](Self::close).
    pub(super) fn push(&self, event: &KvEvent<'_>) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        if !self.format.publishes(event) {
            return;
        }
        let blocks = event.hashes().len() as u64;
        if !state.open.push(event, self.format.salts) {
            state.unwritten += blocks;
            return;
        }
        state.blocks += blocks;
        if state.open.blocks() >= self.bounds.batch_blocks
            || state.open.bytes() > self.bounds.ring_bytes / PART
        {
            self.seal(&mut state);
        } else if state.open.len() == 1 {
            state.open_since = Instant::now();
            self.changed.notify_one();
        }
    }

    /// Returns the batch `sequence`, or the first one after it. Seals the open batch if it is old enough.
    pub(super) fn next(&self, sequence: u64) -> Next {
        let (mut due, mut closed) = (None, false);
        let batch = self.read(|state| {
            due = (!state.open.is_empty()).then(|| state.open_since + self.bounds.batch_age);
            if due.is_some_and(|due| due <= Instant::now()) {
                self.seal(state);
            }
            closed = state.closed;
            let found = state.ring.find(sequence)?;
            state.ring.publish(found);
            Some(found)
        });
        match batch {
            Some(batch) => Next::Batch(batch),
            None if closed => Next::End,
            None => Next::Nothing { due },
        }
    }

    /// Returns when the batches may have changed. For the one reader that waits for the next batch.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Returns the batch `sequence`, or the first one after it, if its number is below `end`.
    pub(super) fn get(&self, sequence: u64, end: u64) -> Option<EncodedBatch> {
        self.read(|state| state.ring.find(sequence).filter(|&found| found < end))
    }

    /// Seals the open batch as the last one.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        self.seal(&mut state);
        state.closed = true;
        self.changed.notify_one();
    }

    /// Seals the open batch.
    pub(super) fn flush(&self) {
        self.seal(&mut self.state.lock());
    }

    pub(super) fn totals(&self) -> BatchTotals {
        let state = self.state.lock();
        BatchTotals {
            next_sequence: state.ring.next_sequence(),
            blocks: state.blocks,
            unwritten: state.unwritten,
            lost: state.ring.lost(),
        }
    }

    /// Returns the batch whose number `find` finds, and encodes it if this has not been done.
    fn read(&self, find: impl FnOnce(&mut Collecting) -> Option<u64>) -> Option<EncodedBatch> {
        let mut page = self.page.lock();
        let mut state = self.state.lock();
        let sequence = find(&mut state)?;
        let (notes, time) = match state.ring.read(sequence) {
            Found::Noted(notes, time) => (notes, time),
            Found::Written(payload) => return Some(EncodedBatch { sequence, payload }),
        };
        drop(state);
        let payload = self.write(&notes, time, &mut page);
        self.state.lock().ring.put_back(sequence, payload.clone(), notes);
        Some(EncodedBatch { sequence, payload })
    }

    fn seal(&self, state: &mut Collecting) {
        if !state.open.is_empty() {
            let next = state.ring.room_for(&state.open);
            let notes = mem::replace(&mut state.open, next);
            if state.ring.is_behind() {
                let payload = self.write(&notes, now(), &mut state.page);
                state.ring.push_written(payload, notes);
            } else {
                state.ring.push(notes, now());
            }
            self.changed.notify_one();
        }
    }

    /// Encodes a batch that was sealed at `time`; `page` lends its memory.
    fn write(&self, notes: &Notes, time: f64, page: &mut Vec<u8>) -> Bytes {
        page.clear();
        WireFormat::write_start(time, notes.len(), page);
        notes.write(&self.format, page);
        self.format.write_end(page);
        Bytes::copy_from_slice(page)
    }
}

/// Returns a number greater than any that an earlier publisher can have reached at below 1,000,000 batches a
/// second. It is exact as a double, for consumers that have only those.
fn first_sequence() -> u64 {
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    (millis as u64) << 10
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::super::published_media::PublishedMedia;
    use super::super::samples::{removed, stored};
    use super::super::wire::Dialect;
    use super::*;
    use crate::prefix::BlockHash;

    const RING_BYTES: usize = 1 << 20;

    fn batches(batch_blocks: usize, ring_batches: usize) -> Batches {
        batches_in(RING_BYTES, batch_blocks, ring_batches)
    }

    fn batches_in(ring_bytes: usize, batch_blocks: usize, ring_batches: usize) -> Batches {
        let (dialect, batch_age) = (Dialect::Array, Duration::from_secs(60));
        let media = PublishedMedia::default();
        let format = WireFormat { dialect, media, rank: 0, salts: true, groups: None };
        Batches::new(format, Bounds { batch_blocks, batch_age, ring_batches, ring_bytes })
    }

    fn next(batches: &Batches, sequence: u64) -> Option<EncodedBatch> {
        match batches.next(sequence) {
            Next::Batch(batch) => Some(batch),
            Next::Nothing { .. } | Next::End => None,
        }
    }

    fn remove(batches: &Batches, blocks: usize) {
        let hashes: Vec<_> = (1..=blocks as u128).map(BlockHash::from_u128).collect();
        batches.push(&removed(&hashes));
    }

    #[test]
    fn the_first_batch_clears_and_its_number_is_the_times() {
        let before = first_sequence();
        let batches = batches(10, 10);
        let first = next(&batches, 0).unwrap();
        assert!((before..=first_sequence()).contains(&first.sequence));
        assert!(first.payload.ends_with(b"AllBlocksCleared\0"));
        assert!(first.sequence < 1 << 53);
    }

    #[test]
    fn a_batch_is_sealed_by_its_blocks_and_numbers_are_consecutive() {
        let batches = batches(10, 10);
        let first = batches.totals().next_sequence;
        (0..6).for_each(|_| remove(&batches, 5));
        assert_eq!(batches.totals().next_sequence, first + 3);
        assert_eq!(next(&batches, first + 1).unwrap().sequence, first + 1);
        assert!(batches.get(first + 3, u64::MAX).is_none());
    }

    #[test]
    fn batches_dropped_by_the_ring_leave_a_gap() {
        let batches = batches(1, 4);
        let first = batches.totals().next_sequence;
        (0..10).for_each(|_| remove(&batches, 1));
        assert_eq!(next(&batches, first).unwrap().sequence, first + 6);
        assert_eq!(batches.get(first, first + 6).map(|batch| batch.sequence), None);
    }

    #[test]
    fn the_bytes_of_the_ring_are_bounded() {
        let batches = batches(1, usize::MAX);
        let first = batches.totals().next_sequence;
        (0..100).for_each(|_| remove(&batches, 10_000)); // of 160 kB
        assert!(next(&batches, first).unwrap().sequence > first + 80);
    }

    fn store(batches: &Batches, blocks: usize, block_size: usize) {
        let hashes: Vec<_> = (1..=blocks as u128).map(BlockHash::from_u128).collect();
        batches.push(&stored(&hashes, &vec![70_000; blocks * block_size]));
    }

    #[test]
    fn a_batch_of_few_blocks_with_many_tokens_is_bounded_too() {
        let batches = batches(1_000, usize::MAX);
        let first = batches.totals().next_sequence;
        for round in 0..100 {
            store(&batches, 1, 10_000); // of 40 kB
            let state = batches.state.lock();
            assert!(state.open.held() <= 2 * (RING_BYTES / PART + 50_000), "round {round}");
        }
        assert!(batches.totals().next_sequence >= first + 20);
    }

    #[test]
    fn unread_dropped_batches_are_counted_and_leave_a_gap() {
        let batches = batches(1, 4);
        let first = batches.totals().next_sequence - 1;
        assert_eq!(next(&batches, first).unwrap().sequence, first);
        (0..3).for_each(|_| remove(&batches, 1));
        assert_eq!(batches.totals().lost, 0, "what was read is no loss");
        (0..7).for_each(|_| remove(&batches, 1));
        assert_eq!(batches.totals().lost, 6);
        assert_eq!(next(&batches, first + 1).unwrap().sequence, first + 7);
        for sequence in first + 8..first + 11 {
            assert_eq!(next(&batches, sequence).unwrap().sequence, sequence);
        }
        (0..4).for_each(|_| remove(&batches, 1));
        assert_eq!(batches.totals().lost, 6);
        assert!(matches!(batches.next(first + 15), Next::Nothing { .. }));
    }

    #[test]
    fn a_batch_is_the_same_whenever_it_is_read() {
        let batches = batches(10, 100);
        let first = batches.totals().next_sequence;
        (0..5).for_each(|_| remove(&batches, 10));
        let late = batches.get(first + 3, u64::MAX).unwrap();
        let all = (first..first + 5).map(|at| next(&batches, at).unwrap());
        let all: Vec<_> = all.map(|batch| (batch.sequence, batch.payload)).collect();
        assert_eq!(all[3], (late.sequence, late.payload));
        for (sequence, payload) in all {
            assert_eq!(batches.get(sequence, u64::MAX).unwrap().payload, payload);
        }
    }

    #[test]
    fn the_emitter_writes_the_same_payloads_when_readers_lag() {
        let batches = batches(10, 40);
        let first = batches.totals().next_sequence;
        (0..30).for_each(|_| remove(&batches, 10));
        let written = batches.state.lock().page.len();
        let payloads = (first..first + 30).map(|at| next(&batches, at).unwrap().payload);
        let payloads: Vec<_> = payloads.collect();
        assert_eq!(payloads[29].len(), written, "the last one was written when it was sealed");
        // After the array's head and the time.
        assert!(payloads.iter().all(|payload| payload[10..] == payloads[0][10..]));
        assert_eq!(batches.totals().lost, 0);
        batches.state.lock().page.clear();
        remove(&batches, 10);
        assert!(batches.state.lock().page.is_empty(), "they are not behind any more");
    }

    /// One thread pushes while another one reads. The order is kept, and the end is read last.
    #[test]
    fn all_that_is_told_is_read_in_its_order_up_to_the_end() {
        const TOLD: u64 = 20_000;
        let batches = batches_in(usize::MAX, 7, usize::MAX);
        let first = batches.totals().next_sequence;
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let (mut hashes, mut sequence) = (Vec::new(), first);
                loop {
                    match batches.next(sequence) {
                        Next::Batch(batch) => {
                            assert_eq!(batch.sequence, sequence, "no gap");
                            sequence += 1;
                            hashes.extend(hashes_in(&batch.payload));
                        }
                        Next::Nothing { .. } => std::thread::yield_now(),
                        Next::End => return hashes,
                    }
                }
            });
            for hash in 0..TOLD {
                let hashes = [BlockHash::from_u128((MARK | hash).into())];
                batches.push(&removed(&hashes));
                if hash % 1_000 == 0 {
                    batches.flush();
                }
            }
            batches.close();
            assert!(reader.join().unwrap().into_iter().eq(0..TOLD));
        });
        assert_eq!(batches.totals().lost, 0);
    }

    /// The upper 48 bits of the hashes that [`hashes_in`] finds.
    const MARK: u64 = 0xabcd_ef01_2345_0000;

    /// Returns the lower 16 bits of all hashes with the mark.
    fn hashes_in(payload: &[u8]) -> impl Iterator<Item = u64> {
        let words = payload.windows(9).filter(|window| window[0] == 0xcf);
        let words = words.filter_map(|window| window[1..].try_into().ok().map(u64::from_be_bytes));
        words.filter(|word| word & MARK == MARK).map(|word| word & !MARK)
    }

    #[test]
    fn closing_seals_the_open_batch_and_ends_the_stream() {
        let batches = batches(10, 10);
        let first = batches.totals().next_sequence;
        remove(&batches, 1);
        batches.close();
        assert_eq!(next(&batches, first).unwrap().sequence, first);
        assert!(matches!(batches.next(first + 1), Next::End));
        remove(&batches, 10);
        assert!(matches!(batches.next(first + 1), Next::End), "nothing comes after the end");
    }

    #[test]
    fn a_batch_old_enough_is_sealed_at_any_size() {
        let mut batches = batches(10, 10);
        let first = batches.totals().next_sequence;
        assert!(matches!(batches.next(first), Next::Nothing { due: None }));
        remove(&batches, 1);
        let Next::Nothing { due: Some(due) } = batches.next(first) else {
            panic!("it is a minute too young")
        };
        assert!(due > Instant::now());
        batches.bounds.batch_age = Duration::ZERO;
        assert_eq!(next(&batches, first).unwrap().sequence, first);
    }
}
