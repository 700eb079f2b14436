//! [`Slots`]: the table with the state of every open step. It grows, and its slots never move.
//!
//! The first chunk of slots exists from the start. Each later chunk is as long as all chunks before it
//! together. Its memory is never freed. The number of slots is at most twice the highest number of
//! simultaneously open steps, or [`FIRST`]. A slot takes about 140 bytes.
//!
//! Invariant: a thread can see the chunk of every slot that it can know. It knows a slot because it
//! read the number of slots, or because it was given an `InFlightStep`.

use super::Deferred;
use crate::sync::{AtomicU64, AtomicUsize, CachePadded, Mutex, OnceLock, Ordering, place_array};

/// Slots of the first chunk.
pub(super) const FIRST: usize = if cfg!(paged_kv_loom) { 2 } else { 64 };

/// The most chunks after the first: 2^31 slots in all.
const MORE: usize = 25;

/// The slots of the steps of a pool.
pub(super) struct Slots {
    /// The number of slots.
    len: AtomicUsize,
    first: Chunk,
    more: [OnceLock<Chunk>; MORE],
    /// A thread holds this lock while it adds a chunk.
    growing: Mutex<()>,
}

/// Slots that were allocated together.
pub(super) struct Chunk {
    /// The number of the first slot.
    pub(super) start: usize,
    /// Adjacent, because a thread that searches for a step reads all of them.
    words: Box<[AtomicU64]>,
    held: Box<[CachePadded<Mutex<Deferred>>]>,
}

impl Chunk {
    fn new(start: usize, len: usize) -> Self {
        let words: Box<[AtomicU64]> = (0..len).map(|_| AtomicU64::new(0)).collect();
        place_array(&words);
        Self {
            start,
            words,
            held: (0..len).map(|_| CachePadded::new(Mutex::new(Deferred::default()))).collect(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.words.len()
    }
}

impl Slots {
    pub(super) fn new() -> Self {
        Self {
            len: AtomicUsize::new(FIRST),
            first: Chunk::new(0, FIRST),
            more: [const { OnceLock::new() }; MORE],
            growing: Mutex::new(()),
        }
    }

    /// Returns the number of slots. It includes the slot of every step that the calling thread can
    /// know.
    pub(super) fn len(&self) -> usize {
        // Acquire: pairs with `grow`; the slots of the new chunk are there.
        // Loom: more_steps_than_the_first_slots_are_open_at_once.
        self.len.load(Ordering::Acquire)
    }

    /// Returns the chunks of the first `len` slots, in order.
    fn chunks(&self, len: usize) -> impl Iterator<Item = &Chunk> {
        let more = self.more.iter().map_while(OnceLock::get);
        std::iter::once(&self.first).chain(more).take_while(move |chunk| chunk.start < len)
    }

    /// Returns the words of the first `len` slots, in order.
    pub(super) fn words(&self, len: usize) -> impl Iterator<Item = &AtomicU64> {
        self.chunks(len).flat_map(|chunk| &chunk.words)
    }

    /// Returns the first `len` slots in the order in which a thread tries them. In each chunk a thread
    /// begins at a place of its own, so that threads rarely try one slot together.
    pub(super) fn order_for(&self, len: usize, place: usize) -> impl Iterator<Item = usize> {
        self.chunks(len).flat_map(move |chunk| {
            (0..chunk.len()).map(move |step| chunk.start + place.wrapping_add(step) % chunk.len())
        })
    }

    pub(super) fn word(&self, slot: usize) -> &AtomicU64 {
        let chunk = self.chunk(slot);
        &chunk.words[slot - chunk.start]
    }

    pub(super) fn held(&self, slot: usize) -> &Mutex<Deferred> {
        let chunk = self.chunk(slot);
        &chunk.held[slot - chunk.start]
    }

    fn chunk(&self, slot: usize) -> &Chunk {
        if slot < FIRST {
            return &self.first;
        }
        let chunk = self.more[(slot / FIRST).ilog2() as usize].get();
        chunk.expect("a slot that a thread knows of is there")
    }

    /// Adds a chunk if there are `len` slots; otherwise another thread has added one.
    #[cold]
    pub(super) fn grow(&self, len: usize) {
        let _growing = self.growing.lock();
        if self.len() > len {
            return;
        }
        let next = self.more.get((len / FIRST).ilog2() as usize);
        let next = next.expect("there is no memory for the steps that 2^31 slots stand for");
        let added = next.set(Chunk::new(len, len));
        assert!(added.is_ok(), "chunks are added one at a time");
        // Release: pairs with the load in `len`.
        self.len.store(2 * len, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_chunk_doubles_the_slots_and_none_moves() {
        let slots = Slots::new();
        for slot in 0..FIRST {
            slots.word(slot).store(slot as u64, Ordering::Relaxed);
        }
        let first: *const AtomicU64 = slots.word(0);
        for round in 0..5 {
            let len = FIRST << round;
            assert_eq!(slots.len(), len);
            slots.grow(len / 2);
            assert_eq!(slots.len(), len, "another thread has been quicker");
            slots.grow(len);
            for slot in len..2 * len {
                assert_eq!(slots.word(slot).load(Ordering::Relaxed), 0, "it is new");
                slots.word(slot).store(slot as u64, Ordering::Relaxed);
            }
        }
        let words = slots.words(slots.len()).map(|word| word.load(Ordering::Relaxed));
        assert!(words.eq(0..32 * FIRST as u64));
        assert!(std::ptr::eq(first, slots.word(0)));
        assert_eq!(slots.words(2 * FIRST).count(), 2 * FIRST);
        assert!(slots.held(5 * FIRST).lock().ids.is_empty());
    }

    #[test]
    fn every_place_tries_every_slot_once() {
        let slots = Slots::new();
        slots.grow(FIRST);
        slots.grow(2 * FIRST);
        for place in [0, 1, FIRST, 3 * FIRST - 1, usize::MAX] {
            let mut order: Vec<usize> = slots.order_for(slots.len(), place).collect();
            assert_eq!(order[0], place % FIRST, "the first chunk comes first");
            order.sort_unstable();
            assert!(order.into_iter().eq(0..4 * FIRST));
        }
    }
}
