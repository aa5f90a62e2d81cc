//! What the sectors of a disk may hold after a crash: everything flushed, and of what came later anything or nothing.
//!
//! Every sector carries a stamp that names disk, sector and the write it came from, so that a torn, misplaced or foreign
//! sector cannot pass for a good one. Requests in flight never overlap, so the order of writes to one sector is known.

use anyhow::{Result, bail, ensure};

/// Bytes of a sector.
pub const SECTOR: usize = 512;

/// A write, discard or write-zeroes request that is not known to be durable.
#[derive(Clone, Copy, Debug)]
struct Change {
    sequence: u32,
    first: u64,
    count: u64,
    /// Stamp of the sectors: the write's number, or 0 for zeros.
    value: u32,
    completed: bool,
}

/// What is durable in a sector, and which change made it so.
#[derive(Clone, Copy, Debug, Default)]
struct Durable {
    sequence: u32,
    value: u32,
}

/// A flush under way: the changes that it covers.
#[derive(Clone, Debug)]
pub struct FlushCover(Vec<u32>);

/// The model of one disk.
#[derive(Debug)]
pub struct Model {
    disk: u64,
    /// What is durable, by sector.
    durable: Vec<Durable>,
    /// What a read must return now, by sector.
    current: Vec<u32>,
    recent: Vec<Change>,
    sequence: u32,
}

impl Model {
    /// A disk of `sectors` that were never written. `disk` tells it from other disks.
    #[must_use]
    pub fn new(disk: u64, sectors: u64) -> Model {
        let count = usize::try_from(sectors).expect("a small disk");
        let durable = vec![Durable::default(); count];
        Model { disk, durable, current: vec![0; count], recent: Vec::new(), sequence: 0 }
    }

    /// Sectors of the disk.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.durable.len() as u64
    }

    /// The disk has another size. What lies beyond the smaller of both is gone: sectors that are new are zeros, durably. Nothing may
    /// be in flight when it shrinks.
    pub fn resize(&mut self, sectors: u64) {
        let count = index(sectors);
        self.recent.retain(|c| c.first < sectors);
        for change in &mut self.recent {
            change.count = change.count.min(sectors - change.first);
        }
        self.durable.resize(count, Durable { sequence: self.sequence, value: 0 });
        self.current.resize(count, 0);
    }

    /// Notes a write that is about to be submitted: its number, and the data to write.
    pub fn write(&mut self, first: u64, count: u64) -> (u32, Vec<u8>) {
        let sequence = self.change(first, count, true);
        let data = (first..first + count).flat_map(|s| stamp(self.disk, s, sequence)).collect();
        (sequence, data)
    }

    /// Notes a request that is about to zero a range; its number.
    pub fn zero(&mut self, first: u64, count: u64) -> u32 {
        self.change(first, count, false)
    }

    /// The change has completed.
    pub fn completed(&mut self, sequence: u32) {
        let change = self.recent.iter_mut().find(|c| c.sequence == sequence).expect("a change that was submitted");
        change.completed = true;
        let (range, value) = (sectors_of(change), change.value);
        self.current[range].fill(value);
    }

    /// The write has completed on a disk in writethrough mode: it is durable.
    pub fn completed_durably(&mut self, sequence: u32) {
        self.completed(sequence);
        self.flushed(&FlushCover(vec![sequence]));
    }

    /// A flush is about to be submitted.
    #[must_use]
    pub fn flush(&self) -> FlushCover {
        FlushCover(self.recent.iter().filter(|c| c.completed).map(|c| c.sequence).collect())
    }

    /// The flush has completed: what it covers is durable.
    pub fn flushed(&mut self, cover: &FlushCover) {
        let covered = |c: &Change| cover.0.binary_search(&c.sequence).is_ok();
        for change in self.recent.iter().filter(|c| covered(c)) {
            // The order of submission is, for one sector, that of execution; something newer may be durable already.
            for durable in self.durable[sectors_of(change)].iter_mut().filter(|d| d.sequence < change.sequence) {
                *durable = Durable { sequence: change.sequence, value: change.value };
            }
        }
        self.recent.retain(|c| !covered(c));
    }

    /// Checks what a read returned while nothing else was in flight on those sectors.
    ///
    /// # Errors
    /// It is not what was written last.
    pub fn check_read(&self, first: u64, data: &[u8]) -> Result<()> {
        for (sector, bytes) in (first..).zip(data.chunks(SECTOR)) {
            let found = self.value_of(sector, bytes)?;
            let expected = self.current[index(sector)];
            ensure!(found == expected, "sector {sector} reads as write {found}, the last one was {expected}");
        }
        Ok(())
    }

    /// Checks what a read returned after a crash, and takes it for the state from now on. Flush before relying on it. Whether
    /// anything else could have been there.
    ///
    /// # Errors
    /// It is neither the last flushed content nor anything newer.
    pub fn check_after_crash(&mut self, first: u64, data: &[u8]) -> Result<bool> {
        let mut doubtful = false;
        for (sector, bytes) in (first..).zip(data.chunks(SECTOR)) {
            let found = self.value_of(sector, bytes)?;
            let durable = self.durable[index(sector)];
            let here = self.recent.iter().filter(|c| (c.first..c.first + c.count).contains(&sector));
            let newer: Vec<&Change> = here.filter(|c| c.sequence > durable.sequence).collect();
            if found != durable.value && !newer.iter().any(|c| c.value == found) {
                bail!("sector {sector} of disk {} reads as write {found}; {durable:?}, newer: {newer:?}", self.disk);
            }
            doubtful |= newer.iter().any(|c| c.value != durable.value);
            self.durable[index(sector)] = Durable { sequence: self.sequence, value: found };
            self.current[index(sector)] = found;
        }
        Ok(doubtful)
    }

    /// All sectors have been checked and flushed after a crash: nothing is in doubt any more.
    pub fn settled(&mut self) {
        self.recent.clear();
    }

    fn change(&mut self, first: u64, count: u64, data: bool) -> u32 {
        assert!(count > 0 && first + count <= self.sectors());
        self.sequence += 1;
        let value = if data { self.sequence } else { 0 };
        self.recent.push(Change { sequence: self.sequence, first, count, value, completed: false });
        self.sequence
    }

    /// Which write a sector's content comes from; 0 for zeros.
    fn value_of(&self, sector: u64, bytes: &[u8]) -> Result<u32> {
        if bytes.iter().all(|&b| b == 0) {
            return Ok(0);
        }
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let (disk, written_to, sequence) = (word(0), word(8), word(16));
        ensure!(disk == self.disk, "sector {sector} of disk {} holds data of disk {disk:#x}", self.disk);
        ensure!(written_to == sector, "sector {sector} holds what was written to sector {written_to}");
        let sequence = u32::try_from(sequence)?;
        ensure!(bytes == stamp(self.disk, sector, sequence), "sector {sector} is torn or damaged");
        Ok(sequence)
    }
}

fn sectors_of(change: &Change) -> std::ops::Range<usize> {
    index(change.first)..index(change.first + change.count)
}

fn index(sector: u64) -> usize {
    usize::try_from(sector).expect("a small disk")
}

/// Which disk (a number below 256) this is a sector of, if it is one.
#[must_use]
pub fn disk_of(bytes: &[u8]) -> Option<u64> {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let sequence = u32::try_from(word(16)).ok()?;
    (word(0) < 256 && sequence > 0 && bytes == stamp(word(0), word(8), sequence)).then(|| word(0))
}

/// The content of one sector: disk, sector, write, then numbers that follow from them.
fn stamp(disk: u64, sector: u64, sequence: u32) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    let mut random = Random::new(disk ^ sector.rotate_left(20) ^ u64::from(sequence).rotate_left(44));
    let head = [disk, sector, u64::from(sequence)];
    for (at, word) in bytes.chunks_exact_mut(8).enumerate() {
        let value = head.get(at).copied().unwrap_or_else(|| random.next_u64());
        word.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// Seeded random numbers (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence that belongs to a seed.
    #[must_use]
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of several.
    pub fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[usize::try_from(self.below(all.len() as u64)).expect("fewer than an address space has")]
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }
}
