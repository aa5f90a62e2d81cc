//! What one frontend has negotiated, and the rings that run because of it.
//!
//! Every change goes the same way: what must not change while a ring runs stops it first; then the change is made; then
//! [`Device::settle`] starts whatever should run and does not, if it is this frontend's turn. `rings`: how rings start and stop. `hold`: how
//! another server goes on with it.

mod hold;
mod rings;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::Receiver;
use tokio::sync::mpsc::UnboundedSender;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use super::balance::Move;
use super::channel::Channel;
use super::error::{DeviceError, LogError};
use super::held::Said;
use super::hub::{Hub, Place};
use super::listener::Vhd;
use super::memory::Memory;
use super::turn::{FrontendId, Wait};
use super::vring::{Kick, Vring};
use crate::base::clock;
use crate::reactor::messages::{RingAddresses, RingCommand};
use crate::shared::dirty_log::DirtyLog;
use crate::shared::inflight::InflightRegion;
use crate::virtio::config;
use crate::virtio::device::DeviceSettings;
use crate::virtio::features::{self, is_writeback};
pub(super) use hold::HeldParts;

/// The protocol features that we offer.
pub(super) const PROTOCOL_FEATURES: VhostUserProtocolFeatures = VhostUserProtocolFeatures::CONFIG
    .union(VhostUserProtocolFeatures::MQ)
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(VhostUserProtocolFeatures::BACKEND_REQ)
    .union(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    .union(VhostUserProtocolFeatures::LOG_SHMFD)
    .union(VhostUserProtocolFeatures::RESET_DEVICE);

/// The device of one connection.
pub(super) struct Device {
    vhd: Arc<Vhd>,
    id: FrontendId,
    /// It is this frontend's turn.
    active: bool,
    /// It was before.
    was_active: bool,
    /// Why its rings, which are started, do not run.
    waits: Option<Wait>,
    hub: Arc<Hub>,
    settings: DeviceSettings,
    /// `None` until SET_FEATURES.
    acknowledged: Option<u64>,
    memory: Memory,
    rings: Vec<Vring>,
    /// Where the frontend keeps what is in flight.
    inflight: Option<Arc<InflightRegion>>,
    /// Where it wants to find which of its memory was written to, and how it wants to be told.
    log: Option<Arc<DirtyLog>>,
    log_call: Option<Arc<OwnedFd>>,
    writeback: Arc<AtomicBool>,
    channel: Arc<Channel>,
    /// Rings that run, as others know.
    shown: usize,
    /// Protocol features that the frontend acknowledged.
    protocol: VhostUserProtocolFeatures,
    /// What the protocol library has heard.
    said: Said,
    /// Set while it is paused, between [`Device::pause`] and what comes then.
    pause: Option<hold::Pause>,
    /// The socket in the message that is about to be handled.
    offered_channel: Option<OwnedFd>,
    /// The size that the frontend has read.
    size_read: Option<u64>,
    /// For orders to move its rings to other reactors.
    orders: UnboundedSender<Move>,
}

impl Device {
    pub(super) fn new(vhd: Arc<Vhd>, id: FrontendId, hub: Arc<Hub>, orders: UnboundedSender<Move>) -> Device {
        let settings = vhd.device_settings();
        Device {
            rings: (0..settings.queues).map(|_| Vring::default()).collect(),
            channel: vhd.new_channel(),
            vhd,
            id,
            active: false,
            was_active: false,
            waits: None,
            hub,
            settings,
            acknowledged: None,
            memory: Memory::empty(),
            inflight: None,
            log: None,
            log_call: None,
            shown: 0,
            writeback: Arc::new(AtomicBool::new(false)),
            protocol: VhostUserProtocolFeatures::empty(),
            said: Said::default(),
            pause: None,
            offered_channel: None,
            size_read: None,
            orders,
        }
    }

    /// The device as it is now: all but its size stays while the frontend is connected.
    pub(super) fn settings(&self) -> DeviceSettings {
        DeviceSettings { size: self.vhd.state().size(), ..self.settings }
    }

    /// GET_CONFIG.
    pub(super) fn read_config(&mut self, offset: u32, into: &mut [u8]) {
        let settings = self.settings();
        config::read(&settings, self.vhd.writeback_field(), offset, into);
        if offset < config::CAPACITY_LEN && !into.is_empty() {
            self.size_read = Some(settings.size);
        }
    }

    /// SET_PROTOCOL_FEATURES.
    pub(super) fn set_protocol(&mut self, features: u64) -> Result<(), DeviceError> {
        let unknown = features & !PROTOCOL_FEATURES.bits();
        if unknown != 0 {
            return Err(DeviceError::ProtocolFeatures(unknown));
        }
        self.protocol = VhostUserProtocolFeatures::from_bits_truncate(features);
        match self.vhd.turn().ahead_of(self.id) {
            Some(first) if !self.can_migrate() && !self.vhd.turn().comes_back(self.id) => {
                Err(DeviceError::InUse(first))
            }
            _ => Ok(()),
        }
    }

    /// Whether the frontend may wait for another one to stop: it could be the destination of a live migration.
    fn can_migrate(&self) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::LOG_SHMFD)
    }

    /// The next message gives this socket.
    pub(super) fn offer_channel(&mut self, channel: OwnedFd) {
        self.offered_channel = Some(channel);
    }

    /// SET_BACKEND_REQ_FD. Only a frontend that can read the configuration space is told of its changes.
    pub(super) fn take_channel(&mut self) {
        let channel = self.offered_channel.take();
        self.channel.set(channel.filter(|_| self.protocol.contains(VhostUserProtocolFeatures::CONFIG)));
    }

    /// What the protocol library has heard, to be added to.
    pub(super) fn said(&mut self) -> &mut Said {
        &mut self.said
    }

    pub(super) fn vhd(&self) -> &Vhd {
        &self.vhd
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(super) fn ring(&mut self, index: u32) -> Result<&mut Vring, DeviceError> {
        let queues = self.rings.len();
        let ring = usize::try_from(index).ok().and_then(|index| self.rings.get_mut(index));
        ring.ok_or(DeviceError::NoSuchQueue { index, queues })
    }

    /// SET_FEATURES. Rings that run are started again, since they look at the features; but for LOG_ALL, which begins and ends while
    /// they run.
    pub(super) fn set_features(&mut self, acknowledged: u64) -> Result<(), DeviceError> {
        let unknown = acknowledged & !features::offered(&self.settings());
        if unknown != 0 {
            return Err(DeviceError::Features(unknown));
        }
        if self.acknowledged.is_some_and(|before| (before ^ acknowledged) & !features::LOG_ALL == 0) {
            self.acknowledged = Some(acknowledged);
            self.tell_log();
            if acknowledged & features::LOG_ALL == 0 {
                // A migration has ended; the next one copies everything.
                self.rings.iter_mut().for_each(|ring| ring.is_unlogged = false);
            }
        } else {
            self.stop_all();
            self.acknowledged = Some(acknowledged);
            self.writeback.store(is_writeback(acknowledged, self.vhd.writeback_field()), Ordering::SeqCst);
        }
        self.settle()
    }

    /// Replaces guest memory. Rings are drained first: the old one may be gone when this returns.
    pub(super) fn replace_memory(&mut self, memory: Memory) -> Result<(), DeviceError> {
        self.stop_all();
        self.memory = memory;
        self.settle()
    }

    /// Adds to guest memory. Rings go on.
    pub(super) fn extend_memory(&mut self, memory: Memory) -> Result<(), DeviceError> {
        self.memory = memory;
        for place in self.rings.iter().filter_map(|ring| ring.place) {
            let memory = Arc::clone(self.memory.map());
            self.hub.send(place.reactor, RingCommand::SetMemory { key: place.key, memory });
        }
        self.settle()
    }

    /// SET_INFLIGHT_FD. Rings that run are started again with it.
    pub(super) fn set_inflight(&mut self, region: Arc<InflightRegion>) -> Result<(), DeviceError> {
        self.stop_all();
        self.inflight = Some(region);
        self.rings.iter_mut().for_each(|ring| ring.tracked = false);
        self.settle()
    }

    pub(super) fn set_size(&mut self, index: u32, entries: u32) -> Result<(), DeviceError> {
        self.change(index, |ring| ring.set_size(entries))
    }

    /// SET_LOG_BASE. Returns once nothing is noted in an earlier log any more.
    pub(super) fn set_log(&mut self, log: Arc<DirtyLog>) {
        // Unmapped here, and not by the last reactor that lets go of it.
        let earlier = self.log.replace(log);
        self.tell_log();
        drop(earlier);
    }

    /// SET_LOG_FD.
    pub(super) fn set_log_call(&mut self, call: Option<OwnedFd>) {
        self.log_call = call.map(Arc::new);
        self.tell_log();
    }

    /// Whether it wants answers where it asks for them.
    pub(super) fn answers(&self) -> bool {
        let protocol = self.acknowledged.is_some_and(|features| features & features::VHOST_USER_PROTOCOL != 0);
        protocol && self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK)
    }

    /// The same addresses again (a frontend may change what is said of the log beside them) leave the ring running.
    pub(super) fn set_addresses(
        &mut self,
        index: u32,
        user: RingAddresses,
        log: Option<u64>,
    ) -> Result<(), DeviceError> {
        let ring = self.ring(index)?;
        if ring.user == Some(user) {
            if std::mem::replace(&mut ring.log, log) != log {
                self.tell_log();
            }
            return Ok(());
        }
        self.change(index, |ring| {
            ring.user = Some(user);
            ring.log = log;
            Ok(())
        })
    }

    pub(super) fn set_base(&mut self, index: u32, base: u32) -> Result<(), DeviceError> {
        let bad_base = DeviceError::QueueBase { index: index as usize, base };
        let base = u16::try_from(base).map_err(|_| bad_base)?;
        self.change(index, |ring| {
            ring.base = base;
            Ok(())
        })
    }

    /// GET_VRING_BASE: drains the ring; it is started again by its next kick descriptor. An error if what it has written was not all
    /// logged: a migration that ends with this would lose it.
    pub(super) fn take_base(&mut self, index: u32) -> Result<u16, DeviceError> {
        // Also one that does not run any more, because it was disabled before. But not what a daemon before us has left.
        let tracked = std::mem::take(&mut self.ring(index)?.tracked);
        self.stop(index as usize);
        if let (true, Some(inflight)) = (tracked, self.inflight_of(index as usize)?) {
            inflight.forget();
        }
        let ring = self.ring(index)?;
        ring.kick = None;
        let base = ring.base;
        let is_unlogged = std::mem::take(&mut ring.is_unlogged);
        self.end_turn();
        if is_unlogged { Err(LogError::TooShort(index).into()) } else { Ok(base) }
    }

    pub(super) fn set_enabled(&mut self, index: u32, enabled: bool) -> Result<(), DeviceError> {
        self.ring(index)?.enabled = Some(enabled);
        if !enabled {
            self.stop(index as usize);
        }
        self.settle()
    }

    pub(super) fn set_kick(&mut self, index: u32, kick: Kick) -> Result<(), DeviceError> {
        let ring = self.ring(index)?;
        ring.kick = Some(kick);
        if let Some(place) = ring.place {
            let kick = ring.duplicate_kick()?;
            self.hub.send(place.reactor, RingCommand::SetKick { key: place.key, kick });
        }
        self.settle()
    }

    pub(super) fn set_call(&mut self, index: u32, call: Option<OwnedFd>) -> Result<(), DeviceError> {
        let ring = self.ring(index)?;
        ring.call = call;
        if let Some(place) = ring.place {
            let call = Vring::duplicate(ring.call.as_ref())?;
            self.hub.send(place.reactor, RingCommand::SetCall { key: place.key, call });
        }
        Ok(())
    }

    pub(super) fn set_error(&mut self, index: u32, error: Option<OwnedFd>) -> Result<(), DeviceError> {
        self.change(index, |ring| {
            ring.error = error;
            Ok(())
        })
    }

    /// The driver writes the `writeback` field. Returns once what was written before is durable, if it is cleared.
    pub(super) fn set_writeback_field(&mut self, field: bool) {
        if let Some(pid) = self.vhd.turn().other_chooser(self.id) {
            return self
                .vhd
                .log_coming(&format!("a choice of the cache mode is ignored: the guest of process {pid} makes it"));
        }
        self.vhd.set_writeback_field(field);
        let writeback = self.acknowledged.is_some_and(|acknowledged| is_writeback(acknowledged, field));
        if self.writeback.swap(writeback, Ordering::SeqCst) != writeback {
            self.vhd.owe_flush(!writeback);
            self.switch_cache_mode();
        }
    }

    /// Tells the rings that run of the cache mode, and waits for the flush that comes with writethrough.
    fn switch_cache_mode(&mut self) {
        let writeback = self.writeback.load(Ordering::SeqCst);
        let answers: Vec<Receiver<bool>> = self
            .rings
            .iter()
            .filter_map(|ring| ring.place)
            .map(|Place { key, reactor }| {
                let (reply, answer) = crossbeam_channel::bounded(1);
                self.hub.send(reactor, RingCommand::SetWriteback { key, writeback, reply });
                answer
            })
            .collect();
        let flushed: Vec<bool> = answers.into_iter().filter_map(|answer| answer.recv().ok()).collect();
        if !flushed.is_empty() {
            self.vhd.owe_flush(false);
        }
        // A driver may not rely on earlier writes before its next flush, which fails too and which it does look at.
        if flushed.contains(&false)
            && let Some(held_back) = self.vhd.faults.pass(clock::now())
        {
            let name = self.vhd.name();
            log::error!(
                "VHD {name}: the flush at the switch to writethrough failed ({held_back} more faults not logged)"
            );
        }
    }

    /// RESET_DEVICE: as after connecting, except for memory and protocol features.
    pub(super) fn reset(&mut self) {
        self.stop_all();
        self.rings.fill_with(Vring::default);
        self.inflight = None;
        (self.log, self.log_call) = (None, None);
        self.acknowledged = None;
        self.writeback.store(false, Ordering::SeqCst);
        if self.vhd.turn().other_chooser(self.id).is_none() {
            self.vhd.set_writeback_field(true);
        }
        self.end_turn();
    }

    /// Ends the session: all rings drained, memory unmapped.
    pub(super) fn shut_down(&mut self) {
        self.channel.set(None);
        self.stop_all();
        self.rings.clear();
        self.inflight = None;
        self.log = None;
        self.memory = Memory::empty();
    }

    /// Changes what a ring that runs cannot change.
    fn change(
        &mut self,
        index: u32,
        change: impl FnOnce(&mut Vring) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        self.ring(index)?;
        self.stop(index as usize);
        change(self.ring(index)?)?;
        self.settle()
    }

    /// Starts every ring that should run and does not, if this frontend's turn has come.
    pub(super) fn settle(&mut self) -> Result<(), DeviceError> {
        let Some(acknowledged) = self.acknowledged else { return Ok(()) };
        let enabled_by_default = acknowledged & features::VHOST_USER_PROTOCOL == 0;
        let waits = |ring: &Vring| ring.place.is_none() && ring.wants_to_run(enabled_by_default);
        let waiting: Vec<usize> = (0..self.rings.len()).filter(|index| waits(&self.rings[*index])).collect();
        if waiting.is_empty() {
            self.waits = None;
            return Ok(());
        }
        if !self.take_turn(acknowledged)? {
            return Ok(());
        }
        for index in waiting {
            let parts = self.parts(index)?;
            let reactor = self.rings[index].reactor.take();
            self.launch(index, acknowledged, parts, reactor);
        }
        self.show_running();
        self.tell_size();
        if self.vhd.owes_flush() {
            self.switch_cache_mode();
        }
        Ok(())
    }

    /// Whether the rings of this frontend may run.
    fn take_turn(&mut self, acknowledged: u64) -> Result<bool, DeviceError> {
        let taken = self.vhd.turn().take(self.id, self.can_migrate(), clock::now());
        let waited = std::mem::replace(&mut self.waits, taken.err());
        match taken {
            Ok(()) => {
                self.was_active = true;
                if !std::mem::replace(&mut self.active, true) {
                    // The guest may have chosen another cache mode through the frontend that was active before.
                    let writeback = is_writeback(acknowledged, self.vhd.writeback_field());
                    self.writeback.store(writeback, Ordering::SeqCst);
                }
                Ok(true)
            }
            // One that was served before has a guest that has not gone anywhere.
            Err(wait) if !self.can_migrate() && !self.was_active => Err(DeviceError::InUse(wait.pid())),
            Err(wait) => {
                if !waited.is_some_and(|waited| waited.is_like(wait)) {
                    self.vhd.log_coming(&wait.to_string());
                }
                Ok(false)
            }
        }
    }

    /// When to look whether its turn has come, even if nothing happens.
    pub(super) fn look_after(&self) -> Option<Duration> {
        let look_at = self.waits?.look_at()?;
        Some(Duration::from_nanos(look_at.since(clock::now())))
    }

    /// Lets another frontend have its turn, if no ring is started any more.
    fn end_turn(&mut self) {
        if self.rings.iter().all(|ring| ring.kick.is_none()) {
            (self.active, self.waits) = (false, None);
            self.vhd.turn().release(self.id, clock::now());
        }
    }

    /// The VHD may have been resized while nobody could be told: the frontend was away (a VMM that connects again does not read the
    /// configuration again), or had not given its channel yet.
    fn tell_size(&mut self) {
        let size = self.vhd.state().size();
        if self.size_read != Some(size) && self.channel.tell_config_changed() {
            self.size_read = Some(size);
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.shut_down();
    }
}
