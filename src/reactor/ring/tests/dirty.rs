//! The dirty log: what the ring and the engine do to a guest's memory is compared with what is marked.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, FileOffset, GuestMemoryBackend, MmapRegion};

use super::*;
use crate::reactor::messages::RingLog;
use crate::shared::dirty_log::{DirtyLog, LOG_PAGE};
use crate::shared::guest_memory::Watch;
use guest::GET_ID;

const LOG_LEN: usize = 4096;

/// A log, and the file in which a frontend finds it.
fn log(used: Option<u64>) -> (RingLog, File) {
    log_of(LOG_LEN as u64, used)
}

/// One that says that it has so many bytes.
fn log_of(len: u64, used: Option<u64>) -> (RingLog, File) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(LOG_LEN as u64).unwrap();
    let mapping = MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), LOG_LEN).unwrap();
    let watch = Watch::new(mapping.as_ptr(), LOG_LEN, 4096).unwrap();
    (RingLog { log: Arc::new(DirtyLog::new(mapping, watch, len)), used, call: None }, file)
}

fn marked(file: &File) -> BTreeSet<u64> {
    let mut bytes = vec![0; LOG_LEN];
    file.read_exact_at(&mut bytes, 0).unwrap();
    (0..LOG_LEN as u64 * 8).filter(|page| bytes[usize::try_from(page / 8).unwrap()] >> (page % 8) & 1 == 1).collect()
}

fn take(file: &File) -> BTreeSet<u64> {
    let pages = marked(file);
    file.write_all_at(&[0; LOG_LEN], 0).unwrap();
    pages
}

/// The page of the data of a slot, and that of all status bytes.
fn data_page(slot: u64) -> u64 {
    (0x10_0000 + slot * (64 << 10)) / LOG_PAGE
}

const STATUS_PAGE: u64 = 0x30;

/// The used ring is logged where a page ends between its index and its entries.
const SPLIT: u64 = 0x80_0000 - 4;
const INDEX_PAGE: u64 = 0x7ff;
const ENTRIES_PAGE: u64 = 0x800;

#[test]
fn everything_about_a_chain_is_marked_before_the_index_that_shows_it() {
    let mut bench = Bench::new(4, false, 0);
    let (to, file) = log(Some(SPLIT));
    bench.ring.set_log(Some(to));
    bench.guest.submit(0, READ, 0, 8192, 512);
    bench.pop().unwrap();
    assert_eq!(take(&file), [INDEX_PAGE].into(), "the flags, which ask not to kick, are beside the index");
    bench.pipeline.engine.finish_all(&mut Rng::new(1));
    bench.pipeline.poll(NOW);
    let finished = bench.pipeline.next_finished_with(|_, request| bench.ring.note_data(request)).unwrap();
    assert_eq!(take(&file), [data_page(0), data_page(0) + 1].into());
    bench.ring.complete(0, &finished).unwrap();
    assert_eq!(take(&file), [STATUS_PAGE, ENTRIES_PAGE].into());
    assert_eq!(bench.guest.completed_count(), 0, "the guest does not see it yet");
    bench.ring.publish().unwrap();
    assert_eq!(take(&file), [INDEX_PAGE].into(), "the index itself, after it was written");
}

#[test]
fn requests_in_flight_when_logging_begins_are_marked() {
    let mut bench = Bench::new(4, true, 0);
    bench.guest.submit(0, READ, 0, 4096, 0);
    bench.guest.submit(1, READ, 0, 4096, 0);
    bench.pop().unwrap();
    let (to, file) = log(None);
    bench.ring.set_log(Some(to));
    bench.finish_all();
    assert_eq!(take(&file), [STATUS_PAGE, data_page(0), data_page(1)].into());
    // Nothing is marked any more once it has ended.
    bench.guest.submit(0, READ, 0, 4096, 0);
    bench.pop().unwrap();
    bench.ring.set_log(None);
    bench.finish_all();
    assert_eq!(take(&file), BTreeSet::new());
}

#[test]
fn a_page_beyond_the_log_breaks_the_ring() {
    let mut bench = Bench::new(4, true, 0);
    let end = LOG_LEN as u64 * 8 * LOG_PAGE;
    for used in [end, u64::MAX - 2] {
        bench.ring.set_log(Some(log(Some(used)).0));
        assert!(matches!(bench.ring.arm(), Err(RingFault::LogTooShort)), "{used:#x}");
    }
    assert!(bench.ring.is_unlogged());
    bench.ring.set_log(Some(log(Some(0)).0));
    assert!(bench.ring.arm().is_err(), "what is missing in the other log stays missing");
}

#[test]
fn a_request_fails_if_the_log_has_no_bit_for_what_it_has_written() {
    // No bit for the data, and none for the status byte.
    for len in [data_page(0) / 8, STATUS_PAGE / 8] {
        let mut bench = Bench::new(4, true, 0);
        bench.ring.set_log(Some(log_of(len, None).0));
        bench.guest.submit(0, READ, 0, 512, 0);
        bench.pop().unwrap();
        bench.pipeline.engine.finish_all(&mut Rng::new(1));
        bench.pipeline.poll(NOW);
        let finished = bench.pipeline.next_finished_with(|_, request| bench.ring.note_data(request)).unwrap();
        assert!(matches!(bench.ring.complete(0, &finished), Err(RingFault::LogTooShort)), "{len} bytes");
        assert!(bench.ring.publish().is_err());
        assert_eq!(bench.guest.take(), Some((0, 1)), "{len} bytes: its guest sees an error");
        assert!(bench.ring.is_unlogged());
    }
}

/// What a frontend sees of memory.
fn memory_of(guest: &Guest) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(guest.memory.last_addr().0 + 1).unwrap()];
    guest.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}

/// Whoever copies memory by the log: takes the bits after every action.
struct Copier {
    log: File,
    /// Pages that have changed and were not marked since.
    owed: BTreeSet<u64>,
    /// Pages that have changed.
    changed: usize,
}

impl Copier {
    /// What an action changes has to be marked afterwards: at its end if it is the ring's own.
    fn watch<T>(&mut self, bench: &mut Bench, act: impl FnOnce(&mut Bench) -> T) -> T {
        let before = memory_of(&bench.guest);
        let result = act(bench);
        let after = memory_of(&bench.guest);
        let page = usize::try_from(LOG_PAGE).unwrap();
        let pages = before.chunks(page).zip(after.chunks(page));
        let changed = (0..).zip(pages).filter(|(_, (before, after))| before != after).map(|(page, _)| page);
        let known = self.owed.len();
        self.owed.extend(changed);
        self.changed += self.owed.len() - known;
        let taken = take(&self.log);
        self.owed.retain(|page| !taken.contains(page));
        result
    }

    /// The same for what the ring itself does: only data, which the engine writes, may be marked later.
    fn watch_ring<T>(&mut self, bench: &mut Bench, act: impl FnOnce(&mut Bench) -> T) -> T {
        let before = self.owed.clone();
        let result = self.watch(bench, act);
        let is_data = |page: &u64| (data_page(0)..data_page(4)).contains(page);
        let missed: Vec<_> = self.owed.difference(&before).filter(|page| !is_data(page)).collect();
        assert!(missed.is_empty(), "pages {missed:x?} have changed and are not marked");
        result
    }
}

#[test]
fn whatever_changes_in_guest_memory_is_marked_after_it_has_changed() {
    for seed in 0..30 {
        let mut rng = Rng::new(seed);
        let mut bench = Bench::new(4, seed % 2 == 0, u16::try_from(rng.below(65_536)).unwrap());
        let (_, _, used) = bench.guest.addresses();
        let (to, log) = log(Some(used));
        bench.ring.set_log(Some(to));
        let mut copier = Copier { log, owed: BTreeSet::new(), changed: 0 };
        let mut free: Vec<u16> = (0..4).collect();
        for _ in 0..100 {
            match rng.below(4) {
                0 if !free.is_empty() => {
                    let slot = free.swap_remove(rng.index(free.len()));
                    // One of ten is no request.
                    let kind = [READ, READ, READ, WRITE, GET_ID, 0x99][rng.index(6)];
                    let len = usize::try_from(rng.below(64) + 1).unwrap() * 512;
                    let mut fill = vec![0; len];
                    rng.fill(&mut fill);
                    bench.guest.put_data(slot, &fill);
                    bench.guest.submit(slot, kind, rng.below(4096), len, len / 2);
                }
                0 | 1 => {
                    copier.watch_ring(&mut bench, |bench| bench.pop().unwrap());
                }
                2 => {
                    let mut rng = Rng::new(rng.below(1 << 20));
                    copier.watch(&mut bench, |bench| bench.pipeline.engine.step(&mut rng));
                }
                _ => {
                    copier.watch_ring(&mut bench, Bench::deliver);
                }
            }
            while let Some((slot, _)) = bench.guest.take() {
                free.push(slot);
            }
        }
        copier.watch(&mut bench, |bench| bench.pop().unwrap());
        while bench.ring.in_flight() > 0 {
            copier.watch(&mut bench, Bench::finish_all);
        }
        assert!(copier.changed > 8, "seed {seed}: {}", copier.changed);
        assert!(copier.owed.is_empty(), "seed {seed}: pages {:x?} have changed and are not marked", copier.owed);
    }
}
