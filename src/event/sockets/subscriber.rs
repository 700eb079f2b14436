//! `Subscriber`: a peer that receives each batch from its subscription on.
//!
//! A publisher has one topic. Of a peer's subscriptions only the prefixes of that topic matter, and those
//! differ only in length. So the topic bounds the memory for subscriptions, and the peer does not.

use std::io;

use bytes::{Buf, Bytes, BytesMut};

use super::peer::Peer;
use super::recent::{End, Message, Recent};
use super::zmtp::{self, PeerRequest};
use crate::sync::outside::Arc;

/// A peer that receives batches.
pub(in crate::event) struct Subscriber {
    peer: Peer,
    recent: Arc<Recent>,
    subscriptions: Subscriptions,
    /// The position of the next batch, while the peer is subscribed.
    position: Option<u64>,
}

impl Subscriber {
    /// Creates a subscriber without subscriptions.
    pub(in crate::event) fn new(peer: Peer, recent: Arc<Recent>, topic: Bytes) -> Self {
        Self { peer, recent, subscriptions: Subscriptions::to(topic), position: None }
    }

    /// Serves the peer until the last batch is sent.
    ///
    /// # Errors
    /// When the peer closes the connection or breaks the protocol.
    pub(in crate::event) async fn serve(&mut self) -> io::Result<()> {
        let mut end = self.recent.end();
        loop {
            let now = *end.borrow_and_update();
            let is_behind = self.position.is_some_and(|position| position < now.position);
            if now.is_closed && !is_behind {
                return self.peer.close().await;
            }
            tokio::select! {
                biased;
                frame = self.peer.hear() => {
                    let request = frame?.subscription()?;
                    self.take(request, now).await?;
                }
                () = std::future::ready(()), if is_behind => self.send_next().await?,
                changed = end.changed() => changed.map_err(io::Error::other)?,
            }
        }
    }

    /// Sends the next batch, together with further small ones.
    async fn send_next(&mut self) -> io::Result<()> {
        let mut next = self.position.as_mut().map_or(Vec::new(), |next| self.recent.take(next));
        if next.len() > 1 {
            let parts = next.drain(..).flat_map(|Message { head, payload }| [head, payload]);
            let mut together = BytesMut::new();
            parts.for_each(|part| together.extend_from_slice(&part));
            return self.peer.send(together).await;
        }
        match next.pop() {
            Some(Message { head, payload }) => self.peer.send(head.chain(payload)).await,
            None => Ok(()),
        }
    }

    async fn take(&mut self, request: PeerRequest, now: End) -> io::Result<()> {
        match request {
            PeerRequest::Subscribe(prefix) => self.subscriptions.add(&prefix),
            PeerRequest::Cancel(prefix) => self.subscriptions.remove(&prefix),
            PeerRequest::Ping(context) => return self.peer.send(zmtp::pong(&context)).await,
            PeerRequest::Message(_) | PeerRequest::Nothing => return Ok(()),
        }
        let is_subscribed = self.subscriptions.is_any();
        if is_subscribed != self.position.is_some() {
            self.position = is_subscribed.then_some(now.position);
            self.peer.set_served(is_subscribed);
        }
        Ok(())
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        if let Some(position) = self.position {
            self.recent.leave(position);
        }
    }
}

/// Number of subscriptions of a peer to each prefix of the topic.
struct Subscriptions {
    topic: Bytes,
    /// By the length of the prefix; as long as the longest prefix with a subscription so far.
    counts: Vec<u32>,
}

impl Subscriptions {
    fn to(topic: Bytes) -> Self {
        Self { topic, counts: Vec::new() }
    }

    fn add(&mut self, prefix: &[u8]) {
        if self.topic.starts_with(prefix) {
            self.counts.resize(self.counts.len().max(prefix.len() + 1), 0);
            self.counts[prefix.len()] = self.counts[prefix.len()].saturating_add(1);
        }
    }

    fn remove(&mut self, prefix: &[u8]) {
        if let Some(count) = self.counts.get_mut(prefix.len())
            && self.topic.starts_with(prefix)
        {
            *count = count.saturating_sub(1);
        }
    }

    fn is_any(&self) -> bool {
        self.counts.iter().any(|&count| count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_subscription_is_cancelled_by_itself() {
        let mut subscriptions = Subscriptions::to("kv@pod".into());
        for prefix in ["", "kv@", "kv@", "kv@pod"] {
            subscriptions.add(prefix.as_bytes());
        }
        for prefix in ["kv@", "kv@pod", "kv@", "kv@", "other", "xv@"] {
            subscriptions.remove(prefix.as_bytes());
            assert!(subscriptions.is_any());
        }
        subscriptions.remove(b"");
        assert!(!subscriptions.is_any());
    }

    #[test]
    fn any_number_of_subscriptions_needs_no_more_memory_than_the_topic() {
        let mut subscriptions = Subscriptions::to("kv@pod".into());
        for number in 0..100_000_u32 {
            subscriptions.add(&number.to_be_bytes());
            subscriptions.add(format!("kv@pod{number}").as_bytes());
            assert!(!subscriptions.is_any());
            subscriptions.add(&b"kv@pod"[..number as usize % 7]);
            subscriptions.remove(&b"kv@pod"[..number as usize % 7]);
        }
        assert!(subscriptions.counts.capacity() <= 8);
    }
}
