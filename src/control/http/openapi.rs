//! The description of the API, generated from the handlers and the wire types.

use axum::Json;
use utoipa::OpenApi;

use super::{disks, events, impact, jobs, metrics, policy, pool, replace, stats, vhds, vms};

/// The API.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "spanblk",
        description = "Control of a spanblk daemon, over HTTP/1.1 on its unix socket. Sizes are in bytes. Requests refuse \
            unknown fields. Every error has the same body."
    ),
    paths(
        pool::show,
        pool::set,
        pool::check,
        pool::dump,
        disks::list,
        disks::show,
        disks::add,
        disks::set,
        disks::remove,
        impact::show,
        impact::fail,
        replace::replace,
        jobs::list,
        jobs::show,
        jobs::create,
        jobs::set,
        jobs::cancel,
        vhds::list,
        vhds::show,
        vhds::create,
        vhds::set,
        vhds::rename,
        vhds::resize,
        vhds::delete,
        vhds::map,
        vms::list,
        vms::show,
        vms::create,
        vms::set,
        vms::delete,
        stats::list,
        stats::vhd,
        stats::vm,
        stats::disk,
        policy::show,
        policy::set,
        policy::advice,
        policy::apply,
        policy::dismiss,
        policy::why,
        events::stream,
        metrics::text,
        pool::health,
    )
)]
pub struct ApiDescription;

/// The description as it is committed in `openapi.json`.
#[must_use]
pub fn document() -> String {
    let mut text = ApiDescription::openapi().to_pretty_json().expect("the description has string keys");
    text.push('\n');
    text
}

/// `GET /openapi.json`.
pub async fn json() -> Json<utoipa::openapi::OpenApi> {
    Json(ApiDescription::openapi())
}
