//! `PublisherOptions`: endpoints, format and bounds of a publisher.

use std::time::Duration;

use crate::event::batches::Bounds;
use crate::event::published_groups::PublishedGroups;
use crate::event::published_media::PublishedMedia;
use crate::event::wire::{Dialect, WireFormat};
use crate::id::Medium;

/// The most connections that are open at one endpoint, unless the options set another number.
const CONNECTIONS: usize = 2_048;
/// The longest age of a batch: a duration that can be added to a time without overflow.
const FOR_EVER: Duration = Duration::from_secs(1 << 32);

/// Endpoints, format and bounds of a publisher.
///
/// ```
/// use std::time::Duration;
///
/// use paged_kv::event::{Dialect, PublisherOptions};
///
/// let options = PublisherOptions::default()
///     .endpoint("tcp://127.0.0.1:5557")
///     .replay_endpoint("tcp://127.0.0.1:5558")
///     .topic("kv@pod-7@llama")
///     .dialect(Dialect::Array)
///     .batch_age(Duration::from_millis(5));
/// # let _ = options;
/// ```
#[derive(Clone, Debug)]
pub struct PublisherOptions {
    pub(super) endpoint: String,
    pub(super) replay_endpoint: Option<String>,
    pub(super) topic: String,
    pub(super) format: WireFormat,
    pub(super) bounds: Bounds,
    pub(super) connections: usize,
}

impl Default for PublisherOptions {
    /// Publishes on `tcp://*:5557`, without replay, without a topic, in maps. Seals batches at 512 blocks or
    /// 10 ms. Keeps the last 10,000 batches, of at most 64 MiB. Allows 2,048 connections at each endpoint.
    fn default() -> Self {
        Self {
            endpoint: "tcp://*:5557".to_owned(),
            replay_endpoint: None,
            topic: String::new(),
            format: WireFormat {
                dialect: Dialect::default(),
                media: PublishedMedia::default(),
                rank: 0,
                salts: true,
                groups: None,
            },
            bounds: Bounds {
                batch_blocks: 512,
                batch_age: Duration::from_millis(10),
                ring_batches: 10_000,
                ring_bytes: 64 << 20,
            },
            connections: CONNECTIONS,
        }
    }
}

impl PublisherOptions {
    /// Sets the address for subscribers: `tcp://address:port`. `*` is every address, port 0 a free one.
    ///
    /// ```
    /// use paged_kv::event::{EventPublisher, PublisherOptions};
    ///
    /// let options = PublisherOptions::default().endpoint("ipc:///tmp/kv");
    /// assert!(EventPublisher::bind(&options).is_err());
    /// ```
    pub fn endpoint(self, endpoint: impl Into<String>) -> Self {
        Self { endpoint: endpoint.into(), ..self }
    }

    /// Sets the address where routers ask for batches that they missed.
    ///
    /// ```
    /// use paged_kv::event::PublisherOptions;
    ///
    /// let options = PublisherOptions::default().replay_endpoint("tcp://*:5558");
    /// # let _ = options;
    /// ```
    pub fn replay_endpoint(self, endpoint: impl Into<String>) -> Self {
        Self { replay_endpoint: Some(endpoint.into()), ..self }
    }

    /// Sets the first frame of every message, by default empty. llm-d expects `kv@<pod>@<model>`.
    ///
    /// ```
    /// let options = paged_kv::event::PublisherOptions::default().topic("kv@pod-7@llama");
    /// # let _ = options;
    /// ```
    pub fn topic(self, topic: impl Into<String>) -> Self {
        Self { topic: topic.into(), ..self }
    }

    /// Sets the encoding of events.
    ///
    /// ```
    /// use paged_kv::event::{Dialect, PublisherOptions};
    ///
    /// let options = PublisherOptions::default().dialect(Dialect::Array);
    /// # let _ = options;
    /// ```
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.format.dialect = dialect;
        self
    }

    /// Sets the groups of layers whose events are published. By default all in maps, and those of full attention in
    /// arrays: most consumers of arrays do not know groups.
    ///
    /// ```
    /// use paged_kv::event::{PublishedGroups, PublisherOptions};
    ///
    /// let options = PublisherOptions::default().groups(PublishedGroups::Full);
    /// # let _ = options;
    /// ```
    pub fn groups(mut self, groups: PublishedGroups) -> Self {
        self.format.groups = Some(groups);
        self
    }

    /// Sets the name of the device in events, by default `GPU`.
    ///
    /// ```
    /// let options = paged_kv::event::PublisherOptions::default().medium("XPU");
    /// # let _ = options;
    /// ```
    pub fn medium(self, medium: impl Into<String>) -> Self {
        self.medium_of(Medium::Device, medium)
    }

    /// Sets the name of a medium in events, by default `GPU`, `CPU` and `DISK`. vLLM calls the last one `STORAGE`; Dynamo
    /// takes both names for one.
    ///
    /// ```
    /// use paged_kv::Medium;
    /// use paged_kv::event::PublisherOptions;
    ///
    /// let options = PublisherOptions::default().tiers(true).medium_of(Medium::Disk, "STORAGE");
    /// # let _ = options;
    /// ```
    pub fn medium_of(mut self, of: Medium, name: impl Into<String>) -> Self {
        self.format.media.set_name(of, name.into());
        self
    }

    /// Sets whether the events of [tiers](crate::Tier) are published, by default false: then only the events of the device
    /// are, and any consumer is right about the device.
    ///
    /// Set it only if every consumer keeps media apart, as Dynamo does. A consumer that reads no `medium` would
    /// take a content that leaves a tier for one that leaves the device, and a content in a tier for one on the device.
    /// Events of tiers have hashes only, as vLLM's of offloaded blocks, so they are of use to a consumer that knows the
    /// hashes from events of the device.
    ///
    /// Dynamo 1.6.1 keeps the salts of prompts in one record for the device and for `CPU`, which events without tokens
    /// spoil. Where prompts have salts, give the host a name that it takes for a disk,
    /// `medium_of(Medium::Host, "CPU_TIER2")`, or leave salts out ([`publish_salts`](Self::publish_salts)).
    ///
    /// ```
    /// let options = paged_kv::event::PublisherOptions::default().tiers(true);
    /// # let _ = options;
    /// ```
    pub fn tiers(mut self, tiers: bool) -> Self {
        self.format.media.tiers = tiers;
        self
    }

    /// Sets the number of this engine among several data-parallel engines, by default 0.
    ///
    /// ```
    /// let options = paged_kv::event::PublisherOptions::default().rank(3);
    /// # let _ = options;
    /// ```
    pub fn rank(mut self, rank: i32) -> Self {
        self.format.rank = rank;
        self
    }

    /// Sets the number of blocks from which a batch is sent immediately; by default 512. A batch that holds
    /// more than an eighth of the bytes that are kept for replay is sent too.
    ///
    /// ```
    /// let options = paged_kv::event::PublisherOptions::default().batch_blocks(64);
    /// # let _ = options;
    /// ```
    pub fn batch_blocks(mut self, blocks: usize) -> Self {
        self.bounds.batch_blocks = blocks.max(1);
        self
    }

    /// Sets the age from which a batch is sent however small it is; by default 10 ms.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let options = paged_kv::event::PublisherOptions::default().batch_age(Duration::ZERO);
    /// # let _ = options;
    /// ```
    pub fn batch_age(mut self, age: Duration) -> Self {
        self.bounds.batch_age = age.min(FOR_EVER);
        self
    }

    /// Sets the batches, and their bytes, that are kept for replay; the bound that is reached first counts. By
    /// default 10,000 and 64 MiB. Batches that are not encoded yet count too. If more arrive than the
    /// publisher's thread can encode, the oldest are lost, and every subscriber sees a gap in the numbers.
    ///
    /// All slow subscribers share one queue of as many batches, but at most 1,000, and as many bytes. A
    /// subscriber that falls further behind misses the oldest batches, and sees a gap.
    ///
    /// ```
    /// let options = paged_kv::event::PublisherOptions::default().ring(1_000, 1 << 20);
    /// # let _ = options;
    /// ```
    pub fn ring(mut self, batches: usize, bytes: usize) -> Self {
        self.bounds.ring_batches = batches.max(1);
        self.bounds.ring_bytes = bytes;
        self
    }

    /// Sets the most open connections at each endpoint, by default 2,048. Each takes a file descriptor: keep
    /// both endpoints together below the limit of the process. When all are taken, a new peer replaces one
    /// that does not subscribe, ask or read. If there is none, the new peer is refused. Both count in
    /// [`PublisherStats::peers_refused`](crate::event::PublisherStats::peers_refused).
    ///
    /// ```
    /// let options = paged_kv::event::PublisherOptions::default().connections(64);
    /// # let _ = options;
    /// ```
    pub fn connections(self, connections: usize) -> Self {
        Self { connections: connections.max(1), ..self }
    }

    /// Sets whether events contain the salts of prompts ([`ExtraKeys::salt`]), by default true, as in vLLM. **A
    /// published salt is sent in clear**: every peer that reaches an endpoint can read it, and the tokens too.
    /// Without salts, blocks that differ only by their salt still have different hashes. A router that compares
    /// tokens and keys instead cannot distinguish them.
    ///
    /// ```
    /// let options = paged_kv::event::PublisherOptions::default().publish_salts(false);
    /// # let _ = options;
    /// ```
    ///
    /// [`ExtraKeys::salt`]: crate::ExtraKeys::salt
    pub fn publish_salts(mut self, publish_salts: bool) -> Self {
        self.format.salts = publish_salts;
        self
    }
}
