//! `Mover`: a thread that copies cells for tickets, and has faults.
//!
//! It takes jobs in any order. It fails copies, with nothing or with garbage written; it skips some, and finds slots that
//! have lost their contents; it hangs in the middle of a job; and it writes to the destinations of failed and cancelled copies long after their tickets were settled, until it says
//! that it is quiet.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use paged_kv::Place;
use paged_kv::{CopyOutcome, PagedKvCache, TicketNumber};

use crate::common::random::Random;
use crate::shadow::{GARBAGE, Shadow, count};

/// The most jobs that the mover serves before it listens again.
const MOST_AT_ONCE: usize = 4;

/// The outcome of a copy, and the value that was copied.
pub type Copied = (CopyOutcome, u64);

pub struct Job {
    pub number: TicketNumber,
    pub copies: Vec<(Place, Place)>,
    pub reply: Sender<Vec<Copied>>,
}

pub enum Order {
    Copy(Job),
    /// The ticket was completed or dropped.
    Settled(TicketNumber),
}

/// A job that waits for its turn.
struct Waiting {
    job: Job,
    hangs: bool,
}

/// Destinations that are written until their mover is quiet.
struct Late {
    number: TicketNumber,
    copies: Vec<(Place, Place)>,
    writes_left: usize,
}

pub struct Mover<'a> {
    cache: &'a PagedKvCache,
    shadow: &'a Shadow,
    random: Random,
    waiting: Vec<Waiting>,
    /// Failed copies of jobs that were replied to and are not settled.
    unsettled: HashMap<TicketNumber, Vec<(Place, Place)>>,
    late: Vec<Late>,
}

impl<'a> Mover<'a> {
    pub fn new(cache: &'a PagedKvCache, shadow: &'a Shadow, seed: u64) -> Self {
        let (waiting, unsettled, late) = (Vec::new(), HashMap::new(), Vec::new());
        Self { cache, shadow, random: Random::new(seed), waiting, unsettled, late }
    }

    /// Serves until all requesters are gone and no write is left.
    pub fn serve(mut self, orders: &Receiver<Order>) {
        loop {
            match orders.recv_timeout(Duration::from_micros(200)) {
                Ok(order) => self.take(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) if self.late.is_empty() => break,
                Err(RecvTimeoutError::Disconnected) => {}
            }
            orders.try_iter().for_each(|order| self.take(order));
            self.copy_some();
            self.write_late();
        }
        assert!(self.waiting.is_empty() && self.unsettled.is_empty(), "each ticket is settled");
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.random.below(100) < percent
    }

    fn take(&mut self, order: Order) {
        match order {
            Order::Copy(job) => {
                let hangs = self.chance(6);
                self.waiting.push(Waiting { job, hangs });
            }
            Order::Settled(number) => {
                let waiting = self.waiting.iter().position(|waiting| waiting.job.number == number);
                let copies = match waiting {
                    Some(at) => self.waiting.swap_remove(at).job.copies,
                    None => self.unsettled.remove(&number).unwrap_or_default(),
                };
                let writes_left = self.random.below(12);
                self.late.push(Late { number, copies, writes_left });
            }
        }
    }

    /// Serves some of the jobs that wait, in any order.
    fn copy_some(&mut self) {
        for _ in 0..MOST_AT_ONCE {
            if self.waiting.is_empty() {
                return;
            }
            let at = self.random.below(self.waiting.len());
            if self.waiting[at].hangs {
                // Some copies are made and nothing is said.
                let copies = self.waiting[at].job.copies.clone();
                let (src, dst) = copies[self.random.below(copies.len())];
                self.shadow.write(dst, self.shadow.read(src));
            } else if self.chance(80) {
                let job = self.waiting.swap_remove(at).job;
                self.serve_job(job);
            }
        }
    }

    fn serve_job(&mut self, Job { number, copies, reply }: Job) {
        let is_faulty = self.chance(25);
        let mut copied = vec![(CopyOutcome::Failed, GARBAGE); copies.len()];
        let mut failed = Vec::new();
        // From any place on, in either direction.
        let (start, is_reversed) = (self.random.below(copies.len()), self.chance(50));
        for step in 0..copies.len() {
            let at = (start + if is_reversed { copies.len() - step } else { step }) % copies.len();
            let (src, dst) = copies[at];
            if is_faulty && self.chance(20) {
                let is_lost = src.slot().is_some() && self.chance(50);
                let (ended, counter) = match is_lost {
                    true => (CopyOutcome::Lost, &self.shadow.counts.lost),
                    false => (CopyOutcome::Skipped, &self.shadow.counts.skipped),
                };
                copied[at].0 = ended;
                count(counter);
                continue;
            }
            if is_faulty && self.chance(40) {
                if self.chance(50) {
                    self.shadow.write(dst, GARBAGE);
                    count(&self.shadow.counts.corrupted);
                } else {
                    count(&self.shadow.counts.failed);
                }
                failed.push((src, dst));
                continue;
            }
            let value = self.shadow.read(src);
            if value == GARBAGE && src.slot().is_some() {
                // A medium that may tear its slots checks each content that it reads.
                copied[at].0 = CopyOutcome::Lost;
                continue;
            }
            self.shadow.write(dst, value);
            copied[at] = (CopyOutcome::Done, value);
        }
        self.unsettled.insert(number, failed);
        // A requester that gave up does not listen.
        let _ = reply.send(copied);
    }

    fn write_late(&mut self) {
        let mut late = std::mem::take(&mut self.late);
        late.retain_mut(|late| {
            if late.writes_left == 0 || late.copies.is_empty() {
                self.cache.tiers().quiesced(late.number);
                return false;
            }
            late.writes_left -= 1;
            let (src, dst) = late.copies[self.random.below(late.copies.len())];
            let value = if self.chance(50) { GARBAGE } else { self.shadow.read(src) };
            self.shadow.write(dst, value);
            count(&self.shadow.counts.late_writes);
            true
        });
        self.late.append(&mut late);
    }
}
