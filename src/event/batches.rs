//! Which events go out together, and which can still be asked for? A ring of numbered batches.
//!
//! Events are written into the open batch as they come. It is sealed when it holds enough blocks or is
//! old enough, and then has a number, one more than the batch before. The ring keeps the last ones,
//! bounded in number and in bytes; readers come by number. What the ring has let go of is missing from
//! the numbers that a reader sees: a loss is a gap.
//!
//! The first number of a publisher comes from the clock, so that after a restart it is greater than any
//! before, and its first batch says that nothing is cached.
//!
//! It does not know who reads.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use super::kv_event::KvEvent;
use super::wire::{HEADER, WireFormat};
use crate::sync::outside::{Mutex, Notify};

/// A batch as it goes out.
#[derive(Clone)]
pub(super) struct Batch {
    pub(super) sequence: u64,
    pub(super) payload: Bytes,
    /// Bytes of memory that it holds.
    held: usize,
}

/// What a reader finds that wants the next batch.
pub(super) enum Next {
    Batch(Batch),
    /// None yet. If something is open, it is sealed then.
    Nothing {
        due: Option<Instant>,
    },
    /// None any more.
    End,
}

/// What bounds batches and the ring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Blocks of a batch, from which it is sealed.
    pub(super) batch_blocks: usize,
    /// Age of a batch, from which it is sealed.
    pub(super) batch_age: Duration,
    pub(super) ring_batches: usize,
    pub(super) ring_bytes: usize,
}

/// The batches of a publisher.
pub(super) struct Batches {
    format: WireFormat,
    bounds: Bounds,
    state: Mutex<State>,
    /// Notified when a batch is begun and when one is sealed, and at the end.
    changed: Notify,
}

struct State {
    open: Vec<u8>,
    open_events: u32,
    open_blocks: usize,
    open_since: Instant,
    ring: VecDeque<Batch>,
    ring_bytes: usize,
    next_sequence: u64,
    closed: bool,
    blocks: u64,
    unwritten: u64,
}

/// What went through so far.
#[derive(Clone, Copy)]
pub(super) struct Totals {
    pub(super) next_sequence: u64,
    pub(super) blocks: u64,
    pub(super) unwritten: u64,
}

impl Batches {
    /// Begins with a batch that clears what was there before.
    pub(super) fn new(format: WireFormat, bounds: Bounds) -> Self {
        let state = State {
            open: vec![0; HEADER],
            open_events: 0,
            open_blocks: 0,
            open_since: Instant::now(),
            ring: VecDeque::new(),
            ring_bytes: 0,
            next_sequence: first_sequence(),
            closed: false,
            blocks: 0,
            unwritten: 0,
        };
        let batches = Self { format, bounds, state: Mutex::new(state), changed: Notify::new() };
        batches.push(&KvEvent::AllBlocksCleared);
        batches.seal(&mut batches.state.lock());
        batches
    }

    /// Writes an event into the open batch; after the end, nowhere.
    pub(super) fn push(&self, event: &KvEvent<'_>) {
        let mut state = self.state.lock();
        if state.closed {
            return;
        }
        let blocks = event.hashes().len();
        if !self.format.write(event, &mut state.open) {
            state.unwritten += blocks as u64;
            return;
        }
        state.open_events += 1;
        state.open_blocks += blocks;
        state.blocks += blocks as u64;
        if state.open_blocks >= self.bounds.batch_blocks {
            self.seal(&mut state);
        } else if state.open_events == 1 {
            state.open_since = Instant::now();
            self.changed.notify_one();
        }
    }

    /// The batch `sequence`, or the first behind it that there is. Seals what is open and old enough.
    pub(super) fn next(&self, sequence: u64) -> Next {
        let mut state = self.state.lock();
        let due = (state.open_events > 0).then(|| state.open_since + self.bounds.batch_age);
        let is_due = due.is_some_and(|due| due <= Instant::now());
        if is_due {
            self.seal(&mut state);
        }
        match state.get(sequence) {
            Some(batch) => Next::Batch(batch),
            None if state.closed => Next::End,
            None => Next::Nothing { due },
        }
    }

    /// Returns when something may have changed for the one reader that waits for the next batch.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The batch `sequence`, or the first behind it that there is, of those before `end`.
    pub(super) fn get(&self, sequence: u64, end: u64) -> Option<Batch> {
        self.state.lock().get(sequence).filter(|batch| batch.sequence < end)
    }

    /// Seals what is open, as the last batch.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        self.seal(&mut state);
        state.closed = true;
        self.changed.notify_one();
    }

    /// Seals what is open.
    pub(super) fn flush(&self) {
        self.seal(&mut self.state.lock());
    }

    pub(super) fn totals(&self) -> Totals {
        let state = self.state.lock();
        let State { next_sequence, blocks, unwritten, .. } = *state;
        Totals { next_sequence, blocks, unwritten }
    }

    fn seal(&self, state: &mut State) {
        if state.open_events == 0 {
            return;
        }
        // As much as the last one took, more or less.
        let mut next = Vec::with_capacity(state.open.len() + HEADER);
        next.resize(HEADER, 0);
        let mut bytes = std::mem::replace(&mut state.open, next);
        self.format.write_end(&mut bytes);
        let header = bytes.first_chunk_mut().expect("every batch begins with room for its header");
        let start = WireFormat::write_header(now(), state.open_events, header);
        (state.open_events, state.open_blocks) = (0, 0);
        let held = bytes.capacity();
        let payload = Bytes::from(bytes).slice(start..);
        let batch = Batch { sequence: state.next_sequence, payload, held };
        state.next_sequence += 1;
        state.ring_bytes += held;
        state.ring.push_back(batch);
        while state.ring.len() > self.bounds.ring_batches
            || state.ring_bytes > self.bounds.ring_bytes && state.ring.len() > 1
        {
            let oldest = state.ring.pop_front().expect("it is not empty");
            state.ring_bytes -= oldest.held;
        }
        self.changed.notify_one();
    }
}

impl State {
    fn get(&self, sequence: u64) -> Option<Batch> {
        let oldest = self.ring.front()?.sequence;
        let at = usize::try_from(sequence.saturating_sub(oldest)).ok()?;
        self.ring.get(at).cloned()
    }
}

/// Greater than any number that a publisher of an earlier time can have come to, at less than a million
/// batches a second; and exact as a double, for consumers that have only those.
fn first_sequence() -> u64 {
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    (millis as u64) << 10
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::super::wire::Dialect;
    use super::*;
    use crate::prefix::BlockHash;

    fn batches(batch_blocks: usize, ring_batches: usize) -> Batches {
        let format = WireFormat { dialect: Dialect::Array, medium: "GPU".to_owned(), rank: 0 };
        let batch_age = Duration::from_secs(60);
        let bounds = Bounds { batch_blocks, batch_age, ring_batches, ring_bytes: 1 << 20 };
        Batches::new(format, bounds)
    }

    fn next(batches: &Batches, sequence: u64) -> Option<Batch> {
        match batches.next(sequence) {
            Next::Batch(batch) => Some(batch),
            Next::Nothing { .. } | Next::End => None,
        }
    }

    fn remove(batches: &Batches, blocks: usize) {
        let hashes: Vec<_> = (1..=blocks as u128).map(BlockHash::from_u128).collect();
        batches.push(&KvEvent::BlockRemoved { hashes: &hashes });
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
    fn what_the_ring_let_go_of_is_a_gap() {
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
        (0..100).for_each(|_| remove(&batches, 10_000)); // of 90 kB
        assert!(next(&batches, first).unwrap().sequence > first + 80);
        assert!(batches.state.lock().ring_bytes <= 1 << 20);
    }

    #[test]
    fn closing_seals_what_is_open_and_ends_all() {
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
    fn what_is_old_enough_is_sealed_however_small() {
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
