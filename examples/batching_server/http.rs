//! `router`: the HTTP interface, in OpenAI's format of `/v1/completions`. An answer is one body or
//! server-sent events.
//!
//! Each byte of a text prompt is one token; a prompt can also list tokens. The text of an answer is the
//! stand-in's tokens as numbers, separated by blanks.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, FromRequest, Json, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use paged_kv::{ErrorKind, PagedKvError};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::Stream;

use super::job::{Event, Job, Sample};
use super::{Model, Shared, intake};

/// The most tokens of an answer, all samples together: with a slow reader they stay in memory.
const ANSWER_TOKENS: usize = 1 << 16;

/// The most bytes of a model's name, which every part of an answer repeats.
const NAME_BYTES: usize = 256;

/// Creates the routes.
pub fn router<M: Model>(shared: Arc<Shared<M>>) -> Router {
    Router::new()
        .route("/v1/completions", post(complete::<M>))
        .route("/healthz", get(health::<M>))
        .route("/metrics", get(metrics::<M>))
        .layer(DefaultBodyLimit::max(shared.limits.body_bytes))
        .with_state(shared)
}

#[derive(Deserialize)]
struct Completion {
    prompt: Prompt,
    #[serde(default = "sixteen")]
    max_tokens: usize,
    #[serde(default = "one")]
    n: u32,
    #[serde(default)]
    stream: bool,
    #[serde(default)]
    model: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

fn sixteen() -> usize {
    16
}

fn one() -> u32 {
    1
}

async fn health<M: Model>(State(shared): State<Arc<Shared<M>>>) -> (StatusCode, &'static str) {
    if shared.draining.load(Ordering::SeqCst) {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else {
        (StatusCode::OK, "ok\n")
    }
}

async fn metrics<M: Model>(State(shared): State<Arc<Shared<M>>>) -> Response {
    let text = shared.metrics.render();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

async fn complete<M: Model>(State(shared): State<Arc<Shared<M>>>, request: Request) -> Response {
    let body = Json::<Completion>::from_request(request, &());
    let Json(request) = match tokio::time::timeout(shared.limits.body_time, body).await {
        Ok(Ok(request)) => request,
        Ok(Err(rejection)) => return error(rejection.status(), &rejection.body_text()),
        Err(_) => return error(StatusCode::REQUEST_TIMEOUT, "the body took too long"),
    };
    if shared.draining.load(Ordering::SeqCst) {
        return error(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down");
    }
    let prompt = match request.prompt {
        Prompt::Text(text) => text.bytes().map(u32::from).collect(),
        Prompt::Tokens(tokens) => tokens,
    };
    if request.model.as_ref().is_some_and(|name| name.len() > NAME_BYTES) {
        return error(StatusCode::BAD_REQUEST, "a shorter name of the model, please");
    }
    if let Some(reason) = refusal(&shared, prompt.len(), request.max_tokens, request.n) {
        return error(StatusCode::BAD_REQUEST, &reason);
    }
    let shape = Shape {
        id: format!("cmpl-{}", shared.metrics.requests.inc()),
        model: request.model.unwrap_or_else(|| "stand-in".to_owned()),
        prompt_tokens: prompt.len(),
    };
    let (job, events) = Job::new(prompt, request.max_tokens, request.n);
    let answer = Answer {
        client: Client { shared: Arc::clone(&shared), job: Arc::clone(&job) },
        events,
        shape,
        left: request.n,
    };
    intake::admit(shared, Sample::first(job));
    if request.stream {
        let headers =
            [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
        return (headers, Body::from_stream(answer)).into_response();
    }
    answer.whole(request.n).await
}

/// Returns the reason for which a request can never be served, if there is one.
fn refusal<M>(shared: &Shared<M>, prompt: usize, max_tokens: usize, n: u32) -> Option<String> {
    if prompt == 0 || max_tokens == 0 || !(1..=64).contains(&n) {
        return Some(
            "prompt and max_tokens of at least one token, and n of 1 to 64, please".to_owned(),
        );
    }
    if max_tokens.saturating_mul(n as usize) > ANSWER_TOKENS {
        return Some(format!("at most {ANSWER_TOKENS} tokens in all samples together, please"));
    }
    let cache = &shared.cache;
    let needed = prompt.saturating_add(max_tokens).div_ceil(cache.block_size());
    let room = cache.total_blocks() * 9 / 10;
    (needed > room)
        .then(|| format!("{needed} blocks of KV cache needed, at most {room} can be had"))
}

/// Returns the status of a refusal by its kind.
fn status(refusal: &PagedKvError) -> StatusCode {
    match refusal.kind() {
        ErrorKind::NoRoom | ErrorKind::Interrupted => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Conflict => StatusCode::CONFLICT,
        ErrorKind::Misuse => StatusCode::BAD_REQUEST,
        ErrorKind::Limit => StatusCode::PAYLOAD_TOO_LARGE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn error(status: StatusCode, message: &str) -> Response {
    let body = json!({ "error": { "message": message, "type": "invalid_request_error" } });
    (status, Json(body)).into_response()
}

/// The fields that all parts of an answer have in common.
struct Shape {
    id: String,
    model: String,
    prompt_tokens: usize,
}

/// The client that waits for the answer. If it is dropped before the end, the client has left.
struct Client<M: Model> {
    shared: Arc<Shared<M>>,
    job: Arc<Job>,
}

impl<M: Model> Drop for Client<M> {
    fn drop(&mut self) {
        self.job.abandon(&self.shared);
    }
}

/// An unfinished answer. Its events are closed before its client is dropped, so that workers see that the
/// client has left.
struct Answer<M: Model> {
    events: mpsc::UnboundedReceiver<Event>,
    client: Client<M>,
    shape: Shape,
    /// Samples that have not ended.
    left: u32,
}

impl Shape {
    fn part(&self, choices: Value) -> Value {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        json!({
            "id": self.id, "object": "text_completion", "created": created, "model": self.model,
            "choices": choices,
        })
    }
}

impl<M: Model> Answer<M> {
    /// Returns the whole answer in one body.
    async fn whole(mut self, samples: u32) -> Response {
        let mut texts = vec![String::new(); samples as usize];
        let mut completion_tokens = 0;
        while self.left > 0 {
            match self.events.recv().await {
                Some(Event::Token { sample, token }) => {
                    completion_tokens += 1;
                    texts[sample as usize].push_str(&format!(" {token}"));
                }
                Some(Event::Finished { .. }) => self.left -= 1,
                Some(Event::Refused { refusal }) => {
                    return error(status(&refusal), &refusal.to_string());
                }
                None => return error(StatusCode::INTERNAL_SERVER_ERROR, "the request was lost"),
            }
        }
        let choice = |(index, text)| json!({ "index": index, "text": text, "logprobs": null, "finish_reason": "length" });
        let mut body = self.shape.part(texts.iter().enumerate().map(choice).collect());
        let prompt_tokens = self.shape.prompt_tokens;
        body["usage"] = json!({
            "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        });
        Json(body).into_response()
    }
}

impl<M: Model> Stream for Answer<M> {
    type Item = Result<String, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let choice = |index: u32, text: String, reason: Option<&str>| json!([{ "index": index, "text": text, "logprobs": null, "finish_reason": reason }]);
        let Poll::Ready(event) = self.events.poll_recv(context) else {
            return Poll::Pending;
        };
        let mut part = match event {
            Some(Event::Token { sample, token }) => {
                self.shape.part(choice(sample, format!(" {token}"), None))
            }
            Some(Event::Finished { sample }) => {
                self.left -= 1;
                self.shape.part(choice(sample, String::new(), Some("length")))
            }
            Some(Event::Refused { refusal }) => {
                self.left = 0;
                json!({ "error": { "message": refusal.to_string() } })
            }
            None => {
                self.left = 0;
                json!({ "error": { "message": "the request was lost" } })
            }
        }
        .to_string();
        part = format!("data: {part}\n\n");
        if self.left == 0 {
            part.push_str("data: [DONE]\n\n");
        }
        Poll::Ready(Some(Ok(part)))
    }
}

impl<M: Model> Drop for Answer<M> {
    fn drop(&mut self) {
        if self.left > 0 {
            self.client.shared.metrics.disconnects.inc();
        }
        // Closed before its sequences are freed: a later admission sees that no client waits for it.
        self.events.close();
    }
}
