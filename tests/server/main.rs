//! Tests of the example server over real sockets.

#[path = "../../examples/batching_server/mod.rs"]
#[allow(dead_code, reason = "the example uses the rest")]
mod server;

#[path = "../../examples/batching_server/client.rs"]
mod client;

mod hostile;
mod load;

#[path = "../../examples/load/trace.rs"]
mod trace;

use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Ask, Outcome, ask, get};
use server::{Config, HashModel, Server};
use tokio::task::JoinSet;

/// Longer than any of these tests takes.
const WATCHDOG: Duration = Duration::from_secs(120);

async fn start(num_blocks: usize, step: Duration) -> Server<HashModel> {
    let config = Config { num_blocks, block_size: 4, workers: 3, watermark: 0.02 };
    Server::start("127.0.0.1:0", config, HashModel { step }).await.expect("a port is free")
}

fn one(prompt: &[u32], max_tokens: usize) -> Ask {
    Ask { prompt: prompt.to_vec(), max_tokens, samples: 1, stream: true, leave_after: None }
}

/// Awaits a future, and fails if it takes too long.
async fn watched<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(WATCHDOG, future).await.expect("something hangs")
}

/// Waits until no block is used and no request waits.
async fn all_back(server: &Server<HashModel>) {
    let start = Instant::now();
    let cache = server.cache();
    while cache.used_block_count() > 0 || !cache.waiting().is_empty() || cache.num_sequences() > 0 {
        assert!(start.elapsed() < WATCHDOG, "{}; {} wait", cache.stats(), cache.waiting().len());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cache.validate().expect("the free list and the words agree");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_right_streamed_or_whole_one_or_many() {
    watched(async {
        let server = start(256, Duration::ZERO).await;
        for (samples, stream) in [(1, true), (1, false), (4, true), (4, false)] {
            let ask_for = Ask { samples, stream, ..one(&[1, 2, 3, 4, 5, 6], 9) };
            let outcome = ask(server.address(), &ask_for).await.expect("it is answered");
            assert_eq!(outcome, Outcome::Right(9 * samples as usize));
        }
        assert!(server.cache().stats().total_forks >= 6);
        all_back(&server).await;
        server.shut_down().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_metrics_are_there_and_nonsense_is_refused() {
    watched(async {
        let server = start(64, Duration::ZERO).await;
        assert_eq!(get(server.address(), "/healthz").await.unwrap(), (200, "ok\n".to_owned()));
        ask(server.address(), &one(&[7; 20], 4)).await.expect("it is answered");
        let (status, text) = get(server.address(), "/metrics").await.unwrap();
        assert_eq!(status, 200);
        for line in [
            "paged_kv_blocks 64",
            "paged_kv_prompt_tokens_total 20",
            "server_admissions_total 1",
            "vllm:generation_tokens_total 4",
            "vllm:num_requests_waiting{model_name=\"stand-in\",engine=\"0\"} 0",
        ] {
            assert!(text.contains(line), "{text}");
        }
        for ask_for in [one(&[], 4), one(&[7; 4], 0), one(&[7; 4], 1_000)] {
            let refused = ask(server.address(), &ask_for).await.unwrap_err().to_string();
            assert!(refused.starts_with("status 400"), "{refused}");
        }
        server.shut_down().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_has_its_blocks_freed_at_once() {
    watched(async {
        let server = start(64, Duration::from_millis(5)).await;
        let leave = Ask { leave_after: Some(2), ..one(&[7; 40], 100) };
        assert_eq!(ask(server.address(), &leave).await.unwrap(), Outcome::Left);
        let start = Instant::now();
        all_back(&server).await;
        assert!(start.elapsed() < Duration::from_millis(400), "{:?}", start.elapsed());
        server.shut_down().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_serves_those_that_are_in() {
    watched(async {
        let server = start(64, Duration::from_millis(2)).await;
        let address = server.address();
        let mut asks = JoinSet::new();
        for prompt in 0..8 {
            asks.spawn(async move { ask(address, &one(&[prompt; 9], 30)).await });
        }
        while server.cache().num_sequences() < 8 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.shut_down().await;
        while let Some(outcome) = asks.join_next().await {
            assert_eq!(outcome.unwrap().unwrap(), Outcome::Right(30));
        }
        assert!(ask(address, &one(&[7; 9], 3)).await.is_err(), "nobody listens any more");
    })
    .await;
}

/// The pool holds a small part of the requested blocks, so requests are evicted, resumed, and wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_of_which_a_third_disconnects_leave_nothing_behind() {
    const STREAMS: usize = 1_000;
    watched(async {
        let server = start(600, Duration::from_micros(300)).await;
        let address = server.address();
        let prompts: Arc<Vec<Vec<u32>>> = Arc::new(
            (0..20).map(|group| (0..8 + group).map(|token| token * 7 + group).collect()).collect(),
        );
        let mut asks = JoinSet::new();
        for stream in 0..STREAMS {
            let prompts = Arc::clone(&prompts);
            asks.spawn(async move {
                let mut prompt = prompts[stream % prompts.len()].clone();
                prompt.push(stream as u32 % 50);
                let max_tokens = 10 + stream * 7 % 30;
                let leave_after = (stream % 10 < 3).then_some(1 + stream % 9);
                let samples = if stream % 25 == 0 { 3 } else { 1 };
                let stream = leave_after.is_some() || stream % 4 != 3;
                ask(address, &Ask { prompt, max_tokens, samples, stream, leave_after }).await
            });
        }
        let (mut right, mut left) = (0, 0);
        while let Some(outcome) = asks.join_next().await {
            match outcome.expect("a client does not panic").expect("an answer that is right") {
                Outcome::Right(_) => right += 1,
                Outcome::Left => left += 1,
            }
        }
        assert_eq!((right, left), (STREAMS * 7 / 10, STREAMS * 3 / 10));
        all_back(&server).await;
        let stats = server.cache().stats();
        assert!(stats.total_evictions > 0, "{stats}");
        assert_eq!(stats.total_allocations, stats.total_frees, "{stats}");
        server.shut_down().await;
    })
    .await;
}
