//! ZMTP 3.1, the transport protocol of ZeroMQ, without encryption: greeting, commands and frames of RFC 37.
//!
//! Nothing here reads a socket. No memory is allocated by a length that a peer names. A frame above
//! [`FRAME_MAX`] is an error as soon as its header has arrived. A message of more than [`PARTS_MAX`] frames is
//! an error as soon as that many have arrived.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The longest frame that a peer may send, in bytes. Subscriptions and requests are short.
pub(in crate::event) const FRAME_MAX: usize = 4096;

/// The most frames of one message that a peer may send.
pub(in crate::event) const PARTS_MAX: usize = 16;

/// The length of a greeting, in bytes.
pub(in crate::event) const GREETING_LEN: usize = 64;

/// The longest context of a heartbeat, in bytes.
const CONTEXT_MAX: usize = 16;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// The kind of a listening socket, and so the kinds that may connect to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::event) enum Kind {
    Publisher,
    Router,
}

impl Kind {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Publisher => b"PUB",
            Self::Router => b"ROUTER",
        }
    }

    fn takes(self, peer: &[u8]) -> bool {
        match self {
            Self::Publisher => matches!(peer, b"SUB" | b"XSUB"),
            Self::Router => matches!(peer, b"DEALER" | b"REQ" | b"ROUTER"),
        }
    }
}

/// A frame that a peer sent.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::event) struct Frame {
    pub(in crate::event) is_command: bool,
    /// The position of the frame in its message, from 0 on.
    pub(in crate::event) part: usize,
    /// False for the last frame of a message.
    pub(in crate::event) has_more: bool,
    pub(in crate::event) body: Bytes,
}

/// The request of a frame.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::event) enum PeerRequest {
    /// Asks for messages that begin with these bytes.
    Subscribe(Bytes),
    /// Cancels messages that begin with these bytes.
    Cancel(Bytes),
    /// Asks for an answer with this context.
    Ping(Bytes),
    /// The last frame of a message.
    Message(Bytes),
    Nothing,
}

/// The bytes that a peer has sent and that no caller has taken yet.
#[derive(Default)]
pub(in crate::event) struct Input {
    pub(in crate::event) bytes: BytesMut,
    /// Frames of the open message.
    parts: usize,
}

/// Returns the first bytes of a connection.
pub(in crate::event) fn greeting() -> [u8; GREETING_LEN] {
    let mut greeting = [0; GREETING_LEN];
    (greeting[0], greeting[9], greeting[10], greeting[11]) = (0xff, 0x7f, 3, 1);
    greeting[12..16].copy_from_slice(b"NULL");
    greeting
}

/// Returns the command that ends a handshake.
pub(in crate::event) fn ready(kind: Kind) -> Bytes {
    let mut body = BytesMut::new();
    body.put_slice(b"\x05READY\x0bSocket-Type");
    body.put_u32(kind.name().len() as u32);
    body.put_slice(kind.name());
    command(&body)
}

/// Returns the answer to a [`PeerRequest::Ping`].
pub(in crate::event) fn pong(context: &[u8]) -> Bytes {
    command(&[b"\x04PONG", context].concat())
}

fn command(body: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(2 + body.len());
    put_header(&mut frame, COMMAND, body.len());
    frame.put_slice(body);
    frame.freeze()
}

/// Returns all frames of a message except the body of the last, which has `last_len` bytes.
pub(in crate::event) fn head(frames: &[&[u8]], last_len: usize) -> Bytes {
    let len: usize = frames.iter().map(|frame| 9 + frame.len()).sum();
    let mut head = BytesMut::with_capacity(len + 9);
    for frame in frames {
        put_header(&mut head, MORE, frame.len());
        head.put_slice(frame);
    }
    put_header(&mut head, 0, last_len);
    head.freeze()
}

fn put_header(out: &mut BytesMut, flags: u8, len: usize) {
    match u8::try_from(len) {
        Ok(len) => out.put_slice(&[flags, len]),
        Err(_) => {
            out.put_u8(flags | LONG);
            out.put_u64(len as u64);
        }
    }
}

impl Input {
    /// Takes a greeting out when all of it has arrived. Returns false before that.
    ///
    /// # Errors
    /// As soon as a byte cannot belong to a greeting of this protocol.
    pub(in crate::event) fn greeting(&mut self) -> io::Result<bool> {
        let bytes = &self.bytes[..self.bytes.len().min(GREETING_LEN)];
        let byte = |at: usize| bytes.get(at).copied();
        if byte(0).is_some_and(|first| first != 0xff)
            || byte(9).is_some_and(|last| last & 1 == 0)
            || byte(10).is_some_and(|version| version < 3)
        {
            return Err(broken("no greeting of ZMTP 3"));
        }
        if bytes.len() < GREETING_LEN {
            return Ok(false);
        }
        if bytes[12..32] != greeting()[12..32] {
            return Err(broken("a mechanism other than NULL"));
        }
        self.bytes.advance(GREETING_LEN);
        Ok(true)
    }

    /// Takes the next frame out when all of it has arrived.
    ///
    /// # Errors
    /// When its header breaks the protocol or a limit.
    pub(in crate::event) fn frame(&mut self) -> io::Result<Option<Frame>> {
        let Some((flags, start, len)) = self.header()? else { return Ok(None) };
        if self.bytes.len() < start + len {
            return Ok(None);
        }
        self.bytes.advance(start);
        let body = self.bytes.split_to(len).freeze();
        let (is_command, has_more) = (flags & COMMAND != 0, flags & MORE != 0);
        let part = self.parts;
        if !is_command {
            self.parts = if has_more { part + 1 } else { 0 };
        }
        Ok(Some(Frame { is_command, part, has_more, body }))
    }

    /// Returns the flags of the next frame, the position of its body, and the body's length.
    fn header(&self) -> io::Result<Option<(u8, usize, usize)>> {
        let Some(&flags) = self.bytes.first() else { return Ok(None) };
        if flags & !(MORE | LONG | COMMAND) != 0 || flags & (COMMAND | MORE) == COMMAND | MORE {
            return Err(broken("unknown flags"));
        }
        if flags & COMMAND == 0 && self.parts >= PARTS_MAX {
            return Err(broken("a message of too many frames"));
        }
        let (start, len) = if flags & LONG == 0 {
            let Some(&len) = self.bytes.get(1) else { return Ok(None) };
            (2, u64::from(len))
        } else {
            let Some(len) = self.bytes.get(1..9) else { return Ok(None) };
            (9, len.iter().fold(0, |len, &byte| len << 8 | u64::from(byte)))
        };
        match usize::try_from(len) {
            Ok(len) if len <= FRAME_MAX => Ok(Some((flags, start, len))),
            _ => Err(broken("a frame that is too long")),
        }
    }
}

impl Frame {
    /// Checks that this is the command that ends a handshake, from a socket that may connect to `kind`.
    pub(in crate::event) fn check_ready(&self, kind: Kind) -> io::Result<()> {
        let properties = self.is_command.then(|| self.body.strip_prefix(b"\x05READY")).flatten();
        let mut rest = properties.ok_or_else(|| broken("no READY"))?;
        while !rest.is_empty() {
            let (name, value) = property(&mut rest).ok_or_else(|| broken("a cut property"))?;
            if name.eq_ignore_ascii_case(b"Socket-Type") {
                return kind.takes(value).then_some(()).ok_or_else(|| broken("a wrong socket"));
            }
        }
        Err(broken("no socket type"))
    }

    /// Returns the request of the frame.
    pub(in crate::event) fn request(&self) -> io::Result<PeerRequest> {
        if !self.is_command {
            return Ok(if self.has_more {
                PeerRequest::Nothing
            } else {
                PeerRequest::Message(self.body.clone())
            });
        }
        let (&len, rest) = self.body.split_first().ok_or_else(|| broken("a nameless command"))?;
        let name = rest.get(..len.into()).ok_or_else(|| broken("a cut command"))?;
        let data = self.body.slice(1 + name.len()..);
        match name {
            b"SUBSCRIBE" => Ok(PeerRequest::Subscribe(data)),
            b"CANCEL" => Ok(PeerRequest::Cancel(data)),
            b"PING" if (2..=2 + CONTEXT_MAX).contains(&data.len()) => {
                Ok(PeerRequest::Ping(data.slice(2..))) // after the time to live
            }
            b"PING" => Err(broken("a wrong heartbeat")),
            b"ERROR" => Err(broken("an error of the peer")),
            _ => Ok(PeerRequest::Nothing),
        }
    }

    /// Returns the request to a publisher: before version 3.1, subscriptions are messages.
    pub(in crate::event) fn subscription(&self) -> io::Result<PeerRequest> {
        match self.request()? {
            PeerRequest::Message(body) if self.part == 0 => Ok(match body.first() {
                Some(1) => PeerRequest::Subscribe(body.slice(1..)),
                Some(0) => PeerRequest::Cancel(body.slice(1..)),
                _ => PeerRequest::Nothing,
            }),
            PeerRequest::Message(_) => Ok(PeerRequest::Nothing),
            request => Ok(request),
        }
    }
}

/// Takes the next property of a READY out.
fn property<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (&len, after) = rest.split_first()?;
    let (name, after) = after.split_at_checked(len.into())?;
    let (len, after) = after.split_at_checked(4)?;
    let len = len.iter().fold(0_usize, |len, &byte| len << 8 | usize::from(byte));
    let (value, after) = after.split_at_checked(len)?;
    *rest = after;
    Some((name, value))
}

/// Creates the error for a peer that broke the protocol.
fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(bytes: &[u8]) -> Input {
        Input { bytes: bytes.into(), parts: 0 }
    }

    fn frame_of(bytes: &[u8]) -> Frame {
        input(bytes).frame().unwrap().expect("a whole frame")
    }

    #[test]
    fn frames_written_are_read_back() {
        let mut input = input(&greeting());
        assert!(input.greeting().unwrap() && input.bytes.is_empty());
        let mut input = Input::default();
        input.bytes.extend_from_slice(&head(&[b"a", &[7; 300]], 2));
        input.bytes.extend_from_slice(b"zz");
        let frames: Vec<_> = std::iter::from_fn(|| input.frame().unwrap()).collect();
        assert_eq!(frames.iter().map(|frame| frame.part).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(frames[1].body, [7; 300][..]);
        assert_eq!(frames[2].request().unwrap(), PeerRequest::Message("zz".into()));
    }

    #[test]
    fn only_sockets_that_fit_may_connect() {
        for (kind, peer, fits) in [
            (Kind::Publisher, "SUB", true),
            (Kind::Publisher, "XSUB", true),
            (Kind::Publisher, "PUB", false),
            (Kind::Router, "DEALER", true),
            (Kind::Router, "REQ", true),
            (Kind::Router, "SUB", false),
        ] {
            let len = [0, 0, 0, peer.len() as u8];
            let mut body = b"\x05READY\x08Identity\0\0\0\x02me\x0bsocket-type".to_vec();
            body.extend([&len[..], peer.as_bytes()].concat());
            for cut in 0..=body.len() {
                let ready = frame_of(&command(&body[..cut])).check_ready(kind);
                assert_eq!(ready.is_ok(), fits && cut == body.len(), "{peer}, {cut} bytes");
            }
        }
        assert!(frame_of(&ready(Kind::Publisher)).check_ready(Kind::Publisher).is_err());
        assert!(frame_of(&ready(Kind::Router)).check_ready(Kind::Router).is_ok());
    }

    #[test]
    fn a_wrong_byte_of_a_greeting_is_refused_when_it_comes() {
        for (at, byte) in [(0, b'G'), (9, 0), (10, 2)] {
            let mut bytes = greeting();
            bytes[at] = byte;
            assert!(!input(&bytes[..at]).greeting().unwrap());
            assert!(input(&bytes[..=at]).greeting().is_err());
        }
        let mut curve = greeting();
        curve[12..17].copy_from_slice(b"CURVE");
        assert!(input(&curve).greeting().is_err());
    }

    #[test]
    fn a_long_frame_is_refused_by_its_header() {
        for len in [FRAME_MAX as u64 + 1, 1 << 31, 1 << 32, 1 << 62, 1 << 63, u64::MAX] {
            for flags in [LONG, LONG | MORE, LONG | COMMAND] {
                let header = [&[flags], &len.to_be_bytes()[..]].concat();
                assert!(input(&header[..8]).frame().unwrap().is_none());
                assert!(input(&header).frame().is_err(), "{len}");
            }
        }
        let longest = [&[LONG], &(FRAME_MAX as u64).to_be_bytes()[..], &[0; FRAME_MAX]].concat();
        assert_eq!(frame_of(&longest).body.len(), FRAME_MAX);
    }

    #[test]
    fn a_message_of_many_frames_is_refused_before_its_end() {
        let mut input = input(&[MORE, 0].repeat(2 * PARTS_MAX));
        for part in 0..PARTS_MAX {
            assert_eq!(input.frame().unwrap().unwrap().part, part);
        }
        assert!(input.frame().is_err());
    }

    #[test]
    fn subscriptions_are_commands_or_messages() {
        let asked = |bytes: &[u8]| frame_of(bytes).subscription().unwrap();
        assert_eq!(asked(b"\x00\x03\x01ab"), PeerRequest::Subscribe("ab".into()));
        assert_eq!(asked(b"\x00\x01\x00"), PeerRequest::Cancel(Bytes::new()));
        assert_eq!(asked(b"\x04\x0c\x09SUBSCRIBEab"), PeerRequest::Subscribe("ab".into()));
        assert_eq!(asked(b"\x04\x08\x06CANCELa"), PeerRequest::Cancel("a".into()));
        assert_eq!(asked(b"\x04\x09\x04PING\0\x10ab"), PeerRequest::Ping("ab".into()));
        assert_eq!(asked(b"\x00\x03abc"), PeerRequest::Nothing);
        assert_eq!(asked(b"\x04\x05\x04PONG"), PeerRequest::Nothing);
        assert_eq!(asked(b"\x01\x02\x01a"), PeerRequest::Nothing, "messages of several frames");
        for wrong in
            [&b"\x04\x00"[..], b"\x04\x02\x04P", b"\x04\x06\x04PING\0", b"\x04\x06\x05ERROR"]
        {
            assert!(frame_of(wrong).subscription().is_err(), "{wrong:?}");
        }
    }

    /// Any bytes of a peer are read or refused, and the bytes that wait to be read are bounded.
    #[test]
    fn no_bytes_do_harm() {
        let mut state = 1_u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        };
        for round in 0..20_000 {
            let start: &[u8] =
                [&b""[..], b"\x04\x20\x05READY", b"\x04\x20\x05READY\x0bSocket-Type"][round % 3];
            let mut input = input(start);
            for _ in 0..random() {
                input.bytes.put_u8(if random() < 128 { random() % 8 } else { random() });
            }
            while let Ok(Some(frame)) = input.frame() {
                let _ = (frame.check_ready(Kind::Router), frame.subscription());
            }
            let _ = input.greeting();
            assert!(input.bytes.len() <= 300);
        }
    }
}
