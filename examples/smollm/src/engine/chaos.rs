//! `Chaos`: random events between the turns of an engine.

use rand::RngExt;

use super::{Engine, Hold};

/// How often each event happens: once in so many turns on average, 0 for never.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chaos {
    /// A running sample is preempted.
    pub preempt_in: u32,
    /// A waiting or running sample is cancelled.
    pub cancel_in: u32,
    /// A flight that was built does not run: its steps are aborted.
    pub abort_in: u32,
    /// The youngest flight is lost: its steps are dropped, and its samples give up their blocks.
    pub lose_in: u32,
    /// The prefix cache is reset.
    pub reset_in: u32,
    /// A chunk of a prompt is committed before its kernels run; it must not be matched earlier.
    pub commit_early_in: u32,
    /// Steps end one turn after their kernels have run.
    pub linger_in: u32,
    /// A sample's next chunk is put into a flight while an older flight has its last one.
    pub pipeline_in: u32,
    /// Some sequence is evicted, of whatever engine.
    pub evict_in: u32,
}

impl Chaos {
    /// All events, each once in so many turns.
    pub fn all(turns: u32) -> Self {
        Self {
            preempt_in: turns,
            cancel_in: 4 * turns,
            abort_in: turns,
            lose_in: 2 * turns,
            reset_in: 8 * turns,
            commit_early_in: 2,
            linger_in: 2,
            pipeline_in: 2,
            evict_in: turns,
        }
    }
}

impl<H: Hold> Engine<'_, H> {
    pub(super) fn happens(&mut self, once_in: u32) -> bool {
        once_in > 0 && self.random.random_ratio(1, once_in)
    }

    /// Lets the events between two turns happen.
    pub(super) fn disturb(&mut self) {
        let chaos = self.options.chaos;
        if self.happens(chaos.preempt_in)
            && let Some(key) = self.pick()
        {
            self.preempt(key);
        }
        if self.happens(chaos.cancel_in)
            && let Some(key) = self.pick()
        {
            self.counts.cancellations += 1;
            let sample = self.stop(key);
            self.finished.push(sample);
        }
        if self.happens(chaos.lose_in) {
            self.lose_flight();
        }
        if self.happens(chaos.reset_in) {
            self.counts.resets += 1;
            self.server.reset();
        }
        if self.happens(chaos.evict_in) {
            let cache = self.server.cache();
            H::evict(&self.ids, cache);
        }
    }

    fn pick(&mut self) -> Option<u64> {
        let at = self.random.random_range(0..self.running.len().max(1));
        self.running.keys().nth(at).copied()
    }
}
