//! `Replayer`: a peer that asks for earlier batches, and gets one answer after another.
//!
//! It reads nothing while it sends an answer: the system's buffer holds further requests, and an answer is sent
//! no faster than the peer reads.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::task::yield_now;

use super::peer::Peer;
use super::recent::{self, End, TOGETHER};
use super::zmtp::{self, PeerRequest};
use crate::event::batches::Batches;
use crate::sync::outside::{Arc, watch};

/// The end marker of an answer.
const END_MARKER: &[u8] = &[0xff; 8];

/// A peer that asks for batches.
pub(in crate::event) struct Replayer {
    pub(in crate::event) peer: Peer,
    pub(in crate::event) batches: Arc<Batches>,
    pub(in crate::event) topic: Bytes,
}

impl Replayer {
    /// Answers each request, whose last frame is the number of a batch, with the available batches from that
    /// number on. When publishing ends, finishes the present answer and returns.
    ///
    /// # Errors
    /// When the peer closes the connection or breaks the protocol.
    pub(in crate::event) async fn serve(mut self, mut end: watch::Receiver<End>) -> io::Result<()> {
        loop {
            let frame = tokio::select! {
                biased;
                () = recent::closed(&mut end) => return self.peer.close().await,
                frame = self.peer.hear() => frame?,
            };
            match frame.request()? {
                PeerRequest::Message(number) => {
                    // A request without a number asks for nothing.
                    if let Ok(first) = number[..].try_into() {
                        self.peer.set_served(true);
                        self.answer(u64::from_be_bytes(first)).await?;
                        self.peer.set_served(false);
                    }
                }
                PeerRequest::Ping(context) => self.peer.send(zmtp::pong(&context)).await?,
                PeerRequest::Subscribe(_) | PeerRequest::Cancel(_) | PeerRequest::Nothing => {}
            }
        }
    }

    async fn answer(&mut self, mut next: u64) -> io::Result<()> {
        let end = self.batches.totals().next_sequence;
        let mut together = BytesMut::new();
        while let Some(batch) = self.batches.get(next, end) {
            next = batch.sequence.saturating_add(1);
            let number = batch.sequence.to_be_bytes();
            let head = zmtp::head(&[b"", &self.topic, &number], batch.payload.len());
            together.extend_from_slice(&head);
            if together.len() + batch.payload.len() <= TOGETHER {
                together.extend_from_slice(&batch.payload);
            } else {
                self.peer.send(together.split().chain(batch.payload)).await?;
                // A peer that reads quickly must not keep the thread from the other peers.
                yield_now().await;
            }
        }
        together.extend_from_slice(&zmtp::head(&[b"", b"", END_MARKER], 0));
        self.peer.send(together).await
    }
}
