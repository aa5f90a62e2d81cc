//! What is between the outside and what works: the server of VHDs, the API, and what both need.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::ServeError;
use super::config::Config;
use super::confine::ControlSocket;
use super::daemon::{Daemon, Listeners, UsableDisk, system};
use super::host::DaemonHost;
use super::memory::Memory;
use super::takeover::TakeoverError;
use super::views::ViewDir;
use super::works::Works;
use crate::control::broker::Rights;
use crate::control::error_chain;
use crate::control::events::EventLog;
use crate::control::http::{self, Api, Bound};
use crate::control::owner_thread::OwnerSender;
use crate::control::service::{self, Problems};
use crate::control::stats::Sampler;
use crate::disk::file::FileDisk;
use crate::disk::pool::OpenPool;
use crate::placement::record::VhdRecord;
use crate::shared::VhdState;
use crate::store::thread::StoreHandle;
use crate::vhost_user::{HeldVhd, VhostUserServer};

/// What is there before the API is.
pub struct Front {
    pub control: ControlSocket,
    pub rights: Rights,
    pub pool: OpenPool<FileDisk>,
    pub disks: Vec<UsableDisk>,
    pub server: Arc<VhostUserServer>,
    pub problems: Arc<Problems>,
    pub kept: Option<Arc<ViewDir>>,
    pub memory: Memory,
    pub uuid: Uuid,
}

/// A VHD of the table.
type Vhd = (VhdRecord, Arc<VhdState>);

/// Everything is there that could be missing; nobody is heard yet.
pub struct Ready {
    /// Its server takes VHDs.
    pub server: Arc<VhostUserServer>,
    /// The path of the control socket.
    pub control: ControlSocket,
    problems: Arc<Problems>,
    rights: Rights,
    kept: Option<Arc<ViewDir>>,
    events: Arc<EventLog>,
    uuid: Uuid,
    listeners: Listeners,
    bound: Bound,
    metrics: Option<Bound>,
    runtime: Runtime,
    host: Arc<DaemonHost>,
    api: Api,
    takeovers: mpsc::Receiver<UnixStream>,
    sampler: Sampler,
}

impl Front {
    /// Makes the API, which nobody hears yet.
    ///
    /// # Errors
    /// The system has no more of something.
    pub fn prepare(
        self,
        bound: Bound,
        metrics: Option<Bound>,
        owner: &OwnerSender,
        store: &StoreHandle,
        config: &Config,
    ) -> Result<Ready, ServeError> {
        let Front { control, rights, pool, disks, server, problems, kept, memory, uuid } = self;
        let Memory { events, stats, policy } = memory;
        let listeners = Listeners {
            control: bound.try_clone().map_err(system("keep the control socket"))?,
            metrics: metrics
                .as_ref()
                .map(Bound::try_clone)
                .transpose()
                .map_err(system("keep the socket for metrics"))?,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("spanblk-api")
            .enable_all()
            .build()
            .map_err(system("start the threads of the API"))?;
        let host =
            DaemonHost::new(pool, disks, owner.clone(), store.clone(), Arc::clone(&server), Arc::clone(&problems));
        let host = Arc::new(host.with_paths(Arc::clone(&rights.disks)).with_views(kept.clone()));
        let sampler = Sampler::start(Arc::clone(&stats), owner.clone(), store.clone())
            .map_err(system("start the thread that takes samples"))?;
        let (asked, takeovers) = mpsc::channel(1);
        let api = Api {
            owner: owner.link(),
            host: host.clone(),
            events: Arc::clone(&events),
            socket_dir: config.socket_dir.clone(),
            changing_disks: Arc::default(),
            takeovers: asked,
            stats,
            policy,
            changing_policy: Arc::default(),
            placing: Arc::default(),
        };
        Ok(Ready {
            server,
            control,
            problems,
            rights,
            kept,
            events,
            uuid,
            listeners,
            bound,
            metrics,
            runtime,
            host,
            api,
            takeovers,
            sampler,
        })
    }
}

impl Ready {
    /// Has the server take what a daemon before has held; it is heard once the server goes on. Returns the VHDs of which nothing was held.
    ///
    /// # Errors
    /// One of them cannot be gone on with, and `is_another` process could.
    pub fn go_on_with(
        &self,
        vhds: Vec<Vhd>,
        held: &mut HashMap<Uuid, HeldVhd>,
        is_another: bool,
    ) -> Result<Vec<Vhd>, ServeError> {
        let mut others = Vec::new();
        let lacking = |what: String, reason: String| {
            log::error!("{what} cannot be gone on with: {reason}");
            if is_another { Err(TakeoverError::Lacking { what, reason }) } else { Ok(()) }
        };
        for (record, state) in vhds {
            match held.remove(&record.uuid) {
                None => others.push((record, state)),
                Some(one) => {
                    if let Err(error) = self.server.add_held(service::endpoint(&record, &state), one) {
                        lacking(format!("VHD '{}'", record.name), error_chain(&error))?;
                        // With a new socket, once the old one has gone.
                        others.push((record, state));
                    }
                }
            }
        }
        Ok(others)
    }

    /// VHDs that were deleted while they were being held: they are done with.
    pub fn drop_deleted(&self, deleted: HashMap<Uuid, HeldVhd>) {
        for (vhd, held) in deleted {
            log::info!("VHD {vhd} was deleted while its frontends were being handed over");
            let (path, identity) = held.socket();
            self.rights.sockets.remove(path, identity);
        }
    }

    /// Serves a VHD. One whose socket cannot be made must not keep the others from being served.
    pub fn serve(&self, record: &VhdRecord, state: &Arc<VhdState>) {
        service::serve_vhd(&self.server, &self.problems, record, state);
    }

    /// The API answers from now on.
    pub fn open(self, works: Works) -> Daemon {
        let Ready {
            server,
            control,
            rights,
            kept,
            events,
            uuid,
            listeners,
            bound,
            metrics,
            runtime,
            host,
            api,
            sampler,
            ..
        } = self;
        let changing_disks = Arc::clone(&api.changing_disks);
        let stop_api = start_api(&runtime, api, bound, metrics);
        Daemon {
            pool: uuid,
            control,
            listeners,
            rights,
            runtime,
            stop_api,
            changing_disks,
            takeovers: self.takeovers,
            server,
            works,
            sampler,
            host,
            events,
            kept,
        }
    }
}

fn start_api(runtime: &Runtime, api: Api, control: Bound, metrics: Option<Bound>) -> watch::Sender<bool> {
    let (stop, stopped) = watch::channel(false);
    let (following, mut ends) = (api.clone(), stopped.clone());
    runtime.spawn(async move {
        tokio::select! {
            () = http::remove_replaced(following) => {}
            _ = ends.wait_for(|ends| *ends) => {}
        }
    });
    let (looking, mut ends) = (api.clone(), stopped.clone());
    runtime.spawn(async move {
        tokio::select! {
            () = http::run_policy(looking) => {}
            _ = ends.wait_for(|ends| *ends) => {}
        }
    });
    let (events, mut ends) = (Arc::clone(&api.events), stopped.clone());
    runtime.spawn(async move {
        tokio::select! {
            () = events.keep_on() => {}
            _ = ends.wait_for(|ends| *ends) => {}
        }
    });
    runtime.spawn(http::serve(control, http::router(api.clone()), stopping(stopped.clone())));
    if let Some(metrics) = metrics {
        runtime.spawn(http::serve(metrics, http::metrics_router(api), stopping(stopped)));
    }
    stop
}

async fn stopping(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, and the daemon with it.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}
