//! `TierSetup`: the tiers below the device of a run, and the policy by which contents are stored in them.
//!
//! The first tier gets its contents from the device: when the device gives them up (*lazy*), after a prompt was computed
//! (*eager*), or from a cleaner, which copies the contents that are given up next before that is urgent (*cleaner*; the
//! others are copied as in *lazy*). A second tier gets the same contents as the first if the policy is eager
//! (write-through), and else those that the first gives up next.

pub mod options;
pub mod rates;
pub mod usage;

use std::fmt;
use std::num::{NonZeroU8, NonZeroUsize};

use paged_kv::{PagedKvCacheBuilder, Tier};

use self::rates::Rates;

/// Blocks that a cleaner keeps ahead by default.
const AHEAD: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// When contents are stored in a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorePolicy {
    /// When the device is about to overwrite them.
    Lazy,
    /// When the prompt of their `uses`-th request was computed.
    Eager { uses: NonZeroU8 },
    /// Once a step, if the next blocks that are taken would overwrite them. The others as if lazy.
    Cleaner { ahead: NonZeroUsize },
}

/// The memory of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TierKind {
    Host,
    Disk,
}

/// The tiers of one cache.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TierSetup {
    pub host: usize,
    pub disk: usize,
    pub store: StorePolicy,
    pub exclusive: bool,
    pub rates: Rates,
}

impl StorePolicy {
    pub fn parse(text: &str) -> Result<Self, String> {
        let parsed = match text.split_once(':').unwrap_or((text, "")) {
            ("lazy", "") => Some(Self::Lazy),
            ("eager", "") => Some(Self::Eager { uses: NonZeroU8::MIN }),
            ("eager", uses) => uses.parse().ok().map(|uses| Self::Eager { uses }),
            ("cleaner", "") => Some(Self::Cleaner { ahead: AHEAD }),
            ("cleaner", ahead) => ahead.parse().ok().map(|ahead| Self::Cleaner { ahead }),
            _ => None,
        };
        let expected = "expected lazy, eager, eager:USES (1 to 255), cleaner or cleaner:BLOCKS";
        parsed.filter(|_| !text.ends_with(':')).ok_or_else(|| expected.to_owned())
    }
}

impl fmt::Display for StorePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lazy => f.write_str("lazy"),
            Self::Eager { uses } if uses.get() == 1 => f.write_str("eager"),
            Self::Eager { uses } => write!(f, "eager:{uses}"),
            Self::Cleaner { ahead: AHEAD } => f.write_str("cleaner"),
            Self::Cleaner { ahead } => write!(f, "cleaner:{ahead}"),
        }
    }
}

impl TierKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Disk => "disk",
        }
    }
}

impl TierSetup {
    /// Returns the slots of each tier, in the order of their numbers.
    pub fn sizes(&self) -> impl Iterator<Item = (TierKind, usize)> {
        let all = [(TierKind::Host, self.host), (TierKind::Disk, self.disk)];
        all.into_iter().filter(|&(_, slots)| slots > 0)
    }

    /// Returns the slots of all tiers.
    pub fn slots(&self) -> usize {
        self.host.saturating_add(self.disk)
    }

    /// Returns how many tiers, from the first on, are loaded from: those from which loading a block of `block_size` tokens
    /// is faster than computing it.
    pub fn loaded_tiers(&self, block_size: usize) -> usize {
        self.sizes().take_while(|&(kind, _)| self.rates.loads_from(kind, block_size)).count()
    }

    /// Adds the tiers to a cache.
    pub fn build_into(&self, builder: PagedKvCacheBuilder) -> PagedKvCacheBuilder {
        self.sizes().fold(builder, |builder, size| builder.tier(self.tier(size)))
    }

    fn tier(&self, (kind, slots): (TierKind, usize)) -> Tier {
        let tier = match kind {
            TierKind::Host => Tier::host(slots),
            TierKind::Disk => Tier::disk(slots),
        };
        let tier = if self.exclusive { tier.exclusive() } else { tier };
        match self.store {
            StorePolicy::Eager { uses } => tier.from_use(uses.get()),
            _ => tier,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_store_policy_has_a_name() {
        for text in ["lazy", "eager", "eager:2", "cleaner", "cleaner:512"] {
            assert_eq!(StorePolicy::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "Lazy", "lazy:1", "eager:0", "eager:", "eager:256", "cleaner:-1"] {
            assert!(StorePolicy::parse(text).is_err(), "{text:?} was taken");
        }
    }
}
