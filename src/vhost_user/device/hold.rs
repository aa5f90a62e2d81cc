//! A device that is handed over to another server: pausing it, going on with it, taking it apart, and putting it together there.
//!
//! What it costs in descriptors: the files that are mapped (one for each memory region, in-flight region, dirty log) and the log's call
//! descriptor a second time, until the device is taken apart. Those of the rings change hands: what reactors had of them is free while
//! the rings are paused, and kept for starting them again.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use vhost::vhost_user::message::{VhostUserInflight, VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures};

use super::Device;
use super::rings::Parts;
use crate::base::clock::{self, Nanos};
use crate::base::ids::ReactorId;
use crate::reactor::messages::{RingAddresses, RingCommand, RingStopped};
use crate::shared::inflight::region_len;
use crate::vhost_user::error::DeviceError;
use crate::vhost_user::held::{HeldDevice, HeldInflight, HeldKick, HeldLog, HeldRegion, HeldRing};
use crate::vhost_user::hold::HoldFault;
use crate::vhost_user::hub::Place;
use crate::vhost_user::memory::Memory;
use crate::vhost_user::vring::{Kick, Vring};
use crate::vhost_user::{dirty_log, inflight};
use crate::virtio::features;

/// A device that was taken apart.
pub(in crate::vhost_user) struct HeldParts {
    pub(in crate::vhost_user) state: HeldDevice,
    /// In the order in which [`Device::take_over`] needs them.
    pub(in crate::vhost_user) descriptors: Vec<OwnedFd>,
}

/// What a paused device has, so that nothing can fail any more.
pub(super) struct Pause {
    /// To go on with its rings.
    rings: Vec<(usize, Parts)>,
    memory: Vec<(HeldRegion, OwnedFd)>,
    inflight: Option<(HeldInflight, OwnedFd)>,
    log: Option<(HeldLog, OwnedFd)>,
    log_call: Option<OwnedFd>,
}

/// What became of a ring that was asked to pause.
enum Answer {
    /// It has; `None`: its reactor had never started it.
    Stopped(Option<RingStopped>),
    /// Not yet.
    Late(Receiver<RingStopped>),
}

impl Device {
    /// Drains the rings, so that the device can be handed over. If that takes longer than `until` they go on.
    pub(in crate::vhost_user) fn pause(&mut self, until: Nanos) -> Result<(), HoldFault> {
        if clock::now() >= until {
            return Err(HoldFault::Busy);
        }
        // All that can fail comes before they stop.
        let mut pause = self.prepare_pause()?;
        let running: Vec<usize> = (0..self.rings.len()).filter(|index| self.rings[*index].place.is_some()).collect();
        for &index in &running {
            let parts = self.parts(index).map_err(|error| match error {
                DeviceError::Duplicate(error) => HoldFault::Descriptor(error),
                other => HoldFault::Ring(Box::new(other)),
            });
            pause.rings.push((index, parts?));
        }
        let asked: Vec<_> = running.into_iter().map(|index| (index, self.ask_to_pause(index))).collect();
        let mut late = Vec::new();
        for (index, answer) in asked {
            match self.await_paused(index, answer, until) {
                Answer::Stopped(stopped) => self.note_paused(index, stopped),
                Answer::Late(answer) => late.push((index, answer)),
            }
        }
        self.pause = Some(pause);
        if late.is_empty() {
            self.show_running();
            return Ok(());
        }
        for (index, answer) in late {
            if let Some(Place { key, reactor }) = self.rings[index].place {
                self.hub.send(reactor, RingCommand::GoOn { key });
            }
            // Unless it has stopped just before.
            if let Ok(stopped) = answer.recv() {
                self.note_paused(index, Some(stopped));
            }
        }
        self.go_on();
        Err(HoldFault::Busy)
    }

    /// What is shared with the frontend is mapped from files, which the mappings keep open.
    fn prepare_pause(&self) -> Result<Pause, HoldFault> {
        let copy = |file: &File| file.try_clone().map(OwnedFd::from).map_err(HoldFault::Descriptor);
        let region = |(region, file): (VhostUserMemoryRegion, &File)| {
            let VhostUserMemoryRegion {
                guest_phys_addr: guest,
                memory_size: len,
                user_addr: user,
                mmap_offset: offset,
            } = region;
            Ok((HeldRegion { guest, len, user, offset }, copy(file)?))
        };
        let inflight = self.inflight.as_ref().and_then(|region| Some((region.shape(), region.file()?)));
        let inflight = inflight.map(|((queues, queue_size), file)| {
            Ok((HeldInflight { offset: file.start(), queues, queue_size }, copy(file.file())?))
        });
        let log = self.log.as_ref().and_then(|log| Some((log.size(), log.file()?)));
        let log = log.map(|(size, file)| Ok((HeldLog { offset: file.start(), size }, copy(file.file())?)));
        let log_call = self.log_call.as_ref().map(|call| call.try_clone().map_err(HoldFault::Descriptor));
        Ok(Pause {
            rings: Vec::new(),
            memory: self.memory.described().map(region).collect::<Result<_, HoldFault>>()?,
            inflight: inflight.transpose()?,
            log: log.transpose()?,
            log_call: log_call.transpose()?,
        })
    }

    fn ask_to_pause(&self, index: usize) -> Receiver<RingStopped> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        if let Some(Place { key, reactor }) = self.rings[index].place {
            self.hub.send(reactor, RingCommand::Yield { key, even_broken: true, reply });
        }
        answer
    }

    fn await_paused(&self, index: usize, mut answer: Receiver<RingStopped>, until: Nanos) -> Answer {
        // One that breaks while it is asked drops the answer; asked again, it stops.
        for _ in 0..2 {
            match answer.recv_timeout(Duration::from_nanos(until.since(clock::now()))) {
                Ok(stopped) => return Answer::Stopped(Some(stopped)),
                Err(RecvTimeoutError::Timeout) => return Answer::Late(answer),
                Err(RecvTimeoutError::Disconnected) => answer = self.ask_to_pause(index),
            }
        }
        Answer::Stopped(None)
    }

    /// A ring has stopped. What its reactor refused to start would not start now.
    fn note_paused(&mut self, index: usize, stopped: Option<RingStopped>) {
        let ring = &mut self.rings[index];
        ring.is_broken = stopped.is_none_or(|stopped| stopped.is_broken);
        if let Some(stopped) = stopped {
            ring.base = stopped.next_available;
            ring.is_unlogged |= stopped.is_unlogged;
        }
        if let Some(place) = ring.place.take() {
            ring.reactor = Some(place.reactor);
            self.hub.release(place);
        }
    }

    /// Goes on after [`Device::pause`], where it was.
    pub(in crate::vhost_user) fn go_on(&mut self) {
        let (Some(pause), Some(acknowledged)) = (self.pause.take(), self.acknowledged) else { return };
        for (index, parts) in pause.rings {
            let ring = &mut self.rings[index];
            if ring.place.is_none() && !ring.is_broken {
                let reactor = ring.reactor.take();
                self.launch(index, acknowledged, parts, reactor);
            }
        }
        self.show_running();
    }

    /// Takes a paused device apart: nothing of the frontend's stays mapped.
    pub(in crate::vhost_user) fn hand_over(&mut self) -> HeldParts {
        let pause = self.pause.take().expect("paused before");
        let channel = self.channel.take();
        let mut descriptors = Vec::new();
        let (memory, files): (Vec<HeldRegion>, Vec<OwnedFd>) = pause.memory.into_iter().unzip();
        descriptors.extend(files);
        let inflight = pause.inflight.map(|(region, file)| keep(region, file, &mut descriptors));
        let log = pause.log.map(|(log, file)| keep(log, file, &mut descriptors));
        let has_log_call = pause.log_call.map(|call| descriptors.push(call)).is_some();
        let has_channel = channel.map(|channel| descriptors.push(channel)).is_some();
        let state = HeldDevice {
            active: self.active,
            was_active: self.was_active,
            said: self.said,
            acknowledged: self.acknowledged,
            writeback: self.writeback.load(Ordering::SeqCst),
            size_read: self.size_read,
            memory,
            inflight,
            log,
            has_log_call,
            has_channel,
            rings: self.rings.drain(..).map(|ring| ring.hand_over(&mut descriptors)).collect(),
        };
        (self.inflight, self.log, self.log_call) = (None, None, None);
        self.memory = Memory::empty();
        self.show_running();
        HeldParts { state, descriptors }
    }

    /// Becomes what another device was when it was taken apart. Its rings start by [`Device::settle`]. `same_reactors`: they were served by
    /// as many reactors.
    pub(in crate::vhost_user) fn take_over(&mut self, held: HeldParts, same_reactors: bool) -> Result<(), DeviceError> {
        let HeldParts { state, descriptors } = held;
        let unknown = state.acknowledged.unwrap_or(0) & !features::offered(&self.settings());
        if unknown != 0 {
            return Err(DeviceError::Features(unknown));
        }
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().expect("counted when the parts were put together");
        let mut memory = Memory::empty();
        for HeldRegion { guest, len, user, offset } in state.memory {
            memory = memory.with(&VhostUserMemoryRegion::new(guest, len, user, offset), next().into())?;
        }
        self.memory = memory;
        if let Some(HeldInflight { offset, queues, queue_size }) = state.inflight {
            let size = region_len(queues, queue_size) as u64;
            let given = VhostUserInflight::new(size, offset, queues, queue_size);
            self.inflight = Some(inflight::map(&given, next().into(), self.settings.queues)?);
        }
        if let Some(HeldLog { offset, size }) = state.log {
            self.log = Some(dirty_log::map(&VhostUserLog::new(size, offset), next().into())?);
        }
        self.log_call = state.has_log_call.then(&mut next).map(Arc::new);
        self.channel.set(state.has_channel.then(&mut next));
        self.rings = state.rings.into_iter().map(|ring| Vring::take_over(ring, &mut next, same_reactors)).collect();
        (self.active, self.was_active, self.said) = (state.active, state.was_active, state.said);
        (self.acknowledged, self.size_read) = (state.acknowledged, state.size_read);
        self.protocol = VhostUserProtocolFeatures::from_bits_truncate(state.said.protocol.unwrap_or(0));
        self.writeback.store(state.writeback, Ordering::SeqCst);
        Ok(())
    }
}

fn keep<T>(what: T, file: OwnedFd, descriptors: &mut Vec<OwnedFd>) -> T {
    descriptors.push(file);
    what
}

impl Vring {
    fn hand_over(self, descriptors: &mut Vec<OwnedFd>) -> HeldRing {
        let kick = self.kick.map(|kick| match kick {
            Kick::Polled => HeldKick::Polled,
            Kick::Eventfd(fd) => keep(HeldKick::Eventfd, fd, descriptors),
        });
        HeldRing {
            size: self.size,
            user: self.user.map(|RingAddresses { descriptors, available, used }| [descriptors, available, used]),
            log: self.log,
            base: self.base,
            kick,
            has_call: self.call.map(|call| descriptors.push(call)).is_some(),
            has_error: self.error.map(|error| descriptors.push(error)).is_some(),
            enabled: self.enabled,
            tracked: self.tracked,
            is_unlogged: self.is_unlogged,
            is_broken: self.is_broken,
            reactor: self.reactor.map(|reactor| reactor.0),
        }
    }

    fn take_over(held: HeldRing, mut next: impl FnMut() -> OwnedFd, same_reactors: bool) -> Vring {
        Vring {
            size: held.size,
            user: held.user.map(|[descriptors, available, used]| RingAddresses { descriptors, available, used }),
            log: held.log,
            base: held.base,
            kick: held.kick.map(|kick| match kick {
                HeldKick::Polled => Kick::Polled,
                HeldKick::Eventfd => Kick::Eventfd(next()),
            }),
            call: held.has_call.then(&mut next),
            error: held.has_error.then(&mut next),
            enabled: held.enabled,
            tracked: held.tracked,
            is_unlogged: held.is_unlogged,
            is_broken: held.is_broken,
            reactor: held.reactor.filter(|_| same_reactors).map(ReactorId),
            place: None,
        }
    }
}
