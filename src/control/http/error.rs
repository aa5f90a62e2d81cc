//! Errors as HTTP responses.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::control::wire::{ErrorBody, ErrorInfo, ErrorKind};

/// An error on its way to the client.
#[derive(Clone, Debug)]
pub struct ApiError(pub ErrorInfo);

impl From<ErrorInfo> for ApiError {
    fn from(info: ErrorInfo) -> ApiError {
        ApiError(info)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.kind.http_status()).expect("kinds have valid statuses");
        (status, Json(ErrorBody { error: self.0 })).into_response()
    }
}

/// The owner answered a command with the answer to another: a bug, but one request is not worth the daemon.
pub fn wrong_reply() -> ApiError {
    ApiError(ErrorInfo::new(ErrorKind::Failed, "the owner gave an answer of another kind").with_hint("report this"))
}
