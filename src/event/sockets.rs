//! Who listens, and who asks? Two ZeroMQ sockets, of the crate `rzmq`, on a thread of their own.
//!
//! The first, a PUB, sends every batch to whoever subscribed. A subscriber has a queue; one that is slow
//! misses what its queue has no room for, and sees the gap in the numbers with the next batch that
//! reaches it. Nobody waits for it. The second, a ROUTER, answers requests for earlier batches, each
//! peer's one after the other, and no faster than the peer reads.
//!
//! Why `rzmq`: it answers heartbeats, bounds the queue of every peer, waits for a slow peer of a ROUTER
//! and not for one of a PUB, and sends what is queued before it closes. `zeromq` (0.7) closes a connection
//! on its first heartbeat, keeps 100,000 messages for a subscriber that does not read, and drops what is
//! queued when it closes; `zmq` builds libzmq, in C++.
//!
//! It does not know what batches say.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use rzmq::socket::{AUTO_DELIMITER, LAST_ENDPOINT, LINGER, MAXMSGSIZE, ROUTER_MANDATORY, SNDHWM};
use rzmq::{Context, Msg, MsgFlags, Socket, SocketType, ZmqError};
use tokio::runtime;
use tokio::time::{sleep_until, timeout};

use super::batches::{Batches, Next};
use crate::sync::outside::{Arc, Mutex, mpsc};

/// How long peers may take to receive what is on the way to them at the end.
const LAST_BATCHES: Duration = Duration::from_secs(2);

/// The longest frame that is taken from a peer: subscriptions and requests are short.
const LONGEST: i64 = 1 << 16;

/// The most batches of a replay that wait for who asked.
const REPLAY_QUEUE: i32 = 64;

/// The most requests of one peer that wait for the one before; more are dropped.
const REQUESTS_MAX: usize = 16;

/// The end marker of a replay.
const END: &[u8] = &[0xff; 8];

/// Where to listen, and how.
pub(super) struct Place {
    /// An endpoint.
    pub(super) publish: String,
    /// An endpoint, if replay is wanted.
    pub(super) replay: Option<String>,
    /// The first frame of every message.
    pub(super) topic: Bytes,
    /// Batches that may wait for one subscriber.
    pub(super) queue: usize,
}

/// Sockets at work.
pub(super) struct Open(JoinHandle<()>);

impl Open {
    /// Returns when the last batches are on their way and the sockets are closed. The batches are
    /// closed already.
    pub(super) fn wait(self) {
        // A thread that panicked sends nothing more, and so has ended.
        let _ = self.0.join();
    }
}

/// Listens. Returns the addresses too, of the replay behind the other.
pub(super) fn open(place: Place, batches: Arc<Batches>) -> io::Result<(Open, Vec<SocketAddr>)> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let (bound, addresses) = mpsc::sync_channel(1);
    // Of its own, so that it can be begun and ended wherever the caller is, in a runtime too.
    let thread = thread::Builder::new().name("kv-events".to_owned()).spawn(move || {
        runtime.block_on(async {
            match Sockets::bind(place, batches).await {
                Err(error) => drop(bound.send(Err(error))),
                Ok((sockets, addresses)) => {
                    drop(bound.send(Ok(addresses)));
                    sockets.serve().await;
                }
            }
        });
    })?;
    let addresses = addresses.recv().unwrap_or_else(|gone| Err(io::Error::other(gone)));
    Ok((Open(thread), addresses?))
}

struct Sockets {
    context: Context,
    publish: Socket,
    replay: Option<Socket>,
    batches: Arc<Batches>,
    topic: Bytes,
    /// The number of the first batch to publish.
    first: u64,
}

impl Sockets {
    /// Binds. Returns the addresses too.
    async fn bind(place: Place, batches: Arc<Batches>) -> io::Result<(Self, Vec<SocketAddr>)> {
        let context = Context::new().map_err(error_of)?;
        let publish = context.socket(SocketType::Pub).map_err(error_of)?;
        let queue = i32::try_from(place.queue).unwrap_or(i32::MAX);
        let mut addresses = vec![listen(&publish, &place.publish, queue).await?];
        let replay = match &place.replay {
            None => None,
            Some(endpoint) => {
                let replay = context.socket(SocketType::Router).map_err(error_of)?;
                // Says when the peer is gone, and sends frames as they are.
                for (option, value) in [(ROUTER_MANDATORY, true), (AUTO_DELIMITER, false)] {
                    replay.set_option(option, value).await.map_err(error_of)?;
                }
                addresses.push(listen(&replay, endpoint, REPLAY_QUEUE).await?);
                Some(replay)
            }
        };
        let first = batches.totals().next_sequence;
        Ok((Self { context, publish, replay, batches, topic: place.topic, first }, addresses))
    }

    /// Publishes and answers until the batches end.
    async fn serve(self) {
        let answering = self.replay.clone().map(|socket| {
            let replays = Replays {
                socket,
                batches: Arc::clone(&self.batches),
                topic: self.topic.clone(),
                asked: Mutex::default(),
            };
            tokio::spawn(Arc::new(replays).answer())
        });
        self.publish_all().await;
        // What is queued goes out for as long as `LINGER` says. Errors: there is nothing to be done.
        let _ = self.publish.close().await;
        if let Some(replay) = &self.replay {
            let _ = replay.close().await;
        }
        let _ = timeout(2 * LAST_BATCHES, self.context.term()).await;
        if let Some(answering) = answering {
            answering.abort();
        }
    }

    async fn publish_all(&self) {
        let mut next = self.first;
        loop {
            match self.batches.next(next) {
                Next::Batch(batch) => {
                    next = batch.sequence + 1;
                    let number = Bytes::copy_from_slice(&batch.sequence.to_be_bytes());
                    let frames = message([self.topic.clone(), number, batch.payload]);
                    // It waits for nobody, and fails only for single peers, which are let go.
                    let _ = self.publish.send_multipart(frames).await;
                    // Sending does not wait, so that queues fill up unless they get their turn.
                    tokio::task::yield_now().await;
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

/// Requests for earlier batches, and where they are answered.
struct Replays {
    socket: Socket,
    batches: Arc<Batches>,
    topic: Bytes,
    asked: Mutex<Asked>,
}

impl Replays {
    /// Answers each request `[peer, "", first number]` by the batches from there on that there are.
    async fn answer(self: Arc<Self>) {
        while let Ok(frames) = self.socket.recv_multipart().await {
            let [peer, .., last] = frames.as_slice() else { continue };
            let Some(first) = last.data().and_then(|bytes| bytes.try_into().ok()) else {
                continue; // no number: nothing can be meant
            };
            let peer = peer.data_bytes().unwrap_or_default();
            if self.asked.lock().add(&peer, u64::from_be_bytes(first)) {
                tokio::spawn(Arc::clone(&self).answer_peer(peer));
            }
        }
    }

    async fn answer_peer(self: Arc<Self>, peer: Bytes) {
        while let Some(first) = self.next_of(&peer) {
            if self.send_from(&peer, first).await.is_err() {
                // It is gone. Should it come again under its name, it asks anew.
                self.asked.lock().forget(&peer);
                return;
            }
        }
    }

    fn next_of(&self, peer: &Bytes) -> Option<u64> {
        self.asked.lock().next(peer)
    }

    async fn send_from(&self, peer: &Bytes, mut next: u64) -> Result<(), ZmqError> {
        let end = self.batches.totals().next_sequence;
        while let Some(batch) = self.batches.get(next, end) {
            next = batch.sequence + 1;
            let number = Bytes::copy_from_slice(&batch.sequence.to_be_bytes());
            let frames = [peer.clone(), Bytes::new(), self.topic.clone(), number, batch.payload];
            self.socket.send_multipart(message(frames)).await?;
        }
        let end = [peer.clone(), Bytes::new(), Bytes::new(), Bytes::from_static(END), Bytes::new()];
        self.socket.send_multipart(message(end)).await
    }
}

/// The first numbers that each peer has asked for and not got; there while it is being answered.
#[derive(Default)]
struct Asked(HashMap<Bytes, VecDeque<u64>>);

impl Asked {
    /// Notes a request, unless too many wait. True if nobody answers the peer yet.
    fn add(&mut self, peer: &Bytes, first: u64) -> bool {
        let is_new = !self.0.contains_key(peer);
        let requests = self.0.entry(peer.clone()).or_default();
        if requests.len() < REQUESTS_MAX {
            requests.push_back(first);
        }
        is_new
    }

    /// What to answer next. If it is nothing, the peer is no longer answered.
    fn next(&mut self, peer: &Bytes) -> Option<u64> {
        let first = self.0.get_mut(peer).and_then(VecDeque::pop_front);
        if first.is_none() {
            self.forget(peer);
        }
        first
    }

    fn forget(&mut self, peer: &Bytes) {
        self.0.remove(peer);
    }
}

/// Binds a socket to `endpoint`, with a queue of so many messages a peer. Returns where it listens.
async fn listen(socket: &Socket, endpoint: &str, queue: i32) -> io::Result<SocketAddr> {
    let bound: Result<Vec<u8>, ZmqError> = async {
        socket.set_option(SNDHWM, queue).await?;
        socket.set_option(LINGER, LAST_BATCHES.as_millis() as i32).await?;
        socket.set_option_raw(MAXMSGSIZE, &LONGEST.to_ne_bytes()).await?;
        socket.bind(endpoint).await?;
        socket.get_option(LAST_ENDPOINT).await
    }
    .await;
    let bound = bound.map_err(error_of)?;
    let address = bound.strip_prefix(b"tcp://").and_then(|at| std::str::from_utf8(at).ok());
    address
        .and_then(|address| address.parse().ok())
        .ok_or_else(|| io::Error::other(format!("no TCP address: {}", bound.escape_ascii())))
}

/// A message of these frames.
fn message<const N: usize>(frames: [Bytes; N]) -> Vec<Msg> {
    let mut frames = Vec::from(frames.map(Msg::from_bytes));
    if let Some((_, before)) = frames.split_last_mut() {
        before.iter_mut().for_each(|frame| frame.set_flags(MsgFlags::MORE));
    }
    frames
}

fn error_of(error: ZmqError) -> io::Error {
    match error {
        ZmqError::IoError { kind, message } => io::Error::new(kind, message),
        ZmqError::AddrInUse(_) => io::Error::new(io::ErrorKind::AddrInUse, error),
        _ => io::Error::other(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_wait_in_turn_but_not_without_bound() {
        let (mut asked, peer) = (Asked::default(), Bytes::from_static(b"peer"));
        assert!(asked.add(&peer, 0) && asked.add(&Bytes::from_static(b"other"), 7));
        (1..1_000).for_each(|first| assert!(!asked.add(&peer, first), "it is being answered"));
        let waiting: Vec<_> = std::iter::from_fn(|| asked.next(&peer)).collect();
        assert_eq!(waiting, Vec::from_iter(0..REQUESTS_MAX as u64));
        assert!(asked.add(&peer, 5), "nobody answers it any more");
        asked.forget(&peer);
        assert_eq!(asked.next(&peer), None);
    }

    #[test]
    fn all_frames_but_the_last_have_more_behind_them() {
        let frames = message([Bytes::from_static(b"topic"), Bytes::new(), Bytes::new()]);
        let more: Vec<_> = frames.iter().map(|frame| frame.is_more()).collect();
        assert_eq!(more, [true, true, false]);
    }
}
