//! `EventPublisher`: an event sink with two ZeroMQ sockets and a ring of batches.
//!
//! One socket publishes each batch to its subscribers. The other socket sends earlier batches again to a router
//! that asks for them. Frames and payloads are vLLM's.
//!
//! Invariant: the thread that emits an event copies it into the open batch and continues. It touches no socket,
//! and it encodes a batch only if readers are behind.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::batches::{Batches, Bounds};
use super::published_groups::PublishedGroups;
use super::sockets::{self, Endpoints, OpenSockets, Watched};
use super::wire::{Dialect, WireFormat};
use crate::prefix::kv_event::{EventSink, KvEvent};
use crate::sync::outside::{Arc, Mutex};

/// The most batches that wait for one subscriber.
const QUEUE_MAX: usize = 1_000;

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
    endpoint: String,
    replay_endpoint: Option<String>,
    topic: String,
    format: WireFormat,
    bounds: Bounds,
    connections: usize,
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
                medium: "GPU".to_owned(),
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

    /// Sets the place of the blocks, by default `GPU`.
    ///
    /// ```
    /// let options = paged_kv::event::PublisherOptions::default().medium("CPU");
    /// # let _ = options;
    /// ```
    pub fn medium(mut self, medium: impl Into<String>) -> Self {
        self.format.medium = medium.into();
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
    /// [`PublisherStats::peers_refused`].
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

/// The counts of a publisher.
///
/// ```
/// use paged_kv::event::{EventPublisher, PublisherOptions};
///
/// let options = PublisherOptions::default().endpoint("tcp://127.0.0.1:0");
/// assert_eq!(EventPublisher::bind(&options)?.stats().blocks, 0);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublisherStats {
    /// The number of the next batch.
    pub next_sequence: u64,
    /// Blocks in published events, stored and removed.
    pub blocks: u64,
    /// Blocks that were not published, because their tokens are not known.
    pub blocks_without_tokens: u64,
    /// Batches that the ring dropped before they could be sent: a gap in the numbers that every subscriber
    /// sees.
    pub batches_lost: u64,
    /// Batches that subscribers missed because they did not read in time, counted for each of them.
    pub batches_missed: u64,
    /// Connections that were refused or closed because all places were taken; see
    /// [`PublisherOptions::connections`].
    pub peers_refused: u64,
    /// Listening sockets that failed. The publisher binds to the address again by itself.
    pub sockets_lost: u64,
}

/// Publishes the events of a cache to routers, as vLLM does: ZeroMQ (ZMTP 3, without encryption),
/// MessagePack, and replay.
///
/// **Every host that reaches an endpoint can read everything**: token ids, the names of adapters and media,
/// and salts in clear ([`PublisherOptions::publish_salts`] leaves those out). So bind to an address of a
/// private network, or use a tunnel.
///
/// The cost of one peer is bounded, whatever it sends: a handshake of five seconds, frames of 4 KiB, 16 frames
/// a message, no memory for subscriptions, one batch in transfer, and a place among
/// [`connections`](PublisherOptions::connections). A slow subscriber misses batches and sees a gap in the
/// numbers; it delays no other. A listening socket that fails is bound again.
///
/// ```
/// use std::sync::Arc;
///
/// use paged_kv::event::{EventPublisher, PublisherOptions};
/// use paged_kv::{PagedKvCache, SeqId};
///
/// let options = PublisherOptions::default().endpoint("tcp://127.0.0.1:0");
/// let publisher = Arc::new(EventPublisher::bind(&options)?);
/// let builder = PagedKvCache::builder().num_blocks(8).block_size(4);
/// let cache = builder.event_sink(publisher.clone()).build()?;
/// cache.admit(SeqId(1), &[7; 9])?;
/// cache.commit(SeqId(1), 9)?;
/// assert_eq!(publisher.stats().blocks, 2);
/// publisher.shutdown(); // sends the remaining batches
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct EventPublisher {
    batches: Arc<Batches>,
    addresses: Vec<SocketAddr>,
    watched: Watched,
    open: Mutex<Option<OpenSockets>>,
}

impl EventPublisher {
    /// Listens at the endpoints. The first batch clears the consumer's view. Batches are numbered from the
    /// current time on, so that a restarted publisher never reuses old numbers.
    ///
    /// # Errors
    /// When an endpoint is not `tcp://address:port`, or taken.
    ///
    /// ```
    /// use paged_kv::event::{EventPublisher, PublisherOptions};
    ///
    /// let options = PublisherOptions::default().endpoint("tcp://127.0.0.1:0");
    /// let publisher = EventPublisher::bind(&options)?;
    /// let taken = format!("tcp://{}", publisher.address());
    /// assert!(EventPublisher::bind(&options.endpoint(taken)).is_err());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn bind(options: &PublisherOptions) -> io::Result<Self> {
        let place = Endpoints {
            publish: address_of(&options.endpoint)?,
            replay: options.replay_endpoint.as_deref().map(address_of).transpose()?,
            topic: options.topic.clone().into(),
            queue: options.bounds.ring_batches.min(QUEUE_MAX),
            queue_bytes: options.bounds.ring_bytes,
            connections: options.connections,
        };
        let batches = Arc::new(Batches::new(options.format.clone(), options.bounds));
        let open = sockets::open(place, Arc::clone(&batches))?;
        let (addresses, watched) = (open.addresses().to_vec(), open.watched().clone());
        Ok(Self { batches, addresses, watched, open: Mutex::new(Some(open)) })
    }

    /// Returns the address for subscribers.
    ///
    /// ```
    /// use paged_kv::event::{EventPublisher, PublisherOptions};
    ///
    /// let options = PublisherOptions::default().endpoint("tcp://127.0.0.1:0");
    /// assert_ne!(EventPublisher::bind(&options)?.address().port(), 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// Returns the address for replay, if there is one.
    ///
    /// ```
    /// use paged_kv::event::{EventPublisher, PublisherOptions};
    ///
    /// let options = PublisherOptions::default().endpoint("tcp://127.0.0.1:0");
    /// assert_eq!(EventPublisher::bind(&options)?.replay_address(), None);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn replay_address(&self) -> Option<SocketAddr> {
        self.addresses.get(1).copied()
    }

    /// Returns the counts so far.
    ///
    /// ```
    /// use paged_kv::event::{EventPublisher, PublisherOptions};
    ///
    /// let options = PublisherOptions::default().endpoint("tcp://127.0.0.1:0");
    /// assert_eq!(EventPublisher::bind(&options)?.stats().blocks_without_tokens, 0);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn stats(&self) -> PublisherStats {
        let totals = self.batches.totals();
        PublisherStats {
            next_sequence: totals.next_sequence,
            blocks: totals.blocks,
            blocks_without_tokens: totals.unwritten,
            batches_lost: totals.lost,
            batches_missed: self.watched.missed(),
            peers_refused: self.watched.refused(),
            sockets_lost: self.watched.lost(),
        }
    }

    /// Sends the open batch now.
    ///
    /// ```
    /// use paged_kv::event::{EventPublisher, PublisherOptions};
    /// use paged_kv::{EventSink, KvEvent};
    ///
    /// let options = PublisherOptions::default().endpoint("tcp://127.0.0.1:0");
    /// let publisher = EventPublisher::bind(&options)?;
    /// let next = publisher.stats().next_sequence;
    /// publisher.on_event(&KvEvent::AllBlocksCleared);
    /// publisher.flush();
    /// assert_eq!(publisher.stats().next_sequence, next + 1);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn flush(&self) {
        self.batches.flush();
    }

    /// Sends the remaining batches to the subscribers, for up to two seconds, and closes the sockets. Later
    /// events are lost. Dropping a publisher does the same.
    ///
    /// ```
    /// use paged_kv::event::{EventPublisher, PublisherOptions};
    ///
    /// let options = PublisherOptions::default().endpoint("tcp://127.0.0.1:0");
    /// let publisher = EventPublisher::bind(&options)?;
    /// let address = publisher.address();
    /// publisher.shutdown();
    /// assert!(std::net::TcpStream::connect(address).is_err());
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn shutdown(&self) {
        let Some(open) = self.open.lock().take() else { return };
        self.batches.close();
        open.wait();
    }
}

impl EventSink for EventPublisher {
    fn on_event(&self, event: &KvEvent<'_>) {
        self.batches.push(event);
    }
}

impl Drop for EventPublisher {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl std::fmt::Debug for EventPublisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventPublisher").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

/// Returns the address of an endpoint in the form that `sockets` takes.
fn address_of(endpoint: &str) -> io::Result<String> {
    match endpoint.strip_prefix("tcp://") {
        Some(address) => Ok(match address.strip_prefix("*:") {
            Some(port) => format!("0.0.0.0:{port}"),
            None => address.to_owned(),
        }),
        None => {
            let reason = format!("{endpoint:?} is not tcp://address:port");
            Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
        }
    }
}
