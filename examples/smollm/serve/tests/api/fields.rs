//! Tests of the fields of requests: limits, stop texts, usage, cached tokens, salts, priorities.

use serde_json::{Value, json};
use serving::client::ask;

use crate::{CHATS, COMPLETIONS, all_back, answer, small, start, watched};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_can_never_be_served_are_refused_in_openais_shape() {
    watched(async {
        let server = start(small()).await;
        let cases = [
            (json!({ "prompt": "" }), 400, "prompt"),
            (json!({ "prompt": "x".repeat(5000) }), 400, "prompt"),
            (json!({ "prompt": [1, 2, 80] }), 400, "prompt"),
            (json!({ "prompt": ["a", "b"] }), 400, "prompt"),
            (json!({ "prompt": "a", "max_tokens": 0 }), 400, "max_tokens"),
            (json!({ "prompt": "a", "max_tokens": 1000 }), 400, "max_tokens"),
            (json!({ "prompt": "a", "n": 0 }), 400, "n"),
            (json!({ "prompt": "a", "n": 100 }), 400, "n"),
            (json!({ "prompt": "a", "temperature": -1.0 }), 400, "temperature"),
            (json!({ "prompt": "a", "top_p": 0.0 }), 400, "top_p"),
            (json!({ "prompt": "a", "stop": ["", "b"] }), 400, "stop"),
            (json!({ "prompt": "a", "model": "other" }), 404, ""),
            (json!({ "max_tokens": 3 }), 400, ""),
            (json!("text"), 400, ""),
        ];
        for (body, status, parameter) in cases {
            let answered = ask(server.address(), COMPLETIONS, &body, None).await.unwrap();
            assert_eq!(answered.status, status, "{body}: {answered:?}");
            assert_eq!(answered.error["type"], "invalid_request_error", "{body}");
            assert_eq!(answered.error["param"].as_str().unwrap_or(""), parameter, "{body}");
            assert!(answered.error["message"].is_string(), "{body}");
        }
        all_back(&server).await;
        server.shut_down().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_ends_before_a_stop_text() {
    watched(async {
        let server = start(small()).await;
        let mut body = json!({ "prompt": "stop this", "max_tokens": 40, "temperature": 0 });
        let text = answer(&server, COMPLETIONS, &body).await.texts.remove(0);
        let stop = text[10..13].to_owned();
        body["stop"] = json!([stop, "never there"]);
        for stream in [false, true] {
            body["stream"] = json!(stream);
            let stopped = answer(&server, COMPLETIONS, &body).await;
            assert_eq!(stopped.texts[0], text[..text.find(&stop).unwrap()]);
            assert_eq!(stopped.reasons[0].as_deref(), Some("stop"));
        }
        all_back(&server).await;
        server.shut_down().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_finds_its_tokens_cached_and_a_salt_hides_them() {
    watched(async {
        let server = start(small()).await;
        let question = json!({ "role": "user", "content": "a question of some length, to fill blocks" });
        let first = json!({ "messages": [question], "max_tokens": 20, "temperature": 0 });
        let answered = answer(&server, CHATS, &first).await;
        assert_eq!(cached(&answered.usage), 0);
        let reply = json!({ "role": "assistant", "content": answered.texts[0] });
        let next = json!({ "role": "user", "content": [{ "type": "text", "text": "and" }] });
        let mut second = json!({ "messages": [question, reply, next], "max_tokens": 9, "temperature": 0,
                                 "stream": true, "stream_options": { "include_usage": true } });
        let usage = answer(&server, CHATS, &second).await.usage;
        let begun = answered.usage["total_tokens"].as_u64().unwrap() - 1;
        assert_eq!(cached(&usage), begun / 8 * 8, "{usage}");
        assert_eq!(usage["completion_tokens"], 9);
        second["cache_salt"] = json!("tenant");
        assert_eq!(cached(&answer(&server, CHATS, &second).await.usage), 0);
        assert!(cached(&answer(&server, CHATS, &second).await.usage) > 0);
        all_back(&server).await;
        server.shut_down().await;
    })
    .await;
}

fn cached(usage: &Value) -> u64 {
    usage["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a count of cached tokens")
}
