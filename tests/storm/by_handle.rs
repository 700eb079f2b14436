//! Requests that a thread holds by handle: every block they match, share, copy or grow into has the
//! contents of their script, at any time.

use paged_kv::export::Gaps;
use paged_kv::{CachedSequence, PagedKvError, Step, StepBuffers};

use super::common::random::Random;
use super::shadow::Script;
use super::{BLOCK_SIZE, Storm};

const MOST_TOKENS: usize = 14 * BLOCK_SIZE;

pub struct Handles<'a> {
    storm: &'a Storm,
    /// Sequences, each with the tokens that it grows by next.
    rows: Vec<(CachedSequence, usize)>,
    scripts: Vec<Script>,
    /// Steps whose rows are done and that stay open for a while.
    open: Vec<Step>,
    buffers: StepBuffers,
}

/// Returns the value of a call, or none after a refusal that a shortage explains. Panics at any other
/// refusal.
#[track_caller]
pub fn fair<T>(result: Result<T, PagedKvError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(
            PagedKvError::OutOfMemory { .. }
            | PagedKvError::SequenceNotFound(_)
            | PagedKvError::SequenceEvicted(_)
            | PagedKvError::SequenceExists(_)
            | PagedKvError::SequenceLeased(_)
            | PagedKvError::TruncateBeyondEnd { .. }
            | PagedKvError::TokensTrimmed { .. }
            | PagedKvError::TokenRange { .. }
            | PagedKvError::UnnamedTokens { .. }
            | PagedKvError::CommitBeyondEnd { .. }
            | PagedKvError::NothingToEvict
            | PagedKvError::DeadlinePassed
            | PagedKvError::Stalled(_),
        ) => None,
        Err(refusal) => panic!("a refusal that nothing explains: {refusal}"),
    }
}

impl<'a> Handles<'a> {
    pub fn new(storm: &'a Storm) -> Self {
        let (rows, scripts, open, buffers) = Default::default();
        Self { storm, rows, scripts, open, buffers }
    }

    pub fn one(&mut self, random: &mut Random) {
        if self.rows.is_empty() || self.rows.len() < 4 && random.below(3) == 0 {
            return self.admit(random);
        }
        let at = random.below(self.rows.len());
        let sequence = &mut self.rows[at].0;
        match random.below(12) {
            0 | 1 => self.leave(at),
            2 => {
                let fork = sequence.fork().expect("few owners");
                self.rows.push((fork, 0));
                self.scripts.push(self.scripts[at]);
            }
            3 => _ = fair(sequence.truncate(random.below(sequence.num_tokens() + 1))),
            4 if random.below(4) == 0 => {
                sequence.apply_streaming_llm(random.below(9), random.below(17)).unwrap();
            }
            5 | 6 => self.speak(at, random),
            7 => drop(self.open.pop()),
            8 if random.below(8) == 0 => self.storm.cache.prefix().reset(),
            _ => self.step(random),
        }
        (0..self.rows.len()).for_each(|at| self.check(at));
    }

    fn leave(&mut self, at: usize) {
        self.rows.swap_remove(at);
        self.scripts.swap_remove(at);
    }

    fn check(&self, at: usize) {
        let (sequence, script) = (&self.rows[at].0, self.scripts[at]);
        for block in 0..sequence.num_logical_blocks() {
            if let Some(id) = sequence.block_at(block) {
                self.storm.shadow.check(id, script.content(block));
            }
        }
    }

    /// Computes the blocks from position `start` on.
    fn compute(&self, at: usize, start: usize) {
        let (sequence, script) = (&self.rows[at].0, self.scripts[at]);
        for block in start / BLOCK_SIZE..sequence.num_logical_blocks() {
            if let Some(id) = sequence.block_at(block) {
                self.storm.shadow.write(id, script.content(block));
            }
        }
    }

    fn admit(&mut self, random: &mut Random) {
        let script = Script::random(random);
        let num_tokens = 1 + random.below(MOST_TOKENS);
        let prompt = self.storm.cache.prompt(&script.tokens(0..num_tokens));
        let options = self.storm.options(random);
        let admitted = self.storm.cache.admit_sequence(&prompt, &options);
        let Some((sequence, admission)) = fair(admitted) else {
            // A request that leaves makes room.
            return if self.rows.is_empty() { drop(self.open.pop()) } else { self.leave(0) };
        };
        let hits = admission.cached_tokens / BLOCK_SIZE;
        for (block, &id) in sequence.block_ids()[..hits].iter().enumerate() {
            self.storm.shadow.check(id, script.content(block));
        }
        self.rows.push((sequence, 0));
        self.scripts.push(script);
        let at = self.rows.len() - 1;
        self.compute(at, admission.cached_tokens);
        let published = self.rows[at].0.commit(num_tokens).expect("it has so many tokens");
        assert!(published <= num_tokens / BLOCK_SIZE - hits);
    }

    fn speak(&mut self, at: usize, random: &mut Random) {
        let (n, drafts) = (random.below(6), random.below(3));
        let (sequence, script) = (&mut self.rows[at].0, self.scripts[at]);
        let start = sequence.num_tokens();
        if start + n + drafts > 2 * MOST_TOKENS {
            return self.leave(at);
        }
        let Some(append) = fair(sequence.append(n + drafts)) else { return };
        if let Some(copy) = &append.copy {
            self.storm.shadow.check(copy.src, script.content(start / BLOCK_SIZE));
        }
        if n + drafts > 0 {
            self.compute(at, start);
        }
        drop(append);
        let sequence = &mut self.rows[at].0;
        sequence.commit(&script.tokens(start..start + n)).expect("they have slots");
        sequence.truncate(start + n).expect("the drafts are its own");
    }

    fn step(&mut self, random: &mut Random) {
        let starts: Vec<usize> = self.rows.iter().map(|row| row.0.num_tokens()).collect();
        if starts.iter().any(|&start| start > 2 * MOST_TOKENS) {
            return self.leave(0);
        }
        self.rows.iter_mut().for_each(|row| row.1 = random.below(6));
        let mut step = self.storm.cache.step(std::mem::take(&mut self.buffers));
        let Some(grown) = fair(step.grow(&mut self.rows)) else { return };
        let done = grown.grown_rows;
        let mut slots = [0_i64; 64];
        step.slots(&self.rows[..done], Gaps::Show, &mut slots).expect("there are cells enough");
        (0..done).filter(|&at| self.rows[at].1 > 0).for_each(|at| self.compute(at, starts[at]));
        match random.below(4) {
            0 => _ = step.abort(&mut self.rows[..done]).expect("these are its rows"),
            1 => {
                // The next step opens in the memory of the aborted one.
                let aborted = step.abort(&mut self.rows[..done]).expect("these are its rows");
                self.open.push(self.storm.cache.step(aborted.buffers));
            }
            2 => {
                drop(step);
                let rows = self.rows[..done].iter_mut().zip(&starts);
                rows.for_each(|(row, &start)| row.0.truncate(start).expect("its own slots"));
            }
            _ => self.accept(step, done, &starts, random),
        }
        self.open.truncate(3);
    }

    fn accept(&mut self, mut step: Step, done: usize, starts: &[usize], random: &mut Random) {
        for (at, &start) in starts[..done].iter().enumerate() {
            let (sequence, n) = &mut self.rows[at];
            let accepted = self.scripts[at].tokens(start..start + random.below(*n + 1));
            step.accept(at, sequence, &accepted).expect("it is at its tokens");
        }
        if done > 0 && random.below(3) == 0 {
            // The client has left: the step holds the blocks that its kernels write.
            let (sequence, script) = (&self.rows[0].0, self.scripts[0]);
            let blocks = (0..sequence.num_logical_blocks())
                .filter_map(|block| Some((sequence.block_at(block)?, script.content(block))));
            let blocks: Vec<_> = blocks.collect();
            self.leave(0);
            std::thread::yield_now();
            blocks.iter().for_each(|&(id, content)| self.storm.shadow.check(id, content));
        }
        if random.below(2) == 0 {
            self.buffers = step.complete().buffers;
        } else {
            step.complete();
        }
    }
}
