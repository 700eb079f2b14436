//! `ApiError`: an error in OpenAI's shape.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use paged_kv::{ErrorKind, PagedKvError};
use serde_json::{Value, json};

/// An error, its status and its words.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    kind: &'static str,
    parameter: Option<&'static str>,
    message: String,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, kind: &'static str, message: &str) -> Self {
        Self { status, kind, parameter: None, message: message.to_owned() }
    }

    pub(super) fn bad_request(parameter: &'static str, message: &str) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message);
        Self { parameter: Some(parameter), ..error }
    }

    pub(super) fn not_found(message: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message)
    }

    pub(super) fn overloaded(message: &str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded_error", message)
    }

    pub(super) fn timeout() -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout", "the answer took too long")
    }

    /// Returns the error of a refusal of the cache, by its kind.
    pub(super) fn of(refusal: &PagedKvError) -> Self {
        let (status, kind) = match refusal.kind() {
            ErrorKind::NoRoom | ErrorKind::Interrupted | ErrorKind::Conflict => {
                (StatusCode::SERVICE_UNAVAILABLE, "overloaded_error")
            }
            ErrorKind::NotFound => (StatusCode::NOT_FOUND, "invalid_request_error"),
            ErrorKind::Misuse => (StatusCode::BAD_REQUEST, "invalid_request_error"),
            ErrorKind::Limit => (StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error"),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "server_error"),
        };
        Self::new(status, kind, &refusal.to_string())
    }

    /// Returns the body.
    pub(super) fn body(&self) -> Value {
        let Self { kind, parameter, message, .. } = self;
        json!({ "error": { "message": message, "type": kind, "param": parameter, "code": null } })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self.body())).into_response()
    }
}
