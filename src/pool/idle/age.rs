//! `Oldest`: the age of the block of a shard that is reclaimed first.

use super::first::First;
use super::slab::BATCH;
use crate::id::BlockId;

/// The age of a hot block is divided by this before it is compared with a cold block's. It must then be older
/// by more than a batch.
const HOT_AGE_DIVISOR: u64 = 3;

/// The times at which the first cold and the first hot entry of a shard were added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Oldest {
    pub(super) times: [u64; 2],
}

/// An idle block, and how long it has been so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AgedBlock {
    /// The age by which it is reclaimed.
    pub(crate) age: u64,
    /// The time at which its entry was added.
    pub(crate) time: u64,
    pub(crate) id: BlockId,
}

/// The blocks of a shard to reclaim.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct AgeBound {
    pub(crate) now: u64,
    /// The least age at `now`; 0 for blocks of any age.
    pub(crate) age: u64,
    /// In a learned order, a block elsewhere: those that it goes before by far stay.
    pub(crate) rival: Option<First>,
}

impl AgeBound {
    /// Returns a bound that blocks of at least this age meet.
    pub(crate) fn at_least(age: u64, now: u64) -> Self {
        Self { now, age, rival: None }
    }
}

impl Oldest {
    /// The time of no entry.
    pub(super) const NEVER: u64 = 0;
    /// The time of a spare block, before all others.
    pub(super) const FIRST: u64 = 1;

    /// Returns the age of the block that is reclaimed first, by its rank.
    pub(crate) fn age(self, now: u64) -> Option<u64> {
        let [cold, hot] =
            self.times.map(|time| (time != Self::NEVER).then(|| now.saturating_sub(time)));
        let hot = hot.map(|age| (age / HOT_AGE_DIVISOR).saturating_sub(BATCH as u64));
        cold.into_iter().chain(hot).max()
    }

    /// Returns true if the first hot block is reclaimed before the first cold one.
    pub(super) fn is_hot_first(self, now: u64) -> bool {
        let cold = Self { times: [self.times[0], Self::NEVER] };
        cold.age(now) < self.age(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_is_that_of_the_block_that_goes_first() {
        let now = 1_000;
        let age = |times| Oldest { times }.age(now);
        assert_eq!(age([Oldest::NEVER; 2]), None);
        assert_eq!(age([400, Oldest::NEVER]), Some(600));
        assert_eq!(age([Oldest::NEVER, 100]), Some(300 - BATCH as u64));
        assert_eq!(age([990, 100]), Some(300 - BATCH as u64), "the hot one is far older");
        assert_eq!(age([700, 100]), Some(300));
        assert_eq!(age([Oldest::FIRST, 100]), Some(999), "a spare block goes before all others");
        assert_eq!(age([2_000, Oldest::NEVER]), Some(0), "another shard's time may be ahead");
        assert!(Oldest { times: [990, 100] }.is_hot_first(now));
        assert!(
            !Oldest { times: [700 + BATCH as u64, 100] }.is_hot_first(now),
            "of equal ones the cold one"
        );
        assert!(!Oldest { times: [990, Oldest::NEVER] }.is_hot_first(now));
        assert!(Oldest { times: [Oldest::NEVER, 100] }.is_hot_first(now));
    }
}
