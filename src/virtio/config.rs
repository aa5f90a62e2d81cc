//! The configuration space of a virtio-blk device (virtio 1.3, 5.2.4), little-endian:
//!
//! | offset | size | field | | offset | size | field |
//! |---|---|---|---|---|---|---|
//! | 0 | 8 | capacity in sectors | | 34 | 2 | num_queues |
//! | 8 | 4 | size_max (not offered) | | 36 | 4 | max_discard_sectors |
//! | 12 | 4 | seg_max | | 40 | 4 | max_discard_seg |
//! | 16 | 4 | geometry (not offered) | | 44 | 4 | discard_sector_alignment |
//! | 20 | 4 | blk_size | | 48 | 4 | max_write_zeroes_sectors |
//! | 24 | 1 | physical_block_exp | | 52 | 4 | max_write_zeroes_seg |
//! | 25 | 1 | alignment_offset | | 56 | 1 | write_zeroes_may_unmap |
//! | 26 | 2 | min_io_size in blocks | | 57 | 3 | zeros |
//! | 28 | 4 | opt_io_size in blocks | | 60 | 12 | secure erase (not offered) |
//! | 32 | 1 | writeback | | 72 | 24 | zoned (not offered) |
//! | 33 | 1 | zero | | 96 | | zeros for ever |

#![deny(clippy::indexing_slicing)]

use super::device::DeviceSettings;
use crate::base::limits::{DISCARD_RANGES_MAX, SEGMENTS_MAX};
use crate::base::units::SECTOR_SIZE;

/// Bytes of the configuration space that mean something.
pub const CONFIG_LEN: usize = 96;

/// Bytes of the first field, the capacity.
pub const CAPACITY_LEN: u32 = 8;

/// Offset of `writeback`, the only field a driver can write.
pub const WRITEBACK_OFFSET: u32 = 32;

/// The physical block size we announce: what the host disks behind a VHD take without reading first.
const PHYSICAL_BLOCK_SIZE: u32 = 4096;

/// Why a write to the configuration space is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigWriteError {
    /// Another field than `writeback`, or more than it.
    #[error("{len} bytes at offset {offset} of the configuration space cannot be written: only the writeback byte can")]
    ReadOnlyField {
        /// First byte.
        offset: u32,
        /// Bytes.
        len: usize,
    },
    /// Neither 0 nor 1.
    #[error("the writeback field cannot be {0}: 0 (writethrough) and 1 (writeback) are the two cache modes")]
    BadCacheMode(u8),
}

/// Fills `into` with the configuration space from byte `offset`; zeros past its end.
pub fn read(device: &DeviceSettings, writeback: bool, offset: u32, into: &mut [u8]) {
    let space = encode(device, writeback);
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    let mut bytes = space.iter().skip(offset).copied();
    into.fill_with(|| bytes.next().unwrap_or(0));
}

/// What a driver's write to the configuration space asks for: the new value of `writeback`.
///
/// # Errors
/// Anything but a cache mode at [`WRITEBACK_OFFSET`].
pub fn parse_write(offset: u32, bytes: &[u8]) -> Result<bool, ConfigWriteError> {
    match (offset, bytes) {
        (WRITEBACK_OFFSET, [0]) => Ok(false),
        (WRITEBACK_OFFSET, [1]) => Ok(true),
        (WRITEBACK_OFFSET, [value]) => Err(ConfigWriteError::BadCacheMode(*value)),
        _ => Err(ConfigWriteError::ReadOnlyField { offset, len: bytes.len() }),
    }
}

fn encode(device: &DeviceSettings, writeback: bool) -> [u8; CONFIG_LEN] {
    let physical = PHYSICAL_BLOCK_SIZE.max(device.block_size);
    let ranges = if device.read_only { 0 } else { DISCARD_RANGES_MAX };
    let range_sectors = if device.read_only { 0 } else { sectors(device.range_len_max()) };
    let alignment = if device.read_only { 0 } else { sectors(device.geometry.block_size()) };
    let in_blocks = |bytes: u64| u32::try_from(bytes / u64::from(device.block_size)).unwrap_or(u32::MAX);
    let min_io = u16::try_from(in_blocks(u64::from(physical))).expect("at most eight blocks of 512 bytes");
    let exponent = u8::try_from((physical / device.block_size).ilog2()).expect("the logarithm of a u32");

    let mut space = [0; CONFIG_LEN];
    let mut put = |offset: usize, bytes: &[u8]| {
        let room = space.get_mut(offset..offset + bytes.len()).expect("every field is within the space");
        room.copy_from_slice(bytes);
    };
    put(0, &(device.size / SECTOR_SIZE).to_le_bytes());
    put(12, &u32::try_from(SEGMENTS_MAX).expect("a small number").to_le_bytes());
    put(20, &device.block_size.to_le_bytes());
    put(24, &[exponent, 0]);
    put(26, &min_io.to_le_bytes());
    put(28, &in_blocks(device.optimal_io_size).to_le_bytes());
    put(32, &[u8::from(writeback)]);
    put(34, &device.queues.to_le_bytes());
    put(36, &range_sectors.to_le_bytes());
    put(40, &ranges.to_le_bytes());
    put(44, &alignment.to_le_bytes());
    put(48, &range_sectors.to_le_bytes());
    put(52, &ranges.to_le_bytes());
    put(56, &[u8::from(!device.read_only)]);
    space
}

fn sectors(bytes: u64) -> u32 {
    u32::try_from(bytes / SECTOR_SIZE).expect("limits keep ranges below 2^32 sectors")
}

#[cfg(test)]
mod tests {
    use virtio_bindings::virtio_blk::virtio_blk_config;

    use super::*;
    use crate::base::units::Geometry;

    fn device() -> DeviceSettings {
        DeviceSettings {
            size: 20 << 30,
            block_size: 512,
            read_only: false,
            queues: 4,
            geometry: Geometry::new(1 << 20).unwrap(),
            optimal_io_size: 3 << 20,
        }
    }

    fn as_kernel_sees_it(device: &DeviceSettings, writeback: bool) -> virtio_blk_config {
        let mut bytes = [0xaa; size_of::<virtio_blk_config>()];
        read(device, writeback, 0, &mut bytes);
        // SAFETY: the struct is plain integers, as long as the bytes.
        unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) }
    }

    #[test]
    fn fields_are_where_the_kernel_header_has_them() {
        assert_eq!(size_of::<virtio_blk_config>(), CONFIG_LEN);
        let config = as_kernel_sees_it(&device(), true);
        assert_eq!({ config.capacity }, 20 << 21);
        assert_eq!({ config.seg_max }, 126);
        assert_eq!({ config.blk_size }, 512);
        assert_eq!((config.physical_block_exp, config.min_io_size, { config.opt_io_size }), (3, 8, 3 << 11));
        assert_eq!((config.wce, { config.num_queues }), (1, 4));
        assert_eq!(({ config.max_discard_sectors }, { config.max_discard_seg }), (256 << 11, 32));
        assert_eq!({ config.discard_sector_alignment }, 64);
        assert_eq!(({ config.max_write_zeroes_sectors }, { config.max_write_zeroes_seg }), (256 << 11, 32));
        assert_eq!(config.write_zeroes_may_unmap, 1);
        assert_eq!({ config.size_max }, 0);
    }

    #[test]
    fn large_blocks_and_read_only() {
        let device = DeviceSettings { block_size: 4096, read_only: true, ..device() };
        let config = as_kernel_sees_it(&device, false);
        assert_eq!((config.physical_block_exp, config.min_io_size, { config.opt_io_size }), (0, 1, 768));
        assert_eq!(({ config.max_discard_sectors }, config.write_zeroes_may_unmap, config.wce), (0, 0, 0));
    }

    #[test]
    fn any_offset_and_length_can_be_read() {
        let mut whole = [0; CONFIG_LEN];
        read(&device(), true, 0, &mut whole);
        for offset in (0..300).chain([u32::MAX - 1, u32::MAX]) {
            for len in [0, 1, 7, 60, 96, 200] {
                let mut part = vec![0xaa; len];
                read(&device(), true, offset, &mut part);
                for (i, byte) in part.iter().enumerate() {
                    let at = u64::from(offset) + i as u64;
                    let expected = usize::try_from(at).ok().and_then(|at| whole.get(at)).copied().unwrap_or(0);
                    assert_eq!(*byte, expected, "offset {offset}, byte {i}");
                }
            }
        }
    }

    #[test]
    fn only_the_cache_mode_can_be_written() {
        assert_eq!(parse_write(32, &[0]), Ok(false));
        assert_eq!(parse_write(32, &[1]), Ok(true));
        assert_eq!(parse_write(32, &[2]), Err(ConfigWriteError::BadCacheMode(2)));
        for (offset, bytes) in [(0, &[0_u8; 8][..]), (32, &[1, 0]), (32, &[]), (31, &[1]), (33, &[1]), (0, &[0; 96])] {
            assert_eq!(parse_write(offset, bytes), Err(ConfigWriteError::ReadOnlyField { offset, len: bytes.len() }));
        }
    }
}
