//! Starting, stopping and changing rings.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::GuestMemoryMmap;

use super::super::signal::{CallFd, is_eventfd, may_block};
use super::{Done, FLUSH, Mode, Rings, Served, TAG_PLACE_BITS, TOKEN_PLACE_SHIFT, UringPipeline};
use crate::base::clock::Nanos;
use crate::engine::uring::{EventTag, UringEngine};
use crate::reactor::messages::{Outbox, RingCommand, RingConfig, RingKey, RingLog, RingStopped};
use crate::reactor::pipeline::Token;
use crate::reactor::ring::{Ring, RingFault};

/// An event that nobody waits for.
const NOBODY: EventTag = EventTag((1 << 56) - 1);

impl Rings {
    /// Carries out a command.
    pub fn command<O: Outbox>(&mut self, command: RingCommand, pipeline: &mut UringPipeline<O>, now: Nanos) {
        self.execute(command, pipeline, now);
        self.count_polled();
    }

    fn execute<O: Outbox>(&mut self, command: RingCommand, pipeline: &mut UringPipeline<O>, now: Nanos) {
        match command {
            RingCommand::Start(config) => self.start(*config, pipeline, now),
            RingCommand::Stop { key, reply } => {
                // Dropping the reply of an unknown ring tells that it never started.
                let Some(place) = self.place(key) else { return };
                let served = self.served(place);
                if !matches!(served.mode, Mode::Broken) {
                    served.mode = Mode::Ended;
                }
                served.stop = Some(reply);
                self.settle(place, pipeline, now);
            }
            RingCommand::Yield { key, even_broken, reply } => {
                let Some(place) = self.place(key) else { return };
                let served = self.served(place);
                match served.mode {
                    Mode::Running => served.mode = Mode::Yielding,
                    Mode::Broken if even_broken => {}
                    Mode::Yielding | Mode::Ended | Mode::Broken => return,
                }
                served.stop = Some(reply);
                self.settle(place, pipeline, now);
            }
            RingCommand::GoOn { key } => {
                let Some(place) = self.place(key) else { return };
                let served = self.served(place);
                match served.mode {
                    Mode::Yielding => {
                        served.mode = Mode::Running;
                        served.stop = None;
                        self.queue(place);
                    }
                    Mode::Broken => served.stop = None,
                    Mode::Running | Mode::Ended => {}
                }
            }
            RingCommand::SetCall { key, call } => self.set_call(key, call, &mut pipeline.engine, now),
            RingCommand::SetKick { key, kick } => self.set_kick(key, kick, &mut pipeline.engine, now),
            RingCommand::SetLog { key, log, reply } => {
                self.set_log(key, log, &mut pipeline.engine);
                let _ = reply.send(());
            }
            RingCommand::SetMemory { key, memory } => self.set_memory(key, memory, &mut pipeline.engine, now),
            RingCommand::SetWriteback { key, writeback, reply } => {
                let Some(place) = self.place(key) else { return };
                let served = self.served(place);
                served.ring.writeback.store(writeback, Ordering::Relaxed);
                if writeback {
                    let _ = reply.send(true);
                    return;
                }
                served.switching.push(reply);
                self.settle(place, pipeline, now);
            }
        }
    }

    fn start<O: Outbox>(&mut self, config: RingConfig, pipeline: &mut UringPipeline<O>, now: Nanos) {
        if self.leaving || self.by_key.contains_key(&config.key) {
            return;
        }
        let ring = match Ring::open(&config) {
            Ok(ring) => ring,
            Err(fault) => {
                self.log_broken(&config.vhd.settings.uuid, config.index, &fault, now);
                // One that may block could keep a worker of the kernel, and nobody would be there to end that.
                if let Some(error) = config.error.filter(|error| is_eventfd(error.as_fd()) && !may_block(error.as_fd()))
                {
                    let mut error = CallFd::new(error, NOBODY);
                    error.signal(&mut pipeline.engine);
                    self.retired.extend(error.abandon(&mut pipeline.engine));
                }
                return;
            }
        };
        pipeline.reserve(ring.slots());
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            u32::try_from(self.places.len() - 1).expect("fewer rings than fit memory")
        });
        assert!(place < (1 << TAG_PLACE_BITS) - 2, "fewer rings than fit memory");
        self.by_key.insert(config.key, place);
        self.places[place as usize] = Some(Served {
            key: config.key,
            ring,
            mode: Mode::Running,
            kick: None,
            call: None,
            error: None,
            log_call: None,
            queued: false,
            unpublished: false,
            done: Done::default(),
            held: None,
            turn: None,
            hot: false,
            quiet_turns: 0,
            stop: None,
            switching: Vec::new(),
            flushing: false,
        });
        // Room for every ring at once, so that serving them allocates nothing.
        self.ready.reserve(self.places.len());
        self.unpublished.reserve(self.places.len());
        self.hot.reserve(self.places.len());
        self.held.reserve(self.places.len());
        let error = config.error.filter(|error| is_eventfd(error.as_fd()));
        let tag = self.new_tag(place);
        self.served(place).error = error.map(|error| CallFd::new(error, tag));
        self.set_log_call(place, config.log.as_ref(), &mut pipeline.engine);
        self.set_call(config.key, config.call, &mut pipeline.engine, now);
        self.set_kick(config.key, config.kick, &mut pipeline.engine, now);
    }

    fn set_call(&mut self, key: RingKey, call: Option<OwnedFd>, engine: &mut UringEngine, now: Nanos) {
        let Some(place) = self.place(key) else { return };
        if let Some(old) = self.served(place).call.take() {
            self.retired.extend(old.retire(engine));
        }
        if call.as_ref().is_some_and(|call| !is_eventfd(call.as_fd())) {
            return self.break_ring(place, &RingFault::NotAnEventfd("call"), engine, now);
        }
        let tag = self.new_tag(place);
        let served = self.served(place);
        served.call = call.map(|call| CallFd::new(call, tag));
        // What was given back while there was no descriptor, or the other one: one interrupt too many is harmless.
        if let Some(call) = &mut served.call {
            call.signal(engine);
        }
    }

    fn set_log(&mut self, key: RingKey, log: Option<RingLog>, engine: &mut UringEngine) {
        let Some(place) = self.place(key) else { return };
        self.set_log_call(place, log.as_ref(), engine);
        self.served(place).ring.set_log(log);
    }

    /// The frontend is told of changes only by what cannot hold up a reactor. Each ring has a descriptor of its own for that.
    fn set_log_call(&mut self, place: u32, log: Option<&RingLog>, engine: &mut UringEngine) {
        if let Some(old) = self.served(place).log_call.take() {
            self.retired.extend(old.abandon(engine));
        }
        let call = log.and_then(|log| log.call.as_ref()).filter(|call| is_eventfd(call.as_fd()));
        let tag = self.new_tag(place);
        // Without a descriptor to be had, it is not told: it looks at the log anyway.
        let call = call.and_then(|call| call.try_clone().ok());
        self.served(place).log_call = call.map(|call| CallFd::new(call, tag));
    }

    fn set_kick(&mut self, key: RingKey, kick: Option<OwnedFd>, engine: &mut UringEngine, now: Nanos) {
        let Some(place) = self.place(key) else { return };
        self.drop_kick(place, engine);
        if let Some(kick) = kick {
            if !is_eventfd(kick.as_fd()) {
                return self.break_ring(place, &RingFault::NotAnEventfd("kick"), engine, now);
            }
            let tag = self.new_tag(place);
            engine.watch(kick.as_fd(), tag);
            self.served(place).kick = Some((kick, tag));
        }
        self.queue(place);
    }

    /// Forgets the kick eventfd; the ring is polled until it has another.
    fn drop_kick(&mut self, place: u32, engine: &mut UringEngine) {
        let Some((kick, tag)) = self.served(place).kick.take() else { return };
        engine.unwatch(tag);
        engine.flush();
        drop(kick);
    }

    fn set_memory(&mut self, key: RingKey, memory: Arc<GuestMemoryMmap>, engine: &mut UringEngine, now: Nanos) {
        let Some(place) = self.place(key) else { return };
        if let Err(fault) = self.served(place).ring.set_memory(memory) {
            self.break_ring(place, &fault, engine, now);
        }
    }

    /// Goes on with what waits for the ring to have nothing in flight: a switch of the cache mode, then a stop.
    pub(super) fn settle<O: Outbox>(&mut self, place: u32, pipeline: &mut UringPipeline<O>, now: Nanos) {
        let Some(served) = &mut self.places[place as usize] else { return };
        if served.ring.in_flight() > 0 || served.ring.is_replaying() || served.flushing {
            return;
        }
        if !served.switching.is_empty() {
            // Everything that was popped under the old mode has completed, so that the flush covers it.
            served.flushing = true;
            let token = Token(u64::from(place) << TOKEN_PLACE_SHIFT | FLUSH);
            pipeline.flush_vhd(&served.ring.vhd, token, now);
        } else if served.stop.is_some() && !served.unpublished {
            self.let_go(place, now);
            self.remove(place, pipeline);
        }
    }

    /// Lets go of a ring that has stopped, then answers.
    fn remove<O: Outbox>(&mut self, place: u32, pipeline: &mut UringPipeline<O>) {
        self.drop_kick(place, &mut pipeline.engine);
        pipeline.engine.flush();
        let mut served = self.places[place as usize].take().expect("looked at just now");
        served.hand_back();
        if let Some(call) = served.call.take() {
            self.retired.extend(call.retire(&mut pipeline.engine));
        }
        let hints = [served.error.take(), served.log_call.take()];
        let under_way = hints.into_iter().flatten().filter_map(|hint| hint.abandon(&mut pipeline.engine));
        self.retired.extend(under_way);
        self.by_key.remove(&served.key);
        if served.queued {
            self.ready.retain(|&queued| queued != place);
        }
        if served.hot {
            self.hot.retain(|&hot| hot != place);
        }
        self.free.push(place);
        pipeline.unreserve(served.ring.slots());
        let (next_available, is_unlogged) = (served.ring.next_available(), served.ring.is_unlogged());
        let is_broken = matches!(served.mode, Mode::Broken);
        let stopped = RingStopped { next_available, is_unlogged, is_broken };
        let Served { stop, ring, .. } = served;
        // The frontend may unmap its memory as soon as it has the answer.
        drop(ring);
        let _ = stop.expect("looked at just now").send(stopped);
    }
}
