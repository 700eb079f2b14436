//! `Listener`: the listening socket of one endpoint, which binds again when it is lost.
//!
//! Most errors of `accept` concern one peer, or pass. After any other error the socket counts as lost, and the
//! listener binds to the same address again until it succeeds.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio::time::sleep;

use super::connections::Connections;
use crate::sync::outside::{Arc, Mutex};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 4096;

/// Pause between a failure and the next attempt.
const PAUSE: Duration = Duration::from_millis(20);

/// Consecutive failures after which a listening socket counts as lost.
const FAILURES_MAX: u32 = 10;

/// The listening socket of one endpoint.
pub(in crate::event) struct Listener {
    socket: Option<TcpListener>,
    address: SocketAddr,
    /// Number of lost sockets.
    lost: Arc<Mutex<u64>>,
}

/// The meaning of an error of `accept`.
#[derive(Debug, PartialEq, Eq)]
enum Fault {
    /// A peer disconnected, or the network has a fault that may pass.
    Passing,
    /// The process or the machine has no file descriptor or no memory left.
    Short,
    /// The socket does not listen any more.
    Lost,
}

impl Listener {
    /// Listens at `address:port`; port 0 takes a free port. Counts lost sockets in `lost`.
    pub(in crate::event) async fn bind(address: &str, lost: Arc<Mutex<u64>>) -> io::Result<Self> {
        let mut error = io::Error::new(ErrorKind::InvalidInput, format!("no address: {address:?}"));
        for address in lookup_host(address).await? {
            match listen(address) {
                Ok(socket) => {
                    let address = socket.local_addr()?;
                    return Ok(Self { socket: Some(socket), address, lost });
                }
                Err(failed) => error = failed,
            }
        }
        Err(error)
    }

    pub(in crate::event) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts the next peer. Closes one of `connections` when file descriptors are short.
    pub(in crate::event) async fn accept(&mut self, connections: &Connections) -> TcpStream {
        let mut failures = 0;
        loop {
            let Some(socket) = &self.socket else {
                self.bind_again().await;
                continue;
            };
            let error = match socket.accept().await {
                Ok((stream, _)) => return stream,
                Err(error) => error,
            };
            match fault_of(&error) {
                Fault::Passing => failures += 1,
                Fault::Short => {
                    connections.make_room();
                    sleep(PAUSE).await;
                }
                Fault::Lost => failures = FAILURES_MAX,
            }
            if failures >= FAILURES_MAX {
                failures = 0;
                self.socket = None;
                *self.lost.lock() += 1;
            }
        }
    }

    /// Binds to the same address as soon as that is possible.
    async fn bind_again(&mut self) {
        loop {
            match listen(self.address) {
                Ok(socket) => {
                    self.socket = Some(socket);
                    return;
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Connections of an earlier publisher may still be closing. On Windows the option would share the port.
    if cfg!(not(windows)) {
        socket.set_reuseaddr(true)?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn fault_of(error: &io::Error) -> Fault {
    match (error.kind(), error.raw_os_error()) {
        // ENFILE and EMFILE, which have no kind of their own; then ENOBUFS of Linux and of BSD.
        (ErrorKind::OutOfMemory, _) | (_, Some(23 | 24 | 105 | 55)) => Fault::Short,
        (ErrorKind::InvalidInput | ErrorKind::Unsupported, _) => Fault::Lost,
        // EBADF
        (_, Some(9)) => Fault::Lost,
        _ => Fault::Passing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_that_is_gone_counts_as_lost_at_once() {
        let fault = |number| fault_of(&io::Error::from_raw_os_error(number));
        assert_eq!([9, 22].map(fault), [Fault::Lost, Fault::Lost]);
        assert_eq!([23, 24, 12, 105].map(fault), [const { Fault::Short }; 4]);
        // ECONNABORTED, EPROTO, ENETDOWN, EINTR
        assert_eq!([103, 71, 100, 4].map(fault), [const { Fault::Passing }; 4]);
    }

    #[tokio::test]
    async fn a_lost_socket_is_counted_and_bound_again() {
        let lost = Arc::new(Mutex::new(0));
        let mut listener = Listener::bind("127.0.0.1:0", lost.clone()).await.unwrap();
        let connections = Connections::new(1);
        for losses in 0..3 {
            assert_eq!(*lost.lock(), losses);
            let connecting = tokio::spawn(TcpStream::connect(listener.address()));
            listener.accept(&connections).await;
            connecting.await.unwrap().unwrap();
            let socket = listener.socket.as_ref().unwrap();
            socket2::SockRef::from(socket).shutdown(std::net::Shutdown::Both).unwrap();
            let address = listener.address();
            let connecting = tokio::spawn(async move {
                while TcpStream::connect(address).await.is_err() {
                    sleep(Duration::from_millis(1)).await;
                }
            });
            listener.accept(&connections).await;
            connecting.await.unwrap();
        }
        assert_eq!(*lost.lock(), 3);
    }

    #[tokio::test]
    async fn an_address_in_use_is_refused() {
        let lost = Arc::new(Mutex::new(0));
        let listener = Listener::bind("localhost:0", lost.clone()).await.unwrap();
        let again = Listener::bind(&listener.address().to_string(), lost.clone()).await;
        assert_eq!(again.err().map(|error| error.kind()), Some(ErrorKind::AddrInUse));
        assert!(Listener::bind("no address", lost).await.is_err());
    }
}
