//! `router`: the HTTP interface: OpenAI's completions, chats and models, health, metrics, and the live picture.

mod answer;
mod body;
mod error;
mod fields;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, extract};
use serde_json::json;

use self::answer::{Answer, Kind};
use self::error::ApiError;
use self::fields::{Chat, Completion, Options};
use crate::job::{Job, Sample};
use crate::shared::Shared;

type Served = Result<Response, ApiError>;

/// Creates the routes.
pub fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/picture", get(picture))
        .route("/v1/completions", post(complete))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(async || ApiError::not_found("no such page"))
        .layer(DefaultBodyLimit::max(shared.config.limits.body_bytes))
        .with_state(shared)
}

async fn page() -> Html<&'static str> {
    Html(include_str!("page.html"))
}

async fn picture(State(shared): State<Arc<Shared>>) -> Response {
    let headers =
        [(header::CONTENT_TYPE, "application/octet-stream"), (header::CACHE_CONTROL, "no-store")];
    (headers, shared.picture.frame(&shared).to_vec()).into_response()
}

async fn health(State(shared): State<Arc<Shared>>) -> (StatusCode, &'static str) {
    match shared.is_draining() {
        true => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        false => (StatusCode::OK, "ok\n"),
    }
}

async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let text = shared.metrics.render();
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn models(State(shared): State<Arc<Shared>>) -> Response {
    Json(json!({ "object": "list", "data": [card(&shared)] })).into_response()
}

async fn model(
    State(shared): State<Arc<Shared>>,
    extract::Path(name): extract::Path<String>,
) -> Served {
    match name == shared.loaded.name {
        true => Ok(Json(card(&shared)).into_response()),
        false => Err(ApiError::not_found(&format!("the model `{name}` does not exist"))),
    }
}

fn card(shared: &Shared) -> serde_json::Value {
    let loaded = &shared.loaded;
    json!({ "id": loaded.name, "object": "model", "created": 0, "owned_by": "paged-kv",
            "max_model_len": loaded.context_len })
}

async fn complete(State(shared): State<Arc<Shared>>, request: Request) -> Served {
    let Completion { prompt, options } = body::read(&shared, request).await?;
    let tokens = prompt.tokens(&shared.loaded)?;
    serve(shared, Kind::Text, tokens, options).await
}

async fn chat(State(shared): State<Arc<Shared>>, request: Request) -> Served {
    let Chat { messages, options } = body::read(&shared, request).await?;
    let messages: Vec<_> = messages.into_iter().map(fields::ChatMessage::message).collect();
    if messages.is_empty() {
        return Err(ApiError::bad_request("messages", "a chat has at least one message"));
    }
    let refused = |error: std::io::Error| ApiError::bad_request("messages", &error.to_string());
    let text = shared.loaded.text.prompt_of_chat(&messages).map_err(refused)?;
    let tokens = shared.loaded.text.encode(&text).map_err(refused)?;
    serve(shared, Kind::Chat, tokens, options).await
}

/// Queues a request, and returns its answer.
async fn serve(shared: Arc<Shared>, kind: Kind, tokens: Vec<u32>, options: Options) -> Served {
    let number = shared.next_request();
    let (parameters, form) = options.check(&shared, kind, number, tokens.len())?;
    let salt = parameters.salt.clone();
    let prompt = shared.conversations.prompt(&shared.cache, &tokens, salt.as_deref());
    shared.metrics.prompt_tokens.inc_by(tokens.len() as u64);
    let (job, events) = Job::new(number, parameters, tokens.len());
    let answer = Answer::new(shared.clone(), job.clone(), events, kind, form);
    shared.queue.add(Sample::first(job, tokens, prompt));
    answer.respond().await
}
