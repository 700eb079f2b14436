//! `Guard`: sets the learned order aside for a while where it has fewer hits than LRU would have.
//!
//! LRU keeps the contents that were released within a *horizon*: as many as the pool has blocks that are not in use.
//! A use within the horizon of a content that was reclaimed is *lost*; a use beyond it of a cached content is *gained*.
//! The horizon follows from the times of the releases, less the contents that were used since. A horizon that is too
//! long would find losses where there are none, so each doubt makes it shorter.

use super::{BUCKETS, begin};

/// The lessons whose releases are known. The horizon of a cache that keeps older contents is not known.
const SPANS: usize = 64;

/// The lessons of which the one with the most blocks in use counts.
const LESSONS_IN_USE: usize = 8;

/// The lessons of which the one with the shortest horizon counts.
const LESSONS_OF_HORIZON: usize = 3;

/// A period has at least so many prompts, and at least the pool's blocks are asked for in it.
const PROMPTS_A_PERIOD: f64 = 60.0;

/// Periods before the order is judged, after which losses and gains weigh half, and for which it is set aside first.
const PERIODS: f64 = 4.0;

/// The order is set aside for up to so many times the first time, if it loses again and again.
const MOST_TIMES: f64 = 8.0;

/// Periods without a loss after which the order is set aside for the first time again.
const PERIODS_WITHOUT_LOSS: f64 = 12.0;

/// The least loss, as a share of all uses.
const LEAST_LOSS: f64 = 0.01;

/// The blocks of a prompt are lost and gained together. By chance the difference is a few times the root of their sum:
/// its square is above this, in prompts, for a loss.
const LEAST_EVIDENCE: f64 = 3.0;

/// The counts since the last lesson.
#[derive(Default)]
pub(super) struct Lesson {
    /// The time that it took.
    pub(super) steps: f64,
    /// The steps in which as many blocks are asked for as the pool has.
    pub(super) steps_a_pool: f64,
    pub(super) releases: f64,
    /// First uses after a release, by the bucket of the age.
    pub(super) hits: [f64; BUCKETS],
    pub(super) lost: f64,
    pub(super) gained: f64,
    /// The blocks of the pool, and those in use.
    pub(super) blocks: f64,
    pub(super) used: f64,
    /// The mean of the blocks of a prompt.
    pub(super) blocks_a_prompt: f64,
}

/// The time between two lessons, and the contents that were released in it and not used since.
#[derive(Clone, Copy, Default)]
struct Span {
    steps: f64,
    contents: f64,
}

/// The guard of a pool's order. It holds the decayed losses and gains, and the facts that decide the horizon.
pub(super) struct Guard {
    /// The latest first.
    spans: [Span; SPANS],
    used: [f64; LESSONS_IN_USE],
    /// In steps, 0 if unknown.
    horizons: [f64; LESSONS_OF_HORIZON],
    lost: f64,
    gained: f64,
    /// First uses after a release.
    hits: f64,
    /// The steps since the order was set aside, or since it holds again.
    since: f64,
    /// The steps for which the order is set aside, 0 if it holds.
    aside: f64,
    /// How much longer than the first time the order is set aside next.
    times: f64,
}

impl Guard {
    pub(super) fn new() -> Self {
        Self {
            spans: [Span::default(); SPANS],
            used: [0.0; LESSONS_IN_USE],
            horizons: [0.0; LESSONS_OF_HORIZON],
            lost: 0.0,
            gained: 0.0,
            hits: 0.0,
            since: 0.0,
            aside: 0.0,
            times: 1.0,
        }
    }

    /// Judges the order. Returns the horizon until the next lesson, 0 if unknown, or `None` if the order is set aside.
    pub(super) fn learn(&mut self, lesson: &Lesson) -> Option<u32> {
        self.add_contents(lesson);
        push(&mut self.used, lesson.used);
        let used = self.used.iter().copied().fold(0.0, f64::max);
        let horizon = self.horizon(lesson.blocks - used).unwrap_or(0.0);
        push(&mut self.horizons, horizon);
        self.since += lesson.steps;
        if self.aside > 0.0 {
            if self.since < self.aside {
                return None;
            }
            (self.since, self.aside) = (0.0, 0.0);
        } else if self.loses(lesson) {
            return None;
        }
        let shortest = self.horizons.iter().copied().fold(f64::INFINITY, f64::min);
        Some(shortest as u32)
    }

    /// Adds the releases of a lesson, and removes the earlier ones of contents that were used in it.
    fn add_contents(&mut self, lesson: &Lesson) {
        push(&mut self.spans, Span { steps: lesson.steps, contents: lesson.releases });
        for (bucket, &hits) in lesson.hits.iter().enumerate().filter(|&(_, &hits)| hits > 0.0) {
            const PARTS: u32 = 4;
            for part in 0..PARTS {
                let share = (f64::from(part) + 0.5) / f64::from(PARTS);
                let age = begin(bucket) + (begin(bucket + 1) - begin(bucket)) * share;
                // The uses were in the middle of the lesson.
                let mut left = age - lesson.steps / 2.0;
                let span = self.spans.iter_mut().find(|span| {
                    left -= span.steps;
                    left < 0.0
                });
                if let Some(span) = span {
                    span.contents -= hits / f64::from(PARTS);
                }
            }
        }
    }

    /// Returns the age up to which `room` blocks hold all contents that were released and not used since.
    fn horizon(&self, mut room: f64) -> Option<f64> {
        let mut age = 0.0;
        for span in &self.spans {
            if span.contents >= room {
                let share = (room / span.contents.max(1.0)).max(0.0);
                return Some((age + span.steps * share).max(1.0));
            }
            room -= span.contents;
            age += span.steps;
        }
        None
    }

    /// Adds the losses and gains of a lesson, and sets the order aside if it loses by them.
    fn loses(&mut self, lesson: &Lesson) -> bool {
        let asked = (PROMPTS_A_PERIOD * lesson.blocks_a_prompt).max(lesson.blocks);
        let period = asked * lesson.steps_a_pool / lesson.blocks;
        let factor = (-lesson.steps / (PERIODS * period)).exp2();
        self.lost = self.lost * factor + lesson.lost;
        self.gained = self.gained * factor + lesson.gained;
        self.hits = self.hits * factor + lesson.hits.iter().sum::<f64>();
        let (loss, sum) = (self.lost - self.gained, self.lost + self.gained);
        let is_clear = loss > LEAST_LOSS * self.hits
            && loss * loss > LEAST_EVIDENCE * sum * lesson.blocks_a_prompt;
        if !is_clear || self.since < PERIODS * period {
            return false;
        }
        if self.since > PERIODS_WITHOUT_LOSS * period {
            self.times = 1.0;
        }
        self.aside = PERIODS * period * self.times;
        self.times = (2.0 * self.times).min(MOST_TIMES);
        (self.lost, self.gained, self.hits, self.since) = (0.0, 0.0, 0.0, 0.0);
        true
    }
}

/// Adds the latest of some values at the beginning.
fn push<T>(values: &mut [T], value: T) {
    values.rotate_right(1);
    values[0] = value;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lesson of a quarter of a pool of 1,000 blocks, in which no content was used again.
    fn lesson() -> Lesson {
        Lesson {
            steps: 8.0,
            steps_a_pool: 32.0,
            releases: 250.0,
            blocks: 1_000.0,
            blocks_a_prompt: 10.0,
            ..Lesson::default()
        }
    }

    /// Returns a guard that knows the horizon.
    fn of_lessons(lesson: &Lesson) -> Guard {
        let mut guard = Guard::new();
        learn_again(&mut guard, lesson, 16);
        guard
    }

    fn learn_again(guard: &mut Guard, lesson: &Lesson, times: usize) {
        for _ in 0..times {
            guard.learn(lesson);
        }
    }

    /// Returns the number of lessons until the answer of the guard is `aside` or not.
    fn lessons_until(aside: bool, guard: &mut Guard, lesson: &Lesson) -> Option<usize> {
        (0..1_000).find(|_| guard.learn(lesson).is_none() == aside)
    }

    #[test]
    fn the_horizon_is_as_long_as_the_contents_have_room() {
        assert_eq!(Guard::new().learn(&lesson()), Some(0), "unknown");
        assert_eq!(of_lessons(&lesson()).learn(&lesson()), Some(32));
        let half = Lesson { used: 500.0, ..lesson() };
        assert_eq!(of_lessons(&half).learn(&half), Some(16));
        // A block in use now was no room a while ago.
        let mut guard = of_lessons(&half);
        assert!((0..LESSONS_IN_USE - 1).all(|_| guard.learn(&lesson()) == Some(16)));
        // Four of five contents are used again soon, so all contents of ten pools' releases fit, but not of 20.
        let mut again = lesson();
        again.hits[2] = 200.0;
        assert_eq!(of_lessons(&again).learn(&again), Some(0));
        let mut guard = of_lessons(&again);
        let horizon = (0..40).filter_map(|_| guard.learn(&again)).last().unwrap();
        assert!((150..170).contains(&horizon), "{horizon}");
    }

    #[test]
    #[cfg_attr(miri, ignore = "thousands of lessons: minutes under an interpreter")]
    fn a_loss_sets_the_order_aside_and_the_next_one_for_longer() {
        let mut losing = Lesson { lost: 40.0, ..lesson() };
        losing.hits[20] = 100.0;
        let mut guard = of_lessons(&lesson());
        assert_eq!(lessons_until(true, &mut guard, &losing), Some(0));
        for lessons in [16, 32, 64, 128, 128] {
            assert_eq!(lessons_until(false, &mut guard, &losing), Some(lessons - 1));
            let judged = lessons_until(true, &mut guard, &losing);
            assert_eq!(judged, Some(15), "it is not judged before");
        }
        lessons_until(false, &mut guard, &losing);
        learn_again(&mut guard, &lesson(), 64);
        lessons_until(true, &mut guard, &losing);
        let aside = lessons_until(false, &mut guard, &losing);
        assert_eq!(aside, Some(15), "it had not lost for long");
    }

    #[test]
    #[cfg_attr(miri, ignore = "thousands of lessons: minutes under an interpreter")]
    fn gains_and_chance_are_no_loss() {
        let mut even = Lesson { lost: 40.0, gained: 40.0, ..lesson() };
        even.hits[20] = 100.0;
        assert_eq!(lessons_until(true, &mut of_lessons(&lesson()), &even), None);
        // A prompt or two may have lost so much by chance.
        for (blocks_a_prompt, is_chance) in [(100.0, true), (10.0, false)] {
            let quiet = Lesson { blocks_a_prompt, ..lesson() };
            let mut guard = of_lessons(&quiet);
            learn_again(&mut guard, &quiet, 200);
            assert_eq!(guard.learn(&Lesson { lost: 100.0, ..quiet }).is_some(), is_chance);
        }
        let mut small = Lesson { lost: 40.0, ..lesson() };
        small.hits[20] = 10_000.0;
        assert_eq!(lessons_until(true, &mut of_lessons(&lesson()), &small), None);
    }
}
