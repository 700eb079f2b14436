//! Who is connected, and what is each told? Threads that serve subscribers and requests for replay.
//!
//! A subscriber has its own place in the ring of batches: one that is slow falls behind, and if it falls
//! out of the ring it goes on with the oldest batch there is, and sees the gap in the numbers. Nobody
//! waits for it, and it costs no memory.
//!
//! Invariant: two writers of one connection take turns by its lock, a whole message at a time.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::batches::Batches;
use super::zmtp::{Incoming, push_message, shake_hands};
use crate::sync::outside::{Arc, AtomicU64, Condvar, Mutex, Ordering};

/// How long a peer may take to shake hands.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Bytes that are written at once, if there are so many.
const WRITE_BYTES: usize = 1 << 16;

/// The end marker of a replay.
const END: [u8; 8] = [0xff; 8];

/// What a listening socket is for.
#[derive(Clone, Copy)]
pub(super) enum Role {
    Publish,
    Replay,
}

/// The connections of a publisher.
pub(super) struct Peers {
    batches: Arc<Batches>,
    topic: Vec<u8>,
    connections: Mutex<Connections>,
    /// Notified when a writer ends.
    ended: Condvar,
    missed: AtomicU64,
}

#[derive(Default)]
struct Connections {
    streams: HashMap<u64, TcpStream>,
    next: u64,
    /// Subscribers that are being written to.
    writers: usize,
    closed: bool,
}

impl Peers {
    pub(super) fn new(batches: Arc<Batches>, topic: Vec<u8>) -> Self {
        let connections = Mutex::new(Connections::default());
        Self { batches, topic, connections, ended: Condvar::new(), missed: AtomicU64::new(0) }
    }

    /// Batches that subscribers missed because they were slow.
    pub(super) fn missed(&self) -> u64 {
        // Relaxed: a statistic.
        self.missed.load(Ordering::Relaxed)
    }

    /// Accepts peers, each served by a thread of its own, until `close`.
    pub(super) fn listen(
        self: &Arc<Self>,
        listener: TcpListener,
        role: Role,
    ) -> io::Result<JoinHandle<()>> {
        let peers = Arc::clone(self);
        thread::Builder::new().name("kv-events".to_owned()).spawn(move || {
            for stream in listener.incoming() {
                if peers.connections.lock().closed {
                    return;
                }
                match stream {
                    Ok(stream) => peers.connect(stream, role),
                    // Out of descriptors, most likely: others will close theirs.
                    Err(_) => thread::sleep(Duration::from_millis(20)),
                }
            }
        })
    }

    /// Waits until subscribers have what is in the ring, but no longer than `most`, and then closes all
    /// connections. The batches are closed already.
    pub(super) fn close(&self, most: Duration) {
        let mut connections = self.connections.lock();
        connections.closed = true;
        self.ended.wait_while_for(&mut connections, |at| at.writers > 0, most);
        for stream in connections.streams.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn connect(self: &Arc<Self>, stream: TcpStream, role: Role) {
        let Ok(kept) = stream.try_clone() else { return };
        let number = {
            let mut connections = self.connections.lock();
            connections.next += 1;
            let number = connections.next;
            connections.streams.insert(number, kept);
            number
        };
        let peers = Arc::clone(self);
        let serve = move || {
            // A peer that breaks off, or the rules, is let go: it may come again.
            let _ = match role {
                Role::Publish => peers.serve_subscriber(&stream),
                Role::Replay => peers.serve_requests(&stream),
            };
            let _ = stream.shutdown(Shutdown::Both);
            peers.connections.lock().streams.remove(&number);
        };
        if thread::Builder::new().name("kv-events-peer".to_owned()).spawn(serve).is_err() {
            self.connections.lock().streams.remove(&number);
        }
    }

    fn serve_subscriber(self: &Arc<Self>, stream: &TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(HANDSHAKE))?;
        let mut reader = shake_hands(stream, "PUB", &["SUB", "XSUB"])?;
        stream.set_read_timeout(None)?;
        let subscriber = Arc::new(Subscriber {
            stream: Mutex::new(stream.try_clone()?),
            topics: Mutex::new(Vec::new()),
        });
        let mut writer = None;
        loop {
            match reader.read()? {
                Incoming::Ping(pong) => subscriber.stream.lock().write_all(&pong)?,
                Incoming::Cancel(topic) => subscriber.cancel(&topic),
                Incoming::Subscribe(topic) => subscriber.subscribe(topic),
                Incoming::Message(frames) => match frames.first().and_then(|f| f.split_first()) {
                    Some((1, topic)) => subscriber.subscribe(topic.to_vec()),
                    Some((0, topic)) => subscriber.cancel(topic),
                    _ => {}
                },
            }
            if writer.is_none() && subscriber.wants(&self.topic) {
                let next = self.batches.totals().next_sequence;
                let (peers, subscriber) = (Arc::clone(self), Arc::clone(&subscriber));
                peers.connections.lock().writers += 1;
                let write = move || {
                    if peers.write_batches(&subscriber, next).is_err() {
                        let _ = subscriber.stream.lock().shutdown(Shutdown::Both);
                    }
                    peers.connections.lock().writers -= 1;
                    peers.ended.notify_all();
                };
                let thread = thread::Builder::new().name("kv-events-write".to_owned());
                writer = Some(thread.spawn(write).inspect_err(|_| {
                    self.connections.lock().writers -= 1;
                })?);
            }
        }
    }

    /// Sends the batches from `next` on as they come, until the end.
    fn write_batches(&self, subscriber: &Subscriber, mut next: u64) -> io::Result<()> {
        let mut bytes = Vec::new();
        while let Some(first) = self.batches.next(next) {
            let mut batch = Some(first);
            bytes.clear();
            let wanted = subscriber.wants(&self.topic);
            while let Some(sent) = batch {
                // Relaxed: a statistic.
                self.missed.fetch_add(sent.sequence - next, Ordering::Relaxed);
                next = sent.sequence + 1;
                if wanted {
                    let sequence = sent.sequence.to_be_bytes();
                    push_message(&mut bytes, &[&self.topic, &sequence, sent.payload()]);
                }
                let more = bytes.len() < WRITE_BYTES;
                batch = if more { self.batches.get(next, u64::MAX) } else { None };
            }
            subscriber.stream.lock().write_all(&bytes)?;
        }
        Ok(())
    }

    /// Answers each request `["", first number]` by the batches from there on that there are.
    fn serve_requests(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(HANDSHAKE))?;
        let mut reader = shake_hands(stream, "ROUTER", &["REQ", "DEALER", "ROUTER"])?;
        stream.set_read_timeout(None)?;
        let mut writer = stream;
        loop {
            let frames = match reader.read()? {
                Incoming::Message(frames) => frames,
                Incoming::Ping(pong) => {
                    writer.write_all(&pong)?;
                    continue;
                }
                Incoming::Subscribe(_) | Incoming::Cancel(_) => continue,
            };
            let Some(first) = frames.last().and_then(|frame| frame.as_slice().try_into().ok())
            else {
                continue; // no number: nothing can be meant
            };
            let (mut next, end) = (u64::from_be_bytes(first), self.batches.totals().next_sequence);
            let mut bytes = Vec::new();
            while let Some(batch) = self.batches.get(next, end) {
                next = batch.sequence + 1;
                let sequence = batch.sequence.to_be_bytes();
                push_message(&mut bytes, &[b"", &self.topic, &sequence, batch.payload()]);
                if bytes.len() >= WRITE_BYTES {
                    writer.write_all(&bytes)?;
                    bytes.clear();
                }
            }
            push_message(&mut bytes, &[b"", b"", &END, b""]);
            writer.write_all(&bytes)?;
        }
    }
}

struct Subscriber {
    stream: Mutex<TcpStream>,
    topics: Mutex<Vec<Vec<u8>>>,
}

impl Subscriber {
    fn subscribe(&self, topic: Vec<u8>) {
        self.topics.lock().push(topic);
    }

    fn cancel(&self, topic: &[u8]) {
        let mut topics = self.topics.lock();
        if let Some(at) = topics.iter().position(|known| known == topic) {
            topics.swap_remove(at);
        }
    }

    fn wants(&self, topic: &[u8]) -> bool {
        self.topics.lock().iter().any(|beginning| topic.starts_with(beginning))
    }
}
