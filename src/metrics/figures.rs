//! The metrics named `paged_kv_*`: each is one figure of the snapshot. Their units are in their names.
//!
//! The list of these names is a contract: dashboards refer to them. The guide's page on metrics repeats it.

use std::fmt;

use super::sampler::BlockSampler;
use super::scrape::{Described, Scrape};
use crate::cache::PagedKvCache;
#[cfg(feature = "events")]
use crate::event::PublisherStats;
use crate::stats::CacheStats;

/// A metric of one figure, read from statistics of type `S`.
pub(super) struct Figure<S> {
    pub(super) described: Described,
    pub(super) read: fn(&S) -> u64,
}

pub(super) const fn figure<S>(
    name: &'static str,
    help: &'static str,
    read: fn(&S) -> u64,
) -> Figure<S> {
    Figure { described: Described { name, help }, read }
}

const GAUGES: &[Figure<CacheStats>] = &[
    figure("paged_kv_blocks", "Blocks of the pool.", |stats| stats.blocks_total as u64),
    figure("paged_kv_blocks_used", "Blocks in use.", |stats| stats.blocks_used as u64),
    figure("paged_kv_blocks_used_peak", "The most blocks in use at one time.", |stats| {
        stats.peak_blocks_used as u64
    }),
    figure(
        "paged_kv_blocks_idle",
        "Cached blocks without an owner, which are available.",
        |stats| stats.blocks_idle as u64,
    ),
    figure(
        "paged_kv_blocks_pinned",
        "Blocks of all pins, and those that two pins have twice.",
        |stats| stats.blocks_pinned as u64,
    ),
    figure("paged_kv_sequences", "Sequences in the cache by id.", |stats| {
        stats.num_sequences as u64
    }),
    figure("paged_kv_steps_open", "Steps that are open.", |stats| stats.steps_open as u64),
    figure(
        "paged_kv_evicted_ids",
        "Ids of evicted sequences that their workers have not freed yet.",
        |stats| stats.evicted_ids as u64,
    ),
];

const COUNTERS: &[Figure<CacheStats>] = &[
    figure("paged_kv_blocks_allocated", "Blocks taken from the available ones.", |stats| {
        stats.total_allocations
    }),
    figure("paged_kv_blocks_freed", "Blocks returned to the available ones.", |stats| {
        stats.total_frees
    }),
    figure("paged_kv_blocks_reclaimed", "Blocks whose cached contents were reclaimed.", |stats| {
        stats.blocks_reclaimed
    }),
    figure("paged_kv_evictions", "Sequences evicted.", |stats| stats.total_evictions),
    figure(
        "paged_kv_evicted_ids_forgotten",
        "Ids of evicted sequences that were dropped to make place for later ones.",
        |stats| stats.evicted_ids_forgotten,
    ),
    figure("paged_kv_forks", "Sequences made by forking.", |stats| stats.total_forks),
    figure("paged_kv_prompt_tokens", "Tokens of admitted prompts.", |stats| stats.prompt_tokens),
    figure("paged_kv_prompt_tokens_hit", "Tokens of admitted prompts that were cached.", |stats| {
        stats.prompt_tokens_hit
    }),
    figure(
        "paged_kv_prompt_tokens_too_short",
        "Tokens of admitted prompts of one block or less, which cannot hit.",
        |stats| stats.prompt_tokens_too_short,
    ),
    figure("paged_kv_events_dropped", "Events that were not emitted to the sink.", |stats| {
        stats.events_dropped
    }),
];

#[cfg(feature = "events")]
const OF_PUBLISHER: &[Figure<PublisherStats>] = &[
    figure("paged_kv_publisher_blocks", "Blocks in published events.", |stats| stats.blocks),
    figure(
        "paged_kv_publisher_blocks_without_tokens",
        "Blocks that were not published, because their tokens are not known.",
        |stats| stats.blocks_without_tokens,
    ),
    figure(
        "paged_kv_publisher_batches_lost",
        "Batches that were dropped before they could be sent.",
        |stats| stats.batches_lost,
    ),
    figure(
        "paged_kv_publisher_batches_missed",
        "Batches that subscribers missed, counted for each of them.",
        |stats| stats.batches_missed,
    ),
    figure(
        "paged_kv_publisher_peers_refused",
        "Connections refused or closed because all places were taken.",
        |stats| stats.peers_refused,
    ),
    figure("paged_kv_publisher_sockets_lost", "Listening sockets that failed.", |stats| {
        stats.sockets_lost
    }),
];

const BLOCK_TOKENS: Described =
    Described { name: "paged_kv_block_size_tokens", help: "Tokens of a block." };
const BLOCK_BYTES: Described = Described {
    name: "paged_kv_block_size_bytes",
    help: "Bytes of the keys and values of a block.",
};
const REQUESTS_WAITING: Described = Described {
    name: "paged_kv_requests_waiting",
    help: "Requests that wait for room: new ones, and those of sequences that grow.",
};

const LOST_BY_GROUP: Described = Described {
    name: "paged_kv_group_prompt_tokens_lost",
    help: "Tokens of prompts by which a group of layers made hits shorter than the longest of a group alone.",
};

/// Encodes the figures of a cache.
pub(super) fn encode(
    scrape: &mut Scrape<'_>,
    cache: &PagedKvCache,
    stats: &CacheStats,
) -> fmt::Result {
    scrape.gauge(BLOCK_TOKENS, cache.block_size() as u64)?;
    scrape.gauge(BLOCK_BYTES, cache.block_memory_bytes() as u64)?;
    for gauge in GAUGES {
        scrape.gauge(gauge.described, (gauge.read)(stats))?;
    }
    let waiting =
        [("new", stats.requests_waiting_new), ("growing", stats.requests_waiting_to_grow)];
    let waiting = waiting.map(|(class, requests)| ([("class", class)], requests as u64));
    scrape.gauges(REQUESTS_WAITING, waiting)?;
    let lost = stats.groups.iter().map(|of| ([("group", of.group.0)], of.prompt_tokens_lost));
    scrape.counters_of_each(LOST_BY_GROUP, lost)?;
    encode_counters(scrape, COUNTERS, stats)
}

const LIFETIME: Described = Described {
    name: "paged_kv_block_lifetime_seconds",
    help: "Time from the first look at a content to the first look without it, sampled.",
};
const IDLE_BEFORE_RECLAIM: Described = Described {
    name: "paged_kv_block_idle_before_reclaim_seconds",
    help: "Time that a content was idle before it was reclaimed, sampled.",
};
const REUSE_GAP: Described = Described {
    name: "paged_kv_block_reuse_gap_seconds",
    help: "Time that a content was idle before a prompt matched it, sampled.",
};

/// Encodes the times of cached contents.
pub(super) fn encode_times(scrape: &mut Scrape<'_>, sampler: &BlockSampler) -> fmt::Result {
    scrape.histogram(LIFETIME, &sampler.lifetime)?;
    scrape.histogram(IDLE_BEFORE_RECLAIM, &sampler.idle_before_reclaim)?;
    scrape.histogram(REUSE_GAP, &sampler.reuse_gap)
}

/// Encodes the counts of a publisher.
#[cfg(feature = "events")]
pub(super) fn encode_publisher(scrape: &mut Scrape<'_>, stats: &PublisherStats) -> fmt::Result {
    encode_counters(scrape, OF_PUBLISHER, stats)
}

fn encode_counters<S>(scrape: &mut Scrape<'_>, figures: &[Figure<S>], stats: &S) -> fmt::Result {
    figures.iter().try_for_each(|figure| scrape.counter(figure.described, (figure.read)(stats)))
}
