//! The HTTP API: routes and how they are served.
//!
//! A handler turns a request into a typed command, waits for the owner's answer and turns that into wire types. It touches
//! no state. What the owner does not know (files, regions, events) comes through [`Host`].

mod disks;
mod error;
mod events;
mod impact;
mod jobs;
mod listen;
mod metrics;
pub mod openapi;
mod policy;
mod pool;
mod replace;
mod request;
mod stats;
mod takeover;
mod vhds;
mod vms;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

pub use error::ApiError;
pub use listen::{Bound, ListenError, bind_control, bind_metrics, serve};
pub use policy::run as run_policy;
pub use replace::remove_replaced;
pub use takeover::{TAKEOVER_PATH, TAKEOVER_PROTOCOL};

use super::convert::impact::Votes;
use super::convert::{OpenDisks, SocketInfo};
use super::events::EventLog;
use super::owner_link::OwnerLink;
use super::policy::{Desk, Turns};
use super::stats::StatsBook;
use super::wire::{API_PREFIX, DiskAdd, ErrorInfo, ErrorKind, StoreInfo};
use crate::base::ids::{DiskId, VhdId};
use crate::base::limits::API_BODY_MAX;
use crate::owner::command::{AddDisk, JoiningDisk, PoolInfo};
use crate::placement::record::{DiskRecord, SocketOwner, VhdRecord};
use crate::vhost_user::ReactorStatus;

/// How long a request may take, streams apart. Longer than the wait for the owner's answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(90);

/// What handlers need and the owner does not know. Calls may block and are made off the event loop.
pub trait Host: Send + Sync {
    /// Opens, locks and labels a disk as the next one of `pool`; one that `replaces` another can carry the placement store if that
    /// can. [`Host::forget_disk`] undoes it.
    ///
    /// # Errors
    /// The disk cannot be used; nothing on it has changed then.
    fn prepare_disk(&self, request: &DiskAdd, pool: &PoolInfo, replaces: Option<DiskId>) -> Result<AddDisk, ErrorInfo>;

    /// What [`Host::prepare_disk`] would make of a disk.
    ///
    /// # Errors
    /// As there.
    fn probe_disk(
        &self,
        request: &DiskAdd,
        pool: &PoolInfo,
        replaces: Option<DiskId>,
    ) -> Result<JoiningDisk, ErrorInfo>;

    /// Wipes the label of a disk that the owner did not take after all.
    fn forget_disk(&self, disk: &str);

    /// Lets the placement store do without a disk that is about to leave the pool; a disk with a metadata region that is not in
    /// use takes its place. Returns what a person should know.
    ///
    /// # Errors
    /// No disk would carry the store, or the others could not be brought to it. Then it is as it was.
    fn leave_store(&self, disk: DiskId) -> Result<Vec<String>, ErrorInfo>;

    /// If `old` carries the placement store, lets `new` do that in its place. Returns what a person should know.
    ///
    /// # Errors
    /// As [`Host::leave_store`].
    fn succeed_in_store(&self, old: DiskId, new: DiskId) -> Result<Vec<String>, ErrorInfo>;

    /// A disk was added: lets three disks carry the placement store if there are three that can. Returns what a person should
    /// know.
    fn fill_store(&self) -> Vec<String>;

    /// The owner has taken a disk out of the pool: all labels are to say so, then its own is wiped. Returns what a person
    /// should know.
    fn remove_disk(&self, disk: DiskId) -> Vec<String>;

    /// Paths and regions of the open disks.
    fn open_disks(&self) -> OpenDisks;

    /// The placement store.
    fn store_info(&self) -> StoreInfo;

    /// Which disks have a say in commits of the placement store.
    fn votes(&self) -> Votes;

    /// What happened at the sockets of the VHDs that are served, in no order.
    fn connections(&self) -> Vec<Connections>;

    /// What the reactors have done.
    fn reactors(&self) -> ReactorStatus;

    /// The disk of the pool that a path leads to.
    fn disk_at(&self, path: &str) -> Option<DiskId>;

    /// The settings of a disk changed: its label is to say so, too. Best effort: the store has it.
    fn disk_changed(&self, disk: &DiskRecord);

    /// Whether a new VHD could have a socket of this name.
    ///
    /// # Errors
    /// Why not.
    fn check_socket_name(&self, name: &str) -> Result<(), ErrorInfo>;

    /// Whether sockets could have this owner.
    ///
    /// # Errors
    /// Why not.
    fn check_socket_owner(&self, owner: &SocketOwner) -> Result<(), ErrorInfo>;

    /// Why a VHD has no socket; `None` if it has one.
    fn socket_problem(&self, vhd: VhdId) -> Option<String>;

    /// The placement table as text.
    ///
    /// # Errors
    /// The store cannot be read.
    fn dump(&self) -> Result<String, ErrorInfo>;
}

/// What happened at the socket of a VHD since it is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connections {
    /// Name of the VHD.
    pub vhd: String,
    /// Connections that were accepted.
    pub accepted: u64,
    /// Connections turned away because there was one already.
    pub refused: u64,
    /// Connections closed because of a bad message.
    pub faults: u64,
}

/// What handlers share.
#[derive(Clone)]
pub struct Api {
    /// The way to the owner.
    pub owner: OwnerLink,
    /// Everything else.
    pub host: Arc<dyn Host>,
    /// What happened lately.
    pub events: Arc<EventLog>,
    /// Where VHDs have their sockets.
    pub socket_dir: PathBuf,
    /// Disks come and go one at a time, so that each gets the next place in the pool's disk table.
    pub changing_disks: Arc<tokio::sync::Mutex<()>>,
    /// What is wanted of the policy, and what it remembers.
    pub policy: Arc<Desk>,
    /// Wishes change one at a time: each is checked with all others. Looks of the policy take turns with them, and with orders to it.
    pub changing_policy: Arc<Turns>,
    /// VHDs that the policy places are made one at a time.
    pub placing: Arc<tokio::sync::Mutex<()>>,
    /// To the daemon: the process at the other end wants to take over.
    pub takeovers: tokio::sync::mpsc::Sender<UnixStream>,
    /// What VHDs and disks did.
    pub stats: Arc<StatsBook>,
}

impl Api {
    /// The socket of a VHD.
    #[must_use]
    pub fn socket_of(&self, record: &VhdRecord) -> SocketInfo {
        let path = self.socket_dir.join(format!("{}.sock", record.name)).display().to_string();
        SocketInfo { path, problem: self.host.socket_problem(record.id) }
    }
}

/// All routes.
pub fn router(api: Api) -> Router {
    let v1 = Router::new()
        .route("/pool", get(pool::show).patch(pool::set))
        .route("/check", get(pool::check))
        .route("/metadata", get(pool::dump))
        .route("/disks", get(disks::list).post(disks::add))
        .route("/disks/{disk}", get(disks::show).patch(disks::set).delete(disks::remove))
        .route("/disks/{disk}/impact", get(impact::show))
        .route("/disks/{disk}/fail", post(impact::fail))
        .route("/disks/{disk}/replace", post(replace::replace))
        .route("/jobs", get(jobs::list).post(jobs::create))
        .route("/jobs/{job}", get(jobs::show).patch(jobs::set))
        .route("/jobs/{job}/cancel", post(jobs::cancel))
        .route("/vhds", get(vhds::list).post(vhds::create))
        .route("/vhds/{vhd}", get(vhds::show).patch(vhds::set).delete(vhds::delete))
        .route("/vms", get(vms::list).post(vms::create))
        .route("/vms/{vm}", get(vms::show).patch(vms::set).delete(vms::delete))
        .route("/vhds/{vhd}/rename", post(vhds::rename))
        .route("/vhds/{vhd}/resize", post(vhds::resize))
        .route("/vhds/{vhd}/map", get(vhds::map))
        .route("/vhds/{vhd}/why", get(policy::why))
        .route("/policy", get(policy::show).patch(policy::set))
        .route("/advice", get(policy::advice))
        .route("/advice/{proposal}/apply", post(policy::apply))
        .route("/advice/{proposal}/dismiss", post(policy::dismiss))
        .route("/stats", get(stats::list))
        .route("/vhds/{vhd}/stats", get(stats::vhd))
        .route("/vms/{vm}/stats", get(stats::vm))
        .route("/disks/{disk}/stats", get(stats::disk));
    Router::new()
        .nest(API_PREFIX, v1)
        .route("/healthz", get(pool::health))
        .route("/openapi.json", get(openapi::json))
        .merge(metrics_route())
        .layer(middleware::from_fn(limit_time))
        // Streams last as long as their reader does.
        .route(&format!("{API_PREFIX}/events"), get(events::stream))
        .route("/events", get(events::stream))
        .route(TAKEOVER_PATH, post(takeover::begin))
        .fallback(|request: Request| async move { no_route(&request) })
        .method_not_allowed_fallback(|request: Request| async move { wrong_method(&request) })
        .layer(DefaultBodyLimit::max(API_BODY_MAX))
        .with_state(api)
}

/// Only what may be seen over TCP.
pub fn metrics_router(api: Api) -> Router {
    metrics_route()
        .layer(middleware::from_fn(limit_time))
        .fallback(|request: Request| async move { no_route(&request) })
        .with_state(api)
}

fn metrics_route() -> Router<Api> {
    Router::new().route("/metrics", get(metrics::text))
}

async fn limit_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError(ErrorInfo::new(ErrorKind::Unavailable, "the request took too long")).into_response(),
    }
}

fn no_route(request: &Request) -> ApiError {
    let message = format!("there is nothing at {}", request.uri().path());
    ApiError(ErrorInfo::new(ErrorKind::NotFound, message).with_hint("see /openapi.json for what there is"))
}

fn wrong_method(request: &Request) -> Response {
    let message = format!("{} is not possible on {}", request.method(), request.uri().path());
    let error = ErrorInfo::new(ErrorKind::Invalid, message).with_hint("see /openapi.json for what there is");
    let mut response = ApiError(error).into_response();
    *response.status_mut() = axum::http::StatusCode::METHOD_NOT_ALLOWED;
    response
}
