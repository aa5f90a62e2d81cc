//! A vhost-user-blk frontend on the `vhost` crate. It says what Cloud Hypervisor says, in the same order; Cloud Hypervisor is
//! built on the same crate.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend as VhostUser, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::ring::{Ring, Shape};

/// VIRTIO_BLK_F_* and VIRTIO_F_* bits by name.
pub mod feature {
    /// Largest segment is in the configuration.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// Largest number of segments is in the configuration.
    pub const SEG_MAX: u64 = 1 << 2;
    /// Disk geometry is in the configuration.
    pub const GEOMETRY: u64 = 1 << 4;
    /// The disk is read-only.
    pub const RO: u64 = 1 << 5;
    /// Block size is in the configuration.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// Flush requests.
    pub const FLUSH: u64 = 1 << 9;
    /// I/O topology is in the configuration.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// The guest may switch the cache mode.
    pub const CONFIG_WCE: u64 = 1 << 11;
    /// Several queues.
    pub const MQ: u64 = 1 << 12;
    /// Discard requests.
    pub const DISCARD: u64 = 1 << 13;
    /// Write-zeroes requests.
    pub const WRITE_ZEROES: u64 = 1 << 14;
    /// Descriptor tables outside the ring.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Both sides say when they want a signal.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// A device of virtio 1.0 or newer.
    pub const VERSION_1: u64 = 1 << 32;
    /// The device completes requests in order.
    pub const IN_ORDER: u64 = 1 << 35;
    /// Memory is ordered as the platform says.
    pub const ORDER_PLATFORM: u64 = 1 << 36;
    /// Notifications carry the ring's position.
    pub const NOTIFICATION_DATA: u64 = 1 << 38;
}

/// Where Cloud Hypervisor asks for the configuration space, and how much of it.
pub const CLOUD_HYPERVISOR_CONFIG: (u32, u32) = (0, 60);

/// The same for Cloud Hypervisor before 2026, which counted from the start of the device's registers.
pub const OLD_CLOUD_HYPERVISOR_CONFIG: (u32, u32) = (0x100, 60);

/// Where the shared memory begins: no driver puts a ring at address 0, which devices take for "none".
const MEMORY_START: GuestAddress = GuestAddress(1 << 20);

/// What a frontend offers and asks for.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Virtqueues.
    pub queues: u16,
    /// Dimensions of each.
    pub shape: Shape,
    /// virtio features it can handle.
    pub features: u64,
    /// vhost-user features it can handle.
    pub protocol: VhostUserProtocolFeatures,
    /// Offset and length of its request for the configuration space.
    pub config_request: (u32, u32),
}

impl Options {
    /// What Cloud Hypervisor offers.
    #[must_use]
    pub fn cloud_hypervisor(queues: u16, shape: Shape) -> Options {
        use feature::*;
        let mut features = SIZE_MAX
            | SEG_MAX
            | GEOMETRY
            | RO
            | BLK_SIZE
            | FLUSH
            | TOPOLOGY
            | CONFIG_WCE
            | DISCARD
            | WRITE_ZEROES
            | INDIRECT_DESC
            | EVENT_IDX
            | VERSION_1
            | IN_ORDER
            | ORDER_PLATFORM
            | NOTIFICATION_DATA
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        if queues > 1 {
            features |= MQ;
        }
        let protocol = VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::DEVICE_STATE
            | VhostUserProtocolFeatures::BACKEND_REQ;
        Options { queues, shape, features, protocol, config_request: CLOUD_HYPERVISOR_CONFIG }
    }

    /// A frontend for tests of data: one queue of 256 descriptors with slots of 1 MiB.
    #[must_use]
    pub fn for_data() -> Options {
        Options::cloud_hypervisor(1, Shape { size: 128, buffer_len: 1 << 20 })
    }
}

/// A connected frontend whose rings run.
pub struct Frontend {
    /// Rings, by queue number.
    pub rings: Vec<Ring>,
    /// virtio features that both sides have.
    pub features: u64,
    /// vhost-user features that both sides have.
    pub protocol: VhostUserProtocolFeatures,
    /// The configuration space.
    pub config: Vec<u8>,
    /// Queues that the backend can serve.
    pub backend_queues: u64,
    vu: VhostUser,
    /// Shared memory for requests in flight, kept for a reconnection.
    inflight: Option<(VhostUserInflight, File)>,
    /// Our end of the channel for the backend's own requests.
    backend_requests: Option<UnixStream>,
}

impl Frontend {
    /// Connects, negotiates and starts the rings.
    ///
    /// # Errors
    /// What the backend refuses.
    pub fn connect(socket: &Path, options: &Options) -> Result<Frontend> {
        let mut vu = VhostUser::connect(socket, u64::from(options.queues))
            .with_context(|| format!("connecting to {}", socket.display()))?;
        vu.set_owner().context("SET_OWNER")?;
        let features = options.features & vu.get_features().context("GET_FEATURES")?;
        ensure!(
            features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() != 0,
            "the backend does not offer protocol features"
        );
        let protocol = options.protocol & vu.get_protocol_features().context("GET_PROTOCOL_FEATURES")?;
        vu.set_protocol_features(protocol).context("SET_PROTOCOL_FEATURES")?;
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            vu.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        let backend_queues = if protocol.contains(VhostUserProtocolFeatures::MQ) {
            vu.get_queue_num().context("GET_QUEUE_NUM")?
        } else {
            1
        };
        ensure!(u64::from(options.queues) <= backend_queues, "the backend has only {backend_queues} queues");
        let (offset, len) = options.config_request;
        let (_, config) =
            vu.get_config(offset, len, VhostUserConfigFlags::WRITABLE, &vec![0; len as usize]).context("GET_CONFIG")?;
        let mut frontend = Frontend {
            rings: Vec::new(),
            features,
            protocol,
            config,
            backend_queues,
            vu,
            inflight: None,
            backend_requests: None,
        };
        frontend.activate(options)?;
        Ok(frontend)
    }

    /// The size in sectors that the configuration space gives.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        u64::from_le_bytes(self.config[..8].try_into().expect("eight bytes"))
    }

    /// The first ring.
    pub fn ring(&mut self) -> &mut Ring {
        &mut self.rings[0]
    }

    /// Switches the cache mode as a guest's driver does: true for write back.
    ///
    /// # Errors
    /// What the backend refuses.
    pub fn set_writeback(&mut self, on: bool) -> Result<()> {
        self.set_writeback_flagged(on, VhostUserConfigFlags::empty())
    }

    /// As [`Frontend::set_writeback`] with the flags that a certain VMM sends: QEMU none, Cloud Hypervisor `WRITABLE`.
    ///
    /// # Errors
    /// What the backend refuses.
    pub fn set_writeback_flagged(&mut self, on: bool, flags: VhostUserConfigFlags) -> Result<()> {
        const WCE_OFFSET: u32 = 32;
        self.vu.set_config(WCE_OFFSET, flags, &[u8::from(on)]).context("SET_CONFIG")
    }

    /// The configuration space afresh, from another offset.
    ///
    /// # Errors
    /// What the backend refuses.
    pub fn read_config(&mut self, offset: u32, len: u32) -> Result<Vec<u8>> {
        let zeros = vec![0; len as usize];
        Ok(self.vu.get_config(offset, len, VhostUserConfigFlags::empty(), &zeros).context("GET_CONFIG")?.1)
    }

    /// The size in sectors, if the backend has said since the last call that the configuration is another one. `None` also if it
    /// has gone meanwhile.
    ///
    /// # Errors
    /// It said something else.
    pub fn resized(&mut self) -> Result<Option<u64>> {
        /// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG: request 2, version 1 without a wish for a reply, no body.
        const CONFIG_CHANGED: [u32; 3] = [2, 1, 0];
        let Some(channel) = &mut self.backend_requests else { return Ok(None) };
        let mut message = [0; 12];
        match channel.read(&mut message) {
            Ok(0) => return Ok(None),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionReset) => {
                return Ok(None);
            }
            read => ensure!(read? == message.len(), "half a message of the backend"),
        }
        ensure!(message == *CONFIG_CHANGED.map(u32::to_ne_bytes).as_flattened(), "the backend says {message:?}");
        let (offset, len) = CLOUD_HYPERVISOR_CONFIG;
        let Ok(config) = self.read_config(offset, len) else { return Ok(None) };
        self.config = config;
        Ok(Some(self.capacity()))
    }

    /// Pauses (`false`) or resumes (`true`) all rings.
    ///
    /// # Errors
    /// What the backend refuses.
    pub fn enable(&mut self, on: bool) -> Result<()> {
        for index in 0..self.rings.len() {
            self.vu.set_vring_enable(index, on).context("SET_VRING_ENABLE")?;
        }
        Ok(())
    }

    /// Stops all rings; the index up to which the device took requests, by queue.
    ///
    /// # Errors
    /// What the backend refuses.
    pub fn stop(&mut self) -> Result<Vec<u32>> {
        (0..self.rings.len()).map(|i| self.vu.get_vring_base(i).context("GET_VRING_BASE")).collect()
    }

    fn activate(&mut self, options: &Options) -> Result<()> {
        let stride = options.shape.memory().next_multiple_of(2 << 20);
        let size = stride * u64::from(options.queues);
        // A file without a name in shared memory, as a VMM's memfd.
        let file = tempfile::tempfile_in("/dev/shm").context("shared memory in /dev/shm")?;
        file.set_len(size)?;
        let range = (MEMORY_START, usize::try_from(size)?, Some(FileOffset::new(file, 0)));
        let mem: Arc<GuestMemoryMmap> = Arc::new(GuestMemoryMmap::from_ranges_with_files([range])?);

        self.vu.set_features(self.features).context("SET_FEATURES")?;
        let regions: Result<Vec<_>, _> = mem.iter().map(VhostUserMemoryRegionInfo::from_guest_region).collect();
        self.vu.set_mem_table(&regions?).context("SET_MEM_TABLE")?;
        for index in 0..options.queues {
            self.vu.set_vring_num(index.into(), options.shape.size).context("SET_VRING_NUM")?;
        }
        if self.protocol.contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD) {
            let asked = VhostUserInflight::new(0, 0, options.queues, options.shape.size);
            let (info, file) = self.vu.get_inflight_fd(&asked).context("GET_INFLIGHT_FD")?;
            self.vu.set_inflight_fd(&info, file.as_raw_fd()).context("SET_INFLIGHT_FD")?;
            self.inflight = Some((info, file));
        }
        for index in 0..options.queues {
            let mut ring = Ring::new(Arc::clone(&mem), MEMORY_START.0 + stride * u64::from(index), options.shape)?;
            ring.set_event_idx(self.features & feature::EVENT_IDX != 0);
            self.start_ring(index.into(), &ring, &mem)?;
            self.rings.push(ring);
        }
        self.enable(true)?;
        if self.protocol.contains(VhostUserProtocolFeatures::BACKEND_REQ) {
            let (ours, theirs) = UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            self.vu.set_backend_request_fd(&theirs).context("SET_BACKEND_REQ_FD")?;
            self.backend_requests = Some(ours);
        }
        Ok(())
    }

    fn start_ring(&self, index: usize, ring: &Ring, mem: &GuestMemoryMmap) -> Result<()> {
        let host = |addr| -> Result<u64> { Ok(mem.get_host_address(addr)? as u64) };
        let [desc, avail, used] = ring.addresses();
        let addresses = VringConfigData {
            queue_max_size: ring.shape.size,
            queue_size: ring.shape.size,
            flags: 0,
            desc_table_addr: host(desc)?,
            used_ring_addr: host(used)?,
            avail_ring_addr: host(avail)?,
            log_addr: None,
        };
        self.vu.set_vring_addr(index, &addresses).context("SET_VRING_ADDR")?;
        self.vu.set_vring_base(index, 0).context("SET_VRING_BASE")?;
        self.vu.set_vring_call(index, &ring.call).context("SET_VRING_CALL")?;
        self.vu.set_vring_kick(index, &ring.kick).context("SET_VRING_KICK")
    }
}
