//! The values of options: each parser returns a value that is in range, or the reason for its refusal.

use std::num::NonZeroUsize;
use std::time::Duration;

use paged_kv::{EvictionStrategy, ReclaimPolicy};

use super::PRIORITY_LEVELS;
use crate::serve::Victims;
use crate::trace::Format;

pub(super) fn format(text: &str) -> Result<Format, String> {
    match text {
        "jsonl" => Ok(Format::Mooncake),
        "csv" => Ok(Format::Azure),
        _ => Err("expected jsonl or csv".to_owned()),
    }
}

pub(super) fn requests(text: &str) -> Result<NonZeroUsize, String> {
    let count = text.parse::<usize>().map_err(|error| error.to_string())?;
    NonZeroUsize::new(count).ok_or_else(|| "no requests are asked for".to_owned())
}

/// The orders of reclaim that can be asked for.
pub(super) const POLICIES: [ReclaimPolicy; 3] =
    [ReclaimPolicy::Lru, ReclaimPolicy::TwoQueue, ReclaimPolicy::HitDensity];

pub(super) fn policy(text: &str) -> Result<ReclaimPolicy, String> {
    let found = POLICIES.into_iter().find(|policy| policy.to_string() == text);
    found.ok_or_else(|| "expected lru, two-queue or hit-density".to_owned())
}

pub(super) fn strategy(text: &str) -> Result<EvictionStrategy, String> {
    match text {
        "lru" => Ok(EvictionStrategy::LRU),
        "lfu" => Ok(EvictionStrategy::LFU),
        "longest" => Ok(EvictionStrategy::LongestFirst),
        "priority" => Ok(EvictionStrategy::Priority { levels: PRIORITY_LEVELS }),
        _ => streaming(text).ok_or_else(|| {
            "expected youngest, lru, lfu, longest, priority or streaming:SINK,WINDOW".to_owned()
        }),
    }
}

pub(super) fn victims(text: &str) -> Result<Victims, String> {
    if text == "youngest" {
        return Ok(Victims::Youngest);
    }
    strategy(text).map(Victims::ByStrategy)
}

pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("expected on or off".to_owned()),
    }
}

fn streaming(text: &str) -> Option<EvictionStrategy> {
    let (sink, window) = text.strip_prefix("streaming:")?.split_once(',')?;
    Some(EvictionStrategy::StreamingLLM {
        sink_tokens: sink.parse().ok()?,
        window_tokens: window.parse().ok()?,
    })
}

pub(super) fn minutes(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().map(|minutes| minutes * 60.0);
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "expected a number of minutes above 0".to_owned())
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("expected a number from 0 to 1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_strategy_has_a_name() {
        assert_eq!(strategy("lru"), Ok(EvictionStrategy::LRU));
        assert_eq!(strategy("lfu"), Ok(EvictionStrategy::LFU));
        assert_eq!(strategy("longest"), Ok(EvictionStrategy::LongestFirst));
        assert_eq!(strategy("priority"), Ok(EvictionStrategy::Priority { levels: 4 }));
        let streaming = EvictionStrategy::StreamingLLM { sink_tokens: 4, window_tokens: 512 };
        assert_eq!(strategy("streaming:4,512"), Ok(streaming));
    }

    #[test]
    fn the_youngest_gives_way_unless_a_strategy_selects() {
        assert_eq!(victims("youngest"), Ok(Victims::Youngest));
        assert_eq!(victims("lfu"), Ok(Victims::ByStrategy(EvictionStrategy::LFU)));
        assert!(victims("oldest").is_err());
    }

    #[test]
    fn every_policy_has_a_name() {
        assert_eq!(policy("lru"), Ok(ReclaimPolicy::Lru));
        assert_eq!(policy("two-queue"), Ok(ReclaimPolicy::TwoQueue));
        assert_eq!(policy("hit-density"), Ok(ReclaimPolicy::HitDensity));
        assert!(policy("fifo").is_err());
    }

    #[test]
    fn half_a_strategy_is_refused() {
        for text in ["", "LRU", "streaming", "streaming:4", "streaming:4,", "streaming:-4,512"] {
            assert!(strategy(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_threshold_is_a_share() {
        assert_eq!(share("0.5"), Ok(0.5));
        for text in ["-0.1", "1.1", "NaN", "inf", "half"] {
            assert!(share(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn minutes_may_be_fractions() {
        assert_eq!(minutes("0.05"), Ok(Duration::from_secs(3)));
        for text in ["0", "-1", "NaN", "inf", "1e300", "one"] {
            assert!(minutes(text).is_err(), "{text:?} was taken");
        }
    }
}
