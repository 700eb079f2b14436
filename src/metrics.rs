//! [`CacheCollector`]: the figures of a cache for the crate `prometheus-client`, read at each scrape.
//!
//! A scrape takes one snapshot, [`CacheStats`], and encodes it. So metrics add no write to any operation of the
//! cache, and a scrape waits for no operation. The names are `paged_kv_*`. On request the figures also appear
//! under the names that vLLM gives them, so that dashboards and routers made for vLLM read them unchanged.
//!
//! ```
//! use std::sync::Arc;
//!
//! use paged_kv::metrics::CacheCollector;
//! use paged_kv::{PagedKvCache, SeqId};
//! use prometheus_client::encoding::prometheus_text::encode;
//! use prometheus_client::registry::Registry;
//!
//! let cache = Arc::new(PagedKvCache::new(8, 4, 1, 1));
//! let collector = CacheCollector::new(cache.clone()).vllm_names("llama", 0);
//! let mut registry = Registry::default();
//! registry.register_collector(Box::new(collector));
//!
//! cache.allocate(SeqId(1), 9)?;
//! let mut text = String::new();
//! encode(&mut text, &registry)?;
//! assert!(text.contains("paged_kv_blocks_used 3\n"));
//! assert!(text.contains("vllm:kv_cache_usage_perc{model_name=\"llama\",engine=\"0\"} 0.375\n"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod figures;
mod sampler;
mod scrape;
mod tiers;
mod vllm;

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

pub use self::sampler::BlockSampler;
use self::scrape::Scrape;
use self::vllm::VllmNames;
use crate::cache::PagedKvCache;
#[cfg(feature = "events")]
use crate::event::EventPublisher;
#[cfg(doc)]
use crate::stats::CacheStats;
use crate::sync::PlainArc;

/// Collects the figures of one cache, for a [`Registry`](prometheus_client::registry::Registry).
///
/// It keeps the cache alive. Register it once for each cache. A registry with the caches of several engines
/// distinguishes them by labels: register each collector in a
/// [`sub_registry_with_label`](prometheus_client::registry::Registry::sub_registry_with_label).
///
/// ```
/// use std::sync::Arc;
///
/// use paged_kv::PagedKvCache;
/// use paged_kv::metrics::CacheCollector;
/// use prometheus_client::registry::Registry;
///
/// let cache = Arc::new(PagedKvCache::new(8, 4, 1, 1));
/// let mut registry = Registry::default();
/// registry.register_collector(Box::new(CacheCollector::new(cache)));
/// ```
pub struct CacheCollector {
    cache: PlainArc<PagedKvCache>,
    vllm: Option<VllmNames>,
    counts_requests: bool,
    sampler: Option<PlainArc<BlockSampler>>,
    #[cfg(feature = "events")]
    publisher: Option<PlainArc<EventPublisher>>,
}

impl CacheCollector {
    /// Creates a collector of the `paged_kv_*` metrics of this cache.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// let cache = Arc::new(paged_kv::PagedKvCache::new(8, 4, 1, 1));
    /// let collector = paged_kv::metrics::CacheCollector::new(cache);
    /// # let _ = collector;
    /// ```
    pub fn new(cache: PlainArc<PagedKvCache>) -> Self {
        Self {
            cache,
            vllm: None,
            counts_requests: false,
            sampler: None,
            #[cfg(feature = "events")]
            publisher: None,
        }
    }

    /// Adds those of vLLM's metrics that a cache knows, under vLLM's names, with the labels `model_name` and
    /// `engine`. The server registers vLLM's other metrics itself: those of tokens, latencies and outcomes.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// let cache = Arc::new(paged_kv::PagedKvCache::new(8, 4, 1, 1));
    /// let collector = paged_kv::metrics::CacheCollector::new(cache).vllm_names("llama", 0);
    /// # let _ = collector;
    /// ```
    pub fn vllm_names(self, model_name: impl Into<String>, engine: u32) -> Self {
        Self { vllm: Some(VllmNames::new(model_name.into(), engine)), ..self }
    }

    /// Adds `vllm:num_requests_running` and `vllm:num_requests_waiting` to vLLM's names.
    ///
    /// This is for a server whose running requests are all in the cache by id, and whose other requests all
    /// wait in [`PagedKvCache::waiting`]. Another server counts its requests itself. Without
    /// [`vllm_names`](Self::vllm_names) it has no effect.
    ///
    #[cfg_attr(feature = "async", doc = "[`PagedKvCache::waiting`]: crate::PagedKvCache::waiting")]
    #[cfg_attr(not(feature = "async"), doc = "[`PagedKvCache::waiting`]: crate::PagedKvCache")]
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// let cache = Arc::new(paged_kv::PagedKvCache::new(8, 4, 1, 1));
    /// let collector = paged_kv::metrics::CacheCollector::new(cache);
    /// let collector = collector.vllm_names("llama", 0).vllm_requests();
    /// # let _ = collector;
    /// ```
    pub fn vllm_requests(self) -> Self {
        Self { counts_requests: true, ..self }
    }

    /// Adds histograms of the times of cached contents: how long they stay, and how long they are idle before
    /// their reclaim and before their reuse. The sampler is of the same cache. Every scrape looks at its blocks.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use paged_kv::metrics::{BlockSampler, CacheCollector};
    ///
    /// let cache = Arc::new(paged_kv::PagedKvCache::new(1024, 16, 8, 128));
    /// let sampler = Arc::new(BlockSampler::new(cache.clone(), 100));
    /// let collector = CacheCollector::new(cache).sampler(sampler);
    /// # let _ = collector;
    /// ```
    pub fn sampler(self, sampler: PlainArc<BlockSampler>) -> Self {
        Self { sampler: Some(sampler), ..self }
    }

    /// Adds the counts of the publisher of the cache's events.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use paged_kv::PagedKvCache;
    /// use paged_kv::event::{EventPublisher, PublisherOptions};
    /// use paged_kv::metrics::CacheCollector;
    ///
    /// let options = PublisherOptions::default().endpoint("tcp://127.0.0.1:0");
    /// let publisher = Arc::new(EventPublisher::bind(&options)?);
    /// let builder = PagedKvCache::builder().num_blocks(8).block_size(4);
    /// let cache = Arc::new(builder.event_sink(publisher.clone()).build()?);
    /// let collector = CacheCollector::new(cache).publisher(publisher);
    /// # let _ = collector;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "events")]
    pub fn publisher(self, publisher: PlainArc<EventPublisher>) -> Self {
        Self { publisher: Some(publisher), ..self }
    }
}

impl Collector for CacheCollector {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let (mut scrape, stats) = (Scrape::new(encoder), self.cache.stats());
        figures::encode(&mut scrape, &self.cache, &stats)?;
        tiers::encode(&mut scrape, &stats)?;
        if let Some(sampler) = &self.sampler {
            sampler.observe();
            figures::encode_times(&mut scrape, sampler)?;
        }
        #[cfg(feature = "events")]
        if let Some(publisher) = &self.publisher {
            figures::encode_publisher(&mut scrape, &publisher.stats())?;
        }
        let Some(vllm) = &self.vllm else { return Ok(()) };
        vllm.encode(&mut scrape, &self.cache, &stats)?;
        vllm.encode_tiers(&mut scrape, &self.cache, &stats)?;
        if let Some(sampler) = &self.sampler {
            vllm.encode_times(&mut scrape, sampler)?;
        }
        if self.counts_requests { vllm.encode_requests(&mut scrape, &stats) } else { Ok(()) }
    }
}

impl fmt::Debug for CacheCollector {
    /// Writes the options, and not the state of the cache.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheCollector")
            .field("vllm", &self.vllm)
            .field("counts_requests", &self.counts_requests)
            .field("sampler", &self.sampler)
            .finish_non_exhaustive()
    }
}
