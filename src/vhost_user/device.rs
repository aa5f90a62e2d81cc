//! What one frontend has negotiated, and the rings that run because of it.
//!
//! Every change goes the same way: what must not change while a ring runs stops it first; then the change is made; then
//! [`Device::settle`] starts whatever should run and does not.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use tokio::sync::mpsc::UnboundedSender;
use vhost::vhost_user::message::VhostUserProtocolFeatures;

use super::balance::Move;
use super::error::{DeviceError, InflightError};
use super::hub::{Asking, Hub, Place};
use super::listener::Vhd;
use super::memory::Memory;
use super::vring::{Kick, Vring};
use crate::base::clock;
use crate::base::ids::ReactorId;
use crate::reactor::messages::{RingAddresses, RingCommand, RingConfig, RingStopped};
use crate::shared::inflight::{InflightQueue, InflightRegion};
use crate::virtio::config;
use crate::virtio::device::DeviceSettings;
use crate::virtio::features::{self, is_writeback};

/// How long a guest waits at most for one of its rings to change the reactor.
const YIELD_PATIENCE: Duration = Duration::from_millis(20);

/// The protocol features that we offer.
pub(super) const PROTOCOL_FEATURES: VhostUserProtocolFeatures = VhostUserProtocolFeatures::CONFIG
    .union(VhostUserProtocolFeatures::MQ)
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(VhostUserProtocolFeatures::BACKEND_REQ)
    .union(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    .union(VhostUserProtocolFeatures::RESET_DEVICE);

/// Where a ring is, and its descriptors.
struct Parts {
    addresses: RingAddresses,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    error: Option<OwnedFd>,
    inflight: Option<InflightQueue>,
}

/// The device of one connection.
pub(super) struct Device {
    vhd: Arc<Vhd>,
    hub: Arc<Hub>,
    settings: DeviceSettings,
    /// `None` until SET_FEATURES.
    acknowledged: Option<u64>,
    memory: Memory,
    rings: Vec<Vring>,
    /// Where the frontend keeps what is in flight.
    inflight: Option<Arc<InflightRegion>>,
    writeback: Arc<AtomicBool>,
    /// Protocol features that the frontend acknowledged.
    protocol: VhostUserProtocolFeatures,
    /// The socket in the message that is about to be handled.
    offered_channel: Option<OwnedFd>,
    /// The size that the frontend has read.
    size_read: Option<u64>,
    /// Switched to writethrough while no ring ran: what was written before is flushed through the first one that does.
    owes_flush: bool,
    /// For orders to move its rings to other reactors.
    orders: UnboundedSender<Move>,
}

impl Device {
    pub(super) fn new(vhd: Arc<Vhd>, hub: Arc<Hub>, orders: UnboundedSender<Move>) -> Device {
        let settings = vhd.device_settings();
        Device {
            rings: (0..settings.queues).map(|_| Vring::default()).collect(),
            vhd,
            hub,
            settings,
            acknowledged: None,
            memory: Memory::empty(),
            inflight: None,
            writeback: Arc::new(AtomicBool::new(false)),
            protocol: VhostUserProtocolFeatures::empty(),
            offered_channel: None,
            size_read: None,
            owes_flush: false,
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
        Ok(())
    }

    /// The next message gives this socket.
    pub(super) fn offer_channel(&mut self, channel: OwnedFd) {
        self.offered_channel = Some(channel);
    }

    /// SET_BACKEND_REQ_FD. Only a frontend that can read the configuration space is told of its changes.
    pub(super) fn take_channel(&mut self) {
        let channel = self.offered_channel.take();
        self.vhd.channel().set(channel.filter(|_| self.protocol.contains(VhostUserProtocolFeatures::CONFIG)));
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

    /// SET_FEATURES. Rings that run are started again, since they look at the features.
    pub(super) fn set_features(&mut self, acknowledged: u64) -> Result<(), DeviceError> {
        let unknown = acknowledged & !features::offered(&self.settings());
        if unknown != 0 {
            return Err(DeviceError::Features(unknown));
        }
        if self.acknowledged != Some(acknowledged) {
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

    /// The same addresses again (a frontend may change the flags beside them) leave the ring running.
    pub(super) fn set_addresses(&mut self, index: u32, user: RingAddresses) -> Result<(), DeviceError> {
        if self.ring(index)?.user == Some(user) {
            return Ok(());
        }
        self.change(index, |ring| {
            ring.user = Some(user);
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

    /// GET_VRING_BASE: drains the ring; it is started again by its next kick descriptor.
    pub(super) fn take_base(&mut self, index: u32) -> Result<u16, DeviceError> {
        // Also one that does not run any more, because it was disabled before. But not what a daemon before us has left.
        let tracked = std::mem::take(&mut self.ring(index)?.tracked);
        self.stop(index as usize);
        if let (true, Some(inflight)) = (tracked, self.inflight_of(index as usize)?) {
            inflight.forget();
        }
        let ring = self.ring(index)?;
        ring.kick = None;
        Ok(ring.base)
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
        self.vhd.set_writeback_field(field);
        let writeback = self.acknowledged.is_some_and(|acknowledged| is_writeback(acknowledged, field));
        if self.writeback.swap(writeback, Ordering::SeqCst) != writeback {
            self.owes_flush = !writeback;
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
            self.owes_flush = false;
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
        self.acknowledged = None;
        self.writeback.store(false, Ordering::SeqCst);
        self.owes_flush = false;
        self.vhd.set_writeback_field(true);
    }

    /// Ends the session: all rings drained, memory unmapped.
    pub(super) fn shut_down(&mut self) {
        self.vhd.channel().set(None);
        self.stop_all();
        self.rings.clear();
        self.inflight = None;
        self.memory = Memory::empty();
    }

    /// Number of rings that reactors serve.
    pub(super) fn running(&self) -> usize {
        self.rings.iter().filter(|ring| ring.place.is_some()).count()
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

    /// Starts every ring that should run and does not.
    fn settle(&mut self) -> Result<(), DeviceError> {
        let Some(acknowledged) = self.acknowledged else { return Ok(()) };
        let enabled_by_default = acknowledged & features::VHOST_USER_PROTOCOL == 0;
        let mut started = false;
        for index in 0..self.rings.len() {
            let ring = &self.rings[index];
            if ring.place.is_none() && ring.wants_to_run(enabled_by_default) {
                let parts = self.parts(index)?;
                self.launch(index, acknowledged, parts, None);
                started = true;
            }
        }
        if started {
            self.vhd.set_running(self.running());
            self.tell_size();
            if self.owes_flush {
                self.switch_cache_mode();
            }
        }
        Ok(())
    }

    /// The VHD may have been resized while nobody could be told: the frontend was away (a VMM that connects again does not read the
    /// configuration again), or had not given its channel yet.
    fn tell_size(&mut self) {
        let size = self.vhd.state().size();
        if self.size_read != Some(size) && self.vhd.channel().tell_config_changed() {
            self.size_read = Some(size);
        }
    }

    /// Moves a ring that runs to another reactor, if it still does. It is drained first; if that takes long (a request waits for
    /// room, or for a disk that hangs), it stays where it is.
    pub(super) fn move_ring(&mut self, order: Move) -> Result<(), DeviceError> {
        let at = |ring: &Vring| ring.place.is_some_and(|place| place.key == order.ring);
        let (Some(index), Some(acknowledged)) = (self.rings.iter().position(at), self.acknowledged) else {
            return Ok(());
        };
        // All that can fail comes before it stops.
        let parts = self.parts(index)?;
        let Some(stopped) = self.ask_to_yield(index) else {
            self.hub.stays(order.ring);
            return Ok(());
        };
        let ring = &mut self.rings[index];
        ring.base = stopped.next_available;
        if let Some(place) = ring.place.take() {
            self.hub.release(place);
        }
        let place = self.launch(index, acknowledged, parts, Some(order.to));
        log::debug!("VHD {}: queue {index} is served by reactor {} from now on", self.vhd.name(), place.reactor.0);
        self.hub.moved(place.key);
        Ok(())
    }

    /// Asks a reactor to let go of a ring soon. `None`: it does not, and serves it as before.
    fn ask_to_yield(&self, index: usize) -> Option<RingStopped> {
        let Place { key, reactor } = self.rings[index].place?;
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.hub.send(reactor, RingCommand::Yield { key, reply });
        match answer.recv_timeout(YIELD_PATIENCE) {
            Ok(stopped) => Some(stopped),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => {
                self.hub.send(reactor, RingCommand::GoOn { key });
                // Unless it has stopped just before.
                answer.recv().ok()
            }
        }
    }

    /// What a reactor gets of a ring.
    fn parts(&self, index: usize) -> Result<Parts, DeviceError> {
        let ring = &self.rings[index];
        Ok(Parts {
            addresses: ring.guest_addresses(index, &self.memory)?,
            kick: ring.duplicate_kick()?,
            call: Vring::duplicate(ring.call.as_ref())?,
            error: Vring::duplicate(ring.error.as_ref())?,
            inflight: self.inflight_of(index)?,
        })
    }

    /// Where the frontend keeps what a queue has in flight; `None` if it does not.
    fn inflight_of(&self, index: usize) -> Result<Option<InflightQueue>, DeviceError> {
        let Some(region) = &self.inflight else { return Ok(None) };
        let queue = u16::try_from(index).ok().and_then(|index| region.queue(index));
        queue.map(Some).ok_or(DeviceError::Inflight(InflightError::NoSuchQueue(index)))
    }

    /// Has a ring served, by a certain reactor if one is wanted. Its place is given back when it stops.
    fn launch(&mut self, index: usize, acknowledged: u64, parts: Parts, wanted: Option<ReactorId>) -> Place {
        let siblings = self.rings.iter().filter_map(|ring| ring.place).map(|place| place.reactor).collect();
        let (place, load) = self.hub.place(&Asking { siblings, wanted, orders: &self.orders });
        self.rings[index].tracked |= parts.inflight.is_some();
        let ring = &self.rings[index];
        let config = RingConfig {
            key: place.key,
            vhd: Arc::clone(self.vhd.state()),
            index: u16::try_from(index).expect("queues are counted in u16"),
            size: ring.size,
            addresses: parts.addresses,
            next_available: ring.base,
            inflight: parts.inflight,
            event_idx: acknowledged & features::EVENT_IDX != 0,
            indirect: acknowledged & features::INDIRECT_DESC != 0,
            writeback: Arc::clone(&self.writeback),
            features: acknowledged,
            load,
            memory: Arc::clone(self.memory.map()),
            kick: parts.kick,
            call: parts.call,
            error: parts.error,
        };
        self.hub.send(place.reactor, RingCommand::Start(Box::new(config)));
        self.rings[index].place = Some(place);
        place
    }

    fn stop(&mut self, index: usize) {
        if let Some(answer) = self.ask_to_stop(index) {
            self.await_stopped(index, &answer);
        }
        self.vhd.set_running(self.running());
    }

    /// Drains all rings, at the same time.
    fn stop_all(&mut self) {
        let answers: Vec<_> =
            (0..self.rings.len()).filter_map(|index| Some((index, self.ask_to_stop(index)?))).collect();
        for (index, answer) in &answers {
            self.await_stopped(*index, answer);
        }
        self.vhd.set_running(0);
    }

    fn ask_to_stop(&mut self, index: usize) -> Option<Receiver<RingStopped>> {
        let Place { key, reactor } = self.rings[index].place?;
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.hub.send(reactor, RingCommand::Stop { key, reply });
        Some(answer)
    }

    /// Waits, as long as it takes, until the reactor has completed what it popped. A reactor that does not know the ring (it
    /// refused to start it, or has ended) drops the reply: then nothing was popped since we know the base.
    fn await_stopped(&mut self, index: usize, answer: &Receiver<RingStopped>) {
        let ring = &mut self.rings[index];
        if let Ok(stopped) = answer.recv() {
            ring.base = stopped.next_available;
        }
        if let Some(place) = ring.place.take() {
            self.hub.release(place);
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.shut_down();
    }
}
