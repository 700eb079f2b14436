//! `ask`: a small client over plain HTTP/1.1, for tests and load.

use std::io;
use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// The largest part of an answer, in bytes.
const CHUNK_BYTES: usize = 16 << 20;

/// The answer of a request for completions or a chat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// The status.
    pub status: u16,
    /// The text of each sample.
    pub texts: Vec<String>,
    /// The reasons for which the samples ended.
    pub reasons: Vec<Option<String>>,
    /// The usage, if the answer has it; else null.
    pub usage: Value,
    /// The body of an error, or null.
    pub error: Value,
    /// True if the client closed the connection as it was asked to.
    pub has_left: bool,
}

/// Sends a request, and reads its answer, streamed or whole. With `leave_after` the client closes the connection
/// after so many parts of a stream.
///
/// # Errors
/// The connection fails, or the answer is no answer.
pub async fn ask(
    server: SocketAddr,
    path: &str,
    body: &Value,
    leave_after: Option<usize>,
) -> io::Result<Answered> {
    let mut answer = send(server, "POST", path, &body.to_string()).await?;
    let mut answered = Answered { status: answer.status, ..Answered::default() };
    if answer.status != 200 || body["stream"] != true {
        let body: Value = serde_json::from_str(&answer.rest().await?)?;
        answered.add(&body);
        return Ok(answered);
    }
    let mut parts = 0;
    while let Some(line) = answer.line().await? {
        let Some(data) = line.strip_prefix("data: ") else { continue };
        if data == "[DONE]" {
            return Ok(answered);
        }
        answered.add(&serde_json::from_str(data)?);
        parts += 1;
        if leave_after.is_some_and(|most| parts >= most) {
            return Ok(Answered { has_left: true, ..answered });
        }
    }
    Err(io::Error::other("the stream ended early"))
}

/// Returns the status and the body of a page.
///
/// # Errors
/// The connection fails.
pub async fn get(server: SocketAddr, path: &str) -> io::Result<(u16, Vec<u8>)> {
    let mut answer = send(server, "GET", path, "").await?;
    while answer.more().await? {}
    Ok((answer.status, answer.buffer))
}

impl Answered {
    /// Adds a body, or a part of a stream.
    fn add(&mut self, part: &Value) {
        if !part["error"].is_null() {
            self.error = part["error"].clone();
        }
        if !part["usage"].is_null() {
            self.usage = part["usage"].clone();
        }
        for choice in part["choices"].as_array().into_iter().flatten() {
            let index = choice["index"].as_u64().unwrap_or(0) as usize;
            if self.texts.len() <= index {
                self.texts.resize(index + 1, String::new());
                self.reasons.resize(index + 1, None);
            }
            let texts =
                [&choice["text"], &choice["message"]["content"], &choice["delta"]["content"]];
            let text = texts.iter().find_map(|text| text.as_str());
            self.texts[index].push_str(text.unwrap_or_default());
            if let Some(reason) = choice["finish_reason"].as_str() {
                self.reasons[index] = Some(reason.to_owned());
            }
        }
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
        let mut rest = Vec::new();
        loop {
            rest.extend_from_slice(&self.buffer[self.at..]);
            self.at = self.buffer.len();
            if !self.more().await? {
                return String::from_utf8(rest).map_err(io::Error::other);
            }
        }
    }
}
