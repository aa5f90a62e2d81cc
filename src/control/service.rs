//! The service thread: keeps the sockets of VHDs in step with the owner, and hands out the owner's answers.
//!
//! Making a socket may ask a name service for its owner, which may take long; the owner must not wait for that. Answers go
//! through here, too, so that a VHD's socket is there when its creation is answered.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use tokio::sync::oneshot;

use super::error_chain;
use crate::base::ids::VhdId;
use crate::owner::command::{CommandError, Reply};
use crate::placement::record::{Layout, VhdRecord};
use crate::shared::VhdState;
use crate::vhost_user::{ServerError, SocketSettings, VhdEndpoint, VhostUserServer};

/// Where the answer of a command goes.
pub type Answer = oneshot::Sender<Result<Reply, CommandError>>;

/// How long a deleted VHD's rings may take to drain before that is logged.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

/// What there is to do.
pub enum Service {
    /// The owner answered a command.
    Answer {
        /// Where to.
        answer: Answer,
        /// What.
        result: Result<Reply, CommandError>,
    },
    /// The record of a served VHD changed.
    Changed(Box<VhdRecord>),
    /// A VHD is gone.
    Close(VhdId),
    /// Leave the loop.
    Stop,
}

/// Starts the thread.
///
/// # Errors
/// No thread.
pub fn start(server: Arc<VhostUserServer>, problems: Arc<Problems>) -> io::Result<(Sender<Service>, JoinHandle<()>)> {
    let (sender, queue) = crossbeam_channel::unbounded();
    let work = move || run(&server, &problems, &queue);
    let thread = std::thread::Builder::new().name("spanblk-service".to_owned()).spawn(work)?;
    Ok((sender, thread))
}

fn run(server: &VhostUserServer, problems: &Problems, queue: &Receiver<Service>) {
    while let Ok(service) = queue.recv() {
        match service {
            Service::Answer { answer, result } => {
                if let Ok(Reply::Vhd { vhd, .. }) = &result
                    && vhd.ready
                    && server.status(vhd.record.id).is_none()
                {
                    serve_vhd(server, problems, &vhd.record, &vhd.state);
                }
                // Whoever asked may have given up.
                let _ = answer.send(result);
            }
            Service::Changed(record) => follow(server, problems, &record),
            Service::Close(vhd) => {
                problems.solved(vhd);
                close(server, vhd);
            }
            Service::Stop => return,
        }
    }
}

/// Makes the socket of a VHD, or notes why that is not possible. The VHD itself is fine then, and asking for it tries again.
pub fn serve_vhd(server: &VhostUserServer, problems: &Problems, record: &VhdRecord, state: &Arc<VhdState>) {
    match server.add_vhd(endpoint(record, state)) {
        Ok(_) => problems.solved(record.id),
        // Whoever goes on with all VHDs reads of it in the record.
        Err(ServerError::HandedOver) => {}
        Err(error) => {
            let text = error_chain(&error);
            // A VHD may be asked for again and again: the same problem is logged once.
            if problems.note(record.id, &text) {
                log::error!("VHD '{}' is not served: {text}", record.name);
            }
        }
    }
}

/// Why VHDs are not served.
#[derive(Debug, Default)]
pub struct Problems(Mutex<HashMap<VhdId, String>>);

impl Problems {
    /// Why the VHD is not served; `None` if it is.
    #[must_use]
    pub fn of(&self, vhd: VhdId) -> Option<String> {
        self.lock().get(&vhd).cloned()
    }

    /// Whether the problem is a new one.
    fn note(&self, vhd: VhdId, problem: &str) -> bool {
        self.lock().insert(vhd, problem.to_owned()).as_deref() != Some(problem)
    }

    fn solved(&self, vhd: VhdId) {
        self.lock().remove(&vhd);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VhdId, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A VHD as the vhost-user server wants it.
#[must_use]
pub fn endpoint(record: &VhdRecord, state: &Arc<VhdState>) -> VhdEndpoint {
    let extent = state.settings.geometry.extent_size();
    let width = match &record.layout {
        Layout::Isolated { .. } => 1,
        Layout::Spanned { disks, .. } => disks.len() as u64,
    };
    VhdEndpoint {
        state: Arc::clone(state),
        name: record.name.clone(),
        queues: record.queues,
        optimal_io_size: extent * width,
        writeback: record.writeback,
        socket: socket_settings(record),
    }
}

fn socket_settings(record: &VhdRecord) -> SocketSettings {
    SocketSettings { mode: record.socket_mode, owner: record.socket_owner.clone() }
}

fn follow(server: &VhostUserServer, problems: &Problems, record: &VhdRecord) {
    // A guest that learns of its new size late is not told an error: the size is there.
    let _ = server.tell_size(record.id);
    // Served later, it has them from the beginning.
    let _ = server.set_queues(record.id, record.queues);
    let renamed = server.rename(record.id, &record.name).map(drop);
    let set = renamed.and_then(|()| server.set_socket(record.id, &socket_settings(record)));
    match set {
        // A VHD that could not be served before is tried again when it is asked for.
        Err(ServerError::NotServed(_) | ServerError::HandedOver) => {}
        Ok(()) => problems.solved(record.id),
        Err(error) => {
            let text = error_chain(&error);
            if problems.note(record.id, &text) {
                log::error!("the socket of VHD '{}' does not follow its settings: {text}", record.name);
            }
        }
    }
}

fn close(server: &VhostUserServer, vhd: VhdId) {
    let Ok(removal) = server.remove_vhd(vhd) else { return };
    // Its requests fail by themselves; only for the log.
    let patience = std::thread::Builder::new().name("spanblk-close".to_owned()).spawn(move || {
        if !removal.wait(DRAIN_PATIENCE) {
            log::warn!("VHD #{} is deleted, but its requests have not ended: a host disk hangs", vhd.0);
        }
    });
    if let Err(error) = patience {
        log::debug!("cannot watch VHD #{} end: {error}", vhd.0);
    }
}
