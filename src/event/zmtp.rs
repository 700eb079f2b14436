//! How do ZeroMQ sockets talk? ZMTP 3.1 over TCP, as far as publishing and answering need it.
//!
//! Greeting, the NULL handshake, frames, and heartbeats, which are answered: libzmq's peers may ask for
//! them, and take who is silent for dead. Source: ZeroMQ RFC 37.
//!
//! The crate `zeromq` (0.7) closes the connection on a heartbeat; the crate `zmq` brings libzmq. What is
//! needed here is little enough to have neither.
//!
//! It does not know what messages mean.

use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;

/// Bits of a frame's first byte.
const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// The longest frame that is read: subscriptions and requests are short.
const LONGEST: u64 = 1 << 16;

/// The most frames of a message that is read.
const MOST_FRAMES: usize = 64;

/// What a peer sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    Message(Vec<Vec<u8>>),
    /// It wants to hear topics that begin so.
    Subscribe(Vec<u8>),
    /// Not any more.
    Cancel(Vec<u8>),
    /// A heartbeat, which is to be answered by these bytes.
    Ping(Vec<u8>),
}

/// The reading end of a connection.
pub(super) struct Reader(BufReader<TcpStream>);

/// Greets a peer, and tells it that this end is a socket of `kind`. The peer's kind is one of `peers`.
pub(super) fn shake_hands(stream: &TcpStream, kind: &str, peers: &[&str]) -> io::Result<Reader> {
    stream.set_nodelay(true)?;
    let mut writer = stream;
    let mut greeting = [0; 64];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    (greeting[10], greeting[11]) = (3, 1);
    greeting[12..16].copy_from_slice(b"NULL");
    writer.write_all(&greeting)?;
    let mut reader = Reader(BufReader::new(stream.try_clone()?));
    let mut theirs = [0; 64];
    reader.0.read_exact(&mut theirs)?;
    if theirs[0] != 0xff || theirs[9] & 1 == 0 || theirs[10] < 3 || &theirs[12..17] != b"NULL\0" {
        return Err(refuse("the peer does not speak ZMTP 3 without security"));
    }
    let mut ready = b"\x05READY".to_vec();
    push_property(&mut ready, "Socket-Type", kind);
    if kind == "ROUTER" {
        push_property(&mut ready, "Identity", "");
    }
    let mut bytes = Vec::new();
    push_frame(&mut bytes, COMMAND, &ready);
    writer.write_all(&bytes)?;
    let (flags, body) = reader.frame()?;
    let answer = body.strip_prefix(b"\x05READY").filter(|_| flags & COMMAND != 0);
    let their_kind = answer.and_then(|properties| property(properties, b"Socket-Type"));
    match their_kind {
        Some(kind) if peers.iter().any(|peer| peer.as_bytes() == kind) => Ok(reader),
        _ => Err(refuse("the peer is no socket that belongs to this one")),
    }
}

impl Reader {
    /// The next thing that the peer sends.
    pub(super) fn read(&mut self) -> io::Result<Incoming> {
        let mut frames = Vec::new();
        loop {
            let (flags, body) = self.frame()?;
            if flags & COMMAND != 0 {
                if let Some(incoming) = command(&body) {
                    return Ok(incoming);
                }
                continue;
            }
            frames.push(body);
            if flags & MORE == 0 {
                return Ok(Incoming::Message(frames));
            }
            if frames.len() == MOST_FRAMES {
                return Err(refuse("a message of more frames than any request has"));
            }
        }
    }

    fn frame(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut flags = [0];
        self.0.read_exact(&mut flags)?;
        let [flags] = flags;
        let len = if flags & LONG == 0 {
            let mut len = [0];
            self.0.read_exact(&mut len)?;
            u64::from(len[0])
        } else {
            let mut len = [0; 8];
            self.0.read_exact(&mut len)?;
            u64::from_be_bytes(len)
        };
        if len > LONGEST {
            return Err(refuse("a frame longer than any request"));
        }
        let mut body = vec![0; len as usize];
        self.0.read_exact(&mut body)?;
        Ok((flags, body))
    }
}

/// Appends a message of these frames.
pub(super) fn push_message(out: &mut Vec<u8>, frames: &[&[u8]]) {
    for (at, frame) in frames.iter().enumerate() {
        let more = if at + 1 < frames.len() { MORE } else { 0 };
        push_frame(out, more, frame);
    }
}

fn push_frame(out: &mut Vec<u8>, flags: u8, body: &[u8]) {
    match u8::try_from(body.len()) {
        Ok(len) => out.extend_from_slice(&[flags, len]),
        Err(_) => {
            out.push(flags | LONG);
            out.extend_from_slice(&(body.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(body);
}

/// What a command asks for, if it is one that asks.
fn command(body: &[u8]) -> Option<Incoming> {
    let (&len, rest) = body.split_first()?;
    let (name, argument) = rest.split_at_checked(len.into())?;
    match name {
        b"SUBSCRIBE" => Some(Incoming::Subscribe(argument.to_vec())),
        b"CANCEL" => Some(Incoming::Cancel(argument.to_vec())),
        b"PING" => {
            // Behind two bytes of time to live: what the answer has to repeat.
            let mut pong = b"\x04PONG".to_vec();
            pong.extend_from_slice(argument.get(2..)?);
            let mut bytes = Vec::new();
            push_frame(&mut bytes, COMMAND, &pong);
            Some(Incoming::Ping(bytes))
        }
        _ => None,
    }
}

fn push_property(out: &mut Vec<u8>, name: &str, value: &str) {
    out.push(name.len() as u8);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(&(value.len() as u32).to_be_bytes());
    out.extend_from_slice(value.as_bytes());
}

/// The value of a property; names are compared without regard to case.
fn property<'a>(properties: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    let mut rest = properties;
    loop {
        let (&len, behind) = rest.split_first()?;
        let (name, behind) = behind.split_at_checked(len.into())?;
        let (len, behind) = behind.split_first_chunk()?;
        let (value, behind) = behind.split_at_checked(u32::from_be_bytes(*len) as usize)?;
        if name.eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = behind;
    }
}

fn refuse(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_is_answered_with_its_context() {
        let Some(Incoming::Ping(pong)) = command(b"\x04PING\x00\x0aabc") else {
            panic!("a heartbeat")
        };
        assert_eq!(pong, b"\x04\x08\x04PONGabc");
        assert_eq!(command(b"\x04PONGabc"), None);
        assert_eq!(command(b"\x09SUBSCRIBEkv@"), Some(Incoming::Subscribe(b"kv@".to_vec())));
        assert_eq!(command(b"\x20short"), None);
    }

    #[test]
    fn a_long_frame_has_a_long_length() {
        let mut out = Vec::new();
        push_message(&mut out, &[b"t", &[7; 300]]);
        assert_eq!(out[..3], [MORE, 1, b't']);
        assert_eq!(out[3..12], [LONG, 0, 0, 0, 0, 0, 0, 1, 44]);
        assert_eq!(out.len(), 3 + 9 + 300);
    }

    #[test]
    fn properties_are_found_by_name() {
        let mut properties = Vec::new();
        push_property(&mut properties, "Identity", "");
        push_property(&mut properties, "Socket-Type", "SUB");
        assert_eq!(property(&properties, b"socket-type"), Some(&b"SUB"[..]));
        assert_eq!(property(&properties[..9], b"socket-type"), None);
    }
}
