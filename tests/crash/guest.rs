//! Guests: random requests to one VHD each, and the oracle that judges the answers.

use std::sync::Arc;

use spanblk::base::aligned::AlignedBuf;
use spanblk::base::clock::Nanos;
use spanblk::base::ids::{DiskId, DiskSet};
use spanblk::base::rng::Rng;
use spanblk::base::units::ExtentIndex;
use spanblk::disk::sim::OpKind;
use spanblk::engine::sim::SimEngine;
use spanblk::owner::Owner;
use spanblk::placement::ReplicaState;
use spanblk::reactor::pipeline::{Finished, Pipeline, Token};
use spanblk::shared::VhdState;
use spanblk::virtio::request::{Range, Request, RequestKind, Segment, Status};

use super::faults::Trouble;
use super::oracle::{Content, History, SECTOR, StepId, identify, stamp};
use super::post::Post;

/// What is in flight.
struct Flight {
    token: Token,
    kind: Kind,
    begun: usize,
    sectors: std::ops::Range<u64>,
    memory: AlignedBuf,
    steps: Vec<(u64, StepId)>,
    /// Where the extents that it touches were when it began, and where each of them could be read.
    disks: DiskSet,
    in_sync: Vec<DiskSet>,
    /// The disks that were dead then, and whether all that it touches was somewhere else, too.
    dead: DiskSet,
    is_readable: bool,
    /// Whether a FLUSH could not succeed then.
    is_kept: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Clear,
    Flush,
}

/// One guest.
pub struct Guest {
    pub state: Arc<VhdState>,
    pub history: History,
    /// Cache mode of its driver. The mutated device takes it for writeback whatever it is.
    pub writethrough: bool,
    ignore_writethrough: bool,
    /// Stops asking when its VHD is to be deleted.
    pub leaving: bool,
    /// Whether it is in: nobody who is out asks for anything.
    pub attached: bool,
    /// Stops asking, so that it can go out.
    pub detaching: bool,
    /// Whether there is room for all that it can write.
    pub has_room: bool,
    /// Whether its requests must get by with the replicas that are left.
    pub replicated: bool,
    /// Disks that do nothing any more.
    pub dead: DiskSet,
    /// Whether one of them has something of it that is not synced.
    pub is_kept: bool,
    flights: Vec<Flight>,
    next_write: u64,
}

type TestPipeline = Pipeline<SimEngine, Post>;

impl Guest {
    pub fn new(state: Arc<VhdState>, writethrough: bool, ignore_writethrough: bool) -> Guest {
        assert!(state.door.enter(), "the door of a new VHD is open");
        Guest {
            state,
            history: History::default(),
            writethrough,
            ignore_writethrough,
            leaving: false,
            attached: true,
            detaching: false,
            has_room: false,
            replicated: false,
            dead: DiskSet::default(),
            is_kept: false,
            flights: Vec::new(),
            next_write: 1,
        }
    }

    /// A guest that goes on with what it finds. `first_write`: the number of its first write, above those of all before it.
    pub fn finding(state: Arc<VhdState>, writethrough: bool, history: History, first_write: u64) -> Guest {
        Guest { history, next_write: first_write, ..Guest::new(state, writethrough, false) }
    }

    fn id(&self) -> u32 {
        self.state.id().0
    }

    /// The most requests it has in flight.
    const DEPTH: usize = 6;

    pub fn is_quiet(&self) -> bool {
        self.flights.is_empty()
    }

    /// Begins a random request.
    pub fn begin(&mut self, pipeline: &mut TestPipeline, token: Token, rng: &mut Rng, at: usize) {
        if self.leaving || self.detaching || !self.attached || self.flights.len() >= Guest::DEPTH {
            return;
        }
        let sectors = self.choose(rng);
        match rng.below(10) {
            0..5 => self.write(pipeline, token, sectors, at),
            5..7 => self.read(pipeline, token, sectors, at),
            7 => self.clear(pipeline, token, sectors, rng, at),
            8 => self.discard_extent(pipeline, token, rng, at),
            _ => self.flush(pipeline, token, at),
        }
    }

    /// Mostly a few sectors around a few hot places, so that blocks are written again and again.
    fn choose(&self, rng: &mut Rng) -> std::ops::Range<u64> {
        let total = self.state.size() / SECTOR as u64;
        let per_block = self.state.settings.geometry.block_size() / SECTOR as u64;
        let start = rng.below(total / per_block) * per_block / 4 * 4 + rng.below(6);
        let len = match rng.below(12) {
            0 => per_block * 2,
            1 => per_block + 3,
            _ => 1 + rng.below(5),
        };
        let start = if rng.chance(1, 2) { start % (per_block * 4) } else { start };
        start.min(total - 1)..(start + len).min(total)
    }

    fn write(&mut self, pipeline: &mut TestPipeline, token: Token, sectors: std::ops::Range<u64>, at: usize) {
        if sectors.is_empty() || sectors.clone().any(|sector| self.history.is_busy(sector)) {
            return;
        }
        let number = self.next_write;
        self.next_write += 1;
        let mut memory = buffer(&sectors);
        let mut steps = Vec::new();
        for (sector, bytes) in sectors.clone().zip(memory.chunks_exact_mut(SECTOR)) {
            bytes.copy_from_slice(&stamp(self.state.id().0, sector, number));
            steps.push((sector, self.history.begin(sector, Content::Stamp(number), at, self.writethrough)));
        }
        let kind = RequestKind::Write { offset: sectors.start * SECTOR as u64, len: memory.len() as u64 };
        self.start(pipeline, token, kind, Some(&memory), None);
        self.note(token, Kind::Write, at, sectors, memory, steps);
    }

    fn read(&mut self, pipeline: &mut TestPipeline, token: Token, sectors: std::ops::Range<u64>, at: usize) {
        if sectors.is_empty() {
            return;
        }
        let memory = buffer(&sectors);
        let kind = RequestKind::Read { offset: sectors.start * SECTOR as u64, len: memory.len() as u64 };
        self.start(pipeline, token, kind, Some(&memory), None);
        self.note(token, Kind::Read, at, sectors, memory, Vec::new());
    }

    fn clear(
        &mut self,
        pipeline: &mut TestPipeline,
        token: Token,
        sectors: std::ops::Range<u64>,
        rng: &mut Rng,
        at: usize,
    ) {
        let per_block = self.state.settings.geometry.block_size() / SECTOR as u64;
        let is_discard = rng.chance(1, 2);
        // A discard may leave parts of blocks alone, so it is given whole ones.
        let sectors = if is_discard {
            sectors.start / per_block * per_block..sectors.end.next_multiple_of(per_block)
        } else {
            sectors
        };
        let kind = if is_discard { RequestKind::Discard } else { RequestKind::WriteZeroes };
        self.clear_range(pipeline, token, sectors, kind, at, false);
    }

    /// Drops a whole extent, whatever else is in flight on it: either may come first.
    fn discard_extent(&mut self, pipeline: &mut TestPipeline, token: Token, rng: &mut Rng, at: usize) {
        let geometry = self.state.settings.geometry;
        let extents = self.state.size() / geometry.extent_size();
        let per_extent = geometry.extent_size() / SECTOR as u64;
        let first = rng.below(extents) * per_extent;
        self.clear_range(pipeline, token, first..first + per_extent, RequestKind::Discard, at, true);
    }

    fn clear_range(
        &mut self,
        pipeline: &mut TestPipeline,
        token: Token,
        sectors: std::ops::Range<u64>,
        kind: RequestKind,
        at: usize,
        may_overlap: bool,
    ) {
        if sectors.is_empty() || !may_overlap && sectors.clone().any(|sector| self.history.is_busy(sector)) {
            return;
        }
        let touched: Vec<u64> = sectors.clone().collect();
        let begin = |&sector: &u64| (sector, self.history.begin(sector, Content::Zeros, at, self.writethrough));
        let steps = touched.iter().map(begin).collect();
        let range = Range {
            offset: sectors.start * SECTOR as u64,
            len: (sectors.end - sectors.start) * SECTOR as u64,
            unmap: true,
        };
        self.start(pipeline, token, kind, None, Some(range));
        self.note(token, Kind::Clear, at, sectors, AlignedBuf::zeroed(1), steps);
    }

    pub fn flush(&mut self, pipeline: &mut TestPipeline, token: Token, at: usize) {
        self.start(pipeline, token, RequestKind::Flush, None, None);
        self.note(token, Kind::Flush, at, 0..0, AlignedBuf::zeroed(1), Vec::new());
    }

    fn note(
        &mut self,
        token: Token,
        kind: Kind,
        begun: usize,
        sectors: std::ops::Range<u64>,
        memory: AlignedBuf,
        steps: Vec<(u64, StepId)>,
    ) {
        let (disks, is_readable) = (self.disks_of(&sectors), self.is_readable(&sectors));
        let in_sync = self.in_sync(&sectors);
        let (dead, is_kept) = (self.dead, self.is_kept);
        self.flights.push(Flight {
            token,
            kind,
            begun,
            sectors,
            memory,
            steps,
            disks,
            in_sync,
            dead,
            is_readable,
            is_kept,
        });
    }

    fn start(
        &mut self,
        pipeline: &mut TestPipeline,
        token: Token,
        kind: RequestKind,
        memory: Option<&AlignedBuf>,
        range: Option<Range>,
    ) {
        let slot = pipeline.prepare().expect("slots for the depth of all guests are reserved");
        let request: &mut Request = pipeline.request_mut(slot);
        request.reset(kind);
        if let Some(memory) = memory {
            let len = u32::try_from(memory.len()).expect("a small request");
            assert!(request.push_segment(Segment { ptr: memory.as_ptr(), len }));
        }
        if let Some(range) = range {
            assert!(request.push_range(range));
        }
        let writethrough = self.writethrough && !self.ignore_writethrough;
        pipeline.start(slot, &self.state, writethrough, token, Nanos(0));
    }

    /// Takes the answer to one of its requests. False if it is somebody else's.
    pub fn finish(&mut self, finished: &Finished, at: usize, trouble: &Trouble, owner: &Owner) -> Result<bool, String> {
        let Some(index) = self.flights.iter().position(|f| f.token == finished.token) else { return Ok(false) };
        let flight = self.flights.swap_remove(index);
        if finished.status != Status::Ok {
            flight.steps.iter().for_each(|&(sector, step)| self.history.failed(sector, step));
            if self.may_fail(&flight, trouble, owner) {
                return Ok(true);
            }
            let Flight { kind, sectors, begun, disks, .. } = flight;
            let now = self.disks_of(&sectors);
            return Err(format!(
                "{kind:?} of VHD {}, sectors {sectors:?}, begun at {begun} on {disks:?}, failed at {at} on {now:?}: {:?}; {trouble:?}",
                self.id(),
                finished.status
            ));
        }
        match flight.kind {
            Kind::Read => {
                for (sector, bytes) in flight.sectors.clone().zip(flight.memory.chunks_exact(SECTOR)) {
                    let found = identify(self.id(), sector, bytes)?;
                    self.history.check_read(sector, found, flight.begun)?;
                }
            }
            Kind::Write | Kind::Clear => {
                flight.steps.iter().for_each(|&(sector, step)| self.history.done(sector, step, at));
            }
            Kind::Flush => self.history.flushed(flight.begun, at),
        }
        Ok(true)
    }
}

impl Guest {
    /// Only for want of room, because the VHD is being deleted, or because of a disk that cannot be done without.
    fn may_fail(&self, flight: &Flight, trouble: &Trouble, owner: &Owner) -> bool {
        // On a disk that has failed nothing is placed.
        let want_of_room = flight.kind == Kind::Write && (!self.has_room || trouble.has_failed_disk());
        let kinds: &[OpKind] = match flight.kind {
            Kind::Read => &[OpKind::Read],
            // What is around a part of a block is read.
            _ if self.state.settings.checksums => &[OpKind::Write, OpKind::Read],
            _ => &[OpKind::Write],
        };
        let struck = |disks| kinds.iter().any(|kind| trouble.struck(disks, *kind, flight.begun));
        let disks = DiskSet(flight.disks.0 | self.disks_of(&flight.sectors).0);
        let one_died = flight.dead != self.dead;
        let is_readable = flight.is_readable && self.is_readable(&flight.sectors);
        if flight.kind == Kind::Read && !self.dead.is_empty() && !one_died && is_readable {
            return self.leaving;
        }
        let lasts = |(before, now): (&DiskSet, DiskSet)| {
            let both = DiskSet(before.0 & now.0);
            both.iter().any(|disk| !struck([disk].into_iter().collect()))
        };
        // As long as one replica has had no trouble, nobody needs the others. A write needs one that stays: the owner may be having another
        // one written down as stale for what it missed before.
        let stays = |extent| {
            move |disk: &DiskId| flight.kind != Kind::Write || !owner.is_going_stale(self.state.id(), extent, *disk)
        };
        let staying = |(extent, disks): (ExtentIndex, DiskSet)| disks.iter().filter(stays(extent)).collect::<DiskSet>();
        let in_sync = self.extents_of(&flight.sectors).zip(self.in_sync(&flight.sectors)).map(staying);
        let can_do_without = flight.in_sync.iter().zip(in_sync).all(lasts);
        if self.replicated && can_do_without && matches!(flight.kind, Kind::Read | Kind::Write) && !want_of_room {
            return self.leaving
                || self.writethrough && (flight.is_kept || trouble.keeps_from_flushing(&self.state, owner));
        }
        let is_kept = flight.is_kept || one_died || trouble.keeps_from_flushing(&self.state, owner);
        self.leaving || want_of_room || struck(disks) || (self.writethrough || flight.kind == Kind::Flush) && is_kept
    }

    /// Whether all of it is absent, or has a replica on a disk that is not dead.
    fn is_readable(&self, sectors: &std::ops::Range<u64>) -> bool {
        self.extents_of(sectors).all(|extent| {
            let replicas = self.state.map.lookup(extent).replicas.settled();
            replicas.is_absent() || replicas.iter().any(|replica| !self.dead.contains(replica.disk))
        })
    }

    /// The disks on which each extent can be read.
    fn in_sync(&self, sectors: &std::ops::Range<u64>) -> Vec<DiskSet> {
        let of = |extent| {
            let replicas = self.state.map.lookup(extent).replicas;
            replicas.iter().filter(|r| r.state == ReplicaState::InSync).map(|r| r.disk).collect()
        };
        self.extents_of(sectors).map(of).collect()
    }

    fn extents_of(&self, sectors: &std::ops::Range<u64>) -> impl Iterator<Item = ExtentIndex> + use<> {
        let per_extent = self.state.settings.geometry.extent_size() / SECTOR as u64;
        let extents = sectors.start / per_extent..sectors.end.div_ceil(per_extent);
        extents.map(|extent| ExtentIndex(u32::try_from(extent).expect("few extents")))
    }

    /// Where extents are, those of a move that is not over not counted.
    fn disks_of(&self, sectors: &std::ops::Range<u64>) -> DiskSet {
        let mut disks = DiskSet::default();
        for extent in self.extents_of(sectors) {
            self.state.map.lookup(extent).replicas.settled().iter().for_each(|replica| disks.insert(replica.disk));
        }
        disks
    }
}

fn buffer(sectors: &std::ops::Range<u64>) -> AlignedBuf {
    let count = usize::try_from(sectors.end - sectors.start).expect("a small request");
    AlignedBuf::zeroed(count * SECTOR)
}
