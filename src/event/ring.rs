//! `Ring`: the last batches, bounded in number and in bytes.
//!
//! Each batch has a number, one more than the batch before. It is added as notes. Its first reader takes the
//! notes out, encodes them, and puts the payload back. The ring drops its oldest batches, encoded or not, to
//! stay within its bounds. A reader of a dropped batch gets the next one, and sees a gap.
//!
//! The memory of notes that were encoded or dropped is kept for later batches, up to a part of the ring's
//! bytes.

use std::collections::VecDeque;
use std::mem;

use bytes::Bytes;

use super::notes::Notes;

/// At most `1 / PART` of the ring's bytes is kept as memory for later batches.
const PART: usize = 8;

/// Readers are behind when more than `1 / BEHIND` of the ring is not encoded.
const BEHIND: usize = 4;

/// The last batches.
pub(super) struct Ring {
    batches_max: usize,
    bytes_max: usize,
    batches: VecDeque<KeptBatch>,
    bytes: usize,
    /// Batches that are not encoded yet, and their bytes.
    noted: usize,
    noted_bytes: usize,
    /// Empty notes, kept for their memory.
    spare: Vec<Notes>,
    spare_bytes: usize,
    next_sequence: u64,
    /// All batches before this number were published or lost.
    published: u64,
    lost: u64,
}

struct KeptBatch {
    sequence: u64,
    contents: Contents,
    /// Bytes of memory.
    held: usize,
}

enum Contents {
    /// Not encoded, with the time when the batch was sealed.
    Noted(Notes, f64),
    /// Taken out by a reader that encodes it.
    Out,
    Written(Bytes),
}

/// The content of a batch for its reader.
pub(super) enum Found {
    /// The reader encodes this and puts it back. With the time when the batch was sealed.
    Noted(Notes, f64),
    Written(Bytes),
}

impl Ring {
    /// Creates a ring of at most `batches_max` batches and `bytes_max` bytes, but at least one batch. The first
    /// batch has the number `first`.
    pub(super) fn new(batches_max: usize, bytes_max: usize, first: u64) -> Self {
        Self {
            batches_max,
            bytes_max,
            batches: VecDeque::new(),
            bytes: 0,
            noted: 0,
            noted_bytes: 0,
            spare: Vec::new(),
            spare_bytes: 0,
            next_sequence: first,
            published: first,
            lost: 0,
        }
    }

    /// Returns the number of the next batch.
    pub(super) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Returns the number of batches that were dropped before they were published.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// Returns true if readers are so far behind that the thread that adds a batch should encode it.
    pub(super) fn is_behind(&self) -> bool {
        self.noted > self.batches_max / BEHIND || self.noted_bytes > self.bytes_max / BEHIND
    }

    /// Adds a batch that is not encoded, sealed at `time`.
    pub(super) fn push(&mut self, notes: Notes, time: f64) {
        let held = notes.held();
        self.noted += 1;
        self.noted_bytes += held;
        self.add(Contents::Noted(notes, time), held);
    }

    /// Adds an encoded batch, and keeps the memory of its notes.
    pub(super) fn push_written(&mut self, payload: Bytes, notes: Notes) {
        let held = payload.len();
        self.keep_memory(notes);
        self.add(Contents::Written(payload), held);
    }

    /// Returns the number of the batch `sequence`, or of the first one after it.
    pub(super) fn find(&self, sequence: u64) -> Option<u64> {
        let oldest = self.batches.front()?.sequence;
        Some(sequence.max(oldest)).filter(|&found| found < self.next_sequence)
    }

    /// Returns the content of a batch that was just found. Takes the notes out if it is not encoded.
    pub(super) fn read(&mut self, sequence: u64) -> Found {
        let kept = self.get(sequence).expect("it was found");
        match mem::replace(&mut kept.contents, Contents::Out) {
            Contents::Noted(notes, time) => {
                self.noted -= 1;
                self.noted_bytes -= notes.held();
                Found::Noted(notes, time)
            }
            Contents::Written(payload) => {
                kept.contents = Contents::Written(payload.clone());
                Found::Written(payload)
            }
            Contents::Out => unreachable!("batches are taken out one at a time"),
        }
    }

    /// Notes that all batches up to `sequence` have been published, except the lost ones.
    pub(super) fn publish(&mut self, sequence: u64) {
        self.published = self.published.max(sequence + 1);
    }

    /// Puts back a batch that was taken out, unless it has been dropped. Keeps the memory of its notes.
    pub(super) fn put_back(&mut self, sequence: u64, payload: Bytes, notes: Notes) {
        self.keep_memory(notes);
        if let Some(kept) = self.get(sequence) {
            let (before, now) = (mem::replace(&mut kept.held, payload.len()), payload.len());
            kept.contents = Contents::Written(payload);
            self.bytes = self.bytes - before + now;
            self.let_go();
        }
    }

    /// Returns empty notes with room for those of `others`.
    pub(super) fn room_for(&mut self, others: &Notes) -> Notes {
        match self.spare.pop() {
            Some(notes) => {
                self.spare_bytes -= notes.held();
                notes
            }
            None => Notes::with_room_of(others),
        }
    }

    fn add(&mut self, contents: Contents, held: usize) {
        self.batches.push_back(KeptBatch { sequence: self.next_sequence, contents, held });
        self.next_sequence += 1;
        self.bytes += held;
        self.let_go();
    }

    fn get(&mut self, sequence: u64) -> Option<&mut KeptBatch> {
        let oldest = self.batches.front()?.sequence;
        self.batches.get_mut(usize::try_from(sequence.checked_sub(oldest)?).ok()?)
    }

    /// Drops the oldest batches until the rest is within the bounds.
    fn let_go(&mut self) {
        while self.batches.len() > self.batches_max
            || self.bytes > self.bytes_max && self.batches.len() > 1
        {
            let oldest = self.batches.pop_front().expect("it is not empty");
            self.bytes -= oldest.held;
            self.lost += u64::from(oldest.sequence >= self.published);
            if let Contents::Noted(notes, _) = oldest.contents {
                self.noted -= 1;
                self.noted_bytes -= notes.held();
                self.keep_memory(notes);
            }
        }
    }

    /// Keeps the memory of used notes, unless there is enough.
    fn keep_memory(&mut self, mut notes: Notes) {
        notes.clear();
        let held = notes.held();
        if self.spare_bytes + held <= self.bytes_max / PART {
            self.spare_bytes += held;
            self.spare.push(notes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::removed;
    use super::*;
    use crate::prefix::BlockHash;

    const BYTES: usize = 1 << 20;

    /// Adds a batch of `blocks` removed blocks, in memory that the ring kept.
    fn push(ring: &mut Ring, blocks: usize) {
        let hashes: Vec<_> = (1..=blocks as u128).map(BlockHash::from_u128).collect();
        let mut notes = ring.room_for(&Notes::default());
        assert!(notes.is_empty() && notes.push(&removed(&hashes), true));
        ring.push(notes, 1.5);
        assert_true(ring);
    }

    /// Checks that the ring's totals match its content and its bounds.
    fn assert_true(ring: &Ring) {
        let held = ring.batches.iter().map(|kept| match &kept.contents {
            Contents::Noted(notes, _) => notes.held(),
            Contents::Out => kept.held,
            Contents::Written(payload) => payload.len(),
        });
        assert_eq!(held.sum::<usize>(), ring.bytes);
        let noted = ring.batches.iter().filter(|kept| matches!(kept.contents, Contents::Noted(..)));
        assert_eq!(noted.clone().count(), ring.noted);
        assert_eq!(noted.map(|kept| kept.held).sum::<usize>(), ring.noted_bytes);
        assert_eq!(ring.spare.iter().map(Notes::held).sum::<usize>(), ring.spare_bytes);
        assert!(ring.spare.iter().all(Notes::is_empty));
        assert!(ring.bytes <= BYTES && ring.spare_bytes <= BYTES / PART);
        assert!(ring.batches.len() <= ring.batches_max);
    }

    #[test]
    fn bytes_are_bounded_noted_and_written() {
        let mut ring = Ring::new(usize::MAX, BYTES, 0);
        (0..100).for_each(|_| push(&mut ring, 10_000)); // of 160 kB
        assert_eq!(ring.find(0), Some(94));
        for sequence in 94..100 {
            let Found::Noted(notes, _) = ring.read(sequence) else { panic!("nobody wrote it") };
            ring.put_back(sequence, vec![0; 90_000].into(), notes);
            assert_true(&ring);
        }
        (0..100).for_each(|_| push(&mut ring, 100));
        assert_eq!(ring.find(0), Some(94), "written they leave room");
        (0..10_000).for_each(|_| push(&mut ring, 100));
        assert!(ring.find(0) > Some(9_000));
    }

    #[test]
    fn batches_dropped_before_their_publication_are_lost() {
        let mut ring = Ring::new(4, BYTES, 7);
        (0..4).for_each(|_| push(&mut ring, 1));
        ring.publish(8);
        (0..3).for_each(|_| push(&mut ring, 1));
        assert_eq!(
            (ring.lost(), ring.find(9)),
            (1, Some(10)),
            "7 and 8 were published, and 9 is lost"
        );
        ring.publish(10);
        (0..4).for_each(|_| push(&mut ring, 1));
        assert_eq!((ring.lost(), ring.find(11)), (4, Some(14)), "so are 11 to 13");
        assert_eq!(ring.next_sequence(), 18);
    }

    #[test]
    fn readers_are_behind_when_a_quarter_is_still_to_be_written() {
        let mut ring = Ring::new(40, BYTES, 0);
        for sequence in 0..10 {
            push(&mut ring, 1);
            assert!(!ring.is_behind(), "{sequence}");
        }
        push(&mut ring, 1);
        assert!(ring.is_behind(), "11 of 40");
        let Found::Noted(notes, _) = ring.read(3) else { panic!("nobody wrote it") };
        assert!(!ring.is_behind());
        ring.put_back(3, Bytes::from_static(b"written"), notes);
        ring.push_written(Bytes::from_static(b"written"), Notes::default());
        assert_true(&ring);
        assert!(!ring.is_behind());
        push(&mut ring, 20_000); // of 320 kB
        assert!(ring.is_behind());
        assert!(matches!(ring.read(11), Found::Written(_)));
    }

    #[test]
    fn a_batch_dropped_while_it_is_written_is_not_restored() {
        let mut ring = Ring::new(2, BYTES, 0);
        push(&mut ring, 1);
        let Found::Noted(notes, time) = ring.read(0) else { panic!("nobody wrote it") };
        assert_eq!(time, 1.5);
        (0..2).for_each(|_| push(&mut ring, 1));
        ring.put_back(0, Bytes::from_static(b"late"), notes);
        assert_true(&ring);
        assert_eq!(ring.find(0), Some(1));
        assert!(matches!(ring.read(1), Found::Noted(..)));
    }

    #[test]
    fn the_memory_of_written_and_dropped_batches_is_reused() {
        let mut ring = Ring::new(2, BYTES, 0);
        push(&mut ring, 100);
        let Found::Noted(notes, _) = ring.read(0) else { panic!("nobody wrote it") };
        let held = notes.held();
        assert_eq!(ring.room_for(&Notes::default()).held(), 0);
        ring.put_back(0, Bytes::from_static(b"written"), notes);
        assert_eq!(ring.room_for(&Notes::default()).held(), held);
        (0..2).for_each(|_| push(&mut ring, 100));
        assert_eq!((ring.find(0), ring.room_for(&Notes::default()).held()), (Some(1), 0));
        push(&mut ring, 100);
        assert_eq!((ring.find(0), ring.room_for(&Notes::default()).held()), (Some(2), held));
    }

    #[test]
    fn a_batch_is_there_under_its_number_and_no_other() {
        let mut ring = Ring::new(3, BYTES, 5);
        assert_eq!(ring.find(0), None);
        (0..5).for_each(|_| push(&mut ring, 1));
        let found: Vec<_> = (5..11).map(|sequence| ring.find(sequence)).collect();
        assert_eq!(found, [Some(7), Some(7), Some(7), Some(8), Some(9), None]);
    }
}
