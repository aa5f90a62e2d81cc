//! Requests to every route of the API, over a fake owner, in this process.

use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use spanblk::control::http::router;
use tower::ServiceExt;

use crate::fake_owner;

const METHODS: [&str; 5] = ["GET", "POST", "PATCH", "DELETE", "PUT"];

/// Paths up to the part that the input names.
const PATHS: [&str; 22] = [
    "/api/v1/pool",
    "/api/v1/check",
    "/api/v1/metadata",
    "/api/v1/disks",
    "/api/v1/disks/d0",
    "/api/v1/disks/d0/replace",
    "/api/v1/jobs",
    "/api/v1/jobs/1",
    "/api/v1/jobs/1/cancel",
    "/api/v1/vhds",
    "/api/v1/vhds/old",
    "/api/v1/vhds/old/rename",
    "/api/v1/vhds/old/resize",
    "/api/v1/vhds/old/map",
    "/api/v1/vhds/busy",
    "/api/v1/jobs/",
    "/api/v1/vhds/",
    "/api/v1/disks/",
    "/",
    "/metrics",
    "/api/v1/vms",
    "/api/v1/vms/web",
];

/// Sends one request made of `data`: method, path, a tail of the path, and a body after a zero byte. Returns the status.
///
/// # Panics
/// If the answer is none that the API promises: an error without its JSON body, or an internal error.
pub fn run(runtime: &tokio::runtime::Runtime, data: &[u8]) -> u16 {
    let (head, rest) = data.split_at(data.len().min(2));
    let method = METHODS[usize::from(head.first().copied().unwrap_or(0)) % METHODS.len()];
    let path = PATHS[usize::from(head.get(1).copied().unwrap_or(0)) % PATHS.len()];
    let (tail, body) = rest.split_at(rest.iter().position(|&byte| byte == 0).unwrap_or(0));
    let body = body.strip_prefix(&[0]).unwrap_or(body);
    let uri = [path.as_bytes(), tail].concat();
    let Ok(request) = Request::builder().method(method).uri(&uri[..]).body(Body::from(body.to_vec())) else { return 0 };
    runtime.block_on(async {
        let response = router(fake_owner::api()).oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let status = parts.status.as_u16();
        if status < 400 {
            return status;
        }
        let bytes = body.collect().await.unwrap().to_bytes();
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            panic!("{method} {uri:?}: {status} without a JSON body: {error}: {bytes:?}");
        });
        assert!(value["error"]["message"].as_str().is_some_and(|text| !text.is_empty()), "{status} {value}");
        // The fake owner never fails by itself, but for what it does not know.
        assert!((400..500).contains(&status) || matches!(status, 500 | 503), "{status} {value}");
        status
    })
}
