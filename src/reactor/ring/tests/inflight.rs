//! The in-flight region: we die between any two stores, again and again, and the guest gets every chain back once.

use vm_memory::{Bytes, MmapRegion};

use super::*;
use crate::shared::guest_memory::Watch;
use crate::shared::inflight::{InflightQueue, InflightRegion, VERSION_1, fuse, region_len};

const SLOTS: u16 = 4;

pub fn region(queue_size: u16) -> InflightQueue {
    let len = region_len(1, queue_size);
    let mapping = MmapRegion::new(len).unwrap();
    let watch = Watch::new(mapping.as_ptr(), len.next_multiple_of(4096), 4096).unwrap();
    Arc::new(InflightRegion::new(mapping, watch, 1, queue_size)).queue(0).unwrap()
}

/// Serves the ring of a guest that goes on, with a new life; where the frontend says to begin is nonsense.
pub fn revive(
    guest: &Guest,
    disk: &SimDisk,
    kept: &InflightQueue,
) -> Result<(Ring, Pipeline<SimEngine, Nobody>), RingFault> {
    let mut config = config(guest, guest.uses_event_idx());
    config.next_available = 0xdead;
    config.inflight = Some(kept.clone());
    let ring = Ring::open(&config)?;
    let mut engine = SimEngine::new(64);
    engine.add_disk(DiskId(0), disk.clone(), 4);
    let mut pipeline = Pipeline::new(REACTOR, engine, Nobody);
    pipeline.add_disk(Arc::new(DiskState::new(DiskId(0), "d".into(), 0, 8, 512, 4)));
    pipeline.reserve(ring.slots());
    Ok((ring, pipeline))
}

/// A guest that goes on whoever serves it, and what it is owed.
struct Story {
    bench: Bench,
    kept: InflightQueue,
    under_way: HashSet<u16>,
    /// What each slot has written last.
    stamps: [u8; SLOTS as usize],
    rng: Rng,
}

impl Story {
    fn new(seed: u64, event_idx: bool) -> Story {
        let mut rng = Rng::new(seed);
        // Around the wrap, and from the beginning.
        let first = [0, 65_534, 7][rng.index(3)];
        let mut bench = Bench::new(SLOTS, event_idx, first);
        let kept = region(bench.guest.size);
        let mut config = config(&bench.guest, event_idx);
        config.next_available = first;
        config.inflight = Some(kept.clone());
        bench.ring = Ring::open(&config).unwrap();
        Story { bench, kept, under_way: HashSet::new(), stamps: [0; SLOTS as usize], rng }
    }

    fn submit(&mut self) {
        let Some(slot) = (0..SLOTS).find(|slot| !self.under_way.contains(slot)) else { return };
        self.under_way.insert(slot);
        if self.rng.chance(1, 8) {
            // No request that there is: rejected as soon as it is popped.
            self.bench.guest.submit(slot, 77, 0, 0, 0);
            return;
        }
        let stamp = &mut self.stamps[usize::from(slot)];
        *stamp = stamp.wrapping_add(1);
        self.bench.guest.put_data(slot, &[*stamp; 1024]);
        self.bench.guest.submit(slot, WRITE, u64::from(slot) * 2, 1024, 512);
    }

    fn take(&mut self) {
        while let Some((slot, _)) = self.bench.guest.take() {
            assert!(self.under_way.remove(&slot), "given back twice");
        }
    }

    fn step(&mut self) {
        match self.rng.below(6) {
            0 | 1 => self.submit(),
            2 => drop(self.bench.pop_once().unwrap()),
            3 => drop(self.bench.pipeline.engine.step(&mut self.rng)),
            4 => drop(self.bench.deliver()),
            _ => self.take(),
        }
    }

    /// Lives for so many steps, or until the process is dead. The guest takes what it is given, and asks for more.
    fn live(&mut self, steps: u32) {
        for _ in 0..steps {
            if fuse::is_dead() {
                break;
            }
            self.step();
        }
    }

    /// The guest goes on alone; then somebody else serves it.
    fn crash(&mut self) {
        self.take();
        for _ in 0..self.rng.below(3) {
            self.submit();
        }
    }

    fn revive(&mut self) {
        let (ring, pipeline) = revive(&self.bench.guest, &self.bench.disk, &self.kept).unwrap();
        (self.bench.ring, self.bench.pipeline) = (ring, pipeline);
    }

    fn end(&mut self, what: &str) {
        while self.bench.pop_once().unwrap() == Popped::More {}
        self.bench.finish_all();
        self.take();
        assert!(self.under_way.is_empty(), "{what}: {:?} lost", self.under_way);
        assert_eq!(self.bench.ring.in_flight(), 0, "{what}");
        assert_eq!(self.bench.ring.next_available(), self.bench.guest.made_available(), "{what}");
        assert!((0..self.kept.capacity()).all(|head| self.kept.mark(head) == 0), "{what}: a mark is left");
        for slot in 0..SLOTS {
            let mut bytes = [0; 1024];
            self.bench.disk.read_at(u64::from(slot) * 1024, &mut bytes).unwrap();
            assert_eq!(bytes, [self.stamps[usize::from(slot)]; 1024], "{what}: slot {slot}");
        }
    }
}

/// A story with a crash at the given store, and another one at the given store of the life after it. Whether both happened.
fn story(seed: u64, event_idx: bool, first: u64, second: u64) -> (bool, bool) {
    let what = format!("seed {seed}, event_idx {event_idx}, dead after {first} and then {second} stores");
    let mut story = Story::new(seed, event_idx);
    fuse::set(first);
    story.live(40);
    let died = fuse::reset();
    story.crash();
    fuse::set(second);
    story.revive();
    story.live(25);
    let died_again = fuse::reset();
    if died_again {
        story.crash();
        story.revive();
    }
    story.end(&what);
    (died, died_again)
}

#[test]
fn every_chain_is_given_back_once_wherever_we_die() {
    let mut deaths = 0;
    for seed in 0..60 {
        let event_idx = seed % 2 == 0;
        for first in 0.. {
            let (died, _) = story(seed, event_idx, first, u64::MAX);
            deaths += u32::from(died);
            if !died {
                break;
            }
        }
    }
    assert!(deaths > 2000, "{deaths}");
}

#[test]
fn and_wherever_we_die_again_while_we_make_up_for_it() {
    let mut deaths = 0;
    for seed in 100..104 {
        for first in 0.. {
            let mut died = false;
            for second in 0.. {
                let (first_death, second_death) = story(seed, false, first, second);
                died = first_death;
                deaths += u32::from(second_death);
                if !second_death {
                    break;
                }
            }
            if !died {
                break;
            }
        }
    }
    assert!(deaths > 2000, "{deaths}");
}

#[test]
fn chains_are_started_again_in_the_order_in_which_they_were_popped() {
    let kept = region(16);
    let opened = inflight::Inflight::open(kept.clone(), 16, 5).unwrap();
    assert_eq!((opened.next_available, opened.heads.len()), (None, 0), "nobody has used it");
    let mut first = opened.inflight;
    [7, 0, 12, 3].into_iter().for_each(|head| first.popped(head));
    first.given_back(12);
    first.published(6);
    first.popped(12);
    let again = inflight::Inflight::open(kept.clone(), 16, 6).unwrap();
    assert_eq!((again.next_available, again.heads), (Some(10), vec![7, 0, 3, 12]));
    // Who pops now comes after them.
    let mut second = again.inflight;
    second.popped(1);
    let again = inflight::Inflight::open(kept, 16, 6).unwrap();
    assert_eq!((again.next_available, again.heads), (Some(11), vec![7, 0, 3, 12, 1]));
}

#[test]
fn a_queue_that_was_stopped_with_nothing_in_flight_begins_where_the_frontend_says() {
    let kept = region(16);
    let mut first = inflight::Inflight::open(kept.clone(), 16, 5).unwrap().inflight;
    first.popped(2);
    kept.forget();
    assert_eq!(kept.version(), VERSION_1, "something is in flight");
    first.given_back(2);
    first.published(6);
    kept.forget();
    // The guest's driver has begun anew, with a ring of another size.
    let again = inflight::Inflight::open(kept.clone(), 8, 0).unwrap();
    assert_eq!((again.next_available, again.heads.len()), (None, 0));
    assert_eq!(kept.descriptors(), 8);
}

#[test]
fn regions_that_make_no_sense_break_the_ring() {
    use inflight::InflightFault as Fault;
    let opened = |change: &dyn Fn(&InflightQueue)| {
        let kept = region(16);
        let mut inflight = inflight::Inflight::open(kept.clone(), 16, 10).unwrap().inflight;
        [4, 5].into_iter().for_each(|head| inflight.popped(head));
        change(&kept);
        inflight::Inflight::open(kept, 16, 10).map(|recovered| recovered.heads)
    };
    assert_eq!(opened(&|_| {}), Ok(vec![4, 5]));
    assert_eq!(opened(&|kept| kept.set_version(2)), Err(Fault::Version(2)));
    assert_eq!(opened(&|kept| kept.set_descriptors(8)), Err(Fault::Size { region: 8, ring: 16 }));
    assert_eq!(opened(&|kept| kept.set_used_index(11)), Err(Fault::UsedIndex { region: 11, ring: 10 }));
    assert_eq!(opened(&|kept| kept.set_used_index(65_529)), Err(Fault::UsedIndex { region: 65_529, ring: 10 }));
    let batch = |last: u16, next: u16| {
        opened(&|kept| {
            kept.set_used_index(8);
            kept.set_last_batch_head(last);
            kept.set_next(4, next);
        })
    };
    assert_eq!(batch(4, 5), Ok(vec![]));
    assert_eq!(batch(4, 4), Ok(vec![5]), "links that go in circles come to an end");
    assert_eq!(batch(16, 0), Err(Fault::Batch(16)));
    assert_eq!(batch(4, u16::MAX), Err(Fault::Batch(u16::MAX)));
    assert_eq!(opened(&|kept| (0..16).for_each(|head| kept.set_counter(head, u64::MAX))), Ok(vec![4, 5]));
    let small = inflight::Inflight::open(region(8), 16, 0).unwrap_err();
    assert_eq!(small, Fault::Size { region: 8, ring: 16 });
}

/// Whatever is marked: what the guest made available there is started again, or the ring breaks; a stop does not wait for ever.
#[test]
fn chains_that_are_marked_without_reason() {
    let mut rng = Rng::new(5);
    for _ in 0..300 {
        let mut guest = Guest::new(SLOTS, 64 << 10, false);
        guest.resume_at(0);
        guest.submit(0, READ, 0, 512, 0);
        let kept = region(guest.size);
        drop(inflight::Inflight::open(kept.clone(), guest.size, 0).unwrap());
        let marked: Vec<u16> = (0..guest.size).filter(|_| rng.chance(1, 3)).collect();
        marked.iter().for_each(|head| {
            kept.set_mark(*head, true);
            kept.set_counter(*head, rng.below(3));
        });
        let disk = SimDisk::new(8 << 20, 512);
        let (ring, pipeline) = revive(&guest, &disk, &kept).unwrap();
        let mut bench = Bench { guest, ring, pipeline, disk };
        let mut broken = false;
        for _ in 0..10 {
            broken |= bench.pop_once().is_err();
            bench.finish_all();
        }
        assert!(!bench.ring.is_replaying() && bench.ring.in_flight() == 0);
        // One was made available: with more in flight the guest would have made more available.
        assert_eq!(broken, marked.len() > 1, "{marked:?}");
        assert_eq!(usize::from(bench.guest.completed_count()), marked.len().max(1));
    }
}

#[test]
fn an_indirect_table_is_walked_again() {
    let mut guest = Guest::new(SLOTS, 64 << 10, false);
    let disk = SimDisk::new(8 << 20, 512);
    disk.write_at(0, &[9; 512]).unwrap();
    // The chain of slot 1, moved to a table behind the data of slot 3, and descriptor 0 says where.
    guest.submit(1, READ, 0, 512, 0);
    let table = 0x10_0000 + 3 * (64 << 10);
    let mut descriptors = [0; 48];
    guest.memory.read_slice(&mut descriptors, GuestAddress(0x1000 + 64)).unwrap();
    for (entry, next) in descriptors.chunks_exact_mut(16).zip(1u16..) {
        entry[14..16].copy_from_slice(&next.to_le_bytes());
    }
    guest.memory.write_slice(&descriptors, GuestAddress(table)).unwrap();
    guest.set_descriptor(0, table, 48, 4, 0);
    guest.resume_at(0);
    guest.push_available(0);
    let kept = region(guest.size);
    inflight::Inflight::open(kept.clone(), guest.size, 0).unwrap().inflight.popped(0);
    let (ring, pipeline) = revive(&guest, &disk, &kept).unwrap();
    let mut bench = Bench { guest, ring, pipeline, disk };
    while bench.pop_once().unwrap() == Popped::More {}
    bench.finish_all();
    assert_eq!(bench.guest.take_used(), Some((0, 513)));
    assert_eq!((bench.guest.status(1), bench.guest.data(1, 512)), (0, vec![9; 512]));
    assert_eq!(bench.guest.completed_count(), 0);
}
