//! Random requests in every interleaving, against a plain array.
//!
//! Requests in flight at the same time do not overlap in sectors (what overlapping ones leave behind is undefined), but share
//! blocks and extents freely. A read must return what the model had when it was started.

use std::sync::atomic::Ordering;

use super::world::{EXTENT, Guest, Options, World};
use crate::base::clock::Nanos;
use crate::base::rng::Rng;
use crate::qos::shares::Work;
use crate::qos::{Priority, Share, Weight};
use crate::reactor::pipeline::Token;
use crate::virtio::request::{RequestKind, Status};

const SECTOR: u64 = 512;

struct Flight {
    token: Token,
    sectors: std::ops::Range<u64>,
    guest: Guest,
    expected: Option<Vec<u8>>,
}

struct Run {
    world: World,
    rng: Rng,
    model: Vec<u8>,
    flights: Vec<Flight>,
    reactors: usize,
    /// Now and then the disks are shared out in another way, or not at all.
    shared: bool,
}

impl Run {
    fn new(seed: u64, shared: bool) -> Run {
        let mut rng = Rng::new(seed);
        let reactors = if rng.chance(1, 2) { 1 } else { 2 };
        let options = Options {
            reactors: u16::try_from(reactors).unwrap(),
            extents: 3,
            engine_slots: [3, 8, 64][rng.index(3)],
            disk_block: [512, 4096][rng.index(2)],
            memory_alignment: [4, 512][rng.index(2)],
            thick: rng.chance(1, 5),
            checksums: rng.chance(1, 3),
            ..Options::default()
        };
        let model = vec![0; usize::try_from(EXTENT * 3).unwrap()];
        Run { world: World::new(&options), rng, model, flights: Vec::new(), reactors, shared }
    }

    fn choose_range(&mut self) -> std::ops::Range<u64> {
        let total = EXTENT * 3 / SECTOR;
        let len = match self.rng.below(6) {
            0 => EXTENT / SECTOR,
            1 => 1 + self.rng.below(EXTENT / SECTOR * 2),
            _ => 1 + self.rng.below(40),
        };
        let start = match self.rng.below(4) {
            0 => self.rng.below(3) * (EXTENT / SECTOR),
            _ => self.rng.below(total),
        };
        start..(start + len).min(total)
    }

    fn begin(&mut self) {
        let sectors = self.choose_range();
        if self.flights.iter().any(|f| f.sectors.start < sectors.end && sectors.start < f.sectors.end) {
            return;
        }
        let (offset, len) = (sectors.start * SECTOR, (sectors.end - sectors.start) * SECTOR);
        let range = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
        let reactor = self.rng.index(self.reactors);
        let part = [512, 1024, 4096, 1 << 20][self.rng.index(4)];
        let skew = [0, 0, 512, 4, 1][self.rng.index(5)];
        // At most the segments that a request may have.
        let part = part.max(range.len().div_ceil(100).next_multiple_of(512));
        let mut guest = Guest::split(range.len(), 0x55, skew, part);
        let mut expected = None;
        let token = match self.rng.below(8) {
            0..3 => {
                expected = Some(self.model[range].to_vec());
                self.world.start(reactor, RequestKind::Read { offset, len }, &guest)
            }
            3..6 => {
                let model = &mut self.model[range];
                self.rng.fill(model);
                guest.fill_with(|bytes| bytes.copy_from_slice(model));
                let writethrough = self.rng.chance(1, 6);
                self.world.start_as(reactor, RequestKind::Write { offset, len }, &guest, writethrough)
            }
            6 => {
                self.model[range].fill(0);
                self.world.clear(reactor, RequestKind::WriteZeroes, offset, len)
            }
            _ => self.discard(reactor, offset, len),
        };
        self.flights.push(Flight { token, sectors, guest, expected });
    }

    /// Whole blocks, so that the model knows what a discard does.
    fn discard(&mut self, reactor: usize, offset: u64, len: u64) -> Token {
        let block = EXTENT / 32;
        let (start, end) = (offset.next_multiple_of(block), (offset + len) / block * block);
        if start < end {
            self.model[usize::try_from(start).unwrap()..usize::try_from(end).unwrap()].fill(0);
        }
        self.world.clear(reactor, RequestKind::Discard, offset, len)
    }

    fn reap(&mut self) {
        let mut i = 0;
        while i < self.flights.len() {
            match self.world.status(self.flights[i].token) {
                None => i += 1,
                Some(status) => {
                    assert_eq!(status, Status::Ok);
                    let flight = self.flights.swap_remove(i);
                    if let Some(expected) = flight.expected {
                        assert!(flight.guest.bytes() == expected, "read of sectors {:?}", flight.sectors);
                    }
                }
            }
        }
    }

    fn share(&mut self) {
        for i in 0..self.world.disks.len() {
            let window = [1, Work::of(4096).0 * 2, Work::of(65536).0 * 2, u64::MAX][self.rng.index(4)];
            let shares = &self.world.disks[i].shares;
            if self.rng.chance(1, 4) {
                shares.switch(!shares.is_on());
            }
            shares.set_window(Work(window));
        }
        let weight = 1 + u32::try_from(self.rng.below(200)).unwrap();
        self.world.vhd.share.set(Share::new(Weight::new(weight).unwrap(), Priority::Normal), None);
        for pipeline in &mut self.world.pipelines {
            pipeline.poll(Nanos(0));
        }
    }

    fn run(mut self) {
        for i in 0..400 {
            if self.shared && i % 50 == 0 {
                self.share();
            }
            match self.rng.below(5) {
                0..2 => self.begin(),
                2 if self.rng.chance(1, 8) => {
                    let reactor = self.rng.index(self.reactors);
                    self.world.flush(reactor);
                }
                _ => {
                    let mut rng = self.rng.fork();
                    self.world.step(&mut rng);
                }
            }
            self.reap();
        }
        let mut rng = self.rng.fork();
        self.world.settle(&mut rng);
        self.reap();
        assert_eq!(self.world.vhd.checksum_errors.load(Ordering::Relaxed), 0);
        assert!(self.flights.is_empty());
        let all = self.world.read(0, self.model.len());
        assert!(all == self.model, "the disk differs from the model");
        assert!(self.world.disks.iter().all(|disk| disk.shares.in_flight() == Work(0)));
        assert!(self.world.disks.iter().all(|disk| disk.shares.waiting().next().is_none()));
    }
}

#[test]
fn random_requests_behave_like_an_array() {
    let first: u64 = std::env::var("SPANBLK_SEED").map_or(1, |s| s.parse().expect("SPANBLK_SEED is a number"));
    let count: u64 = std::env::var("SPANBLK_SEEDS").map_or(300, |s| s.parse().expect("SPANBLK_SEEDS is a number"));
    for seed in first..first + count {
        println!("seed {seed}: SPANBLK_SEED={seed} SPANBLK_SEEDS=1 cargo test --lib random_requests_behave");
        Run::new(seed, false).run();
    }
}

#[test]
fn so_they_do_on_disks_that_are_shared_out() {
    let first: u64 = std::env::var("SPANBLK_SEED").map_or(1, |s| s.parse().expect("SPANBLK_SEED is a number"));
    let count: u64 = std::env::var("SPANBLK_SEEDS").map_or(300, |s| s.parse().expect("SPANBLK_SEEDS is a number"));
    for seed in first..first + count {
        println!("seed {seed}: SPANBLK_SEED={seed} SPANBLK_SEEDS=1 cargo test --lib so_they_do_on_disks");
        Run::new(seed, true).run();
    }
}
