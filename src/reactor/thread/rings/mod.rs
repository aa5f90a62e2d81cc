//! The rings of one reactor: which ones are ready, which ones have something to show. `commands`: what vhost-user
//! connections want of them. `held`: those that a limit holds back.

mod commands;
mod done;
mod held;

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};

use crossbeam_channel::Sender;

use super::gate::LogGate;
use super::signal::CallFd;
use crate::base::clock::Nanos;
use crate::base::ids::ReactorId;
use crate::engine::uring::{Event, EventTag, UringEngine};
use crate::reactor::messages::{Outbox, RingKey, RingStopped};
use crate::reactor::pipeline::{Finished, Pipeline, Token};
use crate::reactor::ring::{Malformed, Popped, Ring, RingFault};
use crate::virtio::request::{Request, Status};
use done::Done;
use held::{Held, HeldRings, Turn};

/// The pipeline that runs in production.
pub(super) type UringPipeline<O> = Pipeline<UringEngine, O>;

/// Bits of a token: the head, whether it is an internal flush, the place of the ring.
const FLUSH: u64 = 1 << 16;
const TOKEN_PLACE_SHIFT: u32 = 17;
/// Bits of an event tag: the place of the ring, then a number that makes tags of earlier descriptors meet nobody.
const TAG_PLACE_BITS: u32 = 24;
/// Rings that are looked at without end while the reactor polls; with more of them it does not.
const HOT_POLLED_MAX: usize = 16;
/// Turns after which a ring that nobody used is not looked at any more.
const QUIET_TURNS_MAX: u8 = 64;

/// Whether a ring pops.
enum Mode {
    Running,
    /// No popping until what is in flight has completed, or the ring is told to go on.
    Yielding,
    /// No more popping: the frontend or the daemon wants it to end.
    Ended,
    /// No more popping: the guest or its frontend broke it.
    Broken,
}

struct Served {
    key: RingKey,
    ring: Ring,
    mode: Mode,
    kick: Option<(OwnedFd, EventTag)>,
    call: Option<CallFd>,
    /// To tell the frontend that the ring is broken.
    error: Option<CallFd>,
    /// To tell it that there is something in its dirty log.
    log_call: Option<CallFd>,
    /// In the queue of rings to pop from.
    queued: bool,
    /// In the list of rings with something to publish.
    unpublished: bool,
    /// What it has to publish.
    done: Done,
    /// A limit holds back what its guest has made available: nobody looks, and the guest need not kick.
    held: Option<Held>,
    /// Its turn among those, as long as it has not been popped from since it got it.
    turn: Option<Turn>,
    /// In the list of rings whose guest does not kick.
    hot: bool,
    /// Turns since it was popped from.
    quiet_turns: u8,
    stop: Option<Sender<RingStopped>>,
    /// Who waits for the switch to writethrough: no popping until it is done.
    switching: Vec<Sender<bool>>,
    flushing: bool,
}

impl Served {
    fn is_polled(&self) -> bool {
        self.kick.is_none() && matches!(self.mode, Mode::Running)
    }

    /// Whoever serves the ring next may not look at it before its guest kicks, and not every backend asks for that.
    fn hand_back(&mut self) {
        // A fault here is a fault of whoever comes next.
        let _ = self.ring.arm();
    }

    /// Nothing is popped any more. A ring that was about to go on elsewhere does not: nobody is told that it has stopped.
    fn end(&mut self, mode: Mode) {
        if matches!(self.mode, Mode::Yielding) {
            self.stop = None;
        }
        self.mode = mode;
    }

    /// What was in flight when somebody else served the ring is started again even if it is about to stop: whoever serves it next
    /// may not be told of that. A ring that is full goes on when something of it completes: until then its guest need not kick, nor
    /// anybody look.
    fn pops(&self) -> bool {
        let is_free = matches!(self.mode, Mode::Running) && self.switching.is_empty() && self.held.is_none();
        (self.ring.is_replaying() || is_free) && !self.ring.is_full()
    }
}

/// All rings of a reactor.
pub(super) struct Rings {
    reactor: ReactorId,
    places: Vec<Option<Served>>,
    free: Vec<u32>,
    by_key: HashMap<RingKey, u32>,
    /// Rings to pop from, in turn.
    ready: VecDeque<u32>,
    /// Rings that a limit holds back.
    held: HeldRings,
    /// Rings with something to publish.
    unpublished: Vec<u32>,
    /// Rings popped from since we slept last: their guests do not kick, so they are looked at.
    hot: Vec<u32>,
    next_tag: u64,
    /// Descriptors that were given up, as long as a signal of theirs is under way.
    retired: Vec<CallFd>,
    /// Rings that pop and have no kick eventfd.
    polled: usize,
    leaving: bool,
    malformed_log: LogGate,
    broken_log: LogGate,
}

impl Rings {
    pub fn new(reactor: ReactorId) -> Rings {
        Rings {
            reactor,
            places: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            ready: VecDeque::new(),
            held: HeldRings::default(),
            unpublished: Vec::new(),
            hot: Vec::new(),
            next_tag: 0,
            retired: Vec::new(),
            polled: 0,
            leaving: false,
            malformed_log: LogGate::default(),
            broken_log: LogGate::default(),
        }
    }

    /// Whether some ring may have chains that nobody will announce.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether some ring must be looked at from time to time.
    pub fn has_polled(&self) -> bool {
        self.polled > 0
    }

    /// Descriptors that were given up, and to which a worker of the kernel has still to write, stay open as long as the process: the ring may
    /// go on without this reactor, and a frontend can keep the worker waiting for ever.
    pub fn leave_open(&mut self) {
        self.retired.drain(..).for_each(CallFd::leave_open);
    }

    /// No ring pops any more.
    pub fn leave(&mut self) {
        self.leaving = true;
        for place in 0..self.places.len() {
            let Some(served) = &mut self.places[place] else { continue };
            served.end(Mode::Ended);
            served.ring.give_up_replay();
            served.hand_back();
            // A stop may have waited for that.
            self.force_unpublished(u32::try_from(place).expect("checked at start"));
        }
    }

    /// Takes what happened on a descriptor of a ring.
    pub fn event(&mut self, event: Event, engine: &mut UringEngine, now: Nanos) {
        let (Event::Readable { tag, .. } | Event::WatchFailed { tag } | Event::Signalled { tag }) = event;
        if matches!(event, Event::Signalled { .. }) {
            self.retired.retain(|call| !call.is_named(tag));
        }
        let place = u32::try_from(tag.0 & ((1 << TAG_PLACE_BITS) - 1)).expect("24 bits");
        let Some(Some(served)) = self.places.get_mut(place as usize) else { return };
        let is_kick = served.kick.as_ref().is_some_and(|kick| kick.1 == tag);
        match event {
            Event::Signalled { tag } => {
                let calls = [&mut served.call, &mut served.error, &mut served.log_call];
                calls.into_iter().flatten().for_each(|call| call.delivered(tag, engine));
            }
            Event::Readable { watched, .. } if is_kick => {
                if let (false, Some((kick, _))) = (watched, &served.kick) {
                    engine.watch(kick.as_fd(), tag);
                }
                self.queue(place);
            }
            Event::WatchFailed { .. } if is_kick => self.break_ring(place, &RingFault::KickLost, engine, now),
            // Of a descriptor that was given up.
            Event::Readable { .. } | Event::WatchFailed { .. } => {}
        }
    }

    /// Queues the rings that have no kick eventfd.
    pub fn queue_polled(&mut self) {
        for place in 0..self.places.len() {
            if self.places[place].as_ref().is_some_and(Served::is_polled) {
                self.queue(u32::try_from(place).expect("checked at start"));
            }
        }
    }

    /// Whether there are so many rings to look at that doing so again and again would take long.
    pub fn are_many(&self) -> bool {
        self.hot.len() > HOT_POLLED_MAX
    }

    /// Whether the guest of a ring that was popped from lately has made chains available.
    pub fn sees_available(&self) -> bool {
        self.hot.iter().any(|&place| self.has_available(place))
    }

    fn has_available(&self, place: u32) -> bool {
        self.places[place as usize].as_ref().is_some_and(|served| served.pops() && served.ring.has_available())
    }

    /// Queues the rings popped from lately whose guests have made chains available. A ring that has been quiet for many turns is
    /// armed: on a reactor that never sleeps it would be looked at for ever.
    pub fn queue_available(&mut self, engine: &mut UringEngine, now: Nanos) {
        let mut at = 0;
        while let Some(&place) = self.hot.get(at) {
            at += 1;
            if self.has_available(place) {
                self.queue(place);
                continue;
            }
            let Some(served) = &mut self.places[place as usize] else { continue };
            served.quiet_turns = served.quiet_turns.saturating_add(1);
            if served.quiet_turns > QUIET_TURNS_MAX {
                at -= 1;
                self.hot.swap_remove(at);
                self.arm_one(place, engine, now);
            }
        }
    }

    /// Asks the guests that do not kick to do so, before the reactor sleeps. True if one of them has made chains available.
    pub fn arm(&mut self, engine: &mut UringEngine, now: Nanos) -> bool {
        while let Some(place) = self.hot.pop() {
            self.arm_one(place, engine, now);
        }
        self.has_ready()
    }

    /// Arms a ring that has been taken off the list.
    fn arm_one(&mut self, place: u32, engine: &mut UringEngine, now: Nanos) {
        let Some(served) = &mut self.places[place as usize] else { return };
        served.hot = false;
        if !served.pops() || served.is_polled() {
            return;
        }
        match served.ring.arm() {
            Ok(false) => {}
            Ok(true) => self.queue(place),
            Err(fault) => self.break_ring(place, &fault, engine, now),
        }
    }

    /// Looks at a ring that was armed.
    fn disarm(&mut self, place: u32, engine: &mut UringEngine, now: Nanos) {
        let served = self.served(place);
        if served.hot || !served.pops() || served.is_polled() {
            return;
        }
        (served.hot, served.quiet_turns) = (true, 0);
        let disarmed = served.ring.disarm();
        self.hot.push(place);
        if let Err(fault) = disarmed {
            self.break_ring(place, &fault, engine, now);
        }
    }

    /// Pops from every ring that is ready, once.
    pub fn pop_ready<O: Outbox>(&mut self, pipeline: &mut UringPipeline<O>, now: Nanos) {
        for _ in 0..self.ready.len() {
            let Some(place) = self.ready.pop_front() else { return };
            let reactor = self.reactor;
            let Some(served) = &mut self.places[place as usize] else { continue };
            served.queued = false;
            if !served.pops() {
                continue;
            }
            served.quiet_turns = 0;
            if !std::mem::replace(&mut served.hot, true) {
                self.hot.push(place);
            }
            let token = |head| Token(u64::from(place) << TOKEN_PLACE_SHIFT | u64::from(head));
            let result = served.ring.pop(pipeline, reactor, token, now);
            if !matches!(result, Ok(Popped::Held { after_turn: false, .. })) {
                served.turn = None;
            }
            let malformed = served.ring.take_malformed();
            self.note_unpublished(place);
            match result {
                Ok(Popped::All | Popped::Full) => {}
                Ok(Popped::More) => self.queue(place),
                Ok(Popped::Held { hold, .. }) => self.hold(place, hold, pipeline, now),
                Err(fault) => self.break_ring(place, &fault, &mut pipeline.engine, now),
            }
            if let Some(malformed) = malformed {
                self.log_malformed(place, malformed, now);
            }
        }
    }

    /// Gives back every chain whose request is done, and interrupts the guests that want to know. `look`: somebody will look for
    /// what they ask for next, so they need not kick. Returns when the last one was shown what is done.
    pub fn deliver<O: Outbox>(&mut self, pipeline: &mut UringPipeline<O>, look: bool, now: Nanos) -> Option<Nanos> {
        let mut shown = None;
        while let Some(finished) = pipeline.next_finished_with(|finished, request| self.note_data(finished, request)) {
            let place = place_of(finished.token);
            if finished.token.0 & FLUSH == 0 {
                self.complete(place, &finished, &mut pipeline.engine, now);
            } else {
                self.flushed(place, finished.status);
            }
        }
        while let Some(place) = self.unpublished.pop() {
            let Some(served) = &mut self.places[place as usize] else { continue };
            served.unpublished = false;
            let published = served.ring.publish();
            shown = served.done.shown(served.ring.vhd.metrics.of(self.reactor), now).or(shown);
            match published {
                Ok(true) => served.call.iter_mut().for_each(|call| call.signal(&mut pipeline.engine)),
                Ok(false) => {}
                Err(fault) => self.break_ring(place, &fault, &mut pipeline.engine, now),
            }
            if let Some(Served { log_call: Some(call), .. }) = &mut self.places[place as usize] {
                call.signal(&mut pipeline.engine);
            }
            if look && self.hot.len() < HOT_POLLED_MAX {
                self.disarm(place, &mut pipeline.engine, now);
            }
            self.settle(place, pipeline, now);
        }
        shown
    }

    /// Notes what a request of a guest has written to its memory, if somebody wants to know.
    fn note_data(&mut self, finished: &Finished, request: &Request) {
        if finished.token.0 & FLUSH == 0 {
            let reactor = self.reactor;
            let served = self.served(place_of(finished.token));
            served.ring.note_data(request);
            if let Some(kind) = Finished::transfer(request.kind) {
                served.done.add(kind, finished.back_ns, served.ring.vhd.metrics.of(reactor));
            }
        }
    }

    fn complete(&mut self, place: u32, finished: &Finished, engine: &mut UringEngine, now: Nanos) {
        let head = u16::try_from(finished.token.0 & 0xffff).expect("16 bits");
        let ring = &mut self.served(place).ring;
        let was_full = ring.is_full();
        let result = ring.complete(head, finished);
        if was_full && !ring.is_full() {
            self.queue(place);
        }
        // Whatever the result: a stop may wait for this.
        self.force_unpublished(place);
        if let Err(fault) = result {
            self.break_ring(place, &fault, engine, now);
        }
    }

    /// The flush of a switch to writethrough is done.
    fn flushed(&mut self, place: u32, status: Status) {
        let served = self.served(place);
        served.flushing = false;
        for reply in served.switching.drain(..) {
            let _ = reply.send(status == Status::Ok);
        }
        self.queue(place);
        // So that a stop that waited for it goes on.
        self.force_unpublished(place);
    }

    /// The guest or its VMM broke the ring: it pops no more, and waits to be stopped.
    fn break_ring(&mut self, place: u32, fault: &RingFault, engine: &mut UringEngine, now: Nanos) {
        let served = self.served(place);
        if served.ring.is_replaying() {
            served.ring.give_up_replay();
            // A stop may have waited for that.
            self.force_unpublished(place);
        }
        let served = self.served(place);
        if matches!(served.mode, Mode::Ended | Mode::Broken) {
            return;
        }
        served.end(Mode::Broken);
        served.error.iter_mut().for_each(|error| error.signal(engine));
        let (uuid, index) = (served.ring.vhd.settings.uuid, served.ring.index);
        self.count_polled();
        self.log_broken(&uuid, index, fault, now);
    }

    /// Nobody is to stay awake for a ring that is no longer polled.
    fn count_polled(&mut self) {
        self.polled = self.places.iter().flatten().filter(|served| served.is_polled()).count();
    }

    fn log_broken(&mut self, vhd: &uuid::Uuid, index: u16, fault: &RingFault, now: Nanos) {
        if let Some(held_back) = self.broken_log.pass(now) {
            log::warn!(
                "VHD {vhd}, queue {index}: the ring is broken and stops until the guest resets its device: {fault} \
                 ({held_back} more broken rings not logged)"
            );
        }
    }

    fn log_malformed(&mut self, place: u32, malformed: Malformed, now: Nanos) {
        if let Some(held_back) = self.malformed_log.pass(now) {
            let ring = &self.served(place).ring;
            let (vhd, index, Malformed { count, error }) = (ring.vhd.settings.uuid, ring.index, malformed);
            log::warn!(
                "VHD {vhd}, queue {index}: {count} malformed requests, the last one: {error} \
                 ({held_back} batches with more not logged)"
            );
        }
    }

    fn queue(&mut self, place: u32) {
        let served = self.served(place);
        if !served.queued {
            served.queued = true;
            self.ready.push_back(place);
        }
    }

    fn note_unpublished(&mut self, place: u32) {
        if self.served(place).ring.has_unpublished() {
            self.force_unpublished(place);
        }
    }

    fn force_unpublished(&mut self, place: u32) {
        let served = self.served(place);
        if !served.unpublished {
            served.unpublished = true;
            self.unpublished.push(place);
        }
    }

    fn new_tag(&mut self, place: u32) -> EventTag {
        self.next_tag = (self.next_tag + 1) & 0xffff_ffff;
        EventTag(self.next_tag << TAG_PLACE_BITS | u64::from(place))
    }

    fn place(&self, key: RingKey) -> Option<u32> {
        self.by_key.get(&key).copied()
    }

    fn served(&mut self, place: u32) -> &mut Served {
        self.places[place as usize].as_mut().expect("a ring stays until nothing of it is in flight")
    }
}

/// The place of the ring that a request belongs to.
fn place_of(token: Token) -> u32 {
    u32::try_from(token.0 >> TOKEN_PLACE_SHIFT).expect("our own token")
}
