//! `serve`: HTTP/1.1 connections within limits of time and size, and a shutdown that no client can delay.
//!
//! A connection holds at most the bytes of one request's headers and body, one answer's tokens, and a
//! buffer. There are at most [`Limits::connections`]; further clients wait in the listener's queue.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;

/// The most bytes of a request's first line and headers.
const HEADER_BYTES: usize = 16 << 10;

/// The most bytes that a connection buffers.
const BUFFER_BYTES: usize = 64 << 10;

/// Pause after a connection that could not be accepted, for example without a free file descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The limits of a client's use of the server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections that may be open at the same time.
    pub connections: usize,
    /// Time in which a client must send the headers of a request, from the end of the previous request.
    pub header_time: Duration,
    /// Time in which it must then send the body.
    pub body_time: Duration,
    /// The most bytes of the body.
    pub body_bytes: usize,
    /// Time in which it must read some of an answer that is ready.
    pub read_time: Duration,
    /// Time from a request to the end of its answer.
    pub answer_time: Duration,
    /// Time that a shutdown leaves for unfinished answers. Then their connections are closed.
    pub drain_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            header_time: Duration::from_secs(5),
            body_time: Duration::from_secs(5),
            body_bytes: 1 << 20,
            read_time: Duration::from_secs(10),
            answer_time: Duration::from_secs(600),
            drain_time: Duration::from_secs(10),
        }
    }
}

/// Serves until `stop`, then serves the open connections for at most [`Limits::drain_time`].
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    stop: impl Future<Output = ()>,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_time)
        .max_header_size(HEADER_BYTES)
        .max_buf_size(BUFFER_BYTES);
    let service = TowerToHyperService::new(router);
    let (graceful, mut connections) = (GracefulShutdown::new(), JoinSet::new());
    let places = Arc::new(Semaphore::new(limits.connections.clamp(1, Semaphore::MAX_PERMITS)));
    let accept = async {
        loop {
            let place = Arc::clone(&places).acquire_owned().await.expect("it is never closed");
            while connections.try_join_next().is_some() {}
            let Ok((socket, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let mut socket = TimeoutStream::new(socket);
            socket.set_write_timeout(Some(limits.read_time));
            let io = TokioIo::new(Box::pin(socket));
            let connection = graceful.watch(http.serve_connection(io, service.clone()));
            connections.spawn(async move {
                // The server does not need the reason for which a client's connection ended.
                let _ = connection.await;
                drop(place);
            });
        }
    };
    tokio::select! {
        () = pin!(accept) => {}
        () = stop => {}
    }
    drop(listener);
    let _ = tokio::time::timeout(limits.drain_time, graceful.shutdown()).await;
    connections.shutdown().await;
}
