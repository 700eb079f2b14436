//! The block events per second that a publisher accepts, and the share that reaches a subscriber.
//!
//! `cargo bench --features events --bench events [-- MILLIONS]`: 16 threads that share a cache store this
//! many million blocks, and most of them are removed. Then one thread without a cache emits as many events.
//! Batches that do not reach the subscriber show as gaps in the batch numbers. Either the ring dropped a
//! batch before it was sent, or the subscriber's queue was full.

#[expect(dead_code, reason = "a bench only listens")]
#[path = "../tests/publisher/client.rs"]
mod client;

use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

use client::Client;
use paged_kv::event::{Dialect, EventPublisher, PublisherOptions};
use paged_kv::{
    AdmitOptions, BlockHash, EventSink, GroupId, HashAlgorithm, KvEvent, LayerGroup, Medium,
    PagedKvCache,
};

const BLOCK_SIZE: usize = 16;
const PROMPT_BLOCKS: usize = 32;
const THREADS: usize = 16;

fn main() {
    let millions = env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1.0);
    let blocks = (millions * 1e6) as usize;
    for dialect in [Dialect::Map, Dialect::Array] {
        println!("{dialect:?}:");
        measure("16 threads, a cache", dialect, |publisher| by_caches(publisher, blocks));
        measure("one thread, no cache", dialect, |publisher| alone(&publisher, blocks));
    }
}

/// Emits events by `tell` to a new publisher, and prints the events emitted and received.
fn measure(name: &str, dialect: Dialect, tell: impl FnOnce(Arc<EventPublisher>)) {
    let options = PublisherOptions::default().endpoint("tcp://127.0.0.1:0").dialect(dialect);
    let publisher = Arc::new(EventPublisher::bind(&options).expect("a port is free"));
    let mut subscriber = Client::subscribe(publisher.address(), "");
    let first = publisher.stats().next_sequence;
    let heard = thread::spawn(move || {
        let (mut batches, mut gaps, mut bytes, mut next) = (0, 0, 0, first);
        while let Some((_, (number, payload))) = subscriber.receive() {
            batches += 1;
            gaps += u64::from(number != next);
            bytes += payload.len();
            next = number + 1;
        }
        (batches, gaps, bytes)
    });
    let start = Instant::now();
    tell(Arc::clone(&publisher));
    let told = start.elapsed().as_secs_f64();
    publisher.shutdown();
    let (batches, gaps, bytes): (u64, u64, usize) = heard.join().expect("a subscriber listens");
    let all = start.elapsed().as_secs_f64();
    let stats = publisher.stats();
    let sent = stats.next_sequence - first;
    println!(
        "  {name}: {} block events in {told:.2} s, {:.2} M a second; {sent} batches, {} missed in \
         {gaps} gaps, {} of them lost in the ring; {:.0} MB heard by {all:.2} s",
        stats.blocks,
        stats.blocks as f64 / told / 1e6,
        sent - batches,
        stats.batches_lost,
        bytes as f64 / 1e6,
    );
}

/// Admits, computes and releases prompts that are all different.
fn by_caches(publisher: Arc<EventPublisher>, blocks: usize) {
    let builder = PagedKvCache::builder().num_blocks(1 << 14).block_size(BLOCK_SIZE);
    let builder = builder.hash_algorithm(HashAlgorithm::Xxh3 { seed: 1 });
    let cache = builder.event_sink(publisher).build().expect("a sound cache");
    let next = AtomicU32::new(0);
    let prompts = (blocks / PROMPT_BLOCKS) as u32;
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut tokens = [7; PROMPT_BLOCKS * BLOCK_SIZE + 1];
                // Relaxed: the number alone makes each prompt different.
                for prompt in std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed)) {
                    if prompt >= prompts {
                        return;
                    }
                    tokens[0] = prompt;
                    let prompt = cache.prompt(&tokens);
                    let admitted = cache.admit_sequence(&prompt, &AdmitOptions::default());
                    let (mut sequence, _) = admitted.expect("16 prompts have room");
                    sequence.commit(tokens.len()).expect("all of it is there");
                }
            });
        }
    });
}

fn alone(publisher: &EventPublisher, blocks: usize) {
    let hashes: Vec<_> = (1..=16).map(|hash| BlockHash::from_u128(hash << 40)).collect();
    let tokens: Vec<u32> = (50_000..).take(hashes.len() * BLOCK_SIZE).collect();
    for _ in 0..blocks / hashes.len() {
        publisher.on_event(&KvEvent::BlockStored {
            hashes: &hashes,
            parent: None,
            tokens: &tokens,
            block_size: BLOCK_SIZE,
            extra: None,
            index: 0,
            group: GroupId(0),
            kind: LayerGroup::Full { block_size: BLOCK_SIZE },
            medium: Medium::Device,
        });
    }
}
