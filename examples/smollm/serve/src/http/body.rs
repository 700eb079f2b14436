//! `read`: the JSON body of a request, within its time and size.

use axum::Json;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use crate::shared::Shared;

/// Reads a body. A server that drains refuses it.
pub(super) async fn read<T: DeserializeOwned>(
    shared: &Shared,
    request: Request,
) -> Result<T, ApiError> {
    let body = Json::<T>::from_request(request, &());
    let time = shared.config.limits.body_time;
    let late = || ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", "the body took too long");
    let body = tokio::time::timeout(time, body).await.map_err(|_| late())?;
    let Json(body) = body.map_err(|rejection| {
        let status = match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        };
        ApiError::new(status, "invalid_request_error", &rejection.body_text())
    })?;
    if shared.is_draining() {
        return Err(ApiError::overloaded("the server is shutting down"));
    }
    Ok(body)
}
