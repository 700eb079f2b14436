//! Tests that every logit is the same with blocks as without, in every mode of serving.
//!
//! `cargo test -- --nocapture` prints a row a mode: samples and logits vectors compared, and events counted.

mod by_hand;
mod controls;
mod modes;
mod names;
mod threads;
mod window;

use std::sync::{Arc, LazyLock};

use smollm::engine::{Chaos, Counts, Options};
use smollm::mode::{Held, Mode, Served};
use smollm::request::Request;
use smollm::seeded;
use smollm::server::Setup;
use smollm::weights::Weights;
use smollm::workload::Workload;

/// The weights of most tests.
static SMALL: LazyLock<Weights> = LazyLock::new(|| seeded::weights(&seeded::small(), 7));

/// Five prompts of different lengths, the longest of 299 tokens.
static PROMPTS: LazyLock<Vec<Arc<Request>>> = LazyLock::new(|| {
    let mut workload = Workload::new(&SMALL, 11);
    let lengths = [299, 33, 100, 1, 64].into_iter();
    lengths.map(|len| Arc::new(Request::new(workload.prompt(len), 24))).collect()
});

/// Forty random requests that share prefixes, blocks, adapters and conversations.
static MIXED: LazyLock<Vec<Arc<Request>>> = LazyLock::new(|| Workload::new(&SMALL, 12).take(40));

fn mode(name: &str) -> Mode {
    Mode { name: name.to_owned(), ..Mode::default() }
}

/// Serves the requests, prints a row of the table, and asserts that all samples are there and equal.
#[track_caller]
fn assert_equal(mode: &Mode, weights: &Weights, requests: &[Arc<Request>]) -> Served {
    let served = mode.serve(weights, requests).expect("the requests are served");
    println!("| {} | {} | {} |", mode.name, served.outcome, served.counts);
    let samples: usize = requests.iter().map(|request| request.samples).sum();
    let is_cancelled = served.counts.cancellations > 0;
    assert!(is_cancelled || served.samples.len() == samples, "all samples end");
    assert!(is_cancelled || served.samples.iter().all(|sample| sample.missing() == 0));
    assert!(served.outcome.is_equal(), "{}: {}", mode.name, served.outcome);
    served
}

/// Asserts that each of these counts is above 0.
#[track_caller]
fn assert_happened(counts: Counts, names: &[(&str, u64)]) {
    for (name, count) in names {
        assert!(*count > 0, "{name}: {counts}");
    }
}
