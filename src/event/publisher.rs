//! `EventPublisher`: an event sink with two ZeroMQ sockets and a ring of batches.
//!
//! One socket publishes each batch to its subscribers. The other socket sends earlier batches again to a router
//! that asks for them. Frames and payloads are vLLM's.
//!
//! Invariant: the thread that emits an event copies it into the open batch and continues. It touches no socket,
//! and it encodes a batch only if readers are behind.

pub(super) mod options;

use std::io;
use std::net::SocketAddr;

use self::options::PublisherOptions;
use super::batches::Batches;
use super::sockets::{self, Endpoints, OpenSockets, Watched};
use crate::prefix::kv_event::{EventSink, KvEvent};
use crate::sync::outside::{Arc, Mutex};

/// The most batches that wait for one subscriber.
const QUEUE_MAX: usize = 1_000;

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
