//! Holding all VHDs at the same time, so that somebody else can go on with their frontends (ordering rule 11).
//!
//! In two steps. First everything is *paused*: connections finish the message that is being handled, drain their rings, and do whatever
//! could fail later. What frontends send meanwhile stays in their sockets, and who connects waits in the listener's queue. Only
//! when all have paused, they are *handed over*, which cannot fail; otherwise all go on.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use tokio::sync::{mpsc, watch};

use super::device::HeldParts;
use super::turn::FrontendId;
use crate::base::clock::{self, Nanos};
use crate::base::ids::VhdId;

/// What a VHD's tasks are to do.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    Serving,
    /// Pause, say so, and wait for the next phase.
    Holding(Arc<Hold>),
    /// Only after all have paused.
    HandedOver,
    /// Out of service.
    Stopped,
}

/// One attempt to hold all VHDs.
#[derive(Debug)]
pub(super) struct Hold {
    /// What takes longer fails it.
    pub(super) until: Nanos,
    reports: Sender<(VhdId, Result<(), HoldFault>)>,
}

/// What VHDs say of it.
pub(super) type Reports = Receiver<(VhdId, Result<(), HoldFault>)>;

impl Hold {
    pub(super) fn new(at_most: Duration) -> (Arc<Hold>, Reports) {
        let (reports, answers) = crossbeam_channel::unbounded();
        (Arc::new(Hold { until: clock::now().after(at_most), reports }), answers)
    }

    /// All of a VHD is paused, or cannot be.
    pub(super) fn report(&self, vhd: VhdId, paused: Result<(), HoldFault>) {
        // Nobody listens to an attempt that has failed already.
        let _ = self.reports.send((vhd, paused));
    }

    /// Waits until all these VHDs are paused.
    pub(super) fn wait(&self, mut names: HashMap<VhdId, String>, reports: &Reports) -> Result<(), HoldError> {
        while !names.is_empty() {
            let left = Duration::from_nanos(self.until.since(clock::now()));
            let Ok((vhd, paused)) = reports.recv_timeout(left) else {
                let late = |(vhd, name)| NotHeld { vhd, name, fault: HoldFault::Busy };
                return Err(HoldError(names.into_iter().map(late).collect()));
            };
            let name = names.remove(&vhd).unwrap_or_default();
            if let Err(fault) = paused {
                return Err(HoldError(vec![NotHeld { vhd, name, fault }]));
            }
        }
        Ok(())
    }
}

/// What a connection says to its listener.
pub(super) struct Paused {
    pub(super) hold: Arc<Hold>,
    pub(super) id: FrontendId,
    pub(super) result: Result<(), HoldFault>,
}

/// How connections say so.
pub(super) type PausedSender = mpsc::UnboundedSender<Paused>;

/// How a conversation ended that did not go wrong.
pub(super) enum End {
    /// The frontend has left.
    Left,
    /// We have parted from it.
    Parted,
    /// Somebody else goes on with it.
    HandedOver(Box<HeldParts>),
}

/// What is to be done instead of serving.
pub(super) enum Asked {
    Hold(Arc<Hold>),
    Stop,
}

/// Returns when there is something else to do than to serve.
pub(super) async fn asked(phase: &mut watch::Receiver<Phase>) -> Asked {
    // If nobody can say so any more, it is over.
    let Ok(phase) = phase.wait_for(|phase| !matches!(phase, Phase::Serving)).await else { return Asked::Stop };
    match &*phase {
        Phase::Holding(hold) => Asked::Hold(Arc::clone(hold)),
        Phase::Serving | Phase::HandedOver | Phase::Stopped => Asked::Stop,
    }
}

/// Returns when a server that waits is to serve; false: it never will.
pub(super) async fn is_open(open: &mut watch::Receiver<bool>, phase: &mut watch::Receiver<Phase>) -> bool {
    tokio::select! {
        biased;
        open = open.wait_for(|open| *open) => open.is_ok(),
        _ = phase.wait_for(|phase| matches!(phase, Phase::Stopped)) => false,
    }
}

/// Returns when an attempt is over: whether it has succeeded.
pub(super) async fn is_over(hold: &Arc<Hold>, phase: &mut watch::Receiver<Phase>) -> bool {
    let is_it = |phase: &Phase| matches!(phase, Phase::Holding(other) if Arc::ptr_eq(hold, other));
    phase.wait_for(|phase| !is_it(phase)).await.is_ok_and(|phase| matches!(*phase, Phase::HandedOver))
}

/// Why a VHD cannot be held.
#[derive(Debug, thiserror::Error)]
pub enum HoldFault {
    /// Something does not come to an end.
    #[error("a request in flight, or a message of its frontend, takes too long (it may wait for room, or for a disk)")]
    Busy,
    /// No descriptor.
    #[error("a file descriptor cannot be duplicated: {0} (is the limit of open files too low?)")]
    Descriptor(#[source] io::Error),
    /// A virtqueue could not be started again.
    #[error("a virtqueue could not be started again: {0}")]
    Ring(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A VHD that cannot be held.
#[derive(Debug)]
pub struct NotHeld {
    /// Which.
    pub vhd: VhdId,
    /// Its name.
    pub name: String,
    /// Why not.
    pub fault: HoldFault,
}

/// Not all VHDs could be held, so that none is: everything goes on as before.
#[derive(Debug, thiserror::Error)]
#[error("not all frontends could be held, and all go on as before: {}", .0.iter().map(|vhd| format!("VHD {}: {}", vhd.name, vhd.fault)).collect::<Vec<_>>().join("; "))]
pub struct HoldError(pub Vec<NotHeld>);
