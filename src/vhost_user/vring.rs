//! The settings of one virtqueue, as a frontend makes them message by message.
//!
//! A ring is *started* from the moment it has a kick descriptor (or says that it wants none) until GET_VRING_BASE, and
//! *enabled* by SET_VRING_ENABLE, or from the start where protocol features were not negotiated. A reactor serves it while it
//! is both. The specification would have it started by the first kick; to look at a ring that nobody kicked is harmless,
//! and finds what was made available before a reconnect.

use std::os::fd::OwnedFd;

use vm_memory::{GuestAddress, GuestMemory, Permissions};

use super::error::DeviceError;
use super::hub::Place;
use super::memory::Memory;
use crate::base::ids::ReactorId;
use crate::base::limits::QUEUE_SIZE_MAX;
use crate::reactor::messages::RingAddresses;

/// How the guest tells that it has made something available.
pub(super) enum Kick {
    /// It does not: the ring is polled.
    Polled,
    /// By an eventfd.
    Eventfd(OwnedFd),
}

/// One virtqueue.
#[derive(Default)]
pub(super) struct Vring {
    /// Entries; 0 until the frontend says.
    pub(super) size: u16,
    /// Where it is, in the frontend's addresses.
    pub(super) user: Option<RingAddresses>,
    /// The guest physical address under which writes to its used ring are logged, if they are.
    pub(super) log: Option<u64>,
    /// Next available index to pop.
    pub(super) base: u16,
    /// Set while the ring is started.
    pub(super) kick: Option<Kick>,
    /// To interrupt the guest.
    pub(super) call: Option<OwnedFd>,
    /// To tell the frontend that the ring is broken.
    pub(super) error: Option<OwnedFd>,
    /// What SET_VRING_ENABLE said last.
    pub(super) enabled: Option<bool>,
    /// A reactor has served it with the in-flight region that is set, so that what that says is known to be ours.
    pub(super) tracked: bool,
    /// It has written something that the dirty log had no bit for.
    pub(super) is_unlogged: bool,
    /// Its guest has broken it, and nobody serves it since it was paused. It runs again after what stops a ring.
    pub(super) is_broken: bool,
    /// Which reactor served it before it was paused.
    pub(super) reactor: Option<ReactorId>,
    /// Which reactor serves it now.
    pub(super) place: Option<Place>,
}

impl Vring {
    pub(super) fn set_size(&mut self, entries: u32) -> Result<(), DeviceError> {
        let legal = u16::try_from(entries).ok().filter(|size| size.is_power_of_two() && *size <= QUEUE_SIZE_MAX);
        self.size = legal.ok_or(DeviceError::QueueSize(entries))?;
        Ok(())
    }

    /// Whether everything is there that a reactor needs, and it is not broken.
    pub(super) fn wants_to_run(&self, enabled_by_default: bool) -> bool {
        let complete = self.size > 0 && self.user.is_some() && self.kick.is_some() && !self.is_broken;
        complete && self.enabled.unwrap_or(enabled_by_default)
    }

    /// Its place in guest memory; every part must be there as a whole.
    pub(super) fn guest_addresses(&self, index: usize, memory: &Memory) -> Result<RingAddresses, DeviceError> {
        let user = self.user.expect("asked of a ring that wants to run");
        let entries = usize::from(self.size);
        let find = |what, address, len: usize, access| {
            let guest = memory.guest_address(address);
            guest
                .filter(|guest| memory.map().check_range(GuestAddress(*guest), len, access))
                .ok_or(DeviceError::RingAddress { index, what, address })
        };
        Ok(RingAddresses {
            descriptors: find("the descriptor table", user.descriptors, 16 * entries, Permissions::Read)?,
            available: find("the available ring", user.available, 6 + 2 * entries, Permissions::Read)?,
            used: find("the used ring", user.used, 6 + 8 * entries, Permissions::Write)?,
        })
    }

    /// A copy of a descriptor, for the reactor.
    pub(super) fn duplicate(fd: Option<&OwnedFd>) -> Result<Option<OwnedFd>, DeviceError> {
        fd.map(OwnedFd::try_clone).transpose().map_err(DeviceError::Duplicate)
    }

    /// The kick descriptor for the reactor; `None` if the ring is polled.
    pub(super) fn duplicate_kick(&self) -> Result<Option<OwnedFd>, DeviceError> {
        match &self.kick {
            Some(Kick::Eventfd(fd)) => Vring::duplicate(Some(fd)),
            Some(Kick::Polled) | None => Ok(None),
        }
    }
}
