//! A store under a random workload, and what it should contain after each commit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use spanblk::base::ids::{DiskId, JobId, ReactorId, VhdId};
use spanblk::base::rng::Rng;
use spanblk::base::units::{BlockMask, ExtentIndex, Generation, SlotIndex};
use spanblk::disk::sim::{Fault, FaultKind, OpKind, Replay, SimDisk, SimTrace};
use spanblk::placement::ReplicaSet;
use spanblk::placement::job::{JobKind, JobRecord, JobState};
use spanblk::placement::record::{Layout, PoolRecord, RECORD_VERSION, VhdRecord, WhenFull};
use spanblk::shared::disk::{SyncNumber, SyncPoint};
use spanblk::store::change::{Change, ChangeKind, CommitRequest};
use spanblk::store::committer::Committer;
use spanblk::store::edit::{EditId, StoreEdit};
use spanblk::store::member::{MemberState, Tuning};
use spanblk::store::mirror::Direct;
use spanblk::store::open::{self, MemberPlace, OpenError, OpenOptions};
use spanblk::store::page::Stamp;
use spanblk::store::region::{REGION_LEN_MIN, RegionPlace};

const POOL: uuid::Uuid = uuid::Uuid::from_u128(7);
const PLACE: RegionPlace = RegionPlace { offset: 0, len: REGION_LEN_MIN };
const DATA_DISKS: u64 = 2;
const EXTENTS: u64 = 200;

/// A deliberate mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Syncs of the metadata disks claim success and do nothing.
    LyingSync,
    /// One member of three is enough for a commit.
    MinorityCounts,
}

/// A workload.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub members: usize,
    pub seed: u64,
    pub steps: usize,
    pub flaw: Option<Flaw>,
}

/// What the table says: which VHDs there are, the records of jobs, and per (VHD, extent) its slot and present blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Table {
    vhds: BTreeSet<u32>,
    jobs: BTreeMap<u32, JobRecord>,
    extents: BTreeMap<(u32, u32), (u32, u32)>,
}

/// One block of the guest as it is in memory.
#[derive(Clone, Copy, Debug)]
struct Extent {
    generation: u32,
    slot: u32,
    /// Per block: the sync that its data needs.
    blocks: [Option<SyncPoint>; 8],
}

/// A workload that was run.
pub struct History {
    plan: Plan,
    trace: SimTrace,
    tables: BTreeMap<Stamp, Table>,
    /// Acknowledged commits, and how long the trace was then.
    acknowledged: Vec<(usize, Stamp)>,
}

struct World {
    plan: Plan,
    rng: Rng,
    trace: SimTrace,
    disks: Vec<SimDisk>,
    begun: [u64; DATA_DISKS as usize],
    done: [u64; DATA_DISKS as usize],
    vhds: BTreeSet<u32>,
    jobs: BTreeMap<u32, JobRecord>,
    extents: BTreeMap<(u32, u32), Extent>,
    next_vhd: u32,
    next_job: u32,
    next_slot: u32,
    next_edit: u64,
    history: BTreeMap<Stamp, Table>,
    acknowledged: Vec<(usize, Stamp)>,
}

fn places(disks: &[SimDisk], which: &[usize]) -> Vec<MemberPlace<SimDisk>> {
    let place = |&i: &usize| MemberPlace {
        id: DiskId(i as u8),
        name: format!("d{i}"),
        disk: Arc::new(disks[i].clone()),
        place: PLACE,
    };
    which.iter().map(place).collect()
}

fn options(total: usize) -> OpenOptions {
    OpenOptions { pool: POOL, total, accept_stale: false, tuning: Tuning::default() }
}

fn vhd_record(id: u32) -> VhdRecord {
    VhdRecord {
        version: RECORD_VERSION,
        id: VhdId(id),
        name: format!("vhd{id}"),
        uuid: uuid::Uuid::from_u128(u128::from(id)),
        size: EXTENTS << 20,
        layout: Layout::Isolated { disk: DiskId(0), chosen: false },
        replicas: 1,
        thick: false,
        checksums: false,
        read_only: false,
        block_size: 512,
        queues: 1,
        vm: None,
        socket_owner: None,
        socket_mode: 0o660,
        when_full: WhenFull::default(),
        expand: None,
        limits: spanblk::placement::limits::IoLimits::default(),
        sharing: spanblk::placement::sharing::Sharing::default(),
        capacity: spanblk::placement::capacity::Capacity::default(),
        created: 0,
        writeback: true,
    }
}

impl Table {
    /// Without extents of which nothing is present: one that was cleared again before it was ever committed may have its
    /// place in the table or not.
    fn written(&self) -> Table {
        let mut table = self.clone();
        table.extents.retain(|_, (_, present)| *present != 0);
        table
    }
}

impl History {
    pub fn run(plan: Plan) -> History {
        let trace = SimTrace::new();
        let disks: Vec<SimDisk> = (0..plan.members).map(|_| trace.add_disk(PLACE.len, 512)).collect();
        let all: Vec<usize> = (0..plan.members).collect();
        let pool = PoolRecord::new(POOL, 1 << 20, Vec::new());
        let made = open::create(places(&disks, &all), &pool, plan.seed).expect("simulated disks are well");
        let stamp = made.state().stamp;
        drop(made);
        trace.restart();
        let mut world = World {
            plan,
            rng: Rng::new(plan.seed),
            trace: trace.clone(),
            disks,
            begun: [1; DATA_DISKS as usize],
            done: [0; DATA_DISKS as usize],
            vhds: BTreeSet::new(),
            jobs: BTreeMap::new(),
            extents: BTreeMap::new(),
            next_vhd: 1,
            next_job: 1,
            next_slot: 0,
            next_edit: 0,
            history: BTreeMap::from([(stamp, Table::default())]),
            acknowledged: vec![(0, stamp)],
        };
        if plan.flaw == Some(Flaw::LyingSync) {
            world.disks.iter().for_each(|disk| disk.inject(Fault::always(OpKind::Sync, FaultKind::Lie)));
        }
        let mut left = plan.steps;
        while left > 0 {
            left -= world.session(left);
        }
        History { plan, trace, tables: world.history, acknowledged: world.acknowledged }
    }

    pub fn replay(&self) -> Replay {
        self.trace.replay()
    }

    pub fn commits(&self) -> usize {
        self.acknowledged.len()
    }

    /// Opens the store from some of the disks that a power cut before step `cut` left.
    pub fn check(&self, disks: &[SimDisk], cut: usize, subset: &[usize]) -> Result<(), String> {
        let here = format!("{:?}, cut {cut}, disks {subset:?}", self.plan);
        let mut store = open::open(places(disks, subset), &options(self.plan.members))
            .map_err(|error| format!("{here}: {error}"))?;
        let found = store.state().stamp;
        let table = read(&store).map_err(|error| format!("{here}: {error}"))?;
        let Some(expected) = self.tables.get(&found) else {
            return Err(format!("{here}: found {found}, which was never committed"));
        };
        if table.written() != expected.written() {
            return Err(format!("{here}: {found} is {table:?} instead of {expected:?}"));
        }
        let last = self.acknowledged.iter().take_while(|(at, _)| *at <= cut).last();
        if let Some((_, stamp)) = last.filter(|(_, stamp)| *stamp > found) {
            return Err(format!("{here}: found {found}, but {stamp} had been acknowledged"));
        }
        if !cut.is_multiple_of(4) {
            return Ok(());
        }
        // And all members agree, can go on, and are found again.
        let state = store.raise(0, 99).map_err(|error| format!("{here}: {error}"))?;
        drop(store);
        let again = open::open(places(disks, subset), &options(self.plan.members))
            .map_err(|error| format!("{here}: {error}"))?;
        let same = again.state() == state && again.mended.is_empty() && read(&again).is_ok_and(|again| again == table);
        if same { Ok(()) } else { Err(format!("{here}: opened a second time it is different")) }
    }
}

fn read(store: &open::OpenStore<SimDisk>) -> Result<Table, OpenError> {
    let mut table = Table {
        vhds: store.vhds.iter().map(|vhd| vhd.id.0).collect(),
        jobs: store.jobs.iter().map(|job| (job.id.0, job.clone())).collect(),
        extents: BTreeMap::new(),
    };
    store.load(|key, place, extent| {
        if let Some(replica) = extent.replicas.iter().next() {
            let index = key.extent(place).expect("a legal extent").0;
            table.extents.insert((key.vhd.0, index), (replica.slot.0, extent.present.0));
        }
    })?;
    Ok(table)
}

impl World {
    /// Opens the store, works with it, closes it. Returns how many steps it took.
    fn session(&mut self, at_most: usize) -> usize {
        let all: Vec<usize> = (0..self.plan.members).collect();
        // Of three members one may be away.
        let away = (self.plan.members == 3 && self.rng.chance(1, 2)).then(|| self.rng.index(3));
        let here: Vec<usize> = all.iter().copied().filter(|&i| Some(i) != away).collect();
        let mut store =
            open::open(places(&self.disks, &here), &options(self.plan.members)).expect("a majority is here");
        let found = self.history[&store.state().stamp].clone();
        let next = MemberState { stamp: Stamp { epoch: store.state().stamp.epoch + 1, commit: 0 }, lineage: 0 };
        self.history.insert(next.stamp, found);
        let state = store.raise(0, self.rng.next_u64()).expect("a majority is here");
        assert_eq!(state.stamp, next.stamp);
        self.forget_what_is_not_durable(&store);
        let total = if self.plan.flaw == Some(Flaw::MinorityCounts) { 1 } else { self.plan.members };
        let mut members = Direct::new(store.into_members(), total);
        let mut committer = Committer::new(state.stamp, 1 << 30);
        let steps = 1 + self.rng.index(at_most.min(8));
        let can_fail = self.plan.members == 3 && away.is_none();
        for step in 0..steps {
            if (can_fail && self.rng.chance(1, 6)) || (self.plan.flaw == Some(Flaw::MinorityCounts) && step == 0) {
                let disk = &self.disks[here[self.rng.index(here.len())]];
                disk.inject(Fault::next(OpKind::Write, FaultKind::Error(libc::EIO)));
                if self.plan.flaw == Some(Flaw::MinorityCounts) && here.len() == 3 {
                    self.disks
                        .iter()
                        .skip(1)
                        .for_each(|disk| disk.inject(Fault::next(OpKind::Write, FaultKind::Error(libc::EIO))));
                }
            }
            for _ in 0..self.rng.below(30) {
                self.work(&mut committer);
            }
            if !self.commit(&mut committer, &mut members) {
                break;
            }
        }
        drop(members);
        for disk in &self.disks {
            disk.clear_faults();
            if self.plan.flaw == Some(Flaw::LyingSync) {
                disk.inject(Fault::always(OpKind::Sync, FaultKind::Lie));
            }
        }
        steps
    }

    /// What the guests had in memory is gone with the daemon: the table is what the store has.
    fn forget_what_is_not_durable(&mut self, store: &open::OpenStore<SimDisk>) {
        let table = read(store).expect("readable");
        self.vhds = table.vhds;
        self.jobs = table.jobs;
        self.extents.clear();
        let loaded = store.load(|key, place, extent| {
            let Some(replica) = extent.replicas.iter().next() else { return };
            let synced = SyncPoint { disk: DiskId(0), number: SyncNumber(0) };
            let mut blocks = [None; 8];
            for (i, block) in blocks.iter_mut().enumerate() {
                *block = extent.present.has(i as u32).then_some(synced);
            }
            let index = key.extent(place).expect("a legal extent").0;
            let entry = Extent { generation: extent.generation.0, slot: replica.slot.0, blocks };
            self.extents.insert((key.vhd.0, index), entry);
        });
        loaded.expect("readable");
    }

    fn is_synced(&self) -> impl Fn(SyncPoint) -> bool + use<> {
        let done = self.done;
        move |point| done[point.disk.index()] >= point.number.0
    }

    fn work(&mut self, committer: &mut Committer) {
        match self.rng.below(17) {
            0 => {
                let id = self.next_vhd;
                self.next_vhd += 1;
                self.vhds.insert(id);
                self.edit(committer, StoreEdit::PutVhd(vhd_record(id)));
            }
            1 if self.vhds.len() > 2 => {
                let id = self.some_vhd();
                self.vhds.remove(&id);
                self.extents.retain(|(vhd, _), _| *vhd != id);
                self.edit(committer, StoreEdit::DeleteVhd(VhdId(id)));
            }
            2 => self.begun[self.rng.index(DATA_DISKS as usize)] += 1,
            3 => {
                let disk = self.rng.index(DATA_DISKS as usize);
                self.done[disk] = self.begun[disk];
                self.begun[disk] += 1;
            }
            14 => self.put_job(committer),
            15 if !self.jobs.is_empty() => self.change_job(committer),
            16 if self.jobs.len() > 2 => {
                let id = self.some_job();
                self.jobs.remove(&id);
                self.edit(committer, StoreEdit::DeleteJob(JobId(id)));
            }
            _ if self.vhds.is_empty() => {}
            kind => {
                let key = (self.some_vhd(), self.rng.below(EXTENTS) as u32);
                let change = match kind {
                    4 => self.free(key),
                    5 | 6 => self.clear(key),
                    _ => Some(self.write(key)),
                };
                if let Some((generation, kind)) = change {
                    let (vhd, extent) = (VhdId(key.0), ExtentIndex(key.1));
                    committer.change(Change { vhd, extent, generation: Generation(generation), kind });
                }
            }
        }
    }

    fn edit(&mut self, committer: &mut Committer, row: StoreEdit) {
        self.next_edit += 1;
        committer.edit(EditId(self.next_edit), vec![row], self.is_synced());
    }

    fn put_job(&mut self, committer: &mut Committer) {
        let id = self.next_job;
        self.next_job += 1;
        let job = JobRecord {
            version: RECORD_VERSION,
            id: JobId(id),
            kind: if self.rng.chance(1, 2) {
                JobKind::Rebalance
            } else {
                JobKind::Evacuate { disk: DiskId(1), gives_up: Vec::new() }
            },
            // Long lists, so that records span pages of the database.
            vhds: (0..self.rng.below(800) as u32).map(VhdId).collect(),
            state: JobState::Running,
            max_rate: None,
            urgent: false,
            created: u64::from(id),
            ended: None,
            bytes_moved: 0,
            reason: None,
        };
        self.jobs.insert(id, job.clone());
        self.edit(committer, StoreEdit::PutJob(job));
    }

    fn change_job(&mut self, committer: &mut Committer) {
        let id = self.some_job();
        let job = self.jobs.get_mut(&id).expect("one of them");
        job.bytes_moved += 1 << 20;
        if self.rng.chance(1, 3) {
            job.state = JobState::Stopped;
            job.reason = Some("a disk failed".to_owned());
        }
        let row = StoreEdit::PutJob(job.clone());
        self.edit(committer, row);
    }

    fn some_job(&mut self) -> u32 {
        let index = self.rng.index(self.jobs.len());
        *self.jobs.keys().nth(index).expect("as many as there are")
    }

    fn some_vhd(&mut self) -> u32 {
        let index = self.rng.index(self.vhds.len());
        *self.vhds.iter().nth(index).expect("as many as there are")
    }

    fn write(&mut self, key: (u32, u32)) -> (u32, ChangeKind) {
        let disk = self.rng.below(DATA_DISKS);
        let need = SyncPoint { disk: DiskId(disk as u8), number: SyncNumber(self.begun[disk as usize]) };
        let extent = self.extents.entry(key).or_insert_with(|| {
            self.next_slot += 1;
            // As if it had been placed and dropped before: generations only go up.
            Extent { generation: 2 * self.next_slot, slot: self.next_slot, blocks: [None; 8] }
        });
        let first = self.rng.index(8);
        let mut blocks = BlockMask::NONE;
        for block in first..8 {
            if extent.blocks[block].is_none() {
                extent.blocks[block] = Some(need);
                blocks = blocks.or(BlockMask::span(block as u32, block as u32));
            }
        }
        let replicas = ReplicaSet::single(DiskId(disk as u8), SlotIndex(extent.slot));
        (extent.generation, ChangeKind::Written { replicas, blocks, needs: [Some(need), None, None, None] })
    }

    fn clear(&mut self, key: (u32, u32)) -> Option<(u32, ChangeKind)> {
        let extent = self.extents.get_mut(&key)?;
        let block = self.rng.index(8);
        extent.blocks[block] = None;
        Some((extent.generation, ChangeKind::Cleared { blocks: BlockMask::span(block as u32, block as u32) }))
    }

    fn free(&mut self, key: (u32, u32)) -> Option<(u32, ChangeKind)> {
        let extent = self.extents.remove(&key)?;
        // Slots and generations are counted together here, so the next placement is beyond this.
        self.next_slot += 1;
        let freed = ReplicaSet::single(DiskId(0), SlotIndex(extent.slot));
        Some((2 * self.next_slot, ChangeKind::Freed { freed }))
    }

    /// The durable table after a commit now, told without looking at the committer: blocks that are written and synced.
    fn expected(&self, before: &Table) -> Table {
        let is_synced = self.is_synced();
        let mut table = Table { vhds: self.vhds.clone(), jobs: self.jobs.clone(), extents: BTreeMap::new() };
        for (key, extent) in &self.extents {
            let mut present = 0;
            for (i, block) in extent.blocks.iter().enumerate() {
                present |= u32::from(block.is_some_and(&is_synced)) << i;
            }
            let placed = before.extents.get(key).is_some_and(|(slot, _)| *slot == extent.slot);
            if present != 0 || placed {
                table.extents.insert(*key, (extent.slot, present));
            }
        }
        table
    }

    /// False if the store has failed.
    fn commit(&mut self, committer: &mut Committer, members: &mut Direct<SimDisk>) -> bool {
        committer.request(CommitRequest { reactor: ReactorId(0), ticket: 1 });
        let before = self.history[&committer.stamp()].clone();
        let expected = self.expected(&before);
        let outcome = committer.commit(members, self.is_synced());
        let stamp = committer.stamp();
        let unchanged =
            self.history.insert(stamp, expected.clone()).is_none_or(|table| table.written() == expected.written());
        assert!(unchanged, "{stamp} is acknowledged again with other content");
        let [(_, ok)] = outcome.requests[..] else { panic!("one request, one answer") };
        if ok {
            self.acknowledged.push((self.trace.len(), stamp));
        }
        ok
    }
}
