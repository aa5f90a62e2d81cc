//! One guest request, parsed once and completely.

use crate::base::limits::{DISCARD_RANGES_MAX, SEGMENTS_MAX};

/// The status byte of a request (virtio 1.3, 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    /// VIRTIO_BLK_S_OK.
    Ok = 0,
    /// VIRTIO_BLK_S_IOERR.
    IoError = 1,
    /// VIRTIO_BLK_S_UNSUPP.
    Unsupported = 2,
}

/// One piece of the guest's data buffers, in host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte.
    pub ptr: *mut u8,
    /// Length in bytes; never 0.
    pub len: u32,
}

/// A range of a discard or write-zeroes request, in bytes of the VHD; within its size, aligned to its block size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Write-zeroes only: the guest allows the range to be unmapped.
    pub unmap: bool,
}

/// What the guest asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// VIRTIO_BLK_T_IN of `len` bytes at byte `offset`.
    Read {
        /// First byte of the VHD.
        offset: u64,
        /// Length in bytes, the sum of the segments.
        len: u64,
    },
    /// VIRTIO_BLK_T_OUT of `len` bytes at byte `offset`.
    Write {
        /// First byte of the VHD.
        offset: u64,
        /// Length in bytes, the sum of the segments.
        len: u64,
    },
    /// VIRTIO_BLK_T_FLUSH.
    Flush,
    /// VIRTIO_BLK_T_GET_ID into the segments (20 bytes or more).
    GetId,
    /// VIRTIO_BLK_T_DISCARD of the ranges.
    Discard,
    /// VIRTIO_BLK_T_WRITE_ZEROES of the ranges.
    WriteZeroes,
}

impl RequestKind {
    /// Bytes that are read or written from and to the guest's buffers. Ranges are none: there is no memory behind them.
    #[must_use]
    pub fn data_len(self) -> u64 {
        match self {
            RequestKind::Read { len, .. } | RequestKind::Write { len, .. } => len,
            RequestKind::Flush | RequestKind::GetId | RequestKind::Discard | RequestKind::WriteZeroes => 0,
        }
    }
}

/// A valid request: directions, lengths, bounds against the capacity and limits all hold. Lives in a preallocated slot and
/// is filled in place, so that parsing allocates nothing.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub kind: RequestKind,
    segments: [Segment; SEGMENTS_MAX],
    segment_count: usize,
    ranges: [Range; DISCARD_RANGES_MAX as usize],
    range_count: usize,
}

// SAFETY: the pointers are addresses in guest memory that the ring's memory map keeps mapped; a request has one user.
unsafe impl Send for Request {}

impl Default for Request {
    fn default() -> Request {
        Request {
            kind: RequestKind::Flush,
            segments: [Segment { ptr: std::ptr::null_mut(), len: 0 }; SEGMENTS_MAX],
            segment_count: 0,
            ranges: [Range::default(); DISCARD_RANGES_MAX as usize],
            range_count: 0,
        }
    }
}

impl Request {
    /// Forgets the last request and becomes one of `kind` without segments or ranges.
    pub fn reset(&mut self, kind: RequestKind) {
        self.kind = kind;
        self.segment_count = 0;
        self.range_count = 0;
    }

    /// Adds a data segment; false if there are too many.
    #[must_use]
    pub fn push_segment(&mut self, segment: Segment) -> bool {
        let Some(room) = self.segments.get_mut(self.segment_count) else { return false };
        *room = segment;
        self.segment_count += 1;
        true
    }

    /// Adds a range; false if there are too many.
    #[must_use]
    pub fn push_range(&mut self, range: Range) -> bool {
        let Some(room) = self.ranges.get_mut(self.range_count) else { return false };
        *room = range;
        self.range_count += 1;
        true
    }

    /// The data segments.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments[..self.segment_count]
    }

    /// The ranges.
    #[must_use]
    pub fn ranges(&self) -> &[Range] {
        &self.ranges[..self.range_count]
    }
}
