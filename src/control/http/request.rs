//! Reading requests: bodies, paths and queries, each with an error that names what is wrong.

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use crate::base::limits::API_BODY_MAX;
use crate::control::wire::{ErrorInfo, ErrorKind};

/// A JSON body. The content type is not looked at: `curl -d` sends a wrong one, and nothing else is understood anyway.
#[derive(Debug)]
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<JsonBody<T>, ApiError> {
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| unread(&rejection))?;
        parse(&bytes).map(JsonBody)
    }
}

fn unread(rejection: &BytesRejection) -> ApiError {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        let message = format!("the body is larger than {API_BODY_MAX} bytes");
        return ApiError(ErrorInfo::new(ErrorKind::TooLarge, message));
    }
    ApiError(ErrorInfo::new(ErrorKind::Invalid, format!("the body cannot be read: {rejection}")))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let invalid = |message: String| ApiError(ErrorInfo::new(ErrorKind::Invalid, message));
    if bytes.is_empty() {
        return Err(invalid("the body is empty: a JSON object is expected".to_owned()));
    }
    // Of an array the fields would be taken in order, which are all optional in many bodies.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(invalid("the body is an array: a JSON object is expected".to_owned()));
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let reason = error.into_inner();
        // Of unknown and missing fields the reason has the name; of wrong values the path has it.
        invalid(if path == "." {
            format!("the body is not valid: {reason}")
        } else {
            format!("field '{path}': {reason}")
        })
    })?;
    deserializer.end().map_err(|reason| invalid(format!("there is something behind the body: {reason}")))?;
    Ok(value)
}

/// The one variable segment of a path.
#[derive(Debug)]
pub struct Name(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Name, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        path.map(|Path(name)| Name(name)).map_err(|rejection: PathRejection| {
            ApiError(ErrorInfo::new(ErrorKind::Invalid, format!("the path is not valid: {rejection}")))
        })
    }
}

/// What is behind the question mark.
#[derive(Debug)]
pub struct QueryOf<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for QueryOf<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<QueryOf<T>, ApiError> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query.map(|Query(query)| QueryOf(query)).map_err(|rejection: QueryRejection| {
            ApiError(ErrorInfo::new(ErrorKind::Invalid, format!("the query is not valid: {}", rejection.body_text())))
        })
    }
}
