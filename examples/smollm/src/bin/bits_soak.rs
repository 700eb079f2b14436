//! `bits_soak`: serves random requests on several threads until the time is up, and compares every logit.
//!
//! Each round has a cache, a workload and events of its own, all from the seed of the round. If anything
//! differs, or a thread panics, the program prints the command that repeats the round and exits with 1. (The
//! order in which threads run is not repeated.) It also exits with 1 if no logit of any round was compared.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use paged_kv::HashAlgorithm;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use smollm::engine::{Chaos, Counts, Options};
use smollm::outcome::Outcome;
use smollm::seeded;
use smollm::server::{Server, Setup};
use smollm::storm::{self, Storm};
use smollm::weights::Weights;
use smollm::workload::Workload;

#[derive(Parser)]
#[command(about = "Serves random requests on several threads and compares every logit")]
struct Arguments {
    /// Minutes until no further round begins.
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// Threads of each round.
    #[arg(long, default_value_t = 4)]
    threads: u32,
    /// Seed of the first round; the others count up from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of rounds, instead of the time.
    #[arg(long)]
    rounds: Option<u64>,
    /// Distinct requests of a round; each is served three times.
    #[arg(long, default_value_t = 60)]
    requests: usize,
}

/// The models of the rounds.
const MODELS: [&str; 2] = ["all layers attend to all", "a window on every second layer"];

#[derive(Default)]
struct Row {
    rounds: u64,
    outcome: Outcome,
    counts: Counts,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(arguments.minutes * 60.0);
    let models = [seeded::small(), seeded::windowed(64)].map(|dims| seeded::weights(&dims, 7));
    let mut rows: [Row; 2] = Default::default();
    for round in 0_u64.. {
        let is_over = arguments.rounds.map_or(Instant::now() >= end, |rounds| round == rounds);
        if is_over {
            break;
        }
        let seed = arguments.seed.wrapping_add(round);
        let model = usize::from(seed.is_multiple_of(3));
        let storm = serve(&arguments, &models[model], seed);
        if let Err(fault) = check(&storm) {
            let Arguments { threads, requests, .. } = arguments;
            eprintln!(
                "{fault}\nbits_soak --rounds 1 --seed {seed} --threads {threads} --requests {requests}"
            );
            return ExitCode::FAILURE;
        }
        let storm = storm.expect("it was checked");
        rows[model].rounds += 1;
        rows[model].outcome.join(storm.outcome);
        rows[model].counts.join(storm.counts);
    }
    println!("| model | rounds | samples | logits | | events |\n|---|---|---|---|---|---|");
    for (name, Row { rounds, outcome, counts }) in MODELS.iter().zip(&rows) {
        println!("| {name} | {rounds} | {outcome} | {counts} |");
    }
    println!(
        "seeds from {}, {} threads, {} s",
        arguments.seed,
        arguments.threads,
        start.elapsed().as_secs()
    );
    if rows.iter().all(|row| row.outcome.logits == 0) {
        eprintln!("no logit was compared");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Runs a round. `None` if a thread panicked.
fn serve(arguments: &Arguments, weights: &Weights, seed: u64) -> Option<Storm> {
    let round = || {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let (setup, options) = parameters(&mut random, arguments.threads, seed);
        let server = Server::new(weights.clone(), &setup).expect("a cache of that size");
        let requests = Workload::new(weights, seed).take(arguments.requests);
        let requests: Vec<_> = requests.iter().cycle().take(3 * requests.len()).cloned().collect();
        let storm = storm::run(&server, &requests, arguments.threads, &options).expect("served");
        server.check_empty().expect("all requests have ended");
        storm
    };
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(round)).ok()
}

fn check(storm: &Option<Storm>) -> Result<(), String> {
    let storm = storm.as_ref().ok_or("a thread panicked")?;
    match storm.outcome.is_faulty() {
        false => Ok(()),
        true => Err(format!("| {} |\n{}", storm.outcome, storm.faults.join("\n"))),
    }
}

fn parameters(random: &mut ChaCha8Rng, threads: u32, seed: u64) -> (Setup, Options) {
    let block_size = [8, 16, 32][random.random_range(0..3)];
    // The largest request has 370 tokens; with few more blocks than one needs, threads compete.
    let largest = 400_usize.div_ceil(block_size);
    let num_blocks = largest + random.random_range(0..=2 * largest * threads as usize / 2);
    let hashes =
        [HashAlgorithm::Xxh3 { seed }, HashAlgorithm::Sha256Cbor, HashAlgorithm::XxhashCbor];
    let setup = Setup {
        block_size,
        num_blocks,
        window_blocks: num_blocks,
        shuffle: random.random_ratio(3, 4).then_some(seed),
        two_queues: random.random_ratio(1, 2),
        hash: hashes[random.random_range(0..3)],
        home_shards: random.random_ratio(1, 2).then(|| 1 << random.random_range(0..4)),
        ..Setup::default()
    };
    let events = [0, 4, 12, 40][random.random_range(0..4)];
    // With frequent events and short chunks, few prompts would be computed to their end.
    let shortest_chunk = if events == 4 { 40 } else { 1 };
    let options = Options {
        chunk: random.random_range(shortest_chunk..=100),
        budget: random.random_range(100..=200),
        most_running: random.random_range(1..=6),
        drafts: [0, 3, 5][random.random_range(0..3)],
        depth: random.random_range(1..=3),
        is_eager: random.random_ratio(1, 3),
        chaos: if events == 0 { Chaos::default() } else { Chaos::all(events) },
        seed,
        ..Options::default()
    };
    (setup, options)
}
