//! A scheduler that runs ahead of its device: `cargo run --release --example scheduler`
//!
//! It serves 256 requests with two steps in flight, chunked prefill, drafts, three samples per request,
//! copies on write, preemption and resumption. The device is a thread that runs one step behind the
//! scheduler. It writes and checks one number per slot, and so finds any block that was reused too early.
//! The model's next token is a hash of all tokens before it.

use std::collections::VecDeque;
use std::{sync::mpsc, thread};

use paged_kv::export::Gaps;
use paged_kv::{AdmitOptions, CachedSequence, PagedKvCache, Prompt, Result, Step};

const BLOCK_SIZE: usize = 16;
const NUM_BLOCKS: usize = 400;
const CHUNK: usize = 64;
const DRAFTS: usize = 3;
const SAMPLES: usize = 3;
const MOST_ROWS: usize = 48;
/// Blocks that an admission leaves for the growth of running samples.
const RESERVE: usize = 96;

/// One sample of a request: its tokens, and the state of the model after each token, which its slot holds.
#[derive(Clone)]
struct Sample {
    seed: u32,
    tokens: Vec<u32>,
    /// The tokens that were hashed for an admission.
    hashed: Option<Prompt>,
    states: Vec<u64>,
    /// The number of tokens that are right; those after them are drafts.
    known: usize,
    prompt: usize,
    goal: usize,
    is_alone: bool,
}

fn extend(state: u64, token: u32) -> u64 {
    (state ^ u64::from(token)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
}

impl Sample {
    fn push(&mut self, token: u32) {
        self.states.push(extend(self.states.last().copied().unwrap_or(0), token));
        self.tokens.push(token);
    }

    /// Returns the model's next token after the first `num_tokens`.
    fn next(&self, num_tokens: usize) -> u32 {
        (extend(self.states[num_tokens - 1], self.seed) % 1000) as u32
    }

    /// Appends drafts up to `end`: the model's next tokens, but for the last, which is wrong.
    fn guess(&mut self, end: usize) {
        for at in self.tokens.len()..end {
            self.push(self.next(at) ^ u32::from(at + 1 == end));
        }
    }

    /// Returns the drafts that the model accepts, and drops the others.
    fn accept(&mut self) -> &[u32] {
        let known = self.known;
        let is_wrong = |&at: &usize| self.tokens[at] != self.next(at);
        self.known = (known..self.tokens.len()).find(is_wrong).unwrap_or(self.tokens.len());
        self.states.truncate(self.known);
        self.tokens.truncate(self.known);
        &self.tokens[known..]
    }
}

/// The work of the device for a step: blocks to copy, slots to write and their states, then slots to read and
/// the states that they must hold.
#[derive(Default)]
struct Launch {
    copies: Vec<[u32; 2]>,
    slots: Vec<i64>,
    states: Vec<u64>,
    reads: Vec<(u64, u64)>,
}

fn device(launches: mpsc::Receiver<Launch>, done: mpsc::Sender<()>) {
    let mut tensor = vec![0; NUM_BLOCKS * BLOCK_SIZE];
    for Launch { copies, slots, states, reads } in launches {
        for [src, dst] in copies.iter().map(|copy| copy.map(|block| block as usize * BLOCK_SIZE)) {
            tensor.copy_within(src..src + BLOCK_SIZE, dst);
        }
        slots.iter().zip(states).for_each(|(&slot, state)| tensor[slot as usize] = state);
        let is_kept = |&(slot, state): &(u64, u64)| tensor[slot as usize] == state;
        assert!(reads.iter().all(is_kept), "a block was reused inside a step");
        done.send(()).expect("the scheduler waits for the last step");
    }
}

/// A step in flight, its rows, and the sample of each row.
struct Flight {
    step: Step,
    rows: Vec<(CachedSequence, usize)>,
    samples: Vec<Sample>,
}

struct Scheduler {
    cache: PagedKvCache,
    waiting: VecDeque<Sample>,
    ready: Vec<(CachedSequence, Sample)>,
    finished: Vec<Sample>,
    yielded: usize,
}

impl Scheduler {
    /// Admits waiting samples as long as there is room for all their tokens and a reserve. If nothing runs, the
    /// first is admitted in any case.
    fn admit(&mut self, nothing_runs: bool) -> Result<()> {
        let whole = AdmitOptions::default();
        let missing = |(sequence, sample): &(CachedSequence, Sample)| {
            sample.known.div_ceil(BLOCK_SIZE).saturating_sub(sequence.num_blocks())
        };
        let mut promised: usize = self.ready.iter().map(missing).sum();
        while self.ready.len() < MOST_ROWS
            && let Some(sample) = self.waiting.front_mut()
        {
            let prompt = sample.hashed.get_or_insert_with(|| self.cache.prompt(&[]));
            prompt.extend(&sample.tokens[prompt.num_tokens()..])?; // hashes the new tokens only
            promised += self.cache.required_blocks(prompt, &whole)?;
            let must = nothing_runs && self.ready.is_empty();
            if promised + RESERVE > self.cache.free_block_count() && !must {
                break;
            }
            // Cached tokens only; steps add the rest.
            let (sequence, _) = self.cache.admit_sequence(prompt, &whole.clone().first_chunk(0))?;
            let sample = self.waiting.pop_front().expect("it is the first");
            self.ready.push((sequence, sample));
        }
        Ok(())
    }

    /// Builds a step over as many samples as there is room for, and the device's work for it.
    fn build(&mut self, nothing_runs: bool) -> Result<(Flight, Launch)> {
        self.admit(nothing_runs)?;
        let (mut rows, mut samples) = (Vec::new(), Vec::new());
        for (sequence, sample) in self.ready.drain(..) {
            let missing = sample.known - sequence.num_tokens();
            rows.push((sequence, if missing > 0 { missing.min(CHUNK) } else { 1 + DRAFTS }));
            samples.push(sample);
        }
        let mut step = self.cache.step(Default::default());
        let grown = step.grow(&mut rows)?; // the first rows that fit
        rows.truncate(grown.grown_rows); // the others yield; later they match their cached blocks
        self.yielded += samples.len() - grown.grown_rows;
        samples.drain(grown.grown_rows..).rev().for_each(|sample| self.waiting.push_front(sample));
        let mut launch = Launch::default();
        step.copies(&mut launch.copies)?; // copies on write of blocks that samples share
        launch.slots.resize(rows.iter().map(|(_, num_new_tokens)| num_new_tokens).sum(), 0);
        step.slots(&rows, Gaps::Show, &mut launch.slots)?; // the slots of the new tokens
        for ((sequence, num_new_tokens), sample) in rows.iter().zip(&mut samples) {
            let end = sequence.num_tokens();
            sample.guess(end);
            launch.states.extend(&sample.states[end - num_new_tokens..end]);
            let slot = |at| (sequence.slot(at).expect("nothing is trimmed"), sample.states[at]);
            launch.reads.extend((0..end).map(slot));
        }
        Ok((Flight { step, rows, samples }, launch))
    }

    /// Ends a step that the device has done: keeps the accepted tokens, and sorts the samples.
    fn finish(&mut self, Flight { mut step, rows, samples }: Flight) -> Result<()> {
        for (row, ((mut sequence, _), mut sample)) in rows.into_iter().zip(samples).enumerate() {
            let computed = sequence.num_tokens();
            if computed > sample.known {
                step.accept(row, &mut sequence, sample.accept())?; // drops the slots of rejected drafts
            } else {
                step.commit(&mut sequence, computed)?; // a chunk of a prompt
            }
            if computed == sample.known && std::mem::take(&mut sample.is_alone) {
                for (other, fork) in (1..).zip(sequence.fork_n(SAMPLES - 1)?) {
                    self.ready.push((fork, Sample { seed: sample.seed + other, ..sample.clone() }));
                }
            }
            match sample.known < sample.prompt + sample.goal {
                true => self.ready.push((sequence, sample)),
                false => self.finished.push(sample),
            }
        }
        step.complete(); // publishes, and releases the blocks that the step held
        Ok(())
    }
}

fn request(number: usize) -> Sample {
    let (prompt, goal) = (40 + number * 37 % 300, 20 + number * 13 % 60);
    let (tokens, states, seed) = (Vec::new(), Vec::new(), (SAMPLES * number) as u32);
    let (known, hashed, is_alone) = (prompt, None, true);
    let mut sample = Sample { seed, tokens, hashed, states, known, prompt, goal, is_alone };
    (0..prompt).for_each(|at| sample.push((number % 8 * 1000 + at) as u32)); // some prompts share a prefix
    sample
}

fn main() -> Result<()> {
    let (cache, waiting) = (PagedKvCache::new(NUM_BLOCKS, BLOCK_SIZE, 1, 1), (0..256).map(request));
    let (waiting, ready, finished) = (waiting.collect(), Vec::new(), Vec::new());
    let mut scheduler = Scheduler { cache, waiting, ready, finished, yielded: 0 };
    let ((launch, launches), (done, ended)) = (mpsc::channel(), mpsc::channel());
    let device = thread::spawn(move || device(launches, done));
    let (mut in_flight, mut steps) = (VecDeque::new(), 0);
    while !scheduler.waiting.is_empty() || !scheduler.ready.is_empty() || !in_flight.is_empty() {
        let (flight, work) = scheduler.build(in_flight.is_empty())?;
        if !flight.rows.is_empty() {
            launch.send(work).expect("the device is there until the end");
            in_flight.push_back(flight);
            steps += 1;
        }
        // The device runs one step while the scheduler builds the next; no sample is in both.
        if in_flight.len() == 2 || scheduler.ready.is_empty() {
            ended.recv().expect("the device found what it wrote");
            scheduler.finish(in_flight.pop_front().expect("a sample yields to one in flight"))?;
        }
    }
    drop(launch);
    device.join().expect("the device found what it wrote");
    let Scheduler { cache, finished, yielded, .. } = scheduler;
    for sample in &finished {
        (sample.prompt..sample.known).for_each(|at| assert_eq!(sample.tokens[at], sample.next(at)));
    }
    assert_eq!((finished.len(), cache.used_block_count()), (256 * SAMPLES, 0));
    println!("{} samples in {steps} steps; {yielded} yielded; {}", finished.len(), cache.stats());
    cache.validate()
}
