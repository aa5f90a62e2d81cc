//! Why a quota or reservation cannot be had, or what a quota is against.

use super::ErrorKind;

/// See the module. Sizes are bytes of slots, `subject` is a VHD or VM with its name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are what the message says they are")]
pub enum CapacityError {
    /// Nothing is not a size.
    #[error("the {what} of {subject} cannot be 0: give 'none' for no {what}")]
    Zero { subject: String, what: &'static str },
    /// The reservation could never be used.
    #[error(
        "{subject} would have a quota of {quota} bytes and a reservation of {reservation} bytes, which it could not use: raise the quota, \
         or lower the reservation"
    )]
    BeyondQuota { subject: String, quota: u64, reservation: u64 },
    /// The reservation is more than the VHD can ever place.
    #[error(
        "{subject} would have a reservation of {reservation} bytes, and it can place {most} bytes at most ({size} bytes in whole extents, \
         times {replicas}: its replicas): lower the reservation (`--reservation`), or let it be larger (`spanblk vhd resize`)"
    )]
    BeyondSize { subject: String, reservation: u64, size: u64, replicas: u8, most: u64 },
    /// The VHDs of the VM could not use what they have reserved.
    #[error(
        "{subject} would have a quota of {quota} bytes, and its VHDs have reserved {reserved} bytes for themselves and use {used} bytes; \
         with what is reserved and not used that comes to {needed} bytes: raise the quota, or lower their reservations \
         (`spanblk vhd set NAME --reservation SIZE|none`)"
    )]
    QuotaBelowVhds { subject: String, quota: u64, reserved: u64, used: u64, needed: u64 },
    /// The quota is too small for that.
    #[error(
        "that takes {needed} bytes of slots, and {subject} may place {quota} bytes, of which {used} are used or reserved: raise its quota \
         ({command} --quota SIZE|none), or ask for less"
    )]
    QuotaExceeded { subject: String, needed: u64, used: u64, quota: u64, command: String },
    /// The reservation has no room.
    #[error(
        "the reservation of {subject} does not fit: {needed} bytes have to be kept free for it, and there is room for {room} (disk \
         '{disk}' has the least, {disk_room} bytes); reserve less, put it on more or other disks, or lower other reservations"
    )]
    NoRoomToReserve { subject: String, needed: u64, room: u64, disk: String, disk_room: u64 },
}

impl CapacityError {
    /// What kind of refusal it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            CapacityError::Zero { .. } => ErrorKind::Invalid,
            CapacityError::BeyondQuota { .. }
            | CapacityError::BeyondSize { .. }
            | CapacityError::QuotaBelowVhds { .. } => ErrorKind::Conflict,
            CapacityError::QuotaExceeded { .. } | CapacityError::NoRoomToReserve { .. } => ErrorKind::NoRoom,
        }
    }

    /// A stable word for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            CapacityError::Zero { .. } => "invalid_capacity",
            CapacityError::BeyondQuota { .. } => "reservation_beyond_quota",
            CapacityError::BeyondSize { .. } => "reservation_beyond_size",
            CapacityError::QuotaBelowVhds { .. } => "quota_below_reservations",
            CapacityError::QuotaExceeded { .. } => "quota_exceeded",
            CapacityError::NoRoomToReserve { .. } => "no_room_to_reserve",
        }
    }
}
