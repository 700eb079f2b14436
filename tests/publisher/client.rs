//! `Client`: a router's end of the publisher's sockets, in ZMTP 3.0.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A number, and the payload that arrived with it.
pub type Batch = (u64, Vec<u8>);

/// A connected peer, and the messages that arrived while it waited for another frame.
pub struct Client(TcpStream, VecDeque<Vec<Vec<u8>>>);

impl Client {
    /// Connects to the socket at `address` as a socket of type `kind`.
    pub fn connect(address: SocketAddr, kind: &str) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut client = Self(stream, VecDeque::new());
        let mut greeting = [0; 64];
        (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
        greeting[12..16].copy_from_slice(b"NULL");
        client.0.write_all(&greeting).unwrap();
        client.0.read_exact(&mut greeting).unwrap();
        assert_eq!((greeting[0], greeting[9], greeting[10]), (0xff, 0x7f, 3));
        let mut ready = b"\x05READY\x0bSocket-Type".to_vec();
        ready.extend_from_slice(&(kind.len() as u32).to_be_bytes());
        ready.extend_from_slice(kind.as_bytes());
        client.send_frame(4, &ready);
        let (flags, body) = client.frame().unwrap();
        assert!(flags == 4 && body.starts_with(b"\x05READY"));
        client
    }

    /// Connects and subscribes to topics that begin with `topic`.
    pub fn subscribe(address: SocketAddr, topic: &str) -> Self {
        let mut client = Self::connect(address, "SUB");
        client.send_frame(0, &[b"\x01", topic.as_bytes()].concat());
        client.ping(); // answered after the subscription
        client
    }

    /// Sends a ping, and waits for the pong.
    pub fn ping(&mut self) {
        self.send_frame(4, b"\x04PING\x00\x10beat");
        let mut frames = Vec::new();
        loop {
            let (flags, body) = self.frame().unwrap();
            if flags == 4 {
                assert_eq!(body, b"\x04PONGbeat");
                return;
            }
            frames.push(body);
            if flags & 1 == 0 {
                self.1.push_back(std::mem::take(&mut frames));
            }
        }
    }

    /// Returns the next batch with its topic; none after the publisher has closed the connection.
    pub fn receive(&mut self) -> Option<(Vec<u8>, Batch)> {
        let frames = self.1.pop_front().or_else(|| self.message())?;
        let [topic, sequence, payload] = frames.try_into().expect("a batch has three frames");
        Some((topic, (u64::from_be_bytes(sequence.try_into().unwrap()), payload)))
    }

    /// Requests the batches from `first` on, and returns them.
    pub fn replay(&mut self, first: u64) -> Vec<Batch> {
        self.ask(first);
        self.answer()
    }

    /// Requests the batches from `first` on, and does not wait.
    pub fn ask(&mut self, first: u64) {
        self.send_frame(1, b"");
        self.send_frame(0, &first.to_be_bytes());
    }

    /// Returns the batches up to the next end marker.
    pub fn answer(&mut self) -> Vec<Batch> {
        let mut batches = Vec::new();
        loop {
            let [delimiter, _, sequence, payload] =
                self.message().unwrap().try_into().expect("an answer has four frames");
            assert!(delimiter.is_empty());
            if sequence == [0xff; 8] {
                assert!(payload.is_empty());
                return batches;
            }
            batches.push((u64::from_be_bytes(sequence.try_into().unwrap()), payload));
        }
    }

    fn message(&mut self) -> Option<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        loop {
            let (flags, body) = self.frame()?;
            assert_eq!(flags & 4, 0, "no command");
            frames.push(body);
            if flags & 1 == 0 {
                return Some(frames);
            }
        }
    }

    fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut flags = [0];
        self.0.read_exact(&mut flags).ok()?;
        let mut len = [0; 8];
        let start = if flags[0] & 2 == 0 { 7 } else { 0 };
        self.0.read_exact(&mut len[start..]).ok()?;
        let mut body = vec![0; u64::from_be_bytes(len) as usize];
        self.0.read_exact(&mut body).ok()?;
        Some((flags[0] & !2, body))
    }

    fn send_frame(&mut self, flags: u8, body: &[u8]) {
        self.0.write_all(&[&[flags, body.len() as u8], body].concat()).unwrap();
    }
}
