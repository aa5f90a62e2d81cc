//! Taking chains from a vring, one batch in a turn, and starting their requests.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::fault::available_fault;
use super::place::DESCRIPTOR;
use super::{Chain, Head, Ring, RingFault};
use crate::base::clock::Nanos;
use crate::base::ids::ReactorId;
use crate::base::limits::{POP_BATCH, POP_BYTES, POP_STEP_BYTES};
use crate::base::prefetch::prefetch;
use crate::engine::Engine;
use crate::qos::{Cost, Hold};
use crate::reactor::messages::Outbox;
use crate::reactor::pipeline::{Pipeline, RequestSlot, Token};
use crate::virtio::parse::{Parsed, parse};
use crate::virtio::request::{Request, RequestKind};

/// What [`Ring::pop`] left. The guest is not to kick as long as [`Ring::arm`] has not asked it to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::reactor) enum Popped {
    /// Nothing.
    All,
    /// Maybe more: pop again.
    More,
    /// Maybe more, for which there is no room: pop again once [`Ring::is_full`] is over.
    Full,
    /// At least one, which a limit of its VHD holds back: pop again when it says.
    Held {
        /// Until when, and by what.
        hold: Hold,
        /// Whether something was popped before.
        after_turn: bool,
    },
}

impl Ring {
    /// Pops a batch of chains and starts their requests, or starts again what somebody else popped. `token` makes the name of the
    /// request with a given head.
    pub fn pop<E: Engine, O: Outbox>(
        &mut self,
        pipeline: &mut Pipeline<E, O>,
        reactor: ReactorId,
        token: impl Fn(u16) -> Token,
        now: Nanos,
    ) -> Result<Popped, RingFault> {
        if self.is_full() {
            return Ok(Popped::Full);
        }
        self.vhd.limits.refresh(&mut self.known);
        let result = if self.is_replaying() {
            self.replay_batch(pipeline, reactor, token, now)
        } else {
            self.pop_batch(pipeline, reactor, token, now)
        };
        let result = self.unless_lost(result)?;
        Ok(if self.is_full() { Popped::Full } else { result })
    }

    fn replay_batch<E: Engine, O: Outbox>(
        &mut self,
        pipeline: &mut Pipeline<E, O>,
        reactor: ReactorId,
        token: impl Fn(u16) -> Token,
        now: Nanos,
    ) -> Result<Popped, RingFault> {
        let (mut budget, mut bytes) = (POP_BATCH, POP_BYTES);
        while budget > 0
            && bytes > 0
            && !self.is_full()
            && let Some(replay) = &mut self.replay
        {
            let memory = replay.memory();
            let chain = replay.next(&memory)?;
            let is_last = replay.is_done();
            bytes = bytes.saturating_sub(self.pop_one(pipeline, reactor, chain, &token, 0, now)?);
            budget -= 1;
            if is_last {
                self.replay = None;
            }
        }
        Ok(Popped::More)
    }

    fn pop_batch<E: Engine, O: Outbox>(
        &mut self,
        pipeline: &mut Pipeline<E, O>,
        reactor: ReactorId,
        token: impl Fn(u16) -> Token,
        now: Nanos,
    ) -> Result<Popped, RingFault> {
        let memory = Arc::clone(&self.memory);
        let memory: &GuestMemoryMmap = &memory;
        let (mut budget, mut bytes) = (POP_BATCH, POP_BYTES);
        if std::mem::take(&mut self.armed) {
            self.queue.disable_notification(memory)?;
            self.note_wish();
        }
        let mut hold = self.held_back(now);
        // Again and again, so that what comes meanwhile is in the same batch.
        while budget > 0 && bytes > 0 && !self.is_full() && hold.is_none() {
            let mut chains = [const { None }; POP_BATCH];
            let count = self.next_chains(memory, chains.iter_mut().take(budget))?;
            if count == 0 {
                break;
            }
            let (mut left, mut fault) = (count, None);
            for chain in chains.into_iter().flatten() {
                left -= 1;
                let index = self.queue.next_avail().wrapping_sub(left + 1);
                let waited_ns = self.waits.popped(index, now);
                match self.pop_one(pipeline, reactor, chain, &token, waited_ns, now) {
                    Ok(cost) => bytes = bytes.saturating_sub(cost),
                    Err(error) => fault = Some(error),
                }
                hold = self.held_back(now);
                if bytes == 0 || fault.is_some() || hold.is_some() || self.is_full() {
                    break;
                }
            }
            // What is left stays in the guest's ring.
            self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(left));
            budget -= usize::from(count - left);
            if let Some(fault) = fault {
                return Err(fault);
            }
        }
        self.load.add((POP_BATCH - budget) as u64);
        let after_turn = budget < POP_BATCH;
        if hold.is_some() || budget == 0 || bytes == 0 || self.is_full() {
            self.note_waiting(now);
        }
        // A ring without chains waits for its guest, not for a limit.
        let hold = hold.filter(|_| self.has_available());
        if std::mem::take(&mut self.announced) && !after_turn && hold.is_none() {
            return Err(RingFault::AvailableIndex);
        }
        Ok(match hold {
            Some(hold) => Popped::Held { hold: self.in_turn(hold, after_turn), after_turn },
            None if budget == 0 || bytes == 0 => Popped::More,
            None => Popped::All,
        })
    }

    /// Popping stops, though there may be more.
    fn note_waiting(&mut self, now: Nanos) {
        // Nonsense is found when it is popped.
        if let Ok(available) = self.queue.avail_idx(&*self.memory, Ordering::Acquire) {
            self.waits.note(self.queue.next_avail(), available.0, now);
        }
    }

    /// Whether a limit holds back the next request.
    fn held_back(&self, now: Nanos) -> Option<Hold> {
        self.known.admission.as_ref().and_then(|admission| admission.may_start(now).err())
    }

    /// A hold that lets those who wait go first, if we have just had a turn.
    fn in_turn(&self, hold: Hold, after_turn: bool) -> Hold {
        match &self.known.admission {
            Some(admission) if after_turn => admission.behind_others(hold, self.last_cost),
            _ => hold,
        }
    }

    /// Takes a request that starts from what the VHD is limited to.
    fn charge(&mut self, kind: RequestKind, now: Nanos) {
        let Some(admission) = &self.known.admission else { return };
        let cost = cost_of(kind);
        if cost.ios > 0 {
            admission.charge(cost, now);
            self.last_cost = cost;
        }
    }

    /// Takes chains that the guest has made available; how many.
    fn next_chains<'m, 'c>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        into: impl Iterator<Item = &'c mut Option<Chain<'m>>>,
    ) -> Result<u16, RingFault>
    where
        'm: 'c,
    {
        let mut count = 0;
        for (place, chain) in into.zip(self.queue.iter(memory).map_err(available_fault)?) {
            prefetch(self.table.wrapping_add(usize::from(chain.head_index()) * DESCRIPTOR));
            *place = Some(chain);
            count += 1;
        }
        Ok(count)
    }

    /// Starts the request of one chain. What it counts among [`POP_BYTES`].
    fn pop_one<E: Engine, O: Outbox>(
        &mut self,
        pipeline: &mut Pipeline<E, O>,
        reactor: ReactorId,
        chain: Chain<'_>,
        token: &impl Fn(u16) -> Token,
        waited_ns: u64,
        now: Nanos,
    ) -> Result<u64, RingFault> {
        let head = chain.head_index();
        match self.heads.get(usize::from(head)) {
            Some(None) => {}
            Some(Some(_)) => return Err(RingFault::HeadInUse(head)),
            None => return Err(RingFault::HeadOutOfRange(head)),
        }
        // As many chains are in flight as there are descriptors.
        let slot = if self.in_flight < self.size { pipeline.prepare() } else { None };
        let slot = slot.ok_or(RingFault::AvailableIndex)?;
        if waited_ns > 0 {
            pipeline.waited(slot, waited_ns);
        }
        if let (Some(inflight), None) = (&mut self.inflight, &self.replay) {
            inflight.popped(head);
        }
        let mut descriptors = 0;
        // After the chain was seen: whoever made it may have been told of more bytes just before.
        self.limits.capacity = self.vhd.size();
        let counted = chain.inspect(|_| descriptors += 1);
        let parsed = parse(counted, &self.memory, &self.limits, pipeline.request_mut(slot));
        if self.memory_is_lost() {
            pipeline.abandon(slot);
            return Err(RingFault::MemoryLost);
        }
        let mut cost = descriptors * POP_STEP_BYTES;
        match parsed {
            Ok(parsed) => {
                cost += self.cost(pipeline.request_mut(slot));
                self.start(pipeline, slot, head, parsed, token(head), now);
            }
            Err(rejected) => {
                pipeline.abandon(slot);
                self.reject(reactor, head, rejected.error, rejected.answer)?;
            }
        }
        Ok(cost)
    }

    /// Whether the guest has made chains available since the last pop. One load; what it says may be nonsense.
    pub fn has_available(&self) -> bool {
        let index = self.queue.avail_idx(&*self.memory, Ordering::Acquire);
        index.is_ok_and(|index| index.0 != self.queue.next_avail())
    }

    /// What a request counts among [`POP_BYTES`].
    fn cost(&self, request: &Request) -> u64 {
        let extent = self.vhd.settings.geometry.extent_size();
        let steps: u64 = request.ranges().iter().map(|range| range.len.div_ceil(extent)).sum();
        request.kind.data_len() + steps * POP_STEP_BYTES
    }

    fn start<E: Engine, O: Outbox>(
        &mut self,
        pipeline: &mut Pipeline<E, O>,
        slot: RequestSlot,
        head: u16,
        parsed: Parsed,
        token: Token,
        now: Nanos,
    ) {
        let kind = pipeline.request_mut(slot).kind;
        self.heads[usize::from(head)] = Some(Head { parsed, kind });
        self.in_flight += 1;
        self.bytes_in_flight += kind.data_len();
        self.charge(kind, now);
        let writethrough = !self.writeback.load(Ordering::Relaxed);
        pipeline.start(slot, &self.vhd, writethrough, token, now);
    }
}

/// What a request takes from the limits of its VHD. What is popped in order to keep its place, but asks nothing of a disk's rates, is free.
fn cost_of(kind: RequestKind) -> Cost {
    match kind {
        RequestKind::Read { len, .. } | RequestKind::Write { len, .. } => Cost { ios: 1, bytes: len },
        RequestKind::Discard | RequestKind::WriteZeroes => Cost { ios: 1, bytes: 0 },
        RequestKind::Flush | RequestKind::GetId => Cost::default(),
    }
}
