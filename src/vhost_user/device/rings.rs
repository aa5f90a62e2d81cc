//! How the rings of a device start, stop, move to other reactors, and log what they write.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::Device;
use crate::base::ids::ReactorId;
use crate::reactor::messages::{RingAddresses, RingCommand, RingConfig, RingLog, RingStopped};
use crate::shared::inflight::InflightQueue;
use crate::vhost_user::balance::Move;
use crate::vhost_user::error::{DeviceError, InflightError};
use crate::vhost_user::hub::{Asking, Place};
use crate::vhost_user::vring::Vring;
use crate::virtio::features;

/// How long a guest waits at most for one of its rings to change the reactor.
const YIELD_PATIENCE: Duration = Duration::from_millis(20);

/// Where a ring is, and its descriptors.
pub(super) struct Parts {
    addresses: RingAddresses,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    error: Option<OwnedFd>,
    inflight: Option<InflightQueue>,
}

impl Device {
    /// Moves a ring that runs to another reactor, if it still does. It is drained first; if that takes long (a request waits for
    /// room, or for a disk that hangs), it stays where it is.
    pub(in crate::vhost_user) fn move_ring(&mut self, order: Move) -> Result<(), DeviceError> {
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
        self.hub.send(reactor, RingCommand::Yield { key, even_broken: false, reply });
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
    pub(super) fn parts(&self, index: usize) -> Result<Parts, DeviceError> {
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
    pub(super) fn inflight_of(&self, index: usize) -> Result<Option<InflightQueue>, DeviceError> {
        let Some(region) = &self.inflight else { return Ok(None) };
        let queue = u16::try_from(index).ok().and_then(|index| region.queue(index));
        queue.map(Some).ok_or(DeviceError::Inflight(InflightError::NoSuchQueue(index)))
    }

    /// Where a ring is to note what it writes now.
    fn log_of(&self, index: usize) -> Option<RingLog> {
        let log =
            self.log.as_ref().filter(|_| self.acknowledged.is_some_and(|acked| acked & features::LOG_ALL != 0))?;
        Some(RingLog { log: Arc::clone(log), used: self.rings[index].log, call: self.log_call.clone() })
    }

    /// Tells the rings that run where to note what they write. Returns once they do: what they write afterwards is noted there.
    pub(super) fn tell_log(&self) {
        let tell = |index: usize| {
            let Place { key, reactor } = self.rings[index].place?;
            let (reply, answer) = crossbeam_channel::bounded(1);
            self.hub.send(reactor, RingCommand::SetLog { key, log: self.log_of(index), reply });
            Some(answer)
        };
        let answers: Vec<Receiver<()>> = (0..self.rings.len()).filter_map(tell).collect();
        for answer in answers {
            // A ring that could not start notes nothing.
            let _ = answer.recv();
        }
    }

    /// Has a ring served, by a certain reactor if one is wanted. Its place is given back when it stops.
    pub(super) fn launch(&mut self, index: usize, acknowledged: u64, parts: Parts, wanted: Option<ReactorId>) -> Place {
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
            log: self.log_of(index),
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

    /// Number of rings that reactors serve, or would if they were not broken.
    fn running(&self) -> usize {
        self.rings.iter().filter(|ring| ring.place.is_some() || ring.is_broken).count()
    }

    /// Lets others know how many rings run.
    pub(super) fn show_running(&mut self) {
        let running = self.running();
        self.vhd.set_running(self.shown, running);
        self.shown = running;
    }

    pub(super) fn stop(&mut self, index: usize) {
        if let Some(answer) = self.ask_to_stop(index) {
            self.await_stopped(index, &answer);
        }
        self.show_running();
    }

    /// Drains all rings, at the same time.
    pub(super) fn stop_all(&mut self) {
        let answers: Vec<_> =
            (0..self.rings.len()).filter_map(|index| Some((index, self.ask_to_stop(index)?))).collect();
        for (index, answer) in &answers {
            self.await_stopped(*index, answer);
        }
        self.show_running();
    }

    fn ask_to_stop(&mut self, index: usize) -> Option<Receiver<RingStopped>> {
        self.rings[index].is_broken = false;
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
            ring.is_unlogged |= stopped.is_unlogged;
        }
        if let Some(place) = ring.place.take() {
            self.hub.release(place);
        }
    }
}
