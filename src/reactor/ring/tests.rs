//! The ring on a simulated engine, driven by a raw guest driver.

#[path = "tests/dirty.rs"]
mod dirty_log;
#[path = "../../../tests/common/guest.rs"]
mod guest;
#[path = "tests/limits.rs"]
mod limits;
#[path = "tests/inflight.rs"]
mod region;

use std::collections::HashSet;

use super::*;
use crate::base::clock::Nanos;
use crate::base::ids::{DiskId, VhdId};
use crate::base::limits::{POP_BATCH, POP_BYTES, REQUEST_LEN_MAX, RING_BYTES_MAX};
use crate::base::rng::Rng;
use crate::base::units::{BlockMask, ExtentIndex, Generation, Geometry, SlotIndex};
use crate::disk::BlockDev;
use crate::disk::sim::SimDisk;
use crate::engine::sim::SimEngine;
use crate::placement::ReplicaSet;
use crate::placement::view::VhdMap;
use crate::reactor::messages::{Outbox, OwnerRequest, ReactorMessage, RingKey};
use crate::reactor::pipeline::{Pipeline, Token};
use crate::shared::{DiskState, VhdSettings};
use crate::store::change::{Change, CommitRequest};
use guest::{Guest, PER_SLOT, READ, WRITE};

const REACTOR: ReactorId = ReactorId(0);
const NOW: Nanos = Nanos(0);

/// Everything is placed and present: nobody is asked anything.
struct Nobody;

impl Outbox for Nobody {
    fn to_owner(&mut self, message: OwnerRequest) {
        panic!("{message:?}");
    }

    fn change(&mut self, change: Change) {
        panic!("{change:?}");
    }

    fn commit(&mut self, request: CommitRequest) {
        panic!("{request:?}");
    }

    fn to_reactor(&mut self, _reactor: ReactorId, _message: ReactorMessage) {
        panic!("there is one reactor");
    }

    fn room_for_mover(&mut self) {
        panic!("there is no mover");
    }
}

struct Bench {
    guest: Guest,
    ring: Ring,
    pipeline: Pipeline<SimEngine, Nobody>,
    disk: SimDisk,
}

fn vhd() -> Arc<VhdState> {
    let geometry = Geometry::new(1 << 20).unwrap();
    let map = VhdMap::new(4);
    for extent in 0..4 {
        let place = ReplicaSet::single(DiskId(0), SlotIndex(extent));
        map.restore(ExtentIndex(extent), place, BlockMask::ALL, Generation(0));
    }
    let settings = VhdSettings {
        id: VhdId(1),
        uuid: uuid::Uuid::nil(),
        geometry,
        block_size: 512,
        read_only: false,
        thick: false,
        checksums: false,
    };
    Arc::new(VhdState::new(settings, 4 << 20, map, 1))
}

fn config(guest: &Guest, event_idx: bool) -> RingConfig {
    let (descriptors, available, used) = guest.addresses();
    RingConfig {
        key: RingKey(1),
        vhd: vhd(),
        index: 0,
        size: guest.size,
        addresses: RingAddresses { descriptors, available, used },
        next_available: 0,
        inflight: None,
        log: None,
        event_idx,
        indirect: false,
        writeback: Arc::new(AtomicBool::new(true)),
        load: Arc::default(),
        features: 0,
        memory: Arc::clone(&guest.memory),
        kick: None,
        call: None,
        error: None,
    }
}

impl Bench {
    fn new(slots: u16, event_idx: bool, first_index: u16) -> Bench {
        Bench::with_data(slots, 64 << 10, event_idx, first_index)
    }

    /// With buffers of `data_len` bytes.
    fn with_data(slots: u16, data_len: usize, event_idx: bool, first_index: u16) -> Bench {
        let mut guest = Guest::new(slots, data_len, event_idx);
        guest.resume_at(first_index);
        let mut config = config(&guest, event_idx);
        config.next_available = first_index;
        let ring = Ring::open(&config).unwrap();
        let disk = SimDisk::new(8 << 20, 512);
        let mut engine = SimEngine::new(64);
        engine.add_disk(DiskId(0), disk.clone(), 4);
        let mut pipeline = Pipeline::new(REACTOR, engine, Nobody);
        pipeline.add_disk(Arc::new(DiskState::new(DiskId(0), "d".into(), 0, 8, 512, 4)));
        pipeline.reserve(ring.slots());
        Bench { guest, ring, pipeline, disk }
    }

    /// Pops as a reactor does that sleeps when there is nothing left.
    fn pop(&mut self) -> Result<Popped, RingFault> {
        loop {
            let popped = self.pop_once()?;
            if popped != Popped::All || !self.ring.arm()? {
                return Ok(popped);
            }
        }
    }

    fn pop_once(&mut self) -> Result<Popped, RingFault> {
        self.ring.pop(&mut self.pipeline, REACTOR, |head| Token(u64::from(head)), NOW)
    }

    /// Gives back what is done; whether to interrupt.
    fn deliver(&mut self) -> bool {
        self.pipeline.poll(NOW);
        while let Some(finished) = self.pipeline.next_finished_with(|_, request| self.ring.note_data(request)) {
            let head = u16::try_from(finished.token.0).unwrap();
            self.ring.complete(head, &finished).unwrap();
        }
        self.ring.publish().unwrap()
    }

    fn finish_all(&mut self) -> bool {
        self.pipeline.engine.finish_all(&mut Rng::new(1));
        self.deliver()
    }
}

#[test]
fn requests_go_round_at_index_zero_and_across_the_wrap() {
    for first in [0, 65_530] {
        let mut bench = Bench::new(4, true, first);
        for round in 0..20u8 {
            let slot = u16::from(round % 4);
            bench.guest.put_data(slot, &[round; 1024]);
            bench.guest.submit(slot, WRITE, u64::from(round) * 2, 1024, 512);
            assert_eq!(bench.pop().unwrap(), Popped::All);
            bench.finish_all();
            assert_eq!(bench.guest.take(), Some((slot, 0)));
            bench.guest.submit(slot, READ, u64::from(round) * 2, 512, 0);
            assert_eq!(bench.pop().unwrap(), Popped::All);
            bench.finish_all();
            assert_eq!(bench.guest.take_used(), Some((slot * PER_SLOT, 513)));
            assert_eq!(bench.guest.data(slot, 512), [round; 512]);
        }
        assert_eq!(bench.ring.next_available(), first.wrapping_add(40));
        let mut bytes = [0; 1];
        bench.disk.read_at(19 * 1024, &mut bytes).unwrap();
        assert_eq!(bytes, [19]);
    }
}

#[test]
fn every_chain_is_given_back_exactly_once_in_any_order() {
    for seed in 0..200 {
        let mut rng = Rng::new(seed);
        let mut bench = Bench::new(16, seed % 2 == 0, u16::try_from(rng.below(65_536)).unwrap());
        let mut under_way = HashSet::new();
        let mut model = vec![0u8; 4 << 20];
        for step in 0..400u32 {
            match rng.below(4) {
                0 => {
                    if let Some(slot) = (0..16).find(|slot| !under_way.contains(slot)) {
                        // Slots keep to their own part of the disk, so that the content is known.
                        let sector = u64::from(slot) * 512 + rng.below(100);
                        let len = usize::try_from(rng.below(64) + 1).unwrap() * 512;
                        let fill = step.to_le_bytes()[0];
                        bench.guest.put_data(slot, &vec![fill; len]);
                        bench.guest.submit(slot, WRITE, sector, len, len / 1024 * 512);
                        let at = usize::try_from(sector).unwrap() * 512;
                        model[at..at + len].fill(fill);
                        under_way.insert(slot);
                    }
                }
                1 => while bench.pop().unwrap() == Popped::More {},
                2 => {
                    bench.pipeline.engine.step(&mut rng);
                }
                _ => {
                    bench.deliver();
                }
            }
            while let Some((slot, status)) = bench.guest.take() {
                assert_eq!(status, 0, "seed {seed}");
                assert!(under_way.remove(&slot), "seed {seed}: given back twice");
            }
        }
        while bench.pop().unwrap() == Popped::More {}
        bench.finish_all();
        while let Some((slot, _)) = bench.guest.take() {
            assert!(under_way.remove(&slot), "seed {seed}: given back twice");
        }
        assert!(under_way.is_empty() && bench.ring.in_flight() == 0, "seed {seed}: {under_way:?} lost");
        let mut content = vec![0; model.len()];
        bench.disk.read_at(0, &mut content).unwrap();
        assert!(content == model, "seed {seed}");
    }
}

#[test]
fn a_batch_is_published_and_interrupts_once() {
    for event_idx in [false, true] {
        let mut bench = Bench::new(8, event_idx, 7);
        assert!(bench.guest.arm_interrupt());
        (0..8).for_each(|slot| bench.guest.submit(slot, READ, 0, 512, 0));
        bench.pop().unwrap();
        assert_eq!(bench.guest.completed_count(), 0);
        assert!(bench.finish_all(), "event_idx {event_idx}");
        assert_eq!(bench.guest.completed_count(), 8);
        assert!(!bench.deliver(), "nothing new");
        // Without being asked again: by event index no interrupt, by flag only if suppressed.
        bench.guest.suppress_interrupts(true);
        while bench.guest.take().is_some() {}
        bench.guest.submit(0, READ, 0, 512, 0);
        bench.pop().unwrap();
        assert!(!bench.finish_all(), "event_idx {event_idx}");
    }
}

#[test]
fn a_guest_kicks_only_when_the_ring_was_empty() {
    for event_idx in [false, true] {
        let mut bench = Bench::new(8, event_idx, 0);
        bench.pop().unwrap();
        bench.guest.submit(0, READ, 0, 512, 0);
        assert!(bench.guest.needs_kick(), "event_idx {event_idx}");
        bench.guest.submit(1, READ, 0, 512, 0);
        if event_idx {
            assert!(!bench.guest.needs_kick(), "the event has passed");
        }
        bench.pop().unwrap();
        bench.guest.submit(2, READ, 0, 512, 0);
        assert!(bench.guest.needs_kick(), "event_idx {event_idx}");
    }
}

#[test]
fn large_rings_take_turns() {
    let mut bench = Bench::new(256, true, 0);
    (0..200).for_each(|slot| bench.guest.submit(slot, READ, u64::from(slot), 512, 0));
    assert_eq!(bench.pop().unwrap(), Popped::More);
    assert_eq!(usize::from(bench.ring.in_flight()), POP_BATCH);
    while bench.pop().unwrap() == Popped::More {}
    assert_eq!(bench.ring.in_flight(), 200);
    for _ in 0..20 {
        bench.finish_all();
    }
    assert_eq!(bench.guest.completed_count(), 200);
}

#[test]
fn a_turn_ends_after_so_many_bytes_and_so_many_descriptors() {
    const LEN: usize = 64 << 10;
    let mut bench = Bench::new(128, true, 0);
    (0..128).for_each(|slot| bench.guest.submit(slot, READ, 0, LEN, 0));
    let mut turns = 1;
    let mut before = 0;
    while bench.pop().unwrap() == Popped::More {
        let popped = bench.ring.in_flight() - before;
        assert!(u64::from(popped) * LEN as u64 <= POP_BYTES, "turn {turns}: {popped} requests");
        before = bench.ring.in_flight();
        turns += 1;
    }
    assert_eq!(bench.ring.in_flight(), 128);
    assert!(turns > 2, "{turns} turns");

    // Chains as long as the ring, without an end.
    let mut bench = Bench::new(128, true, 0);
    for descriptor in 0..512 {
        bench.guest.set_descriptor(descriptor, 0x3_0000, 1, 1, (descriptor + 1) % 512);
    }
    (0..100).for_each(|_| bench.guest.push_available(0));
    let mut malformed = Vec::new();
    while bench.pop().unwrap() == Popped::More {
        malformed.push(bench.ring.take_malformed().unwrap().count);
    }
    assert!(malformed.len() > 10 && malformed.iter().all(|count| *count < 10), "{malformed:?}");
}

/// Bytes of the chains in flight, by what the guest knows of them.
fn bytes_under_way(bench: &Bench, len: usize) -> u64 {
    u64::from(bench.ring.in_flight()) * len as u64
}

#[test]
fn a_ring_has_so_many_bytes_in_flight_and_no_more() {
    const LEN: usize = 1 << 20;
    let mut bench = Bench::with_data(256, LEN, true, 65_500);
    (0..256).for_each(|slot| bench.guest.submit(slot, READ, u64::from(slot % 4) * 2048, LEN, 0));
    let (mut most, mut given_back) = (0, 0);
    while given_back < 256 {
        let before = given_back;
        let mut popped = bench.pop_once().unwrap();
        while popped == Popped::More {
            popped = bench.pop_once().unwrap();
        }
        let bytes = bytes_under_way(&bench, LEN);
        assert!(bytes <= RING_BYTES_MAX, "{bytes} bytes");
        assert_eq!(popped == Popped::Full, bench.ring.is_full());
        let left = 256 - given_back - u32::from(bench.ring.in_flight());
        assert_eq!(popped == Popped::Full, bytes > RING_BYTES_MAX - REQUEST_LEN_MAX);
        assert!(popped == Popped::Full || left == 0, "{left} wait although there is room");
        most = most.max(bytes);
        bench.finish_all();
        while let Some((_, status)) = bench.guest.take() {
            assert_eq!(status, 0);
            given_back += 1;
        }
        assert!(given_back > before, "it goes on");
    }
    assert!(most > RING_BYTES_MAX - REQUEST_LEN_MAX && !bench.ring.is_full());
    assert!(!bench.ring.has_available(), "nothing is left");
}

#[test]
fn deep_queues_and_what_takes_no_memory_do_not_fill_a_ring() {
    const LEN: usize = 128 << 10;
    let mut bench = Bench::with_data(256, LEN, true, 0);
    (0..256).for_each(|slot| bench.guest.submit(slot, READ, u64::from(slot % 32) * 256, LEN, 0));
    while bench.pop().unwrap() == Popped::More {}
    assert_eq!((bytes_under_way(&bench, LEN), bench.ring.is_full()), (32 << 20, false));

    // Of 64 MiB each, if there were memory behind ranges.
    let kinds = [RequestKind::Discard, RequestKind::WriteZeroes, RequestKind::Flush, RequestKind::GetId];
    assert_eq!(kinds.map(RequestKind::data_len), [0; 4]);
}

#[test]
fn malformed_requests_are_answered_and_counted_and_the_others_go_on() {
    let mut bench = Bench::new(8, false, 0);
    bench.guest.submit(0, 77, 0, 0, 0);
    bench.guest.submit(1, READ, 1 << 40, 512, 0);
    bench.guest.submit(2, READ, 0, 512, 0);
    // Nothing but a header: nowhere to put a status.
    bench.guest.set_descriptor(12, 0x3_0000, 16, 0, 0);
    bench.guest.push_available(12);
    bench.pop().unwrap();
    bench.finish_all();
    let mut heads: Vec<_> = std::iter::from_fn(|| bench.guest.take_used()).collect();
    heads.sort_unstable();
    assert_eq!(heads, [(0, 0), (4, 0), (8, 513), (12, 0)]);
    assert_eq!([bench.guest.status(0), bench.guest.status(1), bench.guest.status(2)], [2, 1, 0]);
    assert_eq!(bench.ring.take_malformed().unwrap().count, 3);
    assert!(bench.ring.take_malformed().is_none());
    let metrics = bench.ring.vhd.metrics.of(REACTOR);
    assert_eq!(metrics.malformed.load(Ordering::Relaxed), 3);
}

#[test]
fn rules_of_the_ring_that_a_guest_breaks() {
    let mut bench = Bench::new(8, false, 0);
    bench.guest.set_available_index(33);
    assert!(matches!(bench.pop(), Err(RingFault::AvailableIndex)));
    assert!(bench.pipeline.is_idle(), "no request slot is lost");

    let mut bench = Bench::new(8, false, 0);
    bench.guest.push_available(32);
    assert!(matches!(bench.pop(), Err(RingFault::HeadOutOfRange(32))));
    assert!(bench.pipeline.is_idle(), "no request slot is lost");

    let mut bench = Bench::new(8, false, 0);
    bench.guest.submit(0, READ, 0, 512, 0);
    bench.guest.submit(0, READ, 0, 512, 0);
    assert!(matches!(bench.pop(), Err(RingFault::HeadInUse(0))));
    assert_eq!(bench.ring.in_flight(), 1, "the first one is owed all the same");
    bench.finish_all();
    assert_eq!(bench.guest.take(), Some((0, 0)));
    assert!(bench.pipeline.is_idle(), "no request slot is lost");

    // Every descriptor is a head, and then one more comes.
    let mut bench = Bench::new(1, false, 0);
    bench.guest.submit(0, READ, 0, 512, 0);
    bench.pop().unwrap();
    for head in [1, 2, 3] {
        bench.guest.set_descriptor(head, 0x3_0000, 16, 1, head + 1);
        bench.guest.push_available(head);
    }
    bench.pop().unwrap();
    bench.guest.push_available(0);
    assert!(matches!(bench.pop(), Err(RingFault::HeadInUse(0))));
}

#[test]
fn rings_that_cannot_be() {
    let guest = Guest::new(8, 4096, false);
    let refused = |change: &dyn Fn(&mut RingConfig)| {
        let mut config = config(&guest, false);
        change(&mut config);
        Ring::open(&config).err().expect("refused")
    };
    assert!(matches!(refused(&|c| c.size = 0), RingFault::Size(0)));
    assert!(matches!(refused(&|c| c.size = 48), RingFault::Size(48)));
    assert!(matches!(refused(&|c| c.size = 2048), RingFault::Size(2048)));
    let address = |fault| matches!(fault, RingFault::Address { .. });
    assert!(address(refused(&|c| c.addresses.descriptors += 8)));
    assert!(address(refused(&|c| c.addresses.available = 0)));
    assert!(address(refused(&|c| c.addresses.available += 1)));
    assert!(address(refused(&|c| c.addresses.used = 1 << 40)));
    assert!(address(refused(&|c| c.addresses.used = u64::MAX - 3)));
}

#[test]
fn memory_that_requests_in_flight_point_into_stays_mapped() {
    let mut bench = Bench::new(4, false, 0);
    bench.guest.put_data(0, &[5; 512]);
    bench.guest.submit(0, WRITE, 0, 512, 0);
    bench.pop().unwrap();
    let watch = Arc::downgrade(&bench.guest.memory);
    let other = Guest::new(4, 4096, false);
    bench.ring.set_memory(Arc::clone(&other.memory)).unwrap();
    bench.guest.memory = Arc::clone(&other.memory);
    assert!(watch.upgrade().is_some());
    bench.finish_all();
    assert!(watch.upgrade().is_none(), "let go once nothing is in flight");
    let nowhere = GuestMemoryMmap::from_ranges(&[(GuestAddress(1 << 40), 4096)]).unwrap();
    assert!(matches!(bench.ring.set_memory(Arc::new(nowhere)), Err(RingFault::Address { .. })));
}

#[test]
fn memory_that_the_kernel_finds_missing_breaks_the_ring_once_the_request_has_its_answer() {
    let (mut bench, mut other) = (Bench::new(4, false, 0), Bench::new(4, false, 0));
    for bench in [&mut bench, &mut other] {
        bench.guest.submit(0, WRITE, 0, 512, 0);
        bench.pop().unwrap();
    }
    bench.pipeline.engine.finish_all(&mut Rng::new(1));
    bench.pipeline.poll(NOW);
    let finished = Finished { status: Status::IoError, memory_lost: true, ..bench.pipeline.next_finished().unwrap() };
    assert!(matches!(bench.ring.complete(0, &finished), Err(RingFault::MemoryLost)));
    assert!(matches!(bench.ring.publish(), Err(RingFault::MemoryLost)));
    assert_eq!(bench.guest.take(), Some((0, 1)));
    bench.guest.submit(1, WRITE, 0, 512, 0);
    assert!(matches!(bench.pop_once(), Err(RingFault::MemoryLost)));
    other.finish_all();
    assert_eq!(other.guest.take(), Some((0, 0)), "nobody else's");
}

/// While a ring is looked at its guest need not kick; before that ends the guest is asked to, and what it made available just
/// before is seen.
#[test]
fn a_guest_kicks_only_once_the_ring_is_armed() {
    for event_idx in [false, true] {
        let mut bench = Bench::new(8, event_idx, 0);
        assert_eq!(bench.pop().unwrap(), Popped::All);
        bench.guest.submit(0, READ, 0, 512, 0);
        assert!(bench.guest.needs_kick(), "armed");
        assert!(bench.ring.has_available());
        assert_eq!(bench.pop_once().unwrap(), Popped::All);
        assert!(!bench.ring.has_available());
        bench.guest.submit(1, READ, 0, 512, 0);
        assert!(!bench.guest.needs_kick() && bench.ring.has_available(), "it is looked at");
        assert!(bench.ring.arm().unwrap(), "it came before the guest was asked to kick");
        assert_eq!(bench.pop_once().unwrap(), Popped::All);
        assert!(!bench.ring.arm().unwrap());
        bench.guest.submit(2, READ, 0, 512, 0);
        assert!(bench.guest.needs_kick());
        assert_eq!(bench.pop().unwrap(), Popped::All);
        for slot in 3..6 {
            bench.ring.disarm().unwrap();
            bench.guest.submit(slot, READ, 0, 512, 0);
            assert!(!bench.guest.needs_kick() && bench.ring.has_available(), "it is looked at again");
            assert_eq!(bench.pop().unwrap(), Popped::All);
        }
        bench.guest.submit(6, READ, 0, 512, 0);
        bench.ring.disarm().unwrap();
        bench.guest.submit(7, READ, 0, 512, 0);
        assert!(bench.ring.arm().unwrap(), "what came before and after is there");
        assert_eq!(bench.pop().unwrap(), Popped::All);
        bench.finish_all();
    }
}
