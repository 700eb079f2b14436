//! `Connections`: the open connections of one endpoint, bounded in number, and how useful each is.
//!
//! When all places are taken, a new peer gets the place of the least useful one: of the oldest whose
//! handshake is open, else of the one that has asked for nothing for longest, else of the one that
//! has not read for longest. If every peer is being served, the new one is refused. So peers that do
//! no more than connect keep no place from a peer that subscribes.
//!
//! Invariant: there are at most `max` entries, and one for each [`Connection`] that was not closed
//! in another's favour.

use std::collections::BTreeMap;

use tokio::task::AbortHandle;

use crate::sync::outside::{Arc, Mutex, Notify};

/// How useful a connection is, least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Use {
    /// Its handshake is open.
    New,
    /// It has asked for nothing, or has been answered.
    Idle,
    /// It does not read what it asked for.
    Stuck,
    Served,
}

/// The open connections of one endpoint.
pub(super) struct Connections {
    max: usize,
    open: Mutex<Open>,
    /// Notified when the last one is closed.
    emptied: Notify,
}

#[derive(Default)]
struct Open {
    /// By their use, and since when they have had it.
    entries: BTreeMap<(Use, u64), Option<AbortHandle>>,
    /// Counts changes of use.
    now: u64,
    refused: u64,
}

/// A place among the connections, until it is dropped.
pub(super) struct Connection {
    all: Arc<Connections>,
    key: (Use, u64),
}

impl Connections {
    /// No connections, and places for `max`.
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, open: Mutex::default(), emptied: Notify::new() })
    }

    /// Runs `serve` as a task with a place for a new peer, if need be the place of a less useful one.
    /// Drops `serve` if every peer is being served.
    pub(super) fn admit<F>(self: &Arc<Self>, serve: impl FnOnce(Connection) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send,
    {
        let mut open = self.open.lock();
        if open.entries.len() >= self.max {
            open.refused += 1;
            if !open.close_least_useful() {
                return;
            }
        }
        let key = open.add(Use::New, None);
        drop(open);
        let connection = Connection { all: Arc::clone(self), key };
        let task = tokio::spawn(async move { serve(connection).await });
        if let Some(entry) = self.open.lock().entries.get_mut(&key) {
            *entry = Some(task.abort_handle());
        }
    }

    /// Closes the least useful connection, but none that is being served: the process is short of file
    /// descriptors.
    pub(super) fn make_room(&self) {
        let mut open = self.open.lock();
        open.refused += u64::from(open.close_least_useful());
    }

    /// Peers that were turned away, new ones and those that others got the place of.
    pub(super) fn refused(&self) -> u64 {
        self.open.lock().refused
    }

    /// Returns when no connection is open.
    pub(super) async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.open.lock().entries.is_empty() {
                return;
            }
            emptied.await;
        }
    }
}

impl Open {
    fn add(&mut self, state: Use, task: Option<AbortHandle>) -> (Use, u64) {
        let key = (state, self.now);
        self.now += 1;
        self.entries.insert(key, task);
        key
    }

    /// Closes the least useful connection. False if each is being served.
    fn close_least_useful(&mut self) -> bool {
        let Some(first) = self.entries.first_entry().filter(|first| first.key().0 < Use::Served)
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
    /// Notes how useful the connection is from now on. Returns how useful it was.
    pub(super) fn set_use(&mut self, state: Use) -> Use {
        let before = self.key.0;
        if before != state {
            let mut open = self.all.open.lock();
            if let Some(task) = open.entries.remove(&self.key) {
                self.key = open.add(state, task);
            }
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

    /// Admits a peer that takes this use and stays. Its number comes back when it is closed.
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
    async fn a_new_peer_gets_the_place_of_the_least_useful_one() {
        let connections = Connections::new(4);
        let (sender, mut closed) = mpsc::unbounded_channel();
        for (number, state) in
            [Use::Served, Use::Stuck, Use::Idle, Use::New].into_iter().enumerate()
        {
            admit(&connections, number, state, &sender).await;
        }
        assert!(closed.is_empty());
        for number in [3, 2, 1] {
            admit(&connections, 10 + number, Use::Served, &sender).await;
            assert_eq!(closed.recv().await, Some(number));
        }
        admit(&connections, 20, Use::Served, &sender).await;
        assert_eq!(closed.recv().await, Some(20), "each is being served");
        assert_eq!(connections.refused(), 4);
    }

    #[tokio::test]
    async fn of_equally_useful_peers_the_oldest_goes() {
        let connections = Connections::new(3);
        let (sender, mut closed) = mpsc::unbounded_channel();
        for number in 0..6 {
            admit(&connections, number, Use::New, &sender).await;
        }
        for number in 0..3 {
            assert_eq!(closed.recv().await, Some(number));
        }
        connections.make_room();
        assert_eq!(closed.recv().await, Some(3));
        assert_eq!(connections.refused(), 4);
        connections.make_room();
        connections.make_room();
        connections.make_room();
        connections.emptied().await;
        assert_eq!(connections.refused(), 6, "there was nothing to close");
    }
}
