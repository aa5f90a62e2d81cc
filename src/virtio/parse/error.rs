//! What can be wrong with a chain, and what the guest is told of it.

use super::{HEADER_LEN, ID_LEN, StatusByte};
use crate::base::limits::{CHAIN_DESCRIPTORS_MAX, DISCARD_RANGES_MAX, REQUEST_LEN_MAX, SEGMENTS_MAX};
use crate::virtio::request::Status;

/// A rule that a chain breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum ParseError {
    /// Not even the first descriptor can be read.
    #[error("the chain has no readable descriptor table entry")]
    Empty,
    /// The chain ends where a descriptor says that another follows.
    #[error("the chain is broken: a loop, a bad index, a bad indirect table, or more than 4 GiB")]
    Truncated,
    /// The chain is longer than any queue.
    #[error("the chain has more than {CHAIN_DESCRIPTORS_MAX} descriptors")]
    TooManyDescriptors,
    /// The last descriptor is not device-writable.
    #[error("the chain has no status byte")]
    NoStatus,
    /// The last descriptor is not in guest memory.
    #[error("the status byte is outside guest memory")]
    StatusUnreachable,
    /// A descriptor has length 0.
    #[error("a descriptor of no bytes")]
    EmptyDescriptor,
    /// A descriptor reaches outside guest memory.
    #[error("{len} bytes at guest address {address:#x} are outside guest memory")]
    OutsideMemory {
        /// Guest physical address.
        address: u64,
        /// Bytes.
        len: u32,
    },
    /// A device-readable descriptor follows a device-writable one.
    #[error("a device-readable descriptor after a device-writable one")]
    ReadableAfterWritable,
    /// Fewer readable bytes than a header.
    #[error("a header of {len} bytes instead of {HEADER_LEN}")]
    ShortHeader {
        /// Readable bytes.
        len: u64,
    },
    /// The data buffers have the wrong direction for the request type.
    #[error("a data buffer of the wrong direction")]
    WrongDirection,
    /// A request type that we do not know.
    #[error("unknown request type {number}")]
    UnknownType {
        /// The type.
        number: u32,
    },
    /// A request type whose feature the driver has not acknowledged.
    #[error("request type {number} without its feature")]
    NotOffered {
        /// The type.
        number: u32,
    },
    /// A request to change a read-only device.
    #[error("the device is read-only")]
    ReadOnly,
    /// A read or write of nothing.
    #[error("no data buffer")]
    NoData,
    /// Offset or length are not multiples of the block size.
    #[error("{len} bytes at sector {sector} are not whole blocks")]
    Misaligned {
        /// First sector.
        sector: u64,
        /// Bytes.
        len: u64,
    },
    /// More pieces of data than `seg_max` allows.
    #[error("more than {SEGMENTS_MAX} data segments")]
    TooManySegments,
    /// More data than a request may have.
    #[error("{len} bytes of data, more than {REQUEST_LEN_MAX}")]
    TooLong {
        /// Bytes.
        len: u64,
    },
    /// The request reaches beyond the end of the device.
    #[error("{len} bytes at sector {sector} reach beyond the device")]
    OutOfBounds {
        /// First sector.
        sector: u64,
        /// Bytes.
        len: u64,
    },
    /// The buffer for the device ID is too short.
    #[error("{len} bytes for a device ID of {ID_LEN}")]
    IdTooShort {
        /// Bytes.
        len: u64,
    },
    /// The ranges of a discard or write-zeroes request are none, or not whole.
    #[error("{len} bytes of ranges are not one or more whole ranges")]
    RangesCutShort {
        /// Bytes.
        len: u64,
    },
    /// More ranges than the configuration space allows.
    #[error("{len} bytes of ranges, more than {DISCARD_RANGES_MAX} ranges")]
    TooManyRanges {
        /// Bytes.
        len: u64,
    },
    /// A range longer than the configuration space allows.
    #[error("a range of {len} bytes is too long")]
    RangeTooLong {
        /// Bytes.
        len: u64,
    },
    /// A range with flags that do not exist.
    #[error("unknown range flags {flags:#x}")]
    UnknownRangeFlags {
        /// The flags.
        flags: u32,
    },
    /// A discard range with the flag of write-zeroes.
    #[error("the unmap flag on a discard")]
    UnmapOnDiscard,
}

impl ParseError {
    /// The status that the guest is told; `None` if there is no byte to tell it in, and the chain is given back with used
    /// length 0.
    #[must_use]
    pub fn status(self) -> Option<Status> {
        match self {
            ParseError::Empty
            | ParseError::Truncated
            | ParseError::TooManyDescriptors
            | ParseError::NoStatus
            | ParseError::StatusUnreachable => None,
            ParseError::EmptyDescriptor
            | ParseError::OutsideMemory { .. }
            | ParseError::ReadableAfterWritable
            | ParseError::ShortHeader { .. }
            | ParseError::WrongDirection
            | ParseError::ReadOnly
            | ParseError::NoData
            | ParseError::Misaligned { .. }
            | ParseError::TooManySegments
            | ParseError::TooLong { .. }
            | ParseError::OutOfBounds { .. }
            | ParseError::IdTooShort { .. }
            | ParseError::RangesCutShort { .. }
            | ParseError::TooManyRanges { .. }
            | ParseError::RangeTooLong { .. } => Some(Status::IoError),
            ParseError::UnknownType { .. }
            | ParseError::NotOffered { .. }
            | ParseError::UnknownRangeFlags { .. }
            | ParseError::UnmapOnDiscard => Some(Status::Unsupported),
        }
    }

    pub(super) fn unanswered(self) -> Rejected {
        assert!(self.status().is_none(), "{self} has a status that must be written");
        Rejected { error: self, answer: None }
    }

    pub(super) fn answered(self, at: StatusByte) -> Rejected {
        let status = self.status().expect("an error found after the status byte was");
        Rejected { error: self, answer: Some(Answer { at, status }) }
    }
}

/// What to tell the guest, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status byte of the chain.
    pub at: StatusByte,
    /// What to write there.
    pub status: Status,
}

/// A chain that is not a valid request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct Rejected {
    /// The rule it breaks.
    pub error: ParseError,
    /// The answer; without one, give the chain back with used length 0.
    pub answer: Option<Answer>,
}
