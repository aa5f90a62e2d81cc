//! A disk leaves the pool, and the power fails at each step: labels, placement store, and wiping, on simulated disks.
//!
//! What `disk remove` does is done once, by the same calls in the same order, with commits before, between and after. Then the
//! pool is opened from what is left at every cut: it must open by itself, have every acknowledged commit, name no disk that is
//! not there, and be servable.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use spanblk::base::ids::{DiskId, DiskSet, VhdId};
use spanblk::disk::geometry::Role;
use spanblk::disk::identity::{DiskIdentity, FailureDomain, Host};
use spanblk::disk::label::{Accept, copies};
use spanblk::disk::pool::{AddOptions, CreateOptions, Found, NewDisk, OpenOptions, OpenPool, assemble, create_pool};
use spanblk::disk::sim::{SEED_NEWEST, SEED_OLDEST, SimDisk, SimTrace};
use spanblk::placement::record::{self, DiskRecord, Layout, PoolRecord, RECORD_VERSION, VhdRecord, WhenFull};
use spanblk::store::batch::{Batch, Step};
use spanblk::store::edit::StoreEdit;
use spanblk::store::member::Tuning;
use spanblk::store::mirror::Members;
use spanblk::store::mirror::threads::MemberThreads;
use spanblk::store::mirror::threads::change::Joiner;
use spanblk::store::open::{self, MemberPlace};
use spanblk::store::page::Stamp;
use spanblk::store::region::RegionPlace;
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

fn identity(i: usize) -> DiskIdentity {
    DiskIdentity::File { device: 0, inode: i as u64 }
}

fn new(disk: &SimDisk, i: usize) -> NewDisk<SimDisk> {
    NewDisk {
        dev: Arc::new(disk.clone()),
        path: PathBuf::from(format!("/sim/{i}")),
        identity: identity(i),
        name: format!("disk{i}"),
        role: Role::Any,
        accept: Accept::Any,
        failure_domain: FailureDomain::named(&format!("domain{i}")),
        failure_domain_named: false,
    }
}

fn reopen(disks: &[SimDisk]) -> OpenPool<SimDisk> {
    let find = |(i, disk): (usize, &SimDisk)| {
        let read = copies::read(disk).ok()?;
        let NewDisk { dev, path, failure_domain, .. } = new(disk, i);
        Some(Found { dev, path, identity: identity(i), failure_domain, read })
    };
    let found = disks.iter().enumerate().filter_map(find).collect();
    let mut pool = assemble(found, Vec::new(), &OpenOptions::default()).unwrap_or_else(|error| panic!("{error}"));
    pool.write_in_order();
    pool
}

fn place(pool: &OpenPool<SimDisk>, id: DiskId) -> MemberPlace<SimDisk> {
    let disk = pool.disk(id).unwrap();
    let region = disk.metadata_region().unwrap();
    let place = RegionPlace { offset: region.start, len: region.end - region.start };
    MemberPlace { id, name: disk.name.clone(), disk: Arc::clone(&disk.dev), place }
}

fn record(pool: &OpenPool<SimDisk>) -> PoolRecord {
    let disks = pool.disks.iter().map(|disk| DiskRecord {
        id: disk.id,
        uuid: disk.uuid,
        name: disk.name.clone(),
        slots: disk.label.layout.slots,
        data_offset: disk.label.layout.data_offset,
        accept: record::Accept::Any,
        failure_domain: disk.failure_domain.to_string(),
    });
    PoolRecord::new(pool.uuid, MIB, disks.collect())
}

fn vhd(id: u32) -> VhdRecord {
    VhdRecord {
        version: RECORD_VERSION,
        id: VhdId(id),
        name: format!("vhd{id}"),
        uuid: Uuid::from_u128(u128::from(id)),
        size: MIB,
        layout: Layout::Isolated { disk: DiskId(1), chosen: true },
        replicas: 1,
        thick: false,
        checksums: false,
        read_only: false,
        block_size: 512,
        queues: 1,
        vm: None,
        socket_owner: None,
        socket_mode: 0o660,
        when_full: WhenFull::Error,
        expand: None,
        limits: spanblk::placement::limits::IoLimits::default(),
        sharing: spanblk::placement::sharing::Sharing::default(),
        capacity: spanblk::placement::capacity::Capacity::default(),
        created: 0,
        writeback: true,
    }
}

/// A pool that is served, and what it has acknowledged.
struct Served {
    trace: SimTrace,
    disks: Vec<SimDisk>,
    pool: OpenPool<SimDisk>,
    members: MemberThreads,
    stamp: Stamp,
    /// Steps of the trace after which a VHD must be there.
    acknowledged: Vec<(usize, u32)>,
    /// Step of the trace after which the disk must be gone from the record, and after which it is blank.
    gone: usize,
    blank: usize,
}

impl Served {
    /// Two disks that carry the store; with a third that could, or only one that could not.
    fn new(spare: bool) -> Served {
        let trace = SimTrace::new();
        let disks: Vec<SimDisk> = (0..4).map(|_| trace.add_disk(64 * MIB, 512)).collect();
        let options = CreateOptions { extent_size: MIB, members: Some(vec![0, 1]), force: false, now: 1 };
        let mut next = 0;
        let mut uuids = || {
            next += 1;
            Uuid::from_u128(next)
        };
        let first = disks[..2].iter().enumerate().map(|(i, disk)| new(disk, i)).collect();
        let mut pool = create_pool(first, &options, &Host::default(), &mut uuids).unwrap();
        pool.write_in_order();
        for i in [2_u8, 3] {
            let mut disk = new(&disks[usize::from(i)], usize::from(i));
            disk.role = if i == 2 && spare { Role::Any } else { Role::DataOnly };
            let options = AddOptions {
                id: DiskId(i),
                uuid: Uuid::from_u128(90 + u128::from(i)),
                replaces: None,
                force: false,
                now: 2,
            };
            pool.add_disk(disk, &options, &Host::default()).unwrap();
        }
        let places = [0, 1].map(|i| place(&pool, DiskId(i))).to_vec();
        let store = open::create(places, &record(&pool), 1).unwrap();
        let stamp = store.state().stamp;
        let members = MemberThreads::start(store.into_members(), 2).unwrap();
        trace.restart();
        Served { trace, disks, pool, members, stamp, acknowledged: Vec::new(), gone: 0, blank: 0 }
    }

    fn apply(&mut self, edit: StoreEdit) {
        self.stamp.commit += 1;
        let applied = self.members.apply(&Arc::new(Batch { stamp: self.stamp, steps: vec![Step::Edit(edit)] }));
        assert!(applied.committed && applied.dropped.is_empty());
    }

    fn create_vhd(&mut self, id: u32) {
        self.apply(StoreEdit::PutVhd(vhd(id)));
        self.acknowledged.push((self.trace.len(), id));
    }

    fn join(&mut self, id: DiskId) {
        let (filled, filling) = crossbeam_channel::bounded(1);
        let MemberPlace { disk, place, .. } = place(&self.pool, id);
        self.members.join(Joiner::new(id, disk, place, self.pool.uuid, filled)).unwrap();
        filling.recv_timeout(PATIENCE).unwrap().unwrap();
    }

    fn change_members(&mut self, next: &[DiskId]) {
        let set: DiskSet = next.iter().copied().collect();
        self.members.check_proposal(set, &mut Vec::new()).unwrap();
        self.stamp.commit += 1;
        let mark = Arc::new(Batch { stamp: self.stamp, steps: Vec::new() });
        let (committed, taken) = self.members.propose(set, &mark, &mut Vec::new());
        assert!(committed && taken.is_ok());
        self.create_vhd(3);
        self.pool.write_membership(next).unwrap();
        self.create_vhd(4);
        assert!(self.members.settle());
    }

    /// As `disk remove` does it.
    fn remove(&mut self, disk: DiskId, next: &[DiskId]) {
        self.create_vhd(1);
        if let Some(joins) = next.iter().find(|id| id.0 == 2) {
            self.join(*joins);
            self.create_vhd(2);
        }
        if self.pool.membership.members.iter().any(|member| member.id == disk) {
            self.change_members(next);
        }
        self.create_vhd(5);
        let mut record = record(&self.pool);
        record.disks.retain(|record| record.id != disk);
        self.apply(StoreEdit::PutPool(record));
        self.gone = self.trace.len();
        self.create_vhd(6);
        self.pool.remove_disk(disk).unwrap().unwrap().wipe().unwrap();
        self.blank = self.trace.len();
        self.create_vhd(7);
    }

    /// Opens what is left as the daemon does.
    fn check(&self, images: &[SimDisk], cut: usize, removed: DiskId) -> bool {
        let mut pool = reopen(images);
        let members: Vec<DiskId> = pool.membership.members.iter().map(|member| member.id).collect();
        let places = members.iter().map(|id| place(&pool, *id)).collect();
        let options =
            open::OpenOptions { pool: pool.uuid, total: members.len(), accept_stale: false, tuning: Tuning::default() };
        let mut store = open::open(places, &options).unwrap_or_else(|error| panic!("cut {cut}: {error}"));
        let known: Vec<u32> = store.vhds.iter().map(|vhd| vhd.id.0).collect();
        for (_, id) in self.acknowledged.iter().filter(|(step, _)| *step <= cut) {
            assert!(known.contains(id), "cut {cut}: VHD {id} is lost, there are {known:?}");
        }
        let left_out = pool.leave_out_unknown(|uuid| store.pool.disks.iter().any(|disk| disk.uuid == uuid));
        let is_gone = store.pool.disk(removed).is_none();
        assert!(left_out.is_empty() || is_gone, "cut {cut}: {left_out:?}");
        assert!(is_gone || cut < self.gone, "cut {cut}: the record has the disk again");
        assert!(pool.missing.is_empty(), "cut {cut}: {:?}", pool.missing);
        let here: Vec<DiskId> = pool.disks.iter().map(|disk| disk.id).collect();
        let named: Vec<DiskId> = store.pool.disks.iter().map(|disk| disk.id).collect();
        assert_eq!(here, named, "cut {cut}");
        assert!(cut < self.blank || copies::read(&images[removed.index()]).is_err(), "cut {cut}: not blank");
        // It can be served, and whatever was interrupted is over then.
        let written = pool.write_membership(&members).unwrap();
        assert!(written.failed.is_empty() && store.raise(written.epoch, 5).is_ok(), "cut {cut}");
        let again = reopen(images);
        assert_eq!((again.disks.len(), again.missing.len()), (here.len(), 0), "cut {cut}");
        is_gone
    }
}

fn check_every_cut(spare: bool, removed: u8, next: &[u8]) {
    let mut served = Served::new(spare);
    let next: Vec<DiskId> = next.iter().map(|id| DiskId(*id)).collect();
    served.remove(DiskId(removed), &next);
    let mut replay = served.trace.replay();
    assert_eq!(served.disks.len(), 4);
    let mut seen = [0; 2];
    for cut in 0..=replay.len() {
        replay.advance_to(cut);
        for seed in [SEED_OLDEST, SEED_NEWEST, 7] {
            seen[usize::from(served.check(&replay.crash_images(seed), cut, DiskId(removed)))] += 1;
            if replay.undecided_sectors() == 0 {
                break;
            }
        }
    }
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
}

#[test]
fn a_disk_without_the_table_leaves() {
    check_every_cut(false, 3, &[]);
}

#[test]
fn a_disk_with_the_table_leaves_and_another_does_without() {
    check_every_cut(false, 0, &[1]);
}

#[test]
fn a_disk_with_the_table_leaves_and_another_takes_its_place() {
    check_every_cut(true, 0, &[1, 2]);
}
