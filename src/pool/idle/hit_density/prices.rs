//! `ClassCounts` and `Prices`: the worth of an idle block by its class and age, from counts of past releases and uses.
//!
//! The price is Gittins' index: the expected hits for each block and step of time that the block stays, for the best
//! further stay. It may rise with the age: a conversation that was read for a while is nearer to its next turn than a
//! new one.

use super::{BUCKETS, CLASSES, CLOSED, LENGTHS, ORDINARY, SHARED};

/// The share of released blocks that are used again before they are old, as assumed before there are counts.
const ASSUMED_HITS: f64 = 0.075;

/// Prompts whose blocks the assumption weighs.
const PROMPTS_ASSUMED: f64 = 3.0;

/// Prompts whose blocks the mean of all classes weighs in each of them.
const PROMPTS_OF_ALL: f64 = 10.0;

/// Prompts after which counts weigh half.
const HALF_LIFE: f64 = 2_000.0;

/// Releases and first uses after them, decayed.
pub(super) struct ClassCounts {
    /// First uses, by the class of the release and the bucket of the age.
    pub(super) hits: [[f64; BUCKETS]; CLASSES],
    /// Released blocks, by class.
    pub(super) releases: [f64; CLASSES],
    /// The mean of the blocks of a prompt.
    pub(super) blocks_a_prompt: f64,
}

/// The price of each class at each bucket of ages.
pub(super) type Prices = [[f64; BUCKETS]; CLASSES];

/// Returns the bucket of an age, in steps of time: two for each doubling.
pub(super) fn bucket(age: u32) -> usize {
    // The last bucket has no end.
    let above = (u64::from(age) + 1).min(1 << 31);
    let log = above.ilog2();
    // The upper half of a doubling begins at the square root of 2 times its start.
    let is_upper = above * above >= 1 << (2 * log + 1);
    (2 * log as usize + usize::from(is_upper)).min(BUCKETS - 1)
}

/// Returns the age at which a bucket begins.
pub(super) fn begin(bucket: usize) -> f64 {
    (bucket as f64 / 2.0).exp2() - 1.0
}

impl ClassCounts {
    pub(super) fn new() -> Self {
        Self { hits: [[0.0; BUCKETS]; CLASSES], releases: [0.0; CLASSES], blocks_a_prompt: 0.0 }
    }

    /// Lets all counts decay after `blocks` blocks were asked for.
    pub(super) fn decay(&mut self, blocks: f64) {
        let factor = (-blocks / (HALF_LIFE * self.blocks_a_prompt.max(1.0))).exp2();
        self.hits.as_flattened_mut().iter_mut().for_each(|count| *count *= factor);
        self.releases.iter_mut().for_each(|count| *count *= factor);
    }

    /// Returns the share of the blocks that reached a bucket of ages unused, and were used in it: of all classes.
    fn hazards_of_all(&self) -> [f64; BUCKETS] {
        let assumed = PROMPTS_ASSUMED * self.blocks_a_prompt;
        let mut unused: f64 = self.releases.iter().sum();
        std::array::from_fn(|bucket| {
            let hits: f64 = self.hits.iter().map(|hits| hits[bucket]).sum();
            let hazard = (hits + assumed * ASSUMED_HITS) / (unused.max(hits) + assumed);
            unused -= hits;
            hazard
        })
    }

    /// Returns the same share of one class.
    fn hazards(&self, class: usize, of_all: &[f64; BUCKETS]) -> [f64; BUCKETS] {
        let weight = PROMPTS_OF_ALL * self.blocks_a_prompt;
        let mut unused = self.releases[class];
        std::array::from_fn(|bucket| {
            let hits = self.hits[class][bucket];
            // The caller of a closed sequence said that it does not come back.
            let assumed = if class == CLOSED { 0.0 } else { weight * of_all[bucket] };
            let hazard = (hits + assumed) / (unused.max(hits) + weight);
            unused -= hits;
            hazard.min(1.0)
        })
    }

    /// Returns the prices by these counts, at least of one prompt.
    pub(super) fn prices(&self) -> Prices {
        let (of_all, widths) = (self.hazards_of_all(), widths());
        let mut prices: Prices =
            std::array::from_fn(|class| index(&self.hazards(class, &of_all), &widths));
        // A content with more uses is worth no less, and so goes no earlier than the blocks after it.
        for class in LENGTHS..ORDINARY {
            raise(&mut prices, class, class - LENGTHS);
        }
        for class in 0..CLOSED {
            raise(&mut prices, SHARED, class);
        }
        prices
    }

    /// Returns prices by which the least recently used block goes first, but for those of closed sequences.
    pub(super) fn prices_by_age(&self) -> Prices {
        let (of_all, widths) = (self.hazards_of_all(), widths());
        let mut falling = index(&of_all, &widths);
        for bucket in 1..BUCKETS {
            falling[bucket] = falling[bucket].min(falling[bucket - 1]);
        }
        let mut prices = [falling; CLASSES];
        prices[CLOSED] = index(&self.hazards(CLOSED, &of_all), &widths);
        prices
    }
}

fn raise(prices: &mut Prices, class: usize, least: usize) {
    let least = prices[least];
    for (price, least) in prices[class].iter_mut().zip(least) {
        *price = price.max(least);
    }
}

/// A stay of a block from the beginning of a bucket to the end of a later one, unless it is used before.
#[derive(Clone, Copy, Default)]
struct Stay {
    /// The expected hits: the chance of a use.
    hits: f64,
    /// The expected steps of time.
    time: f64,
    /// The chance that the block is unused at the end.
    unused: f64,
}

impl Stay {
    fn of_bucket(hazard: f64, width: f64) -> Self {
        Self { hits: hazard, time: width * (1.0 - hazard / 2.0), unused: 1.0 - hazard }
    }

    fn then(self, next: Self) -> Self {
        Self {
            hits: self.hits + self.unused * next.hits,
            time: self.time + self.unused * next.time,
            unused: self.unused * next.unused,
        }
    }

    /// Returns the hits for each step of time.
    fn density(self) -> f64 {
        self.hits / self.time
    }
}

/// Returns the steps of time of each bucket.
fn widths() -> [f64; BUCKETS] {
    std::array::from_fn(|bucket| begin(bucket + 1) - begin(bucket))
}

/// Returns the index of each bucket, for the shares of blocks that are used in each.
///
/// The best stay from a bucket on goes on through the best one from the next bucket on, if that one is denser than the
/// stay so far. So from the last bucket to the first, each stay is joined to others once.
fn index(hazards: &[f64; BUCKETS], widths: &[f64; BUCKETS]) -> [f64; BUCKETS] {
    let last = BUCKETS - 1;
    let mut index = [0.0_f64; BUCKETS];
    // The best stays that follow each other, the next one at the end.
    let (mut stays, mut num_stays) = ([Stay::default(); BUCKETS], 0);
    for bucket in (0..last).rev() {
        let mut best = Stay::of_bucket(hazards[bucket], widths[bucket]);
        while num_stays > 0 && stays[num_stays - 1].density() > best.density() {
            num_stays -= 1;
            best = best.then(stays[num_stays]);
        }
        index[bucket] = best.density();
        stays[num_stays] = best;
        num_stays += 1;
    }
    if last > 0 {
        index[last] = index[last - 1] / 2.0;
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_half_doublings() {
        // A logarithm may end some units in its last place below the true one.
        let exact = |age: u32| (2.0 * (f64::from(age) + 1.0).log2() + 1e-9).floor() as usize;
        for age in (0..4_096).chain([1 << 20, u32::MAX]) {
            assert_eq!(bucket(age), exact(age).min(BUCKETS - 1), "{age}");
        }
    }

    #[test]
    fn a_class_that_is_used_more_is_worth_more() {
        let mut counts = ClassCounts::new();
        counts.blocks_a_prompt = 10.0;
        counts.releases[0] = 1_000.0;
        counts.releases[1] = 1_000.0;
        counts.hits[1][6] = 800.0;
        let prices = counts.prices();
        assert!(prices[1][0] > 3.0 * prices[0][0]);
        assert!(prices[1][6] > prices[1][0], "it is nearer to its use");
        assert!(prices[SHARED][6] >= prices[1][6] && prices[LENGTHS + 1][6] >= prices[1][6]);
        assert!(prices[CLOSED][0] == 0.0);
    }

    #[test]
    fn prices_by_age_fall_and_know_only_closed_sequences() {
        let mut counts = ClassCounts::new();
        counts.blocks_a_prompt = 10.0;
        counts.releases.fill(1_000.0);
        counts.hits[1][6] = 800.0;
        let prices = counts.prices_by_age();
        assert!(prices[0].is_sorted_by(|one, next| one >= next) && prices[0][BUCKETS - 1] > 0.0);
        assert!((0..CLASSES).all(|class| class == CLOSED || prices[class] == prices[0]));
        assert_eq!(prices[CLOSED], [0.0; BUCKETS]);
    }

    #[test]
    fn the_best_stay_ends_after_the_uses() {
        let mut hazards = [0.0; BUCKETS];
        hazards[2] = 0.5;
        let time = begin(2) + (begin(3) - begin(2)) * 0.75;
        assert!((index(&hazards, &widths())[0] - 0.5 / time).abs() < 1e-12);
        assert_eq!(index(&hazards, &widths())[3], 0.0);
    }

    #[test]
    fn the_index_is_that_of_the_best_of_all_stays() {
        let mut seed = 1_u32;
        let mut hazard = |_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f64::from(seed >> 8) / f64::from(1 << 24)
        };
        let (widths, last) = (widths(), BUCKETS - 1);
        for power in [1, 8, 50] {
            let hazards: [f64; BUCKETS] = std::array::from_fn(|at| hazard(at).powi(power));
            for (from, index) in index(&hazards, &widths)[..last].iter().enumerate() {
                let of = |bucket: usize| Stay::of_bucket(hazards[bucket], widths[bucket]);
                let mut stay = of(from);
                let mut best = stay.density();
                for bucket in from + 1..last {
                    stay = stay.then(of(bucket));
                    best = best.max(stay.density());
                }
                assert!((index - best).abs() <= 1e-12 * best, "{power}, {from}: {index}, {best}");
            }
        }
    }

    #[test]
    fn counts_lose_half_after_the_half_life() {
        let mut counts = ClassCounts::new();
        counts.blocks_a_prompt = 4.0;
        counts.releases[3] = 8.0;
        counts.decay(4.0 * HALF_LIFE);
        assert!((counts.releases[3] - 4.0).abs() < 1e-9);
    }
}
