//! The one error body of the API, and what its kinds mean for HTTP and for exit codes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of every response with a status of 400 or above.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorInfo,
}

/// What went wrong, for programs and for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorInfo {
    /// The kind, for programs.
    pub kind: ErrorKind,
    /// A stable word for what exactly is wrong, if the kind is not enough: `differs`, `attached`, `no_room` and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// What is wrong, for people.
    pub message: String,
    /// What to do next, if there is something better than reading the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Kinds of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request is not valid (HTTP 400, exit code 2).
    Invalid,
    /// The daemon may not do this (HTTP 403, exit code 1).
    NotPermitted,
    /// There is no such disk, VHD or route (HTTP 404, exit code 3).
    NotFound,
    /// The request is valid but the state of the pool forbids it (HTTP 409, exit code 4).
    Conflict,
    /// The body is too large (HTTP 413, exit code 2).
    TooLarge,
    /// The daemon tried and failed (HTTP 500, exit code 1).
    Failed,
    /// The daemon is stopping, or took too long to answer (HTTP 503, exit code 5).
    Unavailable,
}

impl ErrorKind {
    /// The HTTP status.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            ErrorKind::Invalid => 400,
            ErrorKind::NotPermitted => 403,
            ErrorKind::NotFound => 404,
            ErrorKind::Conflict => 409,
            ErrorKind::TooLarge => 413,
            ErrorKind::Failed => 500,
            ErrorKind::Unavailable => 503,
        }
    }

    /// The exit code of our command line.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Failed | ErrorKind::NotPermitted => 1,
            ErrorKind::Invalid | ErrorKind::TooLarge => 2,
            ErrorKind::NotFound => 3,
            ErrorKind::Conflict => 4,
            ErrorKind::Unavailable => 5,
        }
    }
}

impl ErrorInfo {
    /// An error without a hint.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> ErrorInfo {
        ErrorInfo { kind, code: None, message: message.into(), hint: None }
    }

    /// Adds a word for programs.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<String>) -> ErrorInfo {
        self.code = Some(code.into());
        self
    }

    /// Adds what to do next.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> ErrorInfo {
        self.hint = Some(hint.into());
        self
    }
}
