//! The queries against a real Prometheus, if there is one: `PAGED_KV_PROMETHEUS` names its binary, or it is in
//! the path. Debian's package `prometheus` has it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use paged_kv::metrics::CacheCollector;
use prometheus_client::encoding::prometheus_text::encode;
use prometheus_client::registry::Registry;

use super::dashboard::{QUERIES, query_of};
use super::{registry, used_cache};

/// A process that is ended with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_real_prometheus_returns_series_for_every_query() {
    let binary = std::env::var("PAGED_KV_PROMETHEUS").unwrap_or("prometheus".to_owned());
    if Command::new(&binary).arg("--version").output().is_err() {
        println!("skipped: no {binary} here; set PAGED_KV_PROMETHEUS to the binary");
        return;
    }
    let collector = CacheCollector::new(used_cache()).vllm_names("llama", 0).vllm_requests();
    let target = serve(registry(collector));
    let folder = std::env::temp_dir().join(format!("paged-kv-prometheus-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (running, address) = start(&binary, target, &folder);
    let end = Instant::now() + Duration::from_secs(60);
    let mut missing: Vec<_> = QUERIES.iter().map(|(_, text)| query_of(text)).collect();
    while !missing.is_empty() && Instant::now() < end {
        missing.retain(|query| !returns_series(address, query));
        std::thread::sleep(Duration::from_millis(200));
    }
    drop(running);
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(missing.is_empty(), "no series: {missing:#?}");
}

/// Serves the registry to any number of scrapes, until the process ends.
fn serve(registry: Registry) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            let _ = stream.and_then(|mut stream| answer(&mut stream, &text));
        }
    });
    address
}

fn answer(stream: &mut TcpStream, text: &str) -> std::io::Result<()> {
    let mut request = [0; 4096];
    let _ = stream.read(&mut request)?;
    let length = text.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{text}"
    )
}

fn start(binary: &str, target: SocketAddr, folder: &Path) -> (Running, SocketAddr) {
    let config = folder.join("prometheus.yml");
    let text = format!(
        "global:\n  scrape_interval: 500ms\n  scrape_timeout: 400ms\nscrape_configs:\n  \
         - job_name: cache\n    static_configs:\n      - targets: ['{target}']\n"
    );
    std::fs::write(&config, text).unwrap();
    // A free port, which is taken again a moment later.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let child = Command::new(binary)
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
        .arg(format!("--web.listen-address={address}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    (Running(child), address)
}

fn returns_series(address: SocketAddr, query: &str) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let query: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        write!(stream, "GET /api/v1/query?query={query} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| {
        answer.contains("\"status\":\"success\"") && answer.contains("\"value\":[")
    })
}
