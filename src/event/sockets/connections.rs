//! `Connections`: the open connections of one endpoint, bounded in number.
//!
//! When all places are taken, a new peer replaces the peer that has waited longest: in its handshake, without
//! a request, or with an answer that it does not read. If every peer is being served, the new peer is refused.
//! So a peer that only connects takes no place from a peer that subscribes. A handshake has as much time as
//! the other peers take to fill all places.
//!
//! Invariant: there are at most `max` entries, one for each [`Connection`] that was not closed to make place
//! for another peer.

use std::collections::BTreeMap;

use tokio::task::AbortHandle;

use crate::sync::outside::{Arc, Mutex, Notify};

/// States whether a peer keeps its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::event) enum Use {
    /// Its handshake is open, it has no request, or it does not read its answer.
    Waiting,
    Served,
}

/// The open connections of one endpoint.
pub(in crate::event) struct Connections {
    max: usize,
    open: Mutex<OpenConnections>,
    /// Notified when the last connection is closed.
    emptied: Notify,
}

#[derive(Default)]
struct OpenConnections {
    /// The tasks by the use of their connection, and by the time since when they have that use.
    entries: BTreeMap<(Use, u64), Option<AbortHandle>>,
    /// A clock that counts changes of use.
    now: u64,
    refused: u64,
}

/// A place among the connections. Dropping it frees the place.
pub(in crate::event) struct Connection {
    all: Arc<Connections>,
    key: (Use, u64),
}

impl Connections {
    /// Creates an endpoint without connections and with `max` places.
    pub(in crate::event) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, open: Mutex::default(), emptied: Notify::new() })
    }

    /// Runs `serve` as a task that has a place for a new peer. If all places are taken, it takes that of a
    /// waiting peer. Drops `serve` if every peer is being served.
    pub(in crate::event) fn admit<F>(
        self: &Arc<Self>,
        serve: impl FnOnce(Connection) -> F + Send + 'static,
    ) where
        F: Future<Output = ()> + Send,
    {
        let mut open = self.open.lock();
        if open.entries.len() >= self.max {
            open.refused += 1;
            if !open.close_longest_waiting() {
                return;
            }
        }
        let key = open.add(Use::Waiting, None);
        drop(open);
        let connection = Connection { all: Arc::clone(self), key };
        let task = tokio::spawn(async move { serve(connection).await });
        if let Some(entry) = self.open.lock().entries.get_mut(&key) {
            *entry = Some(task.abort_handle());
        }
    }

    /// Closes the connection that has waited longest, because the process is short of file descriptors.
    pub(in crate::event) fn make_room(&self) {
        let mut open = self.open.lock();
        open.refused += u64::from(open.close_longest_waiting());
    }

    /// Returns the number of refused peers: new ones, and those that were closed to make place.
    pub(in crate::event) fn refused(&self) -> u64 {
        self.open.lock().refused
    }

    /// Returns when no connection is open.
    pub(in crate::event) async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.open.lock().entries.is_empty() {
                return;
            }
            emptied.await;
        }
    }
}

impl OpenConnections {
    fn add(&mut self, state: Use, task: Option<AbortHandle>) -> (Use, u64) {
        let key = (state, self.now);
        self.now += 1;
        self.entries.insert(key, task);
        key
    }

    /// Closes the connection that has waited longest. Returns false if every peer is being served.
    fn close_longest_waiting(&mut self) -> bool {
        let Some(first) = self.entries.first_entry().filter(|first| first.key().0 == Use::Waiting)
        else {
            return false;
        };
        if let Some(task) = first.remove() {
            task.abort();
        }
        true
    }
}

impl Connection {
    /// Sets the use of the connection. Returns the previous use.
    pub(in crate::event) fn set_use(&mut self, state: Use) -> Use {
        let before = self.key.0;
        let mut open = self.all.open.lock();
        if let Some(task) = open.entries.remove(&self.key) {
            self.key = open.add(state, task);
        }
        before
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut open = self.all.open.lock();
        open.entries.remove(&self.key);
        if open.entries.is_empty() {
            self.all.emptied.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::sync::mpsc;
    use tokio::task::yield_now;

    use super::*;

    /// Admits a peer that takes this use and stays. `closed` receives its number when it is closed.
    async fn admit(
        connections: &Arc<Connections>,
        number: usize,
        state: Use,
        closed: &mpsc::UnboundedSender<usize>,
    ) {
        struct Closing(usize, mpsc::UnboundedSender<usize>);
        impl Drop for Closing {
            fn drop(&mut self) {
                let _ = self.1.send(self.0);
            }
        }
        let closing = Closing(number, closed.clone());
        connections.admit(move |mut connection| {
            connection.set_use(state);
            async move {
                let _held = (closing, connection);
                pending().await
            }
        });
        yield_now().await;
    }

    #[tokio::test]
    async fn a_new_peer_gets_the_place_of_the_one_that_waited_longest() {
        let connections = Connections::new(4);
        let (sender, mut closed) = mpsc::unbounded_channel();
        let states = [Use::Served, Use::Waiting, Use::Waiting, Use::Served];
        for (number, state) in states.into_iter().enumerate() {
            admit(&connections, number, state, &sender).await;
        }
        assert!(closed.is_empty());
        for number in [1, 2] {
            admit(&connections, 10 + number, Use::Served, &sender).await;
            assert_eq!(closed.recv().await, Some(number));
        }
        admit(&connections, 20, Use::Served, &sender).await;
        assert_eq!(closed.recv().await, Some(20), "each is being served");
        assert_eq!(connections.refused(), 3);
    }

    #[tokio::test]
    async fn a_new_peer_has_time_until_all_places_are_taken_again() {
        let connections = Connections::new(3);
        let (sender, mut closed) = mpsc::unbounded_channel();
        for number in 0..6 {
            admit(&connections, number, Use::Waiting, &sender).await;
        }
        for number in 0..3 {
            assert_eq!(closed.recv().await, Some(number));
        }
        connections.make_room();
        assert_eq!(closed.recv().await, Some(3));
        assert_eq!(connections.refused(), 4);
        (0..3).for_each(|_| connections.make_room());
        connections.emptied().await;
        assert_eq!(connections.refused(), 6, "there was nothing to close");
    }
}
