//! Which chains are in flight, kept where it survives us: each is given back exactly once, whatever instruction we die at (ordering
//! rule 9).
//!
//! A chain is marked when it is popped, in the order of the available ring, before anything is done about it. So those that were
//! popped are at any moment those that the used ring shows and those that are marked, and where to pop next follows from both.
//!
//! Giving back a batch: every chain is linked to the one before it and becomes the head of the batch; the used index is stored;
//! the marks are cleared; the region is told of the used index. Nothing else is popped or given back in between: a chain that the
//! guest has made available again must find its mark cleared, and the links of one batch must not become those of another before
//! its marks are cleared. If we die after the used index was stored, its distance from the one in the region says how many marks
//! are left to clear, and the links say which.

use crate::base::limits::POP_BATCH;
use crate::shared::inflight::{InflightQueue, VERSION_1};

/// What is wrong with an in-flight region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::reactor) enum InflightFault {
    #[error("version {0}, and not 1")]
    Version(u16),
    #[error("it is for {region} descriptors, and the ring has {ring}")]
    Size { region: u16, ring: u16 },
    #[error("its used index is {region}, and the ring's is {ring}, which is more than a batch ahead")]
    UsedIndex { region: u16, ring: u16 },
    #[error("a batch has descriptor {0}, which is outside the table")]
    Batch(u16),
    #[error("the mark of descriptor {head} is {mark}, and neither 0 nor 1")]
    Mark { head: u16, mark: u8 },
}

/// What the region says of a ring that is opened.
#[derive(Debug)]
pub(super) struct Recovered {
    pub inflight: Inflight,
    /// The next available index to pop; `None`: the region is new, and the frontend knows.
    pub next_available: Option<u16>,
    /// Chains to start again, in the order in which they were popped.
    pub heads: Vec<u16>,
}

/// The in-flight chains of one ring.
#[derive(Debug)]
pub(super) struct Inflight {
    queue: InflightQueue,
    counter: u64,
    /// Given back since the used index was stored last.
    batch: Vec<u16>,
}

impl Inflight {
    /// Begins to keep the chains of a ring of `size` entries, of which the used ring shows `used_index`; finds out what whoever was
    /// here before has left, and completes what it was about to do.
    pub fn open(queue: InflightQueue, size: u16, used_index: u16) -> Result<Recovered, InflightFault> {
        if queue.capacity() < size {
            return Err(InflightFault::Size { region: queue.capacity(), ring: size });
        }
        // Of one turn, and of all that may complete meanwhile; a guest that breaks the rules can make it grow.
        let batch = Vec::with_capacity(usize::from(size) + POP_BATCH);
        let mut inflight = Inflight { queue, counter: 0, batch };
        match inflight.queue.version() {
            0 => {
                inflight.begin(size, used_index);
                return Ok(Recovered { inflight, next_available: None, heads: Vec::new() });
            }
            VERSION_1 => {}
            other => return Err(InflightFault::Version(other)),
        }
        let descriptors = inflight.queue.descriptors();
        if descriptors != size {
            return Err(InflightFault::Size { region: descriptors, ring: size });
        }
        inflight.mend(size, used_index)?;
        let heads = inflight.marked(size)?;
        let marked = u16::try_from(heads.len()).expect("at most as many as descriptors");
        Ok(Recovered { inflight, next_available: Some(used_index.wrapping_add(marked)), heads })
    }

    /// Uses a new region. Its version comes last: what we die before does not count.
    fn begin(&mut self, size: u16, used_index: u16) {
        let queue = &self.queue;
        (0..queue.capacity()).filter(|head| queue.mark(*head) != 0).for_each(|head| queue.set_mark(head, false));
        queue.set_descriptors(size);
        queue.set_last_batch_head(0);
        queue.set_used_index(used_index);
        queue.set_version(VERSION_1);
    }

    /// Clears the marks of a batch that the guest has seen.
    fn mend(&mut self, size: u16, used_index: u16) -> Result<(), InflightFault> {
        let known = self.queue.used_index();
        let batch = used_index.wrapping_sub(known);
        if batch > size {
            return Err(InflightFault::UsedIndex { region: known, ring: used_index });
        }
        let mut head = self.queue.last_batch_head();
        for _ in 0..batch {
            if head >= size {
                return Err(InflightFault::Batch(head));
            }
            self.queue.set_mark(head, false);
            head = self.queue.next(head);
        }
        if batch > 0 {
            self.queue.set_used_index(used_index);
        }
        Ok(())
    }

    /// The chains that are marked, in the order in which they were popped.
    fn marked(&mut self, size: u16) -> Result<Vec<u16>, InflightFault> {
        let mut heads = Vec::new();
        for head in 0..size {
            match self.queue.mark(head) {
                0 => {}
                1 => heads.push((self.queue.counter(head), head)),
                mark => return Err(InflightFault::Mark { head, mark }),
            }
        }
        heads.sort_unstable();
        self.counter = heads.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Ok(heads.into_iter().map(|(_, head)| head).collect())
    }

    /// A chain is popped. Before anything is done about it.
    pub fn popped(&mut self, head: u16) {
        self.queue.set_counter(head, self.counter);
        self.queue.set_mark(head, true);
        self.counter = self.counter.wrapping_add(1);
    }

    /// A chain is given back; the guest does not see it yet.
    pub fn given_back(&mut self, head: u16) {
        self.queue.set_next(head, self.queue.last_batch_head());
        self.queue.set_last_batch_head(head);
        self.batch.push(head);
    }

    /// The guest sees everything that was given back, up to `used_index`.
    pub fn published(&mut self, used_index: u16) {
        for head in self.batch.drain(..) {
            self.queue.set_mark(head, false);
        }
        self.queue.set_used_index(used_index);
    }

    /// The first address of the region, by which `guest_memory` knows it.
    pub fn region_start(&self) -> usize {
        self.queue.region_start()
    }
}
