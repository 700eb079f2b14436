//! `Worker`: one thread that performs random operations.
//!
//! It operates on handles that threads pass to each other, on its own sequences in the map, and on the hot
//! sequences that all threads change.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use paged_kv::SeqId;

use super::by_id::ById;
use super::fork_group::Family;
use super::hot;
use super::panics::panic_with_hands_full;
use super::random::Random;
use super::request::Request;
use super::shared::Ground;

/// A worker panics once in this many steps on average.
const STEPS_TO_A_PANIC: usize = 20_000;

/// Number of ids of one worker. A worker that replaces another has its own ids.
const IDS: u64 = 1 << 40;

/// A handle that one thread creates and another may drop.
pub enum Held<'a> {
    Family(Family<'a>),
    Request(Request<'a>),
}

/// Places for the parked handles, which no thread is using.
pub type Places<'a> = [Mutex<Option<Held<'a>>>];

pub struct Worker<'a, 'p> {
    pub ground: &'a Ground,
    pub places: &'p Places<'a>,
    pub over: &'p AtomicBool,
    /// Steps so far. A worker whose count does not change hangs.
    pub steps: &'p AtomicU64,
    /// A number that no other worker has or had.
    pub number: u64,
    pub seed: u64,
}

impl<'a> Worker<'a, '_> {
    pub fn run(&self) {
        let mut random = Random::new(self.seed, self.number);
        // The last of its ids is for sequences that it frees immediately.
        let own = SeqId((self.number + 1) * IDS - 1);
        let mut by_id = ById::new(self.ground, self.number * IDS);
        while !self.over.load(Ordering::Relaxed) {
            match random.below(8) {
                0..4 => self.handle(&mut random),
                4 | 5 => by_id.step(&mut random),
                _ => hot::step(self.ground, own, &mut random),
            }
            if random.one_in(STEPS_TO_A_PANIC) {
                panic_with_hands_full(self.ground, own, &mut random);
            }
            self.steps.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes a parked handle or creates one, uses it, and drops it or parks it at a random place.
    fn handle(&self, random: &mut Random) {
        let size = self.ground.cache.block_size();
        let held = self.take(random).or_else(|| match random.below(3) {
            0 => Family::new(self.ground, random.below(12 * size)).map(Held::Family),
            _ => Request::new(self.ground, random).map(Held::Request),
        });
        // There was no room: dropping another handle makes some.
        let Some(mut held) = held else { return drop(self.take(random)) };
        for _ in 0..random.below(6) {
            match &mut held {
                Held::Family(family) => family.step(random),
                Held::Request(request) => {
                    if let Some(fork) = request.step(random) {
                        self.put(Held::Request(fork), random);
                    }
                }
            }
        }
        if !random.one_in(4) {
            self.put(held, random);
        }
    }

    fn take(&self, random: &mut Random) -> Option<Held<'a>> {
        self.place(random).lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Parks a handle at a random place, and drops the handle that was there.
    fn put(&self, held: Held<'a>, random: &mut Random) {
        let place = self.place(random);
        let other = place.lock().unwrap_or_else(PoisonError::into_inner).replace(held);
        drop(other);
    }

    fn place(&self, random: &mut Random) -> &Mutex<Option<Held<'a>>> {
        &self.places[random.below(self.places.len())]
    }
}
