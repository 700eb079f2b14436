//! `Level` and `LevelNote`: how long a released content stays cached, compared with others.
//!
//! These are the values only; the idle lists ([`levels`](super::idle)) keep the order.

use std::num::NonZeroU64;
use std::time::Duration;

/// How long a released content stays cached, compared with others: contents of lower levels are reclaimed first.
///
/// ```
/// use paged_kv::Level;
///
/// assert!(Level::Low < Level::Default && Level::Default < Level::High);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Level {
    /// Reclaimed before all others.
    Lowest,
    /// Reclaimed before the contents of the default level.
    Low,
    /// The level of contents for which no caller has set one. The [`ReclaimPolicy`](crate::ReclaimPolicy) orders these.
    #[default]
    Default,
    /// Reclaimed after the contents of the default level.
    High,
    /// Reclaimed after all others.
    Highest,
}

/// The priority of a content without one, in TensorRT-LLM.
const DEFAULT_PRIORITY: u32 = 35;

impl Level {
    /// Returns the level of a priority of TensorRT-LLM, from 0 to 100. Its default, 35, is [`Default`](Self::Default), and
    /// no other priority is: those below are lower levels and those above are higher ones, also beyond 100. Each side is halved, so priorities
    /// within 0..18, 18..35, 36..68 and from 68 on count as equal.
    ///
    /// ```
    /// use paged_kv::Level;
    ///
    /// let levels = [0, 20, 35, 50, 80, 100].map(Level::from_priority);
    /// assert!(levels.is_sorted());
    /// assert_eq!((levels[2], levels[4]), (Level::Default, Level::Highest));
    /// ```
    pub fn from_priority(priority: u32) -> Self {
        match priority {
            0..18 => Self::Lowest,
            18..DEFAULT_PRIORITY => Self::Low,
            DEFAULT_PRIORITY => Self::Default,
            36..68 => Self::High,
            _ => Self::Highest,
        }
    }
}

/// The level of a content, and after how long it falls to the default one: in one number that is not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LevelNote(NonZeroU64);

/// Bits of the level in a note. The nanoseconds are above, 0 for a level that stays.
const LEVEL: u32 = 3;

impl LevelNote {
    /// Creates a note. Durations beyond 70 years count as none. The default level needs no duration.
    pub(crate) fn new(level: Level, ttl: Option<Duration>) -> Self {
        let nanos = match ttl.filter(|_| level != Level::Default) {
            None => 0,
            Some(ttl) => u64::try_from(ttl.as_nanos().max(1)).unwrap_or(0),
        };
        let nanos = if nanos >> (64 - LEVEL) == 0 { nanos } else { 0 };
        let bits = nanos << LEVEL | (level as u64 + 1);
        Self(NonZeroU64::new(bits).expect("a level counts from 1"))
    }

    pub(crate) fn from_bits(bits: u64) -> Option<Self> {
        NonZeroU64::new(bits).map(Self)
    }

    pub(crate) fn bits(self) -> u64 {
        self.0.get()
    }

    pub(crate) fn level(self) -> Level {
        match self.0.get() & ((1 << LEVEL) - 1) {
            1 => Level::Lowest,
            2 => Level::Low,
            3 => Level::Default,
            4 => Level::High,
            _ => Level::Highest,
        }
    }

    /// Returns the nanoseconds after a release at which the level ends.
    pub(crate) fn nanos(self) -> Option<u64> {
        Some(self.0.get() >> LEVEL).filter(|&nanos| nanos > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Level; 5] =
        [Level::Lowest, Level::Low, Level::Default, Level::High, Level::Highest];

    #[test]
    fn the_priorities_of_tensorrt_llm_keep_their_order_and_their_default() {
        let levels: Vec<Level> = (0..=100).map(Level::from_priority).collect();
        assert!(levels.is_sorted());
        for (priority, level) in (0..).zip(levels) {
            assert_eq!(level.cmp(&Level::Default), priority.cmp(&DEFAULT_PRIORITY));
        }
    }

    #[test]
    fn a_note_gives_back_each_part() {
        let times = [1, 1_000_000_007, (1 << 61) - 1];
        for level in ALL {
            assert_eq!(LevelNote::new(level, None).level(), level);
            assert_eq!(LevelNote::new(level, None).nanos(), None);
            for nanos in times {
                let note = LevelNote::new(level, Some(Duration::from_nanos(nanos)));
                assert_eq!(LevelNote::from_bits(note.bits()), Some(note));
                assert_eq!(note.level(), level);
                assert_eq!(note.nanos(), (level != Level::Default).then_some(nanos));
            }
        }
        let low = |ttl| LevelNote::new(Level::Low, Some(ttl)).nanos();
        assert_eq!((low(Duration::ZERO), low(Duration::from_nanos(1 << 61))), (Some(1), None));
        assert_eq!((low(Duration::MAX), LevelNote::from_bits(0)), (None, None));
    }
}
