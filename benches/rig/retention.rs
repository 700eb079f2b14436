//! `Feature`: the features that decide which contents stay cached, each unused or used by every request.

use std::time::{Duration, Instant};

use paged_kv::{
    AdmitOptions, CachePin, CachedSequence, Level, PagedKvCache, PagedKvCacheBuilder, PinAnswer,
    Prompt, ReclaimPolicy, Retain, ReuseHint, Watermark,
};

const HOUR: Duration = Duration::from_secs(3_600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// None of them: `ReclaimPolicy::Lru`, no levels, no pins.
    Lru,
    TwoQueue,
    HitDensity,
    /// `HitDensity`, and each sequence has the hint that it comes back soon.
    Hint,
    /// A cache with levels, of which no request uses one.
    LevelsUnset,
    Low,
    HighForAnHour,
    /// Other contents are pinned all the time.
    PinHeld,
}

impl Feature {
    pub const ALL: [Self; 8] = [
        Self::Lru,
        Self::TwoQueue,
        Self::HitDensity,
        Self::Hint,
        Self::LevelsUnset,
        Self::Low,
        Self::HighForAnHour,
        Self::PinHeld,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Lru => "`Lru`, nothing used",
            Self::TwoQueue => "`TwoQueue`",
            Self::HitDensity => "`HitDensity`",
            Self::Hint => "`HitDensity`, all with a hint",
            Self::LevelsUnset => "levels, none set",
            Self::Low => "levels, all low",
            Self::HighForAnHour => "levels, all high for an hour",
            Self::PinHeld => "a pin of 32 other blocks",
        }
    }

    pub fn build(self, builder: PagedKvCacheBuilder) -> PagedKvCache {
        let builder = match self {
            Self::Lru => builder,
            Self::TwoQueue => builder.reclaim_policy(ReclaimPolicy::TwoQueue),
            Self::HitDensity | Self::Hint => builder.reclaim_policy(ReclaimPolicy::HitDensity),
            Self::LevelsUnset | Self::Low | Self::HighForAnHour => builder.retention_levels(true),
            Self::PinHeld => builder.pin_budget(Watermark::Share(1.0)),
        };
        builder.build().expect("the parameters make sense")
    }

    pub fn options(self) -> AdmitOptions {
        let all = |level| Retain::new(0..usize::MAX, level);
        match self {
            Self::Low => AdmitOptions::default().retain(all(Level::Low)),
            Self::HighForAnHour => AdmitOptions::default().retain(all(Level::High).ttl(HOUR)),
            _ => AdmitOptions::default(),
        }
    }

    /// Gives a sequence its hint, if it has one.
    #[inline]
    pub fn give_hint(self, sequence: &mut CachedSequence) {
        if self == Self::Hint {
            sequence.set_reuse_hint(ReuseHint::BackSoon);
        }
    }

    /// Computes a prompt and pins it, if the feature is a pin that is held.
    pub fn hold(self, cache: &PagedKvCache, prompt: &Prompt) -> Option<CachePin> {
        (self == Self::PinHeld).then(|| {
            let admitted = cache.admit_sequence(prompt, &AdmitOptions::default());
            let (mut sequence, _) = admitted.expect("there is room for a prompt");
            sequence.commit(prompt.num_tokens()).expect("the prompt has its slots");
            pin(cache, prompt)
        })
    }
}

/// Pins all full blocks of a prompt that is cached.
pub fn pin(cache: &PagedKvCache, prompt: &Prompt) -> CachePin {
    let answer = cache.retention().pin(prompt, Instant::now() + HOUR);
    match answer.expect("the prompt has the block size of the cache") {
        PinAnswer::Accepted(pin) => pin,
        answer => panic!("the budget has all blocks: {answer:?}"),
    }
}
