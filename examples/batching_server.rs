//! A continuous-batching server over one shared cache: `cargo run --release --features async,metrics --example
//! batching_server -- --help`.
//!
//! It generates no language: its model is a stand-in that hashes the context, so that a client can check
//! each token. The parts around the model are those of a real server: admission with prefix reuse, one
//! token per step for each sequence, samples by fork, eviction and resumption, disconnects, metrics, and a
//! shutdown that drains.

#[path = "batching_server/mod.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod server;

use std::time::Duration;

use server::{Config, HashModel, Limits, Server};

const HELP: &str = "\
usage: batching_server [--OPTION VALUE]...

  --listen ADDRESS    where to listen [127.0.0.1:8000]
  --blocks N          blocks of the cache [4096]
  --block-size N      tokens a block [16]
  --workers N         scheduler workers that share the cache [2]
  --step-us N         microseconds that a step of the model takes [1000]
  --watermark SHARE   share of the blocks kept for running requests to grow [0.01]
  --connections N     connections at one time [512]
  --drain-seconds N   seconds that a shutdown leaves for answers under way [10]

A client has 5 s for the headers of a request, 5 s for its body of at most 512 KiB, and 10 s to
read some of an answer.

  POST /v1/completions   {\"prompt\": \"text\" or [tokens], \"max_tokens\": 16, \"n\": 1, \"stream\": false}
  GET  /healthz, /metrics";

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = Config::default();
    let mut limits = Limits::default();
    let mut listen = "127.0.0.1:8000".to_owned();
    let mut step = Duration::from_millis(1);
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let value = if option == "--help" { None } else { arguments.next() };
        let Some(value) = value else {
            println!("{HELP}");
            return Ok(());
        };
        match option.as_str() {
            "--listen" => listen = value,
            "--blocks" => config.num_blocks = value.parse()?,
            "--block-size" => config.block_size = value.parse()?,
            "--workers" => config.workers = value.parse()?,
            "--watermark" => config.watermark = value.parse()?,
            "--connections" => limits.connections = value.parse()?,
            "--drain-seconds" => limits.drain_time = Duration::from_secs(value.parse()?),
            "--step-us" => step = Duration::from_micros(value.parse()?),
            _ => return Err(format!("{option}: unknown\n\n{HELP}").into()),
        }
    }
    let server = Server::start_within(&listen, config, limits, HashModel { step }).await?;
    println!("listening on http://{}", server.address());
    tokio::signal::ctrl_c().await?;
    println!("draining");
    server.shut_down().await;
    Ok(())
}
