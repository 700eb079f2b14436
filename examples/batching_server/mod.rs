//! `Server`: the parts of the batching server, and how they start and end.
//!
//! ```text
//!   http ── Job ──> admission (a task a request, waiting for room) ──> worker ── tokens ──> http
//!                        ▲                                               │
//!                        └────────────── evicted: comes in again ────────┘
//! ```

mod connections;
mod http;
mod intake;
mod job;
mod metrics;
mod model;
mod tensor;
mod worker;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use paged_kv::{PagedKvCache, Watermark};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

pub use self::connections::Limits;
pub use self::model::{HashModel, Model};

use self::metrics::Metrics;
use self::tensor::Tensor;
use self::worker::{Admitted, Worker};

/// The configuration of a server.
#[derive(Clone, Debug)]
pub struct Config {
    /// Blocks of the cache.
    pub num_blocks: usize,
    /// Tokens per block.
    pub block_size: usize,
    /// Scheduler workers.
    pub workers: usize,
    /// Share of the blocks that is kept for running requests to grow.
    pub watermark: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self { num_blocks: 4096, block_size: 16, workers: 2, watermark: 0.01 }
    }
}

/// The state that handlers, admissions and workers share.
pub struct Shared<M> {
    pub cache: Arc<PagedKvCache>,
    pub tensor: Tensor,
    pub model: M,
    pub metrics: Metrics,
    limits: Limits,
    draining: AtomicBool,
    ids: AtomicU64,
    /// Queues for admitted sequences, one per worker.
    workers: Vec<mpsc::UnboundedSender<Admitted>>,
}

impl<M> Shared<M> {
    fn next_id(&self) -> paged_kv::SeqId {
        paged_kv::SeqId(self.ids.fetch_add(1, Ordering::Relaxed))
    }
}

/// A running server.
pub struct Server<M> {
    shared: Arc<Shared<M>>,
    address: SocketAddr,
    stop: Arc<Notify>,
    http: JoinHandle<()>,
    workers: Vec<JoinHandle<()>>,
}

impl<M: Model> Server<M> {
    /// Listens and serves, within the default limits.
    ///
    /// # Errors
    /// The server cannot listen at the address, or the configuration is invalid.
    pub async fn start(
        listen: &str,
        config: Config,
        model: M,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        Self::start_within(listen, config, Limits::default(), model).await
    }

    /// Listens and serves, within `limits`.
    ///
    /// # Errors
    /// Those of [`start`](Self::start).
    pub async fn start_within(
        listen: &str,
        config: Config,
        limits: Limits,
        model: M,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let cache = PagedKvCache::builder()
            .num_blocks(config.num_blocks)
            .block_size(config.block_size)
            .watermark(Watermark::Share(config.watermark))
            .build()?;
        let cache = Arc::new(cache);
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..config.workers.max(1)).map(|_| mpsc::unbounded_channel()).unzip();
        let shared = Arc::new(Shared {
            metrics: Metrics::new(Arc::clone(&cache)),
            cache,
            tensor: Tensor::new(config.num_blocks, config.block_size),
            model,
            limits,
            draining: AtomicBool::new(false),
            ids: AtomicU64::new(0),
            workers: senders,
        });
        let worker = |admitted| tokio::spawn(Worker::new(Arc::clone(&shared), admitted).run());
        let workers = receivers.into_iter().map(worker).collect();
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
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

    /// Refuses new requests, serves the accepted ones to their end, and stops. It takes at most
    /// [`Limits::drain_time`] and a step; no client can delay it further.
    pub async fn shut_down(self) {
        self.shared.draining.store(true, Ordering::SeqCst);
        self.stop.notify_one();
        // A connection ends when its response has been sent, or when the drain time is over.
        let _ = self.http.await;
        for worker in &self.shared.workers {
            let _ = worker.send(Admitted::Stop);
        }
        for worker in self.workers {
            let _ = worker.await;
        }
    }
}
