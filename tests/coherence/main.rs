//! Census of coherence: the cache lines that pass between the threads of an operation, in a model that gives
//! the same counts on every machine.
//!
//! `RUSTFLAGS="--cfg paged_kv_census" cargo test --release --test coherence -- --nocapture` prints the tables.
//!
//! Logical threads run the real operations of the crate in turn, one operation each, on one thread of the
//! system. `src/sync/census/coherence.rs` describes the model and its limits.
//!
//! Some rows are off, and the test allows for them. For `blocks n=8` and `append by handle` the model finds no
//! transfer, so their measured losses come from elsewhere. Requests of 16-token blocks keep more of their rate
//! than predicted: their transfers are hundreds of loads that are issued back to back and overlap.
#![cfg(paged_kv_census)]

#[path = "../../benches/baseline/mod.rs"]
mod baseline;
mod dealt;
mod groups;
mod hit_rates;
mod requests;
#[path = "../../benches/rig/mod.rs"]
mod rig;
mod table;
mod turns;
mod works;

use std::thread;

use requests::{Conversations, requests};
use rig::retention::Feature;
use table::{Row, correlation};
use turns::Counted;

/// The numbers of logical threads.
const THREADS: [usize; 6] = [1, 2, 4, 8, 16, 64];

/// The number of threads at which rates were measured on real cores.
const CORES: usize = 16;

/// Those with which each feature is counted, with a home shard for each.
const FEW_THREADS: [usize; 3] = [1, 4, 16];

/// Call sites that are listed for a row.
const SITES: usize = 8;

/// The most transfers of a request of 32 blocks at 16 threads, apart from blocks and index.
const MOST_OF_REST: f64 = 10.0;

/// The least rank correlation of the predicted and the measured factors.
const CORRELATION: f64 = 0.8;

/// Counts the transfers of a work with each number of threads.
type Count = fn(usize) -> Counted;

const ROWS: [(Measured, Count); 9] = [
    (measured("blocks n=8", 18.7e6, 5.9, 9.2), works::blocks),
    (measured("fork 512", 7.4e6, 8.6, 9.0), works::forks),
    (measured("append by handle", 77e6, 8.4, 9.1), works::appends_by_handle),
    (measured("append by id", 22.8e6, 4.7, 9.1), works::appends_by_id),
    (measured("step of 256 by handle", 129e3, 5.3, 15.7), works::steps),
    (measured("requests of 16-token blocks, shared", 12e3, 7.0, 12.3), |threads| {
        requests(&requests::OF_16, Conversations::Shared, threads)
    }),
    (measured("requests of 16-token blocks, own", 25e3, 6.3, 16.0), |threads| {
        requests(&requests::OF_16, Conversations::Own, threads)
    }),
    (measured("requests of 512-token blocks, shared", 0.40e6, 1.15, 10.9), |threads| {
        requests(&requests::OF_512, Conversations::Shared, threads)
    }),
    (measured("requests of 512-token blocks, own", 0.72e6, 2.6, 12.4), |threads| {
        requests(&requests::OF_512, Conversations::Own, threads)
    }),
];

/// The figures of one row on a machine of many cores, measured at commit 30b8a9f.
pub struct Measured {
    /// The name of the work.
    pub name: &'static str,
    /// Operations per second of one thread.
    pub rate: f64,
    /// The rate of 16 threads over that of one.
    pub factor: f64,
    /// The same of a control that shares nothing, with the memory traffic of the row.
    pub control: f64,
}

const fn measured(name: &'static str, rate: f64, factor: f64, control: f64) -> Measured {
    Measured { name, rate, factor, control }
}

fn row(measured: Measured, count: Count) -> Row {
    Row { measured, counted: THREADS.map(|threads| (threads, count(threads))).into() }
}

#[test]
fn transfers_predict_which_operations_scale() {
    let rows: Vec<Row> = thread::scope(|scope| {
        // Each thread of the system has a model of its own.
        let rows = ROWS.map(|(measured, count)| scope.spawn(move || row(measured, count)));
        rows.into_iter().map(|row| row.join().expect("no work panics")).collect()
    });
    table::print(&rows);
    let requests = rows.iter().filter(|row| row.measured.name.starts_with("requests"));
    requests.for_each(|row| row.print_sites(CORES, SITES));
    let correlation = correlation(&rows, CORES);
    println!("\nrank correlation of the predicted and the measured factors: {correlation:.2}");
    assert!(correlation >= CORRELATION, "{correlation}");
    // These write lines that other threads read; a model that missed them would rank nothing.
    for row in rows.iter().filter(|row| row.measured.name.contains(" of ")) {
        assert!(row.transfers(CORES) > 10.0, "{}: {}", row.measured.name, row.transfers(CORES));
    }
}

#[test]
fn a_request_of_32_blocks_half_of_them_hits() {
    println!(
        "\n| home shards | threads | blocks | index | levels | all the rest | the rest by place |"
    );
    println!("|---|---|---|---|---|---|---|");
    for shards in [16, 64, 256] {
        for threads in THREADS {
            table::print_split(
                shards,
                threads,
                &requests::of_32_blocks(Feature::Lru, shards, threads),
            );
        }
    }
    let counted = requests::of_32_blocks(Feature::Lru, CORES, CORES);
    println!("\n| transfers | place | call site |");
    println!("|---|---|---|");
    counted.print_sites(SITES);
    assert!(counted.a_unit(table::is_rest) <= MOST_OF_REST);
}

/// Prints the transfers of the same request with each feature that decides which contents stay cached.
#[test]
fn a_request_of_32_blocks_with_each_feature() {
    println!(
        "\n| feature | threads | blocks | index | levels | all the rest | the rest by place |"
    );
    println!("|---|---|---|---|---|---|---|");
    for feature in Feature::ALL {
        for threads in FEW_THREADS {
            let counted = requests::of_32_blocks(feature, threads, threads);
            table::print_split(feature.name(), threads, &counted);
        }
    }
    for threads in FEW_THREADS {
        let counted = requests::pins_of_32_blocks(threads);
        table::print_split("32 blocks pinned and the pin ended", threads, &counted);
    }
    for feature in [Feature::HitDensity, Feature::HighForAnHour] {
        println!("\n{}, {CORES} threads:\n", feature.name());
        println!("| transfers | place | call site |\n|---|---|---|");
        requests::of_32_blocks(feature, CORES, CORES).print_sites(2 * SITES);
    }
}

#[test]
fn the_model_gives_the_same_counts_again() {
    let count = || requests(&requests::OF_512, Conversations::Shared, 4).transfers;
    assert_eq!(count(), count());
}
