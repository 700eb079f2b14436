//! `TierArguments` and `TierCurveArguments`: the options of tiers, for a replay with one cache and a sweep with many.

use clap::Args;

use super::rates::Rates;
use super::{StorePolicy, TierSetup};

/// The size of a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TierSize {
    Blocks(usize),
    /// Times the blocks of the device.
    Multiple(usize),
}

/// Options of tiers that a sweep has once.
#[derive(Args, Clone, Copy, Debug)]
pub struct CommonTierArguments {
    /// Blocks on disk, below host memory: a number, or 16x for 16 times the blocks of the pool. Eager stores go to both
    /// tiers; else the disk gets the contents that host memory gives up next
    #[arg(long, value_name = "N|Nx", default_value = "0", requires = "host_blocks",
          value_parser = TierSize::parse)]
    disk_blocks: TierSize,

    /// Let a content leave its tier when it is loaded; by default it stays
    #[arg(long, requires = "host_blocks")]
    exclusive: bool,

    #[command(flatten)]
    rates: Rates,
}

/// Options of tiers of `replay`.
#[derive(Args, Clone, Copy, Debug)]
pub struct TierArguments {
    /// Blocks in host memory, for contents that the pool gives up: a number, or 4x for 4 times the blocks of the pool
    #[arg(long, value_name = "N|Nx", default_value = "0", conflicts_with = "groups",
          value_parser = TierSize::parse)]
    host_blocks: TierSize,

    /// When contents are stored in the tier below the device: lazy (when they are about to be overwritten), eager (when the
    /// prompt was computed), eager:USES (at that use) or cleaner[:BLOCKS] (each step, those that the next BLOCKS
    /// blocks would overwrite, and as lazy for the rest; BLOCKS is 256
    /// by default)
    #[arg(long, value_name = "POLICY", default_value = "lazy", requires = "host_blocks",
          value_parser = StorePolicy::parse)]
    store: StorePolicy,

    #[command(flatten)]
    common: CommonTierArguments,
}

/// Options of tiers of `sweep`.
#[derive(Args, Clone, Debug)]
pub struct TierCurveArguments {
    /// Blocks in host memory, for contents that the cache gives up, a curve for each: numbers, or 4x for 4 times the blocks
    /// of the cache
    #[arg(long, value_name = "N|Nx,..", value_delimiter = ',', conflicts_with = "groups",
          value_parser = TierSize::parse)]
    host_blocks: Vec<TierSize>,

    /// When contents are stored in the tier below the device, a curve for each: some of lazy (when they are about to be
    /// overwritten), eager (when the prompt was computed), eager:USES (at that use) and cleaner[:BLOCKS] (each step, those
    /// that the next BLOCKS blocks would overwrite, and as lazy for the rest; BLOCKS is 256
    /// by default)
    #[arg(long, value_name = "POLICY,..", value_delimiter = ',', default_value = "lazy",
          requires = "host_blocks", value_parser = StorePolicy::parse)]
    store: Vec<StorePolicy>,

    #[command(flatten)]
    common: CommonTierArguments,
}

/// The tiers of the caches of one curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TierCurve {
    host: TierSize,
    disk: TierSize,
    pub store: StorePolicy,
    exclusive: bool,
    rates: Rates,
}

impl TierSize {
    pub fn parse(text: &str) -> Result<Self, String> {
        let size = match text.strip_suffix('x') {
            Some(times) => times.parse().map(Self::Multiple),
            None => text.parse().map(Self::Blocks),
        };
        size.map_err(|_| "expected a number of blocks, or a multiple such as 4x".to_owned())
    }

    fn is_zero(self) -> bool {
        matches!(self, Self::Blocks(0) | Self::Multiple(0))
    }

    fn of(self, blocks: usize) -> usize {
        match self {
            Self::Blocks(size) => size,
            Self::Multiple(times) => blocks.saturating_mul(times),
        }
    }
}

impl std::fmt::Display for TierSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Blocks(size) => size.fmt(f),
            Self::Multiple(times) => write!(f, "{times}x"),
        }
    }
}

impl TierArguments {
    /// Returns the tiers below a device of `blocks` blocks, if it has some.
    pub fn setup(&self, blocks: usize) -> Option<TierSetup> {
        self.common.curve(self.host_blocks, self.store)?.setup(blocks).into()
    }
}

impl TierCurveArguments {
    /// Returns the tiers of each curve, `None` for a cache without tiers; nothing if no tiers are asked for.
    pub fn curves(&self) -> Vec<Option<TierCurve>> {
        let curve = |host| move |store| (host, store);
        let all =
            self.host_blocks.iter().flat_map(|&host| self.store.iter().copied().map(curve(host)));
        let mut curves = Vec::new();
        for (host, store) in all {
            let curve = self.common.curve(host, store);
            if !curves.contains(&curve) {
                curves.push(curve);
            }
        }
        curves
    }

    /// Returns true if curves differ by their policy.
    pub fn has_policies(&self) -> bool {
        self.store.len() > 1
    }
}

impl CommonTierArguments {
    fn curve(&self, host: TierSize, store: StorePolicy) -> Option<TierCurve> {
        let Self { disk_blocks: disk, exclusive, rates } = *self;
        let curve = TierCurve { host, disk, store, exclusive, rates };
        (!host.is_zero() || !disk.is_zero()).then_some(curve)
    }
}

impl TierCurve {
    /// Returns the tiers below a device of `blocks` blocks.
    pub fn setup(&self, blocks: usize) -> TierSetup {
        let Self { host, disk, store, exclusive, rates } = *self;
        TierSetup { host: host.of(blocks), disk: disk.of(blocks), store, exclusive, rates }
    }

    /// Returns the sizes in words.
    pub fn name(&self) -> String {
        let size = |name: &str, size: TierSize| (!size.is_zero()).then(|| format!("{name} {size}"));
        let sizes = [size("host", self.host), size("disk", self.disk)];
        sizes.into_iter().flatten().collect::<Vec<_>>().join(" + ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_number_or_a_multiple() {
        for (text, of_ten) in [("0", 0), ("7", 7), ("4x", 40), ("0x", 0)] {
            let size = TierSize::parse(text).unwrap();
            assert_eq!((size.of(10), size.is_zero()), (of_ten, of_ten == 0));
            assert_eq!(size.to_string(), text);
        }
        for text in ["", "x", "-1", "4X", "1.5x"] {
            assert!(TierSize::parse(text).is_err(), "{text:?} was taken");
        }
    }
}
