//! The metrics of the tiers below the device, of a cache that has some: `paged_kv_tier_*`, with the labels `tier` (its
//! number) and `medium`, and those of their tickets.

use std::fmt;

use super::figures::{Figure, figure};
use super::scrape::{Described, Scrape};
use crate::stats::{CacheStats, TierStats};

const GAUGES: &[Figure<TierStats>] = &[
    figure("paged_kv_tier_slots", "Slots of the tier.", |tier| tier.slots_total as u64),
    figure("paged_kv_tier_slots_ready", "Slots whose contents can be loaded.", |tier| {
        tier.slots_ready as u64
    }),
    figure("paged_kv_tier_slots_used", "Slots that tickets read or write.", |tier| {
        tier.slots_used as u64
    }),
    figure(
        "paged_kv_tier_slots_quarantined",
        "Slots that failed copies may still write.",
        |tier| tier.slots_quarantined as u64,
    ),
];

const COUNTERS: &[Figure<TierStats>] = &[
    figure("paged_kv_tier_blocks_stored", "Blocks copied to the tier.", |tier| tier.blocks_stored),
    figure(
        "paged_kv_tier_blocks_stored_from_tiers",
        "Blocks copied to the tier from other tiers.",
        |tier| tier.blocks_stored_from_tiers,
    ),
    figure("paged_kv_tier_blocks_loaded", "Blocks copied from the tier to the device.", |tier| {
        tier.blocks_loaded
    }),
    figure("paged_kv_tier_stored_bytes", "Bytes copied to the tier.", |tier| tier.bytes_stored),
    figure("paged_kv_tier_loaded_bytes", "Bytes copied from the tier to the device.", |tier| {
        tier.bytes_loaded
    }),
    figure(
        "paged_kv_tier_prompt_tokens_loaded",
        "Tokens of admitted prompts that were loaded from the tier.",
        |tier| tier.prompt_tokens_loaded,
    ),
    figure("paged_kv_tier_copies_failed", "Copies that failed or were given up.", |tier| {
        tier.copies_failed
    }),
    figure(
        "paged_kv_tier_stores_dropped",
        "Contents that were to be stored and were not.",
        |tier| tier.stores_dropped,
    ),
];

const IN_FLIGHT: Described = Described {
    name: "paged_kv_contents_in_flight",
    help: "Contents that are copied between the device and tiers.",
};
const QUARANTINED: Described = Described {
    name: "paged_kv_blocks_quarantined",
    help: "Blocks of the device that failed copies may still write.",
};
const PENDING: Described = Described {
    name: "paged_kv_admissions_pending",
    help: "Admissions that were told to wait for the copies of others.",
};

/// Encodes the figures of the tiers; nothing for a cache without tiers.
pub(super) fn encode(scrape: &mut Scrape<'_>, stats: &CacheStats) -> fmt::Result {
    if stats.tiers.is_empty() {
        return Ok(());
    }
    scrape.gauge(IN_FLIGHT, stats.contents_in_flight as u64)?;
    scrape.gauge(QUARANTINED, stats.blocks_quarantined as u64)?;
    scrape.counter(PENDING, stats.admissions_pending)?;
    let labels: Vec<_> = stats.tiers.iter().enumerate().map(labels_of).collect();
    let of_each = |figure: &Figure<TierStats>| {
        let values = stats.tiers.iter().map(figure.read);
        labels.iter().cloned().zip(values).collect::<Vec<_>>()
    };
    for gauge in GAUGES {
        scrape.gauges_of_each(gauge.described, of_each(gauge).into_iter())?;
    }
    for counter in COUNTERS {
        scrape.counters_of_each(counter.described, of_each(counter).into_iter())?;
    }
    Ok(())
}

fn labels_of((number, tier): (usize, &TierStats)) -> [(&'static str, String); 2] {
    let medium = tier.medium.map(|medium| medium.to_string()).unwrap_or_default();
    [("tier", number.to_string()), ("medium", medium)]
}
