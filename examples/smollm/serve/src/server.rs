//! `Server`: the workers and the HTTP interface, and how they start and end.

use std::net::SocketAddr;
use std::sync::Arc;

use paged_kv::PagedKvCache;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::loaded::Loaded;
use crate::shared::{Config, Shared};
use crate::worker::Worker;
use crate::{connections, http};

/// A running server.
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    stop: Arc<Notify>,
    http: JoinHandle<()>,
    workers: Vec<JoinHandle<()>>,
}

impl Server {
    /// Listens and serves.
    ///
    /// # Errors
    /// The server cannot listen at the address, or the parameters are invalid.
    pub async fn start(
        listen: &str,
        loaded: Loaded,
        config: Config,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let (num_workers, limits) = (config.workers.max(1), config.limits);
        let shared = Arc::new(Shared::new(loaded, config)?);
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let worker = |number| {
            let (worker, runtime) = (Worker::new(Arc::clone(&shared), number), Handle::current());
            tokio::task::spawn_blocking(move || runtime.block_on(worker.run()))
        };
        let workers = (0..num_workers).map(worker).collect();
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let router = http::router(Arc::clone(&shared));
        let stopped = async move { stopped.notified().await };
        let http = tokio::spawn(connections::serve(listener, router, limits, stopped));
        Ok(Self { shared, address, stop, http, workers })
    }

    /// Returns the address at which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the cache that it serves from.
    pub fn cache(&self) -> &PagedKvCache {
        &self.shared.cache
    }

    /// Returns the state of its handlers and workers.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Refuses new requests, serves the accepted ones to their end, and stops. It takes at most the
    /// [drain time](connections::Limits::drain_time) and a step; no client can delay it further.
    pub async fn shut_down(mut self) {
        self.shared.drain();
        self.stop.notify_one();
        // A connection ends when its response has been sent, or when the drain time is over.
        let _ = (&mut self.http).await;
        self.shared.stop();
        for worker in std::mem::take(&mut self.workers) {
            let _ = worker.await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A runtime that ends waits for the threads of the workers.
        self.shared.stop();
        self.http.abort();
    }
}
