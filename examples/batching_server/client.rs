//! `ask`: a client that checks each token of an answer against the stand-in model. It speaks plain HTTP/1.1
//! over a socket.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::server::HashModel;

/// The largest part of an answer, in bytes.
const CHUNK_BYTES: usize = 16 << 20;

/// One request to make.
#[derive(Clone, Debug)]
pub struct Ask {
    pub prompt: Vec<u32>,
    pub max_tokens: usize,
    pub samples: u32,
    /// Asks for server-sent events instead of one body.
    pub stream: bool,
    /// Closes the connection after this many tokens.
    pub leave_after: Option<usize>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With this many tokens, all of them right.
    Right(usize),
    /// The client closed the connection as asked; all tokens until then were right.
    Left,
}

/// Sends a request and checks the answer.
///
/// # Errors
/// The connection fails, or a token differs from the stand-in's.
pub async fn ask(server: SocketAddr, ask: &Ask) -> io::Result<Outcome> {
    let body = json!({
        "prompt": ask.prompt, "max_tokens": ask.max_tokens, "n": ask.samples, "stream": ask.stream,
    });
    let mut answer = send(server, "POST", "/v1/completions", &body.to_string()).await?;
    let mut check = Check::new(ask);
    if answer.status != 200 {
        let (status, rest) = (answer.status, answer.rest().await?);
        return Err(io::Error::other(format!("status {status}: {rest}")));
    }
    if !ask.stream {
        let body: Value = serde_json::from_str(&answer.rest().await?)?;
        for choice in body["choices"].as_array().into_iter().flatten() {
            check.text(choice)?;
        }
        return check.end();
    }
    while let Some(line) = answer.line().await? {
        let Some(data) = line.strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            return check.end();
        }
        let part: Value = serde_json::from_str(data)?;
        if part.get("error").is_some() {
            return Err(io::Error::other(data.to_owned()));
        }
        check.text(&part["choices"][0])?;
        if ask.leave_after.is_some_and(|tokens| check.seen >= tokens) {
            return Ok(Outcome::Left);
        }
    }
    Err(io::Error::other("the stream ended early"))
}

/// Returns the status and the body of a page.
///
/// # Errors
/// The connection fails.
pub async fn get(server: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut answer = send(server, "GET", path, "").await?;
    Ok((answer.status, answer.rest().await?))
}

/// The expected tokens of each sample, and how many of them have arrived.
struct Check {
    expected: Vec<Vec<u32>>,
    said: Vec<usize>,
    seen: usize,
}

impl Check {
    fn new(ask: &Ask) -> Self {
        let model = HashModel { step: Duration::ZERO };
        let expected = |sample| model.expected(&ask.prompt, ask.max_tokens, sample);
        let said = vec![0; ask.samples as usize];
        Self { expected: (0..ask.samples).map(expected).collect(), said, seen: 0 }
    }

    fn text(&mut self, choice: &Value) -> io::Result<()> {
        let index = choice["index"].as_u64().unwrap_or(u64::MAX) as usize;
        let text = choice["text"].as_str().unwrap_or("?");
        for token in text.split_whitespace() {
            let at = self.said.get_mut(index).ok_or_else(|| io::Error::other("no such sample"))?;
            let expected = self.expected[index].get(*at);
            if token.parse().ok().as_ref() != expected {
                let wrong = format!("WRONG sample {index} token {at}: {token}, not {expected:?}");
                return Err(io::Error::other(wrong));
            }
            *at += 1;
            self.seen += 1;
        }
        Ok(())
    }

    fn end(self) -> io::Result<Outcome> {
        let all: Vec<usize> = self.expected.iter().map(Vec::len).collect();
        if self.said == all {
            return Ok(Outcome::Right(self.seen));
        }
        Err(io::Error::other(format!("WRONG numbers of tokens: {:?}, not {all:?}", self.said)))
    }
}

/// An answer whose headers have been read.
struct Received {
    status: u16,
    socket: BufReader<TcpStream>,
    is_chunked: bool,
    /// Bytes read from the socket; those from `at` on are not consumed yet.
    buffer: Vec<u8>,
    at: usize,
}

async fn send(server: SocketAddr, method: &str, path: &str, body: &str) -> io::Result<Received> {
    let mut socket = TcpStream::connect(server).await?;
    socket.set_nodelay(true)?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).await?;
    let mut socket = BufReader::new(socket);
    let mut line = String::new();
    socket.read_line(&mut line).await?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("not HTTP: {line:?}")))?;
    let mut is_chunked = false;
    loop {
        line.clear();
        socket.read_line(&mut line).await?;
        let header = line.trim().to_ascii_lowercase();
        if header.is_empty() {
            break;
        }
        is_chunked |= header == "transfer-encoding: chunked";
    }
    Ok(Received { status, socket, is_chunked, buffer: Vec::new(), at: 0 })
}

impl Received {
    /// Reads more of the body. Returns false at its end.
    async fn more(&mut self) -> io::Result<bool> {
        self.buffer.drain(..self.at);
        self.at = 0;
        if !self.is_chunked {
            return Ok(self.socket.read_buf(&mut self.buffer).await? > 0);
        }
        let mut size = String::new();
        if self.socket.read_line(&mut size).await? == 0 {
            return Ok(false);
        }
        let size = usize::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
        if size > CHUNK_BYTES {
            return Err(io::Error::other(format!("a chunk of {size} bytes")));
        }
        let start = self.buffer.len();
        // The chunk and the line end after it.
        self.buffer.resize(start + size + 2, 0);
        self.socket.read_exact(&mut self.buffer[start..]).await?;
        self.buffer.truncate(start + size);
        Ok(size > 0)
    }

    async fn line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.buffer[self.at..].iter().position(|&byte| byte == b'\n') {
                let line = &self.buffer[self.at..self.at + end];
                let line = String::from_utf8_lossy(line).trim_end().to_owned();
                self.at += end + 1;
                return Ok(Some(line));
            }
            if !self.more().await? {
                return Ok(None);
            }
        }
    }

    async fn rest(&mut self) -> io::Result<String> {
        let mut rest = String::new();
        loop {
            rest.push_str(&String::from_utf8_lossy(&self.buffer[self.at..]));
            self.at = self.buffer.len();
            if !self.more().await? {
                return Ok(rest);
            }
        }
    }
}
