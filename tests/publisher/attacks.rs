//! `Attacker`: a peer that breaks the rules, or keeps them and asks for too much. It is written by hand,
//! because no library would send these bytes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use std::{io, thread};

use socket2::{Domain, Socket, Type};

/// The addresses to attack, and the end of the attack.
pub struct Attacker {
    pub publish: SocketAddr,
    pub replay: SocketAddr,
    pub until: Instant,
    /// How many connections were opened so far; it also numbers them.
    pub opened: u32,
}

/// The socket that a peer connects to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum At {
    Publish,
    Replay,
}

pub const MORE: u8 = 1;
pub const COMMAND: u8 = 4;

impl Attacker {
    pub fn goes_on(&self) -> bool {
        Instant::now() < self.until
    }

    /// Returns the publisher's and the replay socket in turn.
    pub fn turn(&self) -> At {
        if self.opened.is_multiple_of(2) { At::Publish } else { At::Replay }
    }

    /// Connects from one of fifty addresses. A connection that is `abortive` ends by a reset.
    pub fn connect(&mut self, at: At, abortive: bool) -> io::Result<TcpStream> {
        self.opened += 1;
        let host = Ipv4Addr::new(127, 0, 1 + (self.opened % 50) as u8, 1);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((host, 0)).into())?;
        if abortive {
            socket.set_linger(Some(Duration::ZERO))?;
        }
        let address = if at == At::Publish { self.publish } else { self.replay };
        socket.connect_timeout(&address.into(), Duration::from_secs(5))?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.set_write_timeout(Some(Duration::from_millis(500)))?;
        Ok(stream)
    }

    /// Connects and completes the handshake.
    pub fn shake_hands(&mut self, at: At, abortive: bool) -> io::Result<TcpStream> {
        let mut stream = self.connect(at, abortive)?;
        stream.write_all(&greeting())?;
        stream.read_exact(&mut [0; 64])?;
        stream.write_all(&ready(at))?;
        read_frame(&mut stream)?;
        Ok(stream)
    }

    /// Completes the handshake and sends `bytes` again and again without reading. It goes on until the
    /// end, or as long as the peer takes them, and then reconnects. Returns the last connection, still
    /// open.
    pub fn flood(&mut self, at: At, bytes: impl Fn(u64) -> Vec<u8>) -> Option<TcpStream> {
        let (mut last, mut sent) = (None, 0);
        while self.goes_on() {
            let Ok(mut stream) = self.shake_hands(at, false) else {
                thread::sleep(Duration::from_millis(10));
                continue;
            };
            while self.goes_on() && stream.write_all(&bytes(sent)).is_ok() {
                sent += 1;
            }
            last = Some(stream);
        }
        assert!(sent > 0, "some of it was sent");
        last
    }
}

/// Sends bytes, and waits until the peer closes the connection. False if a read waits for five seconds.
pub fn is_refused(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    let sent = stream.write_all(bytes);
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let _ = stream.shutdown(Shutdown::Write).and(sent);
    loop {
        match stream.read(&mut [0; 4096]) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() != io::ErrorKind::WouldBlock,
        }
    }
}

pub fn greeting() -> [u8; 64] {
    let mut greeting = [0; 64];
    (greeting[0], greeting[9], greeting[10], greeting[11]) = (0xff, 0x7f, 3, 1);
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

pub fn ready(at: At) -> Vec<u8> {
    let kind: &[u8] = if at == At::Publish { b"SUB" } else { b"DEALER" };
    let len = [0, 0, 0, kind.len() as u8];
    frame(COMMAND, &[b"\x05READY\x0bSocket-Type", &len[..], kind].concat())
}

/// Returns a frame, in the long form if the body needs it.
pub fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    match u8::try_from(body.len()) {
        Ok(len) => [&[flags, len], body].concat(),
        Err(_) => [&[flags | 2], &(body.len() as u64).to_be_bytes()[..], body].concat(),
    }
}

/// Returns a subscription to all topics.
pub fn subscription() -> Vec<u8> {
    frame(0, b"\x01")
}

/// Returns a request for all batches.
pub fn request() -> Vec<u8> {
    [frame(MORE, b""), frame(0, &[0; 8])].concat()
}

/// Reads one frame.
pub fn read_frame(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut flags = [0];
    stream.read_exact(&mut flags)?;
    let mut len = [0; 8];
    let start = if flags[0] & 2 == 0 { 7 } else { 0 };
    stream.read_exact(&mut len[start..])?;
    let mut body = vec![0; u64::from_be_bytes(len) as usize];
    stream.read_exact(&mut body)?;
    Ok(body)
}
