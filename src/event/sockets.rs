//! `Sockets`: the two ZeroMQ endpoints of a publisher, on a thread of their own.
//!
//! At the first, a PUB, every subscriber receives each batch. At the second, a ROUTER, each peer gets the
//! earlier batches that it asks for. A slow peer sees a gap in the numbers, or waits for its own answer. It
//! delays no other peer.
//!
//! Any host that reaches the endpoints may connect, so the cost of one peer is bounded: connections by
//! [`Connections`], handshakes by time, frames and messages by [`zmtp`], subscriptions by the topic, queues
//! by [`Recent`]. A listening socket that is lost is bound again.
//!
//! No library kept these bounds, so the protocol is implemented here. Attacks of 4 or 5 seconds, on 2 cores:
//!
//! | attack                    | `rzmq` 0.5.28                | `zeromq` 0.7.0     | libzmq 4.3.4 (`zmq` 0.10) | this    |
//! |---------------------------|------------------------------|--------------------|---------------------------|---------|
//! | connections, aborted      | closes after 130 to 440      | holds              | holds                     | holds   |
//! | .. after the handshake    | 550 MB stay                  | holds              | holds                     | holds   |
//! | 1,000 subscribers at once | serves none, closes          | holds              | holds                     | 13 MB   |
//! | garbage                   | 1.2 GB stay                  | the process aborts | holds                     | holds   |
//! | 2,000 half handshakes     | closes                       | holds              | 21 MB                     | 23 MB   |
//! | endless subscriptions     | 1.7 GB stay                  | 550 MB stay        | 1 GB stays, all silent    | holds   |
//! | frames of up to 2^63      | holds                        | the process aborts | holds                     | holds   |
//! | messages without end      | 70 MB stay, tasks panic      | 2.4 GB stay        | 2.7 GB stay               | holds   |
//! | answers that are not read | 2.5 GB stay, all silent      | all silent         | holds                     | holds   |
//!
//! "Holds" means below 10 MB of growth. With `MAX_CONNECTIONS` at 32, `rzmq` survives the aborted connections,
//! but serves 27 of 1,000 subscribers and keeps 2.1 GB for subscriptions. The failures occur after a finished
//! handshake. So an accept loop in front of a library would not help, unless it read every frame of every peer.
//! That is most of this code. `tests/publisher/hostile.rs` repeats the attacks.
//!
//! [`Connections`]: super::sockets::connections::Connections
//! [`zmtp`]: super::sockets::zmtp

#[cfg(feature = "events")]
pub(crate) mod connections;
#[cfg(feature = "events")]
pub(crate) mod listener;
#[cfg(feature = "events")]
pub(crate) mod peer;
#[cfg(feature = "events")]
pub(crate) mod recent;
#[cfg(feature = "events")]
pub(crate) mod replayer;
#[cfg(feature = "events")]
pub(crate) mod subscriber;
#[cfg(feature = "events")]
pub(crate) mod zmtp;
use std::io;
use std::net::SocketAddr;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::runtime;
use tokio::task::yield_now;
use tokio::time::{sleep_until, timeout};

use self::connections::{Connection, Connections};
use self::listener::Listener;
use self::peer::Peer;
use self::recent::{Message, Recent};
use self::replayer::Replayer;
use self::subscriber::Subscriber;
use self::zmtp::Kind;
use super::batches::{Batches, Next};
use crate::sync::outside::{Arc, Mutex, mpsc};
use crate::trace::TraceEvent;

/// Time for peers to receive their last batches after the end.
const LAST_BATCHES: Duration = Duration::from_secs(2);

/// The addresses and bounds of the sockets.
pub(super) struct Endpoints {
    /// `address:port`.
    pub(super) publish: String,
    /// `address:port`, if there is a replay socket.
    pub(super) replay: Option<String>,
    /// The first frame of every message.
    pub(super) topic: Bytes,
    /// Batches that may wait for one subscriber.
    pub(super) queue: usize,
    /// Bytes of batches that may wait for all subscribers.
    pub(super) queue_bytes: usize,
    /// Connections that may be open at each endpoint.
    pub(super) connections: usize,
}

/// The running sockets.
pub(super) struct OpenSockets {
    thread: JoinHandle<()>,
    addresses: Vec<SocketAddr>,
    watched: Watched,
}

/// The counts of the sockets.
#[derive(Clone)]
pub(super) struct Watched {
    recent: Arc<Recent>,
    connections: Vec<Arc<Connections>>,
    lost: Arc<Mutex<u64>>,
}

impl OpenSockets {
    /// Returns when the last batches are sent and the sockets are closed. The caller has closed the batches.
    pub(super) fn wait(self) {
        // A thread that panicked sends nothing more, and so has ended.
        let _ = self.thread.join();
    }

    /// Returns the addresses of the sockets, the replay socket last.
    pub(super) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub(super) fn watched(&self) -> &Watched {
        &self.watched
    }
}

impl Watched {
    /// Returns the number of listening sockets that were lost and bound again.
    pub(super) fn lost(&self) -> u64 {
        *self.lost.lock()
    }

    /// Returns the number of peers that got no place, or were closed to make place.
    pub(super) fn refused(&self) -> u64 {
        self.connections.iter().map(|connections| connections.refused()).sum()
    }

    /// Returns the number of batches that subscribers missed, counted for each.
    pub(super) fn missed(&self) -> u64 {
        self.recent.missed()
    }
}

/// Starts the sockets of `place` on a new thread.
pub(super) fn open(place: Endpoints, batches: Arc<Batches>) -> io::Result<OpenSockets> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let watched = Watched {
        recent: Arc::new(Recent::new(place.queue, place.queue_bytes)),
        connections: [Some(&place.publish), place.replay.as_ref()]
            .into_iter()
            .flatten()
            .map(|_| Connections::new(place.connections))
            .collect(),
        lost: Arc::default(),
    };
    let (bound, addresses) = mpsc::sync_channel(1);
    let of_thread = watched.clone();
    // A thread of its own, so that the caller can start and end it anywhere, also inside a runtime.
    let thread = thread::Builder::new().name("kv-events".to_owned()).spawn(move || {
        runtime.block_on(async {
            match Sockets::bind(place, batches, of_thread).await {
                Err(error) => drop(bound.send(Err(error))),
                Ok(sockets) => {
                    let addresses = sockets.listeners.iter().map(Listener::address).collect();
                    drop(bound.send(Ok(addresses)));
                    sockets.serve().await;
                }
            }
        });
    })?;
    let addresses = addresses.recv().unwrap_or_else(|gone| Err(io::Error::other(gone)))?;
    Ok(OpenSockets { thread, addresses, watched })
}

struct Sockets {
    /// The publishing socket, and the replay socket if there is one.
    listeners: Vec<Listener>,
    batches: Arc<Batches>,
    topic: Bytes,
    watched: Watched,
    /// The number of the first batch to publish.
    first: u64,
}

impl Sockets {
    async fn bind(place: Endpoints, batches: Arc<Batches>, watched: Watched) -> io::Result<Self> {
        let mut listeners = Vec::new();
        for address in [Some(place.publish), place.replay].into_iter().flatten() {
            listeners.push(Listener::bind(&address, Arc::clone(&watched.lost)).await?);
        }
        let first = batches.totals().next_sequence;
        Ok(Self { listeners, batches, topic: place.topic, watched, first })
    }

    /// Publishes and answers until the batches end.
    async fn serve(mut self) {
        let kinds = [Kind::Publisher, Kind::Router];
        let endpoints = self.listeners.drain(..).zip(kinds).zip(&self.watched.connections);
        let accepting = endpoints.map(|((listener, kind), connections)| {
            let service = Service {
                kind,
                recent: Arc::clone(&self.watched.recent),
                batches: Arc::clone(&self.batches),
                topic: self.topic.clone(),
            };
            tokio::spawn(accept(listener, Arc::clone(connections), service))
        });
        let accepting: Vec<_> = accepting.collect();
        self.publish_all().await;
        accepting.iter().for_each(|task| task.abort());
        for task in accepting {
            let _ = task.await; // its socket is closed then
        }
        self.watched.recent.close();
        let _ = timeout(LAST_BATCHES, async {
            for connections in &self.watched.connections {
                connections.emptied().await;
            }
        })
        .await;
    }

    async fn publish_all(&self) {
        let mut next = self.first;
        loop {
            match self.batches.next(next) {
                Next::Batch(batch) => {
                    if batch.sequence > next {
                        TraceEvent::BatchesLost { batches: batch.sequence - next }.emit();
                    }
                    next = batch.sequence + 1;
                    let number = batch.sequence.to_be_bytes();
                    let head = zmtp::head(&[&self.topic, &number], batch.payload.len());
                    self.watched.recent.push(Message { head, payload: batch.payload });
                    // Publishing does not wait: without this, subscribers would not run and would fall behind.
                    yield_now().await;
                }
                Next::Nothing { due: Some(due) } => {
                    tokio::select! {
                        () = self.batches.changed() => {}
                        () = sleep_until(due.into()) => {}
                    }
                }
                Next::Nothing { due: None } => self.batches.changed().await,
                Next::End => return,
            }
        }
    }
}

/// Admits peers without end.
async fn accept(mut listener: Listener, connections: Arc<Connections>, service: Service) {
    loop {
        let stream = listener.accept(&connections).await;
        let service = service.clone();
        connections.admit(|connection| service.serve(stream, connection));
    }
}

/// The data from which a peer of one endpoint is served.
#[derive(Clone)]
struct Service {
    kind: Kind,
    recent: Arc<Recent>,
    batches: Arc<Batches>,
    topic: Bytes,
}

impl Service {
    /// Serves a peer until it disconnects, breaks the protocol, or has received all batches.
    async fn serve(self, stream: TcpStream, connection: Connection) {
        let mut end = self.recent.end();
        let peer = tokio::select! {
            () = recent::closed(&mut end) => return,
            peer = Peer::greet(stream, self.kind, connection) => peer,
        };
        let Ok(peer) = peer else { return };
        // An error ends the connection; no peer is left to receive it.
        let _ = match self.kind {
            Kind::Publisher => Subscriber::new(peer, self.recent, self.topic).serve().await,
            Kind::Router => {
                let Self { batches, topic, .. } = self;
                Replayer { peer, batches, topic }.serve(end).await
            }
        };
    }
}
