//! [`BlockSampler`]: how long contents stay cached, idle before their reclaim, and idle before their reuse.
//!
//! A sampler looks at a share of the blocks, always the same ones, and compares each with its last look. So the
//! operations of the cache do nothing for it. Its times are exact to within the interval of its looks.
//!
//! Invariant: a content whose beginning the sampler has not seen adds no lifetime.

use std::fmt;
use std::time::{Duration, Instant};

use prometheus_client::metrics::histogram::Histogram;

use crate::cache::PagedKvCache;
use crate::id::BlockId;
use crate::pool::observed::ObservedContent;
use crate::sync::{PlainArc, PlainMutex};

/// Upper bounds of the histograms' buckets in seconds, those of vLLM.
const BUCKETS: [f64; 21] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0,
    120.0, 300.0, 600.0, 1200.0, 1800.0,
];

/// Samples the times of cached contents, for
/// [`CacheCollector::sampler`](super::CacheCollector::sampler).
///
/// Every scrape looks at the sampled blocks. A host that wants finer times calls [`observe`](Self::observe) in
/// shorter intervals, for example each 100 ms. A time shorter than the interval counts as 0.
///
/// ```
/// use std::sync::Arc;
///
/// use paged_kv::PagedKvCache;
/// use paged_kv::metrics::{BlockSampler, CacheCollector};
///
/// let cache = Arc::new(PagedKvCache::new(1024, 16, 8, 128));
/// let sampler = Arc::new(BlockSampler::new(cache.clone(), 64)); // one block in 64
/// let collector = CacheCollector::new(cache).sampler(sampler.clone());
/// sampler.observe();
/// # let _ = collector;
/// ```
pub struct BlockSampler {
    cache: PlainArc<PagedKvCache>,
    looks: PlainMutex<Looks>,
    pub(super) lifetime: Histogram,
    pub(super) idle_before_reclaim: Histogram,
    pub(super) reuse_gap: Histogram,
}

/// The last look at each sampled block.
struct Looks {
    blocks: Vec<(BlockId, Option<Seen>)>,
    is_first: bool,
}

/// A content at the last look.
#[derive(Clone, Copy)]
struct Seen {
    version: u32,
    /// The first look at it; `None` if it was there at the sampler's first look.
    began: Option<Instant>,
    idle: Option<Idle>,
}

/// The first look since the content became idle, and its epoch then.
#[derive(Clone, Copy)]
struct Idle {
    epoch: u8,
    since: Instant,
}

impl BlockSampler {
    /// Creates a sampler of one block in `one_in`; 0 counts as 1. It keeps the cache alive, and takes about 56
    /// bytes for each sampled block. A cache without prefix reuse has no contents to sample.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// let cache = Arc::new(paged_kv::PagedKvCache::new(8, 4, 1, 1));
    /// let sampler = paged_kv::metrics::BlockSampler::new(cache, 2);
    /// # let _ = sampler;
    /// ```
    pub fn new(cache: PlainArc<PagedKvCache>, one_in: usize) -> Self {
        let sampled = cache.pool().blocks().sampled(one_in.max(1));
        let blocks = sampled.map(|id| (id, None)).collect();
        let [lifetime, idle_before_reclaim, reuse_gap] =
            std::array::from_fn(|_| Histogram::new(BUCKETS));
        let looks = PlainMutex::new(Looks { blocks, is_first: true });
        Self { cache, looks, lifetime, idle_before_reclaim, reuse_gap }
    }

    /// Looks at the sampled blocks. Reads one cache line for each; waits only for another look.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// let cache = Arc::new(paged_kv::PagedKvCache::new(8, 4, 1, 1));
    /// paged_kv::metrics::BlockSampler::new(cache, 1).observe();
    /// ```
    pub fn observe(&self) {
        self.observe_at(Instant::now());
    }

    fn observe_at(&self, now: Instant) {
        let mut looks = self.looks.lock();
        let is_first = std::mem::replace(&mut looks.is_first, false);
        for (id, last) in &mut looks.blocks {
            // A content that changes during the look is seen by the next one.
            let Ok(content) = self.cache.pool().blocks().observe_content(*id) else { continue };
            let began = (!is_first).then_some(now);
            *last = self.compare(*last, content, began, now);
        }
    }

    /// Counts the time that ended between the last look and this one. Returns this look.
    fn compare(
        &self,
        last: Option<Seen>,
        content: Option<ObservedContent>,
        began: Option<Instant>,
        now: Instant,
    ) -> Option<Seen> {
        let same = last.filter(|seen| content.is_some_and(|now| now.version == seen.version));
        if let (Some(seen), None) = (last, same) {
            self.count_end(seen, now);
        }
        let ObservedContent { version, idle_epoch } = content?;
        let since = |epoch| Idle { epoch, since: now };
        let Some(seen) = same else {
            return Some(Seen { version, began, idle: idle_epoch.map(since) });
        };
        let idle = match (seen.idle, idle_epoch) {
            // In epoch 0 a reclaim was undone: it has been idle all the time.
            (Some(idle), Some(epoch)) if epoch == idle.epoch || epoch == 0 => {
                Some(Idle { epoch, ..idle })
            }
            (Some(idle), again) => {
                self.reuse_gap.observe(seconds(now, idle.since));
                again.map(since)
            }
            (None, idle) => idle.map(since),
        };
        Some(Seen { idle, ..seen })
    }

    fn count_end(&self, seen: Seen, now: Instant) {
        if let Some(began) = seen.began {
            self.lifetime.observe(seconds(now, began));
        }
        let idle = seen.idle.map_or(0.0, |idle| seconds(now, idle.since));
        self.idle_before_reclaim.observe(idle);
    }
}

fn seconds(now: Instant, earlier: Instant) -> f64 {
    now.saturating_duration_since(earlier).max(Duration::ZERO).as_secs_f64()
}

impl fmt::Debug for BlockSampler {
    /// Writes the type's name, and not the blocks.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockSampler").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::id::SeqId;

    const A: SeqId = SeqId(1);

    /// A cache of 4 blocks, all of them sampled, with a clock that the test sets.
    struct Sampled {
        cache: PlainArc<PagedKvCache>,
        sampler: BlockSampler,
        start: Instant,
    }

    impl Sampled {
        fn new() -> Self {
            let cache = PlainArc::new(PagedKvCache::new(4, 4, 1, 1));
            let sampler = BlockSampler::new(cache.clone(), 1);
            Self { cache, sampler, start: Instant::now() }
        }

        fn look(&self, at: u64) {
            self.sampler.observe_at(self.start + Duration::from_secs(at));
        }

        /// Admits a prompt of two blocks and publishes the first, frees it, and returns the hits.
        fn use_content(&self, token: u32) -> usize {
            let hits = self.cache.admit(A, &[token; 5]).unwrap().cached_tokens;
            self.cache.commit(A, 4).unwrap();
            self.cache.free(A).unwrap();
            hits
        }

        /// Overwrites all idle contents.
        fn overwrite(&self) {
            drop(self.cache.pool().allocate(4).unwrap());
        }

        /// Asserts the count and the sum of the lifetimes, the idle times and the gaps.
        #[track_caller]
        fn assert_times(&self, expected: [(u64, f64); 3]) {
            let Self { sampler, .. } = self;
            let histograms = [&sampler.lifetime, &sampler.idle_before_reclaim, &sampler.reuse_gap];
            assert_eq!(histograms.map(count_and_sum), expected);
        }
    }

    fn count_and_sum(histogram: &Histogram) -> (u64, f64) {
        let (mut registry, mut text) = (Registry::default(), String::new());
        registry.register("time", "Time", histogram.clone());
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.expect("the histogram has it").trim().parse::<f64>().unwrap()
        };
        (value("time_count ") as u64, value("time_sum "))
    }

    #[test]
    fn a_content_that_is_never_reused_has_a_lifetime_and_an_idle_time() {
        let sampled = Sampled::new();
        sampled.look(0);
        sampled.cache.admit(A, &[7; 5]).unwrap();
        sampled.cache.commit(A, 4).unwrap();
        sampled.look(1);
        sampled.look(5);
        sampled.cache.free(A).unwrap();
        sampled.look(10);
        sampled.assert_times([(0, 0.0), (0, 0.0), (0, 0.0)]);
        sampled.overwrite();
        sampled.look(40);
        sampled.assert_times([(1, 39.0), (1, 30.0), (0, 0.0)]);
        sampled.look(50);
        sampled.assert_times([(1, 39.0), (1, 30.0), (0, 0.0)]);
    }

    #[test]
    fn a_reuse_ends_an_idle_time() {
        let sampled = Sampled::new();
        sampled.look(0);
        assert_eq!(sampled.use_content(7), 0);
        sampled.look(1);
        // Matched and idle again between two looks.
        assert_eq!(sampled.use_content(7), 4);
        sampled.look(3);
        sampled.assert_times([(0, 0.0), (0, 0.0), (1, 2.0)]);
        // Matched, and in use at the next look.
        sampled.cache.admit(A, &[7; 5]).unwrap();
        sampled.look(7);
        sampled.assert_times([(0, 0.0), (0, 0.0), (2, 6.0)]);
        sampled.cache.free(A).unwrap();
        sampled.look(8);
        sampled.overwrite();
        sampled.look(10);
        sampled.assert_times([(1, 9.0), (1, 2.0), (2, 6.0)]);
    }

    #[test]
    fn contents_from_before_the_first_look_have_no_lifetime() {
        let sampled = Sampled::new();
        sampled.use_content(7);
        sampled.look(0);
        sampled.overwrite();
        sampled.look(3);
        sampled.assert_times([(0, 0.0), (1, 3.0), (0, 0.0)]);
    }

    #[test]
    fn another_content_of_the_block_ends_the_first() {
        let sampled = Sampled::new();
        sampled.look(0);
        sampled.use_content(7);
        sampled.look(1);
        sampled.overwrite();
        // The same block gets the next content between the looks.
        (8..12).for_each(|token| _ = sampled.use_content(token));
        sampled.look(5);
        let (ended, _) = count_and_sum(&sampled.sampler.lifetime);
        assert_eq!(ended, 1);
    }

    #[test]
    fn an_undone_reclaim_is_no_reuse() {
        let sampled = Sampled::new();
        sampled.look(0);
        sampled.use_content(7);
        sampled.look(1);
        let held = sampled.cache.pool().allocate(1).unwrap();
        // Finds three blocks, one of them by a reclaim, and puts them back.
        sampled.cache.pool().allocate(4).unwrap_err();
        drop(held);
        sampled.look(2);
        sampled.assert_times([(0, 0.0), (0, 0.0), (0, 0.0)]);
        sampled.overwrite();
        sampled.look(4);
        sampled.assert_times([(1, 3.0), (1, 3.0), (0, 0.0)]);
    }

    #[test]
    fn one_block_in_so_many_is_sampled() {
        let cache = PlainArc::new(PagedKvCache::new(100, 4, 1, 1));
        let sampled = |one_in| BlockSampler::new(cache.clone(), one_in).looks.lock().blocks.len();
        assert_eq!([0, 1, 10, 64, 1_000].map(sampled), [100, 100, 10, 2, 1]);
        let builder = PagedKvCache::builder().num_blocks(8).prefix_reuse(false);
        let without = BlockSampler::new(PlainArc::new(builder.build().unwrap()), 1);
        without.observe();
        assert_eq!(without.looks.lock().blocks.len(), 0);
    }
}
