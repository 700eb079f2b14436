//! `Usage`: the use of the tiers in a run: the tokens of prompts by their source, the copies, and the time saved.

use paged_kv::CacheStats;
use serde::Serialize;

use super::rates::Rates;
use super::{TierKind, TierSetup};
use crate::grouped::grouped;
use crate::serve::meter::Meter;

/// The use of all tiers. Its fields are those of the JSON object.
#[derive(Clone, Debug, Serialize)]
pub struct Usage {
    store: String,
    exclusive: bool,
    /// Tokens of admitted prompts by their source. A request that comes back counts again.
    pub device_tokens: u64,
    pub computed_tokens: u64,
    pub by_tier: Vec<TierUsage>,
    /// Blocks that were copied to the first tier just before they were overwritten, so that a step waits for the copy.
    pub late_stores: u64,
    /// The model of the seconds.
    rates: Rates,
    /// Seconds in which prompts would have been computed without tiers; with the same hits on the device.
    without_tiers_seconds: f64,
    /// Seconds less: tokens that were loaded are not computed, but loading takes time.
    pub saved_seconds: f64,
}

/// The use of one tier.
#[derive(Clone, Debug, Serialize)]
pub struct TierUsage {
    pub medium: &'static str,
    pub slots: usize,
    /// False if loading from the tier is slower than computing: nothing was loaded from it then.
    pub is_loaded_from: bool,
    /// Tokens of prompts that were loaded.
    pub hit_tokens: u64,
    pub blocks_stored: u64,
    pub blocks_loaded: u64,
    stores_dropped: u64,
    /// Blocks stored for each that was loaded, if one was.
    pub writes_per_hit: Option<f64>,
    load_seconds: f64,
}

impl Usage {
    /// Creates the report of a cache with these tiers and blocks of `block_size` tokens.
    pub fn new(setup: &TierSetup, block_size: usize, meter: &Meter, stats: &CacheStats) -> Self {
        let rates = setup.rates;
        let loaded_tiers = setup.loaded_tiers(block_size);
        let tiers = setup.sizes().zip(&stats.tiers).zip(meter.tier_tokens).enumerate();
        let by_tier = tiers.map(|(number, (((kind, slots), counts), hit_tokens))| TierUsage {
            medium: kind.name(),
            slots,
            is_loaded_from: number < loaded_tiers,
            hit_tokens,
            blocks_stored: counts.blocks_stored,
            blocks_loaded: counts.blocks_loaded,
            stores_dropped: counts.stores_dropped,
            writes_per_hit: (counts.blocks_loaded > 0)
                .then(|| counts.blocks_stored as f64 / counts.blocks_loaded as f64),
            load_seconds: rates.load_seconds(kind, hit_tokens),
        });
        let by_tier: Vec<TierUsage> = by_tier.collect();
        let hit_tokens: u64 = by_tier.iter().map(|tier| tier.hit_tokens).sum();
        let load_seconds: f64 = by_tier.iter().map(|tier| tier.load_seconds).sum();
        Self {
            store: setup.store.to_string(),
            exclusive: setup.exclusive,
            device_tokens: meter.prompt_tokens_hit - hit_tokens,
            computed_tokens: meter.prompt_tokens_computed,
            by_tier,
            late_stores: meter.late_stores,
            rates,
            without_tiers_seconds: rates.compute_seconds(meter.prompt_tokens_computed + hit_tokens),
            saved_seconds: rates.compute_seconds(hit_tokens) - load_seconds,
        }
    }

    /// Returns the tier of this kind, if there is one.
    pub fn tier(&self, kind: TierKind) -> Option<&TierUsage> {
        self.by_tier.iter().find(|tier| tier.medium == kind.name())
    }

    /// Returns the lines of the summary.
    pub fn lines(&self) -> Vec<String> {
        let of_tiers = self.by_tier.iter();
        let hits =
            of_tiers.map(|tier| format!("{} from {}, ", grouped(tier.hit_tokens), tier.medium));
        let mut lines = vec![format!(
            "prompt tokens: {} on the device, {}{} computed",
            grouped(self.device_tokens),
            hits.collect::<String>(),
            grouped(self.computed_tokens),
        )];
        let way = if self.exclusive { ", exclusive" } else { "" };
        lines.push(format!(
            "stored {}{way}; {} blocks just before they were overwritten",
            self.store,
            grouped(self.late_stores),
        ));
        lines.extend(self.by_tier.iter().map(TierUsage::line));
        lines.push(format!(
            "{:.1} of {:.1} s of computing saved, by the model of {} tokens/s computed, {} bytes a token, \
             {} GB/s from host, {} GB/s from disk",
            self.saved_seconds,
            self.without_tiers_seconds,
            self.rates.compute_tps,
            self.rates.token_bytes,
            self.rates.load_gbps,
            self.rates.disk_gbps,
        ));
        lines
    }
}

impl TierUsage {
    fn line(&self) -> String {
        let per_hit = self
            .writes_per_hit
            .map_or_else(String::new, |writes| format!(", {writes:.2} writes a hit"));
        let slower = match self.is_loaded_from {
            true => "",
            false => "; nothing is loaded, because loading is slower than computing",
        };
        format!(
            "{}: {} blocks, {} stored, {} loaded{per_hit}, {} not stored for lack of room{slower}",
            self.medium,
            grouped(self.slots as u64),
            grouped(self.blocks_stored),
            grouped(self.blocks_loaded),
            grouped(self.stores_dropped),
        )
    }
}
