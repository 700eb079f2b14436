//! `Peer`: one connection, with its handshake, its requests and the bytes sent to it.
//!
//! One task serves a peer, and does not read while it writes. So a peer that does not read holds that task, at
//! most one message, and a few kilobytes that the peer sent. It delays no other peer.

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::yield_now;
use tokio::time::timeout;

use super::connections::{Connection, Use};
use super::zmtp::{self, Frame, Input, Kind};

/// Time limit of a handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Bytes that one read takes from a peer.
const READ: usize = 4096;

/// One connection.
pub(in crate::event) struct Peer {
    stream: TcpStream,
    input: Input,
    connection: Connection,
}

impl Peer {
    /// Does the handshake, as a socket of `kind`.
    pub(in crate::event) async fn greet(
        stream: TcpStream,
        kind: Kind,
        connection: Connection,
    ) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let mut peer = Self { stream, input: Input::default(), connection };
        timeout(HANDSHAKE, peer.shake_hands(kind)).await??;
        peer.connection.set_use(Use::Waiting);
        Ok(peer)
    }

    async fn shake_hands(&mut self, kind: Kind) -> io::Result<()> {
        // Sent first: a peer may wait for it before it sends more than its signature.
        self.stream.write_all(&zmtp::greeting()).await?;
        while !self.input.greeting()? {
            self.read().await?;
        }
        self.stream.write_all(&zmtp::ready(kind)).await?;
        self.hear().await?.check_ready(kind)
    }

    /// Returns the next frame that the peer sends. No byte is lost if the future is dropped.
    ///
    /// # Errors
    /// When the peer closes the connection or breaks the protocol.
    pub(in crate::event) async fn hear(&mut self) -> io::Result<Frame> {
        loop {
            if let Some(frame) = self.input.frame()? {
                return Ok(frame);
            }
            self.read().await?;
        }
    }

    /// Waits until the peer sends bytes, and reads those that have arrived.
    async fn read(&mut self) -> io::Result<()> {
        if self.input.bytes.is_empty() {
            self.input.bytes = BytesMut::new(); // a peer that says nothing needs no memory
        }
        loop {
            // A peer that always has bytes ready must not keep the thread from the other peers.
            yield_now().await;
            self.stream.readable().await?;
            self.input.bytes.reserve(READ);
            match self.stream.try_read_buf(&mut self.input.bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends bytes, and waits as long as the peer does not read.
    pub(in crate::event) async fn send(&mut self, mut bytes: impl Buf) -> io::Result<()> {
        let mut sending = std::pin::pin!(self.stream.write_all_buf(&mut bytes));
        tokio::select! {
            biased;
            sent = &mut sending => return sent,
            () = std::future::ready(()) => {}
        }
        let state = self.connection.set_use(Use::Waiting);
        sending.await?;
        self.connection.set_use(state);
        Ok(())
    }

    /// Notes whether the peer has a request that is being served.
    pub(in crate::event) fn set_served(&mut self, is_served: bool) {
        self.connection.set_use(if is_served { Use::Served } else { Use::Waiting });
    }

    /// Closes the connection after the bytes that were sent.
    pub(in crate::event) async fn close(&mut self) -> io::Result<()> {
        self.read_rest();
        self.stream.shutdown().await
    }

    /// Reads the bytes that have arrived: if some are left, the system drops unsent bytes.
    fn read_rest(&self) {
        let mut rest = [0; READ];
        while self.stream.try_read(&mut rest).is_ok_and(|len| len > 0) {}
    }
}
