//! Feature bits: what a device offers, and what an acknowledged set means for the cache mode.

use virtio_bindings::{virtio_blk, virtio_config, virtio_ring};

use super::device::DeviceSettings;

/// `seg_max` is valid.
pub const SEG_MAX: u64 = 1 << virtio_blk::VIRTIO_BLK_F_SEG_MAX;
/// The device is read-only.
pub const READ_ONLY: u64 = 1 << virtio_blk::VIRTIO_BLK_F_RO;
/// `blk_size` is valid.
pub const BLOCK_SIZE: u64 = 1 << virtio_blk::VIRTIO_BLK_F_BLK_SIZE;
/// Flush requests are understood.
pub const FLUSH: u64 = 1 << virtio_blk::VIRTIO_BLK_F_FLUSH;
/// `topology` is valid.
pub const TOPOLOGY: u64 = 1 << virtio_blk::VIRTIO_BLK_F_TOPOLOGY;
/// The driver can switch the cache mode.
pub const CONFIG_WCE: u64 = 1 << virtio_blk::VIRTIO_BLK_F_CONFIG_WCE;
/// `num_queues` is valid.
pub const MULTI_QUEUE: u64 = 1 << virtio_blk::VIRTIO_BLK_F_MQ;
/// Discard requests are understood.
pub const DISCARD: u64 = 1 << virtio_blk::VIRTIO_BLK_F_DISCARD;
/// Write-zeroes requests are understood.
pub const WRITE_ZEROES: u64 = 1 << virtio_blk::VIRTIO_BLK_F_WRITE_ZEROES;
/// Descriptors may be in an indirect table.
pub const INDIRECT_DESC: u64 = 1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
/// Notifications are suppressed by index.
pub const EVENT_IDX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;
/// Not a legacy device.
pub const VERSION_1: u64 = 1 << virtio_config::VIRTIO_F_VERSION_1;
/// Writes to guest memory can be logged (a bit of the transport, not of virtio): VHOST_F_LOG_ALL.
pub const LOG_ALL: u64 = 1 << 26;
/// vhost-user protocol features can be negotiated (a bit of the transport, not of virtio).
pub const VHOST_USER_PROTOCOL: u64 = 1 << 30;

/// The features that a device with these settings offers.
#[must_use]
pub fn offered(device: &DeviceSettings) -> u64 {
    let always = SEG_MAX
        | BLOCK_SIZE
        | FLUSH
        | TOPOLOGY
        | CONFIG_WCE
        | MULTI_QUEUE
        | INDIRECT_DESC
        | EVENT_IDX
        | VERSION_1
        | LOG_ALL
        | VHOST_USER_PROTOCOL;
    always | if device.read_only { READ_ONLY } else { DISCARD | WRITE_ZEROES }
}

/// Whether completed writes may be volatile: only for a driver that can flush, and only while the `writeback` field of the
/// configuration space says so if that driver can switch it. Firmware that knows nothing of flushes gets writethrough.
#[must_use]
pub fn is_writeback(acknowledged: u64, field: bool) -> bool {
    let has = |feature| acknowledged & feature != 0;
    has(FLUSH) && (!has(CONFIG_WCE) || field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::Geometry;

    fn device(read_only: bool) -> DeviceSettings {
        DeviceSettings {
            size: 1 << 30,
            block_size: 512,
            read_only,
            queues: 1,
            geometry: Geometry::new(1 << 20).unwrap(),
            optimal_io_size: 1 << 20,
        }
    }

    #[test]
    fn read_only_devices_offer_nothing_that_changes_them() {
        assert_eq!(offered(&device(true)) & (READ_ONLY | DISCARD | WRITE_ZEROES), READ_ONLY);
        assert_eq!(offered(&device(false)) & (READ_ONLY | DISCARD | WRITE_ZEROES), DISCARD | WRITE_ZEROES);
    }

    #[test]
    fn no_feature_is_offered_that_does_not_exist() {
        let size_max = 1 << virtio_blk::VIRTIO_BLK_F_SIZE_MAX;
        let secure_erase = 1 << virtio_blk::VIRTIO_BLK_F_SECURE_ERASE;
        let zoned = 1 << virtio_blk::VIRTIO_BLK_F_ZONED;
        assert_eq!(offered(&device(false)) & (size_max | secure_erase | zoned), 0);
        assert_eq!(offered(&device(false)), 0x1_7400_7e44);
    }

    #[test]
    fn cache_mode() {
        let all = FLUSH | CONFIG_WCE;
        let table = [
            (0, false, false),
            (0, true, false),
            (CONFIG_WCE, false, false),
            (CONFIG_WCE, true, false),
            (FLUSH, false, true),
            (FLUSH, true, true),
            (all, false, false),
            (all, true, true),
        ];
        for (acknowledged, field, writeback) in table {
            assert_eq!(is_writeback(acknowledged, field), writeback, "{acknowledged:#x} {field}");
        }
    }
}
