//! `Requester`: a thread of the soak that admits prompts, reads and writes the cells of its blocks, and stores and loads
//! contents through the mover.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use paged_kv::Place;
use paged_kv::{
    AdmitOptions, BlockHash, CachedSequence, CopyOutcome, LoadLimit, LoadTicket, PagedKvCache,
    PagedKvError, Prompt, StoreFrom, StoreTicket, TicketNumber, TierAdmission, TierId,
};

use crate::BLOCK_SIZE;
use crate::common::random::Random;
use crate::mover::{Copied, Job, Order};
use crate::shadow::{GARBAGE, Shadow, Weights, count};

/// The most sequences that a requester holds.
const MOST_HELD: usize = 4;

struct Held {
    sequence: CachedSequence,
    prompt: Prompt,
    weights: Weights,
}

enum Ticket {
    Load(LoadTicket, Prompt),
    Store(StoreTicket),
}

struct UnderWay {
    ticket: Ticket,
    weights: Weights,
    reply: Receiver<Vec<Copied>>,
    /// Looks for the reply before the ticket is cancelled.
    patience: usize,
}

impl Ticket {
    fn number(&self) -> TicketNumber {
        match self {
            Self::Load(ticket, _) => ticket.number(),
            Self::Store(ticket) => ticket.number(),
        }
    }

    fn copies(&self) -> Vec<(Place, Place)> {
        match self {
            Self::Load(ticket, _) => {
                let copy = |load: &paged_kv::Load| (Place::Tier(load.src), Place::Device(load.dst));
                ticket.loads().iter().map(copy).collect()
            }
            Self::Store(ticket) => {
                let copy = |store: &paged_kv::Store| (store.src, Place::Tier(store.dst));
                ticket.stores().iter().map(copy).collect()
            }
        }
    }

    fn hashes(&self) -> Vec<BlockHash> {
        match self {
            Self::Load(ticket, _) => ticket.loads().iter().map(|load| load.hash).collect(),
            Self::Store(ticket) => ticket.stores().iter().map(|store| store.hash).collect(),
        }
    }
}

pub struct Requester<'a> {
    pub cache: &'a PagedKvCache,
    pub shadow: &'a Shadow,
    pub prompts: &'a [Prompt],
    pub random: Random,
    pub orders: Sender<Order>,
    /// One operation of so many is a reset.
    pub reset_one_in: usize,
    held: Vec<Held>,
    under_way: Vec<UnderWay>,
}

impl<'a> Requester<'a> {
    pub fn new(
        cache: &'a PagedKvCache,
        shadow: &'a Shadow,
        prompts: &'a [Prompt],
        orders: Sender<Order>,
        (seed, reset_one_in): (u64, usize),
    ) -> Self {
        let (random, held, under_way) = (Random::new(seed), Vec::new(), Vec::new());
        Self { cache, shadow, prompts, random, orders, reset_one_in, held, under_way }
    }

    pub fn operate(&mut self) {
        count(&self.shadow.counts.operations);
        match self.random.below(100) {
            0..40 => self.admit(true),
            40..50 => self.admit(false),
            50..60 => self.free(),
            60..70 => self.store(),
            70..78 => self.store_ahead(),
            78..83 => self.overwrite(),
            83..86 => _ = self.cache.prefix().forget([2, 8][self.random.below(2)]),
            86 => {
                let prompt = &self.prompts[self.random.below(self.prompts.len())];
                self.cache.prefix().forget_prompt(prompt).expect("a prompt of this cache");
            }
            _ => {}
        }
        if self.random.below(self.reset_one_in) == 0 {
            self.shadow.reset(|| self.cache.prefix().reset());
        }
        self.look_for_replies();
    }

    /// Ends all that is under way.
    pub fn end(mut self) {
        for mut job in std::mem::take(&mut self.under_way) {
            job.patience = 0;
            self.look_for(job);
        }
        while !self.held.is_empty() {
            self.free();
        }
    }

    fn admit(&mut self, through_tiers: bool) {
        if self.held.len() + self.under_way.len() >= MOST_HELD {
            self.free();
        }
        let prompt = self.prompts[self.random.below(self.prompts.len())].clone();
        let limit = match self.random.below(8) {
            0 => LoadLimit::none(),
            1 => LoadLimit::blocks(2..4),
            _ => LoadLimit::default(),
        };
        let options = AdmitOptions::default();
        let (admitted, weights) = self.shadow.under_weights(|| match through_tiers {
            true => self.cache.tiers().admit(&prompt, &options, limit),
            false => {
                let admitted = self.cache.admit_sequence(&prompt, &options);
                admitted.map(|(sequence, admission)| TierAdmission::Ready(sequence, admission))
            }
        });
        match admitted {
            Ok(TierAdmission::Ready(sequence, admission)) => {
                self.hold(Held { sequence, prompt, weights }, admission.cached_tokens);
            }
            Ok(TierAdmission::Loading(ticket)) => {
                if self.random.below(2) == 0 {
                    self.overwrite_by_load(&ticket, weights);
                }
                self.ask(Ticket::Load(ticket, prompt), weights);
            }
            Ok(TierAdmission::Pending) => count(&self.shadow.counts.pending),
            Ok(other) => panic!("an outcome that was unknown: {other:?}"),
            Err(PagedKvError::OutOfMemory { .. }) => self.free(),
            Err(refusal) => panic!("{refusal}"),
        }
    }

    /// Reads the cells of the cached blocks, computes the others, and publishes them.
    fn hold(&mut self, mut held: Held, cached_tokens: usize) {
        let hashes = held.prompt.hashes();
        let hits = cached_tokens / BLOCK_SIZE;
        let missing = held.prompt.num_tokens() - held.sequence.num_tokens();
        if missing > 0 && held.sequence.append(missing).is_err() {
            return;
        }
        for (at, (&block, &hash)) in held.sequence.block_ids().iter().zip(hashes).enumerate() {
            if at < hits {
                count(&self.shadow.counts.hits);
                self.shadow.check(Place::Device(block), hash, held.weights, "a hit");
            } else {
                self.shadow.compute(block, hash, held.weights);
            }
        }
        held.sequence.commit(held.prompt.num_tokens()).expect("it has slots");
        self.held.push(held);
    }

    /// Reads the cells of a sequence, which no other may have written, and frees it.
    fn free(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let at = self.random.below(self.held.len());
        let held = self.held.swap_remove(at);
        for (&block, &hash) in held.sequence.block_ids().iter().zip(held.prompt.hashes()) {
            self.shadow.check(Place::Device(block), hash, held.weights, "a held block");
        }
    }

    fn store(&mut self) {
        let prompt = &self.prompts[self.random.below(self.prompts.len())];
        let tier = TierId(self.random.below(2) as u8);
        let (ticket, weights) =
            self.shadow.under_weights(|| self.cache.tiers().store(tier, prompt.hashes()));
        if let Some(ticket) = ticket.expect("the tier is there") {
            self.ask(Ticket::Store(ticket), weights);
        }
    }

    /// Stores in one tier the contents that another place gives up next.
    fn store_ahead(&mut self) {
        let (to, ahead) = (TierId(self.random.below(2) as u8), 1 + self.random.below(24));
        let from = match self.random.below(2) {
            0 => StoreFrom::Device,
            _ => StoreFrom::Tier(TierId(1 - to.0)),
        };
        let (ticket, weights) =
            self.shadow.under_weights(|| self.cache.tiers().store_ahead(from, to, ahead));
        if let Some(ticket) = ticket.expect("two tiers") {
            count(&self.shadow.counts.ahead);
            self.ask(Ticket::Store(ticket), weights);
        }
    }

    /// Stores the contents that a load is about to overwrite, before its copies.
    fn overwrite_by_load(&mut self, load: &LoadTicket, weights: Weights) {
        let tier = TierId(self.random.below(2) as u8);
        let ticket = self.cache.tiers().store_overwritten(tier, load);
        if let Some(ticket) = ticket.expect("the tier is there") {
            count(&self.shadow.counts.by_loads);
            self.store_now(ticket, weights);
        }
    }

    /// Waits a short time for the copies of a store, which others wait for, and gives it up if they are not made.
    fn store_now(&mut self, ticket: StoreTicket, weights: Weights) {
        self.ask(Ticket::Store(ticket), weights);
        let mut job = self.under_way.pop().expect("it was just put there");
        let reply = job.reply.recv_timeout(Duration::from_millis(2));
        job.patience = 0;
        match reply {
            Ok(copied) => self.settle(job, &copied),
            Err(_) => self.look_for(job),
        }
    }

    /// Grows a sequence over cached contents, stores these, and then writes its own.
    fn overwrite(&mut self) {
        let mut rows = [(self.cache.allocate_sequence(0).expect("no block"), 5 * BLOCK_SIZE)];
        let tier = TierId(self.random.below(2) as u8);
        let (stored, weights) = self.shadow.under_weights(|| {
            let mut step = self.cache.step(Default::default());
            let _ = step.grow(&mut rows).expect("a row of this cache");
            let ticket = self.cache.tiers().store_overwritten(tier, &step);
            (ticket.expect("the tier is there"), step)
        });
        let (ticket, step) = stored;
        if let Some(ticket) = ticket {
            count(&self.shadow.counts.overwritten);
            self.store_now(ticket, weights);
        }
        for &block in rows[0].0.block_ids() {
            let own = GARBAGE + 1 + u64::from(block.0);
            self.shadow.write(Place::Device(block), own);
        }
        drop(step);
        for &block in rows[0].0.block_ids() {
            let own = GARBAGE + 1 + u64::from(block.0);
            if self.shadow.read(Place::Device(block)) != own {
                count(&self.shadow.counts.wrong);
                eprintln!("{block:?} of a step was written by another");
            }
        }
    }

    fn ask(&mut self, ticket: Ticket, weights: Weights) {
        let (sender, reply) = channel();
        let (number, copies) = (ticket.number(), ticket.copies());
        let job = Job { number, copies, reply: sender };
        self.orders.send(Order::Copy(job)).expect("the mover listens");
        let patience = 2 + self.random.below(400);
        self.under_way.push(UnderWay { ticket, weights, reply, patience });
    }

    fn look_for_replies(&mut self) {
        for job in std::mem::take(&mut self.under_way) {
            self.look_for(job);
        }
    }

    fn look_for(&mut self, mut job: UnderWay) {
        match job.reply.try_recv() {
            Ok(copied) => self.settle(job, &copied),
            Err(_) if job.patience > 0 => {
                job.patience -= 1;
                self.under_way.push(job);
            }
            Err(_) => self.cancel(job),
        }
    }

    /// Gives a ticket up while the mover may be copying for it.
    fn cancel(&mut self, job: UnderWay) {
        count(&self.shadow.counts.cancelled);
        let number = job.ticket.number();
        let failed = vec![CopyOutcome::Failed; job.ticket.copies().len()];
        match (job.ticket, self.random.below(2)) {
            (Ticket::Store(ticket), 0) => _ = ticket.complete(&failed),
            (Ticket::Load(ticket, _), 0) => _ = ticket.complete(&failed),
            (ticket, _) => drop(ticket),
        }
        self.orders.send(Order::Settled(number)).expect("the mover listens");
    }

    /// Reports the copies of a ticket. Checks each value that was copied, and reads the blocks that were loaded.
    fn settle(&mut self, job: UnderWay, copied: &[Copied]) {
        let UnderWay { ticket, weights, .. } = job;
        let (number, hashes) = (ticket.number(), ticket.hashes());
        for ((&(outcome, value), &hash), (src, _)) in
            copied.iter().zip(&hashes).zip(ticket.copies())
        {
            match outcome {
                CopyOutcome::Done => {
                    self.shadow.check_value(value, hash, weights, &("a copy", ticket.copies()));
                }
                // No other ticket may read the slot from now on.
                CopyOutcome::Lost => self.shadow.write(src, GARBAGE),
                _ => {}
            }
        }
        let outcomes: Vec<CopyOutcome> = copied.iter().map(|(outcome, _)| *outcome).collect();
        match ticket {
            Ticket::Store(ticket) => {
                count(&self.shadow.counts.stores);
                ticket.complete(&outcomes).expect("an outcome a copy");
                self.orders.send(Order::Settled(number)).expect("the mover listens");
            }
            Ticket::Load(ticket, prompt) => {
                count(&self.shadow.counts.loads);
                let loaded = ticket.complete(&outcomes).expect("an outcome a copy");
                self.orders.send(Order::Settled(number)).expect("the mover listens");
                let held = Held { sequence: loaded.sequence, prompt, weights };
                self.hold(held, loaded.admission.cached_tokens);
            }
        }
    }
}
