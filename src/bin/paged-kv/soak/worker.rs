//! What does one thread do all day? One random thing after the other, on handles that all threads
//! pass to each other, on sequences of its own in the map, and on the few that all of them change.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use paged_kv::SeqId;

use super::by_id::ById;
use super::family::Family;
use super::ground::Ground;
use super::hands::panic_with_hands_full;
use super::hot;
use super::random::Random;
use super::request::Request;

/// A worker panics once in so many steps.
const STEPS_TO_A_PANIC: usize = 20_000;

/// Ids of one worker. A worker that takes another's place has its own.
const IDS: u64 = 1 << 40;

/// Something that one thread made and another may end.
pub enum Held<'a> {
    Family(Family<'a>),
    Request(Request<'a>),
}

/// Where handles lie that no thread has in hand.
pub type Places<'a> = [Mutex<Option<Held<'a>>>];

pub struct Worker<'a, 'p> {
    pub ground: &'a Ground,
    pub places: &'p Places<'a>,
    pub over: &'p AtomicBool,
    /// Steps so far: who stands still hangs.
    pub steps: &'p AtomicU64,
    /// Never given before.
    pub number: u64,
    pub seed: u64,
}

impl<'a> Worker<'a, '_> {
    pub fn run(&self) {
        let mut random = Random::new(self.seed, self.number);
        // The last of its ids is for what it frees at once.
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

    /// Takes a handle from its place, or makes one, uses it, and ends it or puts it anywhere.
    fn handle(&self, random: &mut Random) {
        let size = self.ground.cache.block_size();
        let held = self.take(random).or_else(|| match random.below(3) {
            0 => Family::new(self.ground, random.below(12 * size)).map(Held::Family),
            _ => Request::new(self.ground, random).map(Held::Request),
        });
        // There was no room: somebody's end makes some.
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

    /// What lay there ends.
    fn put(&self, held: Held<'a>, random: &mut Random) {
        let place = self.place(random);
        let other = place.lock().unwrap_or_else(PoisonError::into_inner).replace(held);
        drop(other);
    }

    fn place(&self, random: &mut Random) -> &Mutex<Option<Held<'a>>> {
        &self.places[random.below(self.places.len())]
    }
}
