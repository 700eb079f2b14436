//! `Recent`: the last published batches, from which all slow subscribers are served.
//!
//! A subscriber has a position instead of a queue. If a slow subscriber finds its batch dropped, it continues
//! with the oldest batch that is left: it sees a gap in the numbers. So the memory for all slow subscribers
//! together is that of one queue.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::sync::outside::{Mutex, watch};

/// Bytes up to which batches are sent together.
pub(in crate::event) const TOGETHER: usize = 16 << 10;

/// The last published batches.
pub(in crate::event) struct Recent {
    batches_max: usize,
    bytes_max: usize,
    kept: Mutex<RecentMessages>,
    end: watch::Sender<End>,
}

/// The progress of publishing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::event) struct End {
    /// The position of the next batch.
    pub(in crate::event) position: u64,
    /// True if no further batch comes.
    pub(in crate::event) is_closed: bool,
}

#[derive(Default)]
struct RecentMessages {
    messages: VecDeque<Message>,
    bytes: usize,
    /// The position of the oldest batch.
    oldest: u64,
    /// Batches that were dropped before subscribers read them.
    missed: u64,
}

/// A batch as it is sent.
#[derive(Clone)]
pub(in crate::event) struct Message {
    /// All bytes before the payload.
    pub(in crate::event) head: Bytes,
    pub(in crate::event) payload: Bytes,
}

/// Returns when no further batch comes.
pub(in crate::event) async fn closed(end: &mut watch::Receiver<End>) {
    // An error means that the publisher was dropped.
    let _ = end.wait_for(|end| end.is_closed).await;
}

impl Message {
    fn len(&self) -> usize {
        self.head.len() + self.payload.len()
    }
}

impl Recent {
    /// Keeps at most `batches_max` batches and `bytes_max` bytes, but at least one batch.
    pub(in crate::event) fn new(batches_max: usize, bytes_max: usize) -> Self {
        let end = watch::Sender::new(End::default());
        Self { batches_max, bytes_max, kept: Mutex::default(), end }
    }

    /// Adds a batch and wakes the subscribers.
    pub(in crate::event) fn push(&self, message: Message) {
        let mut kept = self.kept.lock();
        kept.bytes += message.len();
        kept.messages.push_back(message);
        while kept.messages.len() > self.batches_max.max(1)
            || kept.bytes > self.bytes_max && kept.messages.len() > 1
        {
            let oldest = kept.messages.pop_front().expect("it is not empty");
            kept.bytes -= oldest.len();
            kept.oldest += 1;
        }
        drop(kept);
        self.end.send_modify(|end| end.position += 1);
    }

    /// Notes that no further batch comes.
    pub(in crate::event) fn close(&self) {
        self.end.send_modify(|end| end.is_closed = true);
    }

    /// Returns a receiver of the progress of publishing, from now on.
    pub(in crate::event) fn end(&self) -> watch::Receiver<End> {
        self.end.subscribe()
    }

    /// Takes the batch at `position`, or the oldest after it, and advances `position`. Takes further batches
    /// while all of them together have at most [`TOGETHER`] bytes.
    pub(in crate::event) fn take(&self, position: &mut u64) -> Vec<Message> {
        let mut kept = self.kept.lock();
        kept.missed += kept.oldest.saturating_sub(*position);
        *position = kept.oldest.max(*position);
        let mut bytes = 0;
        let from = kept.messages.iter().skip((*position - kept.oldest) as usize);
        let taken: Vec<_> = from
            .take_while(|message| {
                let is_first = bytes == 0;
                bytes += message.len();
                is_first || bytes <= TOGETHER
            })
            .cloned()
            .collect();
        *position += taken.len() as u64;
        taken
    }

    /// Counts the batches that a subscriber missed before it disconnects at `position`.
    pub(in crate::event) fn leave(&self, position: u64) {
        let mut kept = self.kept.lock();
        kept.missed += kept.oldest.saturating_sub(position);
    }

    /// Returns the number of batches that slow subscribers missed, counted for each.
    pub(in crate::event) fn missed(&self) -> u64 {
        self.kept.lock().missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(number: u8, len: usize) -> Message {
        Message { head: Bytes::copy_from_slice(&[number]), payload: vec![number; len].into() }
    }

    fn take(recent: &Recent, position: &mut u64) -> Vec<u8> {
        recent.take(position).iter().map(|message| message.head[0]).collect()
    }

    #[test]
    fn a_timely_reader_receives_every_batch() {
        let recent = Recent::new(4, 1 << 20);
        let mut position = recent.end().borrow().position;
        assert!(take(&recent, &mut position).is_empty());
        for number in 0..20 {
            recent.push(message(number, 10));
            assert_eq!(take(&recent, &mut position), [number]);
            assert!(take(&recent, &mut position).is_empty());
        }
        assert_eq!(recent.missed(), 0);
    }

    #[test]
    fn a_slow_subscriber_misses_the_messages_over_the_bounds() {
        for (recent, kept) in [(Recent::new(4, 1 << 20), 4), (Recent::new(100, 22), 2)] {
            let mut position = 0;
            (0..20).for_each(|number| recent.push(message(number, 10)));
            let taken = take(&recent, &mut position);
            assert_eq!(taken, Vec::from_iter(20 - kept..20));
            assert_eq!(recent.missed(), 20 - u64::from(kept));
            assert_eq!(recent.kept.lock().bytes, 11 * usize::from(kept));
        }
    }

    #[test]
    fn a_batch_over_the_bytes_is_kept_alone() {
        let recent = Recent::new(4, 5);
        (0..3).for_each(|number| recent.push(message(number, 10)));
        assert_eq!(take(&recent, &mut 0), [2]);
    }

    #[test]
    fn small_batches_are_taken_together_and_large_ones_alone() {
        let recent = Recent::new(100, 1 << 20);
        let lens = [100, TOGETHER / 2, TOGETHER / 2, TOGETHER * 2, 1, 1];
        (0..).zip(lens).for_each(|(number, len)| recent.push(message(number, len)));
        let mut position = 0;
        for taken in [&[0, 1][..], &[2], &[3], &[4, 5], &[]] {
            assert_eq!(take(&recent, &mut position), taken);
        }
    }

    #[test]
    fn messages_unread_when_a_subscriber_leaves_count_as_missed() {
        let recent = Recent::new(4, 1 << 20);
        (0..20).for_each(|number| recent.push(message(number, 10)));
        recent.leave(3);
        recent.leave(20);
        assert_eq!(recent.missed(), 13);
    }
}
