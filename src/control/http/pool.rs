//! `/api/v1/pool`, `/check`, `/metadata`, and `/healthz`.

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::Api;
use super::error::{ApiError, wrong_reply};
use super::request::JsonBody;
use crate::control::convert;
use crate::control::wire::{CheckReport, ErrorBody, ErrorInfo, ErrorKind, PoolInfo, PoolUpdate};
use crate::owner::command::{self, Command, Reply};

/// The pool as the owner knows it.
pub async fn ask_pool(api: &Api) -> Result<Box<command::PoolInfo>, ApiError> {
    match api.owner.ask(Command::ShowPool).await? {
        Reply::Pool(pool) => Ok(pool),
        _ => Err(wrong_reply()),
    }
}

/// Runs what may block, or takes long, off the event loop.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| ApiError(ErrorInfo::new(ErrorKind::Unavailable, "the daemon is stopping")))
}

/// Does something to its end, even if nobody waits for the answer any more: a client that goes away must not leave a disk half
/// added or removed.
pub async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::spawn(work).await;
    done.unwrap_or_else(|_| Err(ApiError(ErrorInfo::new(ErrorKind::Unavailable, "the daemon is stopping"))))
}

/// The pool: identity, disks, space, placement store, warnings.
#[utoipa::path(get, path = "/api/v1/pool", tag = "pool",
    responses((status = 200, body = PoolInfo), (status = "default", body = ErrorBody)))]
pub async fn show(State(api): State<Api>) -> Result<Json<PoolInfo>, ApiError> {
    let pool = ask_pool(&api).await?;
    let Reply::Vhds(vhds) = api.owner.ask(Command::ListVhds).await? else { return Err(wrong_reply()) };
    let host = api.host.clone();
    let info = blocking(move || {
        let block = |vhd: &command::VhdInfo| vhd.state.settings.geometry.block_size();
        let written = vhds.iter().map(|vhd| vhd.state.map.present_blocks() * block(vhd)).sum();
        convert::pool_info(*pool, &host.open_disks(), host.store_info(), written)
    });
    Ok(Json(info.await?))
}

/// Changes settings of the pool.
#[utoipa::path(patch, path = "/api/v1/pool", tag = "pool", request_body = PoolUpdate,
    responses((status = 200, body = PoolInfo), (status = "default", body = ErrorBody)))]
pub async fn set(State(api): State<Api>, JsonBody(update): JsonBody<PoolUpdate>) -> Result<Json<PoolInfo>, ApiError> {
    api.owner.ask(Command::SetPool { expand: update.expand.map(|expand| expand.map(Into::into)) }).await?;
    show(State(api)).await
}

/// Proves that the placement table is consistent, while guests go on.
#[utoipa::path(get, path = "/api/v1/check", tag = "pool",
    responses((status = 200, body = CheckReport), (status = "default", body = ErrorBody)))]
pub async fn check(State(api): State<Api>) -> Result<Json<CheckReport>, ApiError> {
    match api.owner.ask(Command::Check).await? {
        Reply::Check(report) => Ok(Json(convert::check_report(&report))),
        _ => Err(wrong_reply()),
    }
}

/// The placement table as text, one JSON object a line, for `spanblk metadata restore`.
#[utoipa::path(get, path = "/api/v1/metadata", tag = "pool",
    responses((status = 200, content_type = "application/x-ndjson", body = String), (status = "default", body = ErrorBody)))]
pub async fn dump(State(api): State<Api>) -> Result<impl IntoResponse, ApiError> {
    let host = api.host.clone();
    let text = blocking(move || host.dump()).await??;
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], text))
}

/// Whether the daemon answers.
#[utoipa::path(get, path = "/healthz", tag = "daemon",
    responses((status = 200, body = String, content_type = "text/plain"), (status = "default", body = ErrorBody)))]
pub async fn health(State(api): State<Api>) -> Result<&'static str, ApiError> {
    ask_pool(&api).await?;
    Ok("ok\n")
}
