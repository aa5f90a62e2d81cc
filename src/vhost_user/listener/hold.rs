//! Holding a VHD, and going on with one that another server has held.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::net::UnixListener;
use tokio::sync::watch;
use uuid::Uuid;

use super::{Entry, Vhd, ended};
use crate::base::clock;
use crate::vhost_user::connection::Session;
use crate::vhost_user::device::HeldParts;
use crate::vhost_user::error::DeviceError;
use crate::vhost_user::held::{FrontendDescriptors, HeldError, HeldFrontend, HeldState, HeldTurn, Inside};
use crate::vhost_user::hold::{self, Hold, HoldFault, Phase};
use crate::vhost_user::hub::Hub;
use crate::vhost_user::server::Frontend;
use crate::vhost_user::socket::SocketPlace;
use crate::vhost_user::turn::FrontendId;

/// All of a VHD that was held but its path.
pub(in crate::vhost_user) struct Handed {
    inside: Inside,
    uuid: Uuid,
    writeback: bool,
    owes_flush: bool,
    told_size: u64,
    connections: u64,
    refused: u64,
    faults: u64,
    reactors: u16,
    turn: HeldTurn,
    frontends: Vec<(HeldFrontend, FrontendDescriptors)>,
    pub(in crate::vhost_user) listener: OwnedFd,
}

impl Handed {
    /// With the path of the socket.
    pub(in crate::vhost_user) fn at(self, (path, identity, socket): SocketPlace) -> super::HeldVhd {
        let (frontends, descriptors) = self.frontends.into_iter().unzip();
        let state = HeldState {
            vhd: self.uuid,
            path,
            identity,
            socket,
            writeback: self.writeback,
            owes_flush: self.owes_flush,
            told_size: self.told_size,
            connections: self.connections,
            refused: self.refused,
            faults: self.faults,
            reactors: self.reactors,
            turn: self.turn,
            frontends,
        };
        super::HeldVhd { state, listener: self.listener, frontends: descriptors, inside: Some(self.inside) }
    }
}

/// A frontend that another server has held.
pub(in crate::vhost_user) struct Resumed {
    id: FrontendId,
    frontend: Frontend,
    socket: UnixStream,
    session: Session,
}

impl Entry {
    /// Pauses all connections, and says so. Nobody is accepted meanwhile. The listening socket, if somebody else goes on with it.
    pub(super) async fn hold(
        &mut self,
        hold: &Arc<Hold>,
        listener: &UnixListener,
        phase: &mut watch::Receiver<Phase>,
    ) -> Option<OwnedFd> {
        let id = self.vhd.id();
        let socket = match listener.as_fd().try_clone_to_owned() {
            Ok(socket) => socket,
            Err(error) => {
                hold.report(id, Err(HoldFault::Descriptor(error)));
                hold::is_over(hold, phase).await;
                return None;
            }
        };
        let (mut paused, mut told) = (HashSet::new(), false);
        loop {
            if !told && self.connected.iter().all(|connected| paused.contains(&connected.id.0)) {
                // One that waits until another one, which is gone, is noticed to be, can do so for a few milliseconds only.
                hold.report(id, if self.successor_is_there() { Err(HoldFault::Busy) } else { Ok(()) });
                told = true;
            }
            tokio::select! {
                biased;
                is_handed_over = hold::is_over(hold, phase) => return is_handed_over.then_some(socket),
                Some(report) = self.paused.recv() => match report.result {
                    // One of an earlier attempt.
                    _ if !Arc::ptr_eq(hold, &report.hold) => {}
                    Ok(()) => {
                        paused.insert(report.id.0);
                    }
                    Err(fault) => {
                        told = true;
                        hold.report(id, Err(fault));
                    }
                },
                // One that has left; or that has heard before us that it is over.
                Some(gone) = ended(&mut self.serving) => self.end(gone),
            }
        }
    }

    /// Takes the VHD apart. All connections are paused, and hand over what they have.
    pub(super) async fn hand_over(mut self, listener: OwnedFd) -> Handed {
        while let Some(gone) = ended(&mut self.serving).await {
            self.end(gone);
        }
        let (turn, seats) = self.vhd.turn.hand_over(clock::now());
        let frontends = seats.into_iter().map(|seat| {
            let at = self.handed.iter().position(|(id, _)| id.0 == seat.id).expect("who has not left has paused");
            let HeldParts { state: device, descriptors } = *self.handed.swap_remove(at).1;
            let at = self.connected.iter().position(|connected| connected.id.0 == seat.id).expect("as above");
            let socket = self.connected.swap_remove(at).socket.into();
            (HeldFrontend { seat, device }, FrontendDescriptors { socket, device: descriptors })
        });
        let frontends: Vec<_> = frontends.collect();
        let vhd = &self.vhd;
        let inside = Inside { vhd: Arc::clone(&vhd.state), frontends: frontends.len() };
        vhd.state.door.set_waiting(None);
        Handed {
            inside,
            uuid: vhd.state.settings.uuid,
            writeback: vhd.writeback_field(),
            owes_flush: vhd.owes_flush(),
            told_size: vhd.told_size.load(Ordering::SeqCst),
            connections: vhd.counters.connections.load(Ordering::Relaxed),
            refused: vhd.counters.refused.load(Ordering::Relaxed),
            faults: vhd.counters.faults.load(Ordering::Relaxed),
            reactors: self.hub.count(),
            turn,
            frontends,
            listener,
        }
    }

    /// Serves a frontend that another server has held.
    pub(super) fn resume(&mut self, Resumed { id, frontend, socket, session }: Resumed) {
        let Frontend { pid, uid, .. } = frontend;
        self.vhd.log_coming(&format!("process {pid} (user {uid}) goes on, and was connected to another daemon before"));
        self.serve(session, id, frontend, socket);
    }
}

impl Vhd {
    /// Becomes what another one was when it was held, and takes its frontends over. `is_waiting`: nobody goes on with them yet, so that it
    /// is better to fail than to part from one that has done nothing.
    pub(in crate::vhost_user) fn take_over(
        self: &Arc<Vhd>,
        hub: &Arc<Hub>,
        state: HeldState,
        descriptors: Vec<FrontendDescriptors>,
        is_waiting: bool,
    ) -> Result<Vec<Resumed>, HeldError> {
        self.writeback_field.store(state.writeback, Ordering::SeqCst);
        self.owe_flush(state.owes_flush);
        self.told_size.store(state.told_size, Ordering::SeqCst);
        let counters = &self.counters;
        counters.connections.store(state.connections, Ordering::Relaxed);
        counters.refused.store(state.refused, Ordering::Relaxed);
        counters.faults.store(state.faults, Ordering::Relaxed);
        let seats = state.frontends.iter().map(|frontend| &frontend.seat);
        self.turn.take_over(&state.turn, seats, clock::now());
        let mut resumed = Vec::new();
        for (frontend, descriptors) in state.frontends.into_iter().zip(descriptors) {
            let (id, pid) = (FrontendId(frontend.seat.id), frontend.seat.pid);
            let taken = match self.state.door.enter() {
                true => self.take_over_one(hub, frontend, descriptors, state.reactors),
                false => {
                    resumed.iter().for_each(|_| self.state.door.leave());
                    return Err(HeldError::Resizing);
                }
            };
            match taken {
                Ok(taken) => resumed.push(taken),
                Err(error) if error.is_frontends_doing() || !is_waiting => self.part_from(pid, id, &error),
                Err(error) => {
                    (0..=resumed.len()).for_each(|_| self.state.door.leave());
                    return Err(HeldError::Device { pid, source: Box::new(error) });
                }
            }
        }
        Ok(resumed)
    }

    fn take_over_one(
        self: &Arc<Vhd>,
        hub: &Arc<Hub>,
        HeldFrontend { seat, device }: HeldFrontend,
        descriptors: FrontendDescriptors,
        reactors: u16,
    ) -> Result<Resumed, DeviceError> {
        let id = FrontendId(seat.id);
        let frontend = Frontend { pid: seat.pid, uid: seat.uid, since: seat.since };
        let socket = UnixStream::from(descriptors.socket);
        let stream = socket.try_clone().map_err(DeviceError::Duplicate)?;
        let session = Session::take_over(stream, id, self, Arc::clone(hub), device.said);
        let session = session.map_err(DeviceError::Conversation)?;
        let parts = HeldParts { state: device, descriptors: descriptors.device };
        session.take_over_device(parts, reactors == hub.count())?;
        Ok(Resumed { id, frontend, socket, session })
    }

    fn part_from(&self, pid: u32, id: FrontendId, error: &DeviceError) {
        self.counters.faults.fetch_add(1, Ordering::Relaxed);
        self.state.door.leave();
        self.turn.leave(id, false);
        if let Some(held_back) = self.faults.pass(clock::now()) {
            let name = self.name();
            log::warn!("VHD {name}: process {pid} is disconnected: {error} ({held_back} more faults not logged)");
        }
    }
}
