//! Where another process asks to take the daemon over. After the upgrade it is not HTTP any more; see `serve::takeover`.

use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::{Api, ApiError};
use crate::control::wire::{ErrorInfo, ErrorKind};

/// Where. Not part of the API: only the program itself speaks what follows.
pub const TAKEOVER_PATH: &str = "/takeover";

/// To what the connection is upgraded.
pub const TAKEOVER_PROTOCOL: &str = "spanblk-takeover";

pub async fn begin(State(api): State<Api>, mut request: Request) -> Response {
    if request.headers().get(UPGRADE) != Some(&HeaderValue::from_static(TAKEOVER_PROTOCOL)) {
        let what = "this is for 'spanblk serve --takeover' only";
        return ApiError(ErrorInfo::new(ErrorKind::Invalid, what)).into_response();
    }
    // Held until the connection is there, so that a second one hears that there is one.
    let Ok(place) = api.takeovers.clone().try_reserve_owned() else {
        let what = "another process is taking over";
        return ApiError(ErrorInfo::new(ErrorKind::Conflict, what)).into_response();
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let Ok(parts) = upgraded.downcast::<TokioIo<UnixStream>>() else { return };
        match parts.io.into_inner().into_std() {
            Ok(stream) => drop(place.send(stream)),
            Err(error) => log::warn!("a process that wants to take over is lost: {error}"),
        }
    });
    let headers = [(CONNECTION, "upgrade"), (UPGRADE, TAKEOVER_PROTOCOL)];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}
