//! What a VHD looks like to virtio: the settings behind features and configuration space, and the bounds of requests.

use super::features;
use crate::base::limits::RANGE_EXTENTS_MAX;
use crate::base::units::Geometry;

/// A VHD as a virtio-blk device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSettings {
    /// Size in bytes, a multiple of `block_size`.
    pub size: u64,
    /// Logical block size in bytes: 512 or 4096.
    pub block_size: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Virtqueues.
    pub queues: u16,
    /// Extent and block sizes of the pool.
    pub geometry: Geometry,
    /// The transfer size that serves the guest best: an extent, or a stripe of them, in bytes.
    pub optimal_io_size: u64,
}

impl DeviceSettings {
    /// The longest discard or write-zeroes range, in bytes.
    #[must_use]
    pub fn range_len_max(&self) -> u64 {
        RANGE_EXTENTS_MAX * self.geometry.extent_size()
    }
}

/// The bounds that every request of a device must keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceLimits {
    /// Size in bytes.
    pub capacity: u64,
    /// Alignment of offsets and lengths, in bytes: 512 or 4096.
    pub block_size: u32,
    /// Whether requests that change data are refused.
    pub read_only: bool,
    /// Whether discard was acknowledged.
    pub discard: bool,
    /// Whether write-zeroes was acknowledged.
    pub write_zeroes: bool,
    /// The longest discard or write-zeroes range, in bytes.
    pub range_len_max: u64,
}

impl DeviceLimits {
    /// The bounds of a device whose driver acknowledged these features.
    #[must_use]
    pub fn new(size: u64, block_size: u32, read_only: bool, geometry: Geometry, acknowledged: u64) -> DeviceLimits {
        assert!(block_size == 512 || block_size == 4096, "the two block sizes a VHD can have");
        DeviceLimits {
            capacity: size,
            block_size,
            read_only,
            discard: acknowledged & features::DISCARD != 0,
            write_zeroes: acknowledged & features::WRITE_ZEROES != 0,
            range_len_max: RANGE_EXTENTS_MAX * geometry.extent_size(),
        }
    }
}
