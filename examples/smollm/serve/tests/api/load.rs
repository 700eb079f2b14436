//! Tests of a server under load: every answer equals its request's answer alone, and nothing is left behind.

use std::sync::Arc;

use serde_json::{Value, json};
use serving::client::ask;
use serving::shared::Config;
use tokio::task::JoinSet;

use crate::{COMPLETIONS, all_back, answer, small, start, watched};

/// Returns a request; some share prefixes.
fn request(number: usize) -> Value {
    let group = number % 10;
    let prompt =
        "shared by a group of prompts ".repeat(1 + group % 3) + &format!("{group} {number}");
    let n = if number.is_multiple_of(12) { 3 } else { 1 };
    let temperature = if number.is_multiple_of(2) { 0.7 } else { 0.0 };
    json!({ "prompt": prompt, "max_tokens": 10 + number * 7 % 60, "n": n, "seed": number,
            "temperature": temperature, "priority": number % 3 })
}

/// The pool holds a small part of the requested blocks, so samples are preempted and come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_streams_of_which_a_third_leaves_have_their_answers_and_leave_nothing() {
    const REQUESTS: usize = 60;
    const STREAMS: usize = 400;
    watched(async {
        let alone = start(Config { num_blocks: 512, drafts: 0, workers: 1, ..small() }).await;
        let mut expected = Vec::new();
        for number in 0..REQUESTS {
            expected.push(answer(&alone, COMPLETIONS, &request(number)).await.texts);
        }
        alone.shut_down().await;
        let config = Config { num_blocks: 60, is_eager: true, workers: 3, ..small() };
        let server = start(config).await;
        let (address, expected) = (server.address(), Arc::new(expected));
        let mut asks = JoinSet::new();
        for stream in 0..STREAMS {
            let expected = expected.clone();
            asks.spawn(async move {
                let mut body = request(stream % REQUESTS);
                let leave_after = (stream % 10 < 3).then_some(1 + stream % 9);
                body["stream"] = json!(leave_after.is_some() || stream % 4 != 3);
                let answered =
                    ask(address, COMPLETIONS, &body, leave_after).await.expect("an answer");
                assert!(answered.error.is_null(), "{answered:?}");
                let expected = &expected[stream % REQUESTS];
                match answered.has_left {
                    true => answered.texts.iter().zip(expected).for_each(|(text, whole)| {
                        assert!(whole.starts_with(text.as_str()), "{text:?} of {whole:?}");
                    }),
                    false => assert_eq!(&answered.texts, expected, "{body}"),
                }
                answered.has_left
            });
        }
        let mut left = 0;
        while let Some(has_left) = asks.join_next().await {
            left += usize::from(has_left.expect("an answer that is equal"));
        }
        assert_eq!(left, STREAMS * 3 / 10);
        all_back(&server).await;
        let (stats, metrics) = (server.cache().stats(), &server.shared().metrics);
        assert!(metrics.preemptions.get() > 0, "{stats}");
        assert!(metrics.accepted_tokens.get() > 0, "some drafts are right");
        assert_eq!(stats.total_allocations, stats.total_frees, "{stats}");
        server.shut_down().await;
    })
    .await;
}

/// With a reserve, each sample keeps its blocks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn samples_with_a_reserve_are_preempted_rarely() {
    watched(async {
        let server = start(Config { num_blocks: 300, ..small() }).await;
        let address = server.address();
        let mut asks = JoinSet::new();
        for number in 0..60 {
            asks.spawn(async move { ask(address, COMPLETIONS, &request(number), None).await });
        }
        while let Some(answered) = asks.join_next().await {
            assert_eq!(answered.unwrap().unwrap().status, 200);
        }
        let preemptions = server.shared().metrics.preemptions.get();
        assert!(preemptions < 6, "{preemptions} preemptions");
        all_back(&server).await;
        server.shut_down().await;
    })
    .await;
}
