//! A VHD that has been held: its socket, its frontends, and what they have negotiated, for whoever serves it next.
//!
//! Plain data, with the descriptors beside it in the order in which the data needs them: first the listening socket; then, frontend by
//! frontend, its connection, its memory region by region, in-flight region, dirty log, log call, backend channel, and of each virtqueue kick,
//! call and error. What another process hands over is checked here and where it is used; it may be of another version.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketType, sockopt};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::device::PROTOCOL_FEATURES;
use super::socket::{SocketIdentity, SocketSettings};
use super::turn::FRONTENDS_MAX;
use crate::base::limits::{MEM_SLOTS_MAX, QUEUE_SIZE_MAX, QUEUES_MAX};
use crate::shared::VhdState;

/// What is known of a VHD that is held; see [`HeldVhd::into_parts`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldState {
    pub(super) vhd: Uuid,
    pub(super) path: PathBuf,
    pub(super) identity: SocketIdentity,
    /// Mode and owner of the path.
    pub(super) socket: SocketSettings,
    /// The `writeback` field of the configuration space.
    pub(super) writeback: bool,
    pub(super) owes_flush: bool,
    pub(super) told_size: u64,
    pub(super) connections: u64,
    pub(super) refused: u64,
    pub(super) faults: u64,
    /// How many reactors there were: only among as many their numbers mean something.
    pub(super) reactors: u16,
    pub(super) turn: HeldTurn,
    /// In the order in which they came.
    pub(super) frontends: Vec<HeldFrontend>,
}

/// Whose turn it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeldTurn {
    pub(super) active: Option<u64>,
    pub(super) shown: Option<u64>,
    pub(super) stopped: Option<HeldStop>,
    pub(super) next: u64,
}

/// Who has stopped its rings, and for how long nobody else may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeldStop {
    pub(super) by: u64,
    pub(super) left_ns: u64,
}

/// A connection, and who is at its other end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeldFrontend {
    pub(super) seat: HeldSeat,
    pub(super) device: HeldDevice,
}

/// A frontend's place among those of its VHD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeldSeat {
    pub(super) id: u64,
    pub(super) pid: u32,
    pub(super) uid: u32,
    pub(super) since: u64,
    /// When its process started; `None` if that cannot be told from others.
    pub(super) start: Option<u64>,
    /// How long it may still take to start its rings, if it has come back.
    pub(super) return_left_ns: u64,
    pub(super) waited: bool,
    pub(super) superseded: bool,
    /// It has stopped its rings on this connection. Left out where it has not: earlier versions do not know it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) has_stopped_here: bool,
}

/// What a frontend has negotiated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeldDevice {
    pub(super) active: bool,
    pub(super) was_active: bool,
    pub(super) said: Said,
    pub(super) acknowledged: Option<u64>,
    pub(super) writeback: bool,
    pub(super) size_read: Option<u64>,
    pub(super) memory: Vec<HeldRegion>,
    pub(super) inflight: Option<HeldInflight>,
    pub(super) log: Option<HeldLog>,
    pub(super) has_log_call: bool,
    pub(super) has_channel: bool,
    pub(super) rings: Vec<HeldRing>,
}

/// What a frontend has asked for and said, as the protocol library keeps it: that forgets nothing at RESET_DEVICE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Said {
    /// It has asked which features there are.
    pub(super) asked: bool,
    /// SET_FEATURES.
    pub(super) features: Option<u64>,
    /// SET_PROTOCOL_FEATURES.
    pub(super) protocol: Option<u64>,
}

/// A region of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeldRegion {
    pub(super) guest: u64,
    pub(super) len: u64,
    pub(super) user: u64,
    pub(super) offset: u64,
}

/// An in-flight region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeldInflight {
    pub(super) offset: u64,
    pub(super) queues: u16,
    pub(super) queue_size: u16,
}

/// A dirty log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeldLog {
    pub(super) offset: u64,
    pub(super) size: u64,
}

/// How the guest of a ring that is started tells that it has made something available.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum HeldKick {
    Polled,
    Eventfd,
}

/// A virtqueue; nothing of it is in flight.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeldRing {
    pub(super) size: u16,
    /// Descriptor table, available ring, used ring, in the frontend's addresses.
    pub(super) user: Option<[u64; 3]>,
    pub(super) log: Option<u64>,
    pub(super) base: u16,
    pub(super) kick: Option<HeldKick>,
    pub(super) has_call: bool,
    pub(super) has_error: bool,
    pub(super) enabled: Option<bool>,
    pub(super) tracked: bool,
    pub(super) is_unlogged: bool,
    pub(super) is_broken: bool,
    /// Which reactor served it.
    pub(super) reactor: Option<u16>,
}

impl HeldDevice {
    /// Descriptors that belong to it.
    fn descriptors(&self) -> usize {
        let of_ring = |ring: &HeldRing| {
            let has_kick = ring.kick == Some(HeldKick::Eventfd);
            [has_kick, ring.has_call, ring.has_error].into_iter().filter(|has| *has).count()
        };
        let single = [self.inflight.is_some(), self.log.is_some(), self.has_log_call, self.has_channel];
        let single = single.into_iter().filter(|has| *has).count();
        self.memory.len() + single + self.rings.iter().map(of_ring).sum::<usize>()
    }

    fn queues(&self) -> u16 {
        // Too many are refused in any case.
        u16::try_from(self.rings.len()).unwrap_or(u16::MAX)
    }

    fn check(&self) -> Result<(), HeldError> {
        let size_is_legal = |size: u16| size == 0 || size.is_power_of_two() && size <= QUEUE_SIZE_MAX;
        let unknown = self.said.protocol.is_some_and(|protocol| protocol & !PROTOCOL_FEATURES.bits() != 0);
        let wrong = [
            (self.memory.len() > MEM_SLOTS_MAX, "memory regions"),
            (self.rings.is_empty() || self.rings.len() > QUEUES_MAX, "virtqueues"),
            (self.rings.iter().any(|ring| !size_is_legal(ring.size)), "a virtqueue's size"),
            (unknown, "protocol features"),
        ];
        let wrong = wrong.into_iter().find_map(|(is_wrong, what)| is_wrong.then_some(what));
        wrong.map_or(Ok(()), |what| Err(HeldError::Nonsense(what)))
    }
}

impl HeldState {
    fn check(&self) -> Result<(), HeldError> {
        let frontends = &self.frontends;
        let seats = || frontends.iter().map(|frontend| &frontend.seat);
        let is_there = |id: u64| seats().any(|seat| seat.id == id);
        let rings = || frontends.iter().flat_map(|frontend| &frontend.device.rings);
        let HeldTurn { active, stopped, next, .. } = &self.turn;
        let wrong = [
            (frontends.len() > FRONTENDS_MAX, "how many frontends there are"),
            (
                seats().any(|seat| seat.id >= *next || seats().filter(|other| other.id == seat.id).count() > 1),
                "a frontend",
            ),
            (active.is_some_and(|active| !is_there(active)), "the active frontend"),
            (stopped.is_some_and(|stop| !is_there(stop.by)), "the frontend that has stopped"),
            (
                frontends.iter().any(|frontend| frontend.device.active != (*active == Some(frontend.seat.id))),
                "whose turn it is",
            ),
            (frontends.iter().any(|frontend| Some(frontend.device.queues()) != self.queues()), "virtqueues"),
            (rings().any(|ring| ring.reactor.is_some_and(|reactor| reactor >= self.reactors)), "a virtqueue's reactor"),
            // One more with each frontend that comes.
            (*next > u64::from(u32::MAX), "how many frontends there were"),
        ];
        if let Some(what) = wrong.into_iter().find_map(|(is_wrong, what)| is_wrong.then_some(what)) {
            return Err(HeldError::Nonsense(what));
        }
        frontends.iter().try_for_each(|frontend| frontend.device.check())
    }

    /// Virtqueues of the device that frontends know; `None` if there is no frontend.
    pub(super) fn queues(&self) -> Option<u16> {
        self.frontends.first().map(|frontend| frontend.device.queues())
    }
}

/// The descriptors of a frontend: its connection, and those of its device.
#[derive(Debug)]
pub(super) struct FrontendDescriptors {
    pub(super) socket: OwnedFd,
    pub(super) device: Vec<OwnedFd>,
}

/// A VHD that nobody serves, with its socket and its frontends, which notice nothing as long as this exists. Dropped, it closes their
/// connections; the socket's path stays.
#[derive(Debug)]
pub struct HeldVhd {
    pub(super) state: HeldState,
    pub(super) listener: OwnedFd,
    pub(super) frontends: Vec<FrontendDescriptors>,
    /// `None`: another process has held it.
    pub(super) inside: Option<Inside>,
}

/// Frontends that are held are still in, as the owner of their VHD sees it: what it was asked before must not take anything from them.
pub(super) struct Inside {
    pub(super) vhd: Arc<VhdState>,
    pub(super) frontends: usize,
}

impl fmt::Debug for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inside").field("vhd", &self.vhd.id()).field("frontends", &self.frontends).finish()
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        (0..self.frontends).for_each(|_| self.vhd.door.leave());
    }
}

impl HeldVhd {
    /// Which VHD, as its record names it.
    #[must_use]
    pub fn vhd(&self) -> Uuid {
        self.state.vhd
    }

    /// The path of its socket, and which file that is.
    #[must_use]
    pub fn socket(&self) -> (&Path, SocketIdentity) {
        (&self.state.path, self.state.identity)
    }

    /// Frontends that are connected.
    #[must_use]
    pub fn frontends(&self) -> usize {
        self.frontends.len()
    }

    /// For another process: what is known, and the descriptors, whose order counts. The owner of the VHD must have ended: its frontends count
    /// as gone from here on.
    #[must_use]
    pub fn into_parts(self) -> (HeldState, Vec<OwnedFd>) {
        let of_frontend = |FrontendDescriptors { socket, device }| std::iter::once(socket).chain(device);
        let frontends = self.frontends.into_iter().flat_map(of_frontend);
        (self.state, std::iter::once(self.listener).chain(frontends).collect())
    }

    /// Takes over what another process has held, after [`HeldVhd::into_parts`].
    ///
    /// # Errors
    /// The parts do not fit together.
    pub fn from_parts(state: HeldState, descriptors: Vec<OwnedFd>) -> Result<HeldVhd, HeldError> {
        state.check()?;
        let counts: Vec<usize> = state.frontends.iter().map(|frontend| frontend.device.descriptors()).collect();
        let (given, needed) = (descriptors.len(), 1 + counts.iter().map(|count| 1 + count).sum::<usize>());
        if given != needed {
            return Err(HeldError::Descriptors { given, needed });
        }
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().expect("counted just now");
        let listener = next();
        let take = |count: &usize| {
            let socket = next();
            FrontendDescriptors { socket, device: (0..*count).map(|_| next()).collect() }
        };
        let frontends: Vec<FrontendDescriptors> = counts.iter().map(take).collect();
        check_socket(&listener, true)?;
        frontends.iter().try_for_each(|frontend| check_socket(&frontend.socket, false))?;
        Ok(HeldVhd { state, listener, frontends, inside: None })
    }
}

fn check_socket(socket: &OwnedFd, listens: bool) -> Result<(), HeldError> {
    let about = || {
        let stream = sockopt::socket_type(socket)? == SocketType::STREAM;
        let local = sockopt::socket_domain(socket)? == AddressFamily::UNIX;
        Ok::<_, rustix::io::Errno>(stream && local && sockopt::socket_acceptconn(socket)? == listens)
    };
    if about().unwrap_or(false) { Ok(()) } else { Err(HeldError::NotASocket { listens }) }
}

/// Why a VHD that was held cannot be served here.
#[derive(Debug, thiserror::Error)]
pub enum HeldError {
    /// Wrong number of descriptors.
    #[error(
        "{given} descriptors came with a VHD that was held, and {needed} belong to it: take over from a daemon of the same version"
    )]
    Descriptors {
        /// How many came.
        given: usize,
        /// How many belong to it.
        needed: usize,
    },
    /// What is said of something cannot be.
    #[error("what is said of {0} of a VHD that was held cannot be: take over from a daemon of the same version")]
    Nonsense(&'static str),
    /// A descriptor is something else.
    #[error("a descriptor is not {}", if *listens { "a listening socket" } else { "a connection of a frontend" })]
    NotASocket {
        /// It was to be one that listens.
        listens: bool,
    },
    /// It is another VHD.
    #[error("VHD {held} was held, and {served} is to be served")]
    OtherVhd {
        /// Which was held.
        held: Uuid,
        /// Which is to be served.
        served: Uuid,
    },
    /// The VHD is being resized.
    #[error("the VHD is being resized: try again when that is done")]
    Resizing,
    /// The device of a frontend cannot be as it was, which lies with this daemon or its host, and nobody goes on with anything yet.
    #[error("the device of process {pid} cannot be as it was: {source}")]
    Device {
        /// The frontend.
        pid: u32,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The system refuses.
    #[error("a socket that was held cannot be used: {0}")]
    Socket(#[source] io::Error),
}
