//! Tests of a server under attack: it stays within its limits whatever clients do, and shuts down on
//! request.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use serde_json::{Value, json};
use serving::client::{ask, get};
use serving::connections::Limits;
use serving::server::Server;
use serving::shared::Config;

use crate::{COMPLETIONS, all_back, answer, watched};

/// Limits that a client reaches soon.
fn limits() -> Limits {
    let soon = Duration::from_millis(300);
    Limits {
        connections: 64,
        header_time: soon,
        body_time: soon,
        body_bytes: 10_000,
        read_time: soon,
        answer_time: Duration::from_secs(3600),
        drain_time: soon,
    }
}

/// Limits that no client reaches in a test, except the time that a shutdown allows.
fn patient() -> Limits {
    let long = Duration::from_secs(3600);
    Limits { header_time: long, body_time: long, read_time: long, ..limits() }
}

async fn start(limits: Limits) -> Server {
    let config = Config { num_blocks: 4_000, block_size: 4, limits, ..Config::default() };
    crate::start(config).await
}

/// Returns a small request.
fn one() -> Value {
    json!({ "prompt": [7, 7, 7, 7, 7, 7, 7, 7, 7], "max_tokens": 3 })
}

const HEAD: &str = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n";

fn request(body: &str) -> String {
    format!("{HEAD}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// Returns the bytes of clients that send them and then neither send nor read.
fn halves() -> Vec<(&'static str, String)> {
    let stream = r#"{"prompt": [1, 2, 3], "max_tokens": 4000, "stream": true, "n": 16}"#;
    let whole = r#"{"prompt": [1, 2, 3], "max_tokens": 3}"#;
    vec![
        ("nothing", String::new()),
        ("half a line", "POST /v1/comp".to_owned()),
        ("half a header", HEAD.to_owned()),
        ("no body", format!("{HEAD}Content-Length: 100\r\n\r\n")),
        ("half a body", format!("{HEAD}Content-Length: 100\r\n\r\n{{\"prompt\": ")),
        ("half a chunk", format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n50\r\n{{\"prompt\": ")),
        (
            "a body that no route reads",
            "GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n".to_owned(),
        ),
        ("a request, and silence", request(whole)),
        ("a request, and garbage", request(whole) + "\0\r\n\u{1F600}"),
        ("requests, and half of one", request(whole).repeat(20) + HEAD),
        ("a stream that is not read", request(stream)),
    ]
}

async fn send(server: SocketAddr, text: &str) -> TcpStream {
    let mut socket = TcpStream::connect(server).await.expect("the server listens");
    socket.write_all(text.as_bytes()).await.expect("the server reads");
    socket
}

/// Returns all text that the server sends until it closes the connection.
async fn rest(mut socket: TcpStream) -> String {
    let mut bytes = Vec::new();
    match socket.read_to_end(&mut bytes).await {
        Err(error) if error.kind() != io::ErrorKind::ConnectionReset => panic!("{error}"),
        _ => String::from_utf8_lossy(&bytes).into_owned(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_ends_whatever_clients_do() {
    for (name, text) in halves() {
        watched(async {
            let server = start(patient()).await;
            let sockets =
                [send(server.address(), &text).await, send(server.address(), &text).await];
            // The server is at work when the shutdown begins.
            assert_eq!(get(server.address(), "/health").await.unwrap().0, 200, "{name}");
            server.shut_down().await;
            drop(sockets);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_is_disconnected() {
    for (name, text) in halves() {
        watched(async {
            let server = start(limits()).await;
            let socket = send(server.address(), &text).await;
            if name == "a stream that is not read" {
                // The whole answer is generated, and the client has not read any of it.
                while server.cache().stats().total_allocations == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                all_back(&server).await;
                tokio::time::sleep(3 * limits().read_time).await;
            }
            let said = rest(socket).await;
            assert!(!said.contains("[DONE]"), "{name} was answered to its end");
            assert_eq!(answer(&server, COMPLETIONS, &one()).await.texts[0].len(), 3);
            all_back(&server).await;
            server.shut_down().await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_beyond_the_limit_wait_for_a_place() {
    watched(async {
        let server = start(Limits { connections: 2, ..patient() }).await;
        let silent = [send(server.address(), "").await, send(server.address(), "GET").await];
        let address = server.address();
        let asks: Vec<_> = (0..8)
            .map(|_| tokio::spawn(async move { ask(address, COMPLETIONS, &one(), None).await }))
            .collect();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(!asks.iter().any(|ask| ask.is_finished()), "a third connection was served");
        drop(silent);
        for ask in asks {
            assert_eq!(ask.await.unwrap().unwrap().texts[0].len(), 3);
        }
        server.shut_down().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_too_large_is_refused() {
    let long_name = format!(r#"{{"prompt": "a", "model": "{}"}}"#, "m".repeat(1_000));
    let many_samples = r#"{"prompt": "a", "max_tokens": 60000, "n": 64}"#;
    let prompt = format!(r#"{{"prompt": "{}"}}"#, "a".repeat(20_000));
    let chunks = format!("{HEAD}Transfer-Encoding: chunked\r\n\r\n{}", {
        format!("1000\r\n{}\r\n", " ".repeat(0x1000)).repeat(8)
    });
    let cases = [
        (request(&prompt), "413"),
        (format!("{HEAD}Content-Length: 18446744073709551615\r\n\r\n"), "4"),
        (chunks, "413"),
        (request(&long_name), "404"),
        (request(many_samples), "400"),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000)), "4"),
        (format!("{HEAD}X: {}\r\n\r\n", "a".repeat(100_000)), "431"),
        (format!("{HEAD}{}\r\n", "X: a\r\n".repeat(1_000)), "431"),
        ("\0\u{1}\u{2} garbage\r\n\r\n".to_owned(), "400"),
    ];
    watched(async {
        let server = start(limits()).await;
        for (text, status) in cases {
            let mut socket = TcpStream::connect(server.address()).await.unwrap();
            // The server may answer and close the connection before it has received all bytes.
            let _ = socket.write_all(text.as_bytes()).await;
            let mut answer = [0; 12];
            let read = socket.read_exact(&mut answer).await;
            let start = String::from_utf8_lossy(&answer).into_owned();
            // The answer may be lost with the bytes that the server no longer reads.
            assert!(read.is_err() || start.starts_with(&format!("HTTP/1.1 {status}")), "{start}");
        }
        all_back(&server).await;
        server.shut_down().await;
    })
    .await;
}
