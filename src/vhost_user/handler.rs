//! A frontend's messages, mapped to its device. The protocol library has checked their form.

use std::fs::File;
use std::io;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight, VhostUserLog,
    VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Backend, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::device::{Device, PROTOCOL_FEATURES};
use super::error::DeviceError;
use super::memory::Memory;
use super::vring::Kick;
use super::{dirty_log, inflight};
use crate::base::clock;
use crate::base::limits::MEM_SLOTS_MAX;
use crate::base::log_gate::LogGate;
use crate::reactor::messages::RingAddresses;
use crate::virtio::{config, features};

/// Some frontends count the configuration space from where it lies in a PCI transport's registers. Nothing of ours is that far
/// in, so the two ways to count cannot be mixed up.
const TRANSPORT_OFFSET: u32 = 0x100;

type Bases = Vec<vhost::VhostUserMemoryRegionBase>;

impl From<DeviceError> for Error {
    fn from(error: DeviceError) -> Error {
        Error::ReqHandlerError(io::Error::other(error))
    }
}

fn unsupported<T>(what: &'static str) -> Result<T> {
    Err(DeviceError::Unsupported { what }.into())
}

fn config_offset(offset: u32) -> u32 {
    offset.checked_sub(TRANSPORT_OFFSET).unwrap_or(offset)
}

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    /// Deprecated, and sent by some frontends when they mean nothing by it: the specification recommends to ignore it.
    fn reset_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        self.said().asked = true;
        Ok(features::offered(&self.settings()))
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.said().features = Some(features);
        Ok(Device::set_features(self, features)?)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(PROTOCOL_FEATURES)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.said().protocol = Some(features);
        Ok(self.set_protocol(features)?)
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(u64::from(self.settings().queues))
    }

    fn set_mem_table(
        &mut self,
        table: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Bases>> {
        let memory = Memory::of_table(table, files).map_err(DeviceError::from)?;
        self.replace_memory(memory)?;
        Ok(None)
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MEM_SLOTS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        let memory = self.memory().with(region, file).map_err(DeviceError::from)?;
        self.extend_memory(memory)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let memory = self.memory().without(region).map_err(DeviceError::from)?;
        Ok(self.replace_memory(memory)?)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        Ok(self.set_size(index, num)?)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let log = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
        Ok(self.set_addresses(index, RingAddresses { descriptors, available, used }, log)?)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        Ok(self.set_base(index, base)?)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = self.take_base(index)?;
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let kick = fd.map_or(Kick::Polled, |file| Kick::Eventfd(file.into()));
        Ok(self.set_kick(u32::from(index), kick)?)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        Ok(self.set_call(u32::from(index), fd.map(Into::into))?)
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        Ok(self.set_error(u32::from(index), fd.map(Into::into))?)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        Ok(self.set_enabled(index, enable)?)
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let mut bytes = vec![0; size as usize];
        self.read_config(config_offset(offset), &mut bytes);
        Ok(bytes)
    }

    /// A write to any other field than the cache mode does nothing, as with a device of hardware: a driver's mistake is no
    /// reason to part from its frontend.
    fn set_config(&mut self, offset: u32, buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        static GATE: LogGate = LogGate::new();
        match config::parse_write(config_offset(offset), buf) {
            Ok(writeback) => self.set_writeback_field(writeback),
            Err(error) => {
                if let Some(held_back) = GATE.pass(clock::now()) {
                    log::warn!("VHD {}: ignored: {error} ({held_back} more not logged)", self.vhd().name());
                }
            }
        }
        Ok(())
    }

    fn set_backend_req_fd(&mut self, _backend: Backend) {
        self.take_channel();
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        unsupported("a GPU socket")
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        unsupported("a shared object")
    }

    fn get_inflight_fd(&mut self, asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Ok(inflight::create(asked, self.settings().queues).map_err(DeviceError::from)?)
    }

    fn set_inflight_fd(&mut self, given: &VhostUserInflight, file: File) -> Result<()> {
        let region = inflight::map(given, file, self.settings().queues).map_err(DeviceError::from)?;
        Ok(self.set_inflight(region)?)
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        unsupported("transfer of the device's state")
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported("transfer of the device's state")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported("shared memory of the device")
    }

    fn set_log_base(&mut self, given: &VhostUserLog, file: File) -> Result<()> {
        self.set_log(dirty_log::map(given, file).map_err(DeviceError::from)?);
        Ok(())
    }
}
