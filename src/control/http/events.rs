//! `/api/v1/events`: server-sent events.

use std::convert::Infallible;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use serde::Deserialize;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::{Stream, StreamExt};

use super::Api;
use super::error::ApiError;
use super::request::QueryOf;
use crate::base::limits::API_FOLLOWERS_MAX;
use crate::control::wire::{ErrorBody, ErrorInfo, ErrorKind, Event};

/// Which events.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    #[serde(default)]
    after: Option<u64>,
    #[serde(default = "yes")]
    follow: bool,
}

fn yes() -> bool {
    true
}

/// What happened (the last 10,000 events), then what happens, as server-sent events: `id` is the sequence number, `data` an
/// `Event`. A reader that falls behind loses events, which the sequence numbers show.
#[utoipa::path(get, path = "/api/v1/events", tag = "daemon",
    params(("after" = Option<u64>, Query, description = "Only events after this sequence number (or the Last-Event-ID header)"),
        ("follow" = Option<bool>, Query, description = "false: end after what is known already")),
    responses((status = 200, content_type = "text/event-stream", body = Event), (status = "default", body = ErrorBody)))]
pub async fn stream(
    State(api): State<Api>,
    QueryOf(query): QueryOf<EventsQuery>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<SseEvent, Infallible>>>, ApiError> {
    let last_id = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.parse().ok());
    let after = query.after.or(last_id).unwrap_or(0);
    let events = if query.follow { api.events.follow(after) } else { Some(api.events.subscribe(after)) };
    let (past, live) = events.ok_or_else(too_many)?;
    let past = tokio_stream::iter(past);
    // A reader that lagged goes on with what is still there.
    let live = BroadcastStream::new(live).filter_map(Result::ok);
    let live = live.take(if query.follow { usize::MAX } else { 0 });
    Ok(Sse::new(past.chain(live).map(|event| Ok(frame(&event)))).keep_alive(KeepAlive::default()))
}

fn too_many() -> ApiError {
    let message = format!("{API_FOLLOWERS_MAX} readers follow the events already");
    let hint = "end some of them, or ask from time to time with follow=false";
    ApiError(ErrorInfo::new(ErrorKind::Unavailable, message).with_code("followers").with_hint(hint))
}

fn frame(event: &Event) -> SseEvent {
    let data = serde_json::to_string(event).expect("wire types have string keys");
    SseEvent::default().id(event.seq.to_string()).data(data)
}
