//! `Victim`: a publisher in a process of its own, so that its memory is measured apart from the
//! attackers'.
//!
//! The process runs this test program again, with one ignored test. It publishes until its input ends,
//! and then prints its statistics.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, fs, io, thread};

use paged_kv::event::{EventPublisher, PublisherOptions};
use paged_kv::{BlockHash, EventSink};

use crate::removed;

/// Environment variable that makes this process a victim: blocks per batch, and connections.
const SETTINGS: &str = "PAGED_KV_VICTIM";

/// Time between two batches.
const PERIOD: Duration = Duration::from_millis(20);

/// Bytes of batches that the publisher keeps, for replay and for slow subscribers alike.
const RING_BYTES: usize = 24 << 20;

/// A publisher in another process.
pub struct Victim {
    process: Child,
    output: BufReader<ChildStdout>,
    pub publish: SocketAddr,
    pub replay: SocketAddr,
}

/// The counts of a victim.
#[derive(Debug)]
pub struct Counted {
    pub missed: u64,
    pub refused: u64,
    pub lost: u64,
}

impl Victim {
    /// Starts a publisher of batches of `blocks` blocks, with `connections` connections at each endpoint.
    pub fn start(blocks: usize, connections: usize) -> Self {
        let mut process = Command::new(env::current_exe().unwrap())
            .args(["--exact", "victim::publishes_until_its_input_ends", "--ignored", "--nocapture"])
            .env(SETTINGS, format!("{blocks} {connections}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let addresses = line(&mut output, "listens at ").expect("it starts");
        let mut addresses = addresses.split(' ').map(|address| address.parse().unwrap());
        let (publish, replay) = (addresses.next().unwrap(), addresses.next().unwrap());
        Self { process, output, publish, replay }
    }

    /// Returns the memory of the process in KiB: now, and its peak.
    pub fn memory(&self) -> (u64, u64) {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let of = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
            line.trim().trim_end_matches(" kB").parse().unwrap()
        };
        (of("VmRSS:"), of("VmHWM:"))
    }

    /// Ends the publisher. Fails if it ended by itself before.
    pub fn stop(mut self) -> Counted {
        drop(self.process.stdin.take());
        let counted = line(&mut self.output, "counted ").expect("it still ran");
        assert!(self.process.wait().unwrap().success());
        let counts: Vec<_> = counted.split(' ').map(|count| count.parse().unwrap()).collect();
        Counted { missed: counts[0], refused: counts[1], lost: counts[2] }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the rest of the next line after `start`.
fn line(output: &mut impl BufRead, start: &str) -> Option<String> {
    let lines = output.lines().map_while(Result::ok);
    lines.filter_map(|line| line.split_once(start).map(|(_, rest)| rest.to_owned())).next()
}

/// Runs as the process of a [`Victim`]; run by itself it does nothing.
#[test]
#[ignore = "a part of other tests"]
fn publishes_until_its_input_ends() {
    let Ok(settings) = env::var(SETTINGS) else { return };
    let (blocks, connections) = settings.split_once(' ').unwrap();
    let hashes: Vec<_> = (1..=blocks.parse().unwrap()).map(BlockHash::from_u128).collect();
    let options = PublisherOptions::default().endpoint("tcp://127.0.0.1:0").topic(super::TOPIC);
    let options = options.replay_endpoint("tcp://127.0.0.1:0").ring(10_000, RING_BYTES);
    let options = options.batch_blocks(1).connections(connections.parse().unwrap());
    let publisher = EventPublisher::bind(&options).unwrap();
    // The victim's memory is measured with a full ring; the small batches of the test would not fill it.
    for _ in 0..(RING_BYTES / (9 * hashes.len())).min(200) {
        publisher.on_event(&removed(&hashes));
    }
    println!("listens at {} {}", publisher.address(), publisher.replay_address().unwrap());
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = io::stdin().read_to_end(&mut Vec::new());
            ended.store(true, Ordering::Relaxed);
        });
        while !ended.load(Ordering::Relaxed) {
            publisher.on_event(&removed(&hashes));
            thread::sleep(PERIOD);
        }
    });
    let stats = publisher.stats();
    println!("counted {} {} {}", stats.batches_missed, stats.peers_refused, stats.sockets_lost);
}
