//! How does a scheduler run ahead of its device? Two steps in flight over 256 requests, with chunked
//! prefill, drafts, two samples a request, copies on write, preemption and resumption.
//!
//! The device is a thread that writes and checks a number a slot, and so finds any block that was
//! reused under it. A model's next token is a hash of what came before.
//!
//! `cargo run --release --example scheduler`

use std::collections::VecDeque;
use std::sync::mpsc;
use std::thread;

use paged_kv::{AdmitOptions, CachedSequence, PagedKvCache, PagedKvError, Result, Step};

const BLOCK_SIZE: usize = 16;
const NUM_BLOCKS: usize = 400;
const CHUNK: usize = 64;
const DRAFTS: usize = 3;
const MOST_ROWS: usize = 48;

/// The state of the model behind a token: what its slot holds.
fn extend(state: u64, token: u32) -> u64 {
    (state ^ u64::from(token)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
}

/// One sample of a request: the tokens known so far, and the state behind each.
#[derive(Clone)]
struct Sample {
    seed: u64,
    tokens: Vec<u32>,
    states: Vec<u64>,
    prompt: usize,
    goal: usize,
    forks: bool,
}

impl Sample {
    fn push(&mut self, token: u32) {
        self.states.push(extend(self.states.last().copied().unwrap_or(0), token));
        self.tokens.push(token);
    }

    /// What the model says behind all tokens.
    fn next(&self) -> u32 {
        (extend(self.states[self.states.len() - 1], self.seed as u32) % 1000) as u32
    }
}

/// A sample with room in the cache, and the drafts it has slots for in the step it is in.
struct Running {
    sample: Sample,
    sequence: CachedSequence,
    drafts: Vec<u32>,
}

/// What the device gets: blocks to copy, then slots to write, then slots that must hold what they say.
struct Launch {
    copies: Vec<[u32; 2]>,
    writes: Vec<(u64, u64)>,
    reads: Vec<(u64, u64)>,
}

fn device(launches: mpsc::Receiver<Launch>, done: mpsc::Sender<()>) {
    let mut slots = vec![0; NUM_BLOCKS * BLOCK_SIZE];
    for Launch { copies, writes, reads } in launches {
        for [src, dst] in copies {
            let src = src as usize * BLOCK_SIZE;
            slots.copy_within(src..src + BLOCK_SIZE, dst as usize * BLOCK_SIZE);
        }
        writes.into_iter().for_each(|(slot, state)| slots[slot as usize] = state);
        for (slot, state) in reads {
            assert_eq!(slots[slot as usize], state, "slot {slot} was reused inside a step");
        }
        done.send(()).expect("the scheduler waits for the last step");
    }
}

/// A step that the device is at, and its rows.
struct Flight {
    step: Step,
    rows: Vec<(Running, usize)>,
    yielded: usize,
}

/// Builds a step over as many samples as have room, and what the device has to do for it.
fn build(
    cache: &PagedKvCache,
    waiting: &mut VecDeque<Sample>,
    ready: &mut Vec<Running>,
) -> Result<(Flight, Launch)> {
    while ready.len() < MOST_ROWS && !waiting.is_empty() {
        // What is cached comes at once, the rest chunk by chunk with the steps.
        let (prompt, options) =
            (cache.prompt(&waiting[0].tokens), AdmitOptions::default().first_chunk(0));
        match cache.admit_sequence(&prompt, &options) {
            Err(PagedKvError::OutOfMemory { .. }) => break,
            admitted => {
                let (sequence, sample) = (admitted?.0, waiting.pop_front().expect("not empty"));
                ready.push(Running { sample, sequence, drafts: Vec::new() });
            }
        }
    }
    let mut rows: Vec<(Running, usize)> = Vec::new();
    for mut running in ready.drain(..) {
        let (known, held) = (running.sample.tokens.len(), running.sequence.num_tokens());
        if held < known {
            rows.push((running, (known - held).min(CHUNK)));
        } else {
            // The model's next tokens as drafts, of which the last is wrong.
            let mut guess = running.sample.clone();
            (0..=DRAFTS).for_each(|_| guess.push(guess.next()));
            running.drafts = guess.tokens[known..].to_vec();
            running.drafts[DRAFTS] ^= 1;
            rows.push((running, 1 + DRAFTS));
        }
    }
    let mut step = cache.step();
    let handles = rows.iter_mut().map(|(running, n)| (&mut running.sequence, *n));
    let grown = step.grow_batch(&mut handles.collect::<Vec<_>>())?;
    // Who has no room yields: what of it is cached is matched when it comes again.
    let yielded = rows.len() - grown.done;
    rows.drain(grown.done..).rev().for_each(|(running, _)| waiting.push_front(running.sample));
    let mut launch = Launch { copies: Vec::new(), writes: Vec::new(), reads: Vec::new() };
    step.copies(&mut launch.copies)?;
    for (Running { sample, sequence, drafts }, num_new_tokens) in &rows {
        let mut all = sample.clone();
        drafts.iter().for_each(|&token| all.push(token));
        let end = sequence.num_tokens();
        let slot = |at| (sequence.slot(at).expect("nothing is trimmed"), all.states[at]);
        launch.writes.extend((end - num_new_tokens..end).map(slot));
        launch.reads.extend((0..end).map(slot));
    }
    Ok((Flight { step, rows, yielded }, launch))
}

/// The device is through with a step: takes what was right, and sorts the samples.
fn finish(flight: Flight, ready: &mut Vec<Running>, finished: &mut Vec<Sample>) -> Result<()> {
    let Flight { mut step, rows, .. } = flight;
    for (row, (mut running, _)) in rows.into_iter().enumerate() {
        let Running { sample, sequence, drafts } = &mut running;
        if drafts.is_empty() {
            let computed = sequence.num_tokens();
            step.commit(sequence, computed)?;
            if computed == sample.tokens.len() && std::mem::take(&mut sample.forks) {
                let other = Sample { seed: sample.seed + 1, ..sample.clone() };
                let sequence = sequence.fork()?;
                ready.push(Running { sample: other, sequence, drafts: Vec::new() });
            }
        } else {
            let is_right = |draft| (draft == sample.next()).then(|| sample.push(draft));
            let right = drafts.drain(..).map_while(is_right).count();
            let accepted = &sample.tokens[sample.tokens.len() - right..];
            step.settle(row, sequence, accepted)?;
        }
        if sample.tokens.len() < sample.prompt + sample.goal {
            ready.push(running);
        } else {
            finished.push(running.sample);
        }
    }
    step.complete();
    Ok(())
}

fn requests() -> VecDeque<Sample> {
    let request = |number: u64| {
        let (prompt, goal) = (40 + (number * 37 % 300) as usize, 20 + (number * 13 % 60) as usize);
        let (tokens, states) = (Vec::new(), Vec::new());
        let mut sample = Sample { seed: 2 * number, tokens, states, prompt, goal, forks: true };
        // Every eighth request begins alike.
        (0..prompt as u32).for_each(|at| sample.push((number % 8 * 1000) as u32 + at));
        sample
    };
    (0..256).map(request).collect()
}

fn main() -> Result<()> {
    let cache = PagedKvCache::new(NUM_BLOCKS, BLOCK_SIZE, 1, 1);
    let ((launch, launches), (done, ended)) = (mpsc::channel(), mpsc::channel());
    let device = thread::spawn(move || device(launches, done));
    let (mut waiting, mut ready, mut finished) = (requests(), Vec::new(), Vec::new());
    let (mut in_flight, mut steps, mut yielded) = (VecDeque::new(), 0, 0);
    while !waiting.is_empty() || !ready.is_empty() || !in_flight.is_empty() {
        let (flight, work) = build(&cache, &mut waiting, &mut ready)?;
        yielded += flight.yielded;
        if !flight.rows.is_empty() {
            launch.send(work).expect("the device is there until the end");
            in_flight.push_back(flight);
            steps += 1;
        }
        // The device is at one step while the next is built; no sample is in two.
        if in_flight.len() == 2 || ready.is_empty() {
            let Some(flight) = in_flight.pop_front() else { continue };
            ended.recv().expect("the device found what it wrote");
            finish(flight, &mut ready, &mut finished)?;
        }
    }
    drop(launch);
    device.join().expect("the device found what it wrote");
    for sample in &finished {
        let mut again = Sample { tokens: Vec::new(), states: Vec::new(), ..sample.clone() };
        sample.tokens[..sample.prompt].iter().for_each(|&token| again.push(token));
        (sample.prompt..sample.tokens.len()).for_each(|_| again.push(again.next()));
        assert_eq!(again.tokens, sample.tokens, "a sample is what the model says");
    }
    assert_eq!((finished.len(), cache.used_block_count()), (512, 0));
    let hit = cache.stats().prompt_tokens_hit;
    println!("512 samples of 256 requests in {steps} steps; {yielded} yielded; {hit} tokens hit");
    cache.validate()
}
