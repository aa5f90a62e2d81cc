//! `/api/v1/events`: server-sent events.

use std::convert::Infallible;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use serde::Deserialize;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::{Stream, StreamExt};

use super::Api;
use super::error::{ApiError, wrong_reply};
use super::request::QueryOf;
use crate::base::limits::API_FOLLOWERS_MAX;
use crate::control::events::filter::{About, Filter};
use crate::control::wire::{ErrorBody, ErrorInfo, ErrorKind, Event, Severity};
use crate::owner::command::{Command, Reply};

/// Which events.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    #[serde(default)]
    after: Option<u64>,
    #[serde(default = "yes")]
    follow: bool,
    vhd: Option<String>,
    vm: Option<String>,
    disk: Option<String>,
    severity: Option<Severity>,
}

fn yes() -> bool {
    true
}

/// What happened (the last 10,000 events), then what happens, as server-sent events: `id` is the sequence number, `data` an
/// `Event`. A reader that falls behind loses events, which the sequence numbers show if nothing is left out by `vhd`, `vm`, `disk`
/// or `severity`.
#[utoipa::path(get, path = "/api/v1/events", tag = "daemon",
    params(("after" = Option<u64>, Query, description = "Only events after this sequence number (or the Last-Event-ID header)"),
        ("follow" = Option<bool>, Query, description = "false: end after what is known already"),
        ("vhd" = Option<String>, Query, description = "Only events about the VHD of this name, which may be gone"),
        ("vm" = Option<String>, Query, description = "Only events about this VM (name or UUID) and the VHDs that it has when asked"),
        ("disk" = Option<String>, Query, description = "Only events about the disk of this name"),
        ("severity" = Option<Severity>, Query, description = "Only events that are at least as bad")),
    responses((status = 200, content_type = "text/event-stream", body = Event), (status = "default", body = ErrorBody)))]
pub async fn stream(
    State(api): State<Api>,
    QueryOf(query): QueryOf<EventsQuery>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<SseEvent, Infallible>>>, ApiError> {
    let last_id = headers.get("last-event-id").and_then(|value| value.to_str().ok()?.parse().ok());
    let after = query.after.or(last_id).unwrap_or(0);
    let filter = Filter { severity: query.severity, about: about(&api, &query).await? };
    let events = if query.follow { api.events.follow(after) } else { Some(api.events.subscribe(after)) };
    let (past, live) = events.ok_or_else(too_many)?;
    let past = tokio_stream::iter(past);
    // A reader that lagged goes on with what is still there.
    let live = BroadcastStream::new(live).filter_map(Result::ok);
    let live = live.take(if query.follow { usize::MAX } else { 0 });
    let wanted = past.chain(live).filter(move |event| filter.wants(event));
    Ok(Sse::new(wanted.map(|event| Ok(frame(&event)))).keep_alive(KeepAlive::default()))
}

/// What the events must be about.
async fn about(api: &Api, query: &EventsQuery) -> Result<Option<About>, ApiError> {
    match (&query.vhd, &query.vm, &query.disk) {
        (None, None, None) => Ok(None),
        (Some(vhd), None, None) => Ok(Some(About::Vhd(vhd.clone()))),
        (None, None, Some(disk)) => Ok(Some(About::Disk(disk.clone()))),
        (None, Some(vm), None) => {
            let Reply::Vm { vm, .. } = api.owner.ask(Command::ShowVm { vm: vm.clone() }).await? else {
                return Err(wrong_reply());
            };
            let vhds = vm.vhds.iter().map(|vhd| vhd.record.name.clone()).collect();
            Ok(Some(About::Vm { vm: vm.record.name, vhds }))
        }
        _ => {
            let message = "events can be asked for by one of 'vhd', 'vm' and 'disk', not by several";
            Err(ApiError(ErrorInfo::new(ErrorKind::Invalid, message.to_owned())))
        }
    }
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
