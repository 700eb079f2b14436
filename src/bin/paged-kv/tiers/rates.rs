//! `Rates`: the model of time: how fast blocks are loaded from each tier, and how fast prompts are computed.
//!
//! It has no latency and no overlap: a load takes its bytes divided by the bandwidth, and the request waits for it. A store
//! takes no time of a request. No byte is moved in a replay, so all seconds are of this model, none is measured.

use clap::Args;
use paged_kv::LoadLimit;

use super::TierKind;

/// Bytes of a gigabyte of bandwidth.
const GIGABYTE: f64 = 1e9;

/// The options of the model, and its values.
#[derive(Args, Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Rates {
    /// Bytes of the keys and values of a token, in all layers; the default is Llama 3.1 8B in 16 bits
    #[arg(long, value_name = "BYTES", default_value = "131072", requires = "host_blocks",
          value_parser = positive)]
    pub token_bytes: f64,

    /// Bandwidth of loads from host memory, in GB/s; the default is about that of PCIe 4.0 x16
    #[arg(long, value_name = "GBPS", default_value = "25", requires = "host_blocks",
          value_parser = positive)]
    pub load_gbps: f64,

    /// Bandwidth of loads from disk, in GB/s; the default is about that of an NVMe disk
    #[arg(long, value_name = "GBPS", default_value = "6", requires = "host_blocks",
          value_parser = positive)]
    pub disk_gbps: f64,

    /// Prompt tokens computed in a second. A tier from which loading is slower than computing is not loaded from
    #[arg(long, value_name = "TOKENS", default_value = "10000", requires = "host_blocks",
          value_parser = positive)]
    pub compute_tps: f64,
}

impl Rates {
    /// Returns the tokens that are loaded from a tier in a second.
    pub fn tokens_per_second(&self, from: TierKind) -> f64 {
        let gigabytes = match from {
            TierKind::Host => self.load_gbps,
            TierKind::Disk => self.disk_gbps,
        };
        gigabytes * GIGABYTE / self.token_bytes
    }

    /// Returns whether loading blocks of `block_size` tokens is faster than computing them.
    pub fn loads_from(&self, tier: TierKind, block_size: usize) -> bool {
        let blocks_per_second = self.tokens_per_second(tier) / block_size as f64;
        let limit = LoadLimit::if_faster(blocks_per_second, self.compute_tps, block_size);
        limit != LoadLimit::none()
    }

    /// Returns the seconds in which `tokens` tokens are computed.
    pub fn compute_seconds(&self, tokens: u64) -> f64 {
        tokens as f64 / self.compute_tps
    }

    /// Returns the seconds in which `tokens` tokens are loaded.
    pub fn load_seconds(&self, from: TierKind, tokens: u64) -> f64 {
        tokens as f64 / self.tokens_per_second(from)
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value.is_finite() => Ok(value),
        _ => Err("expected a number above 0".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates =
        Rates { token_bytes: 100_000.0, load_gbps: 20.0, disk_gbps: 0.5, compute_tps: 10_000.0 };

    #[test]
    fn the_slower_of_loading_and_computing_is_not_done() {
        assert_eq!(RATES.tokens_per_second(TierKind::Host), 200_000.0);
        assert!(RATES.loads_from(TierKind::Host, 16));
        assert!(!RATES.loads_from(TierKind::Disk, 16));
        let slow = Rates { compute_tps: 4_000.0, ..RATES };
        assert!(slow.loads_from(TierKind::Disk, 16));
    }

    #[test]
    fn seconds_are_tokens_over_rates() {
        assert_eq!(RATES.compute_seconds(20_000), 2.0);
        assert_eq!(RATES.load_seconds(TierKind::Host, 20_000), 0.1);
        assert_eq!(RATES.load_seconds(TierKind::Disk, 20_000), 4.0);
    }

    #[test]
    fn a_rate_is_above_zero() {
        assert_eq!(positive("0.5"), Ok(0.5));
        for text in ["0", "-1", "NaN", "inf", "fast"] {
            assert!(positive(text).is_err(), "{text:?} was taken");
        }
    }
}
