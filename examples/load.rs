//! Replays a trace against the batching server over HTTP, and checks each token of every stream: `cargo
//! run --release --features async,metrics --example load -- --help`.
//!
//! By default the trace is synthetic: prompts of one group share a prefix, as chats with one system prompt
//! do. A trace file has one JSON object per line, with `input_length`, `output_length` and optional
//! `hash_ids` (Mooncake's format). Two prompts are equal as far as their ids are.

#[path = "batching_server/mod.rs"]
#[allow(dead_code, reason = "a client knows the model only")]
mod server;

#[path = "batching_server/client.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod client;

#[path = "load/trace.rs"]
mod trace;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Ask, Outcome, ask};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const HELP: &str = "\
usage: load [--OPTION VALUE]...

  --server ADDRESS     where the server listens [127.0.0.1:8000]
  --trace FILE         a trace, - for standard input; a synthetic one by default
  --id-tokens N        tokens that one of the trace's hash ids names [512]
  --requests N         requests of a synthetic trace, or the most of a file [1000]
  --seconds N          instead: a synthetic trace for so long
  --concurrency N      requests under way at most [256]
  --disconnect PERCENT clients that hang up in the middle [0]
  --patience SECONDS   an answer that takes longer hangs, and fails [60]
  --longest N          longest prompt and longest answer of a trace, in tokens [4096]";

struct Options {
    server: SocketAddr,
    trace: Option<String>,
    requests: usize,
    time: Option<Duration>,
    concurrency: usize,
    disconnect: usize,
    patience: Duration,
    longest: usize,
    id_tokens: usize,
}

#[derive(Default)]
struct Tally {
    right: usize,
    tokens: usize,
    left: usize,
    failed: usize,
    waits: Vec<Duration>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(options) = options()? else {
        println!("{HELP}");
        return Ok(());
    };
    let start = Instant::now();
    let slots = Arc::new(Semaphore::new(options.concurrency.min(Semaphore::MAX_PERMITS)));
    let mut asks: JoinSet<(std::io::Result<Outcome>, Duration)> = JoinSet::new();
    let mut tally = Tally::default();
    for (number, request) in requests(&options)?.enumerate() {
        if options.time.is_some_and(|time| start.elapsed() > time) {
            break;
        }
        let slot = Arc::clone(&slots).acquire_owned().await?;
        while let Some(done) = asks.try_join_next() {
            tally.add(done?);
        }
        let (address, patience) = (options.server, options.patience);
        let leaves = number * 7 % 100 < options.disconnect;
        let leave_after = leaves.then_some(1 + number % request.max_tokens.max(2) / 2);
        asks.spawn(async move {
            let _slot = slot;
            let begun = Instant::now();
            let request = Ask { leave_after, ..request };
            let answer = tokio::time::timeout(patience, ask(address, &request)).await;
            let hangs = |_| Err(std::io::Error::other(format!("no answer within {patience:?}")));
            (answer.unwrap_or_else(hangs), begun.elapsed())
        });
    }
    while let Some(done) = asks.join_next().await {
        tally.add(done?);
    }
    tally.print(start.elapsed());
    if tally.failed > 0 { Err("not every stream was right".into()) } else { Ok(()) }
}

fn options() -> Result<Option<Options>, Box<dyn std::error::Error>> {
    let mut options = Options {
        server: "127.0.0.1:8000".parse()?,
        trace: None,
        requests: 1000,
        time: None,
        concurrency: 256,
        disconnect: 0,
        patience: Duration::from_secs(60),
        longest: 4096,
        id_tokens: 512,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(option) = arguments.next() {
        let value = if option == "--help" { None } else { arguments.next() };
        let Some(value) = value else { return Ok(None) };
        match option.as_str() {
            "--server" => options.server = value.parse()?,
            "--trace" => options.trace = Some(value),
            "--requests" => options.requests = value.parse()?,
            "--seconds" => options.time = Some(Duration::from_secs(value.parse()?)),
            "--concurrency" => options.concurrency = above_0(&option, &value)?,
            "--disconnect" => options.disconnect = value.parse()?,
            "--patience" => options.patience = Duration::from_secs(value.parse()?),
            "--longest" => options.longest = above_0(&option, &value)?,
            "--id-tokens" => options.id_tokens = above_0(&option, &value)?,
            _ => return Err(format!("{option}: unknown\n\n{HELP}").into()),
        }
    }
    Ok(Some(options))
}

fn above_0(option: &str, value: &str) -> Result<usize, String> {
    let number = value.parse::<std::num::NonZeroUsize>();
    number.map(Into::into).map_err(|error| format!("{option} {value}: {error}"))
}

fn requests(
    options: &Options,
) -> Result<Box<dyn Iterator<Item = Ask>>, Box<dyn std::error::Error>> {
    let Some(path) = &options.trace else {
        let most = if options.time.is_some() { usize::MAX } else { options.requests };
        return Ok(Box::new((0..most).map(synthetic)));
    };
    let Options { requests, longest, id_tokens, .. } = *options;
    let asks = trace::read(path, &trace::Cut { requests, longest, id_tokens })?;
    Ok(Box::new(asks.into_iter()))
}

/// Creates a request whose prompt shares a prefix with its group.
fn synthetic(number: usize) -> Ask {
    let group = number % 20;
    let mut prompt: Vec<u32> = (0..32 + 8 * group).map(|at| (at * 31 + group) as u32).collect();
    let own = number / 20 % 97;
    prompt.extend((0..1 + own % 40).map(|at| (own * 131 + at) as u32));
    let samples = if number % 25 == 7 { 3 } else { 1 };
    let max_tokens = 8 + number * 13 % 56;
    Ask { prompt, max_tokens, samples, stream: number % 4 != 3, leave_after: None }
}

impl Tally {
    fn add(&mut self, (outcome, time): (std::io::Result<Outcome>, Duration)) {
        match outcome {
            Ok(Outcome::Right(tokens)) => {
                self.right += 1;
                self.tokens += tokens;
                self.waits.push(time);
            }
            Ok(Outcome::Left) => self.left += 1,
            Err(error) => {
                self.failed += 1;
                if self.failed <= 10 {
                    eprintln!("{error}");
                }
            }
        }
    }

    fn print(&mut self, elapsed: Duration) {
        self.waits.sort_unstable();
        let at = |share: f64| {
            let index = (self.waits.len() as f64 * share) as usize;
            self.waits.get(index).copied().unwrap_or_default()
        };
        let Self { right, tokens, left, failed, .. } = self;
        let rate = *tokens as f64 / elapsed.as_secs_f64();
        println!(
            "{right} streams right ({tokens} tokens, {rate:.0} a second), {left} left, {failed} failed"
        );
        println!(
            "in {elapsed:.1?}; a request took {:.1?} (median), {:.1?} (99 %)",
            at(0.5),
            at(0.99)
        );
    }
}
