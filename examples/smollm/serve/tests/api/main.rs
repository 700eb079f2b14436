//! Tests of the server over real sockets, with the seeded model: every answer equals the answer to its request alone.

mod browser;
mod fields;
mod hostile;
mod load;
mod python;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use serving::client::{Answered, ask, get};
use serving::loaded::Loaded;
use serving::server::Server;
use serving::shared::Config;

/// The paths of both kinds of requests.
const COMPLETIONS: &str = "/v1/completions";
const CHATS: &str = "/v1/chat/completions";

/// Longer than any of these tests takes.
const WATCHDOG: Duration = Duration::from_secs(180);

async fn start(config: Config) -> Server {
    Server::start("127.0.0.1:0", Loaded::seeded(), config).await.expect("a port is free")
}

fn small() -> Config {
    Config { num_blocks: 128, block_size: 8, chunk: 32, ..Config::default() }
}

/// Awaits a future, and fails if it takes too long.
async fn watched<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(WATCHDOG, future).await.expect("something hangs")
}

/// Waits until no block is used and no sample waits, and checks the cache.
async fn all_back(server: &Server) {
    let start = Instant::now();
    while server.cache().used_block_count() > 0 || !server.shared().queue.is_empty() {
        assert!(start.elapsed() < WATCHDOG, "{}", server.cache().stats());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.cache().validate().expect("the free list and the words agree");
}

/// Asks, and expects an answer.
async fn answer(server: &Server, path: &str, body: &Value) -> Answered {
    let answered = ask(server.address(), path, body, None).await.expect("an answer");
    assert_eq!((answered.status, &answered.error), (200, &Value::Null), "{body}");
    answered
}

async fn page(server: &Server, path: &str) -> (u16, String) {
    let (status, body) = get(server.address(), path).await.expect("a page");
    (status, String::from_utf8_lossy(&body).into_owned())
}

/// Returns the value of a metric without labels of its own.
fn metric(text: &str, name: &str) -> f64 {
    let line = text
        .lines()
        .find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
    let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    value.unwrap_or_else(|| panic!("{name} is not in {text}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_the_same_streamed_or_whole_alone_or_with_others() {
    watched(async {
        let server = start(small()).await;
        for (n, temperature) in [(1, 0.0), (4, 0.9)] {
            let mut body = json!({ "prompt": "the same prompt for all", "max_tokens": 25, "n": n,
                                   "temperature": temperature, "seed": 5, "top_p": 0.9 });
            let whole = answer(&server, COMPLETIONS, &body).await;
            assert_eq!(whole.texts.len(), n);
            assert!(whole.texts.iter().all(|text| text.len() == 25));
            assert!(whole.reasons.iter().all(|reason| reason.as_deref() == Some("length")));
            body["stream"] = json!(true);
            let streamed = answer(&server, COMPLETIONS, &body).await;
            assert_eq!((&streamed.texts, &streamed.reasons), (&whole.texts, &whole.reasons));
            for sample in 1..n {
                assert_ne!(whole.texts[sample], whole.texts[0], "samples have noise of their own");
            }
        }
        assert!(server.cache().stats().total_forks >= 6);
        all_back(&server).await;
        server.shut_down().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_models_and_metrics_are_there() {
    watched(async {
        let server = start(small()).await;
        assert_eq!(page(&server, "/health").await, (200, "ok\n".to_owned()));
        let (_, models) = page(&server, "/v1/models").await;
        let models: Value = serde_json::from_str(&models).unwrap();
        assert_eq!(models["data"][0]["id"], "seeded");
        assert_eq!(page(&server, "/v1/models/other").await.0, 404);
        assert_eq!(page(&server, "/nowhere").await.0, 404);
        let body = json!({ "prompt": "twenty letters, so..", "max_tokens": 4 });
        answer(&server, COMPLETIONS, &body).await;
        let (status, text) = page(&server, "/metrics").await;
        assert_eq!(status, 200);
        for (name, value) in [
            ("paged_kv_blocks", 128.0),
            ("paged_kv_prompt_tokens_total", 20.0),
            ("vllm:prompt_tokens_total", 20.0),
            ("vllm:generation_tokens_total", 4.0),
            ("vllm:num_requests_waiting", 0.0),
            ("vllm:time_to_first_token_seconds_count", 1.0),
        ] {
            assert_eq!(metric(&text, name), value, "{name}");
        }
        assert!(text.contains("finished_reason=\"length\"} 1"), "{text}");
        server.shut_down().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_has_its_blocks_released() {
    watched(async {
        let server = start(small()).await;
        let body = json!({ "prompt": "x".repeat(40), "max_tokens": 800, "stream": true });
        let left = ask(server.address(), COMPLETIONS, &body, Some(2)).await.unwrap();
        assert!(left.has_left);
        all_back(&server).await;
        let generated = server.shared().metrics.generation_tokens.get();
        assert!(generated < 800, "all {generated} tokens were generated for no client");
        server.shut_down().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_serves_the_requests_that_are_in() {
    watched(async {
        let server = start(small()).await;
        let address = server.address();
        let asks: Vec<_> = (0..8)
            .map(|number| {
                let body = json!({ "prompt": format!("prompt {number}"), "max_tokens": 60 });
                tokio::spawn(async move { ask(address, COMPLETIONS, &body, None).await })
            })
            .collect();
        while server.shared().metrics.prompt_tokens.get() < 8 * 8 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.shut_down().await;
        for ask in asks {
            assert_eq!(ask.await.unwrap().unwrap().texts[0].len(), 60);
        }
        assert!(get(address, "/health").await.is_err(), "the socket is closed");
    })
    .await;
}
