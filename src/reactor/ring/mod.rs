//! One vring: chains in, completions out. Knows guest memory and the pipeline, but no descriptor, ring or thread.
//!
//! Every chain popped is given back exactly once: the table of heads knows which ones the guest is owed. A guest that breaks
//! the rules of the ring itself (not just those of a request) breaks its ring, and nothing else.
//!
//! Unsafe: the status byte is written here.

mod dirty;
mod fault;
mod inflight;
mod place;
mod pop;
mod replay;
#[cfg(test)]
mod tests;
mod used;
mod waits;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::messages::{RingAddresses, RingConfig};
use super::pipeline::Finished;
use crate::base::ids::ReactorId;
use crate::base::limits::{QUEUE_SIZE_MAX, REQUEST_LEN_MAX, RING_BYTES_MAX};
use crate::qos::{Admission, Cost};
use crate::shared::limits::Known;
use crate::shared::{Load, VhdState, guest_memory};
use crate::virtio::device::DeviceLimits;
use crate::virtio::parse::{Answer, ParseError, Parsed};
use crate::virtio::request::{RequestKind, Status};
use dirty::Dirty;
pub(super) use fault::RingFault;
use inflight::{Inflight, Recovered};
use place::{check_addresses, host_address};
pub(super) use pop::Popped;
use replay::Replay;
use used::UsedRing;
use waits::Waits;

/// A chain that the guest is owed.
#[derive(Clone, Copy)]
struct Head {
    parsed: Parsed,
    kind: RequestKind,
}

/// A chain that was no valid request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Malformed {
    /// How many of them since the last time somebody asked.
    pub count: u64,
    /// What was wrong with the last one.
    pub error: ParseError,
}

/// A chain that was made available.
type Chain<'m> = DescriptorChain<&'m GuestMemoryMmap>;

/// A vring being served.
pub(super) struct Ring {
    pub vhd: Arc<VhdState>,
    pub index: u16,
    pub writeback: Arc<AtomicBool>,
    size: u16,
    addresses: RingAddresses,
    memory: Arc<GuestMemoryMmap>,
    /// Where the descriptor table is in our memory, for hints to the cache only.
    table: usize,
    /// Maps that requests in flight may still point into.
    old_memory: Vec<Arc<GuestMemoryMmap>>,
    limits: DeviceLimits,
    queue: Queue,
    used: UsedRing,
    event_idx: bool,
    /// Where it notes what it writes, during a live migration.
    dirty: Option<Dirty>,
    /// Something was written that it could not be noted in.
    is_unlogged: bool,
    heads: Box<[Option<Head>]>,
    in_flight: u16,
    /// Bytes that these chains read and write.
    bytes_in_flight: u64,
    /// What survives us of that, if the frontend keeps it.
    inflight: Option<Inflight>,
    /// Chains that somebody else popped and did not give back, as long as some are not started again.
    replay: Option<Replay>,
    /// Chains popped.
    load: Arc<Load>,
    /// What its VHD is limited to.
    known: Known,
    /// What waits while it is not popped from.
    waits: Waits,
    /// What the request that was started last took of that.
    last_cost: Cost,
    malformed: Option<Malformed>,
    /// The guest has been asked to kick.
    armed: bool,
    /// There were chains when it was: a guest that takes them back would keep us awake.
    announced: bool,
    /// [`guest_memory::losses`] when we looked last; `None`: not yet at this memory.
    losses: Option<u64>,
    /// Some of our memory is gone, and zeros are in its place: nothing read there may count.
    memory_lost: bool,
}

impl Ring {
    /// Checks the ring of a configuration and opens it.
    pub fn open(config: &RingConfig) -> Result<Ring, RingFault> {
        let size = config.size;
        if !size.is_power_of_two() || size > QUEUE_SIZE_MAX {
            return Err(RingFault::Size(size));
        }
        check_addresses(&config.memory, config.addresses, size)?;
        let mut queue = Queue::new(size)?;
        queue.try_set_desc_table_address(GuestAddress(config.addresses.descriptors))?;
        queue.try_set_avail_ring_address(GuestAddress(config.addresses.available))?;
        queue.try_set_used_ring_address(GuestAddress(config.addresses.used))?;
        queue.set_event_idx(config.event_idx);
        let used = UsedRing::open(&config.memory, config.addresses, size, config.event_idx)?;
        let kept = config.inflight.clone().map(|queue| Inflight::open(queue, size, used.published())).transpose()?;
        let (inflight, next_available, heads) = match kept {
            Some(Recovered { inflight, next_available, heads }) => (Some(inflight), next_available, heads),
            None => (None, None, Vec::new()),
        };
        queue.set_next_avail(next_available.unwrap_or(config.next_available));
        queue.set_ready(true);
        let replay = Replay::new(&config.memory, config.addresses, size, heads)?;
        let vhd = &config.vhd.settings;
        Ok(Ring {
            vhd: Arc::clone(&config.vhd),
            index: config.index,
            writeback: Arc::clone(&config.writeback),
            size,
            addresses: config.addresses,
            table: host_address(&config.memory, config.addresses.descriptors),
            memory: Arc::clone(&config.memory),
            old_memory: Vec::new(),
            limits: DeviceLimits::new(config.vhd.size(), vhd.block_size, vhd.read_only, vhd.geometry, config.features),
            queue,
            used,
            event_idx: config.event_idx,
            dirty: config.log.clone().map(|log| Dirty::new(log, &config.memory)),
            is_unlogged: false,
            heads: vec![None; usize::from(size)].into_boxed_slice(),
            in_flight: 0,
            bytes_in_flight: 0,
            inflight,
            replay,
            load: Arc::clone(&config.load),
            known: Known::default(),
            waits: Waits::default(),
            last_cost: Cost::default(),
            malformed: None,
            armed: true,
            announced: false,
            losses: None,
            memory_lost: false,
        })
    }

    /// Request slots to reserve: one for every entry, and one for an internal flush.
    pub fn slots(&self) -> usize {
        usize::from(self.size) + 1
    }

    /// Chains popped and not given back.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Whether so much is in flight that the next chain could be too much: nothing is popped before something is given back.
    pub fn is_full(&self) -> bool {
        self.bytes_in_flight > RING_BYTES_MAX - REQUEST_LEN_MAX
    }

    /// What the VHD was limited by when the ring was popped from last.
    pub fn admission(&self) -> Option<&Arc<Admission>> {
        self.known.admission.as_ref()
    }

    /// Whether chains that somebody else popped have not been started again yet.
    pub fn is_replaying(&self) -> bool {
        self.replay.is_some()
    }

    /// They are not started again: whoever serves the ring next finds them as we did.
    pub fn give_up_replay(&mut self) {
        self.replay = None;
    }

    /// The next available index to pop.
    pub fn next_available(&self) -> u16 {
        self.queue.next_avail()
    }

    /// The malformed chains since the last call.
    pub fn take_malformed(&mut self) -> Option<Malformed> {
        self.malformed.take()
    }

    /// Uses another map of guest memory from now on.
    pub fn set_memory(&mut self, memory: Arc<GuestMemoryMmap>) -> Result<(), RingFault> {
        check_addresses(&memory, self.addresses, self.size)?;
        self.table = host_address(&memory, self.addresses.descriptors);
        self.dirty.iter_mut().for_each(|dirty| dirty.set_memory(&memory));
        if let Some(replay) = self.replay.take() {
            self.replay = replay.moved_to(&memory, self.addresses, self.size)?;
        }
        let old = std::mem::replace(&mut self.memory, memory);
        self.losses = None;
        if self.in_flight > 0 {
            self.old_memory.push(old);
        }
        Ok(())
    }

    /// Whether the frontend has taken memory of this ring away. One atomic load, unless somebody lost something.
    fn memory_is_lost(&mut self) -> bool {
        let losses = Some(guest_memory::losses());
        if self.losses != losses {
            self.losses = losses;
            let (memory, kept) = (&self.memory, self.inflight.as_ref().map(Inflight::region_start));
            let log = self.dirty.as_ref().map(Dirty::region_start);
            let ours = |start| {
                [kept, log].contains(&Some(start))
                    || vm_memory::GuestMemoryBackend::iter(&**memory).any(|region| region.as_ptr().addr() == start)
            };
            self.memory_lost |= guest_memory::is_lost(ours);
        }
        self.memory_lost
    }

    /// The kernel has found some of it missing. Other rings of the device break, too, and so does one that is started with the same memory.
    fn lose_memory(&mut self) {
        self.memory_lost = true;
        let memory = &self.memory;
        let ours = |start| vm_memory::GuestMemoryBackend::iter(&**memory).any(|region| region.as_ptr().addr() == start);
        guest_memory::mark_lost(ours);
    }

    /// What guest memory said counts only if it is still there.
    fn unless_lost<T>(&mut self, result: Result<T, RingFault>) -> Result<T, RingFault> {
        if self.memory_is_lost() { Err(RingFault::MemoryLost) } else { self.unless_unnoted().and(result) }
    }

    /// Asks the guest to kick when it makes chains available. True if there are some already: pop them.
    pub fn arm(&mut self) -> Result<bool, RingFault> {
        self.armed = true;
        let more = self.queue.enable_notification(&*self.memory).map_err(RingFault::from);
        self.note_wish();
        self.announced = self.unless_lost(more)?;
        Ok(self.announced)
    }

    /// Takes that back: somebody will look. The guest may have kicked already.
    pub fn disarm(&mut self) -> Result<(), RingFault> {
        if !std::mem::take(&mut self.armed) {
            return Ok(());
        }
        self.announced = false;
        self.queue.disable_notification(&*self.memory)?;
        let forgotten = self.used.forget_kicks(&self.memory, self.queue.next_avail());
        self.note_wish();
        self.unless_lost(forgotten.map_err(RingFault::from))
    }

    fn reject(
        &mut self,
        reactor: ReactorId,
        head: u16,
        error: ParseError,
        answer: Option<Answer>,
    ) -> Result<(), RingFault> {
        if let Some(answer) = answer {
            // SAFETY: the byte was found in `self.memory`, which is mapped.
            unsafe { answer.at.write(answer.status) };
            self.note_status(answer.at);
        }
        self.vhd.metrics.of(reactor).malformed.fetch_add(1, Ordering::Relaxed);
        let count = self.malformed.map_or(0, |malformed| malformed.count) + 1;
        self.malformed = Some(Malformed { count, error });
        // A length of 0 promises nothing of the buffers; drivers look at the status byte.
        self.give_back(head, 0)?;
        Ok(())
    }

    fn give_back(&mut self, head: u16, len: u32) -> Result<(), GuestMemoryError> {
        if let Some(inflight) = &mut self.inflight {
            inflight.given_back(head);
        }
        let place = self.used.put(&self.memory, head, len)?;
        self.note_entry(place);
        Ok(())
    }

    /// Gives a chain back: status byte, then used entry. The guest sees it after [`Ring::publish`].
    ///
    /// # Panics
    /// If the guest is not owed that chain.
    pub fn complete(&mut self, head: u16, finished: &Finished) -> Result<(), RingFault> {
        let Head { parsed, kind } = self.heads[usize::from(head)].take().expect("a chain is given back once");
        self.in_flight -= 1;
        self.bytes_in_flight -= kind.data_len();
        if finished.memory_lost && !self.memory_lost {
            self.lose_memory();
        }
        // What was written may have been the zeros, or would be missing where the guest goes on.
        let bad = self.memory_is_lost() || self.is_unlogged;
        let mut status = if bad { Status::IoError } else { finished.status };
        // SAFETY: the byte was found in `self.memory` or in one of `self.old_memory`, which are mapped until no chain is in
        // flight.
        unsafe { parsed.status.write(status) };
        self.note_status(parsed.status);
        if self.is_unlogged && status == Status::Ok {
            status = Status::IoError;
            // SAFETY: as above; the guest does not look at it before the used index.
            unsafe { parsed.status.write(status) };
        }
        if self.in_flight == 0 {
            self.old_memory.clear();
        }
        let put = self.give_back(head, parsed.used_len(kind, status));
        self.unless_lost(put.map_err(RingFault::from))
    }

    /// Whether [`Ring::publish`] has something to show.
    pub fn has_unpublished(&self) -> bool {
        self.used.has_unpublished()
    }

    /// Shows the guest what was given back. Returns whether to interrupt it.
    pub fn publish(&mut self) -> Result<bool, RingFault> {
        let published = self.used.publish(&self.memory);
        self.note_index();
        if let (Some(inflight), false) = (&mut self.inflight, self.used.has_unpublished()) {
            inflight.published(self.used.published());
        }
        self.unless_lost(published.map_err(RingFault::from))
    }
}
